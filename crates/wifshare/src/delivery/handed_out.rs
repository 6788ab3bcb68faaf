//! A file with an identity token for clients that make the exchange themselves, and the detection of its readers.

use std::path::{Path, PathBuf};

use crate::identity_token::IdentityToken;
use crate::private_file::{self, PrivateFileError};
use crate::progress::Observer;
use crate::wakeup::{ExtraFd, Unwatched};

const FILE: &str = "identity-token";

/// A file that contains an unspent identity token. The run replaces it by rename before it expires, and as soon as a
/// client may have used it.
#[derive(Debug)]
pub struct HandedOutToken {
    directory: PathBuf,
    path: PathBuf,
    readers: readers::Readers,
}

impl HandedOutToken {
    /// Creates the directory, without a token.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn create(directory: PathBuf) -> Result<Self, PrivateFileError> {
        private_file::private_directory(&directory)?;
        let path = directory.join(FILE);
        let readers = readers::Readers::of(&directory);
        Ok(HandedOutToken { directory, path, readers })
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces the token. A reader with the previous file open can still read all of it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn replace(&self, token: IdentityToken, observer: Observer<'_>) -> Result<(), PrivateFileError> {
        // The directory may have been removed. Then the watch is lost, and only the access time shows readers.
        private_file::private_directory(&self.directory)?;
        private_file::replace_unsynced(&self.directory, FILE, token.expose().as_bytes(), observer)
    }

    /// Becomes readable when the file may have been opened. [`was_read`](Self::was_read) drains it.
    pub fn news(&self) -> Option<ExtraFd<'_>> {
        self.readers.news()
    }

    /// Whether the file was opened since the last call. Its token may be spent then.
    ///
    /// On Linux, this uses inotify. Without a watch, it uses the access time, if the file system keeps one: an exchange
    /// of a client without a profile leaves no other trace.
    pub fn was_read(&self) -> bool {
        match self.readers.watched() {
            Ok(()) => self.readers.opened(FILE),
            Err(_) => self.was_accessed(),
        }
    }

    /// Whether readers cause an event, so that polling is not necessary.
    ///
    /// # Errors
    /// The reason why the file is not watched.
    pub fn watched(&self) -> Result<(), Unwatched> {
        self.readers.watched()
    }

    /// The file is written once, under another name. A later access time is that of a reader.
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

    use crate::wakeup::{ExtraFd, Unwatched};

    #[derive(Debug)]
    pub(super) struct Readers(Result<OwnedFd, Unwatched>);

    impl Readers {
        pub(super) fn of(directory: &Path) -> Readers {
            Readers(Self::watch(directory).map_err(Unwatched::by))
        }

        fn watch(directory: &Path) -> Result<OwnedFd, Errno> {
            let observer = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
            // Watch the directory, because the file is replaced by rename.
            inotify::add_watch(&observer, directory, inotify::WatchFlags::OPEN)?;
            Ok(observer)
        }

        pub(super) fn watched(&self) -> Result<(), Unwatched> {
            self.0.as_ref().map(drop).map_err(|unwatched| *unwatched)
        }

        pub(super) fn news(&self) -> Option<ExtraFd<'_>> {
            self.0.as_ref().ok().map(AsFd::as_fd)
        }

        pub(super) fn opened(&self, name: &str) -> bool {
            let Ok(observer) = &self.0 else { return false };
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut events = inotify::Reader::new(observer, &mut buffer);
            let mut opened = false;
            // Read all events. Any other error ends the loop too, and does not change the result.
            while let Ok(event) = events.next() {
                opened |= event.file_name().is_some_and(|file| file.to_bytes() == name.as_bytes());
                opened |= event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW);
            }
            opened
        }
    }
}

/// Other systems: readers are detected by the access time.
#[cfg(not(target_os = "linux"))]
mod readers {
    use std::path::Path;

    use crate::wakeup::{ExtraFd, Unwatched};

    #[derive(Debug)]
    pub(super) struct Readers;

    impl Readers {
        pub(super) fn of(_directory: &Path) -> Readers {
            Readers
        }

        pub(super) fn watched(&self) -> Result<(), Unwatched> {
            Err(Unwatched::Otherwise)
        }

        pub(super) fn news(&self) -> Option<ExtraFd<'_>> {
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
    use crate::clock::Clock;
    use crate::secret::Secret;
    use crate::wakeup::Wakeup;

    #[test]
    fn token_read_is_noticed_once_and_own_writes_are_not() {
        let holder = tempfile::tempdir().expect("a directory");
        let file = HandedOutToken::create(holder.path().join("t")).expect("created");
        let token = |text: &str| IdentityToken::parse(&Secret::new(text.to_owned())).expect("a token");
        file.replace(token("eyJhbGciOiJSUzI1NiJ9.e30.YQ"), &|_| {}).expect("replaced");
        assert!(!file.was_read());
        let read = private_file::read(file.path()).expect("readable").expect("there");
        assert_eq!(read.as_slice(), b"eyJhbGciOiJSUzI1NiJ9.e30.YQ");
        let long = std::time::Duration::from_secs(60);
        let (begun, monotonic) = ((Clock::system().monotonic)(), Clock::system().monotonic);
        Wakeup::new().wait(None, long, file.news());
        assert!(monotonic() - begun < long / 2, "who waits for news hears of it");
        assert!(file.was_read());
        assert!(!file.was_read(), "told once");
        file.replace(token("eyJhbGciOiJSUzI1NiJ9.e30.Yg"), &|_| {}).expect("replaced");
        assert!(!file.was_read());
    }
}
