//! The token endpoint: an identity token in, an access token out, once (RFC 7523 §2.1, in JSON).

use std::time::Duration;

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::{
    ExchangeRecord, Fault, FederationRule, Settings, Verdict,
    answer::{self, Outcome, Stop},
    assertion::{self, Claims, Reason},
    ledger::Ledger,
    random,
    state::State,
};

/// Answers one exchange. The decision is made, and the identity token spent, before the first `await`: a client that
/// disconnects during the delay has spent its token.
pub(crate) async fn answer(state: &State, body: &[u8], request_id: &str) -> Outcome {
    let now = state.server_now();
    let arrived_ms = u64::try_from(state.age().as_millis()).unwrap_or(u64::MAX);
    let settings = state.settings();
    let presented = TokenRequest::parse(body).map(|request| {
        let claims = assertion::verify(&request.assertion);
        (request, claims)
    });
    let subject = presented.as_ref().ok().and_then(|(_, claims)| Some(claims.as_ref().ok()?.sub.clone()));
    let jti = presented.as_ref().ok().and_then(|(_, claims)| claims.as_ref().ok()?.jti.clone());
    let fault = state.take_fault(|settings| &mut settings.exchange_faults);
    let decision = {
        let mut ledger = state.ledger();
        if let Ok((request, _)) = &presented {
            ledger.see(&request.assertion, jti.as_deref());
        }
        let decision = fault.commits().then(|| match &presented {
            Ok((request, claims)) => decide(request, claims.as_ref(), &settings, &state.base_url, &mut ledger, now),
            Err(invalid) => Err(Refusal::Invalid(invalid.clone())),
        });
        let (verdict, reason, expires_in) = match &decision {
            None => (Verdict::Undecided, None, None),
            Some(Ok(grant)) => (Verdict::Accepted, None, Some(grant.expires_in)),
            Some(Err(refusal)) => (Verdict::Refused, Some(refusal.reason().to_owned()), None),
        };
        let request_id = request_id.to_owned();
        ledger.record(ExchangeRecord {
            at: now.as_secs(),
            arrived_ms,
            request_id,
            verdict,
            reason,
            jti,
            subject,
            expires_in,
            fault: fault.clone(),
        });
        decision
    };

    tokio::time::sleep(Duration::from_millis(settings.exchange_latency_ms)).await;
    match decision {
        None if fault == Fault::ReflectAssertion => {
            let assertion = presented.map(|(request, _)| request.assertion).unwrap_or_default();
            Ok(answer::json(
                StatusCode::BAD_REQUEST,
                &json!({
                    "error": "invalid_grant",
                    "error_description": format!("the assertion {assertion} was not understood"),
                    "received": {"assertion": assertion},
                }),
            ))
        }
        None => fault.spoil(Value::Null).await,
        Some(Err(Refusal::Invalid(invalid))) => Err(Stop::error(StatusCode::BAD_REQUEST, invalid.0)),
        Some(Err(Refusal::Denied(_))) => Err(Stop::error(StatusCode::UNAUTHORIZED, "Authentication failed")),
        Some(Ok(grant)) => give(grant, fault).await,
    }
}

/// The response to an accepted exchange, with the fault applied.
async fn give(grant: Grant, fault: Fault) -> Outcome {
    let mut answer = json!({
        "access_token": grant.access_token,
        "token_type": "Bearer",
        "expires_in": grant.expires_in,
        "scope": "workspace:developer",
    });
    let fault = match fault {
        Fault::WrongTypes => {
            answer =
                json!({"access_token": 42, "token_type": ["Bearer"], "expires_in": {"seconds": 600}, "scope": null});
            Fault::None
        }
        Fault::ExpiresIn(Value::Null) => {
            answer.as_object_mut().map(|answer| answer.remove("expires_in"));
            Fault::None
        }
        Fault::ExpiresIn(value) => {
            answer["expires_in"] = value;
            Fault::None
        }
        Fault::NoAccessToken => {
            answer.as_object_mut().map(|answer| answer.remove("access_token"));
            Fault::None
        }
        Fault::WrongTokenType => {
            answer["token_type"] = json!("mac");
            Fault::None
        }
        other => other,
    };
    fault.spoil(answer).await
}

/// A well-formed request. Its ids need not exist.
#[derive(Clone, Debug, PartialEq)]
struct TokenRequest {
    assertion: String,
    federation_rule_id: String,
    organization_id: String,
    service_account_id: Option<String>,
    workspace_id: Option<String>,
}

/// The error message for a malformed request. It names the field.
#[derive(Clone, Debug, PartialEq)]
struct InvalidRequest(String);

impl TokenRequest {
    fn parse(body: &[u8]) -> Result<Self, InvalidRequest> {
        const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
        const LARGEST_ASSERTION: usize = 16 << 10;
        let fields: Map<String, Value> =
            serde_json::from_slice(body).map_err(|_| InvalidRequest("the body is not a JSON object".to_owned()))?;
        let optional = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(value)) => Ok(Some(value.clone())),
            Some(_) => Err(InvalidRequest(format!("{name}: Input should be a valid string"))),
        };
        let required = |name: &str| {
            optional(name)?
                .filter(|value| !value.is_empty())
                .ok_or_else(|| InvalidRequest(format!("{name}: Field required")))
        };
        let valid = |holds: bool, complaint: &str| {
            if holds { Ok(()) } else { Err(InvalidRequest(complaint.to_owned())) }
        };

        let grant_type = required("grant_type")?;
        valid(grant_type == GRANT_TYPE, "grant_type: unsupported grant_type")?;
        let request = Self {
            assertion: required("assertion")?,
            federation_rule_id: required("federation_rule_id")?,
            organization_id: required("organization_id")?,
            service_account_id: optional("service_account_id")?,
            workspace_id: optional("workspace_id")?,
        };
        valid(request.assertion.len() <= LARGEST_ASSERTION, "assertion: longer than 16384 bytes")?;
        valid(is_id("fdrl_", &request.federation_rule_id), "federation_rule_id: Invalid format, expected `fdrl_...`")?;
        let workspace = request.workspace_id.as_deref().unwrap_or("default");
        valid(
            workspace == "default" || is_id("wrkspc_", workspace),
            "workspace_id: Invalid format, expected `wrkspc_...` or `default`",
        )?;
        Ok(request)
    }
}

fn is_id(prefix: &str, text: &str) -> bool {
    text.strip_prefix(prefix)
        .is_some_and(|rest| (1..=64).contains(&rest.len()) && rest.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// An issued access token.
#[derive(Debug, PartialEq)]
struct Grant {
    access_token: String,
    expires_in: u64,
}

/// Why an exchange is refused.
#[derive(Debug, PartialEq)]
enum Refusal {
    Invalid(InvalidRequest),
    Denied(Reason),
}

impl Refusal {
    fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid_request",
            Self::Denied(reason) => reason.name(),
        }
    }
}

/// Decides an exchange and records the decision: an accepted identity token is spent when this returns.
fn decide(
    request: &TokenRequest,
    claims: Result<&Claims, &Reason>,
    settings: &Settings,
    issuer: &str,
    ledger: &mut Ledger,
    now: Duration,
) -> Result<Grant, Refusal> {
    request.names(&settings.rule).map_err(Refusal::Denied)?;
    let claims = claims.map_err(|reason| Refusal::Denied(*reason))?;
    claims.matches(&settings.rule, issuer, now).map_err(Refusal::Denied)?;
    // Last, so that a token refused for another reason is not spent by it.
    if let Some(jti) = &claims.jti
        && !ledger.spend(jti)
        && settings.check_jti
    {
        return Err(Refusal::Denied(Reason::JtiReused));
    }
    let grant = Grant {
        access_token: format!("sk-ant-oat01-{}", random::secret(48)),
        expires_in: expires_in(settings, claims.remaining(now)),
    };
    ledger.access_token_issued(
        &grant.access_token,
        &claims.sub,
        now.saturating_add(Duration::from_secs(grant.expires_in)),
    );
    Ok(grant)
}

impl TokenRequest {
    fn names(&self, rule: &FederationRule) -> Result<(), Reason> {
        for (holds, reason) in [
            (self.federation_rule_id == rule.id, Reason::RuleUnknown),
            (self.organization_id == rule.organization_id, Reason::OrganizationMismatch),
            (
                self.service_account_id.as_ref().is_none_or(|id| *id == rule.service_account_id),
                Reason::ServiceAccountMismatch,
            ),
            (self.workspace_id.is_some() || !rule.workspace_id_required, Reason::WorkspaceIdRequired),
        ] {
            if !holds {
                return Err(reason);
            }
        }
        Ok(())
    }
}

/// The lifetime of an access token in seconds: the rule's, at most twice the identity token's remaining lifetime, and
/// at least the floor.
fn expires_in(settings: &Settings, remaining: u64) -> u64 {
    let twice_remaining = remaining.saturating_mul(2);
    settings.access_token_lifetime_s.min(twice_remaining).max(settings.access_token_lifetime_floor_s).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assertion::tests::{ISSUER, claims_with};

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn good() -> Value {
        let rule = FederationRule::default();
        json!({
            "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
            "assertion": "a.b.c",
            "federation_rule_id": rule.id,
            "organization_id": rule.organization_id,
        })
    }

    fn parse_with(field: &str, value: Value) -> Result<TokenRequest, InvalidRequest> {
        let mut body = good();
        body[field] = value;
        TokenRequest::parse(body.to_string().as_bytes())
    }

    #[test]
    fn malformed_request_error_names_the_field() {
        assert!(TokenRequest::parse(good().to_string().as_bytes()).is_ok());
        for (field, value) in [
            ("grant_type", json!("refresh_token")),
            ("grant_type", json!(null)),
            ("assertion", json!("")),
            ("assertion", json!(7)),
            ("assertion", json!("a".repeat(16_385))),
            ("federation_rule_id", json!(null)),
            ("federation_rule_id", json!("rule")),
            ("federation_rule_id", json!("fdrl_")),
            ("federation_rule_id", json!("fdrl_a b")),
            ("organization_id", json!(null)),
            ("workspace_id", json!("prod")),
            ("workspace_id", json!("")),
            ("service_account_id", json!([])),
        ] {
            let complaint = parse_with(field, value.clone()).expect_err(&format!("{field} {value}"));
            assert!(complaint.0.starts_with(field), "{field}: {}", complaint.0);
        }
        for (field, value) in [
            ("assertion", json!("a".repeat(16_384))),
            ("workspace_id", json!("default")),
            ("workspace_id", json!("wrkspc_01abc")),
            ("unheard_of", json!(1)),
        ] {
            assert!(parse_with(field, value.clone()).is_ok(), "{field} {value}");
        }
        assert!(TokenRequest::parse(b"grant_type=x").is_err());
    }

    fn decide_with(field: &str, value: Value, settings: &Settings) -> Result<Grant, Refusal> {
        let request = parse_with(field, value).unwrap();
        decide(&request, Ok(&claims_with("jti", json!("j"))), settings, ISSUER, &mut Ledger::default(), NOW)
    }

    #[test]
    fn request_must_match_the_rule() {
        let settings = Settings::default();
        let workspace_id_required = FederationRule { workspace_id_required: true, ..FederationRule::default() };
        let several_workspaces = Settings { rule: workspace_id_required, ..Settings::default() };
        for (field, value, settings, expected) in [
            ("unheard_of", json!(1), &settings, None),
            ("service_account_id", json!("svac_01SandboxAccount"), &settings, None),
            ("federation_rule_id", json!("fdrl_other"), &settings, Some(Reason::RuleUnknown)),
            ("organization_id", json!("other"), &settings, Some(Reason::OrganizationMismatch)),
            ("service_account_id", json!("svac_other"), &settings, Some(Reason::ServiceAccountMismatch)),
            ("service_account_id", json!(""), &settings, Some(Reason::ServiceAccountMismatch)),
            ("unheard_of", json!(1), &several_workspaces, Some(Reason::WorkspaceIdRequired)),
            ("workspace_id", json!("default"), &several_workspaces, None),
        ] {
            let refusal = decide_with(field, value.clone(), settings).err();
            assert_eq!(refusal, expected.map(Refusal::Denied), "{field} {value}");
        }
    }

    #[test]
    fn only_accepted_identity_token_is_spent() {
        let (settings, mut ledger) = (Settings::default(), Ledger::default());
        let request = TokenRequest::parse(good().to_string().as_bytes()).unwrap();
        let claims = claims_with("jti", json!("j"));
        let mut at = |moment, settings: &Settings| decide(&request, Ok(&claims), settings, ISSUER, &mut ledger, moment);
        assert_eq!(at(NOW + Duration::from_secs(331), &settings), Err(Refusal::Denied(Reason::Expired)));
        assert!(at(NOW, &settings).is_ok());
        assert_eq!(at(NOW, &settings), Err(Refusal::Denied(Reason::JtiReused)));
        assert!(at(NOW, &Settings { check_jti: false, ..Settings::default() }).is_ok());
        let without_jti = claims_with("jti", Value::Null);
        for _ in 0..2 {
            assert!(decide(&request, Ok(&without_jti), &settings, ISSUER, &mut ledger, NOW).is_ok());
        }
    }

    #[test]
    fn access_token_lives_twice_remaining_time_within_bounds() {
        let settings = |lifetime, floor| Settings {
            access_token_lifetime_s: lifetime,
            access_token_lifetime_floor_s: floor,
            ..Settings::default()
        };
        for (lifetime, floor, remaining, expected) in [
            (600, 60, 300, 600),
            (600, 60, 301, 600),
            (600, 60, 299, 598),
            (3600, 60, 300, 600),
            (600, 60, 30, 60),
            (600, 60, 29, 60),
            (600, 60, 0, 60),
            (2, 60, 300, 60),
            (2, 1, 300, 2),
            (0, 0, 300, 1),
        ] {
            let settings = settings(lifetime, floor);
            assert_eq!(expires_in(&settings, remaining), expected, "{lifetime} {floor} {remaining}");
        }
    }
}
