//! Measures the throughput and latency of one client while other clients use the gateway.
//!
//! `beside PORT CAPABILITY SECONDS OTHERS` prints `RATE P50 P99`, in requests per second and microseconds. OTHERS is
//! `nobody`, `droppers` (a thousand connections at a time that send nothing and close), `strangers` (four clients that
//! send requests without the capability, each on a new connection), `newcomers` (the client itself opens a connection
//! for each request), or `sockets` (sixteen thousand open sockets elsewhere on this machine). Uses only the standard
//! library.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, port, capability, seconds, others] = &arguments[..] else { panic!("PORT CAPABILITY SECONDS OTHERS") };
    let address = format!("127.0.0.1:{port}");
    let time = Duration::from_secs_f64(seconds.parse().expect("seconds"));
    let is_over = Arc::new(AtomicBool::new(false));
    let mut held = Vec::new();
    let crowd: Vec<JoinHandle<()>> = match others.as_str() {
        "nobody" | "newcomers" => Vec::new(),
        "droppers" => vec![repeat(&is_over, address.clone(), droppers)],
        "strangers" => (0..4).map(|_| repeat(&is_over, address.clone(), stranger)).collect(),
        "sockets" => {
            held = sockets(8_000);
            Vec::new()
        }
        _ => panic!("{others} are not known"),
    };
    std::thread::sleep(Duration::from_millis(300));
    let mut taken = good_client(&address, capability, time, others == "newcomers");
    is_over.store(true, Ordering::Relaxed);
    crowd.into_iter().for_each(|one| one.join().expect("no panic"));
    drop(held);
    taken.sort_unstable();
    let at = |share: f64| taken[((taken.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!("{:.0} {:.0} {:.0}", taken.len() as f64 / time.as_secs_f64(), at(0.5), at(0.99));
}

/// Sends requests one after another and measures the time of each.
fn good_client(address: &str, capability: &str, time: Duration, is_new_each_time: bool) -> Vec<Duration> {
    const BODY: &str = r#"{"model":"m","max_tokens":1,"messages":[{"role":"user","content":"hi"}]}"#;
    let connection = if is_new_each_time { "close" } else { "keep-alive" };
    let request = format!(
        "POST /v1/messages HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {capability}\r\nconnection: {connection}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    let (mut taken, mut open) = (Vec::new(), None);
    let begun = Instant::now();
    while begun.elapsed() < time {
        let start = Instant::now();
        let mut stream = open.take().unwrap_or_else(|| connect(address));
        stream.write_all(request.as_bytes()).expect("a request that leaves");
        let status = read_answer(&mut stream);
        assert!(status.starts_with("HTTP/1.1 200"), "{status}");
        taken.push(start.elapsed());
        open = Some(stream).filter(|_| !is_new_each_time);
    }
    taken
}

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).expect("an option");
    stream.set_read_timeout(Some(Duration::from_secs(120))).expect("an option");
    stream
}

/// Reads a response with a Content-Length. Returns its head.
fn read_answer(stream: &mut TcpStream) -> String {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 16 * 1024]);
    loop {
        let count = stream.read(&mut buffer).expect("an answer");
        assert!(count > 0, "the connection ended: {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let lower = head.to_ascii_lowercase();
        let length = lower.lines().find_map(|line| line.strip_prefix("content-length: "));
        if length.is_some_and(|length| body.len() >= length.trim().parse().expect("a length")) {
            return head.to_owned();
        }
    }
}

fn repeat(is_over: &Arc<AtomicBool>, address: String, once: fn(&str)) -> JoinHandle<()> {
    let is_over = Arc::clone(is_over);
    std::thread::spawn(move || {
        while !is_over.load(Ordering::Relaxed) {
            once(&address);
        }
    })
}

/// Opens a thousand connections and closes them. Some may be rejected.
fn droppers(address: &str) {
    let all: Vec<_> = (0..1000).filter_map(|_| TcpStream::connect(address).ok()).collect();
    drop(all);
    std::thread::sleep(Duration::from_millis(50));
}

fn stranger(address: &str) {
    let Ok(mut stream) = TcpStream::connect(address) else { return };
    let request = format!("GET /v1/models HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    if stream.write_all(request.as_bytes()).is_ok() {
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

/// Opens this number of connections between two ends of this process.
fn sockets(number: usize) -> Vec<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let pair = |_| {
        let near = TcpStream::connect(address).expect("more descriptors: ulimit -n");
        (near, listener.accept().expect("the other end").0)
    };
    (0..number).map(pair).collect()
}
