//! SPIFFE: the Workload API issues a JWT-SVID to a workload. This uses SPIRE's program `spire-agent`.
//!
//! The crate `spiffe` uses the Workload API directly and is well maintained, but it needs gRPC (tonic, prost, h2),
//! which nothing else in wifshare uses. If there is only the socket without the program, SPIFFE's helper
//! (<https://github.com/spiffe/spiffe-helper>) writes the token to a file for ANTHROPIC_IDENTITY_TOKEN_FILE.
//!
//! Source: <https://spiffe.io/docs/latest/spire-about/spire-concepts/>,
//! <https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md>, and
//! <https://platform.claude.com/docs/en/manage-claude/wif-providers/spiffe>. The agent returns the same token until
//! half of its lifetime is over.

use super::{Answer, Detected, DetectionInput, IdentityCommand, IdentitySource};

const VARIABLES: [&str; 1] = ["SPIFFE_ENDPOINT_SOCKET"];

pub(super) fn look(job: &DetectionInput<'_>) -> Detected {
    let Some(socket) = job.environment.text(VARIABLES[0]) else {
        return match job.is_chosen {
            true => Detected::withheld(
                "SPIFFE_ENDPOINT_SOCKET is not set, where a workload finds its Workload API",
                "set it to the agent's socket, unix:///…, as the SPIFFE CSI driver mounts it",
            ),
            false => Detected::Absent,
        };
    };
    // The Workload API can also have a TCP address, which `spire-agent` does not support.
    let path = socket.strip_prefix("unix:").map(|path| path.strip_prefix("//").unwrap_or(path));
    let Some(path) = path.filter(|path| path.starts_with('/')) else {
        return Detected::broken(
            "SPIFFE_ENDPOINT_SOCKET does not name a socket, unix:///…",
            "set it to the agent's socket; for another way to a token there is ANTHROPIC_IDENTITY_TOKEN_FILE",
        );
    };
    let Some(program) = job.program("spire-agent") else {
        return Detected::broken(
            "SPIFFE_ENDPOINT_SOCKET is set, and there is no spire-agent on PATH to ask the Workload API",
            "put SPIRE's program there, or let spiffe-helper write the token into a file and ANTHROPIC_IDENTITY_TOKEN_FILE name it",
        );
    };
    let arguments = ["api", "fetch", "jwt", "-audience", job.audience, "-socketPath", path, "-output", "json"];
    Detected::Source(IdentitySource::Command(IdentityCommand {
        platform: Some("the SPIFFE Workload API"),
        argv: std::iter::once(program.into()).chain(arguments.map(Into::into)).collect(),
        environment: job.environment.clone(),
        answer: Answer::Json("/0/svids/0/svid"),
        repeats: true,
        variables: &VARIABLES,
        told_apart_by: &[],
        failure_hint: "what spire-agent said stands above; the workload needs a registration entry, and the socket has to be one \
                       that this user can open",
    }))
}

#[cfg(test)]
mod tests {
    use super::super::detection::tests;
    use super::*;

    #[test]
    fn spire_agent_is_run_with_its_socket() {
        let look = |socket: &str, files: &[&str]| {
            tests::look(look, &[("PATH", "/opt/spire/bin"), ("SPIFFE_ENDPOINT_SOCKET", socket)], files, false)
        };
        let agent = "/opt/spire/bin/spire-agent";
        for socket in ["unix:///run/spire.sock", "unix:/run/spire.sock"] {
            let Detected::Source(IdentitySource::Command(program)) = look(socket, &[agent]) else { panic!("{socket}") };
            assert!(program.argv.iter().any(|word| word == "/run/spire.sock"));
        }
        for socket in ["tcp://127.0.0.1:8000", "unix:run/spire.sock", "/run/spire.sock"] {
            assert!(matches!(look(socket, &[agent]), Detected::Broken { .. }), "{socket}");
        }
        assert!(matches!(look("unix:///run/spire.sock", &[]), Detected::Broken { .. }));
        assert!(matches!(look(" ", &[agent]), Detected::Absent));
    }
}
