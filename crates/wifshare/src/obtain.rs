//! The obtain journey: returns the stored credential if usable, or else exchanges an identity token.
//!
//! The order is: check the store, lock, check again, check for a cached failure, request an identity token just in
//! time, connect, record the token as spent, send it once, parse the response, store the credential.

use std::time::{Duration, SystemTime};

use crate::clock::Clock;
use crate::config::{Config, Proof};
use crate::credential::{Credential, Freshness};
use crate::diagnosis::Diagnosis;
use crate::exchange;
use crate::http::{Connection, HttpClient, SendError};
use crate::identity::{IdentityError, IdentitySource, Reissue, TokenVariable};
use crate::identity_token::IdentityToken;
use crate::message::{answered_at, safe_text, whole_message};
use crate::principal::Principal;
use crate::progress::{Observer, Progress};
use crate::store::{CachedFailure, LockedStore, PATIENCE, Spent, StoreError};
use plan::{Action, Outcome, Plan};

mod error;
mod evidence;
mod plan;

pub use error::ObtainError;
use evidence::Evidence;

/// How long to wait for the response to an exchange when the process is asked to end: the response costs an identity
/// token. A CI that cancels a job waits about as long.
pub const EXCHANGE_GRACE: Duration = Duration::from_secs(10);

/// Returns a usable credential: the shared one if there is one, or else a new one, obtained once for all processes.
///
/// A stored credential whose renewal is due is renewed first. If that fails, it is returned as it is.
///
/// # Errors
/// Fails if no usable credential is stored and none can be obtained, or if the process is interrupted.
pub fn obtain(
    config: &Config,
    transport: &HttpClient,
    clock: Clock,
    observer: Observer<'_>,
) -> Result<Credential, ObtainError> {
    // A process that has a usable credential waits only this long for a better one.
    const MOMENT: Duration = Duration::from_secs(2);
    let fresh = |stored: &Credential| stored.freshness(clock.now()) == Freshness::Fresh;
    let has_one =
        || Ok::<_, StoreError>(config.store().read(clock)?.is_some_and(|stored| stored.is_usable(clock.now())));
    let patience = || Ok(if has_one()? { MOMENT } else { PATIENCE });
    let fresh_within = |patience: &dyn Fn() -> Result<Duration, StoreError>| {
        replace_unless(fresh, || Ok(()), config, transport, patience, clock, observer)
    };
    let obtained = match fresh_within(&patience) {
        // The usable credential expired meanwhile, so wait with the full timeout.
        Err(ObtainError::Store(StoreError::Held { waited, .. })) if waited < PATIENCE && !has_one()? => {
            fresh_within(&|| Ok(PATIENCE))
        }
        obtained => obtained,
    };
    match obtained {
        Err(ObtainError::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(error) => match config.store().read(clock) {
            Ok(Some(stored)) if stored.is_usable(clock.now()) => {
                if let ObtainError::Store(StoreError::Held { .. }) = error {
                    return Ok(stored);
                }
                observer(&Progress::NotRenewed { cause: whole_message(&error), pause: Duration::ZERO });
                Ok(stored)
            }
            _ => Err(error),
        },
        obtained => obtained,
    }
}

/// Learns the principal of this process, if the identity key does not include it: from the token file, or by requesting
/// a token from the source. A requested token is kept in memory for the next exchange. Nothing is spent.
///
/// Every journey calls this first, and only the first call has an effect. A program that needs its
/// [`store`](Config::store) earlier calls it by itself.
///
/// # Errors
/// Fails if no identity token is available. Then no stored credential is returned, because it may belong to another
/// principal.
pub fn prove(config: &Config, transport: &HttpClient, clock: Clock, observer: Observer<'_>) -> Result<(), ObtainError> {
    if config.proof() == Proof::Key || config.principal.known().is_some() {
        return Ok(());
    }
    let is_file = matches!(config.source, IdentitySource::File { .. });
    if !is_file {
        observer(&Progress::Asking);
    }
    let token = ask(config, transport, clock, observer)?;
    config.principal.learn(Principal::of(&token));
    if !is_file {
        observer(&Progress::Identified(&token));
        config.principal.keep_unspent(token);
    }
    Ok(())
}

/// Returns a credential that is valid for at least `asked`.
///
/// # Errors
/// Fails if no credential can be obtained, or if the rule's credentials are too short-lived.
pub fn obtain_lasting(
    asked: Duration,
    config: &Config,
    transport: &HttpClient,
    clock: Clock,
    observer: Observer<'_>,
) -> Result<Credential, ObtainError> {
    let lasting =
        |credential: &Credential| credential.is_usable(clock.now()) && credential.remaining(clock.now()) >= asked;
    let too_short = |credential: &Credential| ObtainError::ShortLived { lifetime: credential.lifetime(), asked };
    // If the stored credential was too short-lived even when it was new, another exchange would be wasted.
    prove(config, transport, clock, observer)?;
    let hopeless = |stored: &Credential| stored.is_usable(clock.now()) && stored.lifetime() < asked;
    if let Some(stored) = config.store().read(clock)?.filter(hopeless) {
        return Err(too_short(&stored));
    }
    let credential = replace_unless(lasting, || Ok(()), config, transport, &|| Ok(PATIENCE), clock, observer)?;
    if credential.remaining(clock.now()) < asked { Err(too_short(&credential)) } else { Ok(credential) }
}

/// Obtains a new credential, unless an acceptable one is stored. At most one process at a time exchanges. `may_keep` is
/// called between the exchange and storing the credential. All exchanges go through this function.
pub(crate) fn replace_unless(
    acceptable: impl Fn(&Credential) -> bool,
    may_keep: impl FnOnce() -> Result<(), ObtainError>,
    config: &Config,
    transport: &HttpClient,
    patience: &dyn Fn() -> Result<Duration, StoreError>,
    clock: Clock,
    observer: Observer<'_>,
) -> Result<Credential, ObtainError> {
    let can_be_asked_again = match config.source.reissue() {
        Reissue::OnDemand => true,
        Reissue::Rotated => false,
        Reissue::Limited(_) => tokens_left(config, clock) > 1,
    };
    let plan = Plan::by_exchange(can_be_asked_again);
    execute(plan, None, acceptable, may_keep, config, transport, patience, clock, observer)
}

/// Stores a credential that a child obtained as the shared one, unless an acceptable one is stored.
pub(crate) fn adopt_unless(
    acceptable: impl Fn(&Credential) -> bool,
    found: Credential,
    may_keep: impl FnOnce() -> Result<(), ObtainError>,
    config: &Config,
    transport: &HttpClient,
    clock: Clock,
    observer: Observer<'_>,
) -> Result<Credential, ObtainError> {
    let plan = Plan::by_adoption();
    execute(plan, Some(found), acceptable, may_keep, config, transport, &|| Ok(PATIENCE), clock, observer)
}

/// Executes the actions of a plan, one by one. An error of the store ends it at once: before the token is in the
/// ledger, nothing is spent. A new credential is returned even if it cannot be stored.
#[expect(clippy::too_many_arguments, reason = "all that a journey is handed, passed on once")]
fn execute(
    mut plan: Plan,
    mut bought: Option<Credential>,
    acceptable: impl Fn(&Credential) -> bool,
    may_keep: impl FnOnce() -> Result<(), ObtainError>,
    config: &Config,
    transport: &HttpClient,
    patience: &dyn Fn() -> Result<Duration, StoreError>,
    clock: Clock,
    observer: Observer<'_>,
) -> Result<Credential, ObtainError> {
    /// No new try starts after this time, so that waiting processes know the maximum duration ([`PATIENCE`]).
    const ENOUGH: Duration = Duration::from_secs(60);
    let start = (clock.monotonic)();
    let mut failure = None;
    if plan.action() == Action::Prove {
        let proven = prove(config, transport, clock, observer);
        if let Err(error) = &proven {
            tell(error, Action::Prove, observer);
        }
        plan = plan.after(if proven.is_ok() { Outcome::Done } else { Outcome::Final });
        failure = proven.err();
    }
    // The store depends on the principal, which is known only now.
    let store = config.store();
    let mut found = None;
    let mut locked: Option<LockedStore<'_>> = None;
    let mut identity_token = None;
    let mut buyer = None;
    let mut given = None;
    let mut connection = None;
    let mut may_keep = Some(may_keep);
    let look = || Ok::<_, StoreError>(store.read_with_principal(clock)?.filter(|(stored, _)| acceptable(stored)));
    loop {
        let done: Result<Outcome, ObtainError> = match (plan.action(), &mut locked) {
            (Action::Prove, _) => unreachable!("it was the first act"),
            (Action::Snapshot | Action::LookAgain, _) => {
                found = look()?;
                Ok(if found.is_some() { Outcome::Acceptable } else { Outcome::Unacceptable })
            }
            (Action::Lock, locked) => {
                let mut refused = None;
                let settled = || {
                    found = look()?;
                    // A credential that is already obtained is stored, even if another process was refused.
                    if found.is_none() && bought.is_none() {
                        refused = store.remembered_refusal(clock.now())?.filter(|refusal| concerns(refusal, config));
                    }
                    Ok(found.is_some() || refused.is_some())
                };
                *locked = store.lock_unless(settled, patience()?, clock, observer)?;
                match refused {
                    Some(refusal) => Err(ObtainError::Remembered(Box::new(refusal), clock.now())),
                    None if locked.is_none() => Ok(Outcome::Acceptable),
                    None => Ok(Outcome::Done),
                }
            }
            (Action::Recall, Some(locked)) => {
                locked.announce();
                match locked.remembered_refusal()?.filter(|refusal| concerns(refusal, config)) {
                    Some(refusal) => Err(ObtainError::Remembered(Box::new(refusal), clock.now())),
                    None => Ok(Outcome::Done),
                }
            }
            (Action::Ask, Some(locked)) => {
                locked.doing("asking for an identity token");
                unspent_token(locked, config, transport, clock, observer).map(|token| {
                    buyer = Some(Principal::of(&token));
                    given = given_by(config, Some(&token));
                    identity_token = Some(token);
                    Outcome::Done
                })
            }
            (Action::Connect, Some(locked)) => {
                locked.doing("connecting to the token endpoint");
                let transport = transport.clone().interrupted_by(clock);
                let opened = transport.connect(&config.grant.token_endpoint);
                opened.map_err(|error| unless_interrupted(ObtainError::NotSent(error), clock)).map(|opened| {
                    observer(&Progress::Connected);
                    connection = Some(opened);
                    Outcome::Done
                })
            }
            (Action::Spend, Some(locked)) => {
                let identity_token = identity_token.as_ref().expect("asked before");
                match locked.spend(identity_token)? {
                    Some(spent) if !may_be_sent_again(identity_token, config) => {
                        Err(already_spent(spent, config, clock.now()))
                    }
                    _ => Ok(Outcome::Done),
                }
            }
            (Action::Send, Some(locked)) => {
                locked.doing("exchanging");
                let connection = connection.take().expect("connected before");
                let identity_token = identity_token.take().expect("asked before");
                send(connection, identity_token, config, clock, observer).map(|credential| {
                    bought = Some(credential);
                    Outcome::Done
                })
            }
            (Action::TakeBack, Some(locked)) => {
                // Report the original failure. If the entry cannot be removed, the token stays spent.
                let taken_back = locked.take_back();
                drop(taken_back);
                Err(failure.take().expect("a failure came before"))
            }
            (Action::Keep, Some(locked)) => {
                may_keep.take().expect("kept once")()?;
                buyer.take().into_iter().for_each(|buyer| config.principal.learn(buyer));
                bought = bought.map(|credential| locked.keep(credential));
                Ok(Outcome::Done)
            }
            (Action::Pause, Some(locked)) => {
                let cause = failure.as_ref().expect("a pause follows a failure");
                let pause = ObtainError::pause_after(cause, plan.failures());
                observer(&Progress::Retrying { cause: whole_message(cause), pause });
                locked.doing("waiting to try again");
                (clock.pause)(pause)?;
                Ok(Outcome::Done)
            }
            (Action::Remember, Some(locked)) => {
                let failure = failure.as_ref().expect("there is a failure to remember");
                remember(failure, given.take(), locked, clock);
                Ok(Outcome::Done)
            }
            (Action::Serve, _) => {
                if let Some((found, principal)) = found {
                    observer(&Progress::Found(&found));
                    principal.into_iter().for_each(|principal| config.principal.learn(principal));
                    return Ok(found);
                }
                return Ok(bought.expect("found or bought before"));
            }
            (Action::Fail, _) => return Err(failure.expect("a failure ends it")),
            (_, None) => unreachable!("the lock is taken before anything that needs it"),
        };
        if let Err(error) = &done
            && plan.action() != Action::TakeBack
        {
            tell(error, plan.action(), observer);
        }
        let is_late = (clock.monotonic)().saturating_sub(start) > ENOUGH;
        let outcome = match &done {
            Ok(outcome) => *outcome,
            Err(ObtainError::NotSent(_)) if plan.action() == Action::Send => Outcome::Unsent,
            Err(_) if is_late => Outcome::Final,
            Err(ObtainError::Spent { .. }) => Outcome::AlreadySpent,
            Err(error) if error.may_pass() => Outcome::Passing,
            Err(_) => Outcome::Final,
        };
        failure = done.err().or(failure);
        plan = plan.after(outcome);
    }
}

/// Reports a failure. Skips failures that were already reported, and interruptions.
fn tell(error: &ObtainError, action: Action, observer: Observer<'_>) {
    let code = error.code().to_owned();
    match error {
        ObtainError::Interrupted(_) | ObtainError::Spent { .. } => {}
        ObtainError::Remembered(..) => observer(&Progress::Remembered { code }),
        _ => {
            let request_id = error.request_id().map(str::to_owned);
            let sent = action == Action::Send && !matches!(error, ObtainError::NotSent(_));
            observer(&Progress::Failed { code, message: whole_message(error), request_id, sent });
        }
    }
}

/// Requests a token just in time, and checks the ledger: a platform may return the same token twice.
fn unspent_token(
    locked: &mut LockedStore<'_>,
    config: &Config,
    transport: &HttpClient,
    clock: Clock,
    observer: Observer<'_>,
) -> Result<IdentityToken, ObtainError> {
    let identity_token = match config.principal.take_unspent(clock.now()) {
        Some(shown_before) => shown_before,
        None => {
            observer(&Progress::Asking);
            let token = ask(config, transport, clock, observer)?;
            observer(&Progress::Identified(&token));
            token
        }
    };
    let now = clock.now();
    if let Some(spent) = locked.find(&identity_token)?.filter(|_| !may_be_sent_again(&identity_token, config)) {
        observer(&Progress::AlreadySpent);
        return Err(already_spent(spent, config, now));
    }
    match identity_token.claims().expires_at.and_then(|end| now.duration_since(end).ok()) {
        // The server allows a clock difference of 30 s, and so does this check.
        Some(ago) if ago > Duration::from_secs(30) => {
            Err(ObtainError::TooOld { origin: config.source.description(), ago })
        }
        _ => Ok(identity_token),
    }
}

/// Returns this failure, or an interruption if that was its cause.
fn unless_interrupted(error: ObtainError, clock: Clock) -> ObtainError {
    (clock.pause)(Duration::ZERO).map_or_else(ObtainError::Interrupted, |()| error)
}

fn send(
    connection: Connection,
    identity_token: IdentityToken,
    config: &Config,
    clock: Clock,
    observer: Observer<'_>,
) -> Result<Credential, ObtainError> {
    let evidence = Evidence::of(&identity_token);
    let sent_at = clock.now();
    observer(&Progress::Sending);
    let request = exchange::request(&config.grant, identity_token);
    let lingers = || observer(&Progress::Lingering { at_most: EXCHANGE_GRACE });
    let response = connection.send_with_grace(request, EXCHANGE_GRACE, lingers).map_err(|error| match error {
        SendError::NotSent(source) => ObtainError::NotSent(source),
        SendError::MaybeSent(source) => ObtainError::MaybeSent { reissue: config.source.reissue(), source },
    })?;
    observer(&Progress::Answered);
    let (endpoint, reissue) = (config.grant.token_endpoint.to_string(), config.source.reissue());
    exchange::parse(&response, sent_at).map_err(|source| {
        let is_about_the_token = response.status() == http::StatusCode::UNAUTHORIZED;
        let judge = || evidence.judge(config, answered_at(&response), clock.now());
        let diagnosis = Box::new(if is_about_the_token { judge() } else { Diagnosis::default() });
        ObtainError::Token { endpoint, reissue, diagnosis, source }
    })
}

/// Returns whether a spent token may be sent again. A metadata service returns the same token until it is old. The
/// token endpoint counts uses by `jti`, so it accepts a token without one repeatedly (docs/reference/protocol.md §5.2).
/// Waiting for another token would stop the job.
fn may_be_sent_again(identity_token: &IdentityToken, config: &Config) -> bool {
    config.source.repeats() && identity_token.claims().jti.is_none()
}

fn already_spent(spent: Spent, config: &Config, now: SystemTime) -> ObtainError {
    let (origin, reissue) = (config.source.description(), config.source.reissue());
    ObtainError::Spent { origin, reissue, spent: Box::new(spent), now }
}

/// Returns a hash of what the source provides: the given tokens, the token in the file, or the lasting claims of a
/// requested token. Returns `None` if the source would have to be asked.
fn given_by(config: &Config, token: Option<&IdentityToken>) -> Option<String> {
    let fingerprint = match &config.source {
        IdentitySource::Variables(tokens) => return Some(TokenVariable::fingerprint(tokens)),
        IdentitySource::File { .. } => match token {
            Some(token) => token.fingerprint(),
            None => config.source.file_token()?.fingerprint(),
        },
        IdentitySource::Endpoint(_) | IdentitySource::Command(_) => match token {
            Some(token) => token.lasting_claims(),
            None => config.principal.lasting_claims()?,
        },
    };
    Some(fingerprint.to_string())
}

/// Returns whether a cached failure applies to this process. It does not apply if the token was replaced meanwhile. A
/// source that cannot be asked for free is assumed to provide the same.
fn concerns(refusal: &CachedFailure, config: &Config) -> bool {
    let now = given_by(config, None);
    match config.source {
        IdentitySource::Variables(_) | IdentitySource::File { .. } => refusal.given.is_none() || refusal.given == now,
        IdentitySource::Endpoint(_) | IdentitySource::Command(_) => {
            refusal.given.is_none() || now.is_none() || refusal.given == now
        }
    }
}

fn remember(failure: &ObtainError, given: Option<String>, locked: &LockedStore<'_>, clock: Clock) {
    if let Some(lasting) = failure.is_worth_remembering_for() {
        let (message, hint) = (whole_message(failure), failure.hint());
        let refusal = CachedFailure::new(failure.code(), message, hint, clock.now(), lasting);
        locked.remember(&refusal.with_diagnosis(failure.diagnosis().cloned()).of_given(given));
    }
}

/// Requests one identity token from the source.
pub(crate) fn ask(
    config: &Config,
    transport: &HttpClient,
    clock: Clock,
    observer: Observer<'_>,
) -> Result<IdentityToken, ObtainError> {
    let transport = config.way_to_the_source(transport).interrupted_by(clock);
    let is_spent = |token: &IdentityToken| is_spent(token, config);
    let origin = || config.source.description();
    let asked = config.source.token(is_spent, |request| transport.send(request), clock, observer);
    let token = asked.map_err(|error| match error {
        IdentityError::Interrupted(interrupted) => ObtainError::Interrupted(interrupted),
        error => unless_interrupted(ObtainError::Identity { origin: origin(), source: error }, clock),
    })?;
    let subject = token.claims().subject.as_deref().unwrap_or_default();
    if let Some(expected) = config.expected_subject.as_ref().filter(|expected| !expected.matches(subject)) {
        let (subject, expected) = (safe_text(subject), safe_text(expected.as_str()));
        return Err(ObtainError::Subject { origin: origin(), subject, expected });
    }
    let theirs = Principal::of(&token);
    match config.principal.known() {
        Some(ours) if *ours != theirs => {
            Err(ObtainError::OtherPrincipal { origin: origin(), ours: ours.to_string(), theirs: theirs.to_string() })
        }
        _ => Ok(token),
    }
}

/// Returns how many given tokens can still be exchanged; zero for a source of another kind.
pub(crate) fn tokens_left(config: &Config, clock: Clock) -> usize {
    config.source.tokens_left(|token| is_spent(token, config), clock.now()).unwrap_or_default()
}

/// Returns whether this process must not use the token: the ledger contains it, or it belongs to another principal. An
/// unreadable ledger is not an error here, because spending the token reports it later.
pub(crate) fn is_spent(token: &IdentityToken, config: &Config) -> bool {
    !config.principal.may_be(&Principal::of(token)) || matches!(config.store().spent(token), Ok(Some(_)))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test may end where it gets no thread")]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicBool, Ordering};

    use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};

    use super::*;
    use crate::clock::from_epoch_seconds;
    use crate::config::{Inputs, resolve};
    use crate::environment::Environment;
    use crate::identity::{IdentitySource, TokenVariable};
    use crate::private_file;
    use crate::secret::Secret;

    /// Returns a configuration whose source is a file with an identity token that expires at this second.
    fn configured(expires_at: u64) -> (Config, tempfile::TempDir) {
        let holder = tempfile::tempdir().unwrap();
        let [header, claims] = [r#"{"alg":"ES256"}"#.to_owned(), format!(r#"{{"jti":"one","exp":{expires_at}}}"#)]
            .map(|json| BASE64_URL_SAFE_NO_PAD.encode(json));
        let file = holder.path().join("token");
        let token = format!("{header}.{claims}.AAAA");
        private_file::replace_unsynced(holder.path(), "token", token.as_bytes(), &|_| {}).unwrap();
        let environment = Environment::from_iter([
            ("ANTHROPIC_FEDERATION_RULE_ID", "fdrl_01"),
            ("ANTHROPIC_ORGANIZATION_ID", "00000000-0000-4000-8000-000000000000"),
            ("ANTHROPIC_IDENTITY_TOKEN_FILE", file.to_str().unwrap()),
        ]);
        let inputs = Inputs { state_dir: Some(holder.path().join("state")), ..Inputs::default() };
        (resolve(&inputs, &environment).unwrap(), holder)
    }

    #[test]
    fn identity_token_is_too_old_30_s_after_expiry() {
        thread_local!(static NOW: Cell<SystemTime> = const { Cell::new(SystemTime::UNIX_EPOCH) });
        const CLOCK: Clock = Clock { wall: || NOW.get(), monotonic: || Duration::ZERO, pause: |_| Ok(()) };
        const END: u64 = 1_000_000_000;
        let (config, _holder) = configured(END);
        let transport = HttpClient::new(&Environment::default());
        let store = config.store();
        let mut locked = store.lock(Duration::ZERO, CLOCK, &|_| {}).unwrap();
        let mut asked_at = |moment| {
            NOW.set(moment);
            unspent_token(&mut locked, &config, &transport, CLOCK, &|_| {}).map(drop)
        };
        let forgiven = from_epoch_seconds(END + 30);
        assert!(asked_at(forgiven).is_ok());
        let refused = asked_at(forgiven + Duration::from_nanos(1));
        assert!(
            matches!(refused, Err(ObtainError::TooOld { ago, .. }) if ago > Duration::from_secs(30)),
            "{refused:?}"
        );
    }

    #[test]
    fn token_spent_elsewhere_before_sending_is_not_sent() {
        let clock = Clock::system();
        let (mut config, _holder) = configured(crate::clock::epoch_seconds(clock.now()) + 300);
        let endpoint = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        config.grant.token_endpoint = format!("http://{}", endpoint.local_addr().unwrap()).parse().unwrap();
        std::thread::spawn(move || drop(endpoint.accept()));
        let transport = HttpClient::new(&Environment::default());
        let is_sent = AtomicBool::new(false);
        let observer = |step: &Progress<'_>| match step {
            Progress::Connected => {
                let token = ask(&config, &transport, clock, &|_| {}).unwrap();
                assert!(config.store().hand_out(&token, clock, &|_| {}).unwrap().is_none(), "it was free until now");
            }
            Progress::Sending => is_sent.store(true, Ordering::SeqCst),
            _ => {}
        };
        let obtained = obtain(&config, &transport, clock, &observer);
        assert!(matches!(obtained, Err(ObtainError::Spent { .. })), "{obtained:?}");
        assert!(!is_sent.load(Ordering::SeqCst));
    }

    #[test]
    fn spent_token_error_is_transient_if_another_can_follow() {
        let (mut config, _holder) = configured(0);
        let (transport, clock) = (HttpClient::new(&Environment::default()), Clock::system());
        let token = ask(&config, &transport, clock, &|_| {}).unwrap();
        let hand_out = || config.store().hand_out(&token, clock, &|_| {}).unwrap();
        assert!(hand_out().is_none());
        let spent = hand_out().unwrap();
        assert!(already_spent(spent.clone(), &config, clock.now()).is_passing());
        let (variable, text) = ("A".to_owned(), Secret::new("b".to_owned()));
        config.source = IdentitySource::Variables(vec![TokenVariable { variable, text }]);
        assert!(!already_spent(spent, &config, clock.now()).is_passing());
    }

    #[test]
    fn adopted_credential_is_stored_despite_a_cached_refusal() {
        let clock = Clock::system();
        let now = clock.now();
        let (config, _holder) = configured(0);
        let transport = HttpClient::new(&Environment::default());
        let expires_at = now + Duration::from_secs(600);
        let bought = Credential {
            access_token: Secret::new("sk-ant-oat01-child".to_owned()),
            expires_at,
            obtained_at: now,
            generation: 0,
        };
        let store = config.store();
        let locked = store.lock(Duration::ZERO, clock, &|_| {}).unwrap();
        locked.remember(&CachedFailure::new("exchange-refused", "no".to_owned(), None, now, Duration::from_secs(60)));
        std::thread::scope(|scope| {
            let adopted =
                scope.spawn(|| adopt_unless(|_| false, bought.clone(), || Ok(()), &config, &transport, clock, &|_| {}));
            // Long enough for the waiting thread to check the cached failure.
            (clock.pause)(Duration::from_millis(300)).unwrap();
            drop(locked);
            assert_eq!(adopted.join().unwrap().unwrap().access_token, bought.access_token);
        });
        assert_eq!(config.store().read(clock).unwrap().unwrap().access_token, bought.access_token);
        assert!(store.remembered_refusal(clock.now()).unwrap().is_none(), "nobody is refused any more");
    }
}
