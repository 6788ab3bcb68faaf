//! What a platform is recognised by, as values: variables, what exists, and where the platforms have what never moves.

use std::path::{Path, PathBuf};

use crate::environment::Environment;

/// A job as a platform's file looks at it. Looking asks nobody and reads nothing.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// The variables.
    pub environment: &'a Environment,
    /// For whom the identity token shall be meant, where the platform can be told.
    pub audience: &'a str,
    /// Where the platforms have what never moves.
    pub places: &'a Places,
    /// Whether there is such a file or directory.
    pub exists: &'a dyn Fn(&Path) -> bool,
    /// Whether the user named the platform, so that no variable has to speak for it.
    pub is_chosen: bool,
}

/// The addresses and paths that the platforms document as fixed. No variable moves them: whoever can set a job's
/// variables must not be able to answer in a metadata service's place. A test has doubles elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Google Cloud's metadata server, by its address, so that no resolver has a say.
    pub google_metadata: String,
    /// The Azure Instance Metadata Service.
    pub azure_metadata: String,
    /// Where a pod finds the token that was projected for the Claude API.
    pub kubernetes_volume: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Places {
            google_metadata: "http://169.254.169.254".to_owned(),
            azure_metadata: "http://169.254.169.254".to_owned(),
            kubernetes_volume: "/var/run/secrets/anthropic.com".into(),
        }
    }
}

impl Surroundings<'_> {
    /// Whether this variable says yes, as CIs say it: `true`, `True`.
    pub(super) fn says_yes(&self, name: &str) -> bool {
        self.environment.text(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// Where this program stands on `PATH`.
    pub(super) fn program(&self, name: &str) -> Option<PathBuf> {
        self.environment.program(name, self.exists)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::identity::Detected;

    /// What a platform's file finds in these variables, where these files exist.
    pub(in crate::identity) fn look(
        platform: fn(&Surroundings<'_>) -> Detected,
        variables: &[(&str, &str)],
        files: &[&str],
        is_chosen: bool,
    ) -> Detected {
        let environment: Environment = variables.iter().copied().collect();
        platform(&Surroundings {
            environment: &environment,
            audience: "https://api.anthropic.com",
            places: &Places::default(),
            exists: &|path| files.iter().any(|file| path == Path::new(file)),
            is_chosen,
        })
    }

    #[test]
    fn a_program_is_not_found_in_a_checked_out_repository() {
        let environment = Environment::from_iter([("PATH", "bin:.:/opt/a:/opt/b")]);
        let surroundings = Surroundings {
            environment: &environment,
            audience: "",
            places: &Places::default(),
            exists: &|path| path != Path::new("/opt/a/agent"),
            is_chosen: false,
        };
        assert_eq!(surroundings.program("agent"), Some("/opt/b/agent".into()));
    }

    #[test]
    fn a_metadata_service_is_asked_at_its_own_address() {
        let places = Places::default();
        assert_eq!(places.google_metadata, "http://169.254.169.254");
        assert_eq!(places.azure_metadata, "http://169.254.169.254");
    }
}
