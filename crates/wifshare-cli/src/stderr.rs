//! Writes to standard error with a timeout, so that a stalled reader does not block a process that others wait for.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::clock::clock;

/// How long to wait for a stalled reader. After that, nothing more is written until it reads again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Whether the last write timed out.
static IS_STUCK: AtomicBool = AtomicBool::new(false);

/// Number of locks that this process holds and others may wait for. While it holds one, no write waits for the reader.
static LOCKS: AtomicUsize = AtomicUsize::new(0);

/// Output that did not fit while a lock was held. It is written before anything else.
static BACKLOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Maximum size of the backlog. Output under a lock is normally a few lines.
const LONGEST_BACKLOG: usize = 64 * 1024;

/// Disables waiting for the reader until [`unlocked`] is called.
pub(crate) fn locked() {
    LOCKS.fetch_add(1, Ordering::Relaxed);
}

/// Call after a lock is released: writes the backlog, with the usual timeout.
pub(crate) fn unlocked() {
    let _ = LOCKS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |locks| Some(locks.saturating_sub(1)));
    if !BACKLOG.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
        write("");
    }
}

/// Writes all of the text, or gives up if the reader is stalled. Returns whether it was written. While a lock is held,
/// unwritten text goes to the backlog and counts as not written.
pub(crate) fn write(text: &str) -> bool {
    // Another thread that holds this lock waits for the reader, with the same timeout.
    let mut backlog = BACKLOG.lock().unwrap_or_else(PoisonError::into_inner);
    if backlog.is_empty() && LOCKS.load(Ordering::Relaxed) == 0 {
        return write_within(text.as_bytes(), PATIENCE).is_empty();
    }
    backlog.extend_from_slice(text.as_bytes());
    let is_locked = LOCKS.load(Ordering::Relaxed) > 0;
    let rest = write_within(&backlog, if is_locked { Duration::ZERO } else { PATIENCE }).len();
    if is_locked && rest <= LONGEST_BACKLOG {
        let written = backlog.len() - rest;
        backlog.drain(..written);
    } else {
        backlog.clear();
    }
    rest == 0
}

/// Writes as much as the reader accepts within this time, and returns the rest.
fn write_within(bytes: &[u8], patience: Duration) -> &[u8] {
    let mut rest = bytes;
    let start = (clock().monotonic)();
    let patience = if IS_STUCK.load(Ordering::Relaxed) { Duration::ZERO } else { patience };
    while !rest.is_empty() {
        match platform::write_some(rest) {
            Ok(Some(written)) => rest = &rest[written.min(rest.len())..],
            Ok(None) => {
                let left = patience.saturating_sub((clock().monotonic)() - start);
                if left.is_zero() || crate::signals::code_of_interruption().is_some() {
                    if LOCKS.load(Ordering::Relaxed) == 0 {
                        IS_STUCK.store(true, Ordering::Relaxed);
                    }
                    return rest;
                }
                platform::wait(left);
            }
            // The reader is gone, and there is no other stream to report that on.
            Err(_) => return rest,
        }
    }
    IS_STUCK.store(false, Ordering::Relaxed);
    rest
}

/// Whether standard error is a regular file, as after `2> FILE`. Then everything that is written stays there.
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

    /// A pipe that is ready for writing accepts this much at once (PIPE_BUF of Linux).
    const AT_ONCE: usize = 4096;

    fn kind() -> Option<FileType> {
        fstat(io::stderr()).ok().map(|metadata| FileType::from_raw_mode(metadata.st_mode))
    }

    pub(super) fn is_file() -> bool {
        kind() == Some(FileType::RegularFile)
    }

    /// Writes what can be written without blocking. Returns `None` if that is nothing.
    ///
    /// It does not set O_NONBLOCK, because all processes that share the stream would get it.
    ///
    /// # Errors
    /// Returns the system's error, for example if the reader is gone.
    pub(super) fn write_some(bytes: &[u8]) -> io::Result<Option<usize>> {
        let stderr = io::stderr();
        let written = match kind() {
            Some(FileType::Fifo | FileType::CharacterDevice | FileType::Socket) => {
                let at_once = &bytes[..bytes.len().min(AT_ONCE)];
                match without_waiting(stderr.as_fd(), at_once) {
                    // Not supported by this kernel or this kind of stream. If poll reports room, this much does not
                    // block.
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
        // An offset of -1 means the current position of the stream.
        pwritev2(stderr, &[io::IoSlice::new(bytes)], u64::MAX, ReadWriteFlags::NOWAIT)
    }

    #[cfg(not(target_os = "linux"))]
    fn without_waiting(_stderr: std::os::fd::BorrowedFd<'_>, _bytes: &[u8]) -> Result<usize, Errno> {
        Err(Errno::NOSYS)
    }

    /// Waits until there is room, up to this time.
    pub(super) fn wait(time: Duration) {
        // poll may report room although the write is refused. Pause before the next try.
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

/// Not tested: writes have no timeout.
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
