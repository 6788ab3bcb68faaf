//! Exponential backoff with jitter and a time budget.

use std::time::Duration;

/// Pauses that double up to a maximum.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
    /// Total of all pauses. It counts against the budget even if the clock does not advance.
    paused: Duration,
}

impl Backoff {
    pub(crate) const fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { next: first, longest, paused: Duration::ZERO }
    }

    /// Starts at the pause that follows this number of failures.
    pub(crate) fn after(mut self, failures: u32) -> Backoff {
        self.next = self.next.saturating_mul(2u32.saturating_pow(failures)).min(self.longest);
        self
    }

    /// Returns the pause before the next try, or `None` if the budget is used up. `elapsed` is the time since the first
    /// try. Up to half of a pause is jitter, so that many clients do not retry at the same moment. The server's `asked`
    /// delay is respected within the budget.
    pub(crate) fn pause(&mut self, elapsed: Duration, budget: Duration, asked: Option<Duration>) -> Option<Duration> {
        let left = budget.checked_sub(elapsed.max(self.paused)).filter(|left| !left.is_zero())?;
        let own = self.next.mul_f64(1.0 - fastrand::f64() / 2.0);
        self.next = (self.next * 2).min(self.longest);
        let pause = own.max(asked.unwrap_or_default()).min(left);
        self.paused += pause;
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_with_jitter_and_end_with_the_budget() {
        for _ in 0..200 {
            let mut backoff = Backoff::new(SECOND / 2, 4 * SECOND);
            let mut sum = Duration::ZERO;
            let mut whole = SECOND / 2;
            while let Some(pause) = backoff.pause(Duration::ZERO, 20 * SECOND, None) {
                let is_last = sum + pause >= 20 * SECOND;
                assert!(pause <= whole && (is_last || pause >= whole / 2), "{pause:?} of {whole:?}");
                whole = (whole * 2).min(4 * SECOND);
                sum += pause;
            }
            assert_eq!(sum, 20 * SECOND);
        }
    }

    #[test]
    fn requested_pause_is_respected_within_the_budget() {
        let mut backoff = Backoff::new(SECOND, 4 * SECOND);
        let budget = 20 * SECOND;
        assert_eq!(backoff.pause(Duration::ZERO, budget, Some(7 * SECOND)), Some(7 * SECOND));
        assert_eq!(backoff.pause(15 * SECOND, budget, Some(60 * SECOND)), Some(5 * SECOND));
        assert_eq!(backoff.pause(20 * SECOND, budget, Some(SECOND)), None);
        assert!(Backoff::new(SECOND, 4 * SECOND).after(90).pause(Duration::ZERO, budget, None) >= Some(2 * SECOND));
    }
}
