//! Every test that the table of promises names must exist.

use std::path::{Path, PathBuf};

fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] });
    files.filter(|path| path.extension().is_some_and(|extension| extension == "rs")).collect()
}

#[test]
fn every_test_named_by_a_promise_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("docs/evidence/promises.md")).unwrap();
    let code: String =
        sources(&root.join("crates")).iter().map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let is_name =
        |word: &str| word.matches('_').count() > 1 && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
    let named: Vec<_> = text.split('`').skip(1).step_by(2).filter(|word| is_name(word)).collect();
    assert!(named.len() > 20, "{named:?}");
    for name in named {
        assert!(
            code.contains(&format!("fn {name}(")),
            "docs/evidence/promises.md names {name}, and there is no such test"
        );
    }
}
