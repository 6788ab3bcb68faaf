//! Time as an argument: the moment, the passing of time, and a wait that can be cut short.

use std::time::{Duration, SystemTime};

/// How to tell the time and how to wait, handed to every journey.
///
/// `wall` is for what other processes read (an expiry), `monotonic` for what only we measure (a patience, a schedule).
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The wall clock.
    pub wall: fn() -> SystemTime,
    /// Time since the machine was started, the time that it slept included: the same for all processes, and never
    /// stepped, whatever happens to the wall clock. Not on Linux: since some moment of this process.
    pub monotonic: fn() -> Duration,
    /// Waits that long, or returns [`Interrupted`] at once when somebody asked the process to end.
    pub pause: fn(Duration) -> Result<(), Interrupted>,
}

/// A wait was cut short because the process was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

impl Clock {
    /// The clocks of this machine, with waits that nothing cuts short.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where the library offers the ambient clock as a value"
    )]
    pub fn system() -> Clock {
        Clock {
            wall: SystemTime::now,
            monotonic: since_boot,
            pause: |time| {
                std::thread::sleep(time);
                Ok(())
            },
        }
    }

    /// The wall clock's moment.
    pub fn now(&self) -> SystemTime {
        (self.wall)()
    }
}

#[cfg(target_os = "linux")]
fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(not(target_os = "linux"))]
#[expect(clippy::disallowed_methods, reason = "the other half of the place above")]
fn since_boot() -> Duration {
    use std::sync::OnceLock;
    use std::time::Instant;

    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Whole seconds since the Unix epoch, as files and tokens carry them; a moment before the epoch counts as zero.
pub fn epoch_seconds(moment: SystemTime) -> u64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The moment that many seconds after the Unix epoch, or the last one the system can tell.
pub fn from_epoch_seconds(seconds: u64) -> SystemTime {
    // A century from now at most: a larger number is nonsense, and must not overflow what is added to it.
    const CENTURIES: u64 = 1 << 36;
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(CENTURIES))
}
