//! Hides the memory and the environment of a process that holds secrets from other processes of the same user, and
//! prevents core files. It does so before the process holds the first secret.
//!
//! One kernel flag (`PR_SET_DUMPABLE`) does both. `execve` resets it, so child processes are not affected. The limit
//! for core files is left alone, because children would inherit it.
//!
//! The flag comes a moment late: a process that opened `/proc/PID/mem` before it was set can read for as long as this
//! program runs. A gateway keeps its access token only in memory, so it executes a copy of itself that its user can run
//! but not read. The kernel hides the memory of such a program from the start.

use std::io;

use wifshare::Environment;

use crate::catalogue::code;
use crate::console::Console;
use crate::failure::Failure;

/// Hides this process from other processes of its user, as far as the platform supports it. Root can still read it, and
/// so can a tracer that was attached before.
///
/// # Errors
///
/// Returns an error if the kernel reports that the process is not hidden. The process continues as before.
pub(crate) fn hide_this_process() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};
        let set = set_dumpable_behavior(DumpableBehavior::NotDumpable);
        // A seccomp filter can return anything, so check the actual state.
        if dumpable_behavior()? == DumpableBehavior::Dumpable {
            set?;
            return Err(io::ErrorKind::Unsupported.into());
        }
    }
    Ok(())
}

/// Protects the memory of a process that promises to keep the credential from its children. It warns if the memory may
/// have been readable in the first moment.
///
/// # Errors
///
/// Returns an error if the process is not hidden: a child could read the credential from its memory.
pub(crate) fn guard_memory(hidden: io::Result<()>, environment: &Environment, console: Console) -> Result<(), Failure> {
    hidden.map_err(|error| {
        Failure::new(
            code!("memory-not-hidden"),
            format!("could not hide the memory of this process from the command (PR_SET_DUMPABLE): {error}"),
            Some(
                "allow the system call prctl in the seccomp profile of this container, or use another --delivery, which \
                 does not promise to keep the credential from the command",
            ),
        )
    })?;
    if let Err(error) = begin_anew(environment) {
        console.warning(&format!(
            "could not start again from an unreadable copy of the program ({error}): a process of this user \
             that was there before and opened this one's memory in its first moment can read the credential; the command \
             cannot"
        ));
    }
    Ok(())
}

/// Closes every file descriptor except the standard streams. Call it only at the start, when no other descriptor
/// belongs to this process.
#[cfg(unix)]
pub(crate) fn close_what_was_inherited() {
    let listed = ["/proc/self/fd", "/dev/fd"].iter().find_map(|path| std::fs::read_dir(path).ok());
    // List first, then close. The descriptor of the listing itself is in the list and is already closed.
    let numbers: Vec<i32> =
        listed.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        let _ = nix::unistd::close(number);
    }
}

/// Executes this program again from a copy whose memory was never readable for other processes of the user. The
/// arguments and the process id stay the same. The call returns `Ok` in the copy.
///
/// This costs a copy of the program and another start, so it is only for processes whose secret is nowhere else. The
/// copy is in memory. If the system refuses to run it from there, the copy is an unnamed file in a temporary directory.
///
/// # Errors
/// Returns an error if the system can run neither copy.
#[cfg(target_os = "linux")]
fn begin_anew(environment: &Environment) -> io::Result<()> {
    if copy::is_running()? {
        // Otherwise the process name would be the number of a file descriptor.
        let _ = rustix::thread::set_name(c"wifshare");
        return Ok(());
    }
    let named = ["XDG_RUNTIME_DIR", "RUNNER_TEMP", "TMPDIR"].iter().filter_map(|name| environment.os(name));
    let places = named.map(std::path::Path::new).chain(["/tmp", "/var/tmp", "/dev/shm"].map(std::path::Path::new));
    // `run` returns only on failure. Report the error of the first attempt, which is the one that a system should
    // allow.
    let error = copy::in_memory().map_or_else(|error| error, |copy| copy::run(&copy));
    places.for_each(|place| drop(copy::in_directory(place).map(|copy| copy::run(&copy))));
    Err(error)
}

#[cfg(not(target_os = "linux"))]
fn begin_anew(_environment: &Environment) -> io::Result<()> {
    Ok(())
}

#[cfg(target_os = "linux")]
mod copy {
    use std::fs::File;
    use std::io::{self, Read};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::os::unix::process::CommandExt;
    use std::path::Path;

    use rustix::fs::{MemfdFlags, Mode, OFlags, fchmod, memfd_create, open};
    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

    /// Whether the running program is such a copy, or another program that its user cannot read.
    pub(super) fn is_running() -> io::Result<bool> {
        let program = std::fs::metadata("/proc/self/exe")?;
        let is_unreadable =
            || File::open("/proc/self/exe").is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        Ok((program.nlink() == 0 && program.mode() & 0o777 == Mode::XUSR.bits()) || is_unreadable())
    }

    /// Copies this program to memory. The owner can run the copy but not read it. The descriptor is closed on exec.
    pub(super) fn in_memory() -> io::Result<File> {
        let create = |flags| memfd_create(c"wifshare", MemfdFlags::CLOEXEC | flags);
        // Older kernels do not know the flag and do not need it.
        let mut copy = File::from(create(MemfdFlags::EXEC).or_else(|_| create(MemfdFlags::empty()))?);
        fill(&mut copy)?;
        Ok(copy)
    }

    /// Copies this program to a file in this directory that never has a name.
    pub(super) fn in_directory(place: &Path) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let mut written = File::from(open(place, flags, Mode::RUSR | Mode::WUSR)?);
        // A file that is open for writing cannot be executed, so open it again.
        let copy = File::open(format!("/proc/self/fd/{}", written.as_raw_fd()))?;
        fill(&mut written)?;
        Ok(copy)
    }

    fn fill(copy: &mut File) -> io::Result<()> {
        let program = File::open("/proc/self/exe")?;
        let length = loaded(&program).map_or_else(|| program.metadata().map(|program| program.len()), Ok)?;
        io::copy(&mut program.take(length), copy)?;
        Ok(fchmod(&*copy, Mode::XUSR)?)
    }

    /// Executes this copy with the same arguments. Returns only on failure.
    pub(super) fn run(copy: &File) -> io::Error {
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_else(|| "wifshare".into());
        let path = format!("/proc/self/fd/{}", copy.as_raw_fd());
        let reads_all = stop_reading_everything();
        let error = std::process::Command::new(path).arg0(name).args(arguments).exec();
        if let Some(before) = reads_all {
            let _ = set_capabilities(None, before);
        }
        error
    }

    /// Length of the part of a program that is loaded when it runs. What follows it, such as debug information, is not
    /// needed.
    fn loaded(program: &File) -> Option<u64> {
        const LOAD: u32 = 1;
        let mut head = [0; 64];
        program.read_exact_at(&mut head, 0).ok()?;
        // 64-bit ELF in the native byte order.
        let ours = if cfg!(target_endian = "little") { 1 } else { 2 };
        if !head.starts_with(b"\x7fELF\x02") || head[5] != ours {
            return None;
        }
        let number = |bytes: &[u8]| Some(u64::from_ne_bytes(bytes.try_into().ok()?));
        let short = |bytes: &[u8]| Some(u64::from(u16::from_ne_bytes(bytes.try_into().ok()?)));
        let (table, size, count) = (number(&head[32..40])?, short(&head[54..56])?, short(&head[56..58])?);
        let mut end = table + size * count;
        for place in 0..count {
            let mut entry = [0; 56];
            program.read_exact_at(&mut entry, table + size * place).ok()?;
            if u32::from_ne_bytes(entry[..4].try_into().ok()?) == LOAD {
                end = end.max(number(&entry[8..16])? + number(&entry[32..40])?);
            }
        }
        Some(end)
    }

    /// Drops the capabilities that let root read files without permission, for the time of the exec. Returns the
    /// previous capabilities if any were dropped.
    fn stop_reading_everything() -> Option<CapabilitySets> {
        let before = capabilities(None).ok()?;
        let all = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        if !before.effective.intersects(all) {
            return None;
        }
        set_capabilities(None, CapabilitySets { effective: before.effective - all, ..before }).ok()?;
        Some(before)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn copied_program_is_no_longer_than_its_loaded_part() {
            let program = File::open("/proc/self/exe").expect("this test");
            let all = program.metadata().expect("its length").len();
            let loaded = loaded(&program).expect("a program of this machine");
            assert!(loaded > 4096 && loaded <= all, "{loaded} of {all}");
            assert_eq!(super::loaded(&File::open("/proc/self/status").expect("a text")), None);
        }
    }
}
