//! The process at the other end of a connection, if the system knows it.
//!
//! On loopback it is found through `/proc`, which takes from a fraction of a millisecond to a tenth of a second. A
//! separate thread does it, for a limited share of the time. A client that has not presented the capability cannot
//! trigger a search of all processes: for it, only our own descendants are searched.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::clock::Clock;

/// The two ends of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Peer {
    /// TCP on loopback: the client's address and ours.
    Tcp(SocketAddr, SocketAddr),
    /// A Unix socket, for which the kernel names the process.
    Unix(Option<u32>),
}

/// The client of a connection, and its process if it was found.
#[derive(Debug)]
pub struct Caller {
    peer: Peer,
    process: OnceLock<Option<u32>>,
}

impl Caller {
    pub(super) fn at(peer: Peer) -> Caller {
        let process = OnceLock::new();
        if let Peer::Unix(known) = peer {
            let _ = process.set(known);
        }
        Caller { peer, process }
    }

    /// The client's process, if it is known. The search for it starts with the first accepted request of a connection.
    pub fn process(&self) -> Option<u32> {
        self.process.get().copied().flatten()
    }
}

/// Finds the processes of clients, in a thread that starts with the first search.
#[derive(Debug)]
pub(super) struct Lookups {
    clock: Clock,
    share: Arc<Mutex<Share>>,
    thread: OnceLock<Option<SyncSender<Wanted>>>,
}

/// What to search for.
enum Wanted {
    /// The process of a client that has presented the capability.
    Process(Arc<Caller>),
    /// Whether this client is a descendant of this process.
    Child(Peer, oneshot::Sender<bool>),
}

impl Lookups {
    /// The maximum number of queued searches.
    const QUEUE: usize = 64;

    pub(super) fn new(clock: Clock) -> Lookups {
        let share = Arc::new(Mutex::new(Share::full((clock.monotonic)())));
        Lookups { clock, share, thread: OnceLock::new() }
    }

    /// Queues a search for the process of a known client, unless searches took too much time recently.
    pub(super) fn find(&self, caller: &Arc<Caller>) {
        if caller.process.get().is_some() || lock(&self.share).wait((self.clock.monotonic)()).is_some() {
            return;
        }
        if let Some(thread) = self.thread() {
            // With a full queue, this client stays unknown.
            let _ = thread.try_send(Wanted::Process(Arc::clone(caller)));
        }
    }

    /// Whether a client without the capability is a descendant of this process, which received the capability anyway.
    /// Returns `None` if the queue is full.
    pub(super) async fn is_child(&self, caller: &Caller) -> Option<bool> {
        const PATIENCE: Duration = Duration::from_secs(5);
        let Some(thread) = self.thread() else { return Some(false) };
        let (answer, answered) = oneshot::channel();
        thread.try_send(Wanted::Child(caller.peer, answer)).ok()?;
        tokio::time::timeout(PATIENCE, answered).await.ok()?.ok()
    }

    fn thread(&self) -> Option<&SyncSender<Wanted>> {
        let begin = || {
            let (sender, receiver) = sync_channel(Self::QUEUE);
            let (clock, share) = (self.clock, Arc::clone(&self.share));
            let thread = std::thread::Builder::new().name("wifshare-lookups".to_owned());
            thread.spawn(move || look(&receiver, clock, &share)).ok().map(|_| sender)
        };
        self.thread.get_or_init(begin).as_ref()
    }
}

/// Runs one search after another, until all senders are dropped.
fn look(wanted: &Receiver<Wanted>, clock: Clock, share: &Mutex<Share>) {
    let mut recent = Recent::default();
    while let Ok(wanted) = wanted.recv() {
        if let (Wanted::Child(..), Some(time)) = (&wanted, lock(share).wait((clock.monotonic)())) {
            // A signal can end this pause early; the run ends then as well.
            let _ = (clock.pause)(time);
        }
        let begun = (clock.monotonic)();
        match wanted {
            // The connection has closed.
            Wanted::Process(caller) if Arc::strong_count(&caller) == 1 => continue,
            Wanted::Process(caller) => {
                let _ = caller.process.set(recent.process_of(caller.peer));
            }
            Wanted::Child(_, answer) if answer.is_closed() => continue,
            Wanted::Child(peer, answer) => drop(answer.send(is_descendant(peer))),
        }
        let now = (clock.monotonic)();
        lock(share).take(now, now.saturating_sub(begun));
    }
}

/// The budget of time for searches: a twentieth of the time, with a burst after a rest.
#[derive(Debug)]
struct Share {
    /// Time that is available at `at`; `owed` is the time that was taken beyond it.
    left: Duration,
    owed: Duration,
    at: Duration,
}

impl Share {
    const PART: u32 = 20;
    const MOST: Duration = Duration::from_millis(250);

    fn full(now: Duration) -> Share {
        Share { left: Self::MOST, owed: Duration::ZERO, at: now }
    }

    fn fill(&mut self, now: Duration) {
        let grown = now.saturating_sub(self.at) / Self::PART;
        self.at = now;
        let paid = grown.min(self.owed);
        self.owed -= paid;
        self.left = (self.left + (grown - paid)).min(Self::MOST);
    }

    /// How long to wait before the next search; `None` if it can start now.
    fn wait(&mut self, now: Duration) -> Option<Duration> {
        self.fill(now);
        (self.owed > Duration::ZERO).then(|| self.owed * Self::PART)
    }

    fn take(&mut self, now: Duration, time: Duration) {
        self.fill(now);
        self.owed += time.saturating_sub(self.left);
        self.left = self.left.saturating_sub(time);
    }
}

/// The processes found most recently. The next connection often belongs to one of them.
#[derive(Debug, Default)]
struct Recent(Vec<u32>);

impl Recent {
    const MOST: usize = 16;

    fn process_of(&mut self, peer: Peer) -> Option<u32> {
        let (theirs, ours) = match peer {
            Peer::Unix(process) => return process,
            Peer::Tcp(theirs, ours) => (theirs, ours),
        };
        let socket = platform::socket(theirs, ours)?;
        let is_his = |process: &u32| platform::holds(*process, &socket);
        let found = self.0.iter().copied().find(is_his);
        let found = found.or_else(|| platform::descendants().into_iter().find(is_his));
        let found = found.or_else(|| platform::processes().find(is_his))?;
        self.0.retain(|process| *process != found);
        self.0.insert(0, found);
        self.0.truncate(Self::MOST);
        Some(found)
    }
}

/// Whether a descendant of this process is at the other end. No other process is searched.
fn is_descendant(peer: Peer) -> bool {
    match peer {
        Peer::Unix(process) => process.is_some_and(|process| platform::descendants().contains(&process)),
        Peer::Tcp(theirs, ours) => platform::socket(theirs, ours)
            .is_some_and(|socket| platform::descendants().iter().any(|process| platform::holds(*process, &socket))),
    }
}

fn lock(share: &Mutex<Share>) -> std::sync::MutexGuard<'_, Share> {
    share.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(target_os = "linux")]
mod platform {
    use std::collections::HashMap;
    use std::fs::{self, File};
    use std::io::Read;
    use std::net::SocketAddr;
    use std::path::Path;

    fn text(path: impl AsRef<Path>, limit: u64) -> Option<String> {
        let mut text = String::new();
        File::open(path).ok()?.take(limit).read_to_string(&mut text).ok()?;
        Some(text)
    }

    /// Formats an address as `/proc/net/tcp` does: each 32-bit word in the machine's byte order.
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

    /// The name of the client's socket, as the links in `/proc/PID/fd` show it.
    pub(super) fn socket(theirs: SocketAddr, ours: SocketAddr) -> Option<String> {
        const TABLE: u64 = 16 << 20;
        let table = text(if theirs.is_ipv4() { "/proc/net/tcp" } else { "/proc/net/tcp6" }, TABLE)?;
        let (theirs, ours) = (written(theirs), written(ours));
        let inode = table.lines().find_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            (words.next()? == theirs && words.next()? == ours).then(|| words.nth(6))?
        })?;
        // Inode 0: the client has closed its socket.
        (inode != "0").then(|| format!("socket:[{inode}]"))
    }

    pub(super) fn holds(process: u32, socket: &str) -> bool {
        let files = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        files.into_iter().any(|file| fs::read_link(file.path()).is_ok_and(|target| target.as_os_str() == socket))
    }

    pub(super) fn processes() -> impl Iterator<Item = u32> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
    }

    /// The descendants of this process.
    pub(super) fn descendants() -> Vec<u32> {
        const MOST: usize = 4096;
        let mut parents = None;
        let mut found = children(std::process::id(), &mut parents);
        let mut next = 0;
        while let Some(process) = found.get(next).copied().filter(|_| found.len() < MOST) {
            found.extend(children(process, &mut parents));
            next += 1;
        }
        found
    }

    /// Reads the kernel's list of children, or, in a kernel built without it, the parent of every process.
    fn children(process: u32, parents: &mut Option<HashMap<u32, Vec<u32>>>) -> Vec<u32> {
        let listed = |thread: fs::DirEntry| text(thread.path().join("children"), 1 << 20);
        let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
        let lists: Option<Vec<String>> = threads.map(listed).collect();
        match lists {
            Some(lists) => {
                lists.iter().flat_map(|list| list.split_whitespace()).filter_map(|it| it.parse().ok()).collect()
            }
            None => parents.get_or_insert_with(by_parent).get(&process).cloned().unwrap_or_default(),
        }
    }

    pub(super) fn by_parent() -> HashMap<u32, Vec<u32>> {
        let parent = |process: u32| -> Option<u32> {
            let status = text(format!("/proc/{process}/status"), 16 * 1024)?;
            status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
        };
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for process in processes() {
            if let Some(parent) = parent(process) {
                children.entry(parent).or_default().push(process);
            }
        }
        children
    }
}

/// Other systems: no process is known.
#[cfg(not(target_os = "linux"))]
mod platform {
    use std::net::SocketAddr;

    pub(super) fn socket(_theirs: SocketAddr, _ours: SocketAddr) -> Option<String> {
        None
    }

    pub(super) fn holds(_process: u32, _socket: &str) -> bool {
        false
    }

    pub(super) fn processes() -> impl Iterator<Item = u32> {
        std::iter::empty()
    }

    pub(super) fn descendants() -> Vec<u32> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookups_use_a_twentieth_of_the_time_after_a_burst() {
        let ms = Duration::from_millis;
        let mut share = Share::full(ms(0));
        share.take(ms(0), ms(240));
        assert_eq!(share.wait(ms(0)), None, "there is some left");
        share.take(ms(0), ms(30));
        assert_eq!(share.wait(ms(0)), Some(ms(400)), "twenty milliseconds too much");
        assert_eq!(share.wait(ms(300)), Some(ms(100)));
        assert_eq!(share.wait(ms(400)), None);
        share.take(ms(400), ms(1));
        assert_eq!(share.wait(ms(400)), Some(ms(20)), "nothing is left but what grows");
        assert_eq!(share.wait(ms(1_000_000)), None);
        assert_eq!(share.left, Share::MOST, "a rest does not add up without end");
        // A minute of continuous searches, 100 ms each.
        let (mut now, mut taken) = (ms(1_000_000), ms(0));
        while now < ms(1_060_000) {
            match share.wait(now) {
                Some(time) => now += time,
                None => {
                    now += ms(100);
                    taken += ms(100);
                    share.take(now, ms(100));
                }
            }
        }
        assert!(taken <= ms(60_000 / 20 + 250 + 100), "{taken:?}");
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests_with_processes {
    use std::net::{TcpListener, TcpStream};
    use std::process::Command;

    use super::*;

    #[test]
    fn connection_is_mapped_to_its_process() {
        for loopback in ["127.0.0.1:0", "[::1]:0"] {
            // Not every machine has IPv4 and IPv6.
            let Ok(listener) = TcpListener::bind(loopback) else { continue };
            let ours = listener.local_addr().expect("an address");
            let client = TcpStream::connect(ours).expect("connected");
            let theirs = client.local_addr().expect("an address");
            let mut recent = Recent::default();
            for _ in 0..2 {
                assert_eq!(recent.process_of(Peer::Tcp(theirs, ours)), Some(std::process::id()), "{loopback}");
                assert_eq!(recent.0, [std::process::id()], "remembered once");
            }
            assert!(!is_descendant(Peer::Tcp(theirs, ours)), "we are no descendant of ours");
            // A connection matches only with both ends.
            let (nobody, nowhere) = (SocketAddr::new(theirs.ip(), 1), SocketAddr::new(ours.ip(), 1));
            assert_eq!(recent.process_of(Peer::Tcp(nobody, ours)), None);
            assert_eq!(recent.process_of(Peer::Tcp(theirs, nowhere)), None);
        }
        assert_eq!(Recent::default().process_of(Peer::Unix(Some(7))), Some(7));
        assert_eq!(Recent::default().process_of(Peer::Unix(None)), None);
    }

    #[test]
    fn known_client_is_found_in_the_background() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let ours = listener.local_addr().expect("an address");
        let client = TcpStream::connect(ours).expect("connected");
        let peer = Peer::Tcp(client.local_addr().expect("an address"), ours);
        let lookups = Lookups::new(Clock::system());
        let (known, unknown) = (Arc::new(Caller::at(peer)), Caller::at(peer));
        lookups.find(&known);
        let found = || {
            (Clock::system().pause)(Duration::from_millis(5)).expect("nothing cuts it short");
            known.process()
        };
        assert_eq!((0..3000).find_map(|_| found()), Some(std::process::id()));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        assert_eq!(runtime.block_on(lookups.is_child(&unknown)), Some(false));
        assert_eq!(unknown.process(), None);
        // `is_child` waits until the budget is repaid; `find` does nothing meanwhile.
        let now = (Clock::system().monotonic)();
        lock(&lookups.share).take(now, Duration::from_secs(3600));
        let late = Arc::new(Caller::at(peer));
        lookups.find(&late);
        assert_eq!(Arc::strong_count(&late), 1, "nobody was asked");
    }

    #[test]
    fn descendants_are_recognised_and_other_processes_are_not() {
        let mut child = Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().expect("sh");
        let is_ours = |process| is_descendant(Peer::Unix(Some(process)));
        assert!(is_ours(child.id()));
        let first_child = || {
            (Clock::system().pause)(Duration::from_millis(10)).expect("nothing cuts it short");
            platform::by_parent().get(&child.id()).and_then(|children| children.first().copied())
        };
        let grandchild = (0..3000).find_map(|_| first_child()).expect("a shell starts what it is told to");
        assert!(is_ours(grandchild));
        for foreign in [1, std::process::id(), u32::MAX] {
            assert!(!is_ours(foreign), "{foreign}");
        }
        assert!(!is_descendant(Peer::Unix(None)));
        let grandchild = rustix::process::Pid::from_raw(grandchild.cast_signed()).expect("a process id");
        rustix::process::kill_process(grandchild, rustix::process::Signal::TERM).expect("ended");
        child.wait().expect("an end");
    }
}
