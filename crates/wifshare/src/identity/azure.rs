//! Microsoft Entra: the token of a managed identity from App Service or a virtual machine's metadata service, and the
//! two steps of workload identity in AKS. The audience must be set to the id of an app registration, `api://…`.
//!
//! Source: <https://learn.microsoft.com/azure/app-service/overview-managed-identity> (also for Functions and Container
//! Apps), <https://learn.microsoft.com/entra/identity/managed-identities-azure-resources/how-to-use-vm-token>,
//! <https://azure.github.io/azure-workload-identity/docs/>, and, for the requirements of the Claude API,
//! <https://platform.claude.com/docs/en/manage-claude/wif-providers/azure>. Entra's tokens have no `jti`, and both
//! metadata services return the same token until it is old, for up to a day.

use super::endpoint::{on_the_link, with_parameters};
use super::{Answer, Detected, DetectionInput, Endpoint, IdentitySource, Question};
use crate::secret::Secret;

const OF_APP_SERVICE: [&str; 4] = ["IDENTITY_HEADER", "IDENTITY_ENDPOINT", "MSI_SECRET", "MSI_ENDPOINT"];
const OF_WORKLOAD_IDENTITY: [&str; 1] = ["AZURE_FEDERATED_TOKEN_FILE"];

const AUDIENCE: &str = "ANTHROPIC_OIDC_AUDIENCE (--audience) has to be the application id URI of an app registration of this \
                        tenant, api://…, and the identity has to exist; AZURE_CLIENT_ID chooses among several";

/// App Service, Functions and Container Apps: an endpoint on the machine, and a secret to use it.
pub(super) fn look_for_app_service(job: &DetectionInput<'_>) -> Detected {
    let secret = job.environment.text("IDENTITY_HEADER");
    match (job.environment.text("IDENTITY_ENDPOINT"), secret) {
        (Some(url), Some(secret)) => {
            let parameters = with_client(job, vec![("api-version", "2019-08-01"), ("resource", job.audience)]);
            let Some(url) = on_the_link(url, &parameters) else {
                return Detected::broken(
                    "IDENTITY_ENDPOINT is not an address of this machine",
                    "leave the variable as the platform sets it",
                );
            };
            let headers = vec![("x-identity-header", Secret::new(secret.to_owned()))];
            Detected::Source(IdentitySource::Endpoint(Endpoint {
                variables: &OF_APP_SERVICE,
                refusal_hint: AUDIENCE,
                ..Endpoint::on_the_link("Azure App Service", url, headers)
            }))
        }
        (Some(_), None) => Detected::broken(
            "IDENTITY_ENDPOINT is set and IDENTITY_HEADER is not",
            "both have to reach this process; Azure Arc and Service Fabric, which set one of them, are not supported",
        ),
        (None, Some(_)) => Detected::broken(
            "IDENTITY_HEADER is set and IDENTITY_ENDPOINT is not",
            "both have to reach this process; look for a container that passes on only one",
        ),
        (None, None) if job.is_chosen => Detected::withheld(
            "this is no App Service, Function or Container App with a managed identity",
            "assign it a managed identity; for a virtual machine there is --identity-source azure-vm",
        ),
        (None, None) => Detected::Absent,
    }
}

/// The metadata service of a virtual machine. No variable indicates it.
pub(super) fn look_for_vm(job: &DetectionInput<'_>) -> Detected {
    if !job.is_chosen {
        return Detected::Absent;
    }
    let url = format!("{}/metadata/identity/oauth2/token", job.endpoints.azure_metadata);
    let parameters = with_client(job, vec![("api-version", "2018-02-01"), ("resource", job.audience)]);
    let Some(url) = on_the_link(&url, &parameters) else {
        return Detected::broken("the metadata service has no usable address", "leave it where it is");
    };
    let headers = vec![("metadata", Secret::new("true".to_owned()))];
    Detected::Source(IdentitySource::Endpoint(Endpoint {
        refusal_hint: AUDIENCE,
        ..Endpoint::on_the_link("Azure's metadata service", url, headers)
    }))
}

/// AKS: exchanges the token that Kubernetes projected, as the assertion of an application, for a token of Entra.
pub(super) fn look_for_workload_identity(job: &DetectionInput<'_>) -> Detected {
    const NEEDED: [&str; 2] = ["AZURE_CLIENT_ID", "AZURE_TENANT_ID"];
    const CURE: &str = "the pod needs the label `azure.workload.identity/use: \"true\"`, and its service account the annotation \
                        `azure.workload.identity/client-id`";
    let Some(file) = job.environment.os("AZURE_FEDERATED_TOKEN_FILE") else {
        return match job.is_chosen {
            true => Detected::withheld(
                "AZURE_FEDERATED_TOKEN_FILE is not set, as it is in a pod with workload identity",
                CURE,
            ),
            false => Detected::Absent,
        };
    };
    if let Some(missing) = NEEDED.iter().find(|name| !job.environment.has(name)) {
        return Detected::broken(&format!("AZURE_FEDERATED_TOKEN_FILE is set and {missing} is not"), CURE);
    }
    let [client_id, tenant] = NEEDED.map(|name| job.environment.text(name).unwrap_or_default());
    let authority = job.environment.text("AZURE_AUTHORITY_HOST").unwrap_or("https://login.microsoftonline.com");
    let is_name = |text: &str| text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    let url = format!("{}/{tenant}/oauth2/v2.0/token", authority.trim_end_matches('/'));
    let Some(url) = with_parameters(&url, &[]).filter(|_| is_name(tenant)) else {
        return Detected::broken(
            "AZURE_AUTHORITY_HOST and AZURE_TENANT_ID make no URL that can be asked",
            "leave both as the workload identity webhook sets them",
        );
    };
    Detected::Source(IdentitySource::Endpoint(Endpoint {
        platform: "Microsoft Entra (AKS workload identity)",
        url,
        question: Question::ClientAssertion {
            file: file.into(),
            client_id: client_id.to_owned(),
            scope: format!("{}/.default", job.audience),
        },
        headers: Vec::new(),
        answer: Answer::Json("/access_token"),
        signature: None,
        network: super::Network::Routed,
        named_by: super::NamedBy::Nothing,
        repeats: true,
        ends_at: None,
        end: None,
        variables: &OF_WORKLOAD_IDENTITY,
        refusal_hint: "ANTHROPIC_OIDC_AUDIENCE (--audience) has to be the application id URI of an app registration of this \
                       tenant, api://…; the managed identity needs a federated credential for this service account",
        forbidden_hint: "",
    }))
}

fn with_client<'a>(job: &DetectionInput<'a>, mut parameters: Vec<(&'a str, &'a str)>) -> Vec<(&'a str, &'a str)> {
    parameters.extend(job.environment.text("AZURE_CLIENT_ID").map(|id| ("client_id", id)));
    parameters
}

#[cfg(test)]
mod tests {
    use super::super::detection::tests::look;
    use super::*;

    fn endpoint(detected: Detected) -> Endpoint {
        let Detected::Source(IdentitySource::Endpoint(endpoint)) = detected else { panic!("{detected:?}") };
        endpoint
    }

    #[test]
    fn app_service_endpoint_must_be_on_this_machine() {
        let at =
            |url: &str| look(look_for_app_service, &[("IDENTITY_ENDPOINT", url), ("IDENTITY_HEADER", "s")], &[], false);
        let found = endpoint(at("http://169.254.130.3:8081/msi/token"));
        assert_eq!(found.url.query(), Some("api-version=2019%2D08%2D01&resource=https%3A%2F%2Fapi%2Eanthropic%2Ecom"));
        assert_eq!((found.variables, found.refusal_hint), (&OF_APP_SERVICE[..], AUDIENCE));
        assert!(matches!(at("http://evil.example/msi/token"), Detected::Broken { .. }));
        let half = [("IDENTITY_ENDPOINT", "http://localhost/x")];
        assert!(matches!(look(look_for_app_service, &half, &[], false), Detected::Broken { .. }));
        assert!(matches!(look(look_for_app_service, &[], &[], false), Detected::Absent));
    }

    #[test]
    fn azure_vm_is_used_only_if_chosen() {
        assert!(matches!(look(look_for_vm, &[], &[], false), Detected::Absent));
        let found = endpoint(look(look_for_vm, &[("AZURE_CLIENT_ID", "c-1")], &[], true));
        assert_eq!(found.url.host(), Some("169.254.169.254"));
        assert_eq!(found.refusal_hint, AUDIENCE);
        assert!(found.url.query().unwrap().ends_with("&client_id=c%2D1"));
    }

    #[test]
    fn aks_token_is_exchanged_for_the_application() {
        let pod = [("AZURE_FEDERATED_TOKEN_FILE", "/t"), ("AZURE_CLIENT_ID", "c"), ("AZURE_TENANT_ID", "d-1")];
        let found = endpoint(look(look_for_workload_identity, &pod, &[], false));
        assert_eq!(found.url, "https://login.microsoftonline.com/d-1/oauth2/v2.0/token");
        let Question::ClientAssertion { scope, .. } = found.question else { panic!("an assertion") };
        assert_eq!(scope, "https://api.anthropic.com/.default");
        let another = [pod[0], ("AZURE_CLIENT_ID", "c-2"), pod[2]];
        let another = endpoint(look(look_for_workload_identity, &another, &[], false));
        assert_ne!(another.identity(), endpoint(look(look_for_workload_identity, &pod, &[], false)).identity());
        assert!(matches!(look(look_for_workload_identity, &pod[..2], &[], false), Detected::Broken { .. }));
        let odd = [pod[0], pod[1], ("AZURE_TENANT_ID", "../x")];
        assert!(matches!(look(look_for_workload_identity, &odd, &[], false), Detected::Broken { .. }));
        let clear = [pod[0], pod[1], pod[2], ("AZURE_AUTHORITY_HOST", "http://evil.example/")];
        assert!(matches!(look(look_for_workload_identity, &clear, &[], false), Detected::Broken { .. }));
    }
}
