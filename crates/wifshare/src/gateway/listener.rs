//! Accepts connections, and closes the gateway.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;

use super::admission::AccessPolicy;
use super::caller::{Lookups, Peer};
use super::connections::Connections;
use super::upstream::Upstream;
use super::{GatewayConfig, Listen, Shared, connection, fault};

/// Listens and serves until `closing` gives the grace period.
pub(super) async fn serve(
    listen: &Listen,
    config: GatewayConfig,
    report: &mpsc::Sender<io::Result<String>>,
    closing: oneshot::Receiver<Duration>,
) {
    let listener = match Listener::open(listen) {
        Ok(listener) => listener,
        Err(error) => return drop(report.send(Err(error))),
    };
    let (base_url, host) = match listener.names() {
        Ok(names) => names,
        Err(error) => return drop(report.send(Err(error))),
    };
    let GatewayConfig { upstream, connector, capability, credential_state, reject, record, fault, clock, limits } =
        config;
    let shared = Arc::new(Shared {
        policy: AccessPolicy { host, capability },
        upstream: Upstream::new(&upstream, connector, clock, limits),
        credential_state,
        reject,
        record,
        fault,
        lookups: Lookups::new(clock),
        clock,
        limits,
        is_closing: AtomicBool::new(false),
    });
    let connections = Arc::new(Connections::default());
    // An error means that the caller has given up.
    let _ = report.send(Ok(base_url));
    let grace = tokio::select! {
        grace = closing => grace.unwrap_or_default(),
        () = accept(&listener, &shared, &connections) => Duration::ZERO,
        () = shared.upstream.tidy() => Duration::ZERO,
    };
    drop(listener);
    shared.is_closing.store(true, Ordering::Relaxed);
    connections.show_out_the_idle();
    // Returns when no connection is open, or after the grace period.
    drop(tokio::time::timeout(grace, connections.are_gone()).await);
    connections.show_out_everybody();
}

/// Accepts connections. A panic of one `accept` does not end the loop.
async fn accept(listener: &Listener, shared: &Arc<Shared>, connections: &Arc<Connections>) {
    while fault::catch(Box::pin(listener.accept(shared, connections))).await.is_err() {
        (shared.fault)();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

enum Listener {
    Loopback(TcpListener),
    #[cfg(unix)]
    Unix(tokio::net::UnixListener, Socket),
}

impl Listener {
    fn open(listen: &Listen) -> io::Result<Listener> {
        // The SYN of a client is lost if the backlog is full. A thousand clients that start together fit.
        const BACKLOG: u32 = 4096;
        match listen {
            Listen::Loopback(address) => {
                if !address.ip().is_loopback() {
                    let error =
                        format!("{address} can be reached from other machines; the gateway listens on loopback");
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, error));
                }
                let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                #[cfg(unix)]
                socket.set_reuseaddr(true)?;
                socket.bind(*address)?;
                Ok(Listener::Loopback(socket.listen(BACKLOG)?))
            }
            #[cfg(unix)]
            Listen::Unix(path) => {
                let (listener, socket) = Socket::bind(path)?;
                Ok(Listener::Unix(listener, socket))
            }
            #[cfg(not(unix))]
            Listen::Unix(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// The base URL for clients, and their `Host` header.
    fn names(&self) -> io::Result<(String, String)> {
        match self {
            Listener::Loopback(listener) => {
                let address = listener.local_addr()?.to_string();
                Ok((format!("http://{address}"), address))
            }
            #[cfg(unix)]
            Listener::Unix(_, socket) => Ok((format!("unix:{}", socket.0.display()), "localhost".to_owned())),
        }
    }

    async fn accept(&self, shared: &Arc<Shared>, connections: &Arc<Connections>) {
        let most = shared.limits.connections.min(room_for_connections());
        loop {
            let accepted = match self {
                Listener::Loopback(listener) => match listener.accept().await {
                    Ok((stream, theirs)) => Ok(stream.local_addr().ok().map(|ours| {
                        let _ = stream.set_nodelay(true);
                        (Stream::Tcp(stream), Peer::Tcp(theirs, ours))
                    })),
                    Err(error) => Err(error),
                },
                #[cfg(unix)]
                Listener::Unix(listener, _) => listener.accept().await.map(|(stream, _)| {
                    let peer = stream.peer_cred().ok()?;
                    let is_ours = peer.uid() == rustix::process::geteuid().as_raw();
                    let process = peer.pid().and_then(|pid| u32::try_from(pid).ok());
                    is_ours.then_some((Stream::Unix(stream), Peer::Unix(process)))
                }),
            };
            match accepted {
                Ok(Some((stream, peer))) => welcome(stream, peer, most, shared, connections),
                Ok(None) => {}
                Err(_) => {
                    // Probably out of file descriptors. Retry, because some will be freed.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
}

fn welcome(stream: Stream, peer: Peer, most: usize, shared: &Arc<Shared>, connections: &Arc<Connections>) {
    let Some(place) = connections.admit(most, (shared.clock.monotonic)()) else { return };
    let shared = Arc::clone(shared);
    let (number, entry) = (place.number(), Arc::clone(&place.entry));
    let task = match stream {
        Stream::Tcp(stream) => tokio::spawn(async move {
            attend(Box::pin(connection::attend(stream, peer, entry, Arc::clone(&shared))), &shared).await;
            drop(place);
        }),
        #[cfg(unix)]
        Stream::Unix(stream) => tokio::spawn(async move {
            attend(Box::pin(connection::attend(stream, peer, entry, Arc::clone(&shared))), &shared).await;
            drop(place);
        }),
    };
    connections.may_be_ended_by(number, task.abort_handle());
}

/// Serves a connection. A panic ends only this connection. No open connection to the API is used for another request
/// then, because its state is unknown.
async fn attend(connection: Pin<Box<impl Future<Output = ()>>>, shared: &Shared) {
    if fault::catch(connection).await.is_err() {
        shared.upstream.close_all();
        (shared.fault)();
    }
}

/// The number of connections that the file descriptors allow: two for each, one of them to the API, and a reserve.
fn room_for_connections() -> usize {
    const SPARE: u64 = 64;
    #[cfg(unix)]
    if let Some(most) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        return usize::try_from(most.saturating_sub(SPARE) / 2).unwrap_or(usize::MAX).max(8);
    }
    usize::MAX
}

/// A socket in the file system. Dropping it removes the file.
#[cfg(unix)]
struct Socket(std::path::PathBuf);

#[cfg(unix)]
impl Socket {
    /// Creates the socket in a private directory, sets its mode, and only then links it to `path`. Thus another user
    /// can never connect.
    fn bind(path: &Path) -> io::Result<(tokio::net::UnixListener, Socket)> {
        use std::os::fd::AsRawFd;

        use rustix::fs::Mode;

        /// The longest path in a socket address (`sun_path` of unix(7), without the final NUL).
        const LONGEST: usize = 107;
        let length = path.as_os_str().len();
        if length > LONGEST {
            let error = format!(
                "the path of a Unix socket has at most {LONGEST} bytes, and this one has {length}: {}",
                path.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidFilename, error));
        }
        if std::fs::symlink_metadata(path).is_ok() {
            let error = format!("there is something at {} already", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, error));
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !parent.is_dir() {
            let error = format!("the directory {} does not exist", parent.display());
            return Err(io::Error::new(io::ErrorKind::NotFound, error));
        }
        let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let nest = tempfile::Builder::new().prefix(".ws").rand_bytes(4).permissions(closed).tempdir_in(parent)?;
        let unborn = nest.path().join("s");
        // A short path to the socket, for a directory with a long path.
        let directory = std::fs::File::open(nest.path())?;
        let short = format!("/proc/self/fd/{}/s", directory.as_raw_fd());
        let is_short = unborn.as_os_str().len() <= LONGEST;
        let listener = tokio::net::UnixListener::bind(if is_short { unborn.as_path() } else { Path::new(&short) })?;
        rustix::fs::chmod(&unborn, Mode::RUSR | Mode::WUSR)?;
        // Unlike a rename, a link does not replace an existing file.
        std::fs::hard_link(&unborn, path)?;
        Ok((listener, Socket(path.to_owned())))
    }
}

#[cfg(unix)]
impl Drop for Socket {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn socket_is_bound_next_to_its_path_on_any_file_system() {
        let holder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = holder.path().join("socket");
        let names = || std::fs::read_dir(holder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        let (_listener, socket) = Socket::bind(&path).unwrap();
        let there: Vec<_> = names();
        assert_eq!(there, ["socket"]);
        assert_eq!(Socket::bind(&path).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
        drop(socket);
        let left: Vec<_> = names();
        assert!(left.is_empty());
    }
}
