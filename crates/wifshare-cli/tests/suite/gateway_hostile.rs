//! Hostile and broken input to the gateway at byte level, from clients and from the API.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use wifshare_sandbox::Settings;

use crate::gateway_ends::{ACCESS_TOKEN, Api, Gateway, Heard};
use crate::job::{Job, eventually, finish, settings};

fn ok(_: &Heard, stream: &mut TcpStream) -> bool {
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").is_ok()
}

#[test]
fn invalid_requests_are_refused_and_never_forwarded() {
    let api = Api::start(ok);
    let (_job, gateway) = Gateway::before(&api);
    let (address, capability, good) = (gateway.address, gateway.capability.clone(), gateway.good());
    let host = format!("Host: {address}\r\n");
    let bearer = format!("Authorization: Bearer {capability}\r\n");
    let shorter = &capability[..capability.len() - 1];
    let get = "GET /v1/models HTTP/1.1\r\n";
    let post = "POST /v1/messages HTTP/1.1\r\n";
    for (status, request) in [
        // Invalid capabilities.
        (401, format!("{get}{host}\r\n")),
        (401, format!("{get}{host}Authorization: Bearer wrong\r\n\r\n")),
        (401, format!("{get}{host}Authorization: Bearer {shorter}\r\n\r\n")),
        (401, format!("{get}{host}Authorization: Bearer {capability}x\r\n\r\n")),
        (401, format!("{get}{host}Authorization: Basic {capability}\r\n\r\n")),
        (401, format!("{get}{host}X-Api-Key: {shorter}\r\n\r\n")),
        (401, format!("{get}{host}{bearer}X-Api-Key: wrong\r\n\r\n")),
        (401, format!("{get}{host}Cookie: {capability}\r\n\r\n")),
        (400, format!("{get}{host}{bearer}{bearer}\r\n")),
        // The token endpoint, called by a process that is not a child of the run.
        (401, format!("POST /v1/oauth/token HTTP/1.1\r\n{host}Connection: close\r\nContent-Length: 2\r\n\r\n{{}}")),
        // Invalid origins.
        (403, format!("{get}{bearer}\r\n")),
        (403, format!("{get}Host: evil.example\r\n{bearer}\r\n")),
        (403, format!("{get}Host: localhost:{}\r\n{bearer}\r\n", address.port())),
        (403, format!("{get}Host: 127.0.0.1\r\n{bearer}\r\n")),
        (403, format!("{get}{good}Origin: http://{address}\r\n\r\n")),
        (403, format!("{get}{good}Origin: null\r\n\r\n")),
        (403, format!("{get}{good}Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: cors\r\n\r\n")),
        (403, format!("{get}{good}X-Forwarded-For: 10.0.0.1\r\n\r\n")),
        (405, format!("OPTIONS /v1/messages HTTP/1.1\r\n{good}\r\n")),
        (405, format!("CONNECT api.example:443 HTTP/1.1\r\n{good}\r\n")),
        (405, format!("TRACE /v1/messages HTTP/1.1\r\n{good}\r\n")),
        // Invalid targets.
        (404, format!("GET /sandbox/counters HTTP/1.1\r\n{good}\r\n")),
        (404, format!("GET /v1 HTTP/1.1\r\n{good}\r\n")),
        (400, format!("GET //v1/models HTTP/1.1\r\n{good}\r\n")),
        (400, format!("GET /v1//models HTTP/1.1\r\n{good}\r\n")),
        (400, format!("GET /v1/../sandbox/counters HTTP/1.1\r\n{good}\r\n")),
        (400, format!("GET /v1/%2e%2e/sandbox/counters HTTP/1.1\r\n{good}\r\n")),
        (400, format!("GET /v1/..%2fsandbox HTTP/1.1\r\n{good}\r\n")),
        (400, format!("GET /v1/%5c..%5c HTTP/1.1\r\n{good}\r\n")),
        (400, format!("GET /v1/a%00b HTTP/1.1\r\n{good}\r\n")),
        (400, format!("GET /v1/a\x01b HTTP/1.1\r\n{good}\r\n")),
        (400, format!("GET http://{address}/v1/models HTTP/1.1\r\n{good}\r\n")),
        (400, format!("GET http://evil.example/v1/models HTTP/1.1\r\n{good}\r\n")),
        // Ambiguous ends of the request.
        (400, format!("{post}{good}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
        (400, format!("{post}{good}Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!")),
        (400, format!("{post}{good}Content-Length: 5, 5\r\n\r\nhello")),
        (501, format!("{post}{good}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n")),
        (400, format!("{post}{good}Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n")),
        (501, format!("{post}{good}Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n").replace('\x0b', "x")),
        (400, format!("{post}{good}Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n")),
        (400, format!("{post}{good}Transfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n")),
        (400, format!("{post}{good}X: a\r\n Content-Length: 5\r\n\r\nhello")),
        (400, format!("{post}{good}X: a\nContent-Length: 5\r\n\r\nhello")),
        (413, format!("{post}{good}Content-Length: 9999999999\r\n\r\n")),
        (431, format!("{post}{good}X: {}\r\n\r\n", "x".repeat(70_000))),
        (431, format!("{post}{good}{}\r\n", "X: y\r\n".repeat(300))),
        (505, format!("GET /v1/models HTTP/1.0\r\n{good}\r\n")),
        (400, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned()),
        (400, "\x16\x03\x01\x02\x00\x01\x00\x01".to_owned() + "\u{fc}\r\n\r\n"),
    ] {
        let answer = gateway.ask(&request);
        let shown: String = request.chars().take(300).collect();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?} wants {status}: {answer}");
        assert!(answer.contains(r#"{"error":{"message":"wifshare gateway: "#), "{answer}");
        assert!(!answer.to_lowercase().contains("access-control") && !answer.contains(ACCESS_TOKEN), "{answer}");
    }
    assert_eq!(api.count(), 0, "{:#?}", api.heard.lock().unwrap());
    gateway.good_request_is_served();
}

#[test]
fn smuggled_request_does_not_reach_the_api() {
    let api = Api::start(ok);
    let (_job, gateway) = Gateway::before(&api);
    let good = gateway.good();
    let hidden = format!("GET /v1/hidden HTTP/1.1\r\n{good}\r\n");
    for framing in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding:\tchunked\r\n\r\n0\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\nx\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\nTransfer-Encoding: x\r\n\r\n",
        "Content-Length: 0\r\nContent-Length: 44\r\n\r\n",
        "Content-Length: -1\r\n\r\n",
        "Content-Length: 0x0\r\n\r\n",
        "Content-Length : 0\r\n\r\n",
        "Content-Length: 0\r\n X: y\r\n\r\n",
    ] {
        gateway.ask(&format!("POST /v1/messages HTTP/1.1\r\n{good}{framing}{hidden}"));
    }
    let heard = api.heard.lock().unwrap().clone();
    assert!(!heard.iter().any(|heard| heard.head.contains("hidden")), "{heard:#?}");
}

#[test]
fn forwarded_request_differs_only_by_its_credential() {
    let api = Api::start(ok);
    let (_job, gateway) = Gateway::before(&api);
    let body = "4;x=y\r\nWiki\r\n0\r\ndigest: z\r\n\r\n";
    // Two pipelined requests.
    let answer = gateway.ask(&format!(
        "POST /v1/messages?beta=true HTTP/1.1\r\n{}Anthropic-Beta: a\r\nX-Other: 1\r\nTransfer-Encoding: chunked\r\n\r\n{body}\
         GET /v1/models HTTP/1.1\r\nHost: {}\r\nx-api-key: {}\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\n\r\n",
        gateway.good(),
        gateway.address,
        gateway.capability,
    ));
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
    assert!(answer.ends_with("\r\nconnection: close\r\n\r\nok"), "{answer}");
    let heard = api.heard.lock().unwrap().clone();
    let authority = api.address;
    assert_eq!(
        heard[0].head,
        format!(
            "POST /v1/messages?beta=true HTTP/1.1\r\nhost: {authority}\r\nAnthropic-Beta: a,oauth-2025-04-20\r\n\
             X-Other: 1\r\nTransfer-Encoding: chunked\r\nvia: 1.1 wifshare\r\nauthorization: Bearer {ACCESS_TOKEN}\r\n\r\n"
        )
    );
    assert_eq!(heard[0].body, body.as_bytes());
    assert_eq!(
        heard[1].head,
        format!(
            "GET /v1/models HTTP/1.1\r\nhost: {authority}\r\nanthropic-beta: oauth-2025-04-20\r\n\
             via: 1.1 wifshare\r\nauthorization: Bearer {ACCESS_TOKEN}\r\n\r\n"
        )
    );
}

#[test]
fn response_is_forwarded_verbatim_with_hints_and_trailers() {
    let hints = "HTTP/1.1 103 Early Hints\r\nlink: </x>; rel=preload\r\n\r\n";
    let answer = "HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\nX-Odd:  spaced \r\n\r\n3;ext\r\nabc\r\n0\r\nx-trailer: 1\r\n\r\n";
    let api = Api::start(move |_, stream| {
        stream.write_all(hints.as_bytes()).unwrap();
        stream.write_all(answer.as_bytes()).is_ok()
    });
    let (_job, gateway) = Gateway::before(&api);
    let mut stream = gateway.connect();
    write!(stream, "GET /v1/models HTTP/1.1\r\n{}\r\n", gateway.good()).unwrap();
    let expected = format!("{hints}{answer}");
    let mut heard = vec![0; expected.len()];
    stream.read_exact(&mut heard).unwrap();
    assert_eq!(String::from_utf8_lossy(&heard), expected);
}

#[test]
fn expect_continue_is_answered_before_the_body() {
    let api = Api::start(|heard, stream| {
        assert!(heard.head.contains("Expect: 100-continue\r\n"), "{}", heard.head);
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
        let mut body = vec![0; 2 << 20];
        stream.read_exact(&mut body).is_ok() && ok(heard, stream)
    });
    let (_job, gateway) = Gateway::before(&api);
    let mut stream = gateway.connect();
    let good = gateway.good();
    write!(stream, "POST /v1/files HTTP/1.1\r\n{good}Expect: 100-continue\r\nContent-Length: {}\r\n\r\n", 2 << 20)
        .unwrap();
    let mut said = [0; 25];
    stream.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(&vec![7; 2 << 20]).unwrap();
    let mut said = [0; 15];
    stream.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"HTTP/1.1 200 OK");
}

#[test]
fn malformed_api_response_fails_only_its_own_request() {
    let api = Api::start(|heard, stream| {
        let whole = match heard.head.split(' ').nth(1).unwrap() {
            "/v1/garbage" => &b"this is no HTTP\r\n\r\n"[..],
            "/v1/both" => b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            "/v1/switch" => b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
            "/v1/nothing" => b"",
            "/v1/short" => b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
            "/v1/chunks" => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n",
            _ => return ok(heard, stream),
        };
        stream.write_all(whole).unwrap();
        false
    });
    let (_job, gateway) = Gateway::before(&api);
    let ask = |path: &str| {
        gateway
            .ask(&format!("POST {path} HTTP/1.1\r\n{}Connection: close\r\nContent-Length: 0\r\n\r\n", gateway.good()))
    };
    for path in ["/v1/garbage", "/v1/both", "/v1/switch", "/v1/nothing"] {
        assert!(ask(path).starts_with("HTTP/1.1 502 "), "{path}: {}", ask(path));
    }
    // A truncated response must not look complete.
    assert!(ask("/v1/short").ends_with("\r\n\r\nshort"));
    assert!(!ask("/v1/chunks").contains("0\r\n\r\n"));
    gateway.good_request_is_served();
}

#[test]
fn client_disconnect_closes_the_api_connection() {
    let (tell, told): (Sender<bool>, Receiver<bool>) = channel();
    let tell = Mutex::new(tell);
    let api = Api::start(move |_, stream| {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let has_left = matches!(stream.read(&mut [0]), Ok(0));
        tell.lock().unwrap().send(has_left).unwrap();
        false
    });
    let (_job, gateway) = Gateway::before(&api);
    let mut stream = gateway.connect();
    write!(stream, "GET /v1/models HTTP/1.1\r\n{}\r\n", gateway.good()).unwrap();
    eventually("the API has heard of it", || api.count() == 1);
    drop(stream);
    assert!(told.recv_timeout(Duration::from_secs(60)).unwrap(), "the API is told that its client has left");
}

#[test]
fn ten_thousand_idle_connections_do_not_block_a_client() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let api = Api::start(ok);
    let (_job, gateway) = Gateway::before(&api);
    // An authenticated client keeps its connection when many others arrive.
    let mut known = gateway.connect();
    let ask = format!("GET /v1/models HTTP/1.1\r\n{}\r\n", gateway.good());
    let serve = |stream: &mut TcpStream| {
        stream.write_all(ask.as_bytes()).unwrap();
        let mut answer = [0; 40];
        stream.read_exact(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
    };
    serve(&mut known);
    let room = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(500);
    let many = usize::try_from(room.min(10_000)).unwrap();
    let start = Instant::now();
    let mut crowd = Vec::new();
    for place in 0..many {
        let Ok(mut stream) = TcpStream::connect(gateway.address) else { continue };
        // Some send nothing, some send an incomplete head.
        if place % 3 == 0 {
            let _ = stream.write_all(b"GET /v1/models HTTP/1.1\r\nHost: ");
        }
        crowd.push(stream);
        if place % 1000 == 0 {
            serve(&mut known);
            gateway.good_request_is_served();
        }
    }
    assert!(crowd.len() * 10 >= many * 9, "{} of {many} connected", crowd.len());
    gateway.good_request_is_served();
    serve(&mut known);
    assert!(gateway.descriptors() < 4096 + 100, "{} descriptors", gateway.descriptors());
    // A request head must be complete within ten seconds.
    let mut slow = gateway.connect();
    slow.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let begun = Instant::now();
    loop {
        let is_over = slow.write_all(b"X").is_err()
            || matches!(slow.read(&mut [0; 512]), Ok(0))
            || matches!(slow.read(&mut [0; 1]), Err(error) if error.kind() == ErrorKind::ConnectionReset);
        if is_over {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "a slow head is ended");
    }
    serve(&mut known);
    eprintln!(
        "{} idle connections, {:?}, peak memory {} KiB",
        crowd.len(),
        start.elapsed(),
        gateway.peak_memory() / 1024
    );
    assert!(gateway.peak_memory() < 64 << 20, "{} bytes", gateway.peak_memory());
}

#[test]
fn clients_connecting_at_once_are_all_served() {
    let api = Api::start(ok);
    let (_job, gateway) = Gateway::before(&api);
    let ask = format!("GET /v1/models HTTP/1.1\r\n{}\r\n", gateway.good());
    let mut clients: Vec<TcpStream> = (0..300).map(|_| gateway.connect()).collect();
    for client in &mut clients {
        client.write_all(ask.as_bytes()).unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let mut answer = [0; 40];
        client.read_exact(&mut answer).unwrap_or_else(|error| panic!("client {number}: {error}"));
        assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
    }
}

#[test]
fn authenticated_clients_are_served_up_to_the_descriptor_limit() {
    // Each client also has a connection to the API, and 64 descriptors are reserved for other uses.
    const DESCRIPTORS: u32 = 200;
    const ROOM: usize = 68;
    let api = Api::start(ok);
    let (_job, gateway) = Gateway::with_descriptors(&api, DESCRIPTORS);
    let ask = format!("GET /v1/models HTTP/1.1\r\n{}\r\n", gateway.good());
    let is_served = |stream: &mut TcpStream| {
        let mut answer = [0; 40];
        let asked = stream.write_all(ask.as_bytes()).and_then(|()| stream.read_exact(&mut answer));
        asked.is_ok() && answer.starts_with(b"HTTP/1.1 200 OK")
    };
    let mut clients: Vec<TcpStream> = (0..ROOM).map(|_| gateway.connect()).collect();
    assert!(clients.iter_mut().all(is_served));
    for _ in 0..60 {
        assert!(!is_served(&mut gateway.connect()), "there is room for {ROOM}");
    }
    assert!(clients.iter_mut().all(is_served), "whoever is known keeps its place");
    clients.pop();
    eventually("a place is free again", || is_served(&mut gateway.connect()));
}

/// Returns bytes that differ from their neighbours at every position.
fn pattern(place: u64) -> u8 {
    (place ^ (place >> 8) ^ (place >> 16)) as u8
}

fn fill(piece: &mut [u8], from: u64) {
    for (byte, place) in piece.iter_mut().zip(from..) {
        *byte = pattern(place);
    }
}

#[test]
fn large_bodies_pass_unchanged_and_unbuffered() {
    const UP: u64 = 64 << 20;
    const DOWN: u64 = 256 << 20;
    let api = Api::start(|heard, stream| {
        if heard.head.starts_with("GET") {
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {DOWN}\r\n\r\n").unwrap();
            let mut piece = vec![0; 1 << 16];
            for from in (0..DOWN).step_by(1 << 16) {
                fill(&mut piece, from);
                stream.write_all(&piece).unwrap();
            }
            return true;
        }
        let mut place = 0;
        let mut piece = vec![0; 1 << 16];
        while place < UP {
            let count = stream.read(&mut piece).unwrap();
            assert!(count > 0, "the upload broke off at {place}");
            assert!(piece[..count].iter().zip(place..).all(|(byte, place)| *byte == pattern(place)), "at {place}");
            place += count as u64;
        }
        ok(heard, stream)
    });
    let (_job, gateway) = Gateway::before(&api);
    gateway.is_awake();
    let before = gateway.peak_memory();
    let mut stream = gateway.connect();
    let mut writer = stream.try_clone().unwrap();
    write!(writer, "POST /v1/files HTTP/1.1\r\n{}Content-Length: {UP}\r\n\r\n", gateway.good()).unwrap();
    let mut piece = vec![0; 1 << 16];
    for from in (0..UP).step_by(1 << 16) {
        fill(&mut piece, from);
        writer.write_all(&piece).unwrap();
    }
    let mut answer = [0; 40];
    stream.read_exact(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "{}", String::from_utf8_lossy(&answer));
    write!(writer, "GET /v1/files/x/content HTTP/1.1\r\n{}\r\n", gateway.good()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let mut place = 0;
    while place < DOWN {
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "the answer broke off at {place}");
        assert!(piece[..count].iter().zip(place..).all(|(byte, place)| *byte == pattern(place)), "at {place}");
        place += count as u64;
    }
    let grown = gateway.peak_memory().saturating_sub(before);
    assert!(grown < 8 << 20, "64 MB up and 256 MB down cost {grown} bytes of memory");
}

impl Gateway {
    /// Sends one request, so that the memory for the first response is counted already.
    fn is_awake(&self) {
        let answer = self.ask(&format!("GET /v1/../ HTTP/1.1\r\n{}\r\n", self.good()));
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }
}

#[test]
fn event_stream_is_forwarded_event_by_event() {
    // Half an hour of one event per second, without waiting: each event is sent when the previous one has arrived.
    const EVENTS: usize = 1800;
    let event = |number: usize| format!("event: ping\ndata: {{\"number\":{number}}}\n\n");
    let (arrived, next) = channel::<usize>();
    let next = Mutex::new(next);
    let api = Api::start(move |_, stream| {
        let next = next.lock().unwrap();
        stream.set_nodelay(true).unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            .unwrap();
        for number in 0..EVENTS {
            let event = event(number);
            write!(stream, "{:x}\r\n{event}\r\n", event.len()).unwrap();
            assert_eq!(next.recv_timeout(Duration::from_secs(60)), Ok(number), "each event arrives by itself");
        }
        stream.write_all(b"0\r\n\r\n").is_ok()
    });
    let (_job, gateway) = Gateway::before(&api);
    let mut stream = gateway.connect();
    write!(stream, "GET /v1/models HTTP/1.1\r\n{}Connection: close\r\n\r\n", gateway.good()).unwrap();
    let mut heard = String::new();
    let mut buffer = [0; 4096];
    for number in 0..EVENTS {
        let event = event(number);
        let whole = format!("{:x}\r\n{event}\r\n", event.len());
        while !heard.ends_with(&whole) {
            let count = stream.read(&mut buffer).unwrap();
            assert!(count > 0, "it broke off at {number}");
            heard.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        arrived.send(number).unwrap();
    }
    stream.read_to_string(&mut heard).unwrap();
    let body = heard.split_once("\r\n\r\n").unwrap().1;
    let expected: String = (0..EVENTS).map(event).map(|event| format!("{:x}\r\n{event}\r\n", event.len())).collect();
    assert_eq!(body, expected + "0\r\n\r\n");
}

#[test]
fn signal_closes_the_listener_and_finishes_open_responses() {
    let (go_on, gone_on) = channel::<()>();
    let gone_on = Mutex::new(gone_on);
    let api = Api::start(move |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nha").unwrap();
        gone_on.lock().unwrap().recv_timeout(Duration::from_secs(60)).unwrap();
        stream.write_all(b"lf").is_ok()
    });
    let (_job, gateway) = Gateway::before(&api);
    let mut idle = gateway.connect();
    let mut stream = gateway.connect();
    write!(stream, "GET /v1/models HTTP/1.1\r\n{}\r\n", gateway.good()).unwrap();
    let mut answer = vec![0; 42];
    stream.read_exact(&mut answer[..40]).unwrap();
    kill_process(gateway.process(), Signal::TERM).unwrap();
    eventually("nobody is let in", || TcpStream::connect(gateway.address).is_err());
    assert!(matches!(idle.read(&mut [0]), Ok(0) | Err(_)), "whoever does nothing is sent away");
    go_on.send(()).unwrap();
    stream.read_exact(&mut answer[40..]).unwrap();
    assert!(answer.ends_with(b"half"), "{}", String::from_utf8_lossy(&answer));
    let ended = gateway.end();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
}

#[test]
fn unix_socket_accepts_only_its_owner() {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    use std::os::unix::net::UnixStream;

    let job = Job::new(Settings::default());
    let path = job.path("gateway.sock");
    let gateway = Gateway::start(&job, &["--unix", path.to_str().unwrap()]);
    let metadata = std::fs::symlink_metadata(&path).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.mode() & 0o777, 0o600);
    let mut stream = UnixStream::connect(&path).unwrap();
    let capability = &gateway.capability;
    write!(
        stream,
        "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nx-api-key: {capability}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    if rustix::process::geteuid().is_root() {
        // The user is also checked if the file's mode is open.
        rustix::fs::chmod(job.path(""), rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
        rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o777)).unwrap();
        let curl =
            ["curl", "-sS", "--max-time", "20", "--unix-socket", path.to_str().unwrap(), "http://localhost/v1/models"];
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let ended = finish(job.command("setpriv", &[&nobody[..], &curl].concat()).spawn().unwrap());
        assert_eq!((ended.stdout.as_str(), ended.code == 0), ("", false), "{}", ended.stderr);
    }
    // An existing file is not replaced.
    let second = job.run(&["gateway", "--unix", path.to_str().unwrap()]);
    assert!(second.stderr.contains("error[gateway-not-opened]"), "{}", second.stderr);
    let ended = gateway.end();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert!(!path.exists(), "it goes with the gateway");
}

#[test]
fn non_loopback_listen_address_is_refused() {
    let job = Job::new(settings());
    let ended = job.run(&["gateway", "--listen", "0.0.0.0:0"]);
    assert_eq!(ended.code, 125);
    assert!(
        ended.stderr.contains("error[gateway-not-opened]") && ended.stderr.contains("loopback"),
        "{}",
        ended.stderr
    );
    assert_eq!(job.counters().identity_tokens_issued, 0, "nothing was asked for");
}

/// Returns the names of the threads of a process.
fn threads(process: rustix::process::Pid) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).unwrap().flatten();
    tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok()).collect()
}

#[cfg(target_os = "linux")]
#[test]
fn unauthenticated_clients_trigger_no_search_and_no_delay() {
    let api = Api::start(ok);
    let (_job, gateway) = Gateway::before(&api);
    let mut good = gateway.connect();
    let searches = || threads(gateway.process()).iter().any(|name| name.starts_with("wifshare-lookup"));
    for round in 0..300 {
        drop(gateway.connect());
        let stranger = ["GET /v1/models", "POST /v1/messages", "GET /nowhere"][round % 3];
        let answer =
            gateway.ask(&format!("{stranger} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", gateway.address));
        assert!(answer.starts_with("HTTP/1.1 401 ") || answer.starts_with("HTTP/1.1 404 "), "{answer}");
    }
    assert!(!searches(), "{:?}", threads(gateway.process()));
    // A token request is checked in its own thread, while others are served.
    let strangers: Vec<TcpStream> = (0..40)
        .map(|_| {
            let mut stranger = gateway.connect();
            let head =
                format!("POST /v1/oauth/token HTTP/1.1\r\nHost: {}\r\nContent-Length: 2\r\n\r\n{{}}", gateway.address);
            stranger.write_all(head.as_bytes()).unwrap();
            stranger
        })
        .collect();
    let begun = Instant::now();
    good.write_all(format!("GET /v1/models HTTP/1.1\r\n{}\r\n", gateway.good()).as_bytes()).unwrap();
    let mut answer = [0; 15];
    good.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for mut stranger in strangers {
        let mut answer = [0; 12];
        stranger.read_exact(&mut answer).unwrap();
        let status = String::from_utf8_lossy(&answer);
        assert!(status == "HTTP/1.1 401" || status == "HTTP/1.1 503", "{status}");
    }
    assert!(searches(), "{:?}", threads(gateway.process()));
}
