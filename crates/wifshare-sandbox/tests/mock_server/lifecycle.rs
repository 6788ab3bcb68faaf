//! Start, stop, and many connections at once.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
};

use wifshare_sandbox::{Sandbox, Settings};

use crate::client::{access_token, exchange, identity_token};

fn address(sandbox: &Sandbox) -> SocketAddr {
    sandbox.base_url().strip_prefix("http://").unwrap().parse().unwrap()
}

#[test]
fn server_listens_on_loopback_only() {
    for elsewhere in ["0.0.0.0:0", "192.0.2.1:0", "[::]:0"] {
        let error = Sandbox::start_at(elsewhere.parse().unwrap(), Settings::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{elsewhere}");
    }
}

#[test]
fn drop_stops_server_and_frees_port() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let address = address(&sandbox);
    let mut idle = TcpStream::connect(address).unwrap();
    assert_eq!(Sandbox::start_at(address, Settings::default()).unwrap_err().kind(), ErrorKind::AddrInUse);
    drop(sandbox);
    assert!(TcpStream::connect(address).is_err());
    assert!(matches!(idle.read(&mut [0]), Ok(0) | Err(_)), "open connections are closed");
    let again = Sandbox::start_at(address, Settings::default()).unwrap();
    assert_eq!(again.base_url(), format!("http://{address}"));
}

#[test]
fn server_starts_and_stops_inside_a_runtime() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let sandbox = Sandbox::start(Settings::default()).unwrap();
        assert!(Sandbox::start_at("192.0.2.1:0".parse().unwrap(), Settings::default()).is_err());
        drop(sandbox);
    });
}

#[test]
fn server_answers_hundreds_of_open_connections() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let mut connections: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(address(&sandbox)).unwrap()).collect();
    // Twice on each connection, because connections are kept alive.
    for _ in 0..2 {
        for connection in &mut connections {
            connection.write_all(b"HEAD / HTTP/1.1\r\nhost: sandbox\r\n\r\n").unwrap();
        }
        for connection in &mut connections {
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                connection.read_exact(&mut byte).unwrap();
                answer.extend(byte);
            }
            assert!(answer.starts_with(b"HTTP/1.1 200"));
        }
    }
}

#[test]
fn environment_configures_a_job() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let environment = sandbox.environment();
    let names: Vec<&str> = environment.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "ACTIONS_ID_TOKEN_REQUEST_URL",
            "ACTIONS_ID_TOKEN_REQUEST_TOKEN",
            "ANTHROPIC_FEDERATION_RULE_ID",
            "ANTHROPIC_ORGANIZATION_ID",
            "ANTHROPIC_SERVICE_ACCOUNT_ID",
            "ANTHROPIC_BASE_URL",
        ],
    );
    assert!(environment[0].1.ends_with("/idtoken?api-version=2.0"));
    assert_eq!(environment[5].1, sandbox.base_url());
}

#[test]
fn secrets_list_every_issued_token() {
    let sandbox = Sandbox::start(Settings::default()).unwrap();
    let given = sandbox.issue_identity_token();
    let edited = sandbox.issue_identity_token_with(serde_json::Map::clear);
    let asked = identity_token(&sandbox, "a").unwrap().json()["value"].as_str().unwrap().to_owned();
    let access_token = access_token(&sandbox);
    let secrets = sandbox.secrets();
    for secret in [sandbox.identity_token_request_token(), given, edited, asked, access_token] {
        assert!(secrets.contains(&secret));
    }
    // The sixth is the identity token that was exchanged for the access token.
    assert_eq!(secrets.len(), 6);
    let shown = format!("{sandbox:?}");
    assert!(secrets.iter().all(|secret| !shown.contains(secret)));
    assert_eq!(exchange(&sandbox, "").unwrap().status, 400);
}
