//! The input of platform detection, as values: environment, existing files, fixed endpoints.

use std::path::{Path, PathBuf};

use crate::environment::Environment;

/// What platform detection may look at. Detection sends no request and reads no file.
#[derive(Clone, Copy)]
pub struct DetectionInput<'a> {
    /// The variables.
    pub environment: &'a Environment,
    /// The audience to request, where the platform lets a job choose it.
    pub audience: &'a str,
    /// Addresses and paths that no variable can change.
    pub endpoints: &'a FixedEndpoints,
    /// Whether a file or directory exists.
    pub exists: &'a dyn Fn(&Path) -> bool,
    /// Whether the user named the platform. Then no variable has to indicate it.
    pub is_chosen: bool,
}

/// Addresses and paths that the platforms document as fixed. No variable changes them: a party that can set a job's
/// variables must not be able to impersonate a metadata service. Tests use other addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FixedEndpoints {
    /// Google Cloud's metadata server, by IP address, so that name resolution cannot redirect it.
    pub google_metadata: String,
    /// The Azure Instance Metadata Service.
    pub azure_metadata: String,
    /// Where a pod finds the token that was projected for the Claude API.
    pub kubernetes_volume: PathBuf,
}

impl Default for FixedEndpoints {
    fn default() -> Self {
        FixedEndpoints {
            google_metadata: "http://169.254.169.254".to_owned(),
            azure_metadata: "http://169.254.169.254".to_owned(),
            kubernetes_volume: "/var/run/secrets/anthropic.com".into(),
        }
    }
}

impl DetectionInput<'_> {
    /// Whether a variable is true in the format of CIs: `true` or `True`.
    pub(super) fn says_yes(&self, name: &str) -> bool {
        self.environment.text(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// The path of a program in `PATH`.
    pub(super) fn program(&self, name: &str) -> Option<PathBuf> {
        self.environment.program(name, self.exists)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::identity::Detected;

    /// The result of a platform's `look` with these variables and existing files.
    pub(in crate::identity) fn look(
        platform: fn(&DetectionInput<'_>) -> Detected,
        variables: &[(&str, &str)],
        files: &[&str],
        is_chosen: bool,
    ) -> Detected {
        let environment: Environment = variables.iter().copied().collect();
        platform(&DetectionInput {
            environment: &environment,
            audience: "https://api.anthropic.com",
            endpoints: &FixedEndpoints::default(),
            exists: &|path| files.iter().any(|file| path == Path::new(file)),
            is_chosen,
        })
    }

    #[test]
    fn program_lookup_ignores_relative_path_entries() {
        let environment = Environment::from_iter([("PATH", "bin:.:/opt/a:/opt/b")]);
        let input = DetectionInput {
            environment: &environment,
            audience: "",
            endpoints: &FixedEndpoints::default(),
            exists: &|path| path != Path::new("/opt/a/agent"),
            is_chosen: false,
        };
        assert_eq!(input.program("agent"), Some("/opt/b/agent".into()));
    }

    #[test]
    fn metadata_services_have_fixed_addresses() {
        let endpoints = FixedEndpoints::default();
        assert_eq!(endpoints.google_metadata, "http://169.254.169.254");
        assert_eq!(endpoints.azure_metadata, "http://169.254.169.254");
    }
}
