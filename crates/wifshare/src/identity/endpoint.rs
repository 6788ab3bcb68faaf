//! A platform's endpoint for identity tokens: what is asked, how, and what comes back.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use http::{Method, StatusCode, Uri, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use super::{Answer, IdentityError, read};
use crate::clock::Clock;
use crate::identity_token::Claims;
use crate::message::{Body, Request, Response, is_secure, safe_text};
use crate::secret::Secret;
use crate::step::{Step, Watch};

/// An endpoint that hands out identity tokens.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The platform's name as people say it.
    pub platform: &'static str,
    /// The URL, audience included.
    pub url: Uri,
    /// How it is asked.
    pub question: Question,
    /// The headers by which it knows whom to answer; some can buy any number of identity tokens.
    pub headers: Vec<(&'static str, Secret)>,
    /// Where the token is in its answer.
    pub answer: Answer,
    /// A header that every answer of the platform has, so that nobody else can answer in its place unnoticed.
    pub signature: Option<(&'static str, &'static str)>,
    /// How it is reached.
    pub reach: Reach,
    /// Whether it hands out the same token again until that one is old.
    pub repeats: bool,
    /// When it stops answering, where that can be known.
    pub ends_at: Option<SystemTime>,
    /// What is known of its end where the moment is not: "about six hours after the job began".
    pub end: Option<&'static str>,
    /// The variables from which this was made, where children inherit them otherwise.
    pub variables: &'static [&'static str],
    /// What to do when the platform refuses.
    pub refusal_hint: &'static str,
}

/// How an endpoint is asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// GET.
    Get,
    /// POST, without a body.
    Post,
    /// The grant of RFC 7523 §2.2: a token of the platform, read anew from this file each time, speaks for the client.
    ClientAssertion {
        /// The file with the assertion.
        file: PathBuf,
        /// The client.
        client_id: String,
        /// For what the token shall be good.
        scope: String,
    },
}

/// How an endpoint is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Like any other, proxies included.
    Network,
    /// Over this machine's own link: without proxies, and it answers at once or never.
    Link,
}

impl Endpoint {
    /// An endpoint that is asked by GET with a bearer token. The rest is for the platform's file to say.
    pub(super) fn with_bearer(platform: &'static str, url: Uri, bearer: &str) -> Endpoint {
        Endpoint {
            platform,
            url,
            question: Question::Get,
            headers: vec![("authorization", Secret::new(format!("Bearer {bearer}")))],
            answer: Answer::Json("/value"),
            signature: None,
            reach: Reach::Network,
            repeats: false,
            // Most platforms hand out a JWT here; what it says of its end is good enough to tell.
            ends_at: Claims::peek(bearer).ok().and_then(|claims| claims.expires_at),
            end: None,
            variables: &[],
            refusal_hint: "",
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
            reach: Reach::Link,
            repeats: true,
            ends_at: None,
            end: None,
            variables: &[],
            refusal_hint: "",
        }
    }

    /// What distinguishes it from others.
    pub(super) fn identity(&self) -> String {
        match &self.question {
            Question::Get | Question::Post => format!("endpoint {}", self.url),
            Question::ClientAssertion { file, client_id, scope } => {
                format!("endpoint {} {client_id} {scope} {}", self.url, file.display())
            }
        }
    }

    /// Asks up to three times: asking spends nothing.
    pub(super) fn ask<E: std::error::Error + Send + Sync + 'static>(
        &self,
        send: impl Fn(Request) -> Result<Response, E>,
        clock: Clock,
        watch: Watch<'_>,
    ) -> Result<Secret, IdentityError> {
        const TRIES: u32 = 3;
        let mut tries = 0;
        loop {
            tries += 1;
            let failure = match send(self.request()?) {
                Ok(response) if response.status().is_server_error() || response.status() == 429 => {
                    self.refusal(&response)
                }
                Ok(response) => return self.parse(&response),
                Err(error) => IdentityError::Unreachable {
                    platform: self.platform,
                    host: self.url.host().unwrap_or_default().to_owned(),
                    reach: self.reach,
                    source: Box::new(error),
                },
            };
            if tries == TRIES {
                return Err(failure);
            }
            let pause = pause_after(tries);
            watch(&Step::Retrying { cause: failure.to_string(), pause });
            (clock.pause)(pause)?;
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

    fn parse(&self, response: &Response) -> Result<Secret, IdentityError> {
        if let Some((name, value)) = self.signature
            && response.headers().get(name).is_none_or(|found| found != value)
        {
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
        IdentityError::Unexpected { platform: self.platform, what, reach: self.reach }
    }

    fn refusal(&self, response: &Response) -> IdentityError {
        /// As GitHub and Azure DevOps say it, and as OAuth does (RFC 6749 §5.2).
        #[derive(Deserialize)]
        struct Answer {
            message: Option<String>,
            error_description: Option<String>,
            error: Option<String>,
        }
        let message = serde_json::from_slice(response.body())
            .ok()
            .and_then(|Answer { message, error_description, error }| message.or(error_description).or(error))
            .map(|message| format!(": {}", safe_text(&message)))
            .unwrap_or_default();
        let status = response.status();
        let hint = match status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            true => "the platform is busy or broken: try again in a while, and look at its status page",
            false => self.refusal_hint,
        };
        IdentityError::Refused { platform: self.platform, status, message, hint }
    }
}

/// A URL with these parameters behind those that it has; `None` where it cannot be asked, or not without the bearer
/// token standing in the clear.
pub(super) fn with_parameters(url: &str, parameters: &[(&str, &str)]) -> Option<Uri> {
    let url = parsed(url, parameters)?;
    (url.host().is_some() && is_secure(&url)).then_some(url)
}

/// The same for an address on this machine's own link, which no other machine sees.
pub(super) fn on_the_link(url: &str, parameters: &[(&str, &str)]) -> Option<Uri> {
    let url = parsed(url, parameters)?;
    let is_local = url.host()?.parse().is_ok_and(|address: std::net::Ipv4Addr| address.is_link_local());
    (is_secure(&url) || (is_local && url.scheme_str() == Some("http"))).then_some(url)
}

fn parsed(url: &str, parameters: &[(&str, &str)]) -> Option<Uri> {
    // A fragment would swallow the parameters, and the token would be meant for somebody else.
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

/// A growing pause with up to a half of jitter, so that a fleet does not knock in step.
fn pause_after(tries: u32) -> Duration {
    let whole = Duration::from_millis(250) * 2u32.pow(tries);
    whole.mul_f64(1.0 - fastrand::f64() / 2.0)
}

#[cfg(test)]
mod tests {
    use std::io;

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

    #[test]
    fn an_endpoint_is_asked_three_times_when_it_is_busy_and_once_when_it_refuses() {
        for (status, asked) in [(500, 3), (429, 3), (401, 1), (403, 1), (302, 1), (200, 1)] {
            let count = std::cell::Cell::new(0);
            let send = |_| {
                count.set(count.get() + 1);
                Ok::<_, io::Error>(answer(status, "{}"))
            };
            assert!(endpoint().ask(send, QUICK, &|_| {}).is_err());
            assert_eq!(count.get(), asked, "status {status}");
        }
    }

    #[test]
    fn a_busy_endpoint_that_recovers_is_forgiven() {
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
    fn what_the_platform_says_is_shown_without_anything_like_a_token() {
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
    fn who_answers_without_the_platforms_header_is_not_the_platform() {
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
    fn in_the_clear_a_secret_goes_to_this_machines_own_link_and_no_further() {
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
    fn what_a_bearer_token_says_of_its_end_is_known() {
        use base64::Engine;
        let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"exp":1000}"#);
        let url = Uri::from_static("https://ci.invalid/token");
        let ends_at = |bearer: &str| Endpoint::with_bearer("Test CI", url.clone(), bearer).ends_at;
        assert_eq!(ends_at(&format!("e30.{claims}.c2ln")), Some(crate::clock::from_epoch_seconds(1000)));
        assert_eq!(ends_at("opaque"), None);
    }

    #[test]
    fn a_platform_that_is_busy_and_one_that_refuses_have_different_cures() {
        for (status, cure) in
            [(403, "hint"), (400, "hint"), (429, "try again in a while"), (503, "try again in a while")]
        {
            let send = |_| Ok::<_, io::Error>(answer(status, "{}"));
            let hint = endpoint().ask(send, QUICK, &|_| {}).expect_err("refused").hint().expect("a hint");
            assert!(hint.contains(cure), "{status}: {hint}");
        }
    }

    #[test]
    fn a_question_that_may_have_a_body_tells_its_length() {
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

    #[test]
    fn pauses_double_and_differ_by_no_more_than_a_half() {
        for (tries, whole) in [(0, 250), (1, 500), (2, 1000), (3, 2000)] {
            let whole = Duration::from_millis(whole);
            for _ in 0..200 {
                let pause = pause_after(tries);
                assert!(whole / 2 <= pause && pause <= whole, "{pause:?} after {tries}");
            }
        }
    }
}
