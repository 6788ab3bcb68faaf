//! Finds likely causes of a refused exchange from the claims, the clocks and the ledger.
//!
//! The endpoint reports every refusal in the same way. Causes that local data proves come first, then causes that
//! cannot be excluded. Excluded causes are listed too, because users check them first.

use std::time::{Duration, SystemTime};

use crate::config::{Config, DEFAULT_AUDIENCE};
use crate::diagnosis::Diagnosis;
use crate::github_subject::{is_immutable, without_ids};
use crate::identity::Reissue;
use crate::identity_token::{Claims, IdentityToken};
use crate::message::safe_text;

/// The clock difference that the server allows (docs/reference/protocol.md §5.1).
const LEEWAY: Duration = Duration::from_secs(30);

/// What is known about a token, saved before it is moved into the request.
pub(super) struct Evidence {
    claims: Claims,
    complaints: Vec<String>,
}

impl Evidence {
    pub(super) fn of(token: &IdentityToken) -> Evidence {
        Evidence { claims: token.claims().clone(), complaints: token.complaints() }
    }

    /// Diagnoses a refusal. `answered_at` is the endpoint's time, if it sent one; `now` is the local time.
    pub(super) fn judge(&self, config: &Config, answered_at: Option<SystemTime>, now: SystemTime) -> Diagnosis {
        let mut diagnosis = Diagnosis::default();
        self.judge_clock(answered_at, now, &mut diagnosis);
        self.judge_audience(&config.audience, &mut diagnosis);
        diagnosis.likely.extend(self.complaints.iter().cloned());
        // The following causes are not proven; they are ordered by experience.
        self.judge_reuse(config.source.reissue(), &mut diagnosis);
        if config.grant.workspace_id.is_none() {
            let workspace = "ANTHROPIC_WORKSPACE_ID is not set, and a rule that covers several workspaces needs it";
            diagnosis.likely.push(workspace.to_owned());
        }
        diagnosis.likely.extend(self.claims.subject.as_deref().map(|subject| {
            let immutable = match is_immutable(subject) {
                true => format!(
                    "; it has GitHub's immutable form (repositories made since 15 July 2026), which a subject_prefix without \
                     the ids, such as `{}`, does not match",
                    safe_text(&prefix_of(&without_ids(subject)))
                ),
                false => String::new(),
            };
            format!(
                "the rule does not match the token's subject, `{}` (or its audience, or another claim){immutable}",
                safe_text(subject)
            )
        }));
        diagnosis.likely.push(
            "an id names another rule, organisation, service account or workspace than is meant \
             (an unknown rule leaves no entry in the Console)"
                .to_owned(),
        );
        diagnosis
    }

    fn judge_clock(&self, answered_at: Option<SystemTime>, now: SystemTime, diagnosis: &mut Diagnosis) {
        let Some(there) = answered_at else { return };
        let since = |later: SystemTime, earlier: SystemTime| later.duration_since(earlier).unwrap_or_default();
        let (end, begin) = (self.claims.expires_at, self.claims.issued_at);
        let ours = match (since(there, now), since(now, there)) {
            (ahead, _) if ahead > LEEWAY => format!("; it is {} s ahead of this host's", ahead.as_secs()),
            (_, behind) if behind > LEEWAY => format!("; it is {} s behind this host's", behind.as_secs()),
            _ => String::new(),
        };
        if let Some(late) = end.map(|end| since(there, end)).filter(|late| !late.is_zero()) {
            diagnosis
                .likely
                .push(format!("by the endpoint's clock the identity token expired {} s ago{ours}", late.as_secs()));
        } else if let Some(early) = begin.map(|begin| since(begin, there)).filter(|early| *early > LEEWAY) {
            diagnosis.likely.push(format!(
                "by the endpoint's clock the identity token is issued {} s in the future{ours}",
                early.as_secs()
            ));
        } else if end.is_some() && begin.is_some() {
            diagnosis.ruled_out.push(format!("the clock: the identity token is valid by the endpoint's{ours}"));
        }
    }

    fn judge_audience(&self, asked: &str, diagnosis: &mut Diagnosis) {
        if !self.claims.audience.iter().any(|audience| audience == asked) {
            let has = match &self.claims.audience[..] {
                [] => "nobody".to_owned(),
                several => several.iter().map(|one| format!("`{}`", safe_text(one))).collect::<Vec<_>>().join(", "),
            };
            diagnosis.likely.push(format!(
                "the identity token is meant for {has}, and `{}` was expected (ANTHROPIC_OIDC_AUDIENCE)",
                safe_text(asked)
            ));
        } else if asked != DEFAULT_AUDIENCE {
            diagnosis.likely.push(format!(
                "the identity token is meant for `{}` (ANTHROPIC_OIDC_AUDIENCE), and rules usually want \
                 `{DEFAULT_AUDIENCE}`",
                safe_text(asked)
            ));
        }
    }

    fn judge_reuse(&self, reissue: Reissue, diagnosis: &mut Diagnosis) {
        match (&self.claims.jti, reissue) {
            (None, _) => diagnosis
                .ruled_out
                .push("reuse: the identity token has no `jti`, and is accepted more than once".to_owned()),
            (Some(_), Reissue::OnDemand) => diagnosis.ruled_out.push(
                "reuse (jti_reused): the identity token was asked for just now, was in no ledger and was sent once"
                    .to_owned(),
            ),
            (Some(_), Reissue::Rotated | Reissue::Limited(_)) => diagnosis.likely.push(
                "something other than wifshare exchanged this identity token before (jti_reused); our ledger did not \
                 know it"
                    .to_owned(),
            ),
        }
    }
}

/// Returns the subject prefix of a rule for the whole repository.
fn prefix_of(subject: &str) -> String {
    let end = subject.match_indices(':').nth(1).map_or(subject.len(), |(end, _)| end + 1);
    format!("{}*", &subject[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::from_epoch_seconds;
    use crate::config::{Inputs, resolve};
    use crate::environment::Environment;
    use crate::secret::Secret;

    const NOW: u64 = 1_000_000;

    fn evidence(claims: &str) -> Evidence {
        use base64::Engine;
        let encoded = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        let text = format!("{}.{}.c2ln", encoded(r#"{"alg":"RS256","kid":"1"}"#), encoded(claims));
        Evidence::of(&IdentityToken::parse(&Secret::new(text)).expect("well formed"))
    }

    fn config(changes: &[(&str, &str)]) -> Config {
        let mut environment = Environment::from_iter([
            ("ANTHROPIC_FEDERATION_RULE_ID", "fdrl_1"),
            ("ANTHROPIC_ORGANIZATION_ID", "org"),
            ("ACTIONS_ID_TOKEN_REQUEST_URL", "https://ci.invalid/token?a=b"),
            ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "t"),
        ]);
        for (name, value) in changes {
            environment.set(*name, *value);
        }
        resolve(&Inputs::default(), &environment).expect("a configuration")
    }

    const GOOD: &str = r#"{"sub":"repo:o/r","aud":"https://api.anthropic.com","jti":"1","iat":999990,"exp":1000290}"#;

    /// Returns the first words of each suspicion, in order.
    fn likely(diagnosis: &Diagnosis) -> Vec<String> {
        diagnosis.likely.iter().map(|text| text.split(' ').take(4).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn proved_causes_are_listed_before_possible_ones() {
        let now = from_epoch_seconds(NOW);
        let file = ("ANTHROPIC_IDENTITY_TOKEN_FILE", "/run/token");
        let diagnosis = evidence(GOOD).judge(&config(&[]), Some(now), now);
        assert_eq!(
            likely(&diagnosis),
            ["ANTHROPIC_WORKSPACE_ID is not set,", "the rule does not", "an id names another"]
        );
        assert_eq!(diagnosis.ruled_out.len(), 2, "clock and reuse: {diagnosis:?}");
        let diagnosis = evidence(&GOOD.replace("https://api", "https://other")).judge(
            &config(&[("ANTHROPIC_WORKSPACE_ID", "default"), file]),
            Some(now),
            now,
        );
        assert_eq!(
            likely(&diagnosis),
            ["the identity token is", "something other than wifshare", "the rule does not", "an id names another"]
        );
        assert_eq!(diagnosis.ruled_out.len(), 1, "the clock alone: {diagnosis:?}");
        let diagnosis = evidence(r#"{"aud":"https://api.anthropic.com"}"#).judge(&config(&[]), Some(now), now);
        assert!(diagnosis.likely[..3].iter().all(|text| text.contains("which the endpoint requires")), "{diagnosis:?}");
    }

    #[test]
    fn immutable_subject_is_named_with_its_failing_prefix() {
        let now = from_epoch_seconds(NOW);
        let subject = "repo:octo-org@65/octo-repo@74:ref:refs/heads/main";
        let diagnosis = evidence(&GOOD.replace("repo:o/r", subject)).judge(&config(&[]), Some(now), now);
        let of_the_subject = diagnosis.likely.iter().find(|text| text.contains("subject")).expect("it is suspected");
        assert!(of_the_subject.contains("immutable form") && of_the_subject.contains("`repo:octo-org/octo-repo:*`"));
        let diagnosis = evidence(GOOD).judge(&config(&[]), Some(now), now);
        assert!(diagnosis.likely.iter().all(|text| !text.contains("immutable")), "{diagnosis:?}");
    }

    #[test]
    fn endpoint_clock_decides_to_the_second() {
        let now = from_epoch_seconds(NOW);
        for (there, suspicion) in [
            // The token is valid from 999990 to 1000290. An issuer's clock may be half a minute ahead. An expired token
            // is always suspected.
            (1_000_290, None),
            (1_000_291, Some("expired 1 s ago; it is 291 s ahead of this host's")),
            (999_960, None),
            (999_959, Some("issued 31 s in the future; it is 41 s behind this host's")),
        ] {
            let diagnosis = evidence(GOOD).judge(&config(&[]), Some(from_epoch_seconds(there)), now);
            let told = diagnosis.likely[0].strip_prefix("by the endpoint's clock the identity token ");
            assert_eq!(told.map(|told| told.trim_start_matches("is ")), suspicion, "{there}: {diagnosis:?}");
            assert_eq!(suspicion.is_none(), diagnosis.ruled_out[0].starts_with("the clock"), "{there}");
        }
        assert!(!evidence(GOOD).judge(&config(&[]), None, now).ruled_out[0].contains("clock"));
    }

    #[test]
    fn clock_difference_is_reported_over_30_s() {
        let now = from_epoch_seconds(NOW);
        let told = |there: u64| {
            let diagnosis = evidence(GOOD).judge(&config(&[]), Some(from_epoch_seconds(there)), now);
            let told = diagnosis.ruled_out[0].strip_prefix("the clock: the identity token is valid by the endpoint's");
            told.expect("it is valid").to_owned()
        };
        for (there, suffix) in [
            (NOW, ""),
            (NOW + 30, ""),
            (NOW + 31, "; it is 31 s ahead of this host's"),
            (NOW - 30, ""),
            (NOW - 31, "; it is 31 s behind this host's"),
        ] {
            assert_eq!(told(there), suffix, "{there}");
        }
        // A token without a start time proves nothing about the clock.
        let half = evidence(r#"{"sub":"s","aud":"https://api.anthropic.com","jti":"1","exp":1000290}"#);
        let diagnosis = half.judge(&config(&[]), Some(now), now);
        assert!(diagnosis.ruled_out.iter().all(|text| !text.starts_with("the clock")), "{diagnosis:?}");
    }
}
