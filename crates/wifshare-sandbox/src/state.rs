//! The state that all requests share.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::{Map, Value};

use crate::{Fault, Settings, clock, issuer, ledger::Ledger, random, signing::SigningKey};

/// The state of a mock server.
pub(crate) struct State {
    /// `http://127.0.0.1:PORT`, which is the issuer too.
    pub(crate) base_url: String,
    /// The bearer token that the identity endpoint requires.
    pub(crate) request_token: String,
    started: Instant,
    settings: Mutex<Settings>,
    ledger: Mutex<Ledger>,
}

impl State {
    /// The state at the start.
    pub(crate) fn new(base_url: String, settings: Settings) -> Self {
        let request_token = format!("sandbox-request-token-{}", random::secret(32));
        let mut ledger = Ledger::default();
        ledger.secret_issued(&request_token);
        let started = clock::monotonic();
        Self { base_url, request_token, started, settings: Mutex::new(settings), ledger: Mutex::new(ledger) }
    }

    /// Locks the ledger. Never hold it across an `await`.
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The current settings, with the faults that are left in the scripts.
    pub(crate) fn settings(&self) -> Settings {
        self.lock_settings().clone()
    }

    /// Replaces all settings.
    pub(crate) fn set_settings(&self, settings: Settings) {
        *self.lock_settings() = settings;
    }

    /// Takes the next fault from a script.
    pub(crate) fn take_fault(&self, script: fn(&mut Settings) -> &mut Vec<Fault>) -> Fault {
        let mut settings = self.lock_settings();
        let script = script(&mut settings);
        if script.is_empty() { Fault::None } else { script.remove(0) }
    }

    /// Takes the next delay of an accepted connection.
    pub(crate) fn take_accept_delay(&self) -> Duration {
        let mut settings = self.lock_settings();
        let script = &mut settings.accept_delays_ms;
        Duration::from_millis(if script.is_empty() { 0 } else { script.remove(0) })
    }

    /// The time by the clock of the identity provider.
    pub(crate) fn issuer_now(&self) -> Duration {
        clock::ahead(clock::now(), self.lock_settings().issuer_clock_ahead_s)
    }

    /// The time by the clock of the token endpoint and the API.
    pub(crate) fn server_now(&self) -> Duration {
        clock::ahead(clock::now(), self.lock_settings().server_clock_ahead_s)
    }

    /// The time since the start.
    pub(crate) fn age(&self) -> Duration {
        clock::monotonic().duration_since(self.started)
    }

    /// Signs an identity token for this audience, with claims changed by `edit`, and records it.
    pub(crate) fn issue_identity_token(&self, audience: &str, edit: impl FnOnce(&mut Map<String, Value>)) -> String {
        let settings = self.settings();
        let mut claims =
            issuer::claims(&self.base_url, audience, settings.identity_token_lifetime_s, self.issuer_now());
        if !settings.issue_jti {
            claims.remove("jti");
        }
        claims.insert("sub".to_owned(), settings.identity_token_subject.into());
        if settings.immutable_subject {
            claims.insert("sub".to_owned(), issuer::IMMUTABLE_SUBJECT.into());
        }
        edit(&mut claims);
        let identity_token = SigningKey::of_this_process().sign(&claims);
        self.ledger().identity_token_issued(&identity_token);
        identity_token
    }

    fn lock_settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
