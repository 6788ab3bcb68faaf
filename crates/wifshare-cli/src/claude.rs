//! `wifshare claude`: adds marketplaces, installs plugins and runs the main query, in sequence and with one exchange.
//!
//! The steps run in sequence because parallel installs lose plugins in some versions of claude (claude 2.1.240 reports
//! success for each of eight and enables one).

use std::ffi::OsString;
use std::path::Path;

use unicode_normalization::is_nfc;
use wifshare::{Environment, Streams};

use crate::arguments::ClaudeArguments;
use crate::console::Console;
use crate::exec::{look_for, run, warn_of_bare_claude};
use crate::failure::Failure;
use crate::process_tracker::ProcessTracker;
use crate::share::share;

pub(crate) fn claude(arguments: ClaudeArguments, environment: &Environment, console: Console) -> Result<u8, Failure> {
    let steps = plan(&arguments, environment)?;
    look_for(std::slice::from_ref(&arguments.claude), environment)?;
    let total = steps.len();
    share("claude", &arguments.share, environment, console, |environment, events| {
        let mut tracker = ProcessTracker::of(environment, events);
        for (number, step) in steps.iter().enumerate() {
            let argv: Vec<OsString> = [&arguments.claude].into_iter().chain(&step.arguments).cloned().collect();
            let title = format!("step {} of {total}: {}", number + 1, step.title);
            if step.is_query {
                warn_of_bare_claude(&argv, environment, console);
                console.detail(&title);
            } else {
                console.group(&title);
            }
            let streams = if step.is_query { Streams::Ours } else { Streams::Aside };
            let ended = run(&argv, &step.name, environment, streams, &mut tracker);
            if !step.is_query {
                console.end_group();
            }
            let code = ended?;
            if code != 0 {
                console
                    .warning(&format!("{title} failed with exit code {code}; what would have followed was not done"));
                return Ok(code);
            }
        }
        Ok(0)
    })
}

struct Step {
    title: String,
    /// The step's name in the report. It leaves out a marketplace, whose path may be secret; the name of a plugin is
    /// checked.
    name: String,
    arguments: Vec<OsString>,
    is_query: bool,
}

/// Returns the steps in order. Checks every input before anything runs.
fn plan(arguments: &ClaudeArguments, environment: &Environment) -> Result<Vec<Step>, Failure> {
    let lines = |name: &str| -> Vec<String> {
        let text = environment.text(name).unwrap_or_default();
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    };
    let marketplaces = arguments.marketplaces.iter().cloned().chain(lines("INPUT_PLUGIN_MARKETPLACES"));
    let plugins = arguments.plugins.iter().cloned().chain(lines("INPUT_PLUGINS"));
    let step = |words: &[&str], subject: String, name: String| Step {
        title: format!("claude {} {subject}", words.join(" ")),
        name,
        arguments: words.iter().map(OsString::from).chain([subject.clone().into()]).collect(),
        is_query: false,
    };
    let mut steps = Vec::new();
    for marketplace in marketplaces {
        check_marketplace(&marketplace)?;
        steps.push(step(&["plugin", "marketplace", "add"], marketplace, "marketplace".to_owned()));
    }
    for plugin in plugins {
        check_plugin(&plugin)?;
        let name = format!("install {plugin}");
        steps.push(step(&["plugin", "install"], plugin, name));
    }
    if !arguments.query.is_empty() {
        let (title, name) = ("the main query".to_owned(), "query".to_owned());
        steps.push(Step { title, name, arguments: arguments.query.clone(), is_query: true });
    }
    if steps.is_empty() {
        return Err(Failure::usage(
            "there is nothing to do: no marketplace, no plugin and no query".to_owned(),
            "give the query's arguments after --, as in `wifshare claude -- -p 'review this change'`",
        ));
    }
    Ok(steps)
}

/// Accepts a local path, recognized by its first characters, or an https URL that ends in `.git`.
fn check_marketplace(marketplace: &str) -> Result<(), Failure> {
    let refuse = |what: &str| {
        Err(Failure::usage(
            format!("the marketplace `{}` {what}", without_password(marketplace).escape_debug()),
            "a marketplace is a local path that begins with ./, ../ or /, or an https URL ending in .git",
        ))
    };
    if marketplace.chars().any(char::is_control) {
        return refuse("holds a control character");
    }
    if ["/", "./", "../"].iter().any(|start| marketplace.starts_with(start)) || [".", ".."].contains(&marketplace) {
        return if Path::new(marketplace).exists() { Ok(()) } else { refuse("is a path to nothing") };
    }
    let Ok(url) = marketplace.parse::<http::Uri>() else { return refuse("is neither a path nor a URL") };
    if url.scheme_str() != Some("https") || url.host().unwrap_or_default().is_empty() {
        return refuse("is neither a local path nor an https URL");
    }
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return refuse("holds a user name or password");
    }
    if url.query().is_some() || marketplace.contains('#') || !url.path().ends_with(".git") {
        return refuse("does not end in .git");
    }
    Ok(())
}

/// Redacts what precedes the host of a URL, which may contain a secret, for use in messages.
fn without_password(marketplace: &str) -> String {
    let Some((scheme, rest)) = marketplace.split_once("://") else { return marketplace.to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    // A slash in a password looks like the end of the host. Then use the last `@` of the whole URL.
    match authority.rfind('@').or_else(|| rest.rfind('@')) {
        Some(at) => format!("{scheme}://…{}", &rest[at..]),
        None => marketplace.to_owned(),
    }
}

fn check_plugin(plugin: &str) -> Result<(), Failure> {
    const LONGEST: usize = 512;
    let refuse = |what: &str| {
        Err(Failure::usage(
            format!("the plugin name `{}` {what}", plugin.escape_debug()),
            "a plugin is named `name` or `name@marketplace`: letters, digits and @ - _ / .",
        ))
    };
    if plugin.is_empty() || plugin.chars().count() > LONGEST {
        return refuse("is empty or longer than 512 characters");
    }
    if !is_nfc(plugin) {
        return refuse("is not in Unicode's composed form (NFC)");
    }
    if !plugin.chars().all(|c| c.is_alphanumeric() || "@-_/.".contains(c)) {
        return refuse("holds a character that no plugin name has");
    }
    if plugin.starts_with(['-', '/']) || plugin.split(['/', '@']).any(|part| part == ".." || part == ".") {
        return refuse("looks like an option or a path");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugin_name_allows_letters_digits_and_five_signs() {
        for name in ["lint", "lint@ours", "a/b@c", "a.b_c-d", "über@markt"] {
            assert!(check_plugin(name).is_ok(), "{name}");
        }
        let long = "a".repeat(513);
        for name in [
            "",
            "-x",
            "--help",
            "a b",
            "a;b",
            "a$b",
            "../a",
            "a/../b",
            "a@..",
            "/etc/passwd",
            "u\u{308}ber",
            "a\nb",
            &long,
        ] {
            assert!(check_plugin(name).is_err(), "{name:?}");
        }
        assert!(check_plugin(&"a".repeat(512)).is_ok());
    }

    #[test]
    fn marketplace_password_is_redacted() {
        for (marketplace, shown) in [
            ("https://ci:hunter2@git.example/a.git", "https://…@git.example/a.git"),
            ("http://ci:hunter2@git.example", "http://…@git.example"),
            ("ssh://git@git.example/a.git", "ssh://…@git.example/a.git"),
            ("https://ci:hunter2/x@git.example/a.git", "https://…@git.example/a.git"),
            ("https://git.example/a.git", "https://git.example/a.git"),
            ("./a@b", "./a@b"),
        ] {
            assert_eq!(without_password(marketplace), shown);
        }
    }

    #[test]
    fn marketplace_must_be_a_path_or_an_https_git_url() {
        for name in ["https://example.com/a/b.git", "https://example.com:8443/b.git", "/", ".", "./"] {
            assert!(check_marketplace(name).is_ok(), "{name}");
        }
        for name in [
            "",
            "owner/repo",
            "-x",
            "http://example.com/b.git",
            "git@example.com:a/b.git",
            "ssh://example.com/b.git",
            "https://example.com/b",
            "https://user:pass@example.com/b.git",
            "https://example.com/b?x=.git",
            "https://example.com/b#.git",
            "https:///b.git",
            "./nonexistent",
            "/\n",
        ] {
            assert!(check_marketplace(name).is_err(), "{name:?}");
        }
    }
}
