//! GitLab CI/CD: each entry of `id_tokens` in the job's file becomes a variable with one token, which does not change
//! during the job. Several entries allow several exchanges.
//!
//! Source: <https://docs.gitlab.com/ci/secrets/id_token_authentication/>. The variables can have any name. They are
//! found by the issuer and audience of the tokens in them.

use super::{Detected, DetectionInput, IdentitySource, TokenVariable};
use crate::identity_token::IdentityToken;
use crate::secret::Secret;

const CURE: &str = "declare one in .gitlab-ci.yml: `id_tokens: { ANTHROPIC_IDENTITY_TOKEN: { aud: https://api.anthropic.com } }`; \
                    each is accepted once, so a job longer than one credential's life needs several";

pub(super) fn look(job: &DetectionInput<'_>) -> Detected {
    if !job.is_chosen && !job.says_yes("GITLAB_CI") {
        return Detected::Absent;
    }
    let mut given = Vec::new();
    let mut for_others = None;
    for (name, value) in job.environment.iter() {
        // Accept only tokens of this GitLab. CI_SERVER_URL is the issuer, whatever the port.
        let (Some(name), Some(text)) = (name.to_str(), value.to_str()) else { continue };
        let Ok(token) = IdentityToken::exactly(text) else { continue };
        let text = Secret::new(text.trim().to_owned());
        let claims = token.claims();
        let issuer = job.environment.text("CI_SERVER_URL");
        if issuer.is_some() && claims.issuer.as_deref() != issuer {
            continue;
        }
        match claims.audience.iter().any(|audience| audience == job.audience) {
            true => given.push(TokenVariable { variable: name.to_owned(), text }),
            false if for_others.is_none() => {
                for_others = claims.audience.first().map(|audience| (name.to_owned(), audience.clone()));
            }
            false => {}
        }
    }
    match (given.is_empty(), for_others) {
        (false, _) => Detected::Source(IdentitySource::Variables(given)),
        (true, Some((name, audience))) => Detected::broken(
            &format!(
                "the identity token in {name} is meant for {}, and none is meant for {}",
                crate::message::safe_text(&audience),
                crate::message::safe_text(job.audience)
            ),
            "let `aud` in `id_tokens` and ANTHROPIC_OIDC_AUDIENCE (--audience) say the same, as the federation rule does",
        ),
        (true, None) => Detected::withheld("this GitLab job holds no identity token", CURE),
    }
}

#[cfg(test)]
mod tests {
    use super::super::detection::tests;
    use super::super::variables::tests::token;
    use super::*;

    fn look(variables: &[(&str, &str)]) -> Detected {
        tests::look(super::look, variables, &[], false)
    }

    const JOB: [(&str, &str); 2] = [("GITLAB_CI", "true"), ("CI_SERVER_URL", "https://gitlab.example")];

    #[test]
    fn gitlab_tokens_are_found_by_issuer_and_audience() {
        let ours = token(r#"{"iss":"https://gitlab.example","aud":"https://api.anthropic.com","jti":"1"}"#);
        let vault = token(r#"{"iss":"https://gitlab.example","aud":"https://vault.example","jti":"2"}"#);
        let foreign = token(r#"{"iss":"https://other.example","aud":"https://api.anthropic.com","jti":"3"}"#);
        let variables = [JOB[0], JOB[1], ("CLAUDE_B", &ours), ("CLAUDE_A", &ours), ("VAULT", &vault), ("X", &foreign)];
        let Detected::Source(IdentitySource::Variables(given)) = look(&variables) else { panic!("found") };
        let names: Vec<_> = given.iter().map(|given| given.variable.as_str()).collect();
        assert_eq!(names, ["CLAUDE_A", "CLAUDE_B"]);
        let Detected::Broken { reason, .. } = look(&[JOB[0], JOB[1], ("VAULT", &vault)]) else { panic!("half of it") };
        assert!(reason.contains("VAULT is meant for https://vault.example"), "{reason}");
        let of_no_audience = token(r#"{"iss":"https://gitlab.example","jti":"4"}"#);
        let two = [JOB[0], JOB[1], ("VAULT", &vault), ("ZERO", &of_no_audience)];
        let Detected::Broken { reason, .. } = look(&two) else { panic!("half of it") };
        assert!(reason.contains("VAULT is meant for"), "the first is told: {reason}");
    }

    #[test]
    fn gitlab_job_without_id_tokens_gets_a_hint() {
        let Detected::Withheld { hint, .. } = look(&JOB) else { panic!("recognised") };
        assert!(hint.contains("id_tokens"), "{hint}");
        assert!(matches!(look(&[]), Detected::Absent));
    }
}
