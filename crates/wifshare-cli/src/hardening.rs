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
