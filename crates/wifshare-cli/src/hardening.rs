//! What a process does that holds secrets, before it holds the first: nobody of the same user reads its memory or its
//! environment, and no core file is written of it.
//!
//! One flag of the kernel does both, and it ends with `execve`: a child of ours is what it would be without us, its
//! limit for core files included, which is why we leave that limit alone.
//!
//! The flag comes a moment late: whoever opened `/proc/PID/mem` before it was set reads on for as long as this program
//! runs. A gateway, whose access token is nowhere but in its memory, therefore begins anew from a copy of itself that its
//! user may run and not read: of such a program the kernel shows nothing from its first moment on.

/// Hides this process from others of its user, as far as the platform can. Root reads on; so does a tracer that was
/// there before. Where it fails nothing is worse than it was, so it is not told.
pub(crate) fn hide_this_process() {
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
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
/// It returns in the program that has begun anew, and where the system cannot do that: then nothing is worse than before.
///
/// It costs a copy of the program in memory and another start, so it is for what keeps a secret that stands nowhere else.
#[cfg(target_os = "linux")]
pub(crate) fn begin_anew() {
    use std::os::unix::process::CommandExt;

    if std::fs::read_link("/proc/self/exe").is_ok_and(|path| path.to_string_lossy().starts_with("/memfd:wifshare")) {
        // The name that others know us by would be the number of a descriptor.
        let _ = rustix::thread::set_name(c"wifshare");
        return;
    }
    let Ok(copy) = copy::unreadable() else { return };
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "wifshare".into());
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&copy));
    let reads_all = copy::stop_reading_everything();
    // It comes back only where it failed.
    let _ = std::process::Command::new(path).arg0(name).args(arguments).exec();
    if let Some(before) = reads_all {
        let _ = rustix::thread::set_capabilities(None, before);
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn begin_anew() {}

#[cfg(target_os = "linux")]
mod copy {
    use std::fs::File;
    use std::io::{self, Read};
    use std::os::unix::fs::FileExt;

    use rustix::fs::{MemfdFlags, Mode, fchmod, memfd_create};
    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

    /// This program in memory, for its owner to run and for nobody to read. Closed when it runs.
    pub(super) fn unreadable() -> io::Result<File> {
        let program = File::open("/proc/self/exe")?;
        let length = loaded(&program).map_or_else(|| program.metadata().map(|program| program.len()), Ok)?;
        let create = |flags| memfd_create(c"wifshare", MemfdFlags::CLOEXEC | flags);
        // Older kernels do not know the flag and need none.
        let mut copy = File::from(create(MemfdFlags::EXEC).or_else(|_| create(MemfdFlags::empty()))?);
        io::copy(&mut program.take(length), &mut copy)?;
        fchmod(&copy, Mode::XUSR)?;
        Ok(copy)
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
    pub(super) fn stop_reading_everything() -> Option<CapabilitySets> {
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
        fn a_copy_is_no_longer_than_what_is_loaded() {
            let program = File::open("/proc/self/exe").expect("this test");
            let all = program.metadata().expect("its length").len();
            let loaded = loaded(&program).expect("a program of this machine");
            assert!(loaded > 4096 && loaded <= all, "{loaded} of {all}");
            assert_eq!(super::loaded(&File::open("/proc/self/status").expect("a text")), None);
        }
    }
}
