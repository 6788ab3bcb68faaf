//! The crate keeps its layers: vocabulary imports only vocabulary, a room also imports vocabulary, a journey imports
//! both.
#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test reads its own sources, and fails loudly")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const VOCABULARY: [&str; 20] = [
    "wakeup",
    "backoff",
    "clock",
    "code",
    "credential",
    "diagnosis",
    "environment",
    "event",
    "github_subject",
    "hexadecimal",
    "id",
    "identity_token",
    "message",
    "principal",
    "private_file",
    "resource",
    "secret",
    "progress",
    "http",
    "wrapping",
];
const ROOMS: [&str; 8] = ["child", "delivery", "descendants", "events", "exchange", "gateway", "identity", "store"];
const JOURNEYS: [&str; 7] = ["config", "obtain", "renew", "holder", "run", "lib", "fuzzing"];

/// Returns the modules of this crate that a text names with `crate::`, in `use` lines and elsewhere.
fn named_in(text: &str) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let after = code.flat_map(|line| line.split("crate::").skip(1).map(str::to_owned).collect::<Vec<_>>());
    let word = |rest: String| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    after.map(word).filter(|name| !name.is_empty()).collect()
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// Returns the top-level module of a file: `store/ledger.rs` belongs to `store`.
fn module_of(path: &Path, root: &Path) -> String {
    let first = path.strip_prefix(root).unwrap().components().next().unwrap();
    Path::new(first.as_os_str()).file_stem().unwrap().to_str().unwrap().to_owned()
}

fn may_know(module: &str, other: &str) -> bool {
    if VOCABULARY.contains(&module) || ROOMS.contains(&module) {
        return VOCABULARY.contains(&other);
    }
    assert!(JOURNEYS.contains(&module), "{module} is in no layer: put it into one of the lists above");
    true
}

#[test]
fn imports_follow_the_layers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = BTreeSet::new();
    for path in sources(&root) {
        let module = module_of(&path, &root);
        let text = std::fs::read_to_string(&path).unwrap();
        for other in named_in(&text).into_iter().filter(|name| *name != module) {
            assert!(may_know(&module, &other), "{} must not know `{other}`", path.display());
        }
        seen.insert(module);
    }
    for name in VOCABULARY.iter().chain(&ROOMS).chain(&JOURNEYS) {
        assert!(seen.contains(*name), "{name} is listed and does not exist");
    }
}

#[test]
fn every_import_form_is_detected() {
    let text = "use crate::store::Store;\n// use crate::comment;\nlet x = crate::gateway::open(crate::clock::now());";
    assert_eq!(named_in(text).into_iter().collect::<Vec<_>>(), ["clock", "gateway", "store"]);
    assert!(!may_know("store", "gateway") && may_know("store", "clock") && may_know("obtain", "store"));
    assert!(!may_know("clock", "store"));
}
