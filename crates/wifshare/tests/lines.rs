//! The gateway between a client and an HTTP/1.1 API at byte level: when a connection to the API is reused, which
//! requests are sent again, and how long it waits.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test makes its own world, and fails loudly")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::{Duration, Instant};

use wifshare::{
    Clock, Connector, Credential, CredentialPublisher, Environment, Gateway, GatewayConfig, Limits, Listen, Secret,
};

/// A finished request: its method, its status, bytes in and bytes out.
type Told = (String, u16, u64, u64);

/// A request at the API: the number of its connection, and its first line.
type Heard = (usize, String);

/// A minimal API, and a gateway in front of it.
struct World {
    gateway: Option<Gateway>,
    address: SocketAddr,
    publisher: Arc<CredentialPublisher>,
    heard: Arc<Mutex<Vec<Heard>>>,
    served: Arc<Mutex<Vec<Told>>>,
    /// The number of connections that ended with a panic.
    faults: Arc<AtomicUsize>,
}

impl World {
    /// `answer` writes the response to a request, and returns whether the connection stays open.
    fn new(limits: Limits, answer: fn(&Heard, &mut TcpStream) -> bool) -> World {
        World::with(limits, answer, CredentialPublisher::nothing_new)
    }

    /// Like `new`, with a function for rejected credentials.
    fn with(limits: Limits, answer: fn(&Heard, &mut TcpStream) -> bool, rejected: fn(&CredentialPublisher)) -> World {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstream = format!("http://{}", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heard);
        std::thread::spawn(move || {
            for (number, mut stream) in listener.incoming().map_while(Result::ok).enumerate() {
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || {
                    while let Some(head) = head(&mut stream) {
                        let heard = (number, head.lines().next().unwrap().to_owned());
                        seen.lock().unwrap().push(heard.clone());
                        if !answer(&heard, &mut stream) {
                            return;
                        }
                    }
                });
            }
        });
        let (publisher, served) = (Arc::new(CredentialPublisher::new()), Arc::new(Mutex::new(Vec::new())));
        let faults = Arc::new(AtomicUsize::new(0));
        let fault = Arc::clone(&faults);
        let (told, record) = (Arc::clone(&publisher), Arc::clone(&served));
        let config = GatewayConfig {
            upstream: upstream.parse().unwrap(),
            connector: Connector::new(&Environment::default()),
            capability: Secret::new("c4p4".to_owned()),
            credential_state: publisher.follow(),
            reject: Box::new(move |_| rejected(&told)),
            fault: Box::new(move || {
                fault.fetch_add(1, Ordering::SeqCst);
            }),
            record: Box::new(move |served| {
                assert_ne!(served.path, "/v1/panic", "a test asked for this");
                let served = (served.method.to_owned(), served.status, served.bytes_in, served.bytes_out);
                record.lock().unwrap().push(served);
            }),
            clock: Clock::system(),
            limits,
        };
        let gateway = Gateway::open(&Listen::Loopback(([127, 0, 0, 1], 0).into()), config).unwrap();
        let address = gateway.base_url().strip_prefix("http://").unwrap().parse().unwrap();
        publisher.hold(&credential("first", 600));
        World { gateway: Some(gateway), address, publisher, heard, served, faults }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Returns a head with these lines.
    fn head(&self, request: &str, lines: &str) -> String {
        format!("{request} HTTP/1.1\r\nHost: {}\r\nx-api-key: c4p4\r\n{lines}\r\n", self.address)
    }

    /// Sends a request without a body on its own connection, and returns everything until it closes.
    fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(self.head(request, "Connection: close\r\nContent-Length: 0\r\n").as_bytes()).unwrap();
        rest(&mut stream)
    }

    /// Returns the API connection of each request.
    fn lines(&self) -> Vec<usize> {
        self.heard.lock().unwrap().iter().map(|(number, _)| *number).collect()
    }

    /// Returns the finished requests. A client may receive the end of its response before its request is recorded.
    fn told(mut self) -> Vec<Told> {
        self.gateway.take().unwrap().close(Duration::from_secs(10));
        self.served.lock().unwrap().clone()
    }
}

fn credential(text: &str, seconds: u64) -> Credential {
    let now = std::time::SystemTime::now();
    let expires_at = now + Duration::from_secs(seconds);
    Credential { access_token: Secret::new(text.to_owned()), expires_at, obtained_at: now, generation: 1 }
}

fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Returns everything until the connection closes, cleanly or not.
fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Reads a response of two bytes from a connection that stays open.
fn read_ok(stream: &mut TcpStream) {
    let mut answer = [0; OK.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), OK);
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn say(stream: &mut TcpStream, text: &str) -> bool {
    stream.write_all(text.as_bytes()).is_ok()
}

fn path(heard: &Heard) -> &str {
    heard.1.split([' ', '?']).nth(1).unwrap()
}

fn ok(_: &Heard, stream: &mut TcpStream) -> bool {
    say(stream, OK)
}

#[test]
fn upstream_connection_is_reused_only_after_a_clean_exchange() {
    // The API keeps reading, whatever it has sent.
    fn answer(heard: &Heard, stream: &mut TcpStream) -> bool {
        match path(heard) {
            "/v1/closes" => say(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"),
            "/v1/more" => say(stream, &format!("{OK}HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")),
            _ => say(stream, OK),
        }
    }
    for (first, lines) in [("/v1/models", [0, 0]), ("/v1/closes", [0, 1]), ("/v1/more", [0, 1])] {
        let world = World::new(Limits::default(), answer);
        assert!(world.ask(&format!("GET {first}")).ends_with("\r\n\r\nok"), "{first}");
        assert!(world.ask("GET /v1/models").ends_with("\r\n\r\nok"), "after {first}");
        assert_eq!(world.lines(), lines, "{first}");
    }
    // The response arrives before the request is complete.
    let world = World::new(Limits::default(), answer);
    let mut early = world.connect();
    early.write_all(world.head("POST /v1/early", "Content-Length: 100000\r\n").as_bytes()).unwrap();
    early.write_all(&[b'x'; 1000]).unwrap();
    read_ok(&mut early);
    assert!(world.ask("GET /v1/models").ends_with("\r\n\r\nok"));
    assert_eq!(world.lines()[..2], [0, 1]);
}

#[test]
fn idle_connection_closed_by_the_api_is_not_reused() {
    // The API closes the connection without announcing it.
    fn answer(_: &Heard, stream: &mut TcpStream) -> bool {
        say(stream, OK);
        false
    }
    let world = World::new(Limits::default(), answer);
    for _ in 0..3 {
        assert!(world.ask("POST /v1/messages").ends_with("\r\n\r\nok"));
        sleep(Duration::from_millis(100));
    }
    assert_eq!(world.lines(), [0, 1, 2]);
}

#[test]
fn lost_request_on_a_reused_connection_is_resent_if_safe() {
    // `/v1/again` gets a response only on a later connection, and `/v1/lost` gets none.
    fn answer(heard: &Heard, stream: &mut TcpStream) -> bool {
        match path(heard) {
            "/v1/first" => say(stream, OK),
            "/v1/again" if heard.0 > 0 => say(stream, OK),
            _ => false,
        }
    }
    let limits = Limits { kept_body: 100, ..Limits::default() };
    let small = "Content-Length: 3\r\n";
    for (request, lines, body, status, heard) in [
        ("GET /v1/again", "", 0, 200, &[0, 0, 1][..]),
        ("PUT /v1/again", small, 3, 200, &[0, 0, 1]),
        ("POST /v1/again", small, 3, 502, &[0, 0]),
        ("PUT /v1/again", "Content-Length: 40000\r\n", 40_000, 502, &[0, 0]),
        ("GET /v1/lost", "", 0, 502, &[0, 0, 1]),
    ] {
        let world = World::new(limits, answer);
        let mut client = world.connect();
        client.write_all(world.head("GET /v1/first", "").as_bytes()).unwrap();
        read_ok(&mut client);
        let head = world.head(request, &format!("Connection: close\r\n{lines}"));
        client.write_all(format!("{head}{}", "x".repeat(body)).as_bytes()).unwrap();
        let answer = rest(&mut client);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request} {lines}: {answer}");
        assert_eq!(world.lines(), heard, "{request} {lines}");
    }
    // A new connection was not closed for being idle.
    let world = World::new(limits, answer);
    assert!(world.ask("GET /v1/again").contains("the API closed the connection before it answered"));
    assert_eq!(world.lines(), [0]);
}

#[test]
fn response_head_is_parsed_in_any_pieces() {
    fn answer(heard: &Heard, stream: &mut TcpStream) -> bool {
        const GO_ON: &str = "HTTP/1.1 100 Continue\r\n\r\n";
        const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n";
        let pieces = match path(heard) {
            "/v1/pieces" => vec!["HTTP/1.1 200 O", "K\r\ncontent-le", "ngth: 2\r\n\r", "\no", "k"],
            "/v1/word" => vec![GO_ON, OK],
            "/v1/word-at-once" => return say(stream, &format!("{GO_ON}{OK}")),
            "/v1/hints" => vec![HINTS, OK],
            "/v1/half-a-head" => vec!["HTTP/1.1 2"],
            "/v1/endless-head" => {
                return say(stream, "HTTP/1.1 200 OK\r\n")
                    && (0..2000).all(|_| say(stream, &format!("x: {HINTS:?}\r\n")));
            }
            _ => vec![],
        };
        for piece in pieces {
            say(stream, piece);
            sleep(Duration::from_millis(30));
        }
        path(heard) != "/v1/half-a-head"
    }
    let world = World::new(Limits::default(), answer);
    let ends = OK.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    for path in ["pieces", "word"] {
        assert_eq!(world.ask(&format!("GET /v1/{path}")), ends, "{path}");
    }
    let begun = Instant::now();
    for _ in 0..8 {
        assert_eq!(world.ask("GET /v1/word-at-once"), ends);
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "what is there already is not waited for");
    assert!(
        world.ask("GET /v1/hints").starts_with("HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n")
    );
    for path in ["half-a-head", "endless-head"] {
        let answer = world.ask(&format!("GET /v1/{path}"));
        assert!(answer.contains("what came back from the API is no answer"), "{path}: {answer}");
    }
}

#[test]
fn broken_or_stalled_response_is_never_followed_by_another() {
    fn answer(heard: &Heard, stream: &mut TcpStream) -> bool {
        match path(heard) {
            "/v1/hints" => say(stream, "HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"),
            "/v1/half" => say(stream, "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"),
            _ => true,
        };
        if heard.1.contains("?silent") {
            // Longer than any timeout.
            sleep(Duration::from_secs(20));
        }
        false
    }
    let world = World::new(Limits { answer: Duration::from_secs(1), ..Limits::default() }, answer);
    std::thread::scope(|scope| {
        for query in ["", "?silent"] {
            let world = &world;
            scope.spawn(move || {
                let answer = world.ask(&format!("GET /v1/hints{query}"));
                assert!(answer.ends_with("link: </x>\r\n\r\n"), "{answer}");
            });
            scope.spawn(move || {
                let answer = world.ask(&format!("GET /v1/half{query}"));
                assert!(answer.ends_with("\r\n\r\nhalf"), "{answer}");
            });
        }
        scope.spawn(|| assert!(world.ask("GET /v1/nothing?silent").contains("the API did not answer in time")));
    });
    assert_eq!(world.lines().len(), 5, "none was sent again");
}

#[test]
fn body_bytes_are_counted_however_they_arrive() {
    fn answer(heard: &Heard, stream: &mut TcpStream) -> bool {
        stream.read_exact(&mut [0; 30]).is_ok() && ok(heard, stream)
    }
    let world = World::new(Limits::default(), answer);
    let mut client = world.connect();
    let head = world.head("POST /v1/messages", "Content-Length: 30\r\n");
    client.write_all(format!("{head}{}", "x".repeat(10)).as_bytes()).unwrap();
    for _ in 0..2 {
        sleep(Duration::from_millis(50));
        client.write_all(&[b'x'; 10]).unwrap();
    }
    read_ok(&mut client);
    drop(client);
    assert_eq!(world.told(), [("POST".to_owned(), 200, 30, OK.len() as u64)]);
}

#[test]
fn refused_request_read_to_its_end_keeps_the_connection() {
    fn answer(heard: &Heard, stream: &mut TcpStream) -> bool {
        path(heard) != "/v1/broken" && ok(heard, stream)
    }
    let world = World::new(Limits::default(), answer);
    let mut client = world.connect();
    client.write_all(world.head("GET /v1/broken", "").as_bytes()).unwrap();
    let refusal = head(&mut client).unwrap();
    assert!(refusal.starts_with("HTTP/1.1 502 ") && !refusal.contains("connection: close"), "{refusal}");
    let length = refusal.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    client.read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
    client.write_all(world.head("GET /v1/models", "").as_bytes()).unwrap();
    read_ok(&mut client);
    // The rest of a body would be read as another request.
    let mut client = world.connect();
    client.write_all(world.head("POST /v1/broken", "Content-Length: 10\r\n").as_bytes()).unwrap();
    assert!(rest(&mut client).contains("connection: close"));
}

#[test]
fn unrecoverable_401_is_forwarded_at_once_and_whole() {
    const NO: &str = "HTTP/1.1 401 Unauthorized\r\nrequest-id: req_1\r\ncontent-length: 2\r\n\r\nno";
    let world = World::new(Limits::default(), |_, stream| say(stream, NO));
    let begun = Instant::now();
    assert_eq!(world.ask("GET /v1/models"), NO.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n"));
    assert_eq!(world.lines(), [0], "the same credential is not tried twice");
    let mut client = world.connect();
    client.write_all(world.head("GET /v1/models", "").as_bytes()).unwrap();
    let mut answer = [0; NO.len()];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), NO);
    assert!(begun.elapsed() < Duration::from_secs(30), "nobody waits for what was said not to come");
}

#[test]
fn early_401_is_retried_with_the_whole_body_if_kept() {
    // The first connection gets a 401 as soon as the head has arrived.
    fn answer(heard: &Heard, stream: &mut TcpStream) -> bool {
        if heard.0 == 0 {
            let _ = say(stream, "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n");
            sleep(Duration::from_secs(1));
            return false;
        }
        let mut body = [0; 20];
        stream.read_exact(&mut body).is_ok() && body == [b'x'; 20] && ok(heard, stream)
    }
    for (kept_body, status, lines) in [(20, 200, &[0, 1][..]), (19, 401, &[0])] {
        let limits = Limits { kept_body, ..Limits::default() };
        let world = World::with(limits, answer, |publisher| publisher.hold(&credential("second", 600)));
        let mut client = world.connect();
        let head = world.head("POST /v1/messages", "Content-Length: 20\r\n");
        client.write_all(format!("{head}{}", "x".repeat(5)).as_bytes()).unwrap();
        sleep(Duration::from_millis(100));
        client.write_all(&[b'x'; 15]).unwrap();
        let answer = self::head(&mut client).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{kept_body} bytes are kept: {answer}");
        assert_eq!(world.lines(), lines);
    }
    // A client that waits for 100 Continue sends no body before.
    let world = World::with(Limits::default(), answer, |publisher| publisher.hold(&credential("second", 600)));
    let mut client = world.connect();
    let begun = Instant::now();
    let lines = "Content-Length: 20\r\nExpect: 100-continue\r\n";
    client.write_all(world.head("POST /v1/messages", lines).as_bytes()).unwrap();
    assert!(head(&mut client).unwrap().starts_with("HTTP/1.1 401 "));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn request_waits_for_the_successor_of_an_expired_credential() {
    let world =
        |rejected| World::with(Limits { credential: Duration::from_secs(40), ..Limits::default() }, ok, rejected);
    let later = |publisher: &Arc<CredentialPublisher>, tell: fn(&CredentialPublisher)| {
        let publisher = Arc::clone(publisher);
        std::thread::spawn(move || {
            sleep(Duration::from_millis(300));
            tell(&publisher);
        })
    };
    // The credential is expired and no renewal is known. The gateway requests one, and any outcome ends the wait.
    for (tell, expected) in [
        ((|publisher| publisher.hold(&credential("second", 600))) as fn(&CredentialPublisher), "ok"),
        (CredentialPublisher::nothing_new, "the credential has ended and could not be renewed"),
        (|publisher| publisher.refuse("nobody may".to_owned(), false), "nobody may"),
    ] {
        let world = world(|_| {});
        world.publisher.hold(&credential("ended", 0));
        let (begun, teller) = (Instant::now(), later(&world.publisher, tell));
        let answer = world.ask("GET /v1/models");
        assert!(answer.contains(expected), "{answer}");
        let took = begun.elapsed();
        assert!(took > Duration::from_millis(250) && took < Duration::from_secs(20), "{took:?}");
        teller.join().unwrap();
    }
}

#[test]
fn silent_clients_are_disconnected_and_slow_ones_are_not() {
    let seconds = Duration::from_secs;
    let limits = Limits { idle: seconds(1), head: seconds(2), ..Limits::default() };
    let hasty = World::new(limits, ok);
    let patient = World::new(Limits { idle: seconds(3), ..limits }, ok);
    std::thread::scope(|scope| {
        // The connection is not closed before its timeout, whenever that began.
        scope.spawn(|| {
            let mut client = hasty.connect();
            sleep(Duration::from_millis(500));
            client.write_all(hasty.head("GET /v1/models", "").as_bytes()).unwrap();
            read_ok(&mut client);
            let begun = Instant::now();
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            assert!(begun.elapsed() >= seconds(1), "{:?}", begun.elapsed());
        });
        // Each request restarts the timeout.
        scope.spawn(|| {
            let mut client = patient.connect();
            for _ in 0..5 {
                client.write_all(patient.head("GET /v1/models", "").as_bytes()).unwrap();
                read_ok(&mut client);
                sleep(Duration::from_millis(900));
            }
        });
        // Single bytes do not extend the timeout.
        scope.spawn(|| {
            let mut client = patient.connect();
            let begun = Instant::now();
            let is_over = patient.head("GET /v1/models", "").bytes().any(|byte| {
                sleep(Duration::from_millis(200));
                client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
                client.write_all(&[byte]).is_err() || matches!(client.read(&mut [0]), Ok(0))
            });
            assert!(is_over && begun.elapsed() >= seconds(2), "{:?}", begun.elapsed());
        });
        // The timeout of a head begins with its first byte, however long the connection was idle before.
        scope.spawn(|| {
            let mut client = patient.connect();
            let head = patient.head("GET /v1/models", "");
            let (one, other) = head.split_at(20);
            client.write_all(head.as_bytes()).unwrap();
            read_ok(&mut client);
            sleep(Duration::from_millis(2500));
            client.write_all(one.as_bytes()).unwrap();
            sleep(Duration::from_millis(1200));
            client.write_all(other.as_bytes()).unwrap();
            read_ok(&mut client);
        });
    });
}

#[test]
fn client_sign_in_returns_the_capability_without_the_api() {
    let world = World::new(Limits::default(), ok);
    let mut client = world.connect();
    let host = format!("Host: {}\r\n", world.address);
    let grant = r#"{"grant_type":"urn:ietf:params:oauth:grant-type:jwt-bearer","assertion":"c4p4"}"#;
    // The capability as the identity token, in two pieces, on a connection that stays open.
    let ask = format!("POST /v1/oauth/token HTTP/1.1\r\n{host}Content-Length: {}\r\n\r\n", grant.len());
    client.write_all(format!("{ask}{}", &grant[..9]).as_bytes()).unwrap();
    sleep(Duration::from_millis(50));
    client.write_all(&grant.as_bytes()[9..]).unwrap();
    let answer = head(&mut client).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let length = answer.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    let mut body = vec![0; length];
    client.read_exact(&mut body).unwrap();
    assert!(String::from_utf8(body).unwrap().contains(r#""access_token":"c4p4""#));
    // The capability in the headers, with any body, as the last request of a connection.
    let ask = world.head("POST /v1/oauth/token", "Content-Length: 2\r\nConnection: close\r\n");
    client.write_all(format!("{ask}{{}}").as_bytes()).unwrap();
    assert!(rest(&mut client).contains(r#""access_token":"c4p4""#));
    assert!(world.ask("GET /v1/oauth/token").starts_with("HTTP/1.1 405 "));
    let mut client = world.connect();
    client.write_all(world.head("POST /v1/oauth/token", "Content-Length: 70000\r\n").as_bytes()).unwrap();
    let _ = client.write_all(&[b'x'; 70_000]);
    assert!(head(&mut client).unwrap().starts_with("HTTP/1.1 413 "));
    assert!(world.lines().is_empty(), "the API hears nothing of it");
    let told = world.told();
    assert_eq!((&*told[0].0, told[0].1, told[0].2), ("POST", 200, grant.len() as u64));
    assert_eq!(told[0].3, (answer.len() + length) as u64);
}

#[test]
fn panic_in_a_connection_ends_only_that_connection() {
    let world = World::new(Limits::default(), |_, stream| say(stream, OK));
    let mut other = world.connect();
    let more = world.head("GET /v1/a", "Content-Length: 0\r\n");
    for round in 1..=3 {
        other.write_all(more.as_bytes()).unwrap();
        read_ok(&mut other);
        assert!(world.ask("GET /v1/panic").ends_with("ok"), "the panic comes after the answer");
        let until = Instant::now() + Duration::from_secs(10);
        while world.faults.load(Ordering::SeqCst) < round && Instant::now() < until {
            sleep(Duration::from_millis(5));
        }
        assert_eq!(world.faults.load(Ordering::SeqCst), round);
    }
    other.write_all(more.as_bytes()).unwrap();
    read_ok(&mut other);
    assert_eq!(world.told().len(), 4, "those that did not panic are recorded");
}

/// Returns a possible API response, made of meaningful pieces. `seed` selects them.
fn hostile_answer(seed: u64) -> Vec<u8> {
    const PIECES: [&str; 40] = [
        "HTTP/1.1 200 OK\r\n",
        "HTTP/1.0 200 OK\r\n",
        "HTTP/1.1 100 Continue\r\n\r\n",
        "HTTP/1.1 103 Early\r\n",
        "HTTP/1.1 204 No Content\r\n",
        "HTTP/1.1 401 Unauthorized\r\n",
        "HTTP/1.1 101 Switch\r\n",
        "\r\n",
        "\n",
        "\r",
        "Connection: Proxy-Connection\r\n",
        "Proxy-Connection: keep-alive\r\n",
        "Connection: close, x, X, keep-alive\r\n",
        "Connection: connection, content-length, transfer-encoding\r\n",
        "Proxy-Authenticate: Basic\r\n",
        "Connection: proxy-authenticate, upgrade\r\n",
        "Upgrade: h2c\r\n",
        "Keep-Alive: timeout=5\r\n",
        "X: 1\r\n",
        "x: 2\r\n",
        "Content-Length: 2\r\n",
        "content-length: 0\r\n",
        "Content-Length: 18446744073709551616\r\n",
        "Content-Length: -1\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        ": \r\n",
        "x\r\n",
        " folded\r\n",
        "\0",
        "\u{ff}",
        "ok",
        "2\r\nok\r\n",
        "0\r\n\r\n",
        "0\r\nx: 1\r\n\r\n",
        "fffffffffffff\r\n",
        "2;a=\"b\r\n",
        "zz\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut answer = match next(4) {
        0 => String::new(),
        _ => PIECES[next(6)].to_owned(),
    };
    for _ in 0..next(12) {
        answer.push_str(PIECES[next(PIECES.len())]);
    }
    if next(2) == 0 {
        answer.push_str("content-length: 2\r\n\r\nok");
    }
    answer.into_bytes()
}

#[test]
fn no_api_response_makes_the_gateway_panic() {
    const ANSWERS: u64 = 1500;
    let brief = Duration::from_millis(500);
    let world = World::new(Limits { answer: brief, body: brief, ..Limits::default() }, |(_, line), stream| {
        let seed = line.rsplit('/').nth(1).and_then(|rest| rest.split(' ').next()).and_then(|seed| seed.parse().ok());
        let answer = hostile_answer(seed.unwrap_or_default());
        // Some responses come in two parts. All connections end, so that an incomplete response is an error.
        let (first, second) = answer.split_at(answer.len() / 2);
        let _ = stream.write_all(first);
        if seed.is_some_and(|seed| seed % 3 == 0) {
            sleep(Duration::from_millis(2));
        }
        let _ = stream.write_all(second);
        false
    });
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let world = &world;
            scope.spawn(move || {
                for seed in (worker..ANSWERS).step_by(8) {
                    let method = ["GET", "HEAD", "POST"][usize::try_from(seed % 3).unwrap()];
                    world.ask(&format!("{method} /v1/{seed}"));
                }
            });
        }
    });
    assert_eq!(world.faults.load(Ordering::SeqCst), 0);
    assert!(world.told().iter().filter(|(_, status, ..)| *status == 200).count() > 50, "some of them are good answers");
}

/// RFC 9110 §9.2.2: a message costs money and may have been processed already, so only its client may repeat it.
#[test]
fn broken_reused_connection_retries_get_but_not_post() {
    // The API closes every second request of a connection.
    static SEEN: Mutex<Vec<usize>> = Mutex::new(Vec::new());
    let world = World::new(Limits::default(), |(number, _), stream| {
        let mut seen = SEEN.lock().unwrap();
        seen.push(*number);
        seen.iter().filter(|other| *other == number).count() % 2 == 1 && say(stream, OK)
    });
    let statuses = |method: &str| -> Vec<String> {
        (0..6).map(|_| world.ask(&format!("{method} /v1/x")).get(9..12).unwrap_or("none").to_owned()).collect()
    };
    assert_eq!(statuses("POST"), ["200", "502", "200", "502", "200", "502"], "as nginx 1.22 answers by default");
    assert_eq!(statuses("GET"), ["200"; 6]);
}
