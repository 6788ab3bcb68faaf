//! Both ends of a gateway at byte level: an API whose responses a test controls, and the gateway's process in front of
//! it.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::job::{Job, finish, settings};

/// The access token that the API of these tests issues.
pub(crate) const ACCESS_TOKEN: &str = "sk-ant-oat01-canary-of-the-raw-api";

/// A minimal API that answers as a test wants and records requests. It implements the token endpoint.
pub(crate) struct Api {
    pub(crate) address: SocketAddr,
    pub(crate) heard: Arc<Mutex<Vec<Heard>>>,
}

/// A request as received.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Api {
    /// `answer` writes the response and returns whether the connection stays open.
    pub(crate) fn start(answer: impl Fn(&Heard, &mut TcpStream) -> bool + Send + Sync + 'static) -> Api {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (seen, answer) = (Arc::clone(&heard), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                std::thread::spawn(move || Api::attend(stream, &seen, &*answer));
            }
        });
        Api { address, heard }
    }

    fn attend(mut stream: TcpStream, seen: &Mutex<Vec<Heard>>, answer: &dyn Fn(&Heard, &mut TcpStream) -> bool) {
        while let Some(heard) = Api::hear(&mut stream) {
            if heard.head.starts_with("POST /v1/oauth/token ") {
                let body = format!(r#"{{"access_token":"{ACCESS_TOKEN}","token_type":"Bearer","expires_in":3600}}"#);
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
                write!(stream, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
                return;
            }
            seen.lock().unwrap().push(heard.clone());
            if !answer(&heard, &mut stream) {
                return;
            }
        }
    }

    fn hear(stream: &mut TcpStream) -> Option<Heard> {
        let mut bytes = Vec::new();
        let mut byte = [0];
        let mut read = |until: &dyn Fn(&[u8]) -> bool| {
            let start = bytes.len();
            while !until(&bytes[start..]) {
                stream.read_exact(&mut byte).ok()?;
                bytes.push(byte[0]);
            }
            Some(bytes[start..].to_vec())
        };
        let head = String::from_utf8(read(&|read| read.ends_with(b"\r\n\r\n"))?).unwrap();
        let small = head.to_lowercase();
        let length = small.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        let body = match length {
            Some(length) if length <= 1 << 20 => read(&|read| read.len() == length)?,
            // A test that sends a longer body reads it itself.
            Some(_) => Vec::new(),
            None if small.contains("transfer-encoding: chunked") => read(&|read| read.ends_with(b"\r\n\r\n"))?,
            None => Vec::new(),
        };
        Some(Heard { head, body })
    }

    pub(crate) fn count(&self) -> usize {
        self.heard.lock().unwrap().len()
    }
}

/// A gateway started by `wifshare gateway`.
pub(crate) struct Gateway {
    child: Option<Child>,
    pub(crate) address: SocketAddr,
    pub(crate) capability: String,
}

impl Gateway {
    pub(crate) fn start(job: &Job, options: &[&str]) -> Gateway {
        Gateway::of(job.wifshare(&[&["gateway"], options].concat()))
    }

    fn of(mut command: Command) -> Gateway {
        let mut child = command.spawn().unwrap();
        let mut said = String::new();
        let mut stdout = std::io::BufReader::new(child.stdout.as_mut().unwrap());
        while !said.contains("ANTHROPIC_AUTH_TOKEN=") {
            let read = std::io::BufRead::read_line(&mut stdout, &mut said).unwrap();
            assert!(read > 0, "the gateway ended: {said}");
        }
        let value = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
        let address = value("ANTHROPIC_BASE_URL=http://").parse().unwrap_or(([127, 0, 0, 1], 0).into());
        Gateway { address, capability: value("ANTHROPIC_AUTH_TOKEN="), child: Some(child) }
    }

    /// Starts a gateway in front of an API of a test.
    pub(crate) fn before(api: &Api) -> (Job, Gateway) {
        let job = Gateway::job(api);
        let gateway = Gateway::start(&job, &Gateway::IDENTITY);
        (job, gateway)
    }

    /// Like `before`, with a limit on file descriptors.
    pub(crate) fn with_descriptors(api: &Api, most: u32) -> (Job, Gateway) {
        let job = Gateway::job(api);
        let script = format!("ulimit -n {most}; exec \"$0\" gateway \"$@\"");
        let arguments = [&["-c", &script, env!("CARGO_BIN_EXE_wifshare")], &Gateway::IDENTITY[..]].concat();
        let gateway = Gateway::of(job.command("sh", &arguments));
        (job, gateway)
    }

    const IDENTITY: [&str; 2] = ["--identity-command", "echo eyJhbGciOiJSUzI1NiJ9.eyJqdGkiOiJ4In0.YQ"];

    fn job(api: &Api) -> Job {
        let mut job = Job::new(settings());
        job.set("ANTHROPIC_BASE_URL", &format!("http://{}", api.address));
        job.without_endpoint();
        job
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// Returns the header lines of a valid request.
    pub(crate) fn good(&self) -> String {
        format!("Host: {}\r\nAuthorization: Bearer {}\r\n", self.address, self.capability)
    }

    /// Sends these bytes and returns everything received until the connection closes.
    pub(crate) fn ask(&self, request: &str) -> String {
        let mut stream = self.connect();
        // The gateway may answer with an error before all bytes are sent.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            Err(error) => panic!("{request:?}: {error}; so far {:?}", String::from_utf8_lossy(&answer)),
        }
        String::from_utf8_lossy(&answer).into_owned()
    }

    pub(crate) fn good_request_is_served(&self) {
        let answer = self.ask(&format!("GET /v1/models HTTP/1.1\r\n{}Connection: close\r\n\r\n", self.good()));
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }

    pub(crate) fn process(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    /// Returns the peak memory in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process().as_raw_nonzero());
        let status = std::fs::read_to_string(path).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().strip_suffix(" kB").unwrap().trim().parse::<u64>().unwrap() * 1024
    }

    /// Returns the number of open file descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process().as_raw_nonzero())).unwrap().count()
    }

    pub(crate) fn end(mut self) -> crate::job::Ended {
        kill_process(self.process(), Signal::TERM).unwrap();
        finish(self.child.take().unwrap())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            let _ = child.wait();
        }
    }
}
