//! GitHub Actions, and the runners of Gitea and Forgejo, which have the same variables and response: an endpoint that
//! issues a new token for each request, valid for about five minutes at GitHub.
//!
//! Source: <https://docs.github.com/en/actions/reference/security/oidc>, and `getIDToken` of the actions toolkit;
//! <https://forgejo.org/docs/latest/user/actions/security-openid-connect/> for Forgejo 15 and later;
//! <https://github.com/go-gitea/gitea/issues/33681> for Gitea. GitHub's request token expires about six hours after the
//! start of the job.

use super::endpoint::with_parameters;
use super::{Detected, DetectionInput, Endpoint, IdentitySource, NamedBy};

pub(super) const VARIABLES: [&str; 2] = ["ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"];

/// The differences between the runners with this protocol.
struct Runner {
    platform: &'static str,
    /// What to do if a job has no permission.
    permission: &'static str,
    refusal_hint: &'static str,
    forbidden_hint: &'static str,
    end: Option<&'static str>,
    /// How to distinguish its jobs: GitHub's URL contains plan and job; the others have one URL for a whole run.
    named_by: NamedBy,
}

const GITHUB: Runner = Runner {
    platform: "GitHub Actions",
    permission: "add `id-token: write` to the job's `permissions`; \
                 GitHub withholds it from pull requests of forks (--optional runs the command without the credential there)",
    refusal_hint: "the request token ends about six hours after the job began; \
                   in a shorter job, look at the status page of GitHub Actions",
    forbidden_hint: "look at `permissions` of the job and of the workflow that calls it (`id-token: write`), and at the status \
                     page of GitHub Actions; a job that has just begun may be refused for some seconds: run it again",
    end: Some("about six hours after the job began"),
    named_by: NamedBy::Url,
};

const FORGEJO: Runner = Runner {
    platform: "Forgejo Actions",
    permission: "add `enable-openid-connect: true` to the workflow or to the job (Forgejo 15 or later); \
                 --optional runs the command without the credential where a job may not have one",
    refusal_hint: "the request token ends with the job; look at the log of the Forgejo instance",
    forbidden_hint: "",
    end: None,
    named_by: NamedBy::Bearer,
};

const GITEA: Runner = Runner {
    platform: "Gitea Actions",
    permission: "this Gitea gives its jobs no request URL: it has to be a version that issues OpenID Connect tokens, and the \
                 job may need `id-token: write` in its `permissions`",
    refusal_hint: "the request token ends with the job; look at the log of the Gitea instance",
    forbidden_hint: "",
    end: None,
    named_by: NamedBy::Bearer,
};

/// <https://github.com/nektos/act>, which runs GitHub workflows on a developer's machine.
const ACT: Runner = Runner {
    platform: "act",
    permission: "act runs the workflow on this machine, where nobody issues identity tokens for it; `permissions` change nothing. \
                 Pass a token that something else issued (act --env ANTHROPIC_IDENTITY_TOKEN_FILE=…), use `wifshare sandbox` \
                 to practise, or pass --optional to run the command without the credential",
    refusal_hint: "act issues no identity tokens: look at what set ACTIONS_ID_TOKEN_REQUEST_URL",
    forbidden_hint: "",
    end: None,
    named_by: NamedBy::Bearer,
};

pub(super) fn look(job: &DetectionInput<'_>) -> Detected {
    // All of them set `GITHUB_ACTIONS` too.
    let runner = match () {
        () if job.says_yes("FORGEJO_ACTIONS") => FORGEJO,
        () if job.says_yes("GITEA_ACTIONS") => GITEA,
        () if job.says_yes("ACT") => ACT,
        () => GITHUB,
    };
    let url = job.environment.text(VARIABLES[0]);
    let bearer = job.environment.text(VARIABLES[1]);
    match (url, bearer) {
        (Some(url), Some(bearer)) => match with_parameters(url, &[("audience", job.audience)]) {
            Some(url) => Detected::Source(IdentitySource::Endpoint(Endpoint {
                end: runner.end,
                named_by: runner.named_by,
                variables: &VARIABLES,
                refusal_hint: runner.refusal_hint,
                forbidden_hint: runner.forbidden_hint,
                ..Endpoint::with_bearer(runner.platform, url, bearer)
            })),
            None => Detected::broken(
                "ACTIONS_ID_TOKEN_REQUEST_URL is not a URL that can be asked",
                "leave the variable as the runner sets it; it has to be https",
            ),
        },
        (Some(_), None) | (None, Some(_)) => Detected::broken(
            "only one of ACTIONS_ID_TOKEN_REQUEST_URL and ACTIONS_ID_TOKEN_REQUEST_TOKEN is set",
            "both have to reach this process; look for a step or a container that passes on only one",
        ),
        (None, None) if job.is_chosen || job.says_yes("GITHUB_ACTIONS") => {
            let reason = match runner.platform {
                "act" => "this workflow is run by act, which issues no identity tokens".to_owned(),
                platform => format!("this {platform} job may not request identity tokens"),
            };
            Detected::withheld(&reason, runner.permission)
        }
        (None, None) => Detected::Absent,
    }
}

#[cfg(test)]
mod tests {
    use super::super::detection::tests;
    use super::*;

    fn look(variables: &[(&str, &str)]) -> Detected {
        tests::look(super::look, variables, &[], false)
    }

    const URL: (&str, &str) = ("ACTIONS_ID_TOKEN_REQUEST_URL", "https://ci.invalid/idtoken?api-version=2.0");
    const TOKEN: (&str, &str) = ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "t");

    #[test]
    fn audience_is_added_to_the_query() {
        let Detected::Source(IdentitySource::Endpoint(endpoint)) = look(&[URL, TOKEN]) else { panic!("detected") };
        assert_eq!(
            endpoint.url.to_string(),
            "https://ci.invalid/idtoken?api-version=2.0&audience=https%3A%2F%2Fapi%2Eanthropic%2Ecom"
        );
        assert_eq!((endpoint.variables, endpoint.end), (&VARIABLES[..], GITHUB.end));
        assert!(GITHUB.end.is_some());
    }

    #[test]
    fn missing_permission_is_recognised_and_explained() {
        let hint = |variables: &[(&str, &str)]| match look(variables) {
            Detected::Withheld { hint, .. } => hint,
            other => panic!("{other:?}"),
        };
        assert!(hint(&[("GITHUB_ACTIONS", "true")]).contains("id-token: write"));
        assert!(hint(&[("GITHUB_ACTIONS", "true"), ("FORGEJO_ACTIONS", "true")]).contains("enable-openid-connect"));
        let of_act = hint(&[("GITHUB_ACTIONS", "true"), ("ACT", "true")]);
        assert!(of_act.contains("act runs the workflow") && !of_act.contains("add `id-token"), "{of_act}");
        let gitea = [("GITHUB_ACTIONS", "true"), ("GITEA_ACTIONS", "true"), ("ACT", "true")];
        assert!(hint(&gitea).contains("Gitea"), "its runner is made of act");
    }

    #[test]
    fn runner_kind_is_named_in_the_description() {
        for (variable, platform) in [
            ("X", "GitHub Actions"),
            ("GITEA_ACTIONS", "Gitea Actions"),
            ("FORGEJO_ACTIONS", "Forgejo Actions"),
            ("ACT", "act"),
        ] {
            let Detected::Source(source) = look(&[URL, TOKEN, ("GITHUB_ACTIONS", "true"), (variable, "true")]) else {
                panic!("detected")
            };
            assert_eq!(source.description(), platform);
        }
    }

    #[test]
    fn jobs_with_the_same_url_differ_by_their_request_token() {
        let identity = |token: &str, more: (&str, &str)| {
            let Detected::Source(source) = look(&[URL, (VARIABLES[1], token), more]) else { panic!("detected") };
            assert!(source.names_its_job());
            source.identity()
        };
        for runner in ["FORGEJO_ACTIONS", "GITEA_ACTIONS"] {
            assert_ne!(identity("one", (runner, "true")), identity("two", (runner, "true")), "{runner}");
            assert!(!identity("secret-of-the-job", (runner, "true")).contains("secret-of-the-job"));
        }
        assert_eq!(identity("one", ("X", "")), identity("two", ("X", "")), "GitHub's URL is enough");
    }

    #[test]
    fn github_is_absent_without_its_variables() {
        assert!(matches!(look(&[]), Detected::Absent));
        assert!(matches!(look(&[("GITHUB_ACTIONS", "")]), Detected::Absent));
    }

    #[test]
    fn half_configured_or_insecure_url_is_broken() {
        for variables in [
            vec![URL],
            vec![TOKEN],
            vec![("ACTIONS_ID_TOKEN_REQUEST_URL", "http://ci.invalid/x"), TOKEN],
            vec![("ACTIONS_ID_TOKEN_REQUEST_URL", "not a url"), TOKEN],
        ] {
            assert!(matches!(look(&variables), Detected::Broken { .. }), "{variables:?}");
        }
    }
}
