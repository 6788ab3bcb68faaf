//! Passes the variables of a keeper to later steps, and removes them again: with GitHub's file commands, or on standard
//! output.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;

use wifshare::{
    DELIVERED_VARIABLE, Delivery, Environment, Keeper, RUN_VARIABLE, Store, credential_of_run, cure_of_limit, delivered,
};
use zeroize::Zeroizing;

use crate::appended::AppendedFile;
use crate::arguments::{HandOver, IdentityArguments};
use crate::catalogue::code;
use crate::clock::clock;
use crate::console::Console;
use crate::failure::Failure;
use crate::joined;
use crate::shell;
use crate::started::{self, Started};

/// Variables that GitHub's runner sets for every step again, whatever an earlier step has written.
const GIVEN_ANEW: [&str; 2] = ["ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"];

/// The default format for this environment.
pub(crate) fn receiver(environment: &Environment) -> HandOver {
    if environment.has("GITHUB_ENV") { HandOver::Github } else { HandOver::Env }
}

/// Passes the variables of a keeper to the following steps.
///
/// # Errors
/// Returns an error if the keeper has no credential or the variables cannot be written.
pub(crate) fn hand_over(
    keeper: &Keeper,
    identity: &IdentityArguments,
    format: HandOver,
    environment: &Environment,
    console: Console,
) -> Result<(), Failure> {
    let changes = changes(keeper, identity, environment, console)?;
    match format {
        HandOver::Github => {
            changes.warn_of_what_stays(environment, console);
            let mut texts = vec![("GITHUB_ENV", changes.for_github())];
            if environment.has("GITHUB_OUTPUT") {
                texts.push(("GITHUB_OUTPUT", changes.for_github_output()));
            }
            if environment.has("GITHUB_STATE") {
                texts.push(("GITHUB_STATE", changes.for_github_state()));
            }
            append_all(&texts, environment)
        }
        HandOver::Env => print(&changes.for_a_shell()),
        HandOver::Json => print(&changes.as_json()),
        HandOver::Dotenv => print(&changes.as_dotenv()?),
    }
}

/// Removes the variables of a run from the following steps and restores the job's own.
///
/// # Errors
/// Returns an error if the variables cannot be written.
pub(crate) fn take_back(format: HandOver, environment: &Environment, console: Console) -> Result<(), Failure> {
    let mut changes = Changes::between(environment, &joined::as_before_the_run(environment));
    changes.given_back = Started::in_environment(environment).unwrap_or_default().taken;
    let is_given_anew = |name: &String| format == HandOver::Github && GIVEN_ANEW.contains(&name.as_str());
    let lost: Vec<String> = changes.given_back.iter().filter(|name| !is_given_anew(name)).cloned().collect();
    if format != HandOver::Env && !lost.is_empty() {
        console.notice(&format!(
            "`start` took {} and kept no copy: set it again where a later step needs it",
            lost.join(", ")
        ));
    }
    match format {
        HandOver::Github => append_all(&[("GITHUB_ENV", changes.for_github())], environment),
        HandOver::Env => print(&changes.for_a_shell()),
        HandOver::Json => print(&changes.as_json()),
        HandOver::Dotenv => print(&changes.as_dotenv()?),
    }
}

/// The changes to an environment after which programs find the credential, or the job's own variables again.
#[derive(Default)]
struct Changes {
    set: BTreeMap<String, Zeroizing<String>>,
    /// Names of variables to remove. They are set, though possibly blank.
    unset: Vec<String>,
    /// Removed variables whose values a shell keeps for itself.
    kept: Vec<String>,
    /// Variables that a shell restores from the values that it kept.
    given_back: Vec<String>,
}

fn changes(
    keeper: &Keeper,
    identity: &IdentityArguments,
    environment: &Environment,
    console: Console,
) -> Result<Changes, Failure> {
    let mut gives = keeper.gives.clone();
    if keeper.provides == Delivery::Environment.to_string() {
        let store = Store::of_run(&keeper.directory).ok_or_else(|| {
            Failure::new(
                code!("keeper"),
                "the keeper has no credential to hand over".to_owned(),
                Some("start it again"),
            )
        })?;
        let credential = credential_of_run(&keeper.directory, &store, None, clock())?;
        console.mask(credential.access_token.expose());
        gives.set("ANTHROPIC_AUTH_TOKEN", credential.access_token.expose());
        gives.set(DELIVERED_VARIABLE, delivered(&credential.access_token));
    }
    // Always a secret of the job, whichever delivery set it.
    if let Some(secret) = gives.text("ANTHROPIC_AUTH_TOKEN") {
        console.mask(secret);
    }
    let own = joined::as_before_the_run(environment);
    // The record of the first start also contains the options of that start.
    let is_the_same = environment.os(RUN_VARIABLE).is_some_and(|run| keeper.directory == Path::new(run));
    let started = Started::in_environment(environment).filter(|_| is_the_same);
    let started = started.unwrap_or_else(|| Started::of(keeper, identity, &gives, &own).after(keeper, environment));
    let mut later = own.into_owned();
    keeper.takes.iter().for_each(|name| later.remove(name));
    gives.iter().for_each(|(name, value)| later.set(name, value));
    later.set(started::VARIABLE, started.as_text());
    let mut changes = Changes::between(environment, &later);
    // The reader may have another environment, so set everything that the keeper gives.
    changes.set.extend(gives.iter().filter_map(text));
    changes.kept = started.taken.into_iter().filter(|name| environment.has(name)).collect();
    Ok(changes)
}

fn text((name, value): (&OsStr, &OsStr)) -> Option<(String, Zeroizing<String>)> {
    Some((name.to_str()?.to_owned(), Zeroizing::new(value.to_str()?.to_owned())))
}

impl Changes {
    /// The changes that turn the environment `now` into `later`.
    fn between(now: &Environment, later: &Environment) -> Changes {
        let set = later.iter().filter(|(name, value)| now.get(name) != Some(value)).filter_map(text).collect();
        let unset = now.iter().filter(|(name, _)| later.get(name).is_none()).filter_map(|(name, _)| name.to_str());
        Changes { set, unset: unset.map(str::to_owned).collect(), ..Changes::default() }
    }

    /// Warns of a blank variable. GitHub's file cannot remove it, and some clients treat it as set.
    fn warn_of_what_stays(&self, environment: &Environment, console: Console) {
        for name in self.unset.iter().filter(|name| name.starts_with("ANTHROPIC_API_KEY") && environment.is_blank(name))
        {
            console.warning(&format!(
                "{name} is set and blank, which the Python SDK takes for a choice: take it out of the workflow, or run \
                 what uses that SDK by `wifshare exec`"
            ));
        }
    }

    /// Formats the changes for GitHub's file. It cannot remove a variable, so those are set blank, which counts as
    /// unset for every client that reads them.
    fn for_github(&self) -> Zeroizing<String> {
        let blanked = self.unset.iter().filter(|name| !GIVEN_ANEW.contains(&name.as_str()));
        let blanked = blanked.map(|name| (name.clone(), Zeroizing::default()));
        let set = self.set.iter().map(|(name, value)| (name.clone(), value.clone()));
        heredocs(set.chain(blanked))
    }

    /// Formats the outputs of a step. Their names are in lower case, like those of inputs.
    fn for_github_output(&self) -> Zeroizing<String> {
        let outputs = self.set.iter().filter(|(name, _)| *name != started::VARIABLE);
        heredocs(outputs.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())))
    }

    /// Formats the state for the post step of an action: only the run.
    fn for_github_state(&self) -> Zeroizing<String> {
        let run = self.set.iter().filter(|(name, _)| *name == RUN_VARIABLE);
        heredocs(run.map(|(name, value)| (name.to_ascii_lowercase(), value.clone())))
    }

    fn for_a_shell(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::new());
        self.set.iter().for_each(|(name, value)| text.push_str(&shell::export(name, value)));
        self.kept.iter().for_each(|name| text.push_str(&shell::keep(name)));
        text.push_str(&shell::unset(&self.unset));
        self.given_back.iter().for_each(|name| text.push_str(&shell::take_back(name)));
        text.push_str(shell::SUCCESS);
        text
    }

    fn as_json(&self) -> Zeroizing<String> {
        let set = self.set.iter().map(|(name, value)| (name.clone(), serde_json::Value::from(value.as_str())));
        let unset = self.unset.iter().map(|name| (name.clone(), serde_json::Value::Null));
        let object: serde_json::Map<_, _> = set.chain(unset).collect();
        Zeroizing::new(format!("{}\n", serde_json::Value::from(object)))
    }

    /// Formats the changes as GitLab and `docker --env-file` read them: without quotes, and without line breaks in
    /// values.
    ///
    /// # Errors
    /// Returns an error if a value has several lines.
    fn as_dotenv(&self) -> Result<Zeroizing<String>, Failure> {
        if let Some((name, _)) = self.set.iter().find(|(_, value)| value.contains(['\n', '\r'])) {
            return Err(Failure::new(
                code!("handover"),
                format!("{name} has a value of several lines, which a dotenv file cannot hold"),
                Some("give --format json or env"),
            ));
        }
        let set = self.set.iter().map(|(name, value)| format!("{name}={}\n", value.as_str()));
        let unset = self.unset.iter().map(|name| format!("{name}=\n"));
        Ok(Zeroizing::new(set.chain(unset).collect()))
    }
}

/// Appends each text to the file that its variable names. If one write fails, all files are restored: a partial value
/// would break every later step, and the run that the values name is ended.
///
/// # Errors
/// Returns an error if a file cannot be opened or written.
fn append_all(texts: &[(&str, Zeroizing<String>)], environment: &Environment) -> Result<(), Failure> {
    let path = |variable: &str| Path::new(environment.os(variable).unwrap_or_default());
    let failed = |variable: &str, error: &std::io::Error| {
        let path = path(variable);
        let place = if path.as_os_str().is_empty() { "which is not set".into() } else { path.to_string_lossy() };
        let outside = "--format github needs the files of a step of GitHub Actions: give --format env, json or dotenv";
        Failure::new(
            code!("handover"),
            format!("could not write the variables to {variable}, {place}: {error}"),
            Some(cure_of_limit(error).unwrap_or(outside)),
        )
    };
    let mut files = Vec::new();
    for (variable, _) in texts {
        files.push(AppendedFile::open(path(variable)).map_err(|error| failed(variable, &error))?);
    }
    for (number, (variable, text)) in texts.iter().enumerate() {
        if let Err(error) = files[number].append(text) {
            files[..number].iter().for_each(AppendedFile::undo);
            return Err(failed(variable, &error));
        }
    }
    Ok(())
}

/// GitHub's format for any value: it is enclosed by two lines with a delimiter, which is random and does not occur in
/// the value.
fn heredocs(variables: impl Iterator<Item = (String, Zeroizing<String>)>) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::new());
    for (name, value) in variables {
        let delimiter = delimiter(&value);
        text.push_str(&format!("{name}<<{delimiter}\n"));
        text.push_str(&value);
        text.push_str(&format!("\n{delimiter}\n"));
    }
    text
}

fn delimiter(value: &str) -> String {
    loop {
        let delimiter = format!("wifshare_{:032x}", fastrand::u128(..));
        if !value.contains(&delimiter) {
            return delimiter;
        }
    }
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| {
        Failure::new(
            code!("stdout"),
            format!("could not print the variables: {error}"),
            Some("check the program that reads the output"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(value: &str) -> Changes {
        let set = [("A".to_owned(), Zeroizing::new(value.to_owned()))].into();
        Changes { set, unset: vec!["B".to_owned(), GIVEN_ANEW[0].to_owned()], ..Changes::default() }
    }

    #[test]
    fn shell_export_quotes_a_value_as_one_word() {
        assert_eq!(changes("a'$(b) c").for_a_shell().lines().next(), Some("export A='a'\\''$(b) c';"));
    }

    /// Parses GitHub's file as its runner does: line by line, until the delimiter ends the value.
    fn as_the_runner_reads(text: &str) -> BTreeMap<String, String> {
        let mut lines = text.split('\n');
        let mut read = BTreeMap::new();
        while let Some((name, delimiter)) = lines.next().and_then(|line| line.split_once("<<")) {
            let value: Vec<_> = lines.by_ref().take_while(|line| *line != delimiter).collect();
            read.insert(name.to_owned(), value.join("\n"));
        }
        read
    }

    #[test]
    fn exported_value_is_read_back_unchanged_in_every_format() {
        use proptest::prelude::*;
        use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

        let part =
            prop::sample::select(&["\n", "<<", "A=", "wifshare_", "'", "\"", "$(x)", "\\", "%0A", "::", "é", " "][..]);
        let value = prop::collection::vec(prop_oneof![part.prop_map(str::to_owned), "[ -~]{0,9}"], 0..9);
        let config = Config { cases: 500, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
        let mut shell_lines = String::new();
        let outcome = runner.run(&value, |parts| {
            let value = parts.concat();
            let changes = changes(&value);
            let expected = BTreeMap::from([("A".to_owned(), value.clone()), ("B".to_owned(), String::new())]);
            prop_assert_eq!(as_the_runner_reads(&changes.for_github()), expected);
            let json: serde_json::Value = serde_json::from_str(&changes.as_json()).expect("JSON");
            prop_assert_eq!(&json["A"], &value);
            if let Ok(dotenv) = changes.as_dotenv() {
                let expected = format!("A={value}");
                prop_assert_eq!(dotenv.lines().next(), Some(expected.as_str()));
            }
            Ok(())
        });
        outcome.expect("every value is found");
        // A real shell evaluates some values that often break quoting.
        for value in ["", "a b", "it's", "$(exit 3)", "`x`", "a\nb", "\\", "!!", "-n"] {
            shell_lines.push_str(&format!("{}printf '%s|' \"$A\"\n", *changes(value).for_a_shell()));
        }
        let shell = std::process::Command::new("sh").args(["-c", &shell_lines]).output().expect("a shell");
        assert_eq!(String::from_utf8_lossy(&shell.stdout), "|a b|it's|$(exit 3)|`x`|a\nb|\\|!!|-n|");
    }

    #[test]
    fn unset_variable_is_null_in_json_and_blank_in_dotenv() {
        assert_eq!(*changes("v").as_json(), format!("{{\"A\":\"v\",\"{}\":null,\"B\":null}}\n", GIVEN_ANEW[0]));
        assert_eq!(*changes("a b").as_dotenv().expect("one line"), format!("A=a b\nB=\n{}=\n", GIVEN_ANEW[0]));
        assert!(changes("a\nb").as_dotenv().is_err());
    }

    #[test]
    fn github_env_file_supports_multiline_values() {
        let text = changes("one\ntwo\nA<<x").for_github();
        let lines: Vec<&str> = text.lines().collect();
        let (name, delimiter) = lines[0].split_once("<<").expect("a heredoc");
        assert_eq!((name, &lines[1..5]), ("A", &["one", "two", "A<<x", delimiter][..]));
        let (name, delimiter) = lines[5].split_once("<<").expect("a heredoc");
        assert_eq!((name, &lines[6..]), ("B", &["", delimiter][..]));
        assert_ne!(changes("").for_github(), changes("").for_github());
    }
}
