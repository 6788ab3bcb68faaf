//! What a process does that holds secrets, before it holds the first: nobody of the same user reads its memory or its
//! environment, and no core file is written of it.
//!
//! One flag of the kernel does both, and it ends with `execve`: a child of ours is what it would be without us, its
//! limit for core files included, which is why we leave that limit alone.
//!
//! The flag comes a moment late: whoever opened `/proc/PID/mem` before it was set reads on for as long as this program
//! runs. A gateway, whose access token is nowhere but in its memory, therefore begins anew from a copy of itself that its
//! user may run and not read: of such a program the kernel shows nothing from its first moment on.

use std::io;

use wifshare::Environment;

use crate::catalogue::code;
use crate::failure::Failure;
use crate::talk::Talk;

/// Hides this process from others of its user, as far as the platform can. Root reads on; so does a tracer that was
/// there before.
///
/// # Errors
///
/// If the kernel says afterwards that the process is not hidden. Then nothing is worse than it was.
pub(crate) fn hide_this_process() -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};
        let set = set_dumpable_behavior(DumpableBehavior::NotDumpable);
        // What a filter of system calls answers may be anything; what the kernel has counts.
        if dumpable_behavior()? == DumpableBehavior::Dumpable {
            set?;
            return Err(io::ErrorKind::Unsupported.into());
        }
    }
    Ok(())
}

/// What a process needs whose promise is that its children do not get the credential: it is hidden, and was never open.
///
/// # Errors
///
/// If it is not hidden: a child could read the credential in its memory.
pub(crate) fn guard_memory(hidden: io::Result<()>, environment: &Environment, talk: Talk) -> Result<(), Failure> {
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
        talk.warning(&format!(
            "could not start again from a copy of the program that nobody can read ({error}): a process of this user \
             that was there before and opened this one's memory in its first moment can read the credential; the command \
             cannot"
        ));
    }
    Ok(())
}

/// Closes every descriptor but the standard streams. Only at the very beginning, when none of them is ours.
#[cfg(unix)]
pub(crate) fn close_what_was_inherited() {
    let listed = ["/proc/self/fd", "/dev/fd"].iter().find_map(|path| std::fs::read_dir(path).ok());
    // Listed first and closed then; the listing itself is among them, and closed already.
    let numbers: Vec<i32> =
        listed.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        let _ = nix::unistd::close(number);
    }
}

/// Begins this program anew, with its arguments and its process id, where its memory was never open to others of its user.
/// It returns in the program that has begun anew, and with an error where the system cannot do that.
///
/// It costs a copy of the program and another start, so it is for what keeps a secret that stands nowhere else. The copy
/// is in memory; where the system runs no such copy, it is a file without a name in a temporary directory.
#[cfg(target_os = "linux")]
fn begin_anew(environment: &Environment) -> io::Result<()> {
    if copy::is_running()? {
        // The name that others know us by would be the number of a descriptor.
        let _ = rustix::thread::set_name(c"wifshare");
        return Ok(());
    }
    let named = ["XDG_RUNTIME_DIR", "RUNNER_TEMP", "TMPDIR"].iter().filter_map(|name| environment.os(name));
    let places = named.map(std::path::Path::new).chain(["/tmp", "/var/tmp", "/dev/shm"].map(std::path::Path::new));
    // Each comes back only where it failed. The first is the one that a system is to allow.
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

    /// Whether what runs here is such a copy, or another program that its user cannot read.
    pub(super) fn is_running() -> io::Result<bool> {
        let program = std::fs::metadata("/proc/self/exe")?;
        let is_unreadable =
            || File::open("/proc/self/exe").is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
        Ok((program.nlink() == 0 && program.mode() & 0o777 == Mode::XUSR.bits()) || is_unreadable())
    }

    /// This program in memory, for its owner to run and for nobody to read. Closed when it runs.
    pub(super) fn in_memory() -> io::Result<File> {
        let create = |flags| memfd_create(c"wifshare", MemfdFlags::CLOEXEC | flags);
        // Older kernels do not know the flag and need none.
        let mut copy = File::from(create(MemfdFlags::EXEC).or_else(|_| create(MemfdFlags::empty()))?);
        fill(&mut copy)?;
        Ok(copy)
    }

    /// The same in a file of this directory, which never has a name there.
    pub(super) fn in_directory(place: &Path) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let mut written = File::from(open(place, flags, Mode::RUSR | Mode::WUSR)?);
        // What is open to be written cannot be run.
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

    /// Runs this copy in the place of the program, with its arguments. It comes back only where it failed.
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

    /// How much of a program is loaded when it runs. What lies behind that, such as what a debugger reads, is not needed.
    fn loaded(program: &File) -> Option<u64> {
        const LOAD: u32 = 1;
        let mut head = [0; 64];
        program.read_exact_at(&mut head, 0).ok()?;
        // ELF, 64 bits, in the order of bytes that we have.
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

    /// Root may read what nobody may; not while it begins anew. Gives what there was, where something was taken.
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
