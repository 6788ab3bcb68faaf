//! What a process does that holds secrets, before it holds the first: nobody of the same user reads its memory or its
//! environment, and no core file is written of it.
//!
//! One flag of the kernel does both, and it ends with `execve`: a child of ours is what it would be without us, its
//! limit for core files included, which is why we leave that limit alone.

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
