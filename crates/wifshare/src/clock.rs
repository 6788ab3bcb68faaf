//! Time as an argument: the current time, elapsed time, and an interruptible sleep.

use std::time::{Duration, SystemTime};

/// Functions that read the time and sleep; every journey takes them as an argument.
///
/// `wall` is for times that other processes read, such as an expiry. `monotonic` is for times that only this process
/// measures, such as a timeout or a schedule.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// The wall clock.
    pub wall: fn() -> SystemTime,
    /// Time since boot, including the time that the machine slept. It is the same for all processes and never steps. On
    /// systems other than Linux, it counts from some moment in this process.
    pub monotonic: fn() -> Duration,
    /// Sleeps for this time. Returns [`Interrupted`] at once if the process is asked to end.
    pub pause: fn(Duration) -> Result<(), Interrupted>,
}

/// A sleep ended early because the process was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

impl Clock {
    /// Returns the clocks of this machine, with sleeps that are never interrupted.
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

    /// Returns the current wall-clock time.
    pub fn now(&self) -> SystemTime {
        (self.wall)()
    }

    /// Returns the current time by both clocks.
    pub fn moment(&self) -> Moment {
        Moment { wall: (self.wall)(), monotonic: (self.monotonic)() }
    }
}

/// A moment by both clocks. The difference of two moments shows whether the wall clock was set in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Wall-clock time.
    pub wall: SystemTime,
    /// Monotonic time.
    pub monotonic: Duration,
}

impl Moment {
    /// Smaller differences do not count as a step: the two clocks are read one after the other, and the wall clock is
    /// slewed.
    const TOLERANCE: Duration = Duration::from_secs(2);

    /// Returns the moment that follows this one after `time`.
    pub(crate) fn after(self, time: Duration) -> Moment {
        Moment { wall: self.wall + time, monotonic: self.monotonic + time }
    }

    /// Returns whether either clock has reached this moment.
    pub(crate) fn is_reached(self, now: Moment) -> bool {
        now.wall >= self.wall || now.monotonic >= self.monotonic
    }

    /// Returns how far the wall clock was set back between this moment and `now`. Zero if it kept pace or went ahead.
    pub fn set_back(self, now: Moment) -> Duration {
        let passed = now.monotonic.saturating_sub(self.monotonic);
        let expected = self.wall.checked_add(passed).unwrap_or(self.wall);
        let behind = expected.duration_since(now.wall).unwrap_or_default();
        if behind > Self::TOLERANCE { behind } else { Duration::ZERO }
    }

    /// Returns whether both clocks measure the same time between this moment and `now`.
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

/// Returns whole seconds since the Unix epoch, as used in files and tokens. A moment before the epoch counts as zero.
pub fn epoch_seconds(moment: SystemTime) -> u64 {
    moment.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Returns the moment this many seconds after the Unix epoch, capped at a fixed maximum.
pub fn from_epoch_seconds(seconds: u64) -> SystemTime {
    // A larger number is invalid input, and the cap keeps later additions from overflowing.
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
