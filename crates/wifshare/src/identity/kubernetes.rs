//! Kubernetes: a token for the Claude API that is projected into the pod. The kubelet replaces it at 80 % of its
//! lifetime.
//!
//! Source: <https://kubernetes.io/docs/tasks/configure-pod-container/configure-service-account/> ("ServiceAccount token
//! volume projection"). The path is that of the guide at
//! <https://platform.claude.com/docs/en/manage-claude/wif-providers/kubernetes>; for another path, set
//! ANTHROPIC_IDENTITY_TOKEN_FILE. The pod's default token is not used, because it is for the Kubernetes API server.

use super::{Detected, DetectionInput, IdentitySource};

pub(super) fn look(job: &DetectionInput<'_>) -> Detected {
    let volume = &job.endpoints.kubernetes_volume;
    let path = volume.join("token");
    match (job.is_chosen || job.environment.has("KUBERNETES_SERVICE_HOST"), (job.exists)(&path)) {
        (true, true) => Detected::Source(IdentitySource::File {
            path,
            hint: "the user of this container has to be able to read the projected token: set `fsGroup` in the pod's \
                   securityContext, or run as the user that the token belongs to",
        }),
        (true, false) if (job.exists)(volume) => Detected::broken(
            &format!("there is no token in {}", volume.display()),
            "the serviceAccountToken in the projected volume has to say `path: token`, \
             or ANTHROPIC_IDENTITY_TOKEN_FILE has to name the file",
        ),
        (true, false) if job.is_chosen => Detected::withheld(
            &format!("no token is projected at {}", path.display()),
            "mount a projected volume with a serviceAccountToken there (audience https://api.anthropic.com), \
             or let ANTHROPIC_IDENTITY_TOKEN_FILE name its file",
        ),
        _ => Detected::Absent,
    }
}

#[cfg(test)]
mod tests {
    use super::super::detection::tests::look;
    use super::super::{Reissue, platforms};
    use super::*;

    #[test]
    fn projected_token_is_found_at_the_documented_path() {
        let pod = [("KUBERNETES_SERVICE_HOST", "10.0.0.1")];
        let file = "/var/run/secrets/anthropic.com/token";
        let Detected::Source(source) = look(super::look, &pod, &[file], false) else { panic!("found") };
        assert_eq!(source.reissue(), Reissue::Rotated);
        let volume = "/var/run/secrets/anthropic.com";
        assert!(matches!(look(super::look, &pod, &[volume], false), Detected::Broken { .. }));
        assert!(matches!(look(super::look, &pod, &[], false), Detected::Absent), "a pod has other ways");
        assert!(matches!(look(super::look, &[], &[file], false), Detected::Absent));
        assert!(platforms().any(|name| name == "kubernetes"));
    }
}
