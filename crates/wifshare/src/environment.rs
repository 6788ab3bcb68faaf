//! The process environment as a value: read once at startup and passed as an argument.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

/// The environment variables of a process at one moment.
///
/// An empty or blank variable counts as unset, as it does for the official clients: a workflow that writes `FOO: ${{
/// secrets.MISSING }}` sets a blank one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Returns the trimmed value of `name`, or `None` if it is unset, blank or not Unicode.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(OsStr::new(name)).and_then(|value| value.to_str()).map(str::trim).filter(|value| !value.is_empty())
    }

    /// Returns whether `name` is set and not blank.
    pub fn has(&self, name: &str) -> bool {
        self.os(name).is_some()
    }

    /// Returns the value of `name` unchanged (a path need not be Unicode), or `None` if it is unset or blank.
    pub fn os(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !is_blank(value))
    }

    /// Returns the value of `name` unchanged, even if it is blank.
    pub fn get(&self, name: impl AsRef<OsStr>) -> Option<&OsStr> {
        self.0.get(name.as_ref()).map(OsString::as_os_str)
    }

    /// Returns the path of a program on `PATH`: the first candidate for which `is_there` is true. Relative entries are
    /// skipped, because they could lead into a checked-out repository.
    pub fn program(&self, name: &str, is_there: impl Fn(&Path) -> bool) -> Option<PathBuf> {
        let directories = std::env::split_paths(self.os("PATH")?).filter(|directory| directory.is_absolute());
        directories.map(|directory| directory.join(name)).find(|path| is_there(path))
    }

    /// Sets `name`, replacing any previous value.
    pub fn set(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        self.0.insert(name.into(), value.into());
    }

    /// Removes `name`, even if it is blank.
    pub fn remove(&mut self, name: impl AsRef<OsStr>) {
        self.0.remove(name.as_ref());
    }

    /// Returns whether `name` is set to a blank value. Some clients treat such a variable as set.
    pub fn is_blank(&self, name: &str) -> bool {
        self.0.get(OsStr::new(name)).is_some_and(|value| is_blank(value))
    }

    /// Iterates over all variables in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&OsStr, &OsStr)> {
        self.0.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()))
    }
}

impl<N: Into<OsString>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Environment(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// Prints names only: many values in a job's environment are secrets.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn is_blank(value: &OsStr) -> bool {
    value.to_str().is_some_and(|value| value.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_variable_counts_as_unset() {
        let environment = Environment::from_iter([("A", ""), ("B", " \n"), ("C", " x ")]);
        assert_eq!(environment.text("A"), None);
        assert!(!environment.has("B"));
        assert!(environment.is_blank("B"));
        assert_eq!(environment.text("C"), Some("x"));
        assert_eq!(environment.text("D"), None);
        assert!(!environment.is_blank("D"));
    }

    #[test]
    fn debug_shows_variable_names_without_values() {
        let environment = Environment::from_iter([("TOKEN", "canary-7f3a")]);
        assert_eq!(format!("{environment:?}"), r#"{"TOKEN"}"#);
    }
}
