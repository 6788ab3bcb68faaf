//! Buildkite: the program `buildkite-agent` issues a new token for any audience on each request.
//!
//! Source: <https://buildkite.com/docs/agent/v3/cli-oidc> and <https://buildkite.com/docs/pipelines/security/oidc>.

use super::{Answer, Detected, DetectionInput, IdentityCommand, IdentitySource};

pub(super) const VARIABLES: [&str; 1] = ["BUILDKITE_AGENT_ACCESS_TOKEN"];

pub(super) fn look(job: &DetectionInput<'_>) -> Detected {
    if !job.is_chosen && !job.says_yes("BUILDKITE") {
        return Detected::Absent;
    }
    if !job.environment.has(VARIABLES[0]) || !job.environment.has("BUILDKITE_JOB_ID") {
        return Detected::broken(
            "BUILDKITE_JOB_ID and BUILDKITE_AGENT_ACCESS_TOKEN are not both set, and buildkite-agent asks with them",
            "let both reach this process; a container of the docker plugin has them with `mount-buildkite-agent: true`",
        );
    }
    // The agent sets this variable to the directory of its program.
    let beside = job
        .environment
        .os("BUILDKITE_BIN_PATH")
        .map(|directory| std::path::Path::new(directory).join("buildkite-agent"));
    let beside = beside.filter(|program| program.is_absolute() && (job.exists)(program));
    let Some(program) = job.program("buildkite-agent").or(beside) else {
        return Detected::broken(
            "this is a Buildkite job, and there is no buildkite-agent on PATH to ask for an identity token",
            "let the agent's program reach this process; a container of the docker plugin has it with `mount-buildkite-agent: true`",
        );
    };
    Detected::Source(IdentitySource::Command(IdentityCommand {
        platform: Some("Buildkite"),
        argv: vec![program.into(), "oidc".into(), "request-token".into(), "--audience".into(), job.audience.into()],
        environment: job.environment.clone(),
        answer: Answer::Text,
        repeats: false,
        variables: &VARIABLES,
        told_apart_by: &[],
        failure_hint: "what buildkite-agent said stands above; it asks Buildkite with BUILDKITE_AGENT_ACCESS_TOKEN, which ends \
                       with the job",
    }))
}

#[cfg(test)]
mod tests {
    use super::super::detection::tests;
    use super::*;

    const JOB: [(&str, &str); 4] = [
        ("BUILDKITE", "true"),
        ("BUILDKITE_JOB_ID", "1"),
        ("BUILDKITE_AGENT_ACCESS_TOKEN", "t"),
        ("BUILDKITE_BIN_PATH", "/opt/buildkite"),
    ];

    #[test]
    fn buildkite_agent_is_run_with_our_audience() {
        let agent = "/opt/buildkite/buildkite-agent";
        let Detected::Source(IdentitySource::Command(program)) = tests::look(look, &JOB, &[agent], false) else {
            panic!("found")
        };
        assert_eq!(program.argv, [agent, "oidc", "request-token", "--audience", "https://api.anthropic.com"]);
        assert!(matches!(tests::look(look, &JOB, &[], false), Detected::Broken { .. }));
        for half in [[JOB[0], JOB[1], JOB[3]], [JOB[0], JOB[2], JOB[3]]] {
            assert!(matches!(tests::look(look, &half, &[agent], false), Detected::Broken { .. }), "{half:?}");
        }
        assert!(matches!(tests::look(look, &JOB[1..], &[agent], false), Detected::Absent));
    }
}
