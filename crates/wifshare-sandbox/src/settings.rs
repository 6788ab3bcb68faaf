//! The settings of the mock server, at its start and while it runs.

use serde::{Deserialize, Serialize};

use crate::Fault;

/// The settings of a mock server. In JSON, each has the name of its field, and each is optional.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Delay of the token endpoint's response in milliseconds. The identity token is spent before the delay.
    pub exchange_latency_ms: u64,
    /// Delay of the identity endpoint's response in milliseconds.
    pub identity_token_latency_ms: u64,
    /// Delay of a message's first byte in milliseconds.
    pub message_latency_ms: u64,
    /// Milliseconds between the events of a streamed message.
    pub message_event_interval_ms: u64,
    /// The `sub` of identity tokens.
    pub identity_token_subject: String,
    /// Lifetime of identity tokens in seconds.
    pub identity_token_lifetime_s: u64,
    /// Maximum lifetime of access tokens in seconds. Twice the identity token's remaining lifetime is the other limit.
    pub access_token_lifetime_s: u64,
    /// Minimum lifetime of access tokens in seconds; 60 at the real endpoint. Zero counts as one.
    pub access_token_lifetime_floor_s: u64,
    /// Seconds by which the issuer's clock is ahead, or behind if negative. `iat`, `nbf` and `exp` use it.
    pub issuer_clock_ahead_s: i64,
    /// Seconds by which the clock of the token endpoint and the API is ahead, or behind if negative. The
    /// checks of identity tokens, the expiry of access tokens and the `date` header use it.
    pub server_clock_ahead_s: i64,
    /// Delays between accepting a connection and reading from it, in milliseconds. Each connection uses up the first.
    pub accept_delays_ms: Vec<u64>,
    /// Whether an identity token with a `jti` can be exchanged only once.
    pub check_jti: bool,
    /// Whether identity tokens have a `jti`; a token without one is accepted any number of times.
    pub issue_jti: bool,
    /// Whether the subject has the repository's immutable ids (`repo:ORG@ID/REPO@ID:…`), as for GitHub repositories
    /// created since 15 July 2026.
    pub immutable_subject: bool,
    /// Whether the API refuses calls without the beta `oauth-2025-04-20`.
    pub require_oauth_beta: bool,
    /// The rule that identity tokens must match.
    pub rule: FederationRule,
    /// Faults of the token endpoint. Each request uses up the first.
    pub exchange_faults: Vec<Fault>,
    /// Faults of the identity endpoint, for requests with the correct request token.
    pub identity_token_faults: Vec<Fault>,
    /// Faults of `/v1/messages`, for requests with a live access token.
    pub message_faults: Vec<Fault>,
}

impl Default for Settings {
    /// A GitHub job and a matching rule, without delays or faults.
    fn default() -> Self {
        Self {
            exchange_latency_ms: 0,
            identity_token_latency_ms: 0,
            message_latency_ms: 0,
            message_event_interval_ms: 0,
            identity_token_subject: "repo:octo-org/octo-repo:ref:refs/heads/main".to_owned(),
            identity_token_lifetime_s: 300,
            access_token_lifetime_s: 600,
            access_token_lifetime_floor_s: 60,
            issuer_clock_ahead_s: 0,
            server_clock_ahead_s: 0,
            accept_delays_ms: Vec::new(),
            check_jti: true,
            issue_jti: true,
            immutable_subject: false,
            require_oauth_beta: false,
            rule: FederationRule::default(),
            exchange_faults: Vec::new(),
            identity_token_faults: Vec::new(),
            message_faults: Vec::new(),
        }
    }
}

impl Settings {
    /// The default, but the first `n` exchanges fail with this HTTP status and spend no identity token.
    pub fn fail_first(n: usize, status: u16) -> Self {
        Self::with_exchange_faults(vec![Fault::Status { status, retry_after_s: None, commit: false }; n])
    }

    /// The default, with these faults for the first exchanges.
    pub fn with_exchange_faults(faults: impl Into<Vec<Fault>>) -> Self {
        Self { exchange_faults: faults.into(), ..Self::default() }
    }
}

/// The federation rule: which identity tokens are accepted, and which ids a request must have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FederationRule {
    /// The rule's id, `fdrl_…`.
    pub id: String,
    /// The organization's UUID.
    pub organization_id: String,
    /// The service account, `svac_…`. A request may omit it, but may not have another.
    pub service_account_id: String,
    /// The audience that the identity token's `aud` must contain.
    pub audience: String,
    /// The required `sub` of the identity token, or its prefix if this ends in `*`.
    pub subject_prefix: String,
    /// Whether a request must name a workspace, as for a rule that covers several.
    pub workspace_id_required: bool,
}

impl Default for FederationRule {
    fn default() -> Self {
        Self {
            id: "fdrl_01SandboxRule".to_owned(),
            organization_id: "00000000-0000-4000-8000-0000005a4db0".to_owned(),
            service_account_id: "svac_01SandboxAccount".to_owned(),
            audience: "https://api.anthropic.com".to_owned(),
            subject_prefix: "repo:octo-org/octo-repo:*".to_owned(),
            workspace_id_required: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn missing_setting_has_default_and_unknown_one_is_rejected() {
        let settings: Settings = serde_json::from_value(json!({"check_jti": false, "rule": {"id": "fdrl_x"}})).unwrap();
        assert!(!settings.check_jti);
        assert_eq!(settings.rule.audience, "https://api.anthropic.com");
        assert_eq!(settings.identity_token_lifetime_s, 300);
        assert!(serde_json::from_value::<Settings>(json!({"exchange_latency": 1})).is_err());
    }

    #[test]
    fn settings_survive_their_json() {
        let settings = Settings {
            rule: FederationRule { id: "fdrl_y".into(), ..Default::default() },
            ..Settings::fail_first(2, 429)
        };
        assert_eq!(serde_json::from_value::<Settings>(serde_json::to_value(&settings).unwrap()).unwrap(), settings);
        assert_eq!(settings.exchange_faults.len(), 2);
    }
}
