//! Who is at the other end of a connection, where the system can tell.

use std::net::SocketAddr;
use std::sync::OnceLock;

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Peer {
    /// By TCP on loopback: its address and ours.
    Tcp(SocketAddr, SocketAddr),
    /// By a Unix socket; the system tells the process.
    Unix(Option<u32>),
}

impl Peer {
    /// The process there, found at the price of a look at every process of this user.
    pub(super) fn process(self) -> Option<u32> {
        match self {
            Peer::Unix(process) => process,
            Peer::Tcp(theirs, ours) => platform::process_of(theirs, ours),
        }
    }

    /// Whether the process there is a descendant of ours: then it was given the capability anyway.
    pub(super) fn is_a_child(self) -> bool {
        self.process().is_some_and(platform::is_a_descendant)
    }
}

/// The other end of a connection, and its process once somebody has looked.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) peer: Peer,
    process: OnceLock<Option<u32>>,
}

impl Caller {
    pub(super) fn at(peer: Peer) -> Caller {
        Caller { peer, process: OnceLock::new() }
    }

    /// The process there, looked for once and only where this says so.
    pub(super) fn process(&self, may_look: impl FnOnce() -> bool) -> Option<u32> {
        match self.process.get() {
            Some(process) => *process,
            None if may_look() => *self.process.get_or_init(|| self.peer.process()),
            None => None,
        }
    }
}

#[cfg(target_os = "linux")]
mod platform {
    use std::fs::{self, File};
    use std::io::Read;
    use std::net::SocketAddr;
    use std::path::Path;

    fn text(path: impl AsRef<Path>, limit: u64) -> Option<String> {
        let mut text = String::new();
        File::open(path).ok()?.take(limit).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// An address as `/proc/net/tcp` writes it: each word of it in the machine's order.
    fn written(address: SocketAddr) -> String {
        let word = |bytes: &[u8]| {
            let bytes: [u8; 4] = bytes.try_into().unwrap_or_default();
            format!("{:08X}", u32::from_ne_bytes(bytes))
        };
        match address {
            SocketAddr::V4(address) => format!("{}:{:04X}", word(&address.ip().octets()), address.port()),
            SocketAddr::V6(address) => {
                let words: String = address.ip().octets().chunks(4).map(word).collect();
                format!("{words}:{:04X}", address.port())
            }
        }
    }

    pub(super) fn process_of(theirs: SocketAddr, ours: SocketAddr) -> Option<u32> {
        const TABLE: u64 = 16 << 20;
        let table = text(if theirs.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" }, TABLE)?;
        let (theirs, ours) = (written(theirs), written(ours));
        let inode = table.lines().find_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            (words.next()? == theirs && words.next()? == ours).then(|| words.nth(6))?
        })?;
        let socket = format!("socket:[{inode}]");
        let holds_it = |process: &Path| {
            let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
            files.into_iter().any(|file| fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == &*socket))
        };
        let processes = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, entry.path()))
        });
        processes.into_iter().find(|(_, path)| holds_it(path)).map(|(number, _)| number)
    }

    pub(super) fn is_a_descendant(process: u32) -> bool {
        const DEEPEST: usize = 64;
        let parent = |process: &u32| {
            let status = text(format!("/proc/{process}/status"), 16 * 1024)?;
            status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
        };
        let ancestors = std::iter::successors(Some(process), parent).take(DEEPEST);
        ancestors.skip(1).any(|ancestor| ancestor == std::process::id())
    }
}

/// Not run by us: elsewhere nobody is known.
#[cfg(not(target_os = "linux"))]
mod platform {
    use std::net::SocketAddr;

    pub(super) fn process_of(_theirs: SocketAddr, _ours: SocketAddr) -> Option<u32> {
        None
    }

    pub(super) fn is_a_descendant(_process: u32) -> bool {
        false
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::process::Command;
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_connection_is_followed_to_its_process() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            // Not every machine has both.
            let Ok(listener) = TcpListener::bind(loopback) else { continue };
            let ours = listener.local_addr().expect("an address");
            let client = TcpStream::connect(ours).expect("connected");
            let theirs = client.local_addr().expect("an address");
            assert_eq!(Peer::Tcp(theirs, ours).process(), Some(std::process::id()), "{loopback}");
            // One end of it is not enough.
            let (nobody, nowhere) = (SocketAddr::new(theirs.ip(), 1), SocketAddr::new(ours.ip(), 1));
            assert_eq!(Peer::Tcp(nobody, ours).process(), None);
            assert_eq!(Peer::Tcp(theirs, nowhere).process(), None);
        }
        assert_eq!(Peer::Unix(Some(7)).process(), Some(7));
        assert_eq!(Peer::Unix(None).process(), None);
    }

    #[test]
    fn nobody_looks_where_that_is_not_wanted_and_nobody_looks_twice() {
        let caller = Caller::at(Peer::Unix(Some(7)));
        assert_eq!(caller.process(|| false), None);
        assert_eq!(caller.process(|| true), Some(7));
        assert_eq!(caller.process(|| panic!("it is known")), Some(7));
    }

    #[test]
    fn a_child_and_its_child_are_ours_and_nobody_else_is() {
        let mut child = Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().expect("sh");
        let is_ours = |process| Peer::Unix(Some(process)).is_a_child();
        assert!(is_ours(child.id()));
        let children = format!("/proc/{0}/task/{0}/children", child.id());
        let first_child = || {
            (Clock::system().pause)(Duration::from_millis(10)).expect("nothing cuts it short");
            let text = std::io::read_to_string(std::fs::File::open(&children).expect("a file")).expect("a list");
            text.split_whitespace().next().map(|first| first.parse().expect("a number"))
        };
        let grandchild = (0..3000).find_map(|_| first_child()).expect("a shell starts what it is told to");
        assert!(is_ours(grandchild));
        for foreign in [1, std::process::id(), u32::MAX] {
            assert!(!is_ours(foreign), "{foreign}");
        }
        assert!(!Peer::Unix(None).is_a_child());
        let grandchild = rustix::process::Pid::from_raw(grandchild.cast_signed()).expect("a process id");
        rustix::process::kill_process(grandchild, rustix::process::Signal::TERM).expect("ended");
        child.wait().expect("an end");
    }
}
