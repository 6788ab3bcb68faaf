//! The HTTP client: TLS with custom roots, a proxy, and servers that hang, close or send too much.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test makes its own world, and fails loudly")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use wifshare::{CertificateFault, Clock, Environment, HttpClient, Inputs, Request, SendError, obtain, resolve};

/// A self-signed certificate for one name.
struct Identity(rcgen::CertifiedKey<rcgen::KeyPair>);

impl Identity {
    fn of(name: &str) -> Identity {
        Identity(rcgen::generate_simple_self_signed([name.to_owned()]).unwrap())
    }

    /// A certificate for localhost, valid between these two years.
    fn valid(from: i32, to: i32) -> Identity {
        let mut parameters = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
        parameters.not_before = rcgen::date_time_ymd(from, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(to, 1, 1);
        let signing_key = rcgen::KeyPair::generate().unwrap();
        let cert = parameters.self_signed(&signing_key).unwrap();
        Identity(rcgen::CertifiedKey { cert, signing_key })
    }

    fn write_to(&self, path: &Path) {
        std::fs::write(path, self.0.cert.pem()).unwrap();
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        let chain = vec![CertificateDer::from(self.0.cert.der().to_vec())];
        let key = PrivatePkcs8KeyDer::from(self.0.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        Arc::new(builder.unwrap().with_no_client_auth().with_single_cert(chain, key.into()).unwrap())
    }
}

/// Serves each connection with this function in its own thread. Returns the port.
fn serve(each: impl Fn(TcpStream) + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let each = Arc::new(each);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let each = Arc::clone(&each);
            std::thread::spawn(move || each(stream.unwrap()));
        }
    });
    port
}

fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|count| count == 1) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Reads one head and sends this response.
fn answer(mut stream: impl Read + Write, text: &str) {
    read_head(&mut stream);
    drop(stream.write_all(text.as_bytes()));
    drop(stream.flush());
}

fn tls_server(identity: &Identity) -> u16 {
    let config = identity.server();
    serve(move |stream| {
        let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        answer(rustls::StreamOwned::new(connection, stream), "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwell");
    })
}

fn get(url: &str) -> Request {
    http::Request::get(url).body(Default::default()).unwrap()
}

fn quick(environment: &[(&str, &str)]) -> HttpClient {
    let environment: Environment = environment.iter().copied().collect();
    HttpClient::new(&environment).with_patience(Duration::from_secs(5), Duration::from_secs(2))
}

#[test]
fn tls_is_verified_and_ssl_cert_file_names_the_roots() {
    let holder = tempfile::tempdir().unwrap();
    let file = holder.path().join("roots.pem");
    let identity = Identity::of("localhost");
    identity.write_to(&file);
    let port = tls_server(&identity);
    let url = format!("https://localhost:{port}/");
    let with_root = quick(&[("SSL_CERT_FILE", file.to_str().unwrap())]);

    assert_eq!(with_root.send(get(&url)).unwrap().body().as_slice(), b"well");

    let untrusted = quick(&[]).send(get(&url)).unwrap_err();
    assert!(matches!(&untrusted, SendError::NotSent(_)), "nothing leaves before trust: {untrusted}");

    let wrong_name = with_root.send(get(&format!("https://127.0.0.1:{port}/")));
    assert!(matches!(wrong_name, Err(SendError::NotSent(_))));

    let no_file = quick(&[("SSL_CERT_FILE", "/nonexistent/roots.pem")]).send(get(&url)).unwrap_err();
    let no_file = wifshare::whole_message(&no_file);
    assert!(no_file.contains("SSL_CERT_FILE /nonexistent/roots.pem"), "{no_file}");
}

/// Returns the fault of the certificate, and the message for the user.
fn certificate_fault(environment: &[(&str, &str)], url: &str) -> (CertificateFault, String) {
    let error = quick(environment).send(get(url)).unwrap_err();
    assert!(matches!(error, SendError::NotSent(_)), "nothing leaves before trust: {error}");
    let fault = CertificateFault::find(&error).unwrap_or_else(|| panic!("{error}")).clone();
    (fault, wifshare::whole_message(&error))
}

#[test]
fn certificate_faults_are_distinct_and_each_has_a_hint() {
    use CertificateFault as F;
    let holder = tempfile::tempdir().unwrap();
    let file = |name: &str| holder.path().join(name).to_str().unwrap().to_owned();
    let (ours, another) = (Identity::of("localhost"), Identity::of("another.example"));
    ours.write_to(Path::new(&file("ours.pem")));
    another.write_to(Path::new(&file("another.pem")));
    std::fs::write(file("empty.pem"), "").unwrap();
    let port = tls_server(&ours);
    let url = format!("https://localhost:{port}/");
    let (of_another, of_ours) = (file("another.pem"), file("ours.pem"));
    let elsewhere = ("SSL_CERT_FILE", of_another.as_str());

    let (fault, said) = certificate_fault(&[], &url);
    assert!(matches!(fault, F::UnknownIssuer { .. } | F::NoRoots), "{said}");
    let (fault, said) = certificate_fault(&[elsewhere], &url);
    assert!(matches!(fault, F::UnknownIssuer { .. }) && said.contains("another.pem"), "{said}");
    for variable in ["NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
        // These are used in addition to the system's roots, and named if another variable is in force.
        assert_eq!(quick(&[(variable, &of_ours)]).send(get(&url)).unwrap().body().as_slice(), b"well", "{variable}");
        let (fault, said) = certificate_fault(&[elsewhere, (variable, &of_ours)], &url);
        assert!(matches!(&fault, F::RootsElsewhere { variable: named, .. } if *named == variable), "{said}");
        assert!(fault.cure().contains(&of_ours) && said.contains(variable), "{said}; {}", fault.cure());
        let missing = file("missing.pem");
        let (fault, said) = certificate_fault(&[(variable, &missing)], &url);
        assert!(matches!(fault, F::RootsElsewhere { .. } | F::NoRoots), "{said}");
    }
    let directory = holder.path().to_str().unwrap();
    assert!(quick(&[("SSL_CERT_DIR", directory)]).send(get(&url)).is_ok());
    for broken in [file("empty.pem"), file("missing.pem")] {
        let (fault, said) = certificate_fault(&[("SSL_CERT_FILE", &broken)], &url);
        assert!(matches!(fault, F::UnusableRoots(_)) && said.contains(&broken), "{said}");
    }

    let (fault, said) = certificate_fault(&[("SSL_CERT_FILE", &of_ours)], &format!("https://127.0.0.1:{port}/"));
    assert!(matches!(fault, F::WrongName(_)) && said.contains("127.0.0.1"), "{said}");
    for (from, to, words) in [(2001, 2002, "expired"), (4000, 4001, "not valid yet")] {
        let identity = Identity::valid(from, to);
        identity.write_to(Path::new(&file("timed.pem")));
        let url = format!("https://localhost:{}/", tls_server(&identity));
        let (fault, said) = certificate_fault(&[("SSL_CERT_FILE", &file("timed.pem"))], &url);
        assert!(matches!(fault, F::Expired(_)) && said.contains(words), "{said}");
        assert!(fault.cure().contains("clock"), "{}", fault.cure());
    }
}

#[test]
fn refused_certificate_is_tried_once_and_not_cached() {
    let holder = tempfile::tempdir().unwrap();
    let identity = Identity::of("localhost");
    let accepted = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (config, count) = (identity.server(), Arc::clone(&accepted));
    let port = serve(move |stream| {
        count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        answer(rustls::StreamOwned::new(connection, stream), "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n");
    });
    let of_the_identity_endpoint = [
        ("ACTIONS_ID_TOKEN_REQUEST_URL", format!("https://localhost:{port}/idtoken?a=b")),
        ("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "t".to_owned()),
    ];
    let of_the_exchange = [("ANTHROPIC_BASE_URL", format!("https://localhost:{port}"))];
    let command = || Some(["printf", "eyJhbGciOiJSUzI1NiJ9.eyJqdGkiOiI3In0.c2ln"].map(Into::into).to_vec());
    for (variables, identity_command) in [(&of_the_identity_endpoint[..], None), (&of_the_exchange[..], command())] {
        let mut environment = Environment::from_iter([
            ("ANTHROPIC_FEDERATION_RULE_ID", "fdrl_1"),
            ("ANTHROPIC_ORGANIZATION_ID", "00000000-0000-4000-8000-000000000000"),
            ("PATH", "/usr/bin:/bin"),
        ]);
        variables.iter().for_each(|(name, value)| environment.set(*name, value.as_str()));
        let state_dir = Some(holder.path().join("state"));
        let config = resolve(&Inputs { state_dir, identity_command, ..Inputs::default() }, &environment).unwrap();
        let transport = HttpClient::new(&environment);
        for tries in 1..=2 {
            let error = obtain(&config, &transport, Clock::system(), &|_| {}).unwrap_err();
            assert_eq!(error.code(), "certificate-refused", "{error}");
            assert!(
                error.hint().is_some_and(|hint| hint.contains("ca-certificates") || hint.contains("SSL_CERT_FILE"))
            );
            let connections = accepted.load(std::sync::atomic::Ordering::SeqCst);
            // Without any root, no connection is opened.
            assert!(connections == tries || connections == 0, "{connections} after {tries}");
        }
        accepted.store(0, std::sync::atomic::Ordering::SeqCst);
        assert!(!holder.path().join("state/spent").exists(), "nothing is spent");
    }
}

#[test]
fn closed_connection_before_send_is_reported_as_not_sent() {
    for waits_for_the_request in [false, true] {
        let (told, closed) = std::sync::mpsc::channel();
        let port = serve(move |mut stream| {
            if waits_for_the_request {
                read_head(&mut stream);
            }
            drop(stream);
            told.send(()).unwrap();
        });
        let url = format!("http://127.0.0.1:{port}/");
        let connection = quick(&[]).connect(&url.parse().unwrap()).unwrap();
        if !waits_for_the_request {
            closed.recv().unwrap();
        }
        let sent = connection.send(get(&url));
        match waits_for_the_request {
            false => assert!(matches!(sent, Err(SendError::NotSent(_))), "{sent:?}"),
            true => assert!(matches!(sent, Err(SendError::MaybeSent(_))), "{sent:?}"),
        }
    }
}

#[test]
fn https_uses_the_proxy_unless_no_proxy_matches() {
    let holder = tempfile::tempdir().unwrap();
    let file = holder.path().join("roots.pem");
    let identity = Identity::of("api.example");
    identity.write_to(&file);
    let origin = tls_server(&identity);
    let (said, heard) = std::sync::mpsc::channel();
    let proxy = serve(move |mut client| {
        said.send(read_head(&mut client)).unwrap();
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
        let mut server = TcpStream::connect(("127.0.0.1", origin)).unwrap();
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        drop(std::io::copy(&mut server, &mut client));
    });
    let proxy = format!("http://user:pass@127.0.0.1:{proxy}");
    let roots = ("SSL_CERT_FILE", file.to_str().unwrap());
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        let response = quick(&[roots, (name, &proxy)]).send(get("https://api.example/")).unwrap();
        assert_eq!(response.body().as_slice(), b"well");
        let head = heard.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(head.starts_with("CONNECT api.example:443 HTTP/1.1\r\n"), "{head}");
        assert!(head.to_ascii_lowercase().contains("proxy-authorization: basic dxnlcjpwyxnz"), "{head}");
    }
    // Without the proxy the name does not resolve. Loopback requests never use a proxy.
    let direct = quick(&[roots, ("HTTPS_PROXY", &proxy), ("NO_PROXY", "api.example")]);
    assert!(matches!(direct.send(get("https://api.example/")), Err(SendError::NotSent(_))));
    let plain = serve(|stream| answer(stream, "HTTP/1.1 204 No Content\r\n\r\n"));
    assert!(quick(&[("ALL_PROXY", &proxy)]).send(get(&format!("http://127.0.0.1:{plain}/"))).is_ok());
    assert!(heard.try_recv().is_err());
}

#[test]
fn not_sent_and_maybe_sent_errors_are_distinguished() {
    let refused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = quick(&[]).send(get(&format!("http://127.0.0.1:{refused}/"))).unwrap_err();
    assert!(matches!(error, SendError::NotSent(_)), "{error}");

    let closing = serve(|mut stream| drop(read_head(&mut stream)));
    let error = quick(&[]).send(get(&format!("http://127.0.0.1:{closing}/"))).unwrap_err();
    assert!(matches!(error, SendError::MaybeSent(_)), "{error}");

    let half = serve(|stream| answer(stream, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf"));
    let error = quick(&[]).send(get(&format!("http://127.0.0.1:{half}/"))).unwrap_err();
    assert!(matches!(error, SendError::MaybeSent(_)), "{error}");
}

#[test]
fn silent_server_causes_timeouts() {
    let silent = serve(|stream| {
        std::thread::sleep(Duration::from_secs(20));
        drop(stream);
    });
    let start = Instant::now();
    let error = quick(&[]).send(get(&format!("http://127.0.0.1:{silent}/"))).unwrap_err();
    assert!(matches!(&error, SendError::MaybeSent(_)) && error.to_string().contains("within 2 s"), "{error}");
    // A TLS handshake that never starts.
    let patience = Duration::from_millis(500);
    let transport = HttpClient::new(&Environment::default()).with_patience(patience, patience);
    let error = transport.send(get(&format!("https://127.0.0.1:{silent}/"))).unwrap_err();
    assert!(matches!(&error, SendError::NotSent(_)) && error.to_string().contains("TLS handshake"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn response_over_one_megabyte_is_refused() {
    for (size, is_read) in [(1 << 20, true), ((1 << 20) + 1, false)] {
        let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {size}\r\n\r\n{}", "x".repeat(size));
        let port = serve(move |stream| answer(stream, &text));
        let response = quick(&[]).send(get(&format!("http://127.0.0.1:{port}/")));
        assert_eq!(response.is_ok(), is_read, "{size} bytes");
    }
}

#[test]
fn redirect_is_returned_and_not_followed() {
    let port = serve(|stream| {
        answer(stream, "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n");
    });
    let response = quick(&[]).send(get(&format!("http://127.0.0.1:{port}/"))).unwrap();
    assert_eq!(response.status(), 307);
}

#[test]
fn unsupported_proxy_and_unreachable_host_are_named() {
    // Nothing listens on this port any more.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let proxy = format!("socks5://127.0.0.1:{closed}");
    let error = quick(&[("HTTPS_PROXY", &proxy)]).send(get("https://api.example.invalid/")).unwrap_err();
    assert!(matches!(&error, SendError::NotSent(_)), "{error}");
    let causes = wifshare::whole_message(&error);
    assert!(causes.contains("by http://, and not by socks5://"), "{causes}");
    assert!(causes.contains("api.example.invalid"), "{causes}");
    let error = quick(&[]).send(get(&format!("http://127.0.0.1:{closed}/"))).unwrap_err();
    let causes = wifshare::whole_message(&error);
    assert!(matches!(&error, SendError::NotSent(_)) && causes.contains(&format!("127.0.0.1:{closed}")), "{causes}");
}
