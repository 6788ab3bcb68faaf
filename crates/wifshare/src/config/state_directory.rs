//! Chooses the state directory: one per user, in the first suitable location.

use std::path::{Path, PathBuf};

use crate::environment::Environment;

/// Variables that name candidate locations, in order. `/tmp` comes last.
const PLACES: [&str; 4] = ["RUNNER_TEMP", "XDG_RUNTIME_DIR", "TMPDIR", "TEMP"];

/// Returns the state directory of this user: the requested one, or else `wifshare-UID` in the first suitable location
/// of `RUNNER_TEMP`, `XDG_RUNTIME_DIR`, `TMPDIR`, `TEMP` and `/tmp`. A location is suitable if it is an absolute path
/// of a directory in which this user owns `wifshare-UID` or can create it.
pub fn state_directory(asked: Option<&Path>, environment: &Environment) -> PathBuf {
    let asked = asked.map(Path::to_owned).or_else(|| environment.os("WIFSHARE_STATE_DIR").map(PathBuf::from));
    let places = || PLACES.iter().filter_map(|name| environment.os(name)).map(Path::new);
    asked
        .or_else(|| places().find_map(usable))
        .or_else(|| usable(Path::new("/tmp")))
        // No location is suitable. Using the last one later produces an error with the reason.
        .unwrap_or_else(|| Path::new("/tmp").join(name()))
}

/// Returns the state directory in this location, if the location is suitable.
fn usable(place: &Path) -> Option<PathBuf> {
    if !place.is_absolute() || !place.is_dir() {
        return None;
    }
    // Older versions used the name `wifshare`. A directory of that name with this user's ledger stays in use, so that
    // spent tokens stay known.
    let before = place.join("wifshare");
    if platform::is_own(&before) == Some(true) && platform::is_private(&before) && before.join("spent").exists() {
        return Some(before);
    }
    let own = place.join(name());
    match platform::is_own(&own) {
        Some(is_own) => is_own,
        None => platform::can_create_in(place),
    }
    .then_some(own)
}

fn name() -> String {
    format!("wifshare-{}", platform::user())
}

#[cfg(unix)]
mod platform {
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    use rustix::fs::{Access, AtFlags, CWD, accessat};

    pub(super) fn user() -> String {
        rustix::process::geteuid().as_raw().to_string()
    }

    /// Returns whether the entry, which may be a link, belongs to this user; `None` if it does not exist.
    pub(super) fn is_own(path: &Path) -> Option<bool> {
        match path.symlink_metadata() {
            Ok(metadata) => Some(metadata.uid() == rustix::process::geteuid().as_raw()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(_) => Some(false),
        }
    }

    pub(super) fn is_private(path: &Path) -> bool {
        path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.mode() & 0o077 == 0)
    }

    pub(super) fn can_create_in(place: &Path) -> bool {
        accessat(CWD, place, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).is_ok()
    }
}

/// Not tested by us: there, the temporary directory belongs to the user.
#[cfg(not(unix))]
mod platform {
    use std::path::Path;

    pub(super) fn user() -> String {
        "user".to_owned()
    }

    pub(super) fn is_own(path: &Path) -> Option<bool> {
        path.exists().then_some(true)
    }

    pub(super) fn is_private(_path: &Path) -> bool {
        true
    }

    pub(super) fn can_create_in(_place: &Path) -> bool {
        true
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::{DirBuilderExt, chown, symlink};

    use super::*;

    fn private(path: &Path) {
        std::fs::DirBuilder::new().mode(0o700).create(path).expect("a directory");
    }

    fn chosen(variables: &[(&str, &Path)]) -> PathBuf {
        state_directory(None, &variables.iter().map(|(name, path)| (*name, path.as_os_str())).collect())
    }

    #[test]
    fn first_usable_location_holds_the_state_directory() {
        let holder = tempfile::tempdir().expect("a directory");
        let [one, two] = ["one", "two"].map(|name| holder.path().join(name));
        private(&one);
        private(&two);
        let file = holder.path().join("file");
        std::fs::File::create(&file).expect("a file");
        assert_eq!(chosen(&[("RUNNER_TEMP", &one), ("TMPDIR", &two)]), one.join(name()));
        assert_eq!(chosen(&[("XDG_RUNTIME_DIR", &one), ("TMPDIR", &two)]), one.join(name()));
        for unusable in [Path::new("relative"), Path::new("."), &holder.path().join("missing"), &file] {
            assert_eq!(
                chosen(&[("RUNNER_TEMP", unusable), ("TEMP", &two)]),
                two.join(name()),
                "{}",
                unusable.display()
            );
        }
        assert_eq!(chosen(&[]), Path::new("/tmp").join(name()));
        let environment = Environment::from_iter([("WIFSHARE_STATE_DIR", "relative"), ("RUNNER_TEMP", "/tmp")]);
        assert_eq!(state_directory(None, &environment), Path::new("relative"), "what is asked for is taken as it is");
        assert_eq!(state_directory(Some(Path::new("asked")), &environment), Path::new("asked"));
    }

    #[test]
    fn location_of_another_user_is_skipped_and_own_link_is_not() {
        let holder = tempfile::tempdir().expect("a directory");
        let [one, two] = ["one", "two"].map(|place| holder.path().join(place));
        private(&one);
        private(&two);
        let places = [("RUNNER_TEMP", one.as_path()), ("TMPDIR", two.as_path())];
        let own = one.join(name());
        // The user's own link is not skipped here. It is refused later with its reason.
        symlink(&two, &own).expect("a link");
        assert_eq!(chosen(&places), own);
        std::fs::remove_file(&own).expect("removed");
        if rustix::process::geteuid().is_root() {
            private(&own);
            chown(&own, Some(65_534), None).expect("given away");
            assert_eq!(chosen(&places), two.join(name()), "somebody else took the name");
        }
    }

    #[test]
    fn directory_of_an_older_version_stays_in_use() {
        let holder = tempfile::tempdir().expect("a directory");
        let places = [("RUNNER_TEMP", holder.path())];
        let before = holder.path().join("wifshare");
        private(&before);
        assert_eq!(chosen(&places), holder.path().join(name()), "nothing in it is ours");
        std::fs::File::create(before.join("spent")).expect("a ledger");
        assert_eq!(chosen(&places), before);
        rustix::fs::chmod(&before, rustix::fs::Mode::from_raw_mode(0o755)).expect("loosened");
        assert_eq!(chosen(&places), holder.path().join(name()), "a folder of that name that others may enter");
    }
}
