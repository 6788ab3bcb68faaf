//! Checks the source of identity tokens, one token from it, and its entry in the ledger. The token is read and dropped.

use std::time::Duration;

use wifshare::{Config, Credential, HttpClient, IdentityToken, Reissue, safe_text, whole_message};

use super::finding::Finding;
use super::network::Date;
use crate::clock::clock;
use crate::console::whole;

/// Describes the source, and whether it can issue further tokens.
pub(super) fn source(config: &Config) -> Finding {
    let again = match config.source.reissue() {
        Reissue::OnDemand => "it gives a new token whenever it is asked",
        Reissue::Rotated => "it has a new token only when the file is replaced",
        Reissue::Limited(1) => "it has one token, and so one exchange for the whole job",
        Reissue::Limited(_) => "it has a few tokens, and one exchange for each",
    };
    Finding::ok("identity source", format!("{}: {again}", config.source.description()))
}

/// Requests one token as an exchange would. That does not use it up.
///
/// # Errors
/// Returns a failed finding if the source provides no token.
pub(super) fn ask(config: &Config, transport: &HttpClient) -> Result<IdentityToken, Finding> {
    let transport = config.way_to_the_source(transport);
    let is_spent = |token: &IdentityToken| matches!(config.store().spent(token), Ok(Some(_)));
    config
        .source
        .token(is_spent, |request| transport.send(request), clock(), &|_| {})
        .map_err(|error| Finding::failed("identity token", whole_message(&error), error.hint()))
}

/// Compares the token's claims with what every rule requires and with the configuration.
pub(super) fn judge(token: &IdentityToken, config: &Config, there: Option<Date>, has_rule: bool) -> Vec<Finding> {
    let claims = token.claims();
    let said = |claim: &Option<String>| claim.as_deref().map_or("none".to_owned(), safe_text);
    let now = clock().now();
    let left = claims.expires_at.and_then(|end| end.duration_since(now).ok());
    let life = claims.expires_at.zip(claims.issued_at).and_then(|(end, begin)| end.duration_since(begin).ok());
    let mut findings = vec![
        Finding::note("identity token", format!("issuer {}", said(&claims.issuer))),
        Finding::note("identity token", format!("subject {}", said(&claims.subject))),
        Finding::note(
            "identity token",
            match claims.jti {
                Some(_) => "it has a `jti`: the endpoint accepts it once",
                None if config.source.repeats() => {
                    "it has no `jti`: the endpoint cannot tell a second use, and wifshare sends it again while the \
                     platform hands out no other"
                }
                None => {
                    "it has no `jti`: the endpoint cannot tell a second use, and wifshare sends it once all the same"
                }
            },
        ),
    ];
    if let Some(expected) = &config.expected_subject {
        let subject = claims.subject.as_deref().unwrap_or_default();
        findings.push(match expected.matches(subject) {
            true => Finding::ok("identity token", format!("its subject matches {}", safe_text(expected.as_str()))),
            false => Finding::failed(
                "identity token",
                format!("its subject is `{}`, and `{}` is expected", safe_text(subject), safe_text(expected.as_str())),
                Some("run the job where its subject matches, or correct --expect-subject".to_owned()),
            ),
        });
    }
    let audience: Vec<String> = claims.audience.iter().map(|audience| safe_text(audience)).collect();
    let audience = if audience.is_empty() { "nobody".to_owned() } else { audience.join(", ") };
    findings.push(match claims.audience.contains(&config.audience) {
        true => Finding::ok("identity token", format!("meant for {audience}")),
        // A rule may require another audience than the configured one. If the rule is available, it decides.
        false if has_rule => Finding::note("identity token", format!("meant for {audience}")),
        false => Finding::warning(
            "identity token",
            format!("meant for {audience}, and {} was expected", safe_text(&config.audience)),
            "issue it for that audience, or set ANTHROPIC_OIDC_AUDIENCE to the audience of the rule",
        ),
    });
    for complaint in token.complaints() {
        let cure = "the endpoint refuses it whatever the rule says; change it at the identity provider";
        findings.push(Finding::failed("identity token", complaint, Some(cure.to_owned())));
    }
    findings.push(validity(token, life, left, there));
    findings
}

fn validity(token: &IdentityToken, life: Option<Duration>, left: Option<Duration>, there: Option<Date>) -> Finding {
    const LEEWAY: Duration = Duration::from_secs(30);
    const SHORTEST: Duration = Duration::from_secs(60);
    let (begin, end) = (token.claims().issued_at, token.claims().expires_at);
    let now = clock().now();
    let cure = Some("take it right before it is used, and set the clocks (NTP)".to_owned());
    let ago = |moment, now: std::time::SystemTime| now.duration_since(moment).unwrap_or_default();
    if let Some(late) = end.map(|end| ago(end, now)).filter(|late| *late > LEEWAY) {
        return Finding::failed("identity token", format!("it expired {} s ago", late.as_secs()), cure);
    }
    if let Some(there) = there.map(|date| date.there(now)) {
        if let Some(late) = end.map(|end| ago(end, there)).filter(|late| *late > LEEWAY) {
            let evidence = format!("by the endpoint's clock it expired {} s ago", late.as_secs());
            return Finding::failed("identity token", evidence, cure);
        }
        let early = begin.and_then(|begin| begin.duration_since(there).ok()).filter(|early| *early > LEEWAY);
        if let Some(early) = early {
            let evidence = format!("by the endpoint's clock it is issued {} s in the future", early.as_secs());
            return Finding::failed("identity token", evidence, cure);
        }
    }
    let (life, left) = (life.unwrap_or_default(), left.unwrap_or_default());
    let evidence = format!(
        "it lives {} s, {} s left: a credential bought now lives at most {}",
        life.as_secs(),
        left.as_secs(),
        // The server's own calculation (docs/reference/protocol.md §5.3).
        whole((left * 2).max(SHORTEST))
    );
    Finding::ok("identity token", evidence)
}

/// Reports whether this token was used before.
pub(super) fn ledger(token: &IdentityToken, config: &Config, stored: Option<&Credential>) -> Vec<Finding> {
    let now = clock().now();
    let spent = match config.store().spent(token) {
        Ok(spent) => spent,
        // The check of the state directory reports the reason.
        Err(_) => return Vec::new(),
    };
    let Some(spent) = spent else {
        return vec![Finding::ok("ledger", "this identity token was not used by wifshare on this host")];
    };
    let evidence = format!("this identity token was already {}", spent.story(now));
    vec![match (config.source.reissue(), stored) {
        (Reissue::OnDemand, _) => Finding::warning(
            "ledger",
            evidence,
            "the source repeats itself; wifshare asks again until it has a new one",
        ),
        (_, Some(credential)) => Finding::note(
            "ledger",
            format!("{evidence}; what it bought is shared and good for {}", whole(credential.remaining(now))),
        ),
        (Reissue::Rotated | Reissue::Limited(_), None) => Finding::failed(
            "ledger",
            evidence,
            Some("wrap all that shares it in one `wifshare exec`, or run the job again for a new token".to_owned()),
        ),
    }]
}
