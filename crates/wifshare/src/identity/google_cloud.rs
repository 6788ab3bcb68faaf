//! Google Cloud: the metadata server issues a token for the attached service account, for any audience. It returns the
//! same token until that is old. The tokens have no `jti`.
//!
//! Source: <https://cloud.google.com/compute/docs/instances/verifying-instance-identity> and
//! <https://cloud.google.com/run/docs/securing/service-identity>. The variables are those of the container contract,
//! <https://cloud.google.com/run/docs/container-contract>. Virtual machines and pods of GKE have none of them, so the
//! user has to choose this source there.

use super::endpoint::on_the_link;
use super::{Answer, Detected, DetectionInput, Endpoint, IdentitySource};
use crate::secret::Secret;

/// Set in Cloud Run services and functions, Cloud Run jobs, and App Engine.
const SPEAK_FOR_IT: [&str; 3] = ["K_SERVICE", "CLOUD_RUN_JOB", "GAE_SERVICE"];

pub(super) fn look(job: &DetectionInput<'_>) -> Detected {
    if !job.is_chosen && !SPEAK_FOR_IT.iter().any(|name| job.environment.has(name)) {
        return Detected::Absent;
    }
    let url =
        format!("{}/computeMetadata/v1/instance/service-accounts/default/identity", job.endpoints.google_metadata);
    let Some(url) = on_the_link(&url, &[("audience", job.audience), ("format", "full")]) else {
        return Detected::broken("the metadata server has no usable address", "leave it where it is");
    };
    let headers = vec![("metadata-flavor", Secret::new("Google".to_owned()))];
    Detected::Source(IdentitySource::Endpoint(Endpoint {
        answer: Answer::Text,
        signature: Some(("metadata-flavor", "Google")),
        refusal_hint: "a service account has to be attached to this machine, service or pod; \
                       look at its name under Service accounts of the project",
        ..Endpoint::on_the_link("Google Cloud's metadata server", url, headers)
    }))
}

#[cfg(test)]
mod tests {
    use super::super::detection::tests;
    use super::super::{Network, Reissue};
    use super::*;

    #[test]
    fn google_metadata_is_used_on_google_cloud_or_if_chosen() {
        let look = |variables: &[(&str, &str)], is_chosen| tests::look(look, variables, &[], is_chosen);
        for name in SPEAK_FOR_IT {
            let Detected::Source(source) = look(&[(name, "x")], false) else { panic!("{name}") };
            assert_eq!(
                (source.reissue(), source.network(), source.repeats()),
                (Reissue::OnDemand, Network::LinkLocal, true)
            );
        }
        let Detected::Source(IdentitySource::Endpoint(endpoint)) = look(&[("GCE_METADATA_HOST", "evil")], true) else {
            panic!("found")
        };
        assert_eq!(
            endpoint.url,
            "http://169.254.169.254/computeMetadata/v1/instance/service-accounts/default/identity\
             ?audience=https%3A%2F%2Fapi%2Eanthropic%2Ecom&format=full"
        );
        assert!(matches!((&endpoint.answer, endpoint.signature), (Answer::Text, Some(("metadata-flavor", "Google")))));
        assert!(endpoint.refusal_hint.contains("a service account has to be attached"));
        assert!(matches!(look(&[("GCE_METADATA_HOST", "evil")], false), Detected::Absent));
    }
}
