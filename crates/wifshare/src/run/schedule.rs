//! The schedule of a run: when to renew, restore, adopt and replace.

use std::time::{Duration, SystemTime};

use super::{Provision, Run};
use crate::clock::Clock;
use crate::delivery::Delivery;

/// The times of a run's next actions. A renewal is due at a time of the wall clock or of the monotonic clock, whichever
/// comes first. Thus neither a suspended machine nor a changed clock delays it.
pub(super) struct Schedule {
    jitter: f64,
    due_wall: SystemTime,
    due_monotonic: Duration,
    failures: u32,
    pub(super) token_was_read: bool,
    asked: Option<Duration>,
    pub(super) pace: Duration,
    adopt_from: Duration,
    /// Set while the directory is missing.
    restore_from: Option<Duration>,
    /// When a rejected credential may be replaced again, and the pause after that.
    replace_from: Duration,
    replace_pause: Duration,
    /// The code of the last failure that was reported.
    pub(super) told: Option<String>,
    pub(super) end_was_told: bool,
}

impl Schedule {
    /// The delay after a removal, and after a failed try.
    pub(super) const RESTORE_AFTER: Duration = Duration::from_millis(500);
    const QUICKEST: Duration = Duration::from_millis(200);
    const SHORTEST_REPLACEMENT: Duration = Duration::from_secs(3);

    pub(super) fn new(run: &Run, jitter: f64) -> Schedule {
        let mut schedule = Schedule::of_nothing(jitter, run.clock.now());
        schedule.succeeded(run);
        schedule
    }

    /// For a run without a credential.
    fn of_nothing(jitter: f64, now: SystemTime) -> Schedule {
        Schedule {
            jitter,
            due_wall: now,
            // Without a credential, no renewal is due.
            due_monotonic: Duration::MAX,
            failures: 0,
            token_was_read: false,
            asked: None,
            pace: Schedule::QUICKEST,
            adopt_from: Duration::ZERO,
            restore_from: None,
            replace_from: Duration::ZERO,
            replace_pause: Schedule::SHORTEST_REPLACEMENT,
            told: None,
            end_was_told: false,
        }
    }

    pub(super) fn succeeded(&mut self, run: &Run) {
        self.failures = 0;
        self.told = None;
        self.end_was_told = false;
        if let Some(held) = run.held() {
            self.plan(held.refresh_at_with(self.jitter), run.clock);
        }
    }

    /// Plans the next try with exponential backoff. There is no limit to the number of tries.
    pub(super) fn failed(&mut self, run: &Run) -> Duration {
        const LONGEST: Duration = Duration::from_secs(60);
        let lifetime = run.held().map_or(LONGEST, |held| held.lifetime());
        let pause = (Duration::from_secs(1) * 2u32.pow(self.failures.min(6))).min(LONGEST).min(lifetime / 10);
        let pause = pause.max(Duration::from_millis(200)).mul_f64(1.0 + self.jitter / 4.0);
        self.failures += 1;
        self.plan(run.clock.now() + pause, run.clock);
        pause
    }

    pub(super) fn plan(&mut self, due: SystemTime, clock: Clock) {
        self.due_wall = due;
        self.due_monotonic = (clock.monotonic)() + due.duration_since(clock.now()).unwrap_or_default();
    }

    pub(super) fn is_due(&self, run: &Run) -> bool {
        run.held().is_some() && (run.clock.now() >= self.due_wall || (run.clock.monotonic)() >= self.due_monotonic)
    }

    /// When to check next: at a time of the wall clock, and at the latest after a duration. Changes that cause no event
    /// are polled: files of children often, the clock and directories less often.
    pub(super) fn next(&self, run: &Run, is_watched: bool) -> (Option<SystemTime>, Duration) {
        const LOOK_AT_FILES: Duration = Duration::from_millis(100);
        const LOOK_FOR_REQUESTS: Duration = Duration::from_millis(500);
        const LOOK_NOW_AND_THEN: Duration = Duration::from_secs(5);
        const SOONEST: Duration = Duration::from_millis(10);
        let (wall_now, now) = (run.clock.now(), (run.clock.monotonic)());
        let mut longest = self.due_monotonic.saturating_sub(now);
        let mut moment = run.held().map(|_| self.due_wall);
        if run.renews_on_request() {
            (longest, moment) = (Duration::MAX, None);
        }
        if run.handed_out.is_some() {
            match run.state().token_due {
                Some(due) if !self.token_was_read && !due.is_reached(run.clock.moment()) => {
                    moment = Some(moment.map_or(due.wall, |it| it.min(due.wall)));
                    longest = longest.min(due.monotonic.saturating_sub(now));
                }
                // It has to be replaced, and a new one was just requested.
                _ => {
                    let pace = self.asked.map_or(self.pace, |asked| (asked + self.pace).saturating_sub(now));
                    longest = longest.min(pace);
                }
            }
        }
        for later in [Some(self.adopt_from), self.restore_from].into_iter().flatten().filter(|later| *later > now) {
            longest = longest.min(later - now);
        }
        if !is_watched {
            longest = longest.min(match run.provision {
                Provision::IdentityToken | Provision::Credential(Delivery::Federation) => LOOK_AT_FILES,
                Provision::Credential(Delivery::Environment) => LOOK_FOR_REQUESTS,
                Provision::Credential(Delivery::Profile | Delivery::Gateway) => LOOK_NOW_AND_THEN,
            });
        }
        if !run.wakeup.knows_the_wall_clock() {
            longest = longest.min(LOOK_NOW_AND_THEN);
        }
        match moment {
            Some(moment) if moment <= wall_now => (None, SOONEST),
            moment => (moment, longest.max(SOONEST)),
        }
    }

    pub(super) fn is_in_place(&mut self) {
        self.restore_from = None;
    }

    /// Whether the directory may be restored now.
    pub(super) fn may_restore(&mut self, clock: Clock) -> bool {
        let now = (clock.monotonic)();
        let may = self.restore_from.is_some_and(|from| now >= from);
        if may || self.restore_from.is_none() {
            self.restore_from = Some(now + Schedule::RESTORE_AFTER);
        }
        may
    }

    pub(super) fn may_adopt(&self, clock: Clock) -> bool {
        (clock.monotonic)() >= self.adopt_from
    }

    /// Whether a rejected credential may be replaced now. The pause doubles after each replacement, until there was
    /// none for a while. This prevents endless exchanges if the API refuses every credential.
    pub(super) fn may_replace(&mut self, clock: Clock) -> bool {
        const CALM: Duration = Duration::from_secs(600);
        const LONGEST: Duration = Duration::from_secs(300);
        let now = (clock.monotonic)();
        if now < self.replace_from {
            return false;
        }
        let is_calm = now > self.replace_from + CALM;
        self.replace_pause = if is_calm { Self::SHORTEST_REPLACEMENT } else { (self.replace_pause * 2).min(LONGEST) };
        self.replace_from = now + self.replace_pause;
        true
    }

    /// Whether to obtain the first credential now.
    pub(super) fn is_first_due(&self, run: &Run) -> bool {
        run.held().is_none() && (run.clock.now() >= self.due_wall || (run.clock.monotonic)() >= self.due_monotonic)
    }

    pub(super) fn adopt_later(&mut self, clock: Clock) -> Duration {
        const PAUSE: Duration = Duration::from_secs(5);
        self.adopt_from = (clock.monotonic)() + PAUSE;
        PAUSE
    }

    /// Whether another token to hand out may be requested: at once at first, then more and more slowly, in case a child
    /// reads the file in a loop.
    pub(super) fn may_ask_again(&mut self, clock: Clock) -> bool {
        const CALM: Duration = Duration::from_secs(10);
        const SLOWEST: Duration = Duration::from_secs(5);
        let now = (clock.monotonic)();
        if let Some(asked) = self.asked {
            let since = now.saturating_sub(asked);
            if since < self.pace {
                return false;
            }
            self.pace = if since > CALM { Schedule::QUICKEST } else { self.pace.mul_f64(1.2).min(SLOWEST) };
        }
        self.asked = Some(now);
        true
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;
    use std::sync::Arc;

    use wifshare_sandbox::{Sandbox, Settings};

    use super::*;
    use crate::clock::Moment;
    use crate::config::{Inputs, resolve};
    use crate::environment::Environment;
    use crate::http::HttpClient;

    thread_local! {
        /// How far both clocks have advanced, and how much more the wall clock has.
        static AHEAD: Cell<Duration> = const { Cell::new(Duration::ZERO) };
        static STEPPED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
        static BEGAN: SystemTime = Clock::system().now();
    }

    /// Two clocks that advance only under the control of the test.
    pub(in crate::run) const CLOCK: Clock = Clock {
        wall: || BEGAN.with(|began| *began) + AHEAD.get() + STEPPED.get(),
        monotonic: || AHEAD.get(),
        pause: |time| {
            pass(time);
            Ok(())
        },
    };

    pub(in crate::run) fn pass(time: Duration) {
        AHEAD.set(AHEAD.get() + time);
    }

    pub(in crate::run) fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// A schedule without a planned renewal.
    fn schedule(jitter: f64) -> Schedule {
        Schedule::of_nothing(jitter, CLOCK.now())
    }

    #[test]
    fn repeated_refusals_double_the_replacement_pause() {
        let mut schedule = schedule(0.0);
        assert!(schedule.may_replace(CLOCK));
        for pause in [6, 12, 24, 48, 96, 192, 300, 300] {
            pass(ms(pause * 1000 - 1));
            assert!(!schedule.may_replace(CLOCK), "{pause} s are not over");
            pass(ms(1));
            assert!(schedule.may_replace(CLOCK), "{pause} s are over");
        }
        // After ten minutes of quiet, the pause is still long; a moment later it is short again.
        pass(ms(300_000 + 600_000));
        assert!(schedule.may_replace(CLOCK));
        assert_eq!(schedule.replace_pause, ms(300_000));
        pass(ms(300_000 + 600_001));
        assert!(schedule.may_replace(CLOCK));
        assert_eq!(schedule.replace_pause, Schedule::SHORTEST_REPLACEMENT);
    }

    #[test]
    fn repeated_reads_slow_down_until_a_quiet_period() {
        let mut schedule = schedule(0.0);
        assert!(schedule.may_ask_again(CLOCK));
        pass(ms(199));
        assert!(!schedule.may_ask_again(CLOCK));
        pass(ms(1));
        assert!(schedule.may_ask_again(CLOCK));
        assert_eq!(schedule.pace, ms(240));
        for _ in 0..40 {
            pass(schedule.pace);
            assert!(schedule.may_ask_again(CLOCK));
        }
        assert_eq!(schedule.pace, ms(5000));
        pass(ms(10_000));
        assert!(schedule.may_ask_again(CLOCK));
        assert_eq!(schedule.pace, ms(5000));
        pass(ms(10_001));
        assert!(schedule.may_ask_again(CLOCK));
        assert_eq!(schedule.pace, Schedule::QUICKEST);
    }

    #[test]
    fn restore_waits_half_a_second_and_adopt_five_seconds() {
        let mut schedule = schedule(0.0);
        for _ in 0..2 {
            assert!(!schedule.may_restore(CLOCK));
            pass(ms(499));
            assert!(!schedule.may_restore(CLOCK));
            pass(ms(1));
            assert!(schedule.may_restore(CLOCK));
            assert!(!schedule.may_restore(CLOCK), "the next try comes half a second later too");
            schedule.is_in_place();
            pass(ms(10_000));
        }
        assert!(schedule.may_adopt(CLOCK));
        assert_eq!(schedule.adopt_later(CLOCK), ms(5000));
        pass(ms(4999));
        assert!(!schedule.may_adopt(CLOCK));
        pass(ms(1));
        assert!(schedule.may_adopt(CLOCK));
    }

    /// A run with a credential of this lifetime, in seconds.
    fn run(lifetime: u64) -> (Run, Sandbox, tempfile::TempDir) {
        run_of(Provision::Credential(Delivery::Profile), lifetime)
    }

    /// Like `run`, with this provision.
    pub(in crate::run) fn run_of(provision: Provision, lifetime: u64) -> (Run, Sandbox, tempfile::TempDir) {
        let settings =
            Settings { access_token_lifetime_s: lifetime, access_token_lifetime_floor_s: 1, ..Settings::default() };
        let sandbox = Sandbox::start(settings).expect("a mock server");
        let holder = tempfile::tempdir().expect("a directory");
        let environment: Environment = sandbox.environment().into_iter().collect();
        let inputs = Inputs { state_dir: Some(holder.path().join("state")), ..Inputs::default() };
        let config = resolve(&inputs, &environment).expect("a configuration");
        let run = Run::begin(config, provision, HttpClient::new(&environment), CLOCK, Arc::new(|_| {}));
        (run.expect("a run"), sandbox, holder)
    }

    #[test]
    fn failed_renewal_is_retried_with_growing_pauses() {
        let (run, ..) = run(600);
        let mut pauses = schedule(0.0);
        let seconds: Vec<_> = (0..8).map(|_| pauses.failed(&run).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(schedule(1.0).failed(&run), ms(1250), "jitter makes it a quarter longer");
        pauses.succeeded(&run);
        assert_eq!(pauses.failed(&run), ms(1000), "after a success it begins anew");
        let (short_lived, ..) = self::run(100);
        let mut pauses = schedule(0.0);
        let seconds: Vec<_> = (0..5).map(|_| pauses.failed(&short_lived).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 10], "a tenth of a life at most");
    }

    #[test]
    fn renewal_is_due_by_the_earlier_clock() {
        let (run, ..) = run(600);
        let mut schedule = Schedule::new(&run, 0.0);
        assert!(!schedule.is_due(&run) && !schedule.is_first_due(&run));
        let pause = schedule.failed(&run);
        assert!(!schedule.is_due(&run));
        pass(pause - ms(1));
        assert!(!schedule.is_due(&run));
        STEPPED.set(ms(1));
        assert!(schedule.is_due(&run), "by the wall clock");
        STEPPED.set(Duration::ZERO);
        pass(ms(1));
        assert!(schedule.is_due(&run), "by both");
        assert!(!schedule.is_first_due(&run), "something is held");
    }

    #[test]
    fn first_credential_is_due_by_the_earlier_clock() {
        let (run, ..) = run_of(Provision::Credential(Delivery::Gateway), 600);
        let mut schedule = Schedule::new(&run, 0.0);
        assert!(schedule.is_first_due(&run) && !schedule.is_due(&run));
        STEPPED.set(ms(60_000));
        let pause = schedule.failed(&run);
        assert!(!schedule.is_first_due(&run));
        STEPPED.set(Duration::ZERO);
        pass(pause - ms(1));
        assert!(!schedule.is_first_due(&run));
        pass(ms(1));
        assert!(schedule.is_first_due(&run), "a wall clock that was stepped back makes nobody wait longer");
    }

    #[test]
    fn next_wakeup_follows_the_spare_token() {
        let (run, ..) = run_of(Provision::Credential(Delivery::Federation), 3600);
        let mut schedule = Schedule::new(&run, 0.0);
        let due = run.state().token_due.expect("handed out");
        assert!(due.wall > CLOCK.now() && due.wall < schedule.due_wall);
        let behind = due.wall - Duration::from_secs(3600);
        assert!(due.is_reached(Moment { wall: behind, ..due }), "a clock that was set back makes nothing later");
        assert_eq!(schedule.next(&run, true).0, Some(due.wall));
        schedule.token_was_read = true;
        assert_eq!(schedule.next(&run, true), (Some(schedule.due_wall), ms(200)));
        assert!(schedule.may_ask_again(CLOCK));
        pass(ms(50));
        assert_eq!(schedule.next(&run, true).1, ms(150), "it was just asked for");
        schedule.token_was_read = false;
        assert_eq!(schedule.next(&run, true).0, Some(due.wall));
        run.state().token_due = Some(CLOCK.moment());
        assert_eq!(schedule.next(&run, true), (Some(schedule.due_wall), ms(150)), "it is due itself");
    }

    #[test]
    fn environment_run_waits_only_for_requests() {
        let (run, ..) = run_of(Provision::Credential(Delivery::Environment), 600);
        let schedule = Schedule::new(&run, 0.0);
        assert_eq!(schedule.next(&run, true), (None, Duration::MAX));
        assert_eq!(schedule.next(&run, false), (None, ms(500)), "where nothing can be watched");
    }

    #[test]
    fn next_wakeup_is_the_earliest_due_time() {
        let (run, ..) = run(600);
        let mut schedule = Schedule::new(&run, 0.0);
        let (due, planned) = (schedule.due_wall, schedule.due_monotonic - AHEAD.get());
        assert!(due > CLOCK.now());
        assert_eq!(schedule.next(&run, true), (Some(due), planned));
        assert_eq!(schedule.next(&run, false), (Some(due), ms(5000)), "what is not watched is looked at now and then");
        schedule.adopt_later(CLOCK);
        pass(ms(1000));
        assert_eq!(schedule.next(&run, true).1, ms(4000));
        assert!(!schedule.may_restore(CLOCK));
        assert_eq!(schedule.next(&run, true).1, ms(500));
        pass(ms(499));
        assert_eq!(schedule.next(&run, true).1, ms(10), "no look comes sooner than that");
        pass(ms(1));
        schedule.is_in_place();
        assert_eq!(schedule.next(&run, true).1, ms(3500));
        pass(ms(3500));
        assert_eq!(schedule.next(&run, true), (Some(due), planned - ms(5000)));
        pass(planned - ms(5000));
        assert_eq!(schedule.next(&run, true), (None, ms(10)), "it is due");
    }
}
