//! The record of a server: spent identity tokens, issued access tokens, decisions and counters.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::Fault;

/// Counters since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Identity tokens signed, at the identity endpoint or by a call on the sandbox.
    pub identity_tokens_issued: u64,
    /// Requests to the identity endpoint without the right request token.
    pub identity_tokens_refused: u64,
    /// Requests to the identity endpoint that took a fault.
    pub identity_tokens_faulted: u64,
    /// Requests to the token endpoint.
    pub exchanges_received: u64,
    /// Accepted exchanges, including those whose response was changed by a fault.
    pub exchanges_accepted: u64,
    /// Refused exchanges.
    pub exchanges_refused: u64,
    /// Refused exchanges by reason: `jti_reused`, `expired`, … and `invalid_request` for status 400.
    pub refused: BTreeMap<String, u64>,
    /// Exchanges that had a fault, before or after the decision.
    pub exchanges_faulted: u64,
    /// Correctly signed identity tokens whose `jti` was already spent, whether or not `check_jti` is set.
    pub identity_tokens_reused: u64,
    /// Assertions that were received before, spent or not. A client that sends each identity token at most once leaves
    /// this at zero under any fault.
    pub assertions_repeated: u64,
    /// Messages answered.
    pub messages_accepted: u64,
    /// API calls without a live access token, or refused for another reason.
    pub messages_refused: u64,
    /// Messages that had a fault.
    pub messages_faulted: u64,
    /// Token counts and model lists answered.
    pub other_calls_accepted: u64,
}

/// A request to the token endpoint and its outcome. Contains no token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExchangeRecord {
    /// The time of the request in Unix seconds, by the token endpoint's clock.
    pub at: u64,
    /// The time of the request in milliseconds since the server's start.
    #[serde(default)]
    pub arrived_ms: u64,
    /// The response's `request-id`.
    pub request_id: String,
    /// The decision.
    pub verdict: Verdict,
    /// The reason of a refusal; `None` otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The identity token's `jti`, if it has one and its signature is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jti: Option<String>,
    /// Its `sub`, if its signature is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// The access token's lifetime in seconds; `None` unless accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
    /// The fault that the script had for this request.
    #[serde(default)]
    pub fault: Fault,
}

/// The decision about an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// An access token was issued, whether or not the client received it.
    Accepted,
    /// 400 or 401.
    Refused,
    /// A fault took effect before the decision.
    Undecided,
}

/// The memory of the authorization server.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) counters: Counters,
    /// The `jti` of every identity token exchanged. One issuer, so the `jti` alone is the key.
    spent: HashSet<String>,
    /// Hashes of the assertions that arrived.
    seen: HashSet<u64>,
    expires_at: HashMap<String, Duration>,
    /// The subject of the identity token that each access token was issued for.
    subjects: HashMap<String, String>,
    history: VecDeque<ExchangeRecord>,
    /// All secrets issued. None is removed, because tests search for leaks at the end.
    secrets: Vec<String>,
    /// The latest identity token of each caller of the identity endpoint.
    last_identity_tokens: HashMap<String, String>,
}

impl Ledger {
    /// Counts an assertion that was received before, and a verified one whose `jti` is spent.
    pub(crate) fn see(&mut self, assertion: &str, jti: Option<&str>) {
        let mut hasher = DefaultHasher::new();
        assertion.hash(&mut hasher);
        if !self.seen.insert(hasher.finish()) {
            self.counters.assertions_repeated += 1;
        }
        if jti.is_some_and(|jti| self.spent.contains(jti)) {
            self.counters.identity_tokens_reused += 1;
        }
    }

    /// Spends this `jti`; false if it was already spent. The ledger is behind a mutex, so of two requests with one
    /// identity token exactly one gets true.
    pub(crate) fn spend(&mut self, jti: &str) -> bool {
        self.spent.insert(jti.to_owned())
    }

    /// Records an issued identity token.
    pub(crate) fn identity_token_issued(&mut self, identity_token: &str) {
        self.counters.identity_tokens_issued += 1;
        self.secrets.push(identity_token.to_owned());
    }

    /// Records the latest identity token of this caller of the identity endpoint.
    pub(crate) fn identity_token_given(&mut self, caller: &str, identity_token: &str) {
        self.last_identity_tokens.insert(caller.to_owned(), identity_token.to_owned());
    }

    /// The latest identity token of this caller.
    pub(crate) fn last_identity_token(&self, caller: &str) -> Option<String> {
        self.last_identity_tokens.get(caller).cloned()
    }

    /// Records an access token for this subject, live until `expires_at`.
    pub(crate) fn access_token_issued(&mut self, access_token: &str, subject: &str, expires_at: Duration) {
        self.secrets.push(access_token.to_owned());
        self.subjects.insert(access_token.to_owned(), subject.to_owned());
        self.expires_at.insert(access_token.to_owned(), expires_at);
    }

    /// Records another secret.
    pub(crate) fn secret_issued(&mut self, secret: &str) {
        self.secrets.push(secret.to_owned());
    }

    /// All secrets issued so far.
    pub(crate) fn secrets(&self) -> Vec<String> {
        self.secrets.clone()
    }

    /// Whether this access token is live at `now`.
    pub(crate) fn is_live(&self, access_token: &str, now: Duration) -> bool {
        self.expires_at.get(access_token).is_some_and(|expires_at| now < *expires_at)
    }

    /// The subject that an access token was issued to, whether or not it is still live.
    pub(crate) fn subject_of(&self, access_token: &str) -> Option<String> {
        self.subjects.get(access_token).cloned()
    }

    /// Revokes all access tokens issued so far.
    pub(crate) fn revoke(&mut self) {
        self.expires_at.clear();
    }

    /// Counts and records an exchange.
    pub(crate) fn record(&mut self, exchange: ExchangeRecord) {
        const LONGEST_HISTORY: usize = 1000;
        match exchange.verdict {
            Verdict::Accepted => self.counters.exchanges_accepted += 1,
            Verdict::Refused => self.counters.exchanges_refused += 1,
            Verdict::Undecided => {}
        }
        if let Some(reason) = &exchange.reason {
            *self.counters.refused.entry(reason.clone()).or_default() += 1;
        }
        if exchange.verdict != Verdict::Refused && exchange.fault != Fault::None {
            self.counters.exchanges_faulted += 1;
        }
        self.counters.exchanges_received += 1;
        self.history.push_back(exchange);
        if self.history.len() > LONGEST_HISTORY {
            self.history.pop_front();
        }
    }

    /// The latest exchanges, oldest first.
    pub(crate) fn history(&self) -> Vec<ExchangeRecord> {
        self.history.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jti_is_spent_once() {
        let mut ledger = Ledger::default();
        assert!(ledger.spend("a"));
        assert!(!ledger.spend("a"));
        assert!(ledger.spend("b"));
    }

    #[test]
    fn access_token_is_live_until_expiry_or_revocation() {
        let mut ledger = Ledger::default();
        let second = Duration::from_secs(1);
        ledger.access_token_issued("t", "s", second);
        assert!(ledger.is_live("t", Duration::from_millis(999)));
        assert!(!ledger.is_live("t", second));
        assert!(!ledger.is_live("u", Duration::from_millis(999)));
        ledger.revoke();
        assert!(!ledger.is_live("t", Duration::from_millis(999)));
        assert_eq!((ledger.subject_of("t").as_deref(), ledger.subject_of("u")), (Some("s"), None));
    }

    #[test]
    fn history_is_bounded_and_counters_are_not() {
        let mut ledger = Ledger::default();
        for at in 0..1500 {
            ledger.record(ExchangeRecord {
                at,
                arrived_ms: 0,
                request_id: String::new(),
                verdict: Verdict::Refused,
                reason: Some("jti_reused".into()),
                jti: None,
                subject: None,
                expires_in: None,
                fault: Fault::None,
            });
        }
        assert_eq!(ledger.history().len(), 1000);
        assert_eq!(ledger.history().last().unwrap().at, 1499);
        assert_eq!(ledger.counters.refused["jti_reused"], 1500);
    }
}
