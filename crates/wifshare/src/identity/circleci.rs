//! CircleCI: the program `circleci` issues a new token for any audience on each request. Without it, a variable
//! contains one token, with the organization as its audience.
//!
//! Source: <https://circleci.com/docs/oidc-tokens-with-custom-claims/> and
//! <https://circleci.com/docs/openid-connect-tokens/>. Of the two variables, V2 has the more detailed subject. A
//! federation rule matches only one of them, so the other is not a second token.

use super::{Answer, Detected, DetectionInput, IdentityCommand, IdentitySource, TokenVariable};
use crate::secret::Secret;

pub(super) const VARIABLES: [&str; 2] = ["CIRCLE_OIDC_TOKEN_V2", "CIRCLE_OIDC_TOKEN"];

const FORKS: &str = "CircleCI issues no identity tokens for forks unless `Pass secrets to builds from forked pull requests` is \
                     set (--optional runs the command without the credential there)";

pub(super) fn look(job: &DetectionInput<'_>) -> Detected {
    if !job.is_chosen && !job.says_yes("CIRCLECI") {
        return Detected::Absent;
    }
    // A job without a token gets none from the program either.
    if let Some(program) = job.program("circleci").filter(|_| job.says_yes("CIRCLECI")) {
        let claims = serde_json::json!({ "aud": job.audience }).to_string();
        return Detected::Source(IdentitySource::Command(IdentityCommand {
            platform: Some("CircleCI"),
            argv: vec![program.into(), "run".into(), "oidc".into(), "get".into(), "--claims".into(), claims.into()],
            environment: job.environment.clone(),
            answer: Answer::Text,
            repeats: false,
            variables: &VARIABLES,
            told_apart_by: &[],
            failure_hint: FORKS,
        }));
    }
    let given = VARIABLES.iter().find_map(|name| {
        let text = Secret::new(job.environment.text(name)?.to_owned());
        Some(TokenVariable { variable: (*name).to_owned(), text })
    });
    match given {
        Some(given) => Detected::Source(IdentitySource::Variables(vec![given])),
        None => Detected::withheld("this CircleCI job holds no identity token", FORKS),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Reissue, detection::tests};
    use super::*;

    const JOB: [(&str, &str); 3] = [("CIRCLECI", "true"), ("CIRCLE_OIDC_TOKEN_V2", "t"), ("PATH", "/bin")];

    #[test]
    fn circleci_program_is_preferred_to_its_variable() {
        let Detected::Source(source) = tests::look(look, &JOB, &["/bin/circleci"], false) else { panic!("found") };
        assert_eq!((source.reissue(), source.description().as_str()), (Reissue::OnDemand, "CircleCI"));
        let IdentitySource::Command(program) = source else { panic!("a program") };
        assert_eq!(program.argv.last().unwrap(), r#"{"aud":"https://api.anthropic.com"}"#);
        let Detected::Source(source) = tests::look(look, &JOB, &[], false) else { panic!("found") };
        assert_eq!(source.reissue(), Reissue::Limited(1));
        assert!(matches!(tests::look(look, &JOB[2..], &["/bin/circleci"], false), Detected::Absent));
        assert!(matches!(tests::look(look, &JOB[..1], &[], false), Detected::Withheld { .. }));
    }
}
