//! The help: every command has the same description everywhere, and lines fit the terminal.

use std::process::{Command, Stdio};

use crate::job::{WIFSHARE, finish};

fn wifshare(columns: usize, arguments: &[&str]) -> String {
    let mut command = Command::new(WIFSHARE);
    command.args(arguments).env_clear().env("COLUMNS", columns.to_string());
    let ended = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{arguments:?}");
    ended.stdout
}

/// Returns the commands and their descriptions from `wifshare --help`.
fn commands() -> Vec<(String, String)> {
    let help = wifshare(100, &["--help"]);
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<(String, String)> = list
        .map(|line| line.trim().split_once(' ').unwrap_or_else(|| panic!("a command needs one line: {line}")))
        .map(|(name, about)| (name.to_owned(), about.trim().to_owned()))
        .filter(|(name, _)| name != "help")
        .collect();
    assert!(commands.len() > 12, "{commands:?}");
    commands
}

#[test]
fn help_man_page_and_completions_agree() {
    let fish = wifshare(100, &["completions", "fish"]);
    for (name, about) in commands() {
        assert_eq!(wifshare(100, &[&name, "--help"]).lines().next(), Some(about.as_str()), "{name} --help");
        assert_eq!(wifshare(100, &[&name, "-h"]).lines().next(), Some(about.as_str()), "{name} -h");
        let page = wifshare(100, &["man", &name]).replace("\\-", "-").replace("\\*(Aq", "'");
        assert!(page.contains(&format!(".SH NAME\nwifshare-{name} - {about}\n")), "{page}");
        assert!(fish.contains(&format!("-a \"{name}\" -d '{about}'")), "{name}: {fish}");
    }
}

#[test]
fn help_fits_the_terminal_width() {
    for columns in [60, 100] {
        let names = commands().into_iter().map(|(name, _)| name);
        for name in names.chain([String::new()]) {
            let arguments: Vec<&str> = [name.as_str(), "--help"].into_iter().filter(|it| !it.is_empty()).collect();
            let help = wifshare(columns, &arguments);
            // Examples are meant to be copied and are not wrapped.
            let wrapped = help.lines().take_while(|line| !line.starts_with("Example") && *line != "Exit codes:");
            for line in wrapped {
                assert!(line.chars().count() <= columns, "{name} at {columns} columns: {line}");
            }
        }
    }
}

#[test]
fn help_without_terminal_is_100_columns_wide() {
    let ended = Command::new(WIFSHARE).args(["exec", "--help"]).env_clear().output().unwrap();
    let help = String::from_utf8(ended.stdout).unwrap();
    let longest = help.lines().map(|line| line.chars().count()).max();
    assert!(longest.is_some_and(|longest| (90..=100).contains(&longest)), "{longest:?}");
}

#[test]
fn keeper_command_is_hidden() {
    let keeper_as_a_command = [
        ("bash", "wifshare__subcmd__keeper"),
        ("zsh", "_wifshare__subcmd__keeper_commands"),
        ("fish", "-a \"keeper\""),
        ("powershell", "'keeper'"),
    ];
    for (shell, text) in keeper_as_a_command {
        let script = wifshare(100, &["completions", shell]);
        assert!(!script.contains(text) && script.contains(&text.replace("keeper", "doctor")), "{shell}");
    }
    let commands: Vec<String> = commands().into_iter().map(|(name, _)| name).collect();
    assert!(!commands.contains(&"keeper".to_owned()), "{commands:?}");
}

#[test]
fn version_shows_the_commit_of_a_release_build() {
    let holder = tempfile::tempdir().unwrap();
    let script = holder.path().join("build-script");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/build.rs");
    let built = Command::new("rustc").args(["--edition", "2024", "-o"]).arg(&script).arg(source).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let version = |directory: &std::path::Path, profile: &str| {
        let mut command = Command::new(&script);
        command.current_dir(directory).env("CARGO_PKG_VERSION", "1.2.3").env("PROFILE", profile);
        let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let line = said.lines().find_map(|line| line.strip_prefix("cargo::rustc-env=WIFSHARE_VERSION=")).unwrap();
        line.to_owned()
    };
    // Sources without git, like those from an archive.
    let bare = holder.path().join("crates/wifshare-cli");
    std::fs::create_dir_all(&bare).unwrap();
    assert_eq!(version(&bare, "release"), "1.2.3");
    let packed = r#"{"git": {"sha1": "0123456789abcdef0123456789abcdef01234567"}, "path_in_vcs": ""}"#;
    std::fs::write(bare.join(".cargo_vcs_info.json"), packed).unwrap();
    assert_eq!(version(&bare, "release"), "1.2.3 (0123456789ab)");
    let checkout = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    assert_eq!(version(checkout, "debug"), "1.2.3");
    let git = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(checkout).output();
    if let Some(commit) = git.ok().filter(|_| checkout.join("../../.git").exists()) {
        let commit = String::from_utf8(commit.stdout).unwrap();
        assert_eq!(version(checkout, "release"), format!("1.2.3 ({})", &commit[..12]));
    }
    assert!(wifshare(100, &["--version"]).starts_with(concat!("wifshare ", env!("CARGO_PKG_VERSION"))));
}
