//! The endpoint of a platform that issues identity tokens: its request, retries and response.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use http::{Method, Uri, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{Answer, IdentityError, read};
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::identity_token::Claims;
use crate::message::{Body, Request, Response, is_secure, retry_after, safe_text, whole_message};
use crate::progress::{Observer, Progress};
use crate::resource;
use crate::secret::Secret;

/// An endpoint that issues identity tokens.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The platform's usual name.
    pub platform: &'static str,
    /// The URL, including the audience.
    pub url: Uri,
    /// The kind of request.
    pub question: Question,
    /// The headers that authenticate the request. Some of them can get any number of identity tokens.
    pub headers: Vec<(&'static str, Secret)>,
    /// The position of the token in the response.
    pub answer: Answer,
    /// A header of every response of the platform, which detects other servers that respond instead.
    pub signature: Option<(&'static str, &'static str)>,
    /// The network of the endpoint.
    pub network: Network,
    /// The part of the request that distinguishes jobs.
    pub named_by: NamedBy,
    /// Whether the endpoint returns the same token until it is old.
    pub repeats: bool,
    /// When the endpoint stops issuing tokens, if that is known.
    pub ends_at: Option<SystemTime>,
    /// A description of that time if it is not known exactly: "about six hours after the job began".
    pub end: Option<&'static str>,
    /// The variables with the endpoint's data, which children must not inherit.
    pub variables: &'static [&'static str],
    /// What to do if the platform refuses.
    pub refusal_hint: &'static str,
    /// What to do if it forbids (HTTP 403). Empty if that is not different.
    pub forbidden_hint: &'static str,
}

/// The kind of a request.
#[derive(Clone, Debug)]
pub enum Question {
    /// GET.
    Get,
    /// POST without a body.
    Post,
    /// The client authentication of RFC 7523 §2.2, with a token of the platform that is read from a file for each
    /// request.
    ClientAssertion {
        /// The file with the assertion.
        file: PathBuf,
        /// The client id.
        client_id: String,
        /// The scope of the requested token.
        scope: String,
    },
}

/// The part of an endpoint's request that distinguishes jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedBy {
    /// The URL: each job has its own.
    Url,
    /// The bearer token: each job has its own.
    Bearer,
    /// Nothing: all jobs of the machine send the same request.
    Nothing,
}

/// The network of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Any routed network. Proxies are used.
    Routed,
    /// The machine's own link, such as a cloud's metadata service. It responds at once or never, and no proxy is used.
    LinkLocal,
}

impl Endpoint {
    /// An endpoint for GET with a bearer token. The platform's file sets the other fields.
    pub(super) fn with_bearer(platform: &'static str, url: Uri, bearer: &str) -> Endpoint {
        Endpoint {
            platform,
            url,
            question: Question::Get,
            headers: vec![("authorization", Secret::new(format!("Bearer {bearer}")))],
            answer: Answer::Json("/value"),
            signature: None,
            network: Network::Routed,
            named_by: NamedBy::Url,
            repeats: false,
            // Most platforms use a JWT here. Its unverified `exp` is sufficient for information.
            ends_at: Claims::peek(bearer).ok().and_then(|claims| claims.expires_at),
            end: None,
            variables: &[],
            refusal_hint: "",
            forbidden_hint: "",
        }
    }

    /// A metadata service on this machine's own link.
    pub(super) fn on_the_link(platform: &'static str, url: Uri, headers: Vec<(&'static str, Secret)>) -> Endpoint {
        Endpoint {
            platform,
            url,
            question: Question::Get,
            headers,
            answer: Answer::Json("/access_token"),
            signature: None,
            network: Network::LinkLocal,
            named_by: NamedBy::Nothing,
            repeats: true,
            ends_at: None,
            end: None,
            variables: &[],
            refusal_hint: "",
            forbidden_hint: "",
        }
    }

    /// The part of the identity key that distinguishes it from others. Of the headers, it contains only a hash.
    pub(super) fn identity(&self) -> String {
        let headers = self.headers.iter().filter(|_| self.named_by == NamedBy::Bearer);
        let asked_with: String =
            headers.map(|(name, value)| format!(" {name} {:?}", Sha256::digest(value.expose()).as_slice())).collect();
        match &self.question {
            Question::Get | Question::Post => format!("endpoint {}{asked_with}", self.url),
            Question::ClientAssertion { file, client_id, scope } => {
                format!("endpoint {} {client_id} {scope} {}", self.url, file.display())
            }
        }
    }

    /// Requests a token. Retries temporary failures within their time limit, because a request spends nothing.
    pub(super) fn ask<E: std::error::Error + Send + Sync + 'static>(
        &self,
        send: impl Fn(Request) -> Result<Response, E>,
        clock: Clock,
        observer: Observer<'_>,
    ) -> Result<Secret, IdentityError> {
        let start = (clock.monotonic)();
        let mut backoff = between_questions();
        loop {
            let (failure, budget, asked) = match send(self.request()?) {
                Ok(response) => match self.budget(&response) {
                    Some(budget) => (self.refusal(&response), budget, retry_after(&response)),
                    None => return self.parse(&response),
                },
                Err(error) => {
                    let failure = IdentityError::Unreachable {
                        platform: self.platform,
                        host: self.url.host().unwrap_or_default().to_owned(),
                        network: self.network,
                        source: Box::new(error),
                    };
                    let budget = match self.network {
                        // The same again: the fault is not on the network.
                        _ if failure.certificate().is_some() || is_local_limit(&failure) => Duration::ZERO,
                        Network::Routed => PATIENCE,
                        Network::LinkLocal => SHORT_PATIENCE,
                    };
                    (failure, budget, None)
                }
            };
            let elapsed = (clock.monotonic)().saturating_sub(start);
            let Some(pause) = backoff.pause(elapsed, budget, asked) else {
                return Err(failure);
            };
            observer(&Progress::Retrying { cause: whole_message(&failure), pause });
            (clock.pause)(pause)?;
        }
    }

    /// How long to retry after this response; `None` if it is final.
    fn budget(&self, response: &Response) -> Option<Duration> {
        let status = response.status();
        if !status.is_server_error() && !self.is_signed(response) {
            return None;
        }
        match status.as_u16() {
            408 | 425 | 429 => Some(PATIENCE),
            _ if status.is_server_error() => Some(PATIENCE),
            // GitHub responds this way to a job that has just begun ("job in Pending state").
            403 if may_pass(response) => Some(PATIENCE),
            403 => Some(SHORT_PATIENCE),
            // A metadata service during an update. Azure documents both.
            404 | 410 if self.network == Network::LinkLocal => Some(SHORT_PATIENCE),
            _ => None,
        }
    }

    fn request(&self) -> Result<Request, IdentityError> {
        let (method, body) = match &self.question {
            Question::Get => (Method::GET, Body::default()),
            Question::Post => (Method::POST, Body::default()),
            Question::ClientAssertion { file, client_id, scope } => {
                let assertion = read(file).map_err(|source| IdentityError::File {
                    path: file.clone(),
                    hint: "AZURE_FEDERATED_TOKEN_FILE has to name the token that AKS projects into the pod; look at the \
                           pod's label azure.workload.identity/use and at the user that it runs as",
                    source,
                })?;
                let form = [
                    ("grant_type", "client_credentials"),
                    ("client_id", client_id),
                    ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"),
                    ("client_assertion", assertion.expose().trim()),
                    ("scope", scope),
                ];
                let form = form.map(|(name, value)| format!("{name}={}", encoded(value)));
                (Method::POST, Body::new(form.join("&").into_bytes()))
            }
        };
        let mut request =
            http::Request::builder().method(&method).uri(self.url.clone()).header(header::ACCEPT, "application/json");
        for (name, value) in &self.headers {
            request = request.header(*name, value.expose());
        }
        if let Question::ClientAssertion { .. } = self.question {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        if method == Method::POST {
            request = request.header(header::CONTENT_LENGTH, body.len());
        }
        request
            .body(body)
            .map_err(|_| self.unexpected("what the platform gave the job cannot stand in a header".to_owned()))
    }

    /// Whether the response comes from the platform.
    fn is_signed(&self, response: &Response) -> bool {
        self.signature.is_none_or(|(name, value)| response.headers().get(name).is_some_and(|found| found == value))
    }

    fn parse(&self, response: &Response) -> Result<Secret, IdentityError> {
        if let Some((name, value)) = self.signature.filter(|_| !self.is_signed(response)) {
            return Err(self.unexpected(format!("the header `{name}: {value}` was expected")));
        }
        if response.status().is_redirection() {
            return Err(self.unexpected("a redirect, which is not followed".to_owned()));
        }
        if !response.status().is_success() {
            return Err(self.refusal(response));
        }
        self.answer.token(response.body()).ok_or_else(|| self.unexpected(self.answer.expected()))
    }

    fn unexpected(&self, what: String) -> IdentityError {
        IdentityError::Unexpected { platform: self.platform, what, network: self.network }
    }

    fn refusal(&self, response: &Response) -> IdentityError {
        let message = message(response).map(|message| format!(": {}", safe_text(&message))).unwrap_or_default();
        let status = response.status();
        let hint = match status.as_u16() {
            403 if !may_pass(response) && !self.forbidden_hint.is_empty() => self.forbidden_hint,
            403 if may_pass(response) => {
                "the platform says that this may pass: run the job again, and look at its status page"
            }
            408 | 425 | 429 => "the platform is busy or broken: try again in a while, and look at its status page",
            _ if status.is_server_error() => {
                "the platform is busy or broken: try again in a while, and look at its status page"
            }
            _ => self.refusal_hint,
        };
        IdentityError::Refused { platform: self.platform, status, message, hint }
    }
}

/// The time limit for retries of temporary failures.
const PATIENCE: Duration = Duration::from_secs(20);
/// The limit for failures that are probably permanent: a refusal without a reason, a missing metadata service.
const SHORT_PATIENCE: Duration = Duration::from_secs(3);

/// The backoff between two requests.
fn between_questions() -> Backoff {
    Backoff::new(Duration::from_millis(500), Duration::from_secs(5))
}

/// The message in an error response.
fn message(response: &Response) -> Option<String> {
    /// The format of GitHub and Azure DevOps, and that of OAuth (RFC 6749 §5.2).
    #[derive(Deserialize)]
    struct Answer {
        message: Option<String>,
        error_description: Option<String>,
        error: Option<serde_json::Value>,
    }
    let Answer { message, error_description, error } = serde_json::from_slice(response.body()).ok()?;
    let error = error.and_then(|error| match error {
        serde_json::Value::String(text) => Some(text),
        error => Some(error.get("message")?.as_str()?.to_owned()),
    });
    message.or(error_description).or(error)
}

/// Whether this process ran into a limit of its own, such as too many open files.
fn is_local_limit(failure: &IdentityError) -> bool {
    resource::cure_in(&whole_message(failure)).is_some()
}

/// Whether the response says that a retry may succeed.
fn may_pass(response: &Response) -> bool {
    const WORDS: [&str; 8] =
        ["pending", "try again", "retry", "temporar", "rate limit", "not ready", "not started", "too many requests"];
    let text = String::from_utf8_lossy(response.body()).to_ascii_lowercase();
    response.headers().contains_key(header::RETRY_AFTER) || WORDS.iter().any(|word| text.contains(word))
}

/// Appends query parameters to a URL. Returns `None` for an invalid URL, and for one that would send the bearer token
/// in plain text.
pub(super) fn with_parameters(url: &str, parameters: &[(&str, &str)]) -> Option<Uri> {
    let url = parsed(url, parameters)?;
    (url.host().is_some() && is_secure(&url)).then_some(url)
}

/// Like `with_parameters`, but also allows plain http to a link-local address, which other networks cannot reach.
pub(super) fn on_the_link(url: &str, parameters: &[(&str, &str)]) -> Option<Uri> {
    let url = parsed(url, parameters)?;
    let is_local = url.host()?.parse().is_ok_and(|address: std::net::Ipv4Addr| address.is_link_local());
    (is_secure(&url) || (is_local && url.scheme_str() == Some("http"))).then_some(url)
}

fn parsed(url: &str, parameters: &[(&str, &str)]) -> Option<Uri> {
    // A fragment would contain the parameters, so the audience would be ignored.
    if url.contains('#') {
        return None;
    }
    let mut url = url.to_owned();
    for (name, value) in parameters {
        let separator = if url.contains('?') { '&' } else { '?' };
        url = format!("{url}{separator}{name}={}", encoded(value));
    }
    url.parse().ok()
}

fn encoded(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

#[cfg(test)]
mod tests {
    use std::io;

    use http::StatusCode;

    use super::*;

    fn endpoint() -> Endpoint {
        let url = Uri::from_static("https://ci.invalid/token");
        Endpoint { refusal_hint: "hint", ..Endpoint::with_bearer("Test CI", url, "b") }
    }

    fn answer(status: u16, body: &str) -> Response {
        let mut response = Response::new(Body::new(body.as_bytes().to_vec()));
        *response.status_mut() = StatusCode::from_u16(status).expect("a status");
        response
    }

    const QUICK: Clock = Clock { wall: || SystemTime::UNIX_EPOCH, monotonic: || Duration::ZERO, pause: |_| Ok(()) };

    thread_local!(static NOW: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) });

    /// A clock that advances only during pauses.
    const BY_HAND: Clock = Clock {
        wall: || SystemTime::UNIX_EPOCH,
        monotonic: || NOW.get(),
        pause: |time| {
            NOW.set(NOW.get() + time);
            Ok(())
        },
    };

    /// How often, and for how long, an endpoint with this response is retried.
    fn asked(endpoint: &Endpoint, status: u16, body: &str) -> (u32, Duration) {
        NOW.set(Duration::ZERO);
        let count = std::cell::Cell::new(0);
        let send = |_| {
            count.set(count.get() + 1);
            Ok::<_, io::Error>(answer(status, body))
        };
        assert!(endpoint.ask(send, BY_HAND, &|_| {}).is_err());
        (count.get(), NOW.get())
    }

    #[test]
    fn transient_failure_is_retried_for_20_s() {
        const PENDING: &str = r#"{"message":"Unable to get ID token: job in Pending state"}"#;
        for (status, body) in [(500, "{}"), (503, ""), (429, "{}"), (408, ""), (403, PENDING)] {
            let (times, time) = asked(&endpoint(), status, body);
            assert!((5..=12).contains(&times) && time == PATIENCE, "HTTP {status}: {times} times in {time:?}");
        }
        let (times, time) = asked(&endpoint(), 403, r#"{"message":"Resource not accessible by integration"}"#);
        assert!((3..=8).contains(&times) && time == SHORT_PATIENCE, "{times} times in {time:?}");
        for (status, body) in [(401, PENDING), (400, "{}"), (404, "{}"), (302, ""), (200, "{}")] {
            assert_eq!(asked(&endpoint(), status, body), (1, Duration::ZERO), "HTTP {status}");
        }
        let metadata = Endpoint { network: Network::LinkLocal, ..endpoint() };
        assert_eq!(asked(&metadata, 410, "{}").1, SHORT_PATIENCE);
    }

    #[test]
    fn retry_after_is_respected_within_the_time_limit() {
        NOW.set(Duration::ZERO);
        let moments = std::cell::RefCell::new(Vec::new());
        let send = |_| {
            moments.borrow_mut().push(NOW.get().as_secs());
            let mut answer = answer(429, "{}");
            answer.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from_static("9"));
            Ok::<_, io::Error>(answer)
        };
        assert!(endpoint().ask(send, BY_HAND, &|_| {}).is_err());
        assert_eq!(*moments.borrow(), [0, 9, 18, 20]);
    }

    #[test]
    fn busy_endpoint_that_recovers_returns_a_token() {
        let count = std::cell::Cell::new(0);
        let send = |_| {
            count.set(count.get() + 1);
            match count.get() {
                1 => Err(io::Error::from(io::ErrorKind::ConnectionReset)),
                2 => Ok(answer(503, "")),
                _ => Ok(answer(200, r#"{"count":1,"value":"t"}"#)),
            }
        };
        assert_eq!(endpoint().ask(send, QUICK, &|_| {}).expect("the third try").expose(), "t");
    }

    #[test]
    fn platform_message_is_shown_with_tokens_redacted() {
        for body in [
            r#"{"message":"no eyJhbGci.eyJzdWIi.c2ln for you"}"#,
            r#"{"error":"invalid_client","error_description":"no eyJhbGci.eyJzdWIi.c2ln for you"}"#,
        ] {
            let send = |_| Ok::<_, io::Error>(answer(403, body));
            let error = endpoint().ask(send, QUICK, &|_| {}).expect_err("refused");
            assert_eq!(
                error.to_string(),
                "Test CI refused to issue an identity token (HTTP 403 Forbidden: no [redacted] for you)"
            );
        }
    }

    #[test]
    fn response_without_the_platform_header_is_unexpected() {
        let endpoint = Endpoint { signature: Some(("Metadata-Flavor", "Google")), ..endpoint() };
        let send = |_| Ok::<_, io::Error>(answer(200, r#"{"value":"t"}"#));
        assert!(matches!(endpoint.ask(send, QUICK, &|_| {}), Err(IdentityError::Unexpected { .. })));
        let send = |_| {
            let mut answer = answer(200, r#"{"value":"t"}"#);
            answer.headers_mut().insert("metadata-flavor", http::HeaderValue::from_static("Google"));
            Ok::<_, io::Error>(answer)
        };
        assert!(endpoint.ask(send, QUICK, &|_| {}).is_ok());
    }

    #[test]
    fn plain_http_is_allowed_only_for_loopback_or_link_local() {
        let parameters = [("resource", "api://x y")];
        for (url, network, link) in [
            ("https://h/t", true, true),
            ("http://127.0.0.1:41/t", true, true),
            ("http://169.254.130.3:8081/msi/token", false, true),
            ("http://10.0.0.4/t", false, false),
            ("http://169.254.1.1.evil.example/t", false, false),
            ("ftp://169.254.169.254/t", false, false),
            ("not a url", false, false),
        ] {
            assert_eq!(with_parameters(url, &parameters).is_some(), network, "{url}");
            assert_eq!(on_the_link(url, &parameters).is_some(), link, "{url}");
        }
        let url = with_parameters("https://h/t?a=b", &parameters).expect("a URL");
        assert_eq!(url, "https://h/t?a=b&resource=api%3A%2F%2Fx%20y");
    }

    #[test]
    fn request_token_expiry_is_known() {
        use base64::Engine;
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"exp":1000}"#);
        let url = Uri::from_static("https://ci.invalid/token");
        let ends_at = |bearer: &str| Endpoint::with_bearer("Test CI", url.clone(), bearer).ends_at;
        assert_eq!(ends_at(&format!("e30.{claims}.c2ln")), Some(crate::clock::from_epoch_seconds(1000)));
        assert_eq!(ends_at("opaque"), None);
    }

    #[test]
    fn busy_and_refusing_platforms_have_different_hints() {
        for (status, body, cure) in [
            (403, "{}", "hint"),
            (400, "{}", "hint"),
            (403, r#"{"message":"job in Pending state"}"#, "may pass"),
            (429, "{}", "try again in a while"),
            (503, "{}", "try again in a while"),
        ] {
            let send = |_| Ok::<_, io::Error>(answer(status, body));
            let hint = endpoint().ask(send, QUICK, &|_| {}).expect_err("refused").hint().expect("a hint");
            assert!(hint.contains(cure), "{status}: {hint}");
        }
    }

    #[test]
    fn post_request_has_a_content_length() {
        for (question, length) in [(Question::Get, None), (Question::Post, Some("0"))] {
            let endpoint = Endpoint { question, ..endpoint() };
            let send = |request: Request| {
                let told = request.headers().get(header::CONTENT_LENGTH);
                assert_eq!(told.map(|value| value.to_str().expect("a text")), length);
                Ok::<_, io::Error>(answer(200, r#"{"value":"t"}"#))
            };
            assert!(endpoint.ask(send, QUICK, &|_| {}).is_ok());
        }
    }
}
