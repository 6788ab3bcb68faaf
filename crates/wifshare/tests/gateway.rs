//! The gateway in front of an API that speaks HTTP/2 or HTTP/1.1 over TLS.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test makes its own world, and fails loudly")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use wifshare::{
    Clock, Connector, Credential, CredentialPublisher, Environment, Gateway, GatewayConfig, Limits, Listen, Secret,
};

/// A request to the HTTP/2 API of a test: head, content and trailers.
#[derive(Debug)]
struct Heard {
    head: Request<()>,
    content: Vec<u8>,
    trailers: Option<HeaderMap>,
}

/// A TLS API on `localhost`, and a gateway in front of it.
struct World {
    gateway: Gateway,
    address: SocketAddr,
    publisher: Arc<CredentialPublisher>,
    heard: Arc<Mutex<Vec<Heard>>>,
    connections: Arc<AtomicUsize>,
    /// The number of closed connections.
    ended: Arc<AtomicUsize>,
    rejected: Arc<AtomicUsize>,
    /// The requests to a proxy in front of the API.
    tunnels: Arc<Mutex<Vec<String>>>,
    /// Status, bytes in and bytes out of each finished request.
    served: Arc<Mutex<Vec<(u16, u64, u64)>>>,
    _directory: tempfile::TempDir,
}

fn credential(text: &str) -> Credential {
    let now = std::time::SystemTime::now();
    let expires_at = now + Duration::from_secs(600);
    Credential { access_token: Secret::new(text.to_owned()), expires_at, obtained_at: now, generation: 1 }
}

impl World {
    /// `protocols` are the protocols that the API offers. `answer` sends its HTTP/2 responses.
    fn new<F>(protocols: &[&[u8]], answer: fn(h2::server::SendResponse<Bytes>, String) -> F) -> World
    where
        F: Future<Output = ()> + Send + 'static,
    {
        World::with(protocols, answer, false, Limits::default())
    }

    /// Like `new`. The API may have a name that only a proxy can resolve.
    fn with<F>(
        protocols: &[&[u8]],
        answer: fn(h2::server::SendResponse<Bytes>, String) -> F,
        is_behind_a_proxy: bool,
        limits: Limits,
    ) -> World
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let directory = tempfile::tempdir().unwrap();
        let identity = rcgen::generate_simple_self_signed(["localhost", "api.example"].map(str::to_owned)).unwrap();
        let roots = directory.path().join("roots.pem");
        std::fs::write(&roots, identity.cert.pem()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let chain = vec![CertificateDer::from(identity.cert.der().to_vec())];
        let key = PrivatePkcs8KeyDer::from(identity.signing_key.serialize_der());
        let mut config = builder.unwrap().with_no_client_auth().with_single_cert(chain, key.into()).unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let heard = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(AtomicUsize::new(0));
        let ended = Arc::new(AtomicUsize::new(0));
        let (report, port) = mpsc::channel();
        let (seen, opened, over) = (Arc::clone(&heard), Arc::clone(&connections), Arc::clone(&ended));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                report.send(listener.local_addr().unwrap().port()).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
                    let (opened, over) = (Arc::clone(&opened), Arc::clone(&over));
                    tokio::spawn(async move {
                        let Ok(stream) = acceptor.accept(stream).await else { return };
                        opened.fetch_add(1, Ordering::SeqCst);
                        match stream.get_ref().1.alpn_protocol() {
                            Some(b"h2") => speak_http2(stream, seen, answer).await,
                            _ => speak_http1(stream).await,
                        }
                        over.fetch_add(1, Ordering::SeqCst);
                    });
                }
            });
        });
        let port = port.recv().unwrap();
        let mut environment: Environment = [("SSL_CERT_FILE", roots.to_str().unwrap())].into_iter().collect();
        let tunnels = Arc::new(Mutex::new(Vec::new()));
        let mut upstream = format!("https://localhost:{port}/base");
        if is_behind_a_proxy {
            environment.set("HTTPS_PROXY", format!("http://{}", proxy_to(port, Arc::clone(&tunnels))));
            upstream = "https://api.example/base".to_owned();
        }
        let publisher = Arc::new(CredentialPublisher::new());
        let rejected = Arc::new(AtomicUsize::new(0));
        let served = Arc::new(Mutex::new(Vec::new()));
        let (again, count, record) = (Arc::clone(&publisher), Arc::clone(&rejected), Arc::clone(&served));
        let config = GatewayConfig {
            upstream: upstream.parse().unwrap(),
            connector: Connector::new(&environment),
            capability: Secret::new("c4p4".to_owned()),
            credential_state: publisher.follow(),
            reject: Box::new(move |_| {
                count.fetch_add(1, Ordering::SeqCst);
                again.hold(&credential("second"));
            }),
            record: Box::new(move |served| {
                record.lock().unwrap().push((served.status, served.bytes_in, served.bytes_out));
            }),
            fault: Box::new(|| {}),
            clock: Clock::system(),
            limits,
        };
        let gateway = Gateway::open(&Listen::Loopback(([127, 0, 0, 1], 0).into()), config).unwrap();
        publisher.hold(&credential("first"));
        let address = gateway.base_url().strip_prefix("http://").unwrap().parse().unwrap();
        World {
            gateway,
            address,
            publisher,
            heard,
            connections,
            ended,
            rejected,
            tunnels,
            served,
            _directory: directory,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Sends a request with these lines and this body, and returns everything until the connection closes.
    fn ask(&self, line: &str, lines: &str, body: &[u8]) -> String {
        let mut stream = self.connect();
        let head =
            format!("{line} HTTP/1.1\r\nHost: {}\r\nx-api-key: c4p4\r\nConnection: close\r\n{lines}\r\n", self.address);
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

/// Starts a proxy that records its requests and connects all of them to this port.
fn proxy_to(port: u16, tunnels: Arc<Mutex<Vec<String>>>) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                client.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            tunnels.lock().unwrap().push(String::from_utf8(head).unwrap());
            let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
            std::thread::spawn(move || std::io::copy(&mut server, &mut client));
        }
    });
    address
}

async fn speak_http2<S, F>(
    stream: S,
    seen: Arc<Mutex<Vec<Heard>>>,
    answer: fn(h2::server::SendResponse<Bytes>, String) -> F,
) where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let seen = Arc::clone(&seen);
        tokio::spawn(async move {
            let (head, mut body) = request.into_parts();
            let mut content = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                content.extend_from_slice(&data);
                body.flow_control().release_capacity(data.len()).unwrap();
            }
            let trailers = body.trailers().await.unwrap_or_default();
            let token = head.headers["authorization"].to_str().unwrap().to_owned();
            seen.lock().unwrap().push(Heard { head: Request::from_parts(head, ()), content, trailers });
            answer(respond, token).await;
        });
    }
}

async fn speak_http1<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(mut stream: S) {
    let mut head = Vec::new();
    loop {
        let Ok(byte) = stream.read_u8().await else { return };
        head.push(byte);
        if head.ends_with(b"\r\n\r\n") {
            if head.starts_with(b"GET /base/v1/silence ") {
                let _ = stream.read_u8().await;
                return;
            }
            head.clear();
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\none").await;
            let _ = stream.flush().await;
        }
    }
}

async fn plain(mut respond: h2::server::SendResponse<Bytes>, _token: String) {
    let head = Response::builder().header("content-length", "2").header("request-id", "req_1").body(()).unwrap();
    respond.send_response(head, false).unwrap().send_data(Bytes::from_static(b"hi"), true).unwrap();
}

#[test]
fn request_and_response_are_translated_to_http2() {
    let world = World::new(&[b"h2", b"http/1.1"], plain);
    let chunks = b"3\r\nabc\r\n2;x\r\nde\r\n0\r\nx-sum: 1\r\n\r\n";
    let answer = world.ask("POST /v1/x?y=1", "Transfer-Encoding: chunked\r\nTE: trailers\r\nX-Mine: 1\r\n", chunks);
    assert_eq!(answer, "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nrequest-id: req_1\r\nconnection: close\r\n\r\nhi");
    let heard = world.heard.lock().unwrap();
    let head = &heard[0].head;
    assert_eq!(head.uri().path_and_query().unwrap().as_str(), "/base/v1/x?y=1");
    assert_eq!((head.method().as_str(), head.uri().scheme_str()), ("POST", Some("https")));
    assert!(head.uri().authority().unwrap().as_str().starts_with("localhost:"), "{}", head.uri());
    assert_eq!(head.headers()["authorization"], "Bearer first");
    assert_eq!(head.headers()["anthropic-beta"], "oauth-2025-04-20");
    assert_eq!(
        (&head.headers()["x-mine"], &head.headers()["te"]),
        (&"1".parse().unwrap(), &"trailers".parse().unwrap())
    );
    assert!(!head.headers().contains_key("x-api-key") && !head.headers().contains_key("connection"));
    assert_eq!(heard[0].content, b"abcde");
    assert_eq!(heard[0].trailers.as_ref().unwrap()["x-sum"], "1");
}

#[test]
fn many_requests_share_one_http2_connection() {
    let world = World::new(&[b"h2"], plain);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert!(world.ask("GET /v1/models", "", b"").ends_with("\r\n\r\nhi")));
        }
    });
    assert_eq!(world.heard.lock().unwrap().len(), 20);
    assert_eq!(world.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn api_without_http2_is_served_over_http1() {
    let world = World::new(&[b"http/1.1"], plain);
    for _ in 0..3 {
        assert_eq!(
            world.ask("GET /v1/models", "", b""),
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\none"
        );
    }
    assert_eq!(world.connections.load(Ordering::SeqCst), 1, "the connection is kept");
}

/// Sends content in three pieces, one of which is empty.
async fn with_an_empty_piece(mut respond: h2::server::SendResponse<Bytes>, _token: String) {
    let mut body = respond.send_response(Response::new(()), false).unwrap();
    for piece in [&b"one"[..], b"", b"two"] {
        body.send_data(Bytes::from_static(piece), false).unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    body.send_data(Bytes::new(), true).unwrap();
}

/// Sends no content to the first request of a connection, and a status without content to the others.
async fn without_content(mut respond: h2::server::SendResponse<Bytes>, _token: String) {
    let status = if respond.stream_id().as_u32() == 1 { 200 } else { 204 };
    respond.send_response(Response::builder().status(status).body(()).unwrap(), true).unwrap();
}

#[test]
fn response_without_length_is_chunked_and_empty_one_has_no_body() {
    let world = World::new(&[b"h2"], with_an_empty_piece);
    let answer = world.ask("GET /v1/models", "", b"");
    assert!(answer.ends_with("\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"), "{answer}");
    let world = World::new(&[b"h2"], without_content);
    for (method, status) in [("HEAD", "200 OK"), ("DELETE", "204 No Content")] {
        let answer = world.ask(&format!("{method} /v1/models/x"), "", b"");
        assert_eq!(answer, format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n"));
    }
}

#[test]
fn response_bytes_are_counted_for_http1_and_http2() {
    for protocol in [&b"h2"[..], b"http/1.1"] {
        let world = World::new(&[protocol], plain);
        let answer = world.ask("POST /v1/x", "Content-Length: 0\r\n", b"");
        world.gateway.close(Duration::from_secs(10));
        assert_eq!(*world.served.lock().unwrap(), [(200, 0, answer.len() as u64)]);
    }
}

#[test]
fn upstream_connection_used_at_intervals_stays_open() {
    let world = World::with(&[b"h2"], plain, false, Limits { rest: Duration::from_secs(2), ..Limits::default() });
    for pause in [1600, 1400, 0] {
        assert!(world.ask("GET /v1/models", "", b"").ends_with("\r\n\r\nhi"));
        std::thread::sleep(Duration::from_millis(pause));
    }
    assert_eq!(world.connections.load(Ordering::SeqCst), 1);
    let begun = std::time::Instant::now();
    while world.ended.load(Ordering::SeqCst) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it stays open");
        std::thread::sleep(Duration::from_millis(10));
    }
}

async fn with_a_large_head(mut respond: h2::server::SendResponse<Bytes>, _token: String) {
    let head =
        Response::builder().header("x-large", "x".repeat(40_000)).header("content-length", "0").body(()).unwrap();
    respond.send_response(head, true).unwrap();
}

/// More than a server usually allows at once on one connection.
const CROWD: usize = 120;

/// Responds only after all requests have arrived.
async fn all_at_once(respond: h2::server::SendResponse<Bytes>, token: String) {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    ASKED.fetch_add(1, Ordering::SeqCst);
    while ASKED.load(Ordering::SeqCst) < CROWD {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    plain(respond, token).await;
}

#[test]
fn requests_over_the_stream_limit_open_another_connection() {
    let world = World::new(&[b"h2"], all_at_once);
    std::thread::scope(|scope| {
        for _ in 0..CROWD {
            scope.spawn(|| assert!(world.ask("GET /v1/models", "", b"").ends_with("\r\n\r\nhi")));
        }
    });
    let connections = world.connections.load(Ordering::SeqCst);
    assert!((2..10).contains(&connections), "{connections} connections");
}

#[test]
fn large_response_head_is_forwarded() {
    let answer = World::new(&[b"h2"], with_a_large_head).ask("GET /v1/models", "", b"");
    assert!(answer.contains(&format!("x-large: {}\r\n", "x".repeat(40_000))), "{answer:.200}");
}

/// Sends nothing until the other side resets the stream.
async fn waits(mut respond: h2::server::SendResponse<Bytes>, _token: String) {
    let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
    RESETS.lock().unwrap().push(reason.unwrap());
}

static RESETS: Mutex<Vec<h2::Reason>> = Mutex::new(Vec::new());

#[test]
fn client_disconnect_cancels_the_upstream_request() {
    let world = World::new(&[b"h2"], waits);
    for lines in ["", "Content-Length: 5\r\n"] {
        let mut client = world.connect();
        let host = format!("Host: {}\r\nx-api-key: c4p4\r\n", world.address);
        write!(client, "POST /v1/x HTTP/1.1\r\n{host}{lines}\r\n").unwrap();
        if !lines.is_empty() {
            // The body is read to its end before the API receives the request.
            client.write_all(b"hello").unwrap();
        }
        let begun = std::time::Instant::now();
        let count = RESETS.lock().unwrap().len();
        while world.heard.lock().unwrap().len() == count {
            assert!(begun.elapsed() < Duration::from_secs(30), "it was never asked");
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(client);
        while RESETS.lock().unwrap().len() == count {
            assert!(begun.elapsed() < Duration::from_secs(30), "it was never told");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    assert_eq!(*RESETS.lock().unwrap(), [h2::Reason::CANCEL; 2]);

    let world = World::new(&[b"http/1.1"], plain);
    let mut client = world.connect();
    write!(client, "GET /v1/silence HTTP/1.1\r\nHost: {}\r\nx-api-key: c4p4\r\n\r\n", world.address).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((world.connections.load(Ordering::SeqCst), world.ended.load(Ordering::SeqCst)), (1, 0));
    drop(client);
    let begun = std::time::Instant::now();
    while world.ended.load(Ordering::SeqCst) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it was never told");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Responds only after two requests have arrived.
async fn both_at_once(respond: h2::server::SendResponse<Bytes>, token: String) {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    ASKED.fetch_add(1, Ordering::SeqCst);
    while ASKED.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    plain(respond, token).await;
}

#[test]
fn connection_with_an_open_request_is_not_idle() {
    let limits = Limits { rest: Duration::from_millis(100), ..Limits::default() };
    let world = World::with(&[b"h2"], both_at_once, false, limits);
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(world.ask("GET /v1/models", "", b"").ends_with("hi")));
        std::thread::sleep(Duration::from_secs(1));
        assert!(world.ask("GET /v1/models", "", b"").ends_with("hi"));
    });
    assert_eq!(world.connections.load(Ordering::SeqCst), 1);
}

#[test]
fn idle_upstream_connection_is_closed() {
    for (protocol, end) in [(&b"h2"[..], "hi"), (b"http/1.1", "one")] {
        let limits = Limits { rest: Duration::from_millis(200), ..Limits::default() };
        let world = World::with(&[protocol], plain, false, limits);
        for number in 1..=2 {
            assert!(world.ask("GET /v1/models", "", b"").ends_with(end));
            let start = std::time::Instant::now();
            while world.ended.load(Ordering::SeqCst) < number {
                assert!(start.elapsed() < Duration::from_secs(60), "connection {number} stays open");
                std::thread::sleep(Duration::from_millis(10));
            }
            assert_eq!(world.connections.load(Ordering::SeqCst), number);
        }
    }
}

#[test]
fn upstream_connection_uses_the_proxy() {
    for protocol in [&b"h2"[..], b"http/1.1"] {
        let world = World::with(&[protocol], plain, true, Limits::default());
        for _ in 0..3 {
            let answer = world.ask("GET /v1/models", "", b"");
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        let tunnels = world.tunnels.lock().unwrap();
        assert_eq!(tunnels.len(), 1, "one connection serves all: {tunnels:?}");
        assert!(tunnels[0].starts_with("CONNECT api.example:443 HTTP/1.1\r\n"), "{tunnels:?}");
    }
}

#[test]
fn body_over_the_limit_is_refused_early() {
    let chunks = |sizes: &[usize]| {
        let chunk = |size: &usize| [format!("{size:x}\r\n").as_bytes(), &vec![b'a'; *size], b"\r\n"].concat();
        [sizes.iter().flat_map(chunk).collect(), b"0\r\n\r\n".to_vec()].concat()
    };
    let limits = Limits { largest_body: 100_000, kept_body: 1000, ..Limits::default() };
    for protocol in [&b"h2"[..], b"http/1.1"] {
        let world = World::with(&[protocol], plain, false, limits);
        let chunked = |sizes| world.ask("POST /v1/x", "Transfer-Encoding: chunked\r\n", &chunks(sizes));
        // The HTTP/1.1 API of this test does not read bodies.
        if protocol == b"h2" {
            let answer = chunked(&[60_000, 40_000]);
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
        for sizes in [&[100_001][..], &[60_000, 40_000, 1]] {
            let answer = chunked(sizes);
            assert!(answer.starts_with("HTTP/1.1 413 "), "{sizes:?}: {answer}");
        }
        let answer = world.ask("POST /v1/x", "Content-Length: 100001\r\n", b"");
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(world.ask("GET /v1/models", "", b"").starts_with("HTTP/1.1 200 "), "and the next one is served");
    }
}

async fn streamed(mut respond: h2::server::SendResponse<Bytes>, _token: String) {
    let hints = Response::builder().status(103).header("link", "</x>").body(()).unwrap();
    respond.send_informational(hints).unwrap();
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    stream.send_data(Bytes::from_static(b"event: a\n\n"), false).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    stream.send_data(Bytes::from_static(b"event: b\n\n"), false).unwrap();
    stream.send_trailers([("x-sum".parse().unwrap(), "2".parse().unwrap())].into_iter().collect()).unwrap();
}

#[test]
fn streamed_response_keeps_chunks_hints_and_trailers() {
    let world = World::new(&[b"h2"], streamed);
    assert_eq!(
        world.ask("GET /v1/models", "", b""),
        "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n\
         HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n\
         a\r\nevent: a\n\n\r\na\r\nevent: b\n\n\r\n0\r\nx-sum: 2\r\n\r\n"
    );
}

async fn only_the_second(mut respond: h2::server::SendResponse<Bytes>, token: String) {
    let status = if token == "Bearer second" { 200 } else { 401 };
    let head = Response::builder().status(status).header("content-length", "0").body(()).unwrap();
    respond.send_response(head, true).unwrap();
}

#[test]
fn request_with_401_is_retried_with_another_credential() {
    let world = World::new(&[b"h2"], only_the_second);
    let body = vec![7; 300_000];
    let answer = world.ask("POST /v1/x", "Content-Length: 300000\r\n", &body);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(world.rejected.load(Ordering::SeqCst), 1);
    let heard = world.heard.lock().unwrap();
    assert_eq!(heard.len(), 2);
    assert!(heard.iter().all(|heard| heard.content == body));
    drop(heard);
    // A body that was not kept cannot be sent again: the 401 is forwarded, and the credential is replaced anyway.
    world.publisher.hold(&credential("first"));
    let body = vec![7; 3_000_000];
    let answer = world.ask("POST /v1/x", "Content-Length: 3000000\r\n", &body);
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert_eq!(world.rejected.load(Ordering::SeqCst), 2);
}

async fn refuses(mut respond: h2::server::SendResponse<Bytes>, _token: String) {
    static TIMES: AtomicUsize = AtomicUsize::new(0);
    if TIMES.fetch_add(1, Ordering::SeqCst) == 0 {
        respond.send_reset(h2::Reason::REFUSED_STREAM);
    } else {
        plain(respond, String::new()).await;
    }
}

async fn fails(mut respond: h2::server::SendResponse<Bytes>, _token: String) {
    respond.send_reset(h2::Reason::INTERNAL_ERROR);
}

#[test]
fn refused_stream_is_retried_once_and_other_resets_are_not() {
    let world = World::new(&[b"h2"], refuses);
    assert!(world.ask("POST /v1/x", "Content-Length: 2\r\n", b"ab").ends_with("\r\n\r\nhi"));
    assert_eq!(world.heard.lock().unwrap().len(), 2);
    let world = World::new(&[b"h2"], fails);
    assert!(world.ask("POST /v1/x", "Content-Length: 2\r\n", b"ab").starts_with("HTTP/1.1 502 "));
    assert_eq!(world.heard.lock().unwrap().len(), 1);
}

async fn large(mut respond: h2::server::SendResponse<Bytes>, _token: String) {
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    for piece in 0..2000u32 {
        let data = Bytes::from(piece.to_be_bytes().repeat(4096));
        let mut data = data;
        while !data.is_empty() {
            stream.reserve_capacity(data.len());
            let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
            let part = data.split_to(room.min(data.len()));
            stream.send_data(part, false).unwrap();
        }
    }
    stream.send_data(Bytes::new(), true).unwrap();
}

#[test]
fn large_response_waits_for_a_slow_client() {
    let world = World::new(&[b"h2"], large);
    let mut stream = world.connect();
    let head =
        format!("GET /v1/models HTTP/1.1\r\nHost: {}\r\nx-api-key: c4p4\r\nConnection: close\r\n\r\n", world.address);
    stream.write_all(head.as_bytes()).unwrap();
    // Other clients are served while this one does not read.
    std::thread::sleep(Duration::from_millis(200));
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let start = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    let mut rest = &answer[start..];
    let mut content = Vec::new();
    loop {
        let end = rest.windows(2).position(|bytes| bytes == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            break;
        }
        content.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
    assert_eq!(content.len(), 2000 * 4 * 4096);
    assert!(content.chunks(16384).zip(0u32..).all(|(chunk, piece)| chunk == piece.to_be_bytes().repeat(4096)));
}

#[test]
fn requests_to_an_unreachable_api_do_not_queue() {
    // Accepts connections, and sends no TLS message.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let publisher = CredentialPublisher::new();
    publisher.hold(&credential("first"));
    let patience = Duration::from_millis(300);
    let config = GatewayConfig {
        upstream: format!("https://{}", silent.local_addr().unwrap()).parse().unwrap(),
        connector: Connector::new(&Environment::default()),
        capability: Secret::new("c4p4".to_owned()),
        credential_state: publisher.follow(),
        reject: Box::new(|_| {}),
        record: Box::new(|_| {}),
        fault: Box::new(|| {}),
        clock: Clock::system(),
        limits: Limits { connect: patience, ..Limits::default() },
    };
    let gateway = Gateway::open(&Listen::Loopback(([127, 0, 0, 1], 0).into()), config).unwrap();
    let address: SocketAddr = gateway.base_url().strip_prefix("http://").unwrap().parse().unwrap();
    let ask = format!("GET /v1/models HTTP/1.1\r\nHost: {address}\r\nx-api-key: c4p4\r\nConnection: close\r\n\r\n");
    // In sequence they would take sixty times as long as one.
    let mut clients: Vec<TcpStream> = (0..60).map(|_| TcpStream::connect(address).unwrap()).collect();
    let begun = std::time::Instant::now();
    clients.iter_mut().for_each(|client| client.write_all(ask.as_bytes()).unwrap());
    for client in &mut clients {
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("could not connect to the API: "), "{answer}");
    }
    assert!(begun.elapsed() < patience * 30, "{:?}", begun.elapsed());
}

#[test]
fn closed_or_dropped_gateway_stops_listening() {
    for end in [|gateway: Gateway| gateway.close(Duration::ZERO), drop] {
        let world = World::new(&[b"h2"], plain);
        let address = world.address;
        end(world.gateway);
        assert!(TcpStream::connect(address).is_err());
    }
}
