//! The work of a run while its command runs: renew on schedule, adopt what children exchanged, and restore removed
//! files.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use super::inside::Supplier;
use super::request::Request;
use super::schedule::Schedule;
use super::{Provision, Run, lock};
use crate::backoff::Backoff;
use crate::clock::{Interrupted, epoch_seconds, from_epoch_seconds};
use crate::credential::{Credential, Freshness};
use crate::delivery::{Delivery, HandedOutToken, ProfileDirectory};
use crate::identity::Reissue;
use crate::identity_token::IdentityToken;
use crate::message::whole_message;
use crate::obtain::{self, ObtainError};
use crate::progress::Progress;
use crate::renew::renew_if;
use crate::wakeup::{DirEvent, Unwatched};

impl Run {
    /// Keeps the delivered credential fresh until the run ends, or, if that ends it, until its directory is removed.
    /// Errors do not end it: it reports them and retries later. `jitter`, between 0 and 1, spreads the renewals of
    /// several processes.
    pub fn keep_fresh(&self, jitter: f64) {
        let watched_from = self.watched_from();
        let mut schedule = Schedule::new(self, jitter);
        let begun = (self.clock.monotonic)();
        loop {
            let age = (self.clock.monotonic)().saturating_sub(begun);
            // Watch first and check then, so that no change is missed.
            let is_watched = age >= watched_from && self.watch_files();
            if self.is_over() {
                return;
            }
            let work = AssertUnwindSafe(|| self.do_what_is_due(&mut schedule));
            if catch_unwind(work).is_err() {
                self.recover(&mut schedule);
            }
            let (moment, longest) = schedule.next(self, is_watched);
            let longest = if age < watched_from { longest.min(Self::SOON) } else { longest };
            self.wakeup.wait(moment, longest, self.handed_out.as_ref().and_then(HandedOutToken::news));
        }
    }

    fn do_what_is_due(&self, schedule: &mut Schedule) {
        if self.gateway.is_some() && schedule.is_first_due(self) {
            self.acquire(schedule);
        }
        let rejected = lock(&self.rejected).take();
        if let Some(rejected) = rejected {
            self.replace(&rejected, schedule);
        }
        self.follow_the_wall_clock(schedule);
        self.restore(schedule);
        self.look_at_what_children_did(schedule);
        if self.renews_on_request() {
            self.renew_if_requested(schedule);
        } else if schedule.is_due(self) {
            self.renew_or_follow(schedule);
        }
    }

    fn renew_or_follow(&self, schedule: &mut Schedule) {
        match self.config.source.reissue() {
            Reissue::OnDemand | Reissue::Rotated => self.renew(schedule),
            Reissue::Limited(_) if obtain::tokens_left(&self.config, self.clock) > 0 => self.renew(schedule),
            Reissue::Limited(_) => self.follow(schedule),
        }
    }

    /// Renews if a process asked for it and the stored credential is not fresh, then answers the request.
    fn renew_if_requested(&self, schedule: &mut Schedule) {
        if !self.is_renewal_requested() {
            return;
        }
        if !matches!(self.is_stored_fresh(), Ok(true)) {
            self.renew_or_follow(schedule);
        }
        // If the file cannot be removed, the next pass answers the request.
        drop(self.answer_renewal_request());
    }

    /// Handles a panic like any other failure: retries after a pause.
    fn recover(&self, schedule: &mut Schedule) {
        let pause = schedule.failed(self).max(Duration::from_secs(1));
        let cause = "an internal error of wifshare".to_owned();
        if let Some(gateway) = &self.gateway {
            gateway.publisher.refuse(cause.clone(), true);
        }
        (self.observer)(&Progress::NotRenewed { cause, pause });
        // A signal can end the pause early. The caller checks for the end of the run next.
        let _ = (self.clock.pause)(pause);
    }

    /// Obtains the first credential of a gateway now, so that an error is known before the first request. Does nothing
    /// for other runs, which have obtained one in `begin`.
    ///
    /// # Errors
    /// No credential is available, or it cannot be delivered.
    pub fn obtain_first(&self) -> Result<(), ObtainError> {
        if self.gateway.is_none() || self.held().is_some() {
            return Ok(());
        }
        let renewing = lock(&self.renewing);
        if self.over.load(Ordering::SeqCst) {
            return Err(Interrupted.into());
        }
        let obtained = self.first_credential()?;
        drop(renewing);
        (self.observer)(&Progress::Obtained(&obtained));
        self.publish(obtained)
    }

    /// Obtains the first credential of a gateway while the command is running.
    fn acquire(&self, schedule: &mut Schedule) {
        match self.obtain_first() {
            Ok(()) => schedule.succeeded(self),
            Err(error) => {
                let pause = schedule.failed(self);
                if let ObtainError::Interrupted(_) = error {
                    return;
                }
                self.publish_failure(&error);
                let hint = error.hint();
                self.tell(schedule, &error, |cause| Progress::NotObtained { cause, hint, pause });
            }
        }
    }

    /// Renews a credential that was reported as invalid, unless it was replaced already.
    fn replace(&self, rejected: &Credential, schedule: &mut Schedule) {
        let is_held = self.held().is_some_and(|held| held == *rejected);
        if is_held && schedule.may_replace(self.clock) {
            match self.config.source.reissue() {
                Reissue::OnDemand | Reissue::Rotated => self.renew(schedule),
                Reissue::Limited(_) => self.follow(schedule),
            }
        }
        // Wake up the waiting requests, whatever the result.
        if let Some(gateway) = &self.gateway {
            gateway.publisher.nothing_new();
        }
    }

    /// Publishes to the gateway's clients why there is no credential.
    fn publish_failure(&self, error: &ObtainError) {
        if let Some(gateway) = &self.gateway {
            gateway.publisher.refuse(whole_message(error), error.is_passing());
        }
    }

    /// Delivers the credential again after the wall clock was set back. Clients compare its times with the wall clock
    /// only, and would use it after its end.
    fn follow_the_wall_clock(&self, schedule: &mut Schedule) {
        const DIFFERENCE: Duration = Duration::from_secs(2);
        let now = self.clock.moment();
        let mut state = self.state();
        let Some(held) = state.held.as_mut().filter(|_| !self.over.load(Ordering::SeqCst)) else { return };
        let by = held.since.set_back(now);
        if by.abs_diff(held.delivered_back) <= DIFFERENCE {
            return;
        }
        held.delivered_back = by;
        let moved = held.at(now);
        let delivered = self.deliver(&mut state, &moved);
        drop(state);
        match delivered {
            Ok(()) => schedule.succeeded(self),
            Err(_) => drop(schedule.failed(self)),
        }
    }

    /// Restores the run's directory from memory if another program has removed it, for example to free space. Children
    /// still look for their files there. It waits for a moment first, because the removal fails if new files appear
    /// during it.
    fn restore(&self, schedule: &mut Schedule) {
        if self.is_in_place() {
            schedule.is_in_place();
            return;
        }
        if !schedule.may_restore(self.clock) {
            return;
        }
        let restored = self.lay_out_again().and_then(|was_removed| match self.held().filter(|_| was_removed) {
            Some(held) => {
                schedule.token_was_read = true;
                let usable = |stored: &Credential| stored.is_usable(self.clock.now());
                self.share(usable, held).map(drop)
            }
            None => Ok(()),
        });
        match restored {
            Ok(()) | Err(ObtainError::Interrupted(_)) => {}
            Err(error) => {
                let pause = Schedule::RESTORE_AFTER;
                self.tell(schedule, &error, |cause| Progress::NotRenewed { cause, pause });
            }
        }
    }

    fn lay_out_again(&self) -> Result<bool, ObtainError> {
        let mut state = self.state();
        let now = self.clock.moment();
        let held = state.held.as_ref().map(|held| held.at(now));
        let lay_out = || {
            self.write_inputs()?;
            if let (Some(profile), Some(held)) = (&self.profile, &held) {
                profile.create(&self.config.base_url, self.observer())?;
                profile.publish(held, self.observer())?;
            }
            Ok(())
        };
        // The end of the run takes the lease out. Files written after that would remain.
        match &mut state.lease {
            Some(lease) => lease.restore(lay_out, self.clock, self.observer()),
            None => Ok(false),
        }
    }

    /// Stores and delivers a credential. If the store has an acceptable one, delivers that one instead. Returns the
    /// delivered credential.
    fn share(
        &self,
        acceptable: impl Fn(&Credential) -> bool,
        credential: Credential,
    ) -> Result<Credential, ObtainError> {
        let mut permission = None;
        let may_keep = || self.permit().map(|state| permission = Some(state));
        let observer = self.observer();
        let shared =
            obtain::adopt_unless(acceptable, credential, may_keep, &self.config, &self.transport, self.clock, observer);
        drop(permission);
        let shared = shared?;
        self.publish(shared.clone())?;
        Ok(shared)
    }

    fn look_at_what_children_did(&self, schedule: &mut Schedule) {
        if schedule.may_adopt(self.clock) {
            match self.adopt() {
                // The child may have spent the handed-out token to get this credential.
                Ok(true) => {
                    schedule.token_was_read = true;
                    schedule.succeeded(self);
                }
                Ok(false) | Err(ObtainError::Interrupted(_)) => {}
                Err(error) => {
                    let pause = schedule.adopt_later(self.clock);
                    self.tell(schedule, &error, |cause| Progress::NotRenewed { cause, pause });
                }
            }
        }
        let Some(handed_out) = &self.handed_out else { return };
        schedule.token_was_read |= handed_out.was_read();
        let aged = self.state().token_due.is_none_or(|due| due.is_reached(self.clock.moment()));
        if (schedule.token_was_read || aged) && schedule.may_ask_again(self.clock) {
            match self.hand_out_token() {
                Ok(()) => schedule.token_was_read = false,
                Err(ObtainError::Interrupted(_)) => {}
                Err(error) => {
                    let pause = schedule.pace;
                    self.tell(schedule, &error, |cause| Progress::NotHandedOut { cause, pause });
                }
            }
        }
    }

    /// Requests a new identity token for the children. This process never sends it.
    pub(super) fn hand_out_token(&self) -> Result<(), ObtainError> {
        const TRIES: u32 = 4;
        let Some(handed_out) = &self.handed_out else { return Ok(()) };
        let mut pauses = Backoff::new(Duration::from_millis(500), Duration::from_secs(4));
        let observer = self.observer();
        for tries in 1.. {
            let token = obtain::ask(&self.config, &self.transport, self.clock, observer)?;
            observer(&Progress::Identified(&token));
            let now = self.clock.now();
            let mut state = self.state();
            if state.is_over {
                return Err(Interrupted.into());
            }
            if let Some(spent) = self.config.store().hand_out(&token, self.clock, observer)? {
                drop(state);
                observer(&Progress::AlreadySpent);
                if tries == TRIES {
                    let (origin, reissue) = (self.config.source.description(), self.config.source.reissue());
                    return Err(ObtainError::Spent { origin, reissue, spent: Box::new(spent), now });
                }
                (self.clock.pause)(pauses.pause(Duration::ZERO, Duration::MAX, None).unwrap_or_default())?;
                continue;
            }
            state.token_due = Some(self.clock.moment().after(patience_with(&token, now)));
            return Ok(handed_out.replace(token, observer)?);
        }
        unreachable!("the loop ends by returning")
    }

    /// Adopts a credential that a child wrote to its federation profile, after it made its own exchange, for example
    /// after a 401. A usable one becomes the shared credential, unless another process has renewed meanwhile. One that
    /// is not usable is overwritten. Returns whether the child had written one.
    fn adopt(&self) -> Result<bool, ObtainError> {
        let Provision::Credential(Delivery::Federation) = self.provision else { return Ok(false) };
        let Some(profile) = &self.profile else { return Ok(false) };
        // The last credential could not be written, so the file still contains an older one.
        let Some(held) = self.held().filter(|_| self.state().is_delivered) else { return Ok(false) };
        let Some(in_place) = profile.in_place().filter(|found| found.access_token != held.access_token) else {
            return Ok(false);
        };
        let now = self.clock.now();
        let found = Credential {
            access_token: in_place.access_token,
            expires_at: in_place.expires_at,
            obtained_at: from_epoch_seconds(epoch_seconds(now)).min(in_place.expires_at),
            generation: 0,
        };
        if !found.is_usable(now) {
            return self.publish(held).map(|()| true);
        }
        let renewed_by_another = |stored: &Credential| *stored != held && stored.is_usable(now);
        let adopted = self.share(renewed_by_another, found)?;
        (self.observer)(&Progress::Adopted(&adopted));
        Ok(true)
    }

    /// Uses a successor from elsewhere, because the run's own source cannot issue another token.
    fn follow(&self, schedule: &mut Schedule) {
        if let Supplier::TheRunAround(around) = &self.supplier {
            // The outer run will have answered before the next try.
            Request::to(around).send();
        }
        let (Some(held), stored) = (self.held(), self.config.store().read(self.clock)) else { return };
        let now = self.clock.now();
        match stored {
            Ok(Some(stored)) if stored != held && stored.is_usable(now) => {
                (self.observer)(&Progress::Renewed(&stored));
                match self.publish(stored) {
                    Ok(()) => schedule.succeeded(self),
                    Err(_) => drop(schedule.failed(self)),
                }
            }
            _ => {
                let _ = schedule.failed(self);
                if !held.is_usable(now) {
                    self.tell_the_end(
                        schedule,
                        match &self.supplier {
                            Supplier::Itself => "its source has no identity token left",
                            Supplier::TheRunAround(_) => "the run around this command has not renewed it",
                        },
                    );
                }
            }
        }
    }

    fn renew(&self, schedule: &mut Schedule) {
        let renewing = lock(&self.renewing);
        let Some(held) = self.held().filter(|_| !self.over.load(Ordering::SeqCst)) else { return };
        let is_delivered = self.state().is_delivered;
        if !is_delivered && held.freshness(self.clock.now()) == Freshness::Fresh {
            return match self.publish(held) {
                Ok(()) => schedule.succeeded(self),
                Err(_) => drop(schedule.failed(self)),
            };
        }
        let mut permission = None;
        let may_keep = || self.permit().map(|state| permission = Some(state));
        let renewed = renew_if(may_keep, &held, &self.config, &self.transport, self.clock, self.observer());
        drop(permission);
        drop(renewing);
        match renewed.and_then(|renewed| {
            (self.observer)(&Progress::Renewed(&renewed));
            self.publish(renewed)
        }) {
            Ok(()) => schedule.succeeded(self),
            Err(ObtainError::Interrupted(_)) => {
                let _ = schedule.failed(self);
            }
            Err(error) => {
                let pause = schedule.failed(self);
                self.publish_failure(&error);
                match held.is_usable(self.clock.now()) {
                    true => self.tell(schedule, &error, |cause| Progress::NotRenewed { cause, pause }),
                    false => self.tell_the_end(schedule, &whole_message(&error)),
                }
            }
        }
    }

    /// How soon changes of the files are noticed by polling.
    const SOON: Duration = Duration::from_millis(500);

    /// When to start watching the files instead of polling. Closing a watch takes the kernel ten milliseconds, which a
    /// short command should not wait for, so a run starts late. It starts sooner if it has to notice files of children
    /// or requests at once, or lives long and must not wake up in vain.
    fn watched_from(&self) -> Duration {
        const LATER: Duration = Duration::from_secs(60);
        let adopts = self.provision == Provision::Credential(Delivery::Federation);
        if adopts || self.renews_on_request() || self.ends_with_its_directory { Self::SOON } else { LATER }
    }

    /// Starts to watch the files that other processes can change. Returns whether all of them are watched. If a system
    /// limit prevents this, it is reported once.
    pub fn watch_files(&self) -> bool {
        let adopted = self.profile.as_ref().filter(|_| self.provision == Provision::Credential(Delivery::Federation));
        let on_request = Some(&self.directory).filter(|_| self.renews_on_request());
        let arrivals = adopted.map(ProfileDirectory::credentials).into_iter().chain(on_request.cloned());
        let mut watched: Vec<_> = arrivals.map(|directory| self.wakeup.watch(&directory, DirEvent::Arrival)).collect();
        watched.push(self.wakeup.watch(&self.directory, DirEvent::Removal));
        watched.extend(self.handed_out.as_ref().map(HandedOutToken::watched));
        let unwatched = watched.into_iter().find_map(Result::err);
        if let Some(Unwatched::Limit(limit)) = unwatched
            && !self.limit_was_told.swap(true, Ordering::Relaxed)
        {
            (self.observer)(&Progress::NotWatched { limit });
        }
        unwatched.is_none()
    }

    /// Whether the run has ended.
    fn is_over(&self) -> bool {
        self.state().is_over || (self.ends_with_its_directory && !self.is_in_place())
    }

    /// Reports a failure, once for each error code, so that a long job's log is not full of it.
    fn tell(&self, schedule: &mut Schedule, error: &ObtainError, step: impl FnOnce(String) -> Progress<'static>) {
        if schedule.told.as_deref() != Some(error.code()) {
            schedule.told = Some(error.code().to_owned());
            (self.observer)(&step(whole_message(error)));
        }
    }

    /// Reports once that the delivered credential has expired.
    fn tell_the_end(&self, schedule: &mut Schedule, cause: &str) {
        if !schedule.end_was_told {
            schedule.end_was_told = true;
            (self.observer)(&Progress::Ended { cause: cause.to_owned() });
        }
    }
}

/// How long a token stays in the file: 80 % of its lifetime, four minutes for GitHub's five.
fn patience_with(token: &IdentityToken, now: SystemTime) -> Duration {
    const UNKNOWN: Duration = Duration::from_secs(240);
    let (end, begin) = (token.claims().expires_at, token.claims().issued_at);
    let left = end.and_then(|end| end.duration_since(now).ok());
    // If this clock is slow, the time left exceeds the lifetime in the token.
    let whole = end.zip(begin).and_then(|(end, begin)| end.duration_since(begin).ok());
    left.into_iter().chain(whole).min().filter(|_| left.is_some()).map_or(UNKNOWN, |life| life.mul_f64(0.8))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::schedule::tests::{CLOCK, ms, pass, run_of};
    use super::*;
    use crate::clock::Clock;
    use crate::secret::Secret;

    const PROFILE: Provision = Provision::Credential(Delivery::Profile);

    fn another(text: &str) -> Credential {
        let now = CLOCK.now();
        let expires_at = now + Duration::from_secs(300);
        Credential { access_token: Secret::new(text.to_owned()), expires_at, obtained_at: now, generation: 7 }
    }

    /// Returns the credential that children find.
    fn delivered(run: &Run) -> Secret {
        run.profile.as_ref().expect("a profile").in_place().expect("a credential").access_token
    }

    #[test]
    fn refused_held_credential_is_replaced_once_with_a_pause() {
        let (run, sandbox, _holder) = run_of(PROFILE, 600);
        let mut schedule = Schedule::new(&run, 0.0);
        let exchanges = || sandbox.counters().exchanges_accepted;
        run.replace(&another("of-long-ago"), &mut schedule);
        assert_eq!(exchanges(), 1, "it was replaced before");
        let refused = run.held().expect("a credential");
        run.replace(&refused, &mut schedule);
        assert_eq!(exchanges(), 2);
        let held = run.held().expect("its successor");
        assert_ne!(held, refused);
        assert_eq!(delivered(&run), held.access_token);
        run.replace(&held, &mut schedule);
        assert_eq!(exchanges(), 2, "two refused one after another are not replaced one after another");
        run.end().expect("an end");
    }

    #[test]
    fn removed_run_directory_is_restored_with_its_content() {
        for provision in [PROFILE, Provision::Credential(Delivery::Federation)] {
            let (run, sandbox, holder) = run_of(provision, 600);
            let mut schedule = Schedule::new(&run, 0.0);
            let before = delivered(&run);
            std::fs::remove_dir_all(holder.path().join("state")).expect("removed");
            run.restore(&mut schedule);
            assert!(!run.is_in_place(), "whoever removes it has a moment");
            pass(Schedule::RESTORE_AFTER);
            run.restore(&mut schedule);
            assert!(run.is_in_place() && delivered(&run) == before);
            assert_eq!(run.config.store().read(CLOCK).expect("readable"), run.held(), "others find it too");
            assert!(schedule.token_was_read, "whether a token to spare was taken nobody knows");
            assert_eq!(sandbox.counters().exchanges_accepted, 1);
            run.restore(&mut schedule);
            assert!(run.is_in_place());
            run.end().expect("an end");
        }
    }

    #[test]
    fn exhausted_source_follows_others_and_reports_the_end_once() {
        let (run, _sandbox, _holder) = run_of(PROFILE, 100);
        let told = Arc::new(Mutex::new(Vec::new()));
        let list = Arc::clone(&told);
        let observer = Arc::new(move |step: &Progress<'_>| match step {
            Progress::Renewed(_) => lock(&list).push("renewed"),
            Progress::Ended { .. } => lock(&list).push("ended"),
            _ => {}
        });
        let run = Run { observer, ..run };
        let mut schedule = Schedule::new(&run, 0.0);
        run.follow(&mut schedule);
        assert!(lock(&told).is_empty(), "what is held is what is stored, and good");
        let keep = |credential: Credential| {
            let store = run.config.store();
            store.lock(Duration::ZERO, CLOCK, &|_| {}).expect("nobody has it").keep(credential);
        };
        let (held, successor) = (run.held().expect("a credential"), another("of-somebody-else"));
        keep(Credential { expires_at: CLOCK.now(), ..successor.clone() });
        run.follow(&mut schedule);
        assert_eq!(run.held().as_ref(), Some(&held), "what has ended is no successor");
        keep(successor.clone());
        run.follow(&mut schedule);
        assert_eq!(run.held().map(|held| held.access_token), Some(successor.access_token.clone()));
        assert_eq!(delivered(&run), successor.access_token);
        pass(Duration::from_secs(301));
        for _ in 0..2 {
            run.follow(&mut schedule);
            assert_eq!(*lock(&told), ["renewed", "ended"]);
        }
        run.end().expect("an end");
    }

    #[test]
    fn run_is_over_after_its_end_or_without_its_directory() {
        let (run, _sandbox, _holder) = run_of(PROFILE, 600);
        assert!(!run.is_over());
        std::fs::remove_dir_all(run.directory()).expect("removed");
        assert!(!run.is_over());
        let run = run.ending_with_its_directory();
        assert!(run.is_over());
        let (run, _sandbox, _holder) = run_of(PROFILE, 600);
        let run = run.ending_with_its_directory();
        assert!(!run.is_over());
        run.end().expect("an end");
        assert!(run.is_over());
        let (run, _sandbox, _holder) = run_of(PROFILE, 600);
        run.end().expect("an end");
        assert!(run.is_over());
    }

    #[test]
    fn undelivered_credential_is_delivered_before_a_renewal() {
        let (run, sandbox, _holder) = run_of(PROFILE, 200);
        let mut schedule = Schedule::new(&run, 0.0);
        let held = run.held().expect("a credential");
        run.profile.as_ref().expect("a profile").publish(&another("of-before"), &|_| {}).expect("written");
        run.state().is_delivered = false;
        run.renew(&mut schedule);
        assert_eq!((delivered(&run), sandbox.counters().exchanges_accepted), (held.access_token.clone(), 1));
        // A stale credential is renewed, whether it was delivered or not.
        pass(Duration::from_secs(195));
        run.state().is_delivered = false;
        run.renew(&mut schedule);
        assert_eq!(sandbox.counters().exchanges_accepted, 2);
        assert_ne!(delivered(&run), held.access_token);
        run.end().expect("an end");
    }

    #[test]
    fn credential_written_by_a_child_is_adopted_if_valid() {
        let (run, _sandbox, _holder) = run_of(Provision::Credential(Delivery::Federation), 600);
        assert!(run.watch_files());
        let profile = run.profile.as_ref().expect("a profile");
        let clock = Clock::system();
        let start = (clock.monotonic)();
        profile.publish(&another("of-a-child"), &|_| {}).expect("written");
        run.wakeup.wait(None, Duration::from_secs(60), None);
        assert!((clock.monotonic)() - start < Duration::from_secs(30), "nobody waits for what has come");
        assert!(run.adopt().expect("adopted"));
        assert!(!run.adopt().expect("nothing new"));
        assert_eq!(run.held().map(|held| held.access_token), Some(another("of-a-child").access_token));
        // A credential that is not usable is replaced by the held one.
        profile.publish(&Credential { expires_at: CLOCK.now(), ..another("ended") }, &|_| {}).expect("written");
        assert!(run.adopt().expect("noticed"));
        assert_eq!(delivered(&run), another("of-a-child").access_token);
        let (unwatched, _sandbox, _holder) = run_of(PROFILE, 600);
        assert_eq!((unwatched.watched_from(), run.watched_from()), (Duration::from_secs(60), ms(500)));
        assert_eq!(unwatched.ending_with_its_directory().watched_from(), ms(500));
        run.end().expect("an end");
    }
}
