//! Finds the installed Python and Node packages that use the API, and the deliveries that each one supports.
//!
//! They are found by directory names and manifests; no code of a package runs. What is known of each package was
//! measured by `tests/clients/matrix`; the table is in docs/guides/tools.md.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use wifshare::{Delivery, Environment};

use super::clients::{ALONE, Version, parsed, shared};
use super::finding::Finding;

const CHECK: &str = "client";

/// A package with known behaviour.
struct Known {
    name: &'static str,
    /// The common name of the package, if it differs from the package name.
    title: Option<&'static str>,
    reads: Reads,
}

/// Where a package looks for a credential.
#[derive(Clone, Copy)]
enum Reads {
    /// In a profile since this version; in `ANTHROPIC_AUTH_TOKEN` before it.
    ProfilesSince(Version),
    /// In the same places as claude, which the package starts.
    AsClaude,
    /// In `ANTHROPIC_AUTH_TOKEN` and `ANTHROPIC_API_KEY`.
    Token,
    /// Only in `ANTHROPIC_API_KEY`.
    Key,
}

/// Packages that leave the choice to an SDK, such as Instructor, are covered by the entry of the SDK.
const PYTHON: [Known; 11] = [
    Known { name: "anthropic", title: Some("the Python SDK"), reads: Reads::ProfilesSince((0, 98, 0)) },
    Known { name: "claude-agent-sdk", title: Some("the Agent SDK for Python"), reads: Reads::AsClaude },
    Known { name: "aider-chat", title: None, reads: Reads::Key },
    Known { name: "crewai", title: None, reads: Reads::Key },
    Known { name: "dspy", title: None, reads: Reads::Token },
    Known { name: "langchain-anthropic", title: None, reads: Reads::Key },
    Known { name: "litellm", title: None, reads: Reads::Token },
    Known { name: "llm-anthropic", title: None, reads: Reads::Key },
    Known { name: "mirascope", title: None, reads: Reads::Key },
    Known { name: "pydantic-ai", title: None, reads: Reads::Key },
    Known { name: "pydantic-ai-slim", title: None, reads: Reads::Key },
];

const NODE: [Known; 4] = [
    Known { name: "@anthropic-ai/sdk", title: Some("the TypeScript SDK"), reads: Reads::ProfilesSince((0, 93, 0)) },
    Known {
        name: "@anthropic-ai/claude-agent-sdk",
        title: Some("the Agent SDK for TypeScript"),
        reads: Reads::AsClaude,
    },
    Known { name: "@ai-sdk/anthropic", title: None, reads: Reads::Key },
    Known { name: "@langchain/anthropic", title: None, reads: Reads::Key },
];

/// Finds the installed packages. `delivery` is how they will get the credential.
pub(super) fn find(environment: &Environment, delivery: Delivery) -> Vec<Finding> {
    let node = NODE.iter().filter_map(|known| Some((known, node_package(known.name)?)));
    let installed = python_packages(environment);
    let python = PYTHON.iter().filter_map(|known| Some((known, installed.get(known.name)?.clone())));
    node.chain(python).map(|(known, version)| judge(known, &version, delivery)).collect()
}

fn judge(known: &Known, version: &str, delivery: Delivery) -> Finding {
    let name = known.title.unwrap_or(known.name);
    let evidence = format!("{name} {}", wifshare::safe_text(version));
    let takes_profiles = match known.reads {
        Reads::AsClaude => {
            return Finding::note(CHECK, format!("{evidence}: it starts claude, and behaves as that does"));
        }
        Reads::ProfilesSince(first) => parsed(version).is_some_and(|version| version >= first),
        Reads::Token | Reads::Key => false,
    };
    match (known.reads, delivery) {
        _ if takes_profiles => Finding::ok(CHECK, format!("{evidence}: {ALONE}; {}", shared(delivery))),
        (Reads::Key, Delivery::Gateway) => {
            Finding::note(CHECK, format!("{evidence} reads ANTHROPIC_API_KEY alone, which --api-key sets"))
        }
        (Reads::Key, _) => Finding::warning(
            CHECK,
            format!("{evidence} reads ANTHROPIC_API_KEY alone, and finds no credential under `{delivery}`"),
            "use --delivery gateway --api-key for it",
        ),
        (_, Delivery::Environment | Delivery::Gateway) => {
            Finding::ok(CHECK, format!("{evidence} reads ANTHROPIC_AUTH_TOKEN: {}", shared(delivery)))
        }
        (Reads::ProfilesSince((major, minor, patch)), _) => Finding::warning(
            CHECK,
            format!("{evidence} knows no profiles, as {major}.{minor}.{patch} and later do, and finds no credential"),
            "update it, or use --delivery gateway or environment for it",
        ),
        (_, Delivery::Federation) => Finding::warning(
            CHECK,
            format!("{evidence} knows no profiles: each of its processes would make an exchange of its own"),
            "use --delivery gateway or environment for it",
        ),
        _ => Finding::warning(
            CHECK,
            format!("{evidence} knows no profiles, and finds no credential under `{delivery}`"),
            "use --delivery gateway or environment for it",
        ),
    }
}

/// Searches this directory and its parents, as node does.
#[expect(clippy::disallowed_methods, reason = "the border: where the user stands")]
fn node_package(name: &str) -> Option<String> {
    let here = std::env::current_dir().ok()?;
    let manifest = |directory: &Path| directory.join("node_modules").join(name).join("package.json");
    let path = here.ancestors().map(manifest).find(|path| path.is_file())?;
    let mut text = String::new();
    wifshare::open_regular(&path).ok()?.take(1 << 20).read_to_string(&mut text).ok()?;
    let package: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(package.get("version")?.as_str()?.to_owned())
}

/// Names and versions of the installed packages, from the directories where Python looks for them. The first directory
/// with a package wins.
fn python_packages(environment: &Environment) -> BTreeMap<String, String> {
    // A large environment has some thousands of packages.
    const MOST_ENTRIES: usize = 20_000;
    let mut packages = BTreeMap::new();
    for directory in site_directories(environment) {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten().take(MOST_ENTRIES) {
            let file = entry.file_name();
            let Some((name, version)) = file.to_str().and_then(distribution) else { continue };
            packages.entry(name).or_insert(version);
        }
    }
    packages
}

/// Name and version of a directory such as `langchain_anthropic-1.7.10.dist-info`. The name is normalized as registries
/// do.
fn distribution(directory: &str) -> Option<(String, String)> {
    let (name, version) = directory.strip_suffix(".dist-info")?.rsplit_once('-')?;
    Some((name.to_ascii_lowercase().replace(['_', '.'], "-"), version.to_owned()))
}

/// The `site-packages` and `dist-packages` directories of the active or a nearby virtual environment, of the programs
/// on PATH that are Python or are installed in an environment of their own, and of the user.
fn site_directories(environment: &Environment) -> Vec<PathBuf> {
    const PROGRAMS: [&str; 6] = ["python3", "python", "aider", "crewai", "litellm", "llm"];
    let mut prefixes: Vec<PathBuf> = environment.os("VIRTUAL_ENV").map(PathBuf::from).into_iter().collect();
    prefixes.extend([".venv", "venv"].map(PathBuf::from));
    for program in PROGRAMS.iter().filter_map(|name| environment.program(name, Path::is_file)) {
        let real = program.canonicalize().unwrap_or_default();
        prefixes.extend([program, real].iter().filter_map(|path| Some(path.parent()?.parent()?.to_owned())));
    }
    prefixes.extend(environment.os("HOME").map(|home| Path::new(home).join(".local")));
    let mut directories = Vec::new();
    for library in prefixes.iter().flat_map(|prefix| [prefix.join("lib"), prefix.join("local/lib")]) {
        // Debian's `python3` directory is shared by all versions.
        for entry in std::fs::read_dir(&library).into_iter().flatten().flatten().take(1000) {
            if entry.file_name().to_string_lossy().starts_with("python3") {
                directories.extend(["site-packages", "dist-packages"].map(|name| entry.path().join(name)));
            }
        }
    }
    directories
}

#[cfg(test)]
mod tests {
    use super::super::finding::Verdict;
    use super::*;

    fn known(name: &str) -> &'static Known {
        static ALL: [&[Known]; 2] = [&PYTHON, &NODE];
        ALL.iter().copied().flatten().find(|known| known.name == name).unwrap()
    }

    #[test]
    fn distribution_name_is_normalized() {
        let read = |name: &str| distribution(name).map(|(name, version)| format!("{name} {version}"));
        assert_eq!(read("langchain_anthropic-1.7.10.dist-info").as_deref(), Some("langchain-anthropic 1.7.10"));
        assert_eq!(read("Aider.Chat-0.86.2.dist-info").as_deref(), Some("aider-chat 0.86.2"));
        assert_eq!(read("anthropic"), None);
        assert_eq!(read("anthropic.dist-info"), None);
    }

    #[test]
    fn verdict_names_a_delivery_that_works() {
        for (name, version, delivery, verdict, cure) in [
            ("anthropic", "0.98.0", Delivery::Profile, Verdict::Ok, None),
            ("anthropic", "0.97.0", Delivery::Profile, Verdict::Warning, Some("gateway or environment")),
            ("anthropic", "0.97.0", Delivery::Environment, Verdict::Ok, None),
            ("anthropic", "unknown", Delivery::Federation, Verdict::Warning, Some("gateway or environment")),
            ("@anthropic-ai/sdk", "0.93.0", Delivery::Federation, Verdict::Ok, None),
            ("@anthropic-ai/sdk", "0.92.9", Delivery::Federation, Verdict::Warning, Some("gateway or environment")),
            ("langchain-anthropic", "1.7.10", Delivery::Environment, Verdict::Warning, Some("gateway --api-key")),
            ("langchain-anthropic", "1.7.10", Delivery::Gateway, Verdict::Note, None),
            ("litellm", "1.110.2", Delivery::Federation, Verdict::Warning, Some("gateway or environment")),
            ("litellm", "1.110.2", Delivery::Gateway, Verdict::Ok, None),
        ] {
            let found = judge(known(name), version, delivery);
            assert_eq!(found.verdict, verdict, "{name} {version} {delivery}: {found:?}");
            let names =
                |cure: Option<&str>| cure.is_none_or(|part| found.cure.as_ref().is_some_and(|it| it.contains(part)));
            assert!(names(cure), "{found:?}");
        }
    }
}
