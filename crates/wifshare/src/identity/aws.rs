//! AWS: STS issues a new token for the calling role, for any audience, on each request.
//!
//! This uses the AWS CLI and not the AWS SDK. The CLI supports all forms of AWS credentials (container, instance, web
//! identity, SSO), and is installed in CodeBuild and in most CI images. The SDK would more than double the dependencies
//! of wifshare, and add a second HTTP client with other proxy settings.
//!
//! Source: <https://docs.aws.amazon.com/cli/latest/reference/sts/get-web-identity-token.html>,
//! <https://docs.aws.amazon.com/STS/latest/APIReference/API_GetWebIdentityToken.html> (only regional endpoints support
//! it), and <https://platform.claude.com/docs/en/manage-claude/wif-providers/aws>.

use super::{Answer, Detected, DetectionInput, IdentityCommand, IdentitySource};

/// Set in CodeBuild, and in Lambda, ECS and CloudShell.
const SPEAK_FOR_IT: [&str; 2] = ["CODEBUILD_BUILD_ARN", "AWS_EXECUTION_ENV"];

/// The CLI's own credentials, <https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html>.
const VARIABLES: [&str; 9] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_PROFILE",
];

/// The variables that identify the role. Another role has another subject, and so another credential.
const TOLD_APART_BY: [&str; 5] = [
    "AWS_PROFILE",
    "AWS_ROLE_ARN",
    "AWS_ACCESS_KEY_ID",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

pub(super) fn look(job: &DetectionInput<'_>) -> Detected {
    let speaks = SPEAK_FOR_IT.iter().find(|name| job.environment.has(name));
    if !job.is_chosen && speaks.is_none() {
        return Detected::Absent;
    }
    let Some(program) = job.program("aws") else {
        return Detected::broken(
            "there is no AWS CLI on PATH to ask STS for an identity token",
            "install an AWS CLI that knows `aws sts get-web-identity-token`; it is asked with this job's own AWS credentials",
        );
    };
    let mut environment = job.environment.clone();
    // The global endpoint does not support this call, but version 1 of the CLI uses it by default.
    environment.set("AWS_STS_REGIONAL_ENDPOINTS", "regional");
    environment.set("AWS_PAGER", "");
    let audience = job.audience;
    let arguments = [
        "sts",
        "get-web-identity-token",
        "--audience",
        audience,
        "--signing-algorithm",
        "RS256",
        "--duration-seconds",
        "900",
        "--output",
        "json",
    ];
    Detected::Source(IdentitySource::Command(IdentityCommand {
        platform: Some("AWS STS"),
        argv: std::iter::once(program.into()).chain(arguments.map(Into::into)).collect(),
        environment,
        answer: Answer::Json("/WebIdentityToken"),
        repeats: false,
        variables: &VARIABLES,
        told_apart_by: &TOLD_APART_BY,
        failure_hint: "what the AWS CLI said stands above; the account needs outbound web identity federation, the role the \
                       action sts:GetWebIdentityToken, and the CLI a version that knows the command and a region (AWS_REGION)",
    }))
}

#[cfg(test)]
mod tests {
    use super::super::detection::tests;
    use super::*;

    #[test]
    fn aws_cli_is_used_on_aws_or_if_chosen() {
        let look =
            |variables: &[(&str, &str)], files: &[&str], is_chosen| tests::look(look, variables, files, is_chosen);
        let path = ("PATH", "/usr/bin");
        let build = [path, ("CODEBUILD_BUILD_ARN", "arn:aws:codebuild:x")];
        let Detected::Source(IdentitySource::Command(program)) = look(&build, &["/usr/bin/aws"], false) else {
            panic!("found")
        };
        assert_eq!(program.argv[0], "/usr/bin/aws");
        assert_eq!(program.environment.text("AWS_STS_REGIONAL_ENDPOINTS"), Some("regional"));
        assert!(matches!(look(&build, &[], false), Detected::Broken { .. }));
        let identity = |profile| match look(&[path, ("AWS_PROFILE", profile)], &["/usr/bin/aws"], true) {
            Detected::Source(source) => source.identity(),
            other => panic!("{other:?}"),
        };
        assert_ne!(identity("review"), identity("release"), "another role is another identity");
        let keys = [path, ("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "y")];
        assert!(matches!(look(&keys, &["/usr/bin/aws"], false), Detected::Absent), "keys alone do not start a program");
        assert!(matches!(look(&keys, &["/usr/bin/aws"], true), Detected::Source(_)));
    }
}
