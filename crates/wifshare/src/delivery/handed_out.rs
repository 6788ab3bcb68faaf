//! A file with an identity token for clients that federate by themselves, and the news that one of them has read it.

use std::path::{Path, PathBuf};

use crate::alarm::{Eye, Unwatched};
use crate::identity_token::IdentityToken;
use crate::private_file::{self, PrivateFileError};
use crate::step::Watch;

const FILE: &str = "identity-token";

/// A file that always holds an unspent identity token: replaced by rename before it ends, and as soon as somebody may
/// have used it.
#[derive(Debug)]
pub struct HandedOutToken {
    directory: PathBuf,
    path: PathBuf,
    readers: readers::Readers,
}

impl HandedOutToken {
    /// Makes the directory for it. There is no token in it yet.
    pub fn create(directory: PathBuf) -> Result<Self, PrivateFileError> {
        private_file::private_directory(&directory)?;
        let path = directory.join(FILE);
        let readers = readers::Readers::of(&directory);
        Ok(HandedOutToken { directory, path, readers })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hands this token out in place of the one before. Whoever has the older file open goes on reading it whole.
    pub fn replace(&self, token: IdentityToken, watch: Watch<'_>) -> Result<(), PrivateFileError> {
        // Somebody may have removed it; from then on readers are found by the time of access alone.
        private_file::private_directory(&self.directory)?;
        private_file::replace_unsynced(&self.directory, FILE, token.expose().as_bytes(), watch)
    }

    /// Becomes readable when somebody may have opened the file; [`was_read`](Self::was_read) reads it empty.
    pub fn news(&self) -> Option<Eye<'_>> {
        self.readers.news()
    }

    /// Whether somebody opened the file since the last call; from then on its token may be spent.
    ///
    /// The kernel tells it on Linux. Without a watch the file's time of access does, where the file system keeps that: a
    /// client without a profile leaves no other trace of an exchange.
    pub fn was_read(&self) -> bool {
        match self.readers.watched() {
            Ok(()) => self.readers.opened(FILE),
            Err(_) => self.was_accessed(),
        }
    }

    /// Whether readers are noticed without looking for them.
    pub fn watched(&self) -> Result<(), Unwatched> {
        self.readers.watched()
    }

    /// A file is written once, under another name. What is newer than that is a reader's.
    fn was_accessed(&self) -> bool {
        let metadata = std::fs::symlink_metadata(&self.path);
        metadata.is_ok_and(|it| matches!((it.accessed(), it.modified()), (Ok(read), Ok(written)) if read > written))
    }
}

#[cfg(target_os = "linux")]
mod readers {
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, OwnedFd};
    use std::path::Path;

    use rustix::fs::inotify;
    use rustix::io::Errno;

    use crate::alarm::{Eye, Unwatched};

    #[derive(Debug)]
    pub(super) struct Readers(Result<OwnedFd, Unwatched>);

    impl Readers {
        pub(super) fn of(directory: &Path) -> Readers {
            Readers(Self::watch(directory).map_err(Unwatched::by))
        }

        fn watch(directory: &Path) -> Result<OwnedFd, Errno> {
            let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            // The directory, because the file in it is replaced by rename.
            inotify::add_watch(&watch, directory, inotify::WatchFlags::OPEN)?;
            Ok(watch)
        }

        pub(super) fn watched(&self) -> Result<(), Unwatched> {
            self.0.as_ref().map(drop).map_err(|unwatched| *unwatched)
        }

        pub(super) fn news(&self) -> Option<Eye<'_>> {
            self.0.as_ref().ok().map(AsFd::as_fd)
        }

        pub(super) fn opened(&self, name: &str) -> bool {
            let Ok(watch) = &self.0 else { return false };
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(watch, &mut buffer);
            let mut opened = false;
            // Until nothing more is to be read; an error other than that leaves the answer as it stands.
            while let Ok(event) = events.next() {
                opened |= event.file_name().is_some_and(|file| file.to_bytes() == name.as_bytes());
                opened |= event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW);
            }
            opened
        }
    }
}

/// Not run by us: elsewhere readers are found by the time of access.
#[cfg(not(target_os = "linux"))]
mod readers {
    use std::path::Path;

    use crate::alarm::{Eye, Unwatched};

    #[derive(Debug)]
    pub(super) struct Readers;

    impl Readers {
        pub(super) fn of(_directory: &Path) -> Readers {
            Readers
        }

        pub(super) fn watched(&self) -> Result<(), Unwatched> {
            Err(Unwatched::Otherwise)
        }

        pub(super) fn news(&self) -> Option<Eye<'_>> {
            None
        }

        pub(super) fn opened(&self, _name: &str) -> bool {
            false
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use super::*;
    use crate::alarm::Alarm;
    use crate::clock::Clock;
    use crate::secret::Secret;

    #[test]
    fn a_reader_is_noticed_once_and_our_own_writing_is_not() {
        let holder = tempfile::tempdir().expect("a directory");
        let file = HandedOutToken::create(holder.path().join("t")).expect("created");
        let token = |text: &str| IdentityToken::parse(&Secret::new(text.to_owned())).expect("a token");
        file.replace(token("eyJhbGciOiJSUzI1NiJ9.e30.YQ"), &|_| {}).expect("replaced");
        assert!(!file.was_read());
        let read = private_file::read(file.path()).expect("readable").expect("there");
        assert_eq!(read.as_slice(), b"eyJhbGciOiJSUzI1NiJ9.e30.YQ");
        let long = std::time::Duration::from_secs(60);
        let (begun, monotonic) = ((Clock::system().monotonic)(), Clock::system().monotonic);
        Alarm::new().wait(None, long, file.news());
        assert!(monotonic() - begun < long / 2, "who waits for news hears of it");
        assert!(file.was_read());
        assert!(!file.was_read(), "told once");
        file.replace(token("eyJhbGciOiJSUzI1NiJ9.e30.Yg"), &|_| {}).expect("replaced");
        assert!(!file.was_read());
    }
}
