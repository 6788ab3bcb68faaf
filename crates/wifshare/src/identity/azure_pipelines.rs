//! Azure Pipelines: an endpoint that issues a new token for each request. Its audience is always
//! `api://AzureADTokenExchange`.
//!
//! Source: <https://learn.microsoft.com/rest/api/azure/devops/distributedtask/oidctoken/create>. The variables, and the
//! header that prevents a sign-in page, are those of Microsoft's `AzurePipelinesCredential`,
//! <https://learn.microsoft.com/python/api/azure-identity/azure.identity.azurepipelinescredential>. Tasks that sign in
//! to Azure set AZURESUBSCRIPTION_SERVICE_CONNECTION_ID to their service connection. Without one, the subject is the
//! pipeline.

use super::endpoint::with_parameters;
use super::{Answer, Detected, DetectionInput, Endpoint, IdentitySource, Question};
use crate::secret::Secret;

pub(super) const VARIABLES: [&str; 2] = ["SYSTEM_ACCESSTOKEN", "SYSTEM_OIDCREQUESTURI"];

pub(super) fn look(job: &DetectionInput<'_>) -> Detected {
    if !job.is_chosen && !job.says_yes("TF_BUILD") && !job.environment.has("SYSTEM_OIDCREQUESTURI") {
        return Detected::Absent;
    }
    let Some(url) = job.environment.text("SYSTEM_OIDCREQUESTURI") else {
        return Detected::withheld(
            "SYSTEM_OIDCREQUESTURI is not set, where a job of Azure Pipelines asks for identity tokens",
            "the agent sets it in jobs of Azure DevOps Services; look for a container that does not pass it on",
        );
    };
    let Some(bearer) = job.environment.text("SYSTEM_ACCESSTOKEN") else {
        return Detected::broken(
            "SYSTEM_ACCESSTOKEN is not set, and Azure Pipelines issues identity tokens to whoever holds it",
            "add `env: { SYSTEM_ACCESSTOKEN: $(System.AccessToken) }` to the step",
        );
    };
    let connection = job.environment.text("AZURESUBSCRIPTION_SERVICE_CONNECTION_ID");
    let parameters = [Some(("api-version", "7.1")), connection.map(|id| ("serviceConnectionId", id))];
    let parameters: Vec<_> = parameters.into_iter().flatten().collect();
    let Some(url) = with_parameters(url, &parameters) else {
        return Detected::broken(
            "SYSTEM_OIDCREQUESTURI is not a URL that can be asked",
            "leave the variable as the agent sets it; it has to be https",
        );
    };
    let mut endpoint = Endpoint {
        question: Question::Post,
        answer: Answer::Json("/oidcToken"),
        variables: &VARIABLES,
        refusal_hint: "SYSTEM_ACCESSTOKEN is good for this job alone; a service connection (AZURESUBSCRIPTION_SERVICE_CONNECTION_ID) \
                       has to be of the federated kind, and the pipeline has to be allowed to use it",
        ..Endpoint::with_bearer("Azure Pipelines", url, bearer)
    };
    endpoint.headers.push(("x-tfs-fedauthredirect", Secret::new("Suppress".to_owned())));
    Detected::Source(IdentitySource::Endpoint(endpoint))
}

#[cfg(test)]
mod tests {
    use super::super::detection::tests;
    use super::*;

    const JOB: [(&str, &str); 3] = [
        ("TF_BUILD", "True"),
        (
            "SYSTEM_OIDCREQUESTURI",
            "https://dev.azure.com/o/p/_apis/distributedtask/hubs/build/plans/x/jobs/y/oidctoken",
        ),
        ("SYSTEM_ACCESSTOKEN", "t"),
    ];

    #[test]
    fn azure_pipelines_is_posted_with_or_without_connection() {
        let look = |variables: &[(&str, &str)]| tests::look(look, variables, &[], false);
        let Detected::Source(IdentitySource::Endpoint(endpoint)) = look(&JOB) else { panic!("found") };
        assert_eq!(endpoint.url.query(), Some("api-version=7%2E1"));
        assert!(matches!((&endpoint.question, &endpoint.answer), (Question::Post, Answer::Json("/oidcToken"))));
        assert_eq!(endpoint.variables, VARIABLES);
        assert!(endpoint.refusal_hint.contains("SYSTEM_ACCESSTOKEN"));
        let connection = ("AZURESUBSCRIPTION_SERVICE_CONNECTION_ID", "6a-1");
        let Detected::Source(IdentitySource::Endpoint(endpoint)) = look(&[JOB[1], JOB[2], connection]) else {
            panic!("found")
        };
        assert_eq!(endpoint.url.query(), Some("api-version=7%2E1&serviceConnectionId=6a%2D1"));
        assert!(matches!(look(&JOB[..2]), Detected::Broken { .. }), "the token has to be mapped");
        assert!(matches!(look(&JOB[..1]), Detected::Withheld { .. }));
        assert!(matches!(look(&JOB[2..]), Detected::Absent));
        let clear = ("SYSTEM_OIDCREQUESTURI", "http://dev.azure.com/x");
        assert!(matches!(look(&[clear, JOB[2]]), Detected::Broken { .. }));
    }
}
