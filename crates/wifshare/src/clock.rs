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

    /// This moment by both clocks.
    pub fn moment(&self) -> Moment {
        Moment { wall: (self.wall)(), monotonic: (self.monotonic)() }
    }
}

/// A moment by both clocks. The difference of two shows whether the wall clock was set in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// By the wall clock.
    pub wall: SystemTime,
    /// By the clock that is never set.
    pub monotonic: Duration,
}

impl Moment {
    /// A smaller difference is no step: both clocks are read one after the other, and the wall clock is slewed.
    const TOLERANCE: Duration = Duration::from_secs(2);

    /// This moment after a time.
    pub(crate) fn after(self, time: Duration) -> Moment {
        Moment { wall: self.wall + time, monotonic: self.monotonic + time }
    }

    /// Whether one of the two clocks has reached this moment.
    pub(crate) fn is_reached(self, now: Moment) -> bool {
        now.wall >= self.wall || now.monotonic >= self.monotonic
    }

    /// By how much the wall clock was set back between this moment and `now`; zero if it kept pace or went ahead.
    pub fn set_back(self, now: Moment) -> Duration {
        let passed = now.monotonic.saturating_sub(self.monotonic);
        let expected = self.wall.checked_add(passed).unwrap_or(self.wall);
        let behind = expected.duration_since(now.wall).unwrap_or_default();
        if behind > Self::TOLERANCE { behind } else { Duration::ZERO }
    }

    /// Whether the wall clock and the monotonic one measure the same time between this moment and `now`.
    pub(crate) fn agrees_with(self, now: Moment) -> bool {
        let passed = now.monotonic.checked_sub(self.monotonic);
        let shown = now.wall.duration_since(self.wall).ok();
        matches!((passed, shown), (Some(passed), Some(shown)) if passed.abs_diff(shown) <= Self::TOLERANCE)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_back_is_the_lag_of_the_wall_clock() {
        let at = |wall: u64, monotonic: u64| Moment {
            wall: from_epoch_seconds(1_000_000 + wall),
            monotonic: Duration::from_secs(monotonic),
        };
        let then = at(1000, 50);
        for (wall, monotonic, set_back) in [
            (1000, 50, 0),
            (1100, 150, 0),
            (1098, 150, 0),
            (1097, 150, 3),
            (1, 150, 1099),
            // The wall clock was set forward, or the monotonic clock restarted.
            (5000, 150, 0),
            (1000, 1, 0),
            (990, 1, 10),
        ] {
            assert_eq!(then.set_back(at(wall, monotonic)), Duration::from_secs(set_back), "{wall} {monotonic}");
        }
        for (wall, monotonic, agrees) in [(1102, 150, true), (1103, 150, false), (1097, 150, false), (1000, 49, false)]
        {
            assert_eq!(then.agrees_with(at(wall, monotonic)), agrees, "{wall} {monotonic}");
        }
    }
}
