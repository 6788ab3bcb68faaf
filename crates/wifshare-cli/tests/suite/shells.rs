//! Completions and man pages, read by the shells and by `man` where they are installed.

use std::process::Command;

use crate::job::{Job, WIFSHARE, finish, settings};

/// Returns whether this machine has the program. `tests/tools/install` installs it. Under CI it must be present.
fn has(program: &str) -> bool {
    let found =
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|it| it.join(program).is_file()));
    assert!(found || std::env::var_os("CI").is_none(), "{program} is missing; `./test` installs it");
    if !found {
        eprintln!("{program} is not installed, and was left out; `./test` installs it");
    }
    found
}

fn script(job: &Job, shell: &str) -> String {
    let ended = job.run(&["completions", shell]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{shell}");
    let path = job.path(&format!("wifshare.{shell}"));
    std::fs::write(&path, ended.stdout).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn bash_completes_commands_options_and_values() {
    let job = Job::new(settings());
    let path = script(&job, "bash");
    let complete = |words: &str, expected: &[&str]| {
        let ask = format!(
            "source {path}; COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); \
             _wifshare wifshare \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let ended = finish(job.command("bash", &["--norc", "-c", &ask]).spawn().unwrap());
        let offered: Vec<&str> = ended.stdout.lines().collect();
        for one in expected {
            assert!(offered.contains(one), "{words}: {one} was expected: {offered:?} {}", ended.stderr);
        }
    };
    complete("wifshare do", &["doctor"]);
    complete("wifshare token --for", &["--format"]);
    complete("wifshare token --format cr", &["credential-process"]);
    complete("wifshare doctor --", &["--rule", "--json", "--exchange"]);
    complete("wifshare exec --delivery ''", &["profile", "federation", "environment", "gateway"]);
    complete("wifshare exec --identity-source git", &["github-actions", "gitlab"]);
    complete("wifshare explain exchange-", &["exchange-refused"]);
    complete("wifshare man ex", &["exec", "explain"]);
}

#[test]
fn completion_scripts_parse_in_the_other_shells() {
    let job = Job::new(settings());
    for (shell, arguments) in [("bash", ["-n"].as_slice()), ("zsh", &["-n"]), ("fish", &["--no-execute"])] {
        let path = script(&job, shell);
        if has(shell) {
            let ended = finish(job.command(shell, &[arguments, &[path.as_str()]].concat()).spawn().unwrap());
            assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{shell}");
        }
    }
    // No system package contains PowerShell: its script is generated but not run.
    assert!(std::fs::read_to_string(script(&job, "powershell")).unwrap().contains("Register-ArgumentCompleter"));
    assert_eq!(job.run(&["completions", "tcsh"]).code, 2);
}

#[test]
fn fish_completes_commands_and_values() {
    let job = Job::new(settings());
    let path = script(&job, "fish");
    if has("fish") {
        for (words, expected) in [
            ("wifshare do", "doctor"),
            ("wifshare exec --delivery ga", "gateway"),
            ("wifshare token --identity-source gitl", "gitlab"),
            ("wifshare report --format h", "html"),
            ("wifshare explain exchange-r", "exchange-refused"),
        ] {
            let ask = format!("source {path}; complete -C '{words}'");
            let ended = finish(job.command("fish", &["--no-config", "-c", &ask]).spawn().unwrap());
            assert!(
                ended.stdout.lines().any(|line| line.starts_with(expected)),
                "{words}: {} {}",
                ended.stdout,
                ended.stderr
            );
        }
    }
}

/// An interactive zsh that lists its completions. Its arguments: the directory of the script, and the words.
const ZSH: &str = r#"
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PS1=; stty -echo; autoload -Uz compinit; fpath=($1 \$fpath); compinit -u -D; bindkey '^I' list-choices; LISTMAX=0; print RE''ADY"
zpty -r shell out '*READY*'
zpty -w -n shell "$2"$'\t'
for second in {1..50}; do
    sleep 0.2
    while zpty -r -t shell out; do all+=$out; done
    [[ $all == *$3* ]] && break
done
print -r -- $all
zpty -d shell
"#;

#[test]
fn zsh_completes_values() {
    let job = Job::new(settings());
    let directory = job.path("functions");
    std::fs::create_dir(&directory).unwrap();
    std::fs::rename(script(&job, "zsh"), directory.join("_wifshare")).unwrap();
    if has("zsh") {
        for (words, expected) in [
            ("wifshare exec --delivery ", "environment "),
            ("wifshare token --identity-source git", "github-actions"),
            ("wifshare explain exch", "ange-refused"),
        ] {
            let arguments = ["-f", "-c", ZSH, "zsh", directory.to_str().unwrap(), words, expected];
            let ended = finish(job.command("zsh", &arguments).spawn().unwrap());
            assert!(ended.stdout.contains(expected), "{words}: {} {}", ended.stdout, ended.stderr);
        }
    }
}

#[test]
fn man_renders_a_page_for_each_command() {
    let job = Job::new(settings());
    let pages = job.path("man");
    std::fs::create_dir(&pages).unwrap();
    assert_eq!(job.run(&["man", "--directory", pages.to_str().unwrap()]).code, 0);
    let mut names: Vec<String> =
        std::fs::read_dir(&pages).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for name in ["wifshare.1", "wifshare-doctor.1", "wifshare-exec.1", "wifshare-token.1"] {
        assert!(names.iter().any(|there| there == name), "{name}: {names:?}");
    }
    let printed = job.run(&["man", "doctor"]);
    assert_eq!(printed.stdout, std::fs::read_to_string(pages.join("wifshare-doctor.1")).unwrap());
    assert_eq!(job.run(&["man", "no-such"]).code, 2);
    if has("man") {
        for name in names {
            let shown = Command::new("man")
                .args(["--warnings", "-l"])
                .arg(pages.join(&name))
                .env("MANWIDTH", "100")
                // A new machine has no locale set, and man then warns about every character outside ASCII.
                .env("LC_ALL", "C.UTF-8")
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&shown.stdout);
            assert!(
                shown.status.success() && text.contains("SYNOPSIS"),
                "{name}: {}",
                String::from_utf8_lossy(&shown.stderr)
            );
            assert_eq!(String::from_utf8_lossy(&shown.stderr), "", "{name}");
            for section in
                ["NAME", "DESCRIPTION", "OPTIONS", "EXAMPLES", "EXIT STATUS", "ENVIRONMENT", "FILES", "SEE ALSO"]
            {
                assert!(text.lines().any(|line| line == section), "{name} has no section {section}:\n{text}");
            }
            assert!(text.contains("wifshare manual") && text.contains("WIFSHARE"), "{name}: the head\n{text}");
        }
    }
}

#[test]
fn every_command_help_has_an_example() {
    let job = Job::new(settings());
    let help =
        finish(Command::new(WIFSHARE).arg("--help").env_clear().stdout(std::process::Stdio::piped()).spawn().unwrap());
    let commands =
        help.stdout.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<&str> =
        commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next()).filter(|it| !it.is_empty()).collect();
    assert!(commands.contains(&"exec") && commands.contains(&"doctor"), "{commands:?}");
    for command in commands.into_iter().filter(|command| *command != "help") {
        let help = job.run(&[command, "--help"]).stdout;
        assert!(help.contains("Example"), "wifshare {command} --help has no example:\n{help}");
        assert!(help.contains(&format!("  wifshare {command}")) || help.contains("| wifshare"), "{command}:\n{help}");
    }
}
