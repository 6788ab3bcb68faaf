//! Files and directories that only their owner can access: created with that mode, verified on use, replaced
//! atomically.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::progress::{Observer, Progress};
use crate::resource;

/// The largest private file that is read, in bytes. wifshare's own are far smaller.
const LARGEST: u64 = 4 << 20;

/// Name prefix of a temporary file that is being written.
const UNFINISHED: &str = ".new-";

/// Why a private file or directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// An I/O operation failed.
    #[error("could not {action} {}", path.display())]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The path it was tried on.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The path is a symbolic link instead of a real file or directory.
    #[error("{} is a symbolic link, and a link could lead anywhere", .0.display())]
    Link(PathBuf),
    /// The path is not of the expected kind.
    #[error("{} is not a {expected}", path.display())]
    WrongKind {
        /// The path.
        path: PathBuf,
        /// What was expected: `directory` or `regular file`.
        expected: &'static str,
    },
    /// Another user owns it.
    #[error("{} belongs to user {owner}, and this process runs as user {ours}", path.display())]
    Foreign {
        /// The path that another user owns.
        path: PathBuf,
        /// The owner's user id.
        owner: u32,
        /// The user id of this process.
        ours: u32,
    },
    /// Other users can read or write it.
    #[error("{} has mode {mode:04o}, so other users can reach it", path.display())]
    Loose {
        /// The accessible path.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is larger than anything wifshare writes.
    #[error("{} is larger than {LARGEST} bytes", .0.display())]
    Oversized(PathBuf),
}

impl PrivateFileError {
    fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + use<'a> {
        move |source| match source.kind() {
            // Report a parent directory of another user as such; it is the real reason.
            io::ErrorKind::PermissionDenied => {
                closed_to_us(path).unwrap_or_else(|| PrivateFileError::Io { action, path: path.to_owned(), source })
            }
            _ => PrivateFileError::Io { action, path: path.to_owned(), source },
        }
    }

    /// Returns an instruction for the user.
    pub fn hint(&self) -> String {
        let choose = "choose another directory with --state-dir or WIFSHARE_STATE_DIR";
        match self {
            PrivateFileError::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull => format!("free some space there, or {choose}"),
                _ if resource::cure(source).is_some() => resource::cure(source).unwrap_or_default().to_owned(),
                io::ErrorKind::ReadOnlyFilesystem => format!("that file system is read-only; {choose}"),
                _ => format!("make it writable for this user, or {choose}"),
            },
            PrivateFileError::Link(path) | PrivateFileError::WrongKind { path, .. } => {
                format!("look who put it there; remove {} if it is yours, or {choose}", path.display())
            }
            PrivateFileError::Foreign { .. } => format!("{choose}, one that belongs to this user"),
            PrivateFileError::Loose { path, .. } => {
                format!("if nobody else used it, `chmod go-rwx {}`; otherwise {choose}", path.display())
            }
            PrivateFileError::Oversized(path) => format!("it is not ours; move {} away", path.display()),
        }
    }
}

/// Opens any regular file for reading. Does not block on a pipe or a device, and follows links.
///
/// # Errors
/// Fails if the file cannot be opened, or is not a regular file.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = open_without_waiting(OpenOptions::new().read(true), path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// Opens a file that the user named, in append mode, and creates it if missing. Does not block on a pipe.
///
/// # Errors
/// Fails if the file cannot be opened, such as a pipe without a reader.
pub fn open_to_append(path: &Path) -> io::Result<File> {
    open_without_waiting(OpenOptions::new().append(true).create(true), path)
}

/// Ensures that `path` is a private directory of this user. Creates it and its missing parents with mode 0700. An
/// existing directory is verified and never repaired: while its mode was loose, another user may have used it.
///
/// # Errors
/// Fails if the directory cannot be created, or if it is not private.
pub fn private_directory(path: &Path) -> Result<(), PrivateFileError> {
    match verify_directory(path) {
        Err(PrivateFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        verdict => return verdict,
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists()) {
        private_directory(parent)?;
    }
    match create_directory(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(PrivateFileError::io("create the directory", path)(error))
        }
        // Another process may have created it first. The verification decides either way.
        _ => verify_directory(path),
    }
}

/// Reads a whole private file; `None` if it does not exist.
///
/// # Errors
/// Fails if the file cannot be read, is not private, or is too large.
pub fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, PrivateFileError> {
    let Some((file, length)) = open_to_read(path)? else { return Ok(None) };
    // Reserve the whole size plus the final read: a growing buffer leaves copies that are never wiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length.min(LARGEST) as usize + 64));
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(PrivateFileError::io("read", path))?;
    if bytes.len() as u64 > LARGEST {
        return Err(PrivateFileError::Oversized(path.to_owned()));
    }
    Ok(Some(bytes))
}

/// Opens a private file for reading and returns its length; `None` if it does not exist.
///
/// # Errors
/// Fails if the file cannot be opened, or is not private.
pub fn open_to_read(path: &Path) -> Result<Option<(File, u64)>, PrivateFileError> {
    open_if_there(OpenOptions::new().read(true), path)
}

/// Opens a private file for overwriting; `None` if it does not exist.
///
/// # Errors
/// Fails if the file cannot be opened, or is not private.
pub fn open_to_change(path: &Path) -> Result<Option<File>, PrivateFileError> {
    Ok(open_if_there(OpenOptions::new().read(true).write(true), path)?.map(|(file, _)| file))
}

fn open_if_there(options: &mut OpenOptions, path: &Path) -> Result<Option<(File, u64)>, PrivateFileError> {
    match open_without_following(options, path) {
        Ok(file) => {
            let length = verify_open_file(&file, path)?;
            Ok(Some((file, length)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(opening(path, error)),
    }
}

/// Replaces the file `name` in `directory` atomically: writes a temporary file with mode 0600, syncs it, renames it and
/// syncs the directory. A reader sees the old file or the new one, even after a power failure.
///
/// # Errors
/// Fails if the file cannot be written, synced or renamed.
pub fn replace(
    directory: &Path,
    name: &'static str,
    bytes: &[u8],
    observer: Observer<'_>,
) -> Result<(), PrivateFileError> {
    replace_synced_by(File::sync_all, directory, name, bytes, observer)?;
    sync_directory(directory)
}

/// Like [`replace`], without syncing: for a file that is useless after its process ends.
///
/// # Errors
/// Fails if the file cannot be written or renamed.
pub fn replace_unsynced(
    directory: &Path,
    name: &'static str,
    bytes: &[u8],
    observer: Observer<'_>,
) -> Result<(), PrivateFileError> {
    replace_synced_by(|_| Ok(()), directory, name, bytes, observer)
}

fn replace_synced_by(
    sync: impl FnOnce(&File) -> io::Result<()>,
    directory: &Path,
    name: &'static str,
    bytes: &[u8],
    observer: Observer<'_>,
) -> Result<(), PrivateFileError> {
    let path = directory.join(name);
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(directory)
        .map_err(PrivateFileError::io("create a file in", directory))?;
    // With a umask of 0777, the file would be unreadable even for its owner.
    make_private(file.as_file()).map_err(PrivateFileError::io("set the mode of a file in", directory))?;
    file.write_all(bytes).and_then(|()| sync(file.as_file())).map_err(PrivateFileError::io("write", &path))?;
    observer(&Progress::Written(name));
    file.persist(&path).map_err(|error| PrivateFileError::io("replace", &path)(error.error))?;
    observer(&Progress::Replaced(name));
    Ok(())
}

/// Ensures that this many bytes can be written in a directory, by writing and removing them.
///
/// # Errors
/// Fails if the bytes cannot be written.
pub fn make_sure_of_room(directory: &Path, bytes: usize) -> Result<(), PrivateFileError> {
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .tempfile_in(directory)
        .map_err(PrivateFileError::io("create a file in", directory))?;
    let written = file.write_all(&vec![0; bytes]).and_then(|()| file.as_file().sync_all());
    written.map_err(PrivateFileError::io("write into", directory))
}

/// Opens a private file for reading and writing, and creates it with mode 0600 if missing. For files that stay in place
/// because they are locked or appended to.
///
/// # Errors
/// Fails if the file cannot be opened or created, or is not private.
pub fn open_in_place(path: &Path) -> Result<File, PrivateFileError> {
    let open = |create: bool| {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create_new(create);
        open_without_following(&mut options, path)
    };
    let file = match open(false) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => match open(true) {
            Ok(file) => {
                make_private(&file).map_err(PrivateFileError::io("set the mode of", path))?;
                file
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                open(false).map_err(|error| opening(path, error))?
            }
            Err(error) => return Err(opening(path, error)),
        },
        other => other.map_err(|error| opening(path, error))?,
    };
    verify_open_file(&file, path)?;
    Ok(file)
}

/// Removes a file, or a directory with its content. Succeeds if the path does not exist. Does not follow links.
///
/// # Errors
/// Fails if the path exists and cannot be removed.
pub fn remove(path: &Path) -> Result<(), PrivateFileError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PrivateFileError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Removes temporary files that a killed process left in this directory. The caller must know that no other process
/// writes there.
pub fn remove_unfinished(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED)) {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            // Best effort: the file is private, and the next writer tries again.
            drop(fs::remove_file(entry.path()));
        }
    }
}

/// Verifies a directory. Succeeds if it does not exist.
///
/// # Errors
/// Fails if the path exists and is not a private directory.
pub fn verify_if_there(path: &Path) -> Result<(), PrivateFileError> {
    match verify_directory(path) {
        Err(PrivateFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        verdict => verdict,
    }
}

/// Syncs a directory, so that a rename or a creation in it survives a power failure.
///
/// # Errors
/// Fails if the directory cannot be synced.
pub fn sync_directory(directory: &Path) -> Result<(), PrivateFileError> {
    if cfg!(unix) {
        open_directory(directory).and_then(|file| file.sync_all()).map_err(PrivateFileError::io("sync", directory))?;
    }
    Ok(())
}

fn opening(path: &Path, error: io::Error) -> PrivateFileError {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_symlink() => PrivateFileError::Link(path.to_owned()),
        Ok(metadata) if !metadata.is_file() => {
            PrivateFileError::WrongKind { path: path.to_owned(), expected: "regular file" }
        }
        _ if error.kind() == io::ErrorKind::NotADirectory => not_a_directory(path, error),
        _ => PrivateFileError::io("open", path)(error),
    }
}

/// Finds the parent of `path` that is not a directory.
fn not_a_directory(path: &Path, error: io::Error) -> PrivateFileError {
    let in_the_way = |path: &&Path| fs::metadata(path).is_ok_and(|metadata| !metadata.is_dir());
    match path.ancestors().skip(1).find(in_the_way) {
        Some(path) => PrivateFileError::WrongKind { path: path.to_owned(), expected: "directory" },
        None => PrivateFileError::io("open", path)(error),
    }
}

#[cfg(unix)]
mod platform {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};

    use super::*;

    pub(super) fn create_directory(path: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(path)?;
        // With a umask of 0777, the directory would be inaccessible. It is new and ours, so changing its mode is safe.
        if fs::symlink_metadata(path)?.mode() & 0o700 != 0o700 {
            rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(0o700))?;
        }
        Ok(())
    }

    pub(super) fn verify_directory(path: &Path) -> Result<(), PrivateFileError> {
        let metadata = fs::symlink_metadata(path).map_err(PrivateFileError::io("look at", path))?;
        if metadata.file_type().is_symlink() {
            return Err(PrivateFileError::Link(path.to_owned()));
        }
        if !metadata.is_dir() {
            return Err(PrivateFileError::WrongKind { path: path.to_owned(), expected: "directory" });
        }
        verify_owner_and_mode(&metadata, path)
    }

    pub(super) fn open_without_following(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
        options.mode(0o600).custom_flags(flags()).open(path)
    }

    pub(super) fn open_without_waiting(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
        options.custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(path)
    }

    pub(super) fn open_directory(path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::DIRECTORY.bits() as i32).open(path)
    }

    /// Verifies kind, owner and mode, and returns the length.
    pub(super) fn verify_open_file(file: &File, path: &Path) -> Result<u64, PrivateFileError> {
        let metadata = file.metadata().map_err(PrivateFileError::io("look at", path))?;
        // A second hard link would keep a secret readable after it is removed.
        if !metadata.is_file() || metadata.nlink() > 1 {
            return Err(PrivateFileError::WrongKind { path: path.to_owned(), expected: "regular file of one name" });
        }
        verify_owner_and_mode(&metadata, path)?;
        Ok(metadata.len())
    }

    pub(super) fn make_private(file: &File) -> io::Result<()> {
        // Safe: the descriptor is of a file that was just created, and the mode can only remove access from others.
        file.set_permissions(fs::Permissions::from_mode(0o600))
    }

    fn verify_owner_and_mode(metadata: &fs::Metadata, path: &Path) -> Result<(), PrivateFileError> {
        let ours = rustix::process::geteuid().as_raw();
        if metadata.uid() != ours {
            return Err(PrivateFileError::Foreign { path: path.to_owned(), owner: metadata.uid(), ours });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(PrivateFileError::Loose { path: path.to_owned(), mode });
        }
        Ok(())
    }

    /// Returns the parent directory that another user owns and that denies access to this one.
    pub(super) fn closed_to_us(path: &Path) -> Option<PrivateFileError> {
        let ours = rustix::process::geteuid().as_raw();
        // The innermost directory that can be examined is the one that denies access.
        let (path, metadata) = path.ancestors().skip(1).find_map(|path| Some((path, fs::metadata(path).ok()?)))?;
        let may_enter =
            rustix::fs::accessat(rustix::fs::CWD, path, rustix::fs::Access::EXEC_OK, rustix::fs::AtFlags::EACCESS);
        (metadata.uid() != ours && metadata.is_dir() && may_enter.is_err()).then(|| PrivateFileError::Foreign {
            path: path.to_owned(),
            owner: metadata.uid(),
            ours,
        })
    }

    fn flags() -> i32 {
        // Never follow a link in the last component, and never block on a FIFO that another process placed there.
        (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32
    }
}

/// Not tested by us: there, the inherited access list of the profile directory keeps other users out.
#[cfg(not(unix))]
mod platform {
    use super::*;

    pub(super) fn create_directory(path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    pub(super) fn verify_directory(path: &Path) -> Result<(), PrivateFileError> {
        let metadata = fs::symlink_metadata(path).map_err(PrivateFileError::io("look at", path))?;
        if metadata.file_type().is_symlink() {
            return Err(PrivateFileError::Link(path.to_owned()));
        }
        match metadata.is_dir() {
            true => Ok(()),
            false => Err(PrivateFileError::WrongKind { path: path.to_owned(), expected: "directory" }),
        }
    }

    pub(super) fn open_without_following(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
        options.open(path)
    }

    pub(super) fn open_without_waiting(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
        options.open(path)
    }

    pub(super) fn open_directory(path: &Path) -> io::Result<File> {
        File::open(path)
    }

    pub(super) fn verify_open_file(file: &File, path: &Path) -> Result<u64, PrivateFileError> {
        let metadata = file.metadata().map_err(PrivateFileError::io("look at", path))?;
        match metadata.is_file() {
            true => Ok(metadata.len()),
            false => Err(PrivateFileError::WrongKind { path: path.to_owned(), expected: "regular file" }),
        }
    }

    pub(super) fn make_private(_file: &File) -> io::Result<()> {
        Ok(())
    }

    pub(super) fn closed_to_us(_path: &Path) -> Option<PrivateFileError> {
        None
    }
}

use platform::{
    closed_to_us, create_directory, make_private, open_directory, open_without_following, open_without_waiting,
    verify_directory, verify_open_file,
};

#[cfg(test)]
#[cfg(unix)]
#[expect(clippy::disallowed_methods, reason = "a test may end where it gets no thread")]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn directory() -> (tempfile::TempDir, PathBuf) {
        let holder = tempfile::tempdir().unwrap();
        let path = holder.path().join("a/b");
        private_directory(&path).unwrap();
        (holder, path)
    }

    #[test]
    fn directory_and_file_are_created_private() {
        let (_holder, path) = directory();
        assert_eq!(mode(&path), 0o700);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        replace(&path, "x", b"1", &|_| {}).unwrap();
        replace(&path, "x", b"22", &|_| {}).unwrap();
        assert_eq!(mode(&path.join("x")), 0o600);
        assert_eq!(read(&path.join("x")).unwrap().unwrap().as_slice(), b"22");
        assert_eq!(fs::read_dir(&path).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn missing_file_is_not_an_error() {
        let (_holder, path) = directory();
        assert!(read(&path.join("x")).unwrap().is_none());
        remove(&path.join("x")).unwrap();
    }

    #[test]
    fn symlink_is_refused_and_its_target_kept() {
        let (_holder, path) = directory();
        File::create(path.join("victim")).unwrap();
        symlink(path.join("victim"), path.join("link")).unwrap();
        assert!(matches!(read(&path.join("link")), Err(PrivateFileError::Link(_))));
        assert!(matches!(open_in_place(&path.join("link")), Err(PrivateFileError::Link(_))));
        symlink(&path, path.join("linked")).unwrap();
        assert!(matches!(private_directory(&path.join("linked")), Err(PrivateFileError::Link(_))));
        symlink(path.join("nowhere"), path.join("dangling")).unwrap();
        assert!(matches!(open_in_place(&path.join("dangling")), Err(PrivateFileError::Link(_))));
        assert!(!path.join("nowhere").exists());
    }

    #[test]
    fn file_or_directory_open_to_others_is_refused_and_kept() {
        let (_holder, path) = directory();
        replace(&path, "x", b"1", &|_| {}).unwrap();
        for loose in [0o604, 0o640, 0o660] {
            rustix::fs::chmod(path.join("x"), rustix::fs::Mode::from_raw_mode(loose)).unwrap();
            assert!(matches!(read(&path.join("x")), Err(PrivateFileError::Loose { mode, .. }) if mode == loose));
        }
        rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(0o750)).unwrap();
        assert!(matches!(private_directory(&path), Err(PrivateFileError::Loose { mode: 0o750, .. })));
        assert_eq!(mode(&path), 0o750);
    }

    #[test]
    fn hard_linked_file_is_refused() {
        let (_holder, path) = directory();
        replace(&path, "x", b"1", &|_| {}).unwrap();
        fs::hard_link(path.join("x"), path.join("y")).unwrap();
        assert!(matches!(read(&path.join("x")), Err(PrivateFileError::WrongKind { .. })));
    }

    #[test]
    fn fifo_is_refused_without_blocking() {
        let (_holder, path) = directory();
        let fifo = path.join("x");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert!(matches!(read(&fifo), Err(PrivateFileError::WrongKind { .. })));
    }

    #[test]
    fn file_over_the_size_limit_is_refused() {
        let (_holder, path) = directory();
        let file = open_in_place(&path.join("x")).unwrap();
        file.set_len(LARGEST).unwrap();
        assert_eq!(read(&path.join("x")).unwrap().unwrap().len() as u64, LARGEST);
        file.set_len(LARGEST + 1).unwrap();
        assert!(matches!(read(&path.join("x")), Err(PrivateFileError::Oversized(_))));
    }

    /// Returns the failed action and the kind of its error.
    fn refusal<T>(result: Result<T, PrivateFileError>) -> (&'static str, io::ErrorKind) {
        match result.err() {
            Some(PrivateFileError::Io { action, source, .. }) => (action, source.kind()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn io_error_names_the_action_and_the_blocking_file() {
        let (_holder, path) = directory();
        let missing = path.join("missing");
        assert_eq!(refusal(make_sure_of_room(&missing, 1)), ("create a file in", io::ErrorKind::NotFound));
        assert_eq!(refusal(sync_directory(&missing)), ("sync", io::ErrorKind::NotFound));
        assert_eq!(refusal(open_in_place(&missing.join("x"))), ("open", io::ErrorKind::NotFound));
        make_sure_of_room(&path, 1).unwrap();

        replace(&path, "file", b"", &|_| {}).unwrap();
        let below = path.join("file/below");
        for result in [read(&below).err(), open_in_place(&below).err()] {
            let named = Some(path.join("file"));
            assert!(
                matches!(&result, Some(PrivateFileError::WrongKind { path, expected: "directory" }) if Some(path) == named.as_ref()),
                "{result:?}"
            );
        }
        assert_eq!(refusal(remove(&below)), ("remove", io::ErrorKind::NotADirectory));
        assert_eq!(refusal(private_directory(&below)), ("look at", io::ErrorKind::NotADirectory));
        if cfg!(target_os = "linux") {
            let nowhere = Path::new("/proc/a-directory-that-nobody-can-make");
            assert_eq!(refusal(private_directory(nowhere)), ("create the directory", io::ErrorKind::NotFound));
        }

        // A socket is not a link, and cannot be opened.
        let socket = path.join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let refused = read(&socket).err();
        assert!(matches!(refused, Some(PrivateFileError::WrongKind { expected: "regular file", .. })), "{refused:?}");
        assert!(open_regular(&socket).is_err() && open_to_append(&socket).is_err());
    }

    #[test]
    fn hint_depends_on_the_system_error() {
        let hint = |kind: io::ErrorKind| PrivateFileError::io("write", Path::new("x"))(kind.into()).hint();
        assert!(hint(io::ErrorKind::StorageFull).starts_with("free some space"));
        assert!(hint(io::ErrorKind::ReadOnlyFilesystem).starts_with("that file system is read-only"));
        assert!(hint(io::ErrorKind::PermissionDenied).starts_with("make it writable"));
    }

    #[test]
    fn only_unfinished_temporary_files_are_removed() {
        let (_holder, path) = directory();
        for name in [".new-1", "new-2", "x"] {
            File::create(path.join(name)).unwrap();
        }
        fs::create_dir(path.join(".new-directory")).unwrap();
        remove_unfinished(&path);
        let mut left: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [".new-directory", "new-2", "x"]);
    }

    #[test]
    fn concurrent_creation_of_directories_and_files_succeeds() {
        let (_holder, path) = directory();
        let together = std::sync::Barrier::new(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for round in 0..100 {
                        let path = path.join(format!("{round}"));
                        together.wait();
                        private_directory(&path).unwrap();
                        together.wait();
                        open_in_place(&path.join("x")).unwrap();
                    }
                });
            }
        });
    }
}
