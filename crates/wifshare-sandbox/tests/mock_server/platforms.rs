//! Identity endpoints of other platforms: a documented request, and a refused one.

use wifshare_sandbox::{Fault, Sandbox, Settings};

use crate::client::{exchange, get, header_and_claims, post};

const AUDIENCE: &str = "https%3A%2F%2Fapi.anthropic.com";

fn exchanged(sandbox: &Sandbox, token: &str) {
    assert_eq!(exchange(sandbox, token).unwrap().status, 200);
    let [_, claims] = header_and_claims(token);
    assert_eq!(claims["aud"], "https://api.anthropic.com");
}

#[test]
fn azure_pipelines_requires_post_and_request_token() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let url = format!("{}/azure-pipelines/oidctoken?api-version=7.1&serviceConnectionId=x", sandbox.base_url());
    let bearer = format!("Bearer {}", sandbox.identity_token_request_token());
    let answer = post(&url, &[("authorization", &bearer)], "").unwrap();
    exchanged(&sandbox, answer.json()["oidcToken"].as_str().unwrap());
    assert_eq!(post(&url, &[("authorization", "Bearer of-another-job")], "").unwrap().status, 401);
    assert_eq!(get(&url, &[("authorization", &bearer)]).unwrap().status, 404, "nobody gets it by GET");
    let without_a_version = url.replace("api-version=7.1", "v=1");
    assert_eq!(post(&without_a_version, &[("authorization", &bearer)], "").unwrap().status, 400);
}

#[test]
fn google_metadata_server_requires_and_returns_its_header() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let url = format!("{}/computeMetadata/v1/instance/service-accounts/default/identity", sandbox.base_url());
    let flavour = ("metadata-flavor", "Google");
    let answer = get(&format!("{url}?audience={AUDIENCE}&format=full"), &[flavour]).unwrap();
    assert_eq!((answer.status, answer.header("metadata-flavor")), (200, "Google"));
    exchanged(&sandbox, &answer.body);
    assert_eq!(get(&format!("{url}?audience={AUDIENCE}"), &[]).unwrap().status, 403);
    assert_eq!(
        get(&format!("{url}?audience={AUDIENCE}"), &[flavour, ("x-forwarded-for", "1.2.3.4")]).unwrap().status,
        403
    );
    assert_eq!(get(&url, &[flavour]).unwrap().status, 400, "an audience is needed");
}

#[test]
fn managed_identity_requires_header_version_and_resource() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let secret = sandbox.identity_token_request_token();
    for (path, header, version) in [
        ("/metadata/identity/oauth2/token", ("metadata", "true"), "2018-02-01"),
        ("/msi/token", ("x-identity-header", secret.as_str()), "2019-08-01"),
    ] {
        let url = format!("{}{path}?api-version={version}&resource={AUDIENCE}", sandbox.base_url());
        let answer = get(&url, &[header]).unwrap();
        assert_eq!(answer.json()["token_type"], "Bearer", "{path}");
        exchanged(&sandbox, answer.json()["access_token"].as_str().unwrap());
        assert!(matches!(get(&url, &[]).unwrap().status, 400 | 401), "{path} without its header");
        assert_eq!(get(&url.replace(version, "2000-01-01"), &[header]).unwrap().status, 400);
        let unknown = get(&url.replace(AUDIENCE, "api%3A%2F%2Felsewhere"), &[header]).unwrap();
        assert_eq!((unknown.status, &unknown.json()["error"]), (400, &"invalid_resource".into()));
    }
}

#[test]
fn entra_exchanges_cluster_token_for_application_token() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let url = format!("{}/entra/7e4a/oauth2/v2.0/token", sandbox.base_url());
    let ask = |assertion: &str, scope: &str| {
        let body = format!(
            "grant_type=client_credentials&client_id=c11e&client_assertion={assertion}&scope={scope}\
             &client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer"
        );
        post(&url, &[("content-type", "application/x-www-form-urlencoded")], &body).unwrap()
    };
    let scope = format!("{AUDIENCE}%2F.default");
    let answer = ask(&sandbox.issue_identity_token(), &scope);
    exchanged(&sandbox, answer.json()["access_token"].as_str().unwrap());
    assert_eq!(ask("e30.e30.YQ", &scope).status, 401);
    assert_eq!(ask(&sandbox.issue_identity_token(), "api%3A%2F%2Felsewhere%2F.default").status, 400);
}

#[test]
fn platforms_share_one_fault_script() {
    let faults = vec![Fault::DuplicateIdentityToken, Fault::Status { status: 503, retry_after_s: None, commit: false }];
    let sandbox = Sandbox::start(Settings { identity_token_faults: faults, ..Settings::default() }).unwrap();
    let first = sandbox.issue_identity_token();
    let url = format!(
        "{}/computeMetadata/v1/instance/service-accounts/default/identity?audience={AUDIENCE}",
        sandbox.base_url()
    );
    assert_eq!(get(&url, &[("metadata-flavor", "Google")]).unwrap().body, first);
    assert_eq!(get(&url, &[("metadata-flavor", "Google")]).unwrap().status, 503);
}
