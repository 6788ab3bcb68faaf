//! The identity endpoints of other platforms than GitHub Actions, each in its own shape: what has to be asked, with what,
//! and where the token stands in the answer. The token is always the one of the job on `octo-org/octo-repo`.

use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};

use crate::{
    Fault,
    answer::{self, Outcome},
    assertion,
    bearer::bearer,
    identity_endpoint,
    state::State,
};

/// Azure Pipelines' `SYSTEM_OIDCREQUESTURI`; asked by POST with the request token.
pub(crate) const AZURE_PIPELINES: &str = "/azure-pipelines/oidctoken";
/// Google Cloud's metadata server.
pub(crate) const GOOGLE_CLOUD: &str = "/computeMetadata/v1/instance/service-accounts/default/identity";
/// Azure's instance metadata service.
pub(crate) const AZURE_VM: &str = "/metadata/identity/oauth2/token";
/// App Service's `IDENTITY_ENDPOINT`; `IDENTITY_HEADER` is the request token.
pub(crate) const AZURE_APP_SERVICE: &str = "/msi/token";
/// What stands in for `AZURE_AUTHORITY_HOST`; behind it come the tenant and [`ENTRA_TOKEN`].
pub(crate) const ENTRA: &str = "/entra/";
/// Entra's token endpoint, below the authority and the tenant.
pub(crate) const ENTRA_TOKEN: &str = "/oauth2/v2.0/token";

/// Who vouches for a token asks for `api://AzureADTokenExchange` of Azure Pipelines; here it is the rule's audience, so
/// that one rule fits all.
pub(crate) async fn azure_pipelines(state: &State, headers: &HeaderMap, query: &str) -> Outcome {
    if bearer(headers) != Some(&state.request_token) {
        return refused(
            state,
            StatusCode::UNAUTHORIZED,
            json!({"$id": "1", "message": "TF400813: The user is not authorized to access this resource."}),
        );
    }
    if parameter(query, "api-version").as_deref() != Some("7.1") {
        return refused(
            state,
            StatusCode::BAD_REQUEST,
            json!({"$id": "1", "message": "No api-version was supplied for the request."}),
        );
    }
    let (token, fault) = identity_endpoint::issue(state, &state.settings().rule.audience, "");
    fault.spoil(json!({"oidcToken": token})).await
}

/// Only who sends the header is answered, so that a browser cannot be led here; every answer bears it too.
pub(crate) async fn google_cloud(state: &State, headers: &HeaderMap, query: &str) -> Outcome {
    if headers.get("metadata-flavor").is_none_or(|value| value != "Google") || headers.contains_key("x-forwarded-for") {
        return refused(state, StatusCode::FORBIDDEN, json!({"error": "Missing Metadata-Flavor:Google header."}));
    }
    let Some(audience) = parameter(query, "audience") else {
        return refused(state, StatusCode::BAD_REQUEST, json!({"error": "non-empty audience parameter required"}));
    };
    let (token, fault) = identity_endpoint::issue(state, &audience, "");
    let mut response = match (fault, token) {
        (Fault::None, Value::String(token)) => answer::plain(StatusCode::OK, token),
        // An error of the metadata server is signed as well.
        (Fault::Status { status: 404, .. }, _) => {
            answer::plain(StatusCode::NOT_FOUND, "No service account is attached.".to_owned())
        }
        (fault, token) => fault.spoil(token).await?,
    };
    response.headers_mut().insert("metadata-flavor", HeaderValue::from_static("Google"));
    Ok(response)
}

/// A managed identity's token by the metadata service of a virtual machine.
pub(crate) async fn azure_vm(state: &State, headers: &HeaderMap, query: &str) -> Outcome {
    if headers.get("metadata").is_none_or(|value| value != "true") || headers.contains_key("x-forwarded-for") {
        return refused(
            state,
            StatusCode::BAD_REQUEST,
            invalid("invalid_request", "Required metadata header not specified"),
        );
    }
    managed_identity(state, query, "2018-02-01").await
}

/// The same by App Service.
pub(crate) async fn azure_app_service(state: &State, headers: &HeaderMap, query: &str) -> Outcome {
    if headers.get("x-identity-header").is_none_or(|value| value != state.request_token.as_str()) {
        return refused(
            state,
            StatusCode::UNAUTHORIZED,
            invalid("invalid_request", "The identity header is missing or wrong"),
        );
    }
    managed_identity(state, query, "2019-08-01").await
}

/// Entra's token endpoint: a token of the cluster speaks for an application (RFC 7523 §2.2).
pub(crate) async fn entra(state: &State, body: &[u8]) -> Outcome {
    let field = |name: &str| parameter(std::str::from_utf8(body).unwrap_or_default(), name).unwrap_or_default();
    let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
    if field("grant_type") != "client_credentials"
        || field("client_assertion_type") != kind
        || field("client_id").is_empty()
    {
        return refused(
            state,
            StatusCode::BAD_REQUEST,
            invalid("invalid_request", "AADSTS900144: The request body must contain all parameters."),
        );
    }
    if assertion::verify(&field("client_assertion")).is_err() {
        return refused(
            state,
            StatusCode::UNAUTHORIZED,
            invalid(
                "invalid_client",
                "AADSTS700213: No matching federated identity record found for presented assertion.",
            ),
        );
    }
    let audience = state.settings().rule.audience;
    if field("scope") != format!("{audience}/.default") {
        return refused(
            state,
            StatusCode::BAD_REQUEST,
            invalid("invalid_resource", "AADSTS500011: The resource principal was not found in the tenant."),
        );
    }
    let (token, fault) = identity_endpoint::issue(state, &audience, "");
    fault
        .spoil(json!({"token_type": "Bearer", "expires_in": 3599, "ext_expires_in": 3599, "access_token": token}))
        .await
}

async fn managed_identity(state: &State, query: &str, version: &str) -> Outcome {
    if parameter(query, "api-version").as_deref() != Some(version) {
        return refused(
            state,
            StatusCode::BAD_REQUEST,
            invalid("invalid_request", "The api-version is missing or not known"),
        );
    }
    let resource = parameter(query, "resource").unwrap_or_default();
    if resource != state.settings().rule.audience {
        return refused(
            state,
            StatusCode::BAD_REQUEST,
            invalid("invalid_resource", "AADSTS500011: The resource principal was not found in the tenant."),
        );
    }
    let (token, fault) = identity_endpoint::issue(state, &resource, "");
    let answer = json!({
        "access_token": token,
        "client_id": parameter(query, "client_id").unwrap_or_else(|| "00000000-0000-4000-8000-00000000c11e".to_owned()),
        "expires_in": "86399",
        "resource": resource,
        "token_type": "Bearer",
    });
    fault.spoil(answer).await
}

fn refused(state: &State, status: StatusCode, body: Value) -> Outcome {
    state.ledger().counters.identity_tokens_refused += 1;
    Ok(answer::json(status, &body))
}

fn invalid(error: &str, description: &str) -> Value {
    json!({"error": error, "error_description": description})
}

fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(found, value)| found == name && !value.is_empty()).map(|(_, value)| value.into_owned())
}
