//! The event log: every process appends to it, and readers follow it.
//!
//! The log is best effort: an event that cannot be written is dropped, and nothing waits for it. Each process writes
//! whole lines with one call in append mode, so that lines of different processes do not mix. The file is not synced.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::event::Event;
use crate::private_file::{self, PrivateFileError};

const FILE: &str = "events.jsonl";
const BEFORE: &str = "events.before.jsonl";

/// Maximum size of the log. A larger private file would not be read.
const LARGEST: u64 = 4 << 20;
/// Above this size, only rare events are written, so that a job of a hundred thousand processes still logs its end.
const LARGEST_FOR_MANY: u64 = 3 << 20;
/// A log of this size is rotated when a run begins. It replaces the previously rotated log.
const LARGE: u64 = 2 << 20;
/// Maximum length of a line; no event is longer.
const LONGEST_LINE: usize = 4096;
/// A log without writes for this long is removed when a run begins.
const LONGEST_KEPT: Duration = Duration::from_secs(7 * 86_400);

/// The log of one identity key.
#[derive(Clone, Debug)]
pub struct EventLog {
    directory: PathBuf,
}

impl EventLog {
    /// Returns the log in the directory of an identity key. Opens and creates nothing.
    pub fn of(directory: &Path) -> EventLog {
        EventLog { directory: directory.to_owned() }
    }

    /// Appends an event, if that is possible at once. The directory must exist.
    pub fn append(&self, event: &Event) {
        self.append_all(std::slice::from_ref(event));
    }

    /// Appends these events together, as far as there is room for them. Returns whether there was room for all.
    pub fn append_all(&self, events: &[Event]) -> bool {
        let Ok(mut file) = private_file::open_in_place(&self.directory.join(FILE)) else { return false };
        let mut size = file.metadata().map_or(u64::MAX, |metadata| metadata.len());
        let mut lines = Vec::new();
        let mut is_room_for_all = true;
        for event in events {
            let before = lines.len();
            if serde_json::to_writer(&mut lines, event).is_err() {
                lines.truncate(before);
                continue;
            }
            lines.push(b'\n');
            let length = lines.len() - before;
            let limit = if event.what.is_one_of_many() { LARGEST_FOR_MANY } else { LARGEST };
            size = size.saturating_add(length as u64);
            if length > LONGEST_LINE || size > limit {
                size -= length as u64;
                lines.truncate(before);
                is_room_for_all = false;
            }
        }
        // A full disk may accept only a part. Ending the line keeps the next event readable.
        if file.write(&lines).is_ok_and(|written| written > 0 && written < lines.len()) {
            drop(file.write(b"\n"));
        }
        is_room_for_all
    }

    /// Returns every readable event in the order of writing. Skips damaged lines and kinds that this version does not
    /// know.
    pub fn read(&self) -> Vec<Event> {
        let files = [BEFORE, FILE].map(|name| private_file::read(&self.directory.join(name)).ok().flatten());
        let lines = files.iter().flatten().flat_map(|bytes| bytes.split(|byte| *byte == b'\n'));
        lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }

    /// Opens the files of the log and reads nothing.
    ///
    /// # Errors
    /// One of them is not a private file of this user.
    pub fn check(&self) -> Result<(), PrivateFileError> {
        for name in [BEFORE, FILE] {
            private_file::open_to_read(&self.directory.join(name))?;
        }
        Ok(())
    }

    /// Returns whether events may be missing because the log was full.
    pub fn is_full(&self) -> bool {
        size(&self.directory.join(FILE)).is_some_and(|size| size + LONGEST_LINE as u64 > LARGEST_FOR_MANY)
    }

    /// Returns size and modification time, which tell a reader that there is something new.
    pub fn mark(&self) -> Option<(u64, SystemTime)> {
        let metadata = fs::symlink_metadata(self.directory.join(FILE)).ok()?;
        Some((metadata.len(), metadata.modified().ok()?))
    }

    /// Returns the logs of all identity keys in a state directory, sorted by key.
    pub fn below(root: &Path) -> Vec<(String, EventLog)> {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        let mut logs: Vec<_> = entries
            .map(|entry| (entry.file_name().to_string_lossy().into_owned(), EventLog::of(&entry.path())))
            .filter(|(_, log)| [BEFORE, FILE].iter().any(|name| log.directory.join(name).exists()))
            .collect();
        logs.sort_by(|one, other| one.0.cmp(&other.0));
        logs
    }

    /// Frees space: removes logs without writes for a week, and rotates a large one.
    pub fn tidy(&self, now: SystemTime) {
        for name in [BEFORE, FILE] {
            let path = self.directory.join(name);
            let modified = fs::symlink_metadata(&path).and_then(|metadata| metadata.modified());
            if modified.is_ok_and(|then| now.duration_since(then).is_ok_and(|age| age > LONGEST_KEPT)) {
                drop(private_file::remove(&path));
            }
        }
        self.put_aside_if_large();
    }

    /// Rotates under a file lock and checks the size again. Otherwise a second process would rotate the new log.
    fn put_aside_if_large(&self) {
        let path = self.directory.join(FILE);
        if size(&path).is_none_or(|size| size < LARGE) {
            return;
        }
        let Ok(file) = private_file::open_in_place(&path) else { return };
        if file.try_lock().is_ok() && size(&path).is_some_and(|size| size >= LARGE) {
            drop(fs::rename(&path, self.directory.join(BEFORE)));
        }
    }
}

fn size(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().map(|metadata| metadata.len())
}

#[cfg(test)]
#[cfg(unix)]
#[expect(clippy::disallowed_methods, reason = "a test may end where it gets no thread")]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::clock::{Clock, from_epoch_seconds};
    use crate::event::EventKind;

    fn log() -> (tempfile::TempDir, EventLog) {
        let directory = tempfile::tempdir().unwrap();
        let log = EventLog::of(directory.path());
        (directory, log)
    }

    fn event(pid: u32, what: EventKind) -> Event {
        Event { time: from_epoch_seconds(1_000_000_000), pid, started: None, what }
    }

    fn path(log: &EventLog) -> PathBuf {
        log.directory.join(FILE)
    }

    fn add(log: &EventLog, bytes: &[u8]) {
        private_file::open_in_place(&path(log)).unwrap().write_all(bytes).unwrap();
    }

    #[test]
    fn concurrent_writers_lose_no_event() {
        let (_directory, log) = log();
        std::thread::scope(|scope| {
            for pid in 0..8 {
                let log = &log;
                scope.spawn(move || (0..200).for_each(|_| log.append(&event(pid, EventKind::Swept))));
            }
        });
        let events = log.read();
        assert_eq!(events.len(), 1600);
        assert!((0..8).all(|pid| events.iter().filter(|event| event.pid == pid).count() == 200));
        assert_eq!(fs::metadata(path(&log)).unwrap().permissions().mode() & 0o7777, 0o600);
    }

    #[test]
    fn damaged_line_and_unknown_event_are_skipped() {
        let (_directory, log) = log();
        log.append(&event(1, EventKind::Swept));
        add(
            &log,
            b"{\"time\":\"2001-\n\xff\xfe\n\n{\"time\":\"2001-09-09T01:46:40Z\",\"pid\":3,\"event\":\"of-tomorrow\"}\n",
        );
        log.append(&event(2, EventKind::Swept));
        assert_eq!(log.read().iter().map(|event| event.pid).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn log_limit_stops_frequent_events_first() {
        let (_directory, log) = log();
        let found = || EventKind::Found { generation: 1, expires_at: from_epoch_seconds(0) };
        let fill = |to: u64| add(&log, &vec![b'\n'; (to - size(&path(&log)).unwrap_or(0)) as usize]);
        fill(LARGEST_FOR_MANY - 10);
        log.append(&event(1, found()));
        log.append(&event(2, EventKind::Swept));
        assert!(log.is_full());
        fill(LARGEST - 10);
        log.append(&event(3, EventKind::Swept));
        assert_eq!(log.read().iter().map(|event| event.pid).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn large_log_is_rotated_once_and_an_old_one_removed() {
        let (_directory, log) = log();
        let now = Clock::system().now();
        log.append(&event(1, EventKind::Swept));
        log.tidy(now);
        assert!(!log.directory.join(BEFORE).exists());
        add(&log, &vec![b'\n'; LARGE as usize]);
        let writer = private_file::open_in_place(&path(&log)).unwrap();
        writer.lock().unwrap();
        log.tidy(now);
        assert!(!log.directory.join(BEFORE).exists(), "another process is at it");
        drop(writer);
        log.tidy(now);
        assert!(log.directory.join(BEFORE).exists());
        log.append(&event(2, EventKind::Swept));
        log.tidy(now);
        assert_eq!(log.read().iter().map(|event| event.pid).collect::<Vec<_>>(), [1, 2]);
        log.tidy(now + LONGEST_KEPT + Duration::from_secs(60));
        assert_eq!(fs::read_dir(&log.directory).unwrap().count(), 0);
    }

    #[test]
    fn unwritable_log_is_left_alone() {
        let (_directory, log) = log();
        let victim = log.directory.join("victim");
        fs::File::create(&victim).unwrap();
        symlink(&victim, path(&log)).unwrap();
        log.append(&event(1, EventKind::Swept));
        assert_eq!(size(&victim), Some(0), "nothing is written through a link");
        assert!(log.read().is_empty());
        EventLog::of(Path::new("/nonexistent")).append(&event(1, EventKind::Swept));
    }

    #[test]
    fn each_log_limit_is_exact_to_the_byte() {
        let length = |what| serde_json::to_vec(&event(1, what)).unwrap().len() as u64 + 1;
        let set_size = |log: &EventLog, size| private_file::open_in_place(&path(log)).unwrap().set_len(size).unwrap();
        let found = || EventKind::Found { generation: 1, expires_at: from_epoch_seconds(0) };
        for (limit, what) in [(LARGEST_FOR_MANY, found()), (LARGEST, EventKind::Swept)] {
            let (_directory, log) = log();
            let just = limit - length(what.clone());
            set_size(&log, just + 1);
            assert!(!log.append_all(&[event(1, what.clone())]), "a byte too little for {what:?}");
            set_size(&log, just);
            assert!(log.append_all(&[event(1, what)]));
            assert_eq!(size(&path(&log)), Some(limit));
        }
        let (_directory, log) = log();
        let of_text = |count| EventKind::ObtainFailed { code: "c".to_owned(), message: "x".repeat(count) };
        let longest = LONGEST_LINE - length(of_text(0)) as usize;
        assert!(log.append_all(&[event(1, of_text(longest))]));
        assert!(!log.append_all(&[
            event(2, EventKind::Swept),
            event(3, of_text(longest + 1)),
            event(4, EventKind::Swept)
        ]));
        assert_eq!(log.read().iter().map(|event| event.pid).collect::<Vec<_>>(), [1, 2, 4]);
        assert!(
            log.append_all(&vec![event(4, EventKind::Swept); 200]),
            "each is as long as it is, however many there are"
        );
        // A skipped event uses no space and frees none.
        let swept = length(EventKind::Swept);
        set_size(&log, LARGEST - swept);
        assert!(!log.append_all(&[
            event(5, of_text(longest + 1)),
            event(6, EventKind::Swept),
            event(7, EventKind::Swept)
        ]));
        assert_eq!(size(&path(&log)), Some(LARGEST));

        let room_for_one = LARGEST_FOR_MANY - LONGEST_LINE as u64;
        for (size, is_full) in [(room_for_one, false), (room_for_one + 1, true)] {
            set_size(&log, size);
            assert_eq!(log.is_full(), is_full, "{size} bytes");
        }
        let now = Clock::system().now();
        for (size, is_large) in [(LARGE - 1, false), (LARGE, true)] {
            set_size(&log, size);
            log.tidy(now);
            assert_eq!(log.directory.join(BEFORE).exists(), is_large, "{size} bytes");
        }
    }

    #[test]
    fn log_unused_for_over_a_week_is_removed() {
        let (_directory, log) = log();
        log.append(&event(1, EventKind::Swept));
        let (_, written) = log.mark().unwrap();
        log.tidy(written + LONGEST_KEPT);
        assert_eq!(log.read().len(), 1);
        log.tidy(written + LONGEST_KEPT + Duration::from_nanos(1));
        assert!(log.mark().is_none());
    }
}
