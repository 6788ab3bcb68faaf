//! The jwt-bearer grant (RFC 7523 §2.1) as the Anthropic token endpoint implements it.
//!
//! This module only builds the request and parses the response; it sends nothing. The body is JSON and not the form
//! encoding of RFC 6749, as in every official SDK (docs/reference/protocol.md §1.1).

use std::time::{Duration, SystemTime};

use http::{Method, StatusCode, Uri, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::clock::{epoch_seconds, from_epoch_seconds};
use crate::credential::{Credential, is_bearer_token};
use crate::identity_token::IdentityToken;
use crate::message::{Request, Response, retry_after, safe_text, status_text};
use crate::secret::Secret;

/// Routes the request to the federation backend. The second value must not be sent with any other grant.
const BETA: &str = "oauth-2025-04-20,oidc-federation-2026-04-01";

/// The parameters of a token request, without the identity token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Where the identity token is sent: `{base_url}/v1/oauth/token`.
    pub token_endpoint: Uri,
    /// The federation rule, `fdrl_…`.
    pub federation_rule_id: String,
    /// The organisation, a UUID.
    pub organization_id: String,
    /// The service account that the rule is expected to resolve to, `svac_…`.
    pub service_account_id: Option<String>,
    /// The workspace, `wrkspc_…` or `default`. Required if the rule covers several.
    pub workspace_id: Option<String>,
}

/// Why a response contains no access token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The endpoint rejected the request. Retrying with the same inputs does not help.
    #[error("the token endpoint refused the identity token (HTTP {}{message}{request_id})", status_text(*status))]
    Refused {
        /// 400 for an invalid request, 401 for a token that the rule does not accept.
        status: StatusCode,
        /// The server's message, safe to show, with a leading separator; may be empty.
        message: String,
        /// The request id, with a leading separator; may be empty.
        request_id: String,
    },
    /// The endpoint is overloaded or failing: 429, 408 or 5xx.
    #[error("the token endpoint is busy or broken (HTTP {}{message}{request_id})", status_text(*status))]
    Busy {
        /// The response status.
        status: StatusCode,
        /// The server's message, safe to show, with a leading separator; may be empty.
        message: String,
        /// The request id, with a leading separator; may be empty.
        request_id: String,
        /// The delay from the Retry-After header.
        retry_after: Option<Duration>,
    },
    /// The endpoint redirects. Redirects are not followed, because that would send the identity token to another
    /// server.
    #[error("the token endpoint answered with a redirect (HTTP {}), which is never followed", status_text(*.0))]
    Redirected(StatusCode),
    /// The response is successful but invalid.
    #[error(
        "the token endpoint answered HTTP {} with something that is no token response: {what}{request_id}",
        status_text(*status)
    )]
    Unexpected {
        /// The response status.
        status: StatusCode,
        /// What is wrong with it.
        what: &'static str,
        /// The request id, with a leading separator; may be empty.
        request_id: String,
    },
}

/// Builds the one request that spends this identity token.
pub fn request(grant: &Grant, identity_token: IdentityToken) -> Request {
    #[derive(Serialize)]
    struct TokenRequest<'a> {
        grant_type: &'static str,
        assertion: &'a str,
        federation_rule_id: &'a str,
        organization_id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        service_account_id: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        workspace_id: Option<&'a str>,
    }
    let body = TokenRequest {
        grant_type: "urn:ietf:params:oauth:grant-type:jwt-bearer",
        assertion: identity_token.expose(),
        federation_rule_id: &grant.federation_rule_id,
        organization_id: &grant.organization_id,
        service_account_id: grant.service_account_id.as_deref(),
        workspace_id: grant.workspace_id.as_deref(),
    };
    // Reserves enough for the largest body: a growing buffer would leave copies of the assertion in freed memory.
    let mut bytes = Zeroizing::new(Vec::with_capacity(4 * 1024 + 2 * identity_token.expose().len()));
    serde_json::to_writer(&mut *bytes, &body).expect("texts become JSON, and memory does not fail");
    http::Request::builder()
        .method(Method::POST)
        .uri(grant.token_endpoint.clone())
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::ACCEPT, "application/json")
        .header("anthropic-beta", BETA)
        .body(bytes)
        .expect("the URI was parsed when the configuration was resolved")
}

/// Parses the endpoint's response. The lifetime counts from `sent_at`, when the request was sent, so the computed
/// expiry is never too late. The store assigns the generation; it is 0 here.
///
/// # Errors
/// Fails if the endpoint refused, is busy or redirects, or if the response is not a valid token response.
pub fn parse(response: &Response, sent_at: SystemTime) -> Result<Credential, TokenError> {
    let status = response.status();
    let request_id = request_id(response);
    if status.is_redirection() {
        return Err(TokenError::Redirected(status));
    }
    if !status.is_success() {
        let message = message(response.body());
        return Err(match status.as_u16() {
            408 | 429 | 500.. => TokenError::Busy { status, message, request_id, retry_after: retry_after(response) },
            _ => TokenError::Refused { status, message, request_id },
        });
    }
    let unexpected = |what| TokenError::Unexpected { status, what, request_id: request_id.clone() };
    let answer: TokenResponse =
        serde_json::from_slice(response.body()).map_err(|_| unexpected("a JSON object was expected"))?;
    let access_token = match answer.access_token {
        Some(Value::String(text)) => Secret::new(text),
        _ => return Err(unexpected("it has no `access_token`")),
    };
    if !is_bearer_token(access_token.expose()) {
        return Err(unexpected("its `access_token` could not stand in a header"));
    }
    if answer.token_type.is_some_and(|kind| !kind.as_str().is_some_and(|kind| kind.eq_ignore_ascii_case("bearer"))) {
        return Err(unexpected("its `token_type` is not Bearer"));
    }
    let expires_in =
        expires_in(answer.expires_in.as_ref()).ok_or_else(|| unexpected("its `expires_in` is no lifetime"))?;
    let obtained_at = from_epoch_seconds(epoch_seconds(sent_at));
    Ok(Credential { access_token, expires_at: obtained_at + expires_in, obtained_at, generation: 0 })
}

impl TokenError {
    /// Returns the request id that the endpoint assigned.
    pub fn request_id(&self) -> Option<&str> {
        match self {
            TokenError::Refused { request_id, .. }
            | TokenError::Busy { request_id, .. }
            | TokenError::Unexpected { request_id, .. } => request_id.strip_prefix(REQUEST_ID),
            TokenError::Redirected(_) => None,
        }
    }

    /// Returns an instruction for the user.
    pub fn hint(&self) -> String {
        let text = match self {
            TokenError::Refused { status, .. } if *status == StatusCode::UNAUTHORIZED => {
                "every refusal looks like this from outside; the reason stands in the Claude Console, on the page \
                 Workload identity, under authentication events. `wifshare doctor --rule rule.json` compares an \
                 identity token with the rule"
            }
            TokenError::Refused { status, .. } if [403, 404, 405].contains(&status.as_u16()) => {
                "look whether ANTHROPIC_BASE_URL names the Anthropic API, without a path of its own, and whether \
                 something on the way keeps this host out"
            }
            TokenError::Refused { .. } => {
                "the request itself is wrong: look at ANTHROPIC_FEDERATION_RULE_ID (fdrl_…), \
                 ANTHROPIC_ORGANIZATION_ID (a UUID) and ANTHROPIC_WORKSPACE_ID (wrkspc_… or `default`)"
            }
            TokenError::Busy { .. } => "try again in a while; a new identity token is taken for each try",
            TokenError::Redirected(_) => {
                "ANTHROPIC_BASE_URL has to name the API itself, not something that leads to it"
            }
            TokenError::Unexpected { .. } => {
                "look whether ANTHROPIC_BASE_URL names the Anthropic API; a proxy or login page may answer in its place"
            }
        };
        text.to_owned()
    }
}

#[derive(Deserialize)]
struct TokenResponse {
    access_token: Option<Value>,
    token_type: Option<Value>,
    expires_in: Option<Value>,
}

/// Parses seconds from a number or from a string, which the server has sent. The minimum is one second.
fn expires_in(value: Option<&Value>) -> Option<Duration> {
    const LONGEST: f64 = 10.0 * 365.0 * 86_400.0;
    let seconds = match value? {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    (1.0..=LONGEST).contains(&seconds).then(|| Duration::from_secs(seconds as u64))
}

/// Extracts only the fields that RFC 6749 §5.2 and the API's own errors define. A server may reflect the assertion in
/// any other field.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Answer {
        error: Option<Value>,
        error_description: Option<String>,
    }
    let Ok(Answer { error, error_description }) = serde_json::from_slice(body) else { return String::new() };
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mut parts: Vec<String> = Vec::new();
    match &error {
        Some(Value::String(code)) => parts.push(code.clone()),
        Some(Value::Object(object)) => {
            parts.extend(["type", "message"].iter().filter_map(|key| text(object.get(*key)?)));
        }
        _ => {}
    }
    parts.extend(error_description);
    parts.iter().map(|part| format!(": {}", safe_text(part))).collect()
}

/// Separates the request id from the text before it.
const REQUEST_ID: &str = ", request id ";

fn request_id(response: &Response) -> String {
    let id = response.headers().get("request-id").and_then(|value| value.to_str().ok());
    id.map(|id| format!("{REQUEST_ID}{}", safe_text(id))).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant() -> Grant {
        Grant {
            token_endpoint: Uri::from_static("https://api.anthropic.com/v1/oauth/token"),
            federation_rule_id: "fdrl_1".to_owned(),
            organization_id: "org".to_owned(),
            service_account_id: None,
            workspace_id: Some("default".to_owned()),
        }
    }

    fn answer(status: u16, body: &str) -> Response {
        http::Response::builder()
            .status(status)
            .header("request-id", "req_1")
            .header(header::RETRY_AFTER, "7")
            .body(Zeroizing::new(body.as_bytes().to_vec()))
            .expect("a response")
    }

    fn parse_body(body: &str) -> Result<Credential, TokenError> {
        parse(&answer(200, body), SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_900))
    }

    #[test]
    fn exchange_request_matches_the_official_clients() {
        let token = IdentityToken::parse(&Secret::new("eyJhbGciOiJSUzI1NiJ9.e30.c2ln".to_owned())).expect("a token");
        let request = request(&grant(), token);
        assert_eq!(request.method(), Method::POST);
        assert_eq!(request.headers()["anthropic-beta"], "oauth-2025-04-20,oidc-federation-2026-04-01");
        assert_eq!(request.headers()["content-type"], "application/json");
        let body: Value = serde_json::from_slice(request.body()).expect("JSON");
        assert_eq!(
            body,
            serde_json::json!({
                "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
                "assertion": "eyJhbGciOiJSUzI1NiJ9.e30.c2ln",
                "federation_rule_id": "fdrl_1",
                "organization_id": "org",
                "workspace_id": "default",
            }),
            "what is not set is not sent, and scope never"
        );
    }

    #[test]
    fn expiry_counts_from_the_second_of_the_request() {
        let credential = parse_body(r#"{"access_token":"t","token_type":"bearer","expires_in":600}"#).expect("a token");
        assert_eq!(credential.obtained_at, from_epoch_seconds(1000));
        assert_eq!(credential.expires_at, from_epoch_seconds(1600));
    }

    #[test]
    fn expires_in_is_a_number_or_string_of_at_least_one_second() {
        for (expires_in, seconds) in [
            ("600", Some(600)),
            ("\"600\"", Some(600)),
            ("60.9", Some(60)),
            ("1", Some(1)),
            ("0.9", None),
            ("0", None),
            ("-5", None),
            ("315360000", Some(315_360_000)),
            ("315360001", None),
            ("1e30", None),
            ("null", None),
            ("true", None),
            ("\"soon\"", None),
            ("{}", None),
        ] {
            let credential = parse_body(&format!(r#"{{"access_token":"t","expires_in":{expires_in}}}"#));
            assert_eq!(credential.ok().map(|credential| credential.lifetime().as_secs()), seconds, "{expires_in}");
        }
        assert!(parse_body(r#"{"access_token":"t"}"#).is_err(), "a credential without an end would be kept for ever");
    }

    #[test]
    fn each_token_error_has_its_own_hint() {
        for (status, words) in [
            (401, "on the page Workload identity"),
            (403, "without a path of its own"),
            (404, "without a path of its own"),
            (405, "without a path of its own"),
            (400, "the request itself is wrong"),
            (503, "a new identity token is taken for each try"),
            (302, "has to name the API itself"),
            (200, "a proxy or login page"),
        ] {
            let error = parse(&answer(status, "{}"), SystemTime::UNIX_EPOCH).expect_err("no token");
            assert!(error.hint().contains(words), "{status}: {}", error.hint());
        }
    }

    #[test]
    fn invalid_success_response_is_unexpected() {
        for body in [
            "",
            "<html>",
            "[]",
            r#"{"expires_in":600}"#,
            r#"{"access_token":"","expires_in":600}"#,
            r#"{"access_token":"a\nb","expires_in":600}"#,
            r#"{"access_token":7,"expires_in":600}"#,
            r#"{"access_token":"t","token_type":"mac","expires_in":600}"#,
        ] {
            assert!(matches!(parse_body(body), Err(TokenError::Unexpected { .. })), "{body}");
        }
    }

    #[test]
    fn refusal_keeps_safe_fields_and_the_request_id() {
        let jwt = format!("eyJ{}", "x".repeat(80));
        let body = format!(
            r#"{{"error":{{"type":"authentication_error","message":"Authentication failed {jwt}","secret":"{jwt}"}},"echo":"{jwt}"}}"#
        );
        let error = parse(&answer(401, &body), SystemTime::UNIX_EPOCH).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "the token endpoint refused the identity token (HTTP 401 Unauthorized: authentication_error: \
             Authentication failed [redacted], request id req_1)"
        );
        assert_eq!(error.request_id(), Some("req_1"));
        let rfc = r#"{"error":"invalid_grant","error_description":"no"}"#;
        let error = parse(&answer(400, rfc), SystemTime::UNIX_EPOCH).expect_err("refused");
        assert!(error.to_string().contains("HTTP 400 Bad Request: invalid_grant: no, request id"), "{error}");
    }

    #[test]
    fn status_decides_the_kind_of_error() {
        let kind = |status| match parse(&answer(status, "x"), SystemTime::UNIX_EPOCH) {
            Err(TokenError::Refused { .. }) => "refused",
            Err(TokenError::Busy { retry_after, .. }) => {
                assert_eq!(retry_after, Some(Duration::from_secs(7)));
                "busy"
            }
            Err(TokenError::Redirected(_)) => "redirected",
            Err(TokenError::Unexpected { .. }) | Ok(_) => "unexpected",
        };
        for (status, expected) in [
            (400, "refused"),
            (401, "refused"),
            (403, "refused"),
            (404, "refused"),
            (408, "busy"),
            (429, "busy"),
            (500, "busy"),
            (529, "busy"),
            (301, "redirected"),
            (308, "redirected"),
            (204, "unexpected"),
        ] {
            assert_eq!(kind(status), expected, "status {status}");
        }
    }
}
