//! The documents: the pages made from the scenarios, and the links.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::job::same_or_blessed;

/// Common mistakes, and the folders of `scenarios/` for each.
const MISTAKES: &[(&str, &[&str])] = &[
    (
        "The job lacks `id-token: write`",
        &["the-job-may-not-request-identity-tokens", "doctor-finds-a-missing-permission"],
    ),
    ("A pull request of a fork", &["a-pull-request-of-a-fork", "a-pull-request-of-a-fork-and-optional"]),
    ("The wrong audience", &["the-audience-was-changed", "doctor-finds-another-audience"]),
    ("The wrong subject", &["the-rule-is-for-another-repository", "doctor-finds-another-subject"]),
    ("An expired identity token", &["the-given-token-has-ended", "doctor-finds-an-expired-token"]),
    ("A token used twice", &["the-given-token-is-used-twice", "doctor-finds-a-spent-token"]),
    ("Two consumers of one token file", &["another-program-spent-the-token-first"]),
    ("An API key shadows federation", &["an-api-key-is-set-too", "doctor-finds-a-key-that-goes-first"]),
    ("Blank variables", &["an-expression-that-names-nothing", "doctor-finds-blank-variables"]),
    (
        "A clock that is off by five minutes",
        &["the-clock-of-the-issuer-is-ahead", "doctor-finds-the-clock-five-minutes-ahead"],
    ),
    ("A proxy in the way", &["the-proxy-is-down", "doctor-finds-a-proxy-in-the-way"]),
    (
        "A temporary folder that cannot be written",
        &["the-state-directory-cannot-be-made", "doctor-finds-a-file-in-the-way"],
    ),
    ("Permissions that are too open", &["the-state-directory-is-open-to-others", "doctor-finds-loose-modes"]),
    ("The state directory on NFS", &["the-state-directory-is-on-nfs", "doctor-finds-a-network-file-system"]),
    ("The wrong workspace, or none", &["the-rule-needs-a-workspace", "doctor-finds-a-missing-workspace"]),
    ("A malformed rule id", &["the-rule-id-is-something-else"]),
    ("The gateway's port is taken", &["the-port-of-the-gateway-is-taken"]),
    ("The keeper is gone", &["doctor-finds-that-the-keeper-is-gone"]),
    ("An old client", &["doctor-finds-an-old-client"]),
    ("GitLab without `id_tokens`", &["gitlab-without-id-tokens"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

#[test]
fn mistakes_page_matches_the_scenarios() {
    let mut page = String::from(
        "<!-- Made of the folders in scenarios/: WIFSHARE_BLESS=1 cargo test -p wifshare-cli --test suite documents -->\n\
         # Common mistakes\n\n\
         Mistakes that many people make, and the exact output of wifshare. Each one is a folder in\n\
         [scenarios](../../scenarios/README.md), which the tests run against the binary. Brackets mark values that differ\n\
         from run to run. Of the output of `wifshare doctor`, only warnings and failures are shown.\n\n\
         | mistake | found by |\n|---|---|\n",
    );
    for (title, folders) in MISTAKES {
        let by: BTreeSet<&str> =
            folders.iter().map(|it| if it.starts_with("doctor") { "`doctor`" } else { "the command" }).collect();
        let by: Vec<&str> = by.into_iter().collect();
        let _ = writeln!(page, "| [{title}](#{}) | {} |", slug(title), by.join(", "));
    }
    for (title, folders) in MISTAKES {
        let _ = write!(page, "\n## {title}\n");
        for folder in *folders {
            page += &shown(folder);
        }
    }
    same_or_blessed(&root().join("docs/guides/mistakes.md"), &page);
}

#[test]
fn matrix_of_clients_has_a_row_for_each_client() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let clients: Vec<Value> = serde_json::from_str(&read("tests/clients/matrix.d/clients.json")).unwrap();
    let page = read("docs/guides/tools.md");
    for client in &clients {
        let name = client["name"].as_str().unwrap();
        let is_there = |line: &str| line.starts_with(&format!("| {name} ")) || line.starts_with(&format!("- {name}: "));
        assert!(
            page.lines().any(is_there),
            "docs/guides/tools.md has no row for {name}; run tests/clients/matrix --write"
        );
        // Without a pinned version, the result would change with each release.
        for package in client["packages"].as_array().unwrap() {
            let package = package.as_str().unwrap();
            assert!(package.contains("==") || package[1..].contains('@'), "{package} has no version");
        }
    }
}

/// Returns one scenario: why, the command and its output.
fn shown(folder: &str) -> String {
    let directory = root().join("scenarios").join(folder);
    let scenario = std::fs::read_to_string(directory.join("scenario.json")).unwrap();
    let scenario: Value = serde_json::from_str(&scenario).unwrap();
    let words = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let mut text =
        format!("\n{} ([{folder}](../../scenarios/{folder}))\n\n```text\n", scenario["why"].as_str().unwrap());
    for before in scenario["before"].as_array().into_iter().flatten().filter(|before| before["run"].is_object()) {
        let _ = writeln!(text, "$ wifshare {}", words(&before["run"]["arguments"]).join(" "));
    }
    let _ = writeln!(text, "$ wifshare {}", words(&scenario["arguments"]).join(" "));
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap_or_default();
    let is_doctor = words(&scenario["arguments"])[0] == "doctor";
    let stdout = read("stdout");
    if is_doctor {
        let mut is_shown = false;
        for line in stdout.lines() {
            is_shown = match line {
                line if line.starts_with("FAILED") || line.starts_with("warning") => true,
                line if line.starts_with("  ") => is_shown,
                line => line.starts_with("The job") || line.starts_with("Nothing wrong"),
            };
            if is_shown {
                let _ = writeln!(text, "{line}");
            }
        }
    } else {
        text += &stdout;
        text += &read("stderr");
    }
    let _ = write!(text, "$ echo $?\n{}\n```\n", scenario["exit"]);
    text
}

/// Returns every Markdown file of the repository.
fn pages() -> Vec<PathBuf> {
    let root = root();
    let mut pages: Vec<PathBuf> = Vec::new();
    let mut directories: Vec<PathBuf> =
        ["", "scenarios", "docs", "fuzz", "crates/wifshare", "crates/wifshare-sandbox"].map(|it| root.join(it)).into();
    while let Some(directory) = directories.pop() {
        for path in std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()) {
            if path.extension().is_some_and(|it| it == "md") {
                pages.push(path);
            } else if path.is_dir() && path.starts_with(root.join("docs")) {
                directories.push(path);
            }
        }
    }
    pages.sort();
    pages
}

#[test]
fn every_relative_link_resolves() {
    let mut anchors: BTreeMap<PathBuf, BTreeSet<String>> = BTreeMap::new();
    let mut broken = Vec::new();
    let mut seen = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for target in
            links(&text).into_iter().filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        {
            seen += 1;
            let (path, anchor) = target.split_once('#').map_or((target.as_str(), None), |(path, it)| (path, Some(it)));
            let there = if path.is_empty() { page.clone() } else { page.parent().unwrap().join(path) };
            let Ok(there) = there.canonicalize() else {
                broken.push(format!("{}: {target} does not exist", page.display()));
                continue;
            };
            if !there.starts_with(root()) {
                broken.push(format!("{}: {target} leads out of the repository", page.display()));
            }
            let Some(anchor) = anchor else { continue };
            let known = anchors
                .entry(there.clone())
                .or_insert_with(|| headings(&std::fs::read_to_string(&there).unwrap_or_default()));
            if !known.contains(anchor) {
                broken.push(format!("{}: {target} has no such heading", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(seen > 50, "links are seen: {seen}");
}

#[test]
fn book_summary_lists_every_page_once() {
    let summary = std::fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let listed = links(&summary);
    let unique: BTreeSet<&String> = listed.iter().collect();
    assert_eq!(unique.len(), listed.len(), "a page is listed twice: {listed:?}");
    for page in
        pages().into_iter().filter(|page| page.starts_with(root().join("docs")) && !page.ends_with("SUMMARY.md"))
    {
        let name = page.strip_prefix(root().join("docs")).unwrap().to_str().unwrap().to_owned();
        assert!(unique.contains(&name), "docs/{name} is in no line of docs/SUMMARY.md");
    }
}

#[test]
fn documents_named_in_code_exist() {
    let root = root();
    let listed = Command::new("git").args(["ls-files"]).current_dir(&root).output().unwrap();
    let mut missing = Vec::new();
    for file in String::from_utf8(listed.stdout).unwrap().lines().filter(|file| !file.ends_with(".md")) {
        // Some files are not text.
        let Ok(text) = std::fs::read_to_string(root.join(file)) else { continue };
        for (start, _) in text.match_indices("docs/") {
            let is_path = |it: char| it.is_ascii_alphanumeric() || "/-_.".contains(it);
            // This is the end of a longer path or of a URL.
            if text[..start].ends_with(is_path) {
                continue;
            }
            let path = text[start..].split(|it| !is_path(it)).next().unwrap().trim_end_matches('.');
            if (path.ends_with(".md") || path.ends_with(".svg")) && !root.join(path).exists() {
                missing.push(format!("{file}: {path}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn contributing_quotes_an_existing_message() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    let page = read("CONTRIBUTING.md");
    let (_, rest) = page.split_once("git grep -n \"").unwrap();
    let (message, _) = rest.split_once('"').unwrap();
    for file in ["crates/wifshare/src/config.rs", "scenarios/nothing-is-configured/stderr"] {
        assert!(read(file).contains(message), "{file} does not contain {message:?}, and CONTRIBUTING.md says so");
    }
}

#[test]
fn links_and_headings_are_parsed_as_rendered() {
    let text =
        "# A `b` c!\n[x](y.md#z) `[no](code)`\n```text\n[no](block)\n# no heading\n```\n## A `b` c!\n[two\nlines](a)";
    assert_eq!(links(text), ["y.md#z", "a"]);
    assert_eq!(headings(text).into_iter().collect::<Vec<_>>(), ["a-b-c", "a-b-c-1"]);
}

/// Returns the targets of inline links, without code.
fn links(text: &str) -> Vec<String> {
    let prose: String = outside_of_blocks(text).collect::<Vec<_>>().join("\n");
    let prose: String = prose.split('`').step_by(2).collect();
    prose.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned()).collect()
}

fn headings(text: &str) -> BTreeSet<String> {
    let mut slugs = BTreeSet::new();
    for line in outside_of_blocks(text).filter(|line| line.starts_with('#')) {
        let slug = slug(line.trim_start_matches('#').trim());
        let number = (1..).map(|number| format!("{slug}-{number}"));
        let free = [slug.clone()].into_iter().chain(number).find(|slug| !slugs.contains(slug));
        slugs.insert(free.unwrap());
    }
    slugs
}

fn outside_of_blocks(text: &str) -> impl Iterator<Item = &str> {
    let mut is_within = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_within ^= is_fence;
        !is_within && !is_fence
    })
}

/// Returns the anchor of a heading, like GitHub and mdBook.
fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

#[test]
fn library_page_states_the_real_crate_count() {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "-p", "wifshare", "-e", "normal", "--prefix", "none", "--target"])
        .args(["x86_64-unknown-linux-gnu", "--format", "{p}"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let crates: BTreeSet<&str> = tree.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    assert!(!crates.iter().any(|name| name.starts_with("clap ") || name.starts_with("rsa ")), "{crates:#?}");
    let path = root().join("docs/reference/library.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("compiles ").unwrap();
    let (_, after) = rest.split_once(" crates").unwrap();
    same_or_blessed(&path, &format!("{before}compiles {} crates{after}", crates.len()));
}
