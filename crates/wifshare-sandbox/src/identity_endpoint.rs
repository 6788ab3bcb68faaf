//! The CI's endpoint for identity tokens, with the interface of GitHub Actions.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use crate::{
    Fault,
    answer::{self, Outcome},
    bearer::bearer,
    random,
    state::State,
};

/// The endpoint's path, and the query of its URL; clients append `&audience=…`.
pub(crate) const PATH: &str = "/idtoken";
pub(crate) const QUERY: &str = "api-version=2.0";

/// Issues an identity token for the audience in `query` to the bearer of the request token.
pub(crate) async fn answer(state: &State, headers: &HeaderMap, query: &str) -> Outcome {
    const DEFAULT_AUDIENCE: &str = "https://github.com/octo-org";
    tokio::time::sleep(Duration::from_millis(state.settings().identity_token_latency_ms)).await;
    if bearer(headers) != Some(&state.request_token) {
        state.ledger().counters.identity_tokens_refused += 1;
        return Ok(answer::json(
            StatusCode::UNAUTHORIZED,
            &json!({
                "$id": "1",
                "innerException": null,
                "message": "The request token is not authorized to access this resource.",
                "typeKey": "UnauthorizedRequestException",
                "errorCode": 0,
                "eventId": 3000,
            }),
        ));
    }

    let parameter = |wanted: &str| {
        form_urlencoded::parse(query.as_bytes())
            .find(|(name, value)| name == wanted && !value.is_empty())
            .map(|(_, value)| value.into_owned())
    };
    let audience = parameter("audience").unwrap_or_else(|| DEFAULT_AUDIENCE.to_owned());
    let (value, fault) = issue(state, &audience, &parameter("caller").unwrap_or_default());
    fault.spoil(json!({"count": 1, "value": value})).await
}

/// Issues an identity token for this audience, or what the next fault puts in its place; what is left of the fault is
/// for the answer as a whole. A duplicate is what the same caller got before; all are one caller but those that name
/// themselves in the query (`caller`).
pub(crate) fn issue(state: &State, audience: &str, caller: &str) -> (Value, Fault) {
    const LARGER_THAN_ACCEPTED: usize = 16 << 10;
    let fault = state.take_fault(|settings| &mut settings.identity_token_faults);
    if fault != Fault::None {
        state.ledger().counters.identity_tokens_faulted += 1;
    }
    let issue = || {
        let identity_token = state.issue_identity_token(audience, |_| {});
        state.ledger().identity_token_given(caller, &identity_token);
        identity_token
    };
    // Not inside the `match` expression, whose temporaries, and so the lock, live until its end.
    let previous = state.ledger().last_identity_token(caller);
    match fault {
        Fault::WrongTypes => (json!(42), Fault::None),
        Fault::DuplicateIdentityToken => (json!(previous.unwrap_or_else(issue)), Fault::None),
        Fault::MalformedIdentityToken => {
            let malformed = format!("not-a-jwt.{}", random::secret(32));
            state.ledger().secret_issued(&malformed);
            (json!(malformed), Fault::None)
        }
        Fault::OversizedIdentityToken => {
            let pad = |claims: &mut serde_json::Map<_, _>| {
                claims.insert("padding".to_owned(), json!("a".repeat(LARGER_THAN_ACCEPTED)));
            };
            (json!(state.issue_identity_token(audience, pad)), Fault::None)
        }
        other => (json!(issue()), other),
    }
}
