//! Bitbucket Pipelines: a step with `oidc: true` has one token in a variable, which does not change during the step.
//!
//! Source: <https://support.atlassian.com/bitbucket-cloud/docs/integrate-pipelines-with-resource-servers-using-oidc/>.
//! `oidc: audiences:` sets other audiences than that of the workspace.

use super::{Detected, DetectionInput, IdentitySource, TokenVariable};
use crate::secret::Secret;

pub(super) const VARIABLES: [&str; 1] = ["BITBUCKET_STEP_OIDC_TOKEN"];

pub(super) fn look(job: &DetectionInput<'_>) -> Detected {
    match job.environment.text(VARIABLES[0]) {
        Some(token) => {
            let given = TokenVariable { variable: VARIABLES[0].to_owned(), text: Secret::new(token.to_owned()) };
            Detected::Source(IdentitySource::Variables(vec![given]))
        }
        None if job.is_chosen || job.environment.has("BITBUCKET_PIPELINE_UUID") => Detected::withheld(
            "this Bitbucket step holds no identity token",
            "add `oidc: true` to the step, or `oidc: { audiences: [https://api.anthropic.com] }`",
        ),
        None => Detected::Absent,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Reissue, detection::tests};
    use super::*;

    #[test]
    fn bitbucket_step_has_one_token_or_a_hint() {
        let look = |variables: &[(&str, &str)]| tests::look(look, variables, &[], false);
        let Detected::Source(source) = look(&[("BITBUCKET_STEP_OIDC_TOKEN", "t")]) else { panic!("found") };
        assert_eq!(source.reissue(), Reissue::Limited(1));
        let Detected::Withheld { hint, .. } = look(&[("BITBUCKET_PIPELINE_UUID", "{x}")]) else { panic!("recognised") };
        assert!(hint.contains("oidc: true"), "{hint}");
        assert!(matches!(look(&[]), Detected::Absent));
    }
}
