//! A file lock that the kernel releases when its process ends. The lock file describes the holder.

use std::fs::{self, File, TryLockError};
use std::io::{Seek, Write};
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::owner::ProcessIdentity;
use crate::clock::{Clock, epoch_seconds};
use crate::private_file::{self, PrivateFileError};
use crate::progress::{Observer, Progress};

/// A held lock. Released when dropped, or when the process ends for any reason.
pub(super) struct FileLock {
    file: File,
}

/// Lock timeouts: for a single holder that shows no activity, and in total.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pub(super) for_one_holder: Duration,
    pub(super) in_all: Duration,
}

impl From<Duration> for Patience {
    fn from(time: Duration) -> Patience {
        Patience { for_one_holder: time, in_all: time }
    }
}

/// The holder's description of itself, stored in the lock file.
#[derive(Serialize, Deserialize)]
struct Holder {
    owner: ProcessIdentity,
    doing: String,
    /// Seconds since the epoch.
    since: u64,
}

impl FileLock {
    /// Waits for the lock, at most `patience`.
    pub(super) fn acquire(
        path: &Path,
        patience: impl Into<Patience>,
        clock: Clock,
        observer: Observer<'_>,
    ) -> Result<FileLock, StoreError> {
        let acquired = FileLock::acquire_unless(|| Ok(false), path, patience, clock, observer)?;
        Ok(acquired.expect("nothing settles it but the lock"))
    }

    /// Like `acquire`, but returns `None` if `settled` becomes true while waiting. Both are polled, so that a thousand
    /// processes that wait for one result get it concurrently and not one after another.
    pub(super) fn acquire_unless(
        mut settled: impl FnMut() -> Result<bool, StoreError>,
        path: &Path,
        patience: impl Into<Patience>,
        clock: Clock,
        observer: Observer<'_>,
    ) -> Result<Option<FileLock>, StoreError> {
        let patience: Patience = patience.into();
        let start = (clock.monotonic)();
        let mut told = Duration::ZERO;
        let (mut seen, mut seen_since) = (None, Duration::ZERO);
        // The lock has a file of its own: a rename would leave this process with a lock on the old inode.
        let mut file = private_file::open_in_place(path)?;
        let mut was_held = false;
        let mut last_holder = None;
        loop {
            let waited = (clock.monotonic)().saturating_sub(start);
            match file.try_lock() {
                Ok(()) if is_still_there(&file, path)? => {
                    if was_held {
                        observer(&Progress::Waited { holder: last_holder, time: waited });
                    }
                    return Ok(Some(FileLock { file }));
                }
                // Another process removed the directory meanwhile. The next process would lock a different file.
                Ok(()) => file = private_file::open_in_place(path)?,
                Err(TryLockError::WouldBlock) => {
                    if settled()? {
                        if was_held {
                            observer(&Progress::Waited { holder: last_holder, time: waited });
                        }
                        return Ok(None);
                    }
                    was_held = true;
                    let is_late = waited >= patience.in_all || waited - seen_since >= patience.for_one_holder;
                    if is_late {
                        return Err(StoreError::Held { path: path.to_owned(), holder: holder(path, clock), waited });
                    }
                    if waited >= told + Duration::from_secs(1) {
                        told = waited;
                        let says = private_file::read(path).ok().flatten();
                        last_holder = says.as_ref().and_then(|says| describe(says, clock.now()));
                        if says != seen {
                            (seen, seen_since) = (says, waited);
                        }
                        observer(&Progress::Waiting { holder: last_holder.clone(), since: waited });
                        // Reopen the file, so that no process waits for the holder of a deleted file.
                        file = private_file::open_in_place(path)?;
                    }
                }
                Err(TryLockError::Error(source)) => {
                    return Err(PrivateFileError::Io { action: "lock", path: path.to_owned(), source }.into());
                }
            }
            (clock.pause)(pause_after(waited))?;
        }
    }

    /// Returns whether any process holds the lock; `false` if the file does not exist.
    pub(super) fn is_held(path: &Path) -> bool {
        private_file::open_regular(path).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Takes the lock if it is free.
    pub(super) fn try_acquire(path: &Path) -> Result<Option<FileLock>, StoreError> {
        let file = private_file::open_in_place(path)?;
        match file.try_lock() {
            Ok(()) if is_still_there(&file, path)? => Ok(Some(FileLock { file })),
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => {
                Err(PrivateFileError::Io { action: "lock", path: path.to_owned(), source }.into())
            }
        }
    }

    /// Writes the current operation to the lock file, for waiting processes. Best effort: the lock does not depend on
    /// it.
    pub(super) fn doing(&mut self, doing: &str, clock: Clock) {
        let holder =
            Holder { owner: ProcessIdentity::current(), doing: doing.to_owned(), since: epoch_seconds(clock.now()) };
        let text = serde_json::to_vec(&holder).unwrap_or_default();
        let _ = self.file.set_len(0).and_then(|()| self.file.rewind()).and_then(|()| self.file.write_all(&text));
    }
}

/// Returns the polling interval after this waiting time. It grows with the wait, so that a short wait is not prolonged
/// much, and many long waits cost little. Jitter keeps the waiters from polling at the same moment.
fn pause_after(waited: Duration) -> Duration {
    const SHORTEST: Duration = Duration::from_millis(1);
    const LONGEST: Duration = Duration::from_millis(50);
    (waited / 8).clamp(SHORTEST, LONGEST).mul_f64(1.0 - fastrand::f64() / 4.0)
}

/// Returns the holder's description, such as "pid 4711, exchanging since 2 s", if readable.
pub(super) fn holder(path: &Path, clock: Clock) -> Option<String> {
    describe(&private_file::read(path).ok()??, clock.now())
}

pub(crate) fn describe(holder: &[u8], now: SystemTime) -> Option<String> {
    let Holder { owner, doing, since } = serde_json::from_slice(holder).ok()?;
    let doing = crate::message::safe_text(&doing);
    Some(format!("{owner}, {doing} since {} s", epoch_seconds(now).saturating_sub(since)))
}

#[cfg(unix)]
fn is_still_there(file: &File, path: &Path) -> Result<bool, StoreError> {
    use std::os::unix::fs::MetadataExt;

    let looking = |source| PrivateFileError::Io { action: "look at", path: path.to_owned(), source };
    let ours = file.metadata().map_err(looking)?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(looking(error).into()),
    }
}

/// Not tested by us: there, the directory of an open file cannot be removed.
#[cfg(not(unix))]
fn is_still_there(_file: &File, path: &Path) -> Result<bool, StoreError> {
    Ok(fs::exists(path).unwrap_or(true))
}

/// Rejects file systems on which a lock may hold on one host only, or not at all. Trusts all others.
#[cfg(target_os = "linux")]
pub(super) fn locks_are_reliable(directory: &Path) -> Result<(), StoreError> {
    const FUSE: u64 = 0x6573_5546;
    let number = rustix::fs::statfs(directory).map_or(0, |statistics| statistics.f_type as u64);
    let kind = match number & 0xffff_ffff {
        FUSE => mounted_kind(directory).filter(|kind| may_be_remote(kind)),
        _ => network_file_system(number).map(str::to_owned),
    };
    match kind {
        Some(file_system) => Err(StoreError::UnreliableLocks { directory: directory.to_owned(), file_system }),
        None => Ok(()),
    }
}

/// Returns the type of the file system that contains this directory, found by its device (proc_pid_mountinfo(5)).
#[cfg(target_os = "linux")]
fn mounted_kind(directory: &Path) -> Option<String> {
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    let device = fs::metadata(directory).ok()?.dev();
    let mut mounts = String::new();
    File::open("/proc/self/mountinfo").ok()?.take(4 << 20).read_to_string(&mut mounts).ok()?;
    kind_of_device(&mounts, rustix::fs::major(device), rustix::fs::minor(device))
}

#[cfg(target_os = "linux")]
fn kind_of_device(mounts: &str, major: u32, minor: u32) -> Option<String> {
    let device = format!("{major}:{minor}");
    let (_, right) = mounts
        .lines()
        .filter_map(|line| line.split_once(" - "))
        .find(|(left, _)| left.split(' ').nth(2) == Some(&device))?;
    right.split(' ').next().map(str::to_owned)
}

/// Returns whether a FUSE file system may store its data on another host, which does not see this host's locks. Only
/// types that are known to use a local file system are trusted; rootless containers use the first.
#[cfg(target_os = "linux")]
fn may_be_remote(kind: &str) -> bool {
    const LOCAL: [&str; 9] = [
        "fuse.fuse-overlayfs",
        "fuse.mergerfs",
        "fuse.unionfs",
        "fuse.bindfs",
        "fuse.encfs",
        "fuse.gocryptfs",
        "fuse.portal",
        "fuseblk",
        // Shared by a virtual machine monitor with its guest, for example as the root file system of Kata containers.
        "virtiofs",
    ];
    !LOCAL.contains(&kind)
}

/// Returns the name of a network file system by its statfs(2) number. If that is signed, its upper half may be set.
#[cfg(target_os = "linux")]
fn network_file_system(kind: u64) -> Option<&'static str> {
    const NETWORK: [(u64, &str); 8] = [
        (0x6969, "NFS"),
        (0x517b, "SMB"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB2"),
        (0x0102_1997, "9P"),
        (0x5346_414f, "AFS"),
        (0x0bd0_0bd0, "Lustre"),
        (0x00c3_6400, "Ceph"),
    ];
    NETWORK.iter().find(|(magic, _)| *magic == kind & 0xffff_ffff).map(|(_, name)| *name)
}

/// Not tested by us: elsewhere, every file system is trusted.
#[cfg(not(target_os = "linux"))]
pub(super) fn locks_are_reliable(_directory: &Path) -> Result<(), StoreError> {
    Ok(())
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_recognised_by_magic_number() {
        for (kind, name) in [
            (0x6969, Some("NFS")),
            (0xff53_4d42, Some("CIFS")),
            (0xffff_ffff_ff53_4d42, Some("CIFS")),
            (0xfe53_4d42, Some("SMB2")),
            (0x0102_1997, Some("9P")),
            (0x00c3_6400, Some("Ceph")),
            // ext4, tmpfs, overlay, btrfs, xfs, zfs
            (0xef53, None),
            (0x0102_1994, None),
            (0x794c_7630, None),
            (0x9123_683e, None),
            (0x5846_5342, None),
            (0x2fc1_2fc1, None),
        ] {
            assert_eq!(network_file_system(kind), name, "{kind:#x}");
        }
        locks_are_reliable(Path::new("/proc")).expect("it is local");
    }

    #[test]
    fn fuse_is_refused_unless_known_to_be_local() {
        for kind in ["fuse", "fuse.sshfs", "fuse.s3fs", "fuse.glusterfs", "fuse.rclone", "fuse.gcsfuse", "fuse.juicefs"]
        {
            assert!(may_be_remote(kind), "{kind}");
        }
        for kind in ["fuse.fuse-overlayfs", "fuse.mergerfs", "fuseblk", "virtiofs"] {
            assert!(!may_be_remote(kind), "{kind}");
        }
        let mounts = "22 1 0:21 / /proc rw,nosuid - proc proc rw\n\
                      30 1 8:1 / /mnt/with\\040space rw shared:1 - ext4 /dev/sda1 rw\n\
                      36 30 0:45 / /mnt/remote rw,nosuid - fuse.sshfs user@host:/srv rw,user_id=0\n";
        assert_eq!(kind_of_device(mounts, 0, 45).as_deref(), Some("fuse.sshfs"));
        assert_eq!(kind_of_device(mounts, 8, 1).as_deref(), Some("ext4"));
        assert_eq!(kind_of_device(mounts, 0, 4), None);
        assert_eq!(mounted_kind(Path::new("/proc")).as_deref(), Some("proc"));
    }

    thread_local! {
        static NOW: std::cell::Cell<Duration> = const { std::cell::Cell::new(Duration::ZERO) };
    }

    /// A clock that advances only during waits.
    const CLOCK: Clock = Clock {
        wall: || SystemTime::UNIX_EPOCH,
        monotonic: || NOW.get(),
        pause: |time| {
            NOW.set(NOW.get() + time);
            Ok(())
        },
    };

    #[test]
    fn lock_wait_is_reported_each_second_until_its_timeout() {
        let holder = tempfile::tempdir().unwrap();
        let path = holder.path().join("lock");
        let _held = FileLock::try_acquire(&path).unwrap().expect("it is free");
        let patience = Duration::from_millis(10_500);
        let told = std::sync::Mutex::new(Vec::new());
        let observer = |step: &Progress<'_>| {
            if let Progress::Waiting { since, .. } = step {
                told.lock().unwrap().push(since.as_secs());
            }
        };
        let Err(error) = FileLock::acquire_unless(|| Ok(false), &path, patience, CLOCK, &observer) else {
            panic!("it is held");
        };
        assert!(matches!(error, StoreError::Held { waited, .. } if waited >= patience && waited < patience * 2));
        // A pause may delay a report to the next second.
        let told = told.into_inner().unwrap();
        assert!((9..=10).contains(&told.len()) && told.is_sorted_by(|one, next| one < next), "{told:?}");
    }

    #[test]
    fn waiter_of_a_removed_lock_file_locks_the_new_one() {
        for is_made_anew in [true, false] {
            let holder = tempfile::tempdir().unwrap();
            let path = holder.path().join("lock");
            let mut held = FileLock::try_acquire(&path).unwrap();
            let settled = || {
                if let Some(held) = held.take() {
                    fs::remove_file(&path).unwrap();
                    if is_made_anew {
                        private_file::open_in_place(&path).unwrap();
                    }
                    drop(held);
                }
                Ok(false)
            };
            let lock = FileLock::acquire_unless(settled, &path, Duration::from_secs(5), CLOCK, &|_| {}).unwrap();
            assert!(lock.is_some() && FileLock::is_held(&path), "made anew: {is_made_anew}");
        }
    }

    #[test]
    fn unreadable_lock_path_is_an_error() {
        let holder = tempfile::tempdir().unwrap();
        let directory = holder.path().join("key");
        fs::create_dir(&directory).unwrap();
        let path = directory.join("lock");
        let mut held = FileLock::try_acquire(&path).unwrap();
        let settled = || {
            if let Some(held) = held.take() {
                fs::remove_dir_all(&directory).unwrap();
                drop(File::create(&directory).unwrap());
                drop(held);
            }
            Ok(false)
        };
        let result = FileLock::acquire_unless(settled, &path, Duration::from_secs(5), CLOCK, &|_| {});
        let Err(StoreError::File(PrivateFileError::Io { action, .. })) = result else { panic!("nothing is there") };
        assert_eq!(action, "look at");
    }

    #[test]
    fn pauses_are_an_eighth_of_the_wait_within_limits() {
        for (waited, whole) in [(0, 1), (8, 1), (160, 20), (400, 50), (10_000, 50)] {
            let whole = Duration::from_millis(whole);
            for _ in 0..200 {
                let pause = pause_after(Duration::from_millis(waited));
                assert!(whole * 3 / 4 <= pause && pause <= whole, "{pause:?} after {waited} ms");
            }
        }
    }
}
