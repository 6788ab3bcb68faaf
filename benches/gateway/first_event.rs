//! Measures the time from the API's socket to the client's for the first event of a stream, through each proxy in turn.
//!
//! One program is both ends, so both times come from one clock. `first_event PORT_OF_THE_API ROUNDS
//! NAME=PORT=CAPABILITY...` prints `NAME MICROSECONDS` with the median for each proxy. It uses only the standard
//! library: `rustc -O first_event.rs`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let port = &arguments[1];
    let rounds: usize = arguments[2].parse().expect("a number of rounds");
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).expect("the API's port");
    let (sent, times) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sent = sent.clone();
            std::thread::spawn(move || attend(stream, &sent));
        }
    });
    println!("ready");
    // The caller writes a line when the proxies are ready.
    std::io::stdin().lock().read_line(&mut String::new()).expect("a line");
    let proxies: Vec<[&str; 3]> = arguments[3..]
        .iter()
        .map(|proxy| proxy.splitn(3, '=').collect::<Vec<_>>().try_into().expect("NAME=PORT=CAPABILITY"))
        .collect();
    let mut taken = vec![Vec::new(); proxies.len()];
    let mut clients: Vec<TcpStream> = proxies.iter().map(|[_, port, _]| connect(port)).collect();
    for round in 0..rounds + 20 {
        // The proxies take turns, so that other load on the machine affects all of them.
        for (place, [_, port, capability]) in proxies.iter().enumerate() {
            let client = &mut clients[place];
            let request = format!(
                "POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {capability}\r\n\
                 Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
            );
            client.write_all(request.as_bytes()).expect("the request leaves");
            let arrived = hear(client);
            let left = times.recv().expect("the API says when");
            if round >= 20 {
                taken[place].push(arrived.duration_since(left).as_nanos() as f64 / 1000.0);
            }
        }
    }
    for ([name, ..], taken) in proxies.iter().zip(&mut taken) {
        taken.sort_by(f64::total_cmp);
        println!("{name} {:.1}", taken[taken.len() / 2]);
    }
}

fn connect(port: &str) -> TcpStream {
    let stream = TcpStream::connect(format!("127.0.0.1:{port}")).expect("the proxy's port");
    stream.set_nodelay(true).expect("no delay");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a patience");
    stream
}

/// Reads to the end of the stream. Returns when the first event arrived.
fn hear(client: &mut TcpStream) -> Instant {
    let mut heard = Vec::new();
    let mut buffer = [0; 4096];
    let mut first = None;
    while !heard.ends_with(b"0\r\n\r\n") {
        let count = client.read(&mut buffer).expect("an answer");
        assert!(count > 0, "it broke off: {}", String::from_utf8_lossy(&heard));
        heard.extend_from_slice(&buffer[..count]);
        if first.is_none() && heard.windows(12).any(|bytes| bytes == b"event: first") {
            first = Some(Instant::now());
        }
    }
    first.expect("an event")
}

/// Answers each request with a stream of two events: the head, a pause, and then the first event.
fn attend(stream: TcpStream, sent: &Sender<Instant>) {
    stream.set_nodelay(true).expect("no delay");
    let mut writer = stream.try_clone().expect("a second handle");
    let mut reader = BufReader::new(stream);
    loop {
        let (mut line, mut length, mut is_token) = (String::new(), 0, false);
        loop {
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            is_token |= line.starts_with("POST /v1/oauth/token");
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            if line == "\r\n" {
                break;
            }
        }
        reader.read_exact(&mut vec![0; length]).expect("a body");
        if is_token {
            let body = r#"{"access_token":"sk-ant-oat01-of-the-benchmark","token_type":"Bearer","expires_in":3600}"#;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
            write!(writer, "{head}content-length: {}\r\n\r\n{body}", body.len()).expect("the answer leaves");
            continue;
        }
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        writer.write_all(head.as_bytes()).expect("the head leaves");
        std::thread::sleep(Duration::from_millis(3));
        let event = "event: first\ndata: {}\n\n";
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        let now = Instant::now();
        writer.write_all(chunk.as_bytes()).expect("the event leaves");
        sent.send(now).expect("somebody measures");
        std::thread::sleep(Duration::from_millis(1));
        writer.write_all(b"0\r\n\r\n").expect("the end leaves");
    }
}
