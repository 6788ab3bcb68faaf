//! An HTTP client, and the requests that several tests send.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response},
};
use wifshare_sandbox::Sandbox;

/// A response, read to its end.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
    pub(crate) headers: HeaderMap,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("the body is JSON")
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

pub(crate) type Outcome = Result<Answer, ureq::Error>;

/// Returns a client that reports every status and follows no redirect.
pub(crate) fn agent(timeout: Duration) -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .timeout_global(Some(timeout))
        .build()
        .new_agent()
}

fn patient() -> Agent {
    agent(Duration::from_secs(20))
}

fn read(response: Result<Response<Body>, ureq::Error>) -> Outcome {
    let (head, mut body) = response?.into_parts();
    let body = body.with_config().limit(128 << 20).read_to_string()?;
    Ok(Answer { status: head.status.as_u16(), body, headers: head.headers })
}

pub(crate) fn get(url: &str, headers: &[(&str, &str)]) -> Outcome {
    let request = headers.iter().fold(patient().get(url), |request, (name, value)| request.header(*name, *value));
    read(request.call())
}

pub(crate) fn post(url: &str, headers: &[(&str, &str)], body: &str) -> Outcome {
    post_with(&patient(), url, headers, body)
}

pub(crate) fn post_with(agent: &Agent, url: &str, headers: &[(&str, &str)], body: &str) -> Outcome {
    let request = headers.iter().fold(agent.post(url), |request, (name, value)| request.header(*name, *value));
    read(request.send(body))
}

pub(crate) fn put(url: &str, body: &Value) -> Outcome {
    read(patient().put(url).send(body.to_string()))
}

/// Returns the body of a valid exchange.
pub(crate) fn grant(sandbox: &Sandbox, assertion: &str) -> Value {
    let rule = sandbox.settings().rule;
    json!({
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "assertion": assertion,
        "federation_rule_id": rule.id,
        "organization_id": rule.organization_id,
        "service_account_id": rule.service_account_id,
    })
}

pub(crate) fn token_endpoint(sandbox: &Sandbox) -> String {
    format!("{}/v1/oauth/token", sandbox.base_url())
}

pub(crate) fn exchange(sandbox: &Sandbox, assertion: &str) -> Outcome {
    post(&token_endpoint(sandbox), &[], &grant(sandbox, assertion).to_string())
}

/// Returns a live access token.
pub(crate) fn access_token(sandbox: &Sandbox) -> String {
    let answer = exchange(sandbox, &sandbox.issue_identity_token()).expect("an answer");
    answer.json()["access_token"].as_str().expect("an access token").to_owned()
}

pub(crate) fn message(sandbox: &Sandbox, access_token: &str, stream: bool) -> Outcome {
    let body = json!({"model": "claude-x", "max_tokens": 10, "stream": stream, "messages": [{"role": "user", "content": "hi"}]});
    let url = format!("{}/v1/messages?beta=true", sandbox.base_url());
    post(&url, &[("authorization", &format!("Bearer {access_token}"))], &body.to_string())
}

/// Sends a request to the identity endpoint like a job, for an audience in its query encoding.
pub(crate) fn identity_token(sandbox: &Sandbox, audience: &str) -> Outcome {
    let url = format!("{}&audience={audience}", sandbox.identity_token_request_url());
    get(&url, &[("authorization", &format!("bearer {}", sandbox.identity_token_request_token()))])
}

/// Returns a token's header and claims without checking its signature.
pub(crate) fn header_and_claims(token: &str) -> [Value; 2] {
    let mut parts = token.split('.').map(|part| {
        let json = BASE64_URL_SAFE_NO_PAD.decode(part).expect("base64url");
        serde_json::from_slice(&json).unwrap_or_default()
    });
    [(); 2].map(|()| parts.next().expect("three parts"))
}
