//! Standard error, written within a bound: a reader that stands still must not hold up a process that others wait for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::clock::clock;

/// How long a reader that stands still is waited for. After that, nothing more is written until it reads again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether the last write was given up.
static IS_STUCK: AtomicBool = AtomicBool::new(false);

/// Writes all of it, or gives up when the reader does not read; whether it was written.
pub(crate) fn write(text: &str) -> bool {
    let mut rest = text.as_bytes();
    let start = (clock().monotonic)();
    let patience = if IS_STUCK.load(Ordering::Relaxed) { Duration::ZERO } else { PATIENCE };
    while !rest.is_empty() {
        match platform::write_some(rest) {
            Ok(Some(written)) => rest = &rest[written.min(rest.len())..],
            Ok(None) => {
                let left = patience.saturating_sub((clock().monotonic)() - start);
                if left.is_zero() || crate::signals::code_of_interruption().is_some() {
                    IS_STUCK.store(true, Ordering::Relaxed);
                    return false;
                }
                platform::wait(left);
            }
            // Nobody listens any more, and there is nobody left to tell that.
            Err(_) => return false,
        }
    }
    IS_STUCK.store(false, Ordering::Relaxed);
    true
}

/// Whether it is a regular file, as after `2> FILE`: whatever is written stays there.
pub(crate) fn is_file() -> bool {
    platform::is_file()
}

#[cfg(unix)]
mod platform {
    use std::io;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::fs::{FileType, fstat};
    use rustix::io::Errno;

    /// As much as a pipe takes at once when it says that it takes anything (PIPE_BUF of Linux).
    const AT_ONCE: usize = 4096;

    fn kind() -> Option<FileType> {
        fstat(io::stderr()).ok().map(|metadata| FileType::from_raw_mode(metadata.st_mode))
    }

    pub(super) fn is_file() -> bool {
        kind() == Some(FileType::RegularFile)
    }

    /// Writes what can be written without waiting; `None` where that is nothing.
    ///
    /// The flag that makes a stream non-blocking is shared with every process that has it, so it is not ours to set.
    pub(super) fn write_some(bytes: &[u8]) -> io::Result<Option<usize>> {
        let stderr = io::stderr();
        let written = match kind() {
            Some(FileType::Fifo | FileType::CharacterDevice | FileType::Socket) => {
                let at_once = &bytes[..bytes.len().min(AT_ONCE)];
                match without_waiting(stderr.as_fd(), at_once) {
                    // Not known to this kernel, or not for this kind of stream: one that has room takes so much at once.
                    Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::SPIPE) => {
                        if !has_room(Duration::ZERO) {
                            return Ok(None);
                        }
                        rustix::io::write(&stderr, at_once)
                    }
                    result => result,
                }
            }
            _ => rustix::io::write(&stderr, bytes),
        };
        match written {
            Ok(written) => Ok(Some(written)),
            Err(Errno::AGAIN) => Ok(None),
            Err(Errno::INTR) => Ok(Some(0)),
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(target_os = "linux")]
    fn without_waiting(stderr: std::os::fd::BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
        use rustix::io::{ReadWriteFlags, pwritev2};
        // An offset of -1 is the stream's own place.
        pwritev2(stderr, &[io::IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT)
    }

    #[cfg(not(target_os = "linux"))]
    fn without_waiting(_stderr: std::os::fd::BorrowedFd<'_>, _bytes: &[u8]) -> Result<usize, Errno> {
        Err(Errno::NOSYS)
    }

    /// Waits until there is room, for so long at most.
    pub(super) fn wait(time: Duration) {
        // Room that is there and refused is looked at again in a moment.
        if has_room(time) {
            let _ = (crate::clock::clock().pause)(Duration::from_millis(1));
        }
    }

    fn has_room(time: Duration) -> bool {
        let stderr = io::stderr();
        let timeout = Timespec { tv_sec: time.as_secs() as i64, tv_nsec: time.subsec_nanos().into() };
        let mut fds = [PollFd::new(&stderr, PollFlags::OUT)];
        poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
    }
}

/// Not run by us: there a write is as it is.
#[cfg(not(unix))]
mod platform {
    use std::io::{self, Write};
    use std::time::Duration;

    pub(super) fn is_file() -> bool {
        false
    }

    pub(super) fn write_some(bytes: &[u8]) -> io::Result<Option<usize>> {
        io::stderr().write_all(bytes).map(|()| Some(bytes.len()))
    }

    pub(super) fn wait(_time: Duration) {}
}
