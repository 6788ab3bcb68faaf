//! Properties of the parsers for any external bytes: they do not panic, and do not accept what later code relies on
//! them to refuse. The tests below check the properties with `fuzz/corpus` and random mutations of it. `fuzz/` checks
//! them with a coverage-guided fuzzer.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use http::StatusCode;

use crate::clock::{Clock, from_epoch_seconds};
use crate::config::{ConfigError, Inputs, resolve};
use crate::credential::{Credential, Freshness, is_bearer_token};
use crate::delivery::parse_delivered;
use crate::environment::Environment;
use crate::event::Event;
use crate::exchange;
use crate::gateway;
use crate::identity::{Detected, DetectionInput, FixedEndpoints, IdentityError, IdentitySource, detect};
use crate::identity_token::{IdentityToken, LARGEST, Malformed};
use crate::message::{Body, Response, is_secure, safe_text, whole_message};
use crate::run::parse_inputs;
use crate::secret::Secret;
use crate::store::{CachedFailure, ProcessIdentity, StoreError, parsers};

/// A property of any bytes. It panics if the property does not hold.
pub type Target = fn(&[u8]);

/// All properties, by the name of their corpus.
pub const TARGETS: [(&str, Target); 19] = [
    ("token_response", token_response),
    ("identity_response", identity_response),
    ("identity_token", identity_token),
    ("credential_file", credential_file),
    ("ledger", ledger),
    ("refusal", refusal),
    ("owner", owner),
    ("process_stat", process_stat),
    ("lock_holder", lock_holder),
    ("delivered_file", delivered_file),
    ("run_identity", run_identity),
    ("event", event),
    ("configuration", configuration),
    ("request_url", request_url),
    ("foreign_text", foreign_text),
    ("gateway_request", gateway_request),
    ("gateway_response", gateway_response),
    ("gateway_chunks", gateway_chunks),
    ("gateway_path", gateway_path),
];

const NOW: u64 = 1_800_000_000;
const CLOCK: Clock = Clock { wall: || from_epoch_seconds(NOW), monotonic: || Duration::ZERO, pause: |_| Ok(()) };

/// Parses a status from the first line, if there is one, and the rest as the body.
fn response(bytes: &[u8]) -> Response {
    let mut lines = bytes.splitn(2, |byte| *byte == b'\n');
    let first = lines.next().and_then(|line| str::from_utf8(line).ok()?.parse().ok());
    let status = first.and_then(|status| StatusCode::from_u16(status).ok());
    let body = if status.is_some() { lines.next().unwrap_or_default() } else { bytes };
    let mut response = Response::new(Body::new(body.to_vec()));
    *response.status_mut() = status.unwrap_or(StatusCode::OK);
    response
}

/// Checks that a text is one line of limited length without anything like a token.
fn assert_fit_to_show(text: &str, longest: usize) {
    assert!(text.chars().count() <= longest, "{} characters", text.chars().count());
    assert!(!text.chars().any(char::is_control), "{text:?}");
    let is_token_like = |word: &str| word.len() > 48 || word.starts_with("eyJ") || word.starts_with("sk-ant-");
    let mut words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_.+/=~:".contains(c)));
    assert!(!words.any(is_token_like), "{text:?}");
}

/// Checks the arithmetic of a credential's lifetime.
fn assert_lives(credential: &Credential) {
    assert!(credential.obtained_at <= credential.expires_at);
    for now in [SystemTime::UNIX_EPOCH, CLOCK.now(), credential.obtained_at, credential.expires_at, moment(u64::MAX)] {
        let usable = credential.is_usable(now);
        assert!(!usable || now < credential.expires_at, "an expired one is never served");
        assert!(credential.refresh_at_with(1.0) <= credential.refresh_at());
        assert!(credential.refresh_at() <= credential.expires_at && credential.remaining(now) <= moments(u64::MAX));
    }
}

fn moment(seconds: u64) -> SystemTime {
    from_epoch_seconds(seconds)
}

fn moments(seconds: u64) -> Duration {
    moment(seconds).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// A response of a token endpoint, or of another server in its place.
pub fn token_response(bytes: &[u8]) {
    match exchange::parse(&response(bytes), CLOCK.now()) {
        Ok(credential) => {
            assert!(is_bearer_token(credential.access_token.expose()));
            assert!((1..=10 * 365 * 86_400).contains(&credential.lifetime().as_secs()));
            assert_eq!(credential.freshness(CLOCK.now()), Freshness::Fresh, "fresh when born");
            assert_lives(&credential);
        }
        // Up to three texts from the response, each cut to 300 characters.
        Err(error) => assert_fit_to_show(&error.to_string(), 1300),
    }
}

/// A response of a CI's identity token endpoint.
pub fn identity_response(bytes: &[u8]) {
    let Detected::Source(source) = github("https://ci.invalid/token") else { panic!("both variables are there") };
    match source.token(|_| false, |_| Ok::<_, io::Error>(response(bytes)), CLOCK, &|_| {}) {
        Ok(token) => assert_is_whole(&token),
        Err(
            error
            @ (IdentityError::Refused { .. } | IdentityError::Unexpected { .. } | IdentityError::Malformed { .. }),
        ) => {
            assert_fit_to_show(&whole_message(&error), 500);
        }
        Err(error) => panic!("an answer came, and it was told as {error:?}"),
    }
}

/// Detects a GitHub job with this request URL.
fn github(url: &str) -> Detected {
    let variables = [("ACTIONS_ID_TOKEN_REQUEST_URL", url), ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "t")];
    detect(&DetectionInput {
        environment: &Environment::from_iter(variables),
        audience: "https://api.anthropic.com",
        endpoints: &FixedEndpoints::default(),
        exists: &|_| false,
        is_chosen: false,
    })
}

/// A file, variable or output of a command in place of an identity token.
pub fn identity_token(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let token = match IdentityToken::parse(&Secret::new(text.clone())) {
        Ok(token) => token,
        Err(reason) => {
            assert_fit_to_show(&reason.to_string(), 200);
            assert!(!reason.cure().is_empty());
            return;
        }
    };
    assert_is_whole(&token);
    assert_wrapped_is_refused(&token);
    let again = IdentityToken::parse(&Secret::new(format!("\n {text}\t"))).expect("blanks around it are dropped");
    assert_eq!((again.fingerprint(), again.claims()), (token.fingerprint(), token.claims()));
    if token.expose().len() > 16 {
        assert!(!format!("{token:?}").contains(token.expose()));
    }
}

/// Checks that text around a token is reported and that the error does not contain the token.
fn assert_wrapped_is_refused(token: &IdentityToken) {
    let token = token.expose();
    if token.len() + 64 > LARGEST {
        return;
    }
    for wrapped in [
        format!("\"{token}\""),
        format!("'{token}'"),
        format!("Bearer {token}"),
        format!("Authorization: Bearer {token}"),
        format!("{{\"value\":\"{token}\"}}"),
        format!("[{{\"a-b\":\"{token}\"}}]"),
        format!("\u{feff}{token}"),
        format!("{token}\0"),
        format!("{token}%"),
        format!("{token}\\n"),
        format!("{token}\n{token}"),
        format!("NAME={token}"),
        format!("log line\n{token}"),
        token.replace('.', "%2E"),
        token.replacen('.', ".\n", 1),
        token.chars().flat_map(|c| [c, '\0']).collect(),
    ] {
        let reason = IdentityToken::parse(&Secret::new(wrapped)).expect_err("it is more than a token");
        assert!(matches!(reason, Malformed::Wrapped(_)), "{reason}");
        let said = format!("{reason}; {}", reason.cure());
        assert!(token.len() < 40 || !said.contains(token), "{said}");
    }
}

fn assert_is_whole(token: &IdentityToken) {
    assert!((1..=LARGEST).contains(&token.expose().len()));
    assert_eq!(token.expose().split('.').filter(|segment| !segment.is_empty()).count(), 3);
    assert!(token.expose().bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)));
    assert!(token.header("alg").is_some_and(|name| !name.is_empty()));
    assert_eq!(token.fingerprint().to_string().len(), 64);
    let claims = token.claims();
    for end in [claims.issued_at, claims.expires_at].into_iter().flatten() {
        assert!(end.checked_add(moments(u64::MAX)).is_some(), "what is added to a moment must not overflow");
    }
}

/// `credential.json`.
pub fn credential_file(bytes: &[u8]) {
    match parsers::credential(bytes) {
        Ok(Some(credential)) => {
            assert!(is_bearer_token(credential.access_token.expose()));
            assert_lives(&credential);
            assert!(!is_newer(bytes), "a newer format is never taken for ours");
        }
        Ok(None) => {}
        // A newer file is not changed, even if it is incomplete.
        Err(error) => assert!(matches!(error, StoreError::Newer { .. })),
    }
}

fn is_newer(bytes: &[u8]) -> bool {
    let version = |value: serde_json::Value| value.get("version")?.as_u64();
    serde_json::from_slice(bytes).ok().and_then(version).is_some_and(|version| version > 2)
}

/// `spent`: with any bytes from a crash or another process in the file, an entry after them is found, and none before
/// them is lost.
pub fn ledger(bytes: &[u8]) {
    const ENTRY: &str = r#"{"version":1,"fingerprint":"f","used":"sent","owner":{"pid":1,"start_time":2,"boot":"b"},"at":3,"forget_at":4}"#;
    let path = Path::new("spent");
    let Ok(before) = parsers::ledger(bytes, path) else { return };
    let whole = [ENTRY.as_bytes(), b"\n", bytes, b"\n", ENTRY.as_bytes()].concat();
    let entries = parsers::ledger(&whole, path).expect("our own format");
    assert_eq!(entries.len(), before.len() + 2);
    assert_eq!((&entries[1..=before.len()], &entries[0]), (&before[..], &entries[before.len() + 1]));
    for entry in &before {
        let line = serde_json::to_vec(entry).expect("texts and numbers become JSON");
        assert_eq!(parsers::ledger(&line, path).expect("our own format"), std::slice::from_ref(entry));
    }
}

/// `refusal.json`.
pub fn refusal(bytes: &[u8]) {
    let Some(refusal): Option<CachedFailure> = parsers::refusal(bytes) else { return };
    for now in [SystemTime::UNIX_EPOCH, CLOCK.now(), moment(refusal.at), moment(u64::MAX)] {
        let longest = parsers::LONGEST_REFUSAL + Duration::from_secs(1);
        assert!(refusal.remaining(now).unwrap_or_default() <= longest, "nothing is remembered for ever");
    }
}

/// `owner` in a run's directory.
pub fn owner(bytes: &[u8]) {
    let Ok(owner) = serde_json::from_slice::<ProcessIdentity>(bytes) else { return };
    let it_is_we = owner == ProcessIdentity::current();
    assert!(!it_is_we || !owner.is_dead());
    assert_fit_to_show(&owner.to_string(), 14);
}

/// `/proc/PID/stat`, which contains an arbitrary name of the process.
pub fn process_stat(bytes: &[u8]) {
    let name = String::from_utf8_lossy(bytes);
    let _ = parsers::start_time(&name);
    let rest = (3..22).map(|number| format!("{number} ")).collect::<String>();
    let stat = format!("7 ({name}) {rest}4711 23 24");
    assert_eq!(parsers::start_time(&stat), Some(4711), "whatever its name is");
}

/// `lock`, in which the holder writes its current step.
pub fn lock_holder(bytes: &[u8]) {
    if let Some(holder) = parsers::holder(bytes, CLOCK.now()) {
        assert_fit_to_show(&holder, 350);
    }
}

/// A credential file in a delivered profile, which a child may have written.
pub fn delivered_file(bytes: &[u8]) {
    let Some(found) = parse_delivered(bytes) else { return };
    assert!(is_bearer_token(found.access_token.expose()));
    assert_lives(&Credential {
        access_token: found.access_token,
        expires_at: found.expires_at,
        obtained_at: CLOCK.now().min(found.expires_at),
        generation: 0,
    });
}

/// `identity.json` in a run's directory.
pub fn run_identity(bytes: &[u8]) {
    let Some(inputs) = parse_inputs(bytes) else { return };
    let written = serde_json::to_vec(&inputs).expect("texts become JSON");
    assert_eq!(parse_inputs(&written), Some(inputs));
}

/// A line of `events.jsonl`.
pub fn event(bytes: &[u8]) {
    let Ok(event) = serde_json::from_slice::<Event>(bytes) else { return };
    // Times are written in milliseconds. After one round, they do not change any more.
    let written = serde_json::to_vec(&event).expect("an event becomes JSON");
    let event: Event = serde_json::from_slice(&written).expect("what we write we read");
    assert_eq!(serde_json::to_vec(&event).expect("an event becomes JSON"), written);
    assert!(!written.contains(&b'\n'), "one line");
}

/// The user's settings: base URL, rule, organisation, service account, workspace, audience, one per line.
pub fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split('\n').map(|line| Some(line.to_owned()));
    let inputs = Inputs {
        base_url: lines.next().flatten(),
        federation_rule_id: lines.next().flatten(),
        organization_id: lines.next().flatten(),
        service_account_id: lines.next().flatten(),
        workspace_id: lines.next().flatten(),
        audience: lines.next().flatten(),
        identity_token_file: Some("/run/token".into()),
        state_dir: Some("/state".into()),
        ..Inputs::default()
    };
    let config = match resolve(&inputs, &Environment::default()) {
        Ok(config) => config,
        Err(error) => {
            assert_fit_to_show(&error.to_string(), 500);
            assert!(!error.hint().is_empty());
            assert!(!matches!(error, ConfigError::NoSource { .. } | ConfigError::BrokenSource { .. }));
            return;
        }
    };
    let ids = [&config.grant.federation_rule_id, &config.grant.organization_id];
    for id in ids.into_iter().chain(&config.grant.service_account_id).chain(&config.grant.workspace_id) {
        assert!(id.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"'`=".contains(&byte)), "{id}");
        assert!(!id.contains("${") && !id.starts_with("eyJ"), "{id}");
    }
    let endpoint = &config.grant.token_endpoint;
    assert!(is_secure(endpoint), "{endpoint}");
    assert!(endpoint.path().ends_with("/v1/oauth/token") && endpoint.query().is_none(), "{endpoint}");
    assert!(endpoint.authority().is_some_and(|authority| !authority.as_str().contains('@')), "{endpoint}");
    assert!(config.location.key.len() == 32 && config.location.key.bytes().all(|byte| byte.is_ascii_hexdigit()));
    // Another input gives another key, so that no credential is served for other settings.
    let grant = &config.grant;
    let values = [Some(&grant.federation_rule_id), Some(&grant.organization_id), grant.service_account_id.as_ref()];
    for (place, value) in values.into_iter().enumerate() {
        let mut other = inputs.clone();
        let longer = Some(format!("{}x", value.cloned().unwrap_or_default()));
        *[&mut other.federation_rule_id, &mut other.organization_id, &mut other.service_account_id][place] = longer;
        if let Ok(other) = resolve(&other, &Environment::default()) {
            assert_ne!(other.location.key, config.location.key);
        }
    }
}

/// The request URL that GitHub gives to a job.
pub fn request_url(bytes: &[u8]) {
    match github(&String::from_utf8_lossy(bytes)) {
        Detected::Source(IdentitySource::Endpoint(endpoint)) => {
            assert!(is_secure(&endpoint.url), "{}", endpoint.url);
            let query = endpoint.url.query().unwrap_or_default();
            assert!(query.ends_with("audience=https%3A%2F%2Fapi%2Eanthropic%2Ecom"), "{}", endpoint.url);
        }
        Detected::Broken { .. } => {}
        other => panic!("both variables were there, and this was found: {other:?}"),
    }
}

/// A text from another server, before it is shown.
pub fn foreign_text(bytes: &[u8]) {
    assert_fit_to_show(&safe_text(&String::from_utf8_lossy(bytes)), 301);
}

/// A child's request to the gateway: exactly one request is forwarded, only to the API, with the credential in place of
/// the capability.
pub fn gateway_request(bytes: &[u8]) {
    let Some((head_length, outgoing)) = gateway::parsers::request(bytes) else { return };
    assert!(head_length <= bytes.len() && bytes[..head_length].ends_with(b"\r\n\r\n"));
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut head = httparse::Request::new(&mut headers);
    let parsed = head.parse(&outgoing).expect("what leaves is HTTP");
    assert_eq!(parsed, httparse::Status::Complete(outgoing.len()), "one head, and nothing behind it");
    let values = |name: &str| -> Vec<&[u8]> {
        head.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value).collect()
    };
    assert_eq!(values("host"), [gateway::parsers::AUTHORITY.as_bytes()]);
    assert_eq!(values("authorization"), [format!("Bearer {}", gateway::parsers::ACCESS_TOKEN).as_bytes()]);
    assert!(values("x-api-key").is_empty());
    let (lengths, codings) = (values("content-length"), values("transfer-encoding"));
    assert!(lengths.len() + codings.len() <= 1, "the end of the body is told once");
    assert!(head.path.is_some_and(gateway::parsers::leads_to), "{:?}", head.path);
}

/// The head of an API response: the forwarded head is also exactly one head.
pub fn gateway_response(bytes: &[u8]) {
    let Some(passed) = gateway::parsers::response(bytes) else { return };
    let mut headers = [httparse::EMPTY_HEADER; 128];
    let mut head = httparse::Response::new(&mut headers);
    let parsed = head.parse(&passed).expect("what is passed on is HTTP");
    assert_eq!(parsed, httparse::Status::Complete(passed.len()), "one head, and nothing behind it");
    assert!(head.headers.iter().all(|header| !header.name.eq_ignore_ascii_case("connection")));
}

/// A chunked body is parsed in the same way wherever its bytes are split.
pub fn gateway_chunks(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    let (head, tail) = rest.split_at(usize::from(*first).min(rest.len()));
    assert_eq!(gateway::parsers::chunks([rest, &[]]), gateway::parsers::chunks([head, tail]));
}

/// An accepted path has only one interpretation.
pub fn gateway_path(bytes: &[u8]) {
    let target = String::from_utf8_lossy(bytes);
    if !gateway::parsers::leads_to(&target) {
        return;
    }
    let path = target.split('?').next().unwrap_or_default().to_ascii_lowercase();
    assert!(path == "/" || path.starts_with("/v1/") || path.starts_with("/api/"), "{target}");
    for odd in ["//", "/./", "/../", "%2f", "%5c", "%2e", "%00", "#", "\\"] {
        assert!(!path.contains(odd), "{target}");
    }
    assert!(!path.ends_with("/..") && !path.ends_with("/."), "{target}");
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

    use super::*;

    fn corpora() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus")
    }

    #[expect(clippy::disallowed_methods, reason = "a test reads what lies in its repository")]
    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let entries = std::fs::read_dir(corpora().join(name)).expect("each target has a corpus");
        entries.map(|entry| std::fs::read(entry.expect("an entry").path()).expect("a file")).collect()
    }

    /// Byte sequences that often break parsers.
    const WORDS: [&[u8]; 22] = [
        b"\"",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"\n",
        b"\r\n",
        b"\0",
        b"\xff\xfe",
        b"null",
        b"true",
        b"-1",
        b"0.5",
        b"1e309",
        b"18446744073709551616",
        b"\\u0000",
        b"\\ud800",
        b"\xe2\x80\xae",
        b"\x1b[2J",
        b"eyJ",
    ];

    #[derive(Clone, Debug)]
    enum Change {
        Insert(usize, Vec<u8>),
        Remove(usize, usize),
        Repeat(usize, usize),
        Flip(usize, u8),
    }

    fn change() -> impl Strategy<Value = Change> {
        let word = prop_oneof![
            3 => prop::sample::select(&WORDS[..]).prop_map(<[u8]>::to_vec),
            1 => prop::collection::vec(any::<u8>(), 1..8),
            1 => (any::<u8>(), 1..2000_usize).prop_map(|(byte, times)| vec![byte; times]),
        ];
        prop_oneof![
            (any::<usize>(), word).prop_map(|(at, word)| Change::Insert(at, word)),
            (any::<usize>(), 1..20_usize).prop_map(|(at, length)| Change::Remove(at, length)),
            (any::<usize>(), 1..40_usize).prop_map(|(at, length)| Change::Repeat(at, length)),
            (any::<usize>(), 1..=255_u8).prop_map(|(at, bits)| Change::Flip(at, bits)),
        ]
    }

    fn changed(mut bytes: Vec<u8>, changes: &[Change]) -> Vec<u8> {
        for change in changes {
            let place = |at: usize| at % (bytes.len() + 1);
            match change {
                Change::Insert(at, word) => drop(bytes.splice(place(*at)..place(*at), word.iter().copied())),
                Change::Remove(at, length) => {
                    let end = (place(*at) + length).min(bytes.len());
                    drop(bytes.drain(place(*at)..end));
                }
                Change::Repeat(at, length) => {
                    let part = bytes[place(*at)..(place(*at) + length).min(bytes.len())].to_vec();
                    drop(bytes.splice(place(*at)..place(*at), part));
                }
                Change::Flip(at, bits) => {
                    let at = place(*at);
                    bytes.get_mut(at).into_iter().for_each(|byte| *byte ^= bits);
                }
            }
        }
        bytes
    }

    #[test]
    fn fuzz_targets_hold_for_the_corpus() {
        for (name, target) in TARGETS {
            let corpus = corpus(name);
            assert!(!corpus.is_empty(), "{name} has nothing to begin with");
            corpus.iter().for_each(|bytes| target(bytes));
        }
    }

    #[test]
    fn fuzz_targets_hold_for_mutated_corpus() {
        for (name, target) in TARGETS {
            let seeds = prop::sample::select(corpus(name));
            let bytes =
                (seeds, prop::collection::vec(change(), 0..6)).prop_map(|(seed, changes)| changed(seed, &changes));
            let config = Config { cases: 1000, failure_persistence: None, ..Config::default() };
            // The mutations are the same each time. New ones are the fuzzer's task, so that an unrelated change does
            // not fail the suite.
            let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
            let outcome = TestRunner::new_with_rng(config, random).run(&bytes, |bytes| {
                target(&bytes);
                Ok(())
            });
            outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn gateway_corpus_contains_accepted_input() {
        let admitted = |name, is_admitted: fn(&[u8]) -> bool| corpus(name).iter().filter(|it| is_admitted(it)).count();
        assert!(admitted("gateway_request", |bytes| gateway::parsers::request(bytes).is_some()) >= 1);
        assert!(admitted("gateway_response", |bytes| gateway::parsers::response(bytes).is_some()) >= 2);
        assert!(admitted("gateway_chunks", |bytes| gateway::parsers::chunks([&bytes[1..], &[]]).is_some()) >= 2);
    }

    #[test]
    fn every_target_has_a_corpus_and_a_fuzzer() {
        let listed = |directory: PathBuf| -> Vec<String> {
            let entries = std::fs::read_dir(directory).expect("fuzz/ has its folders").flatten();
            let names = entries.filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()));
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        };
        let mut ours = TARGETS.map(|(name, _)| name.to_owned());
        ours.sort();
        assert_eq!(listed(corpora()), ours);
        assert_eq!(listed(corpora().join("../fuzz_targets")), ours);
    }
}
