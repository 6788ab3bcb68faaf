//! The only module that reads the clocks.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The wall clock as time since the Unix epoch.
#[expect(clippy::disallowed_methods, reason = "a server stamps its tokens itself; everything below takes `now`")]
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The monotonic clock, for durations within this process.
#[expect(clippy::disallowed_methods, reason = "how long things take is measured here and nowhere else")]
pub(crate) fn monotonic() -> Instant {
    Instant::now()
}

/// The time on a clock that is this many seconds ahead, or behind if negative.
pub(crate) fn ahead(now: Duration, seconds: i64) -> Duration {
    let difference = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { now.saturating_sub(difference) } else { now.saturating_add(difference) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_offset_saturates_at_the_epoch() {
        let now = Duration::from_millis(100_500);
        for (seconds, shown) in [(0, 100_500), (1, 101_500), (-1, 99_500), (-100, 500), (-101, 0), (i64::MIN, 0)] {
            assert_eq!(ahead(now, seconds), Duration::from_millis(shown), "{seconds}");
        }
    }
}
