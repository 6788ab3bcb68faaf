//! `wifshare sandbox --conformance`: tests any client against the rules of single use.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

use wifshare::{Environment, Interrupted};
use wifshare_sandbox::conformance::{Case, Judgement, Row, Source, Subject, try_case};

use crate::arguments::{ConformanceArguments, TokenSource};
use crate::catalogue::code;
use crate::console::Console;
use crate::exec::look_for;
use crate::failure::Failure;
use crate::signals;

pub(crate) fn conformance(
    arguments: ConformanceArguments,
    command: Vec<OsString>,
    environment: &Environment,
    console: Console,
) -> Result<u8, Failure> {
    look_for(&command, environment)?;
    signals::listen()?;
    let subject = Subject {
        command: from_here(command),
        environment: environment.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        source: match arguments.source {
            TokenSource::File => Source::File,
            TokenSource::Endpoint => Source::Endpoint,
            TokenSource::Both => Source::Both,
        },
        bound: arguments.bound,
    };
    let cases = if arguments.cases.is_empty() { Case::ALL.to_vec() } else { arguments.cases };
    let pause = |time| signals::pause(time).map_err(|Interrupted| std::io::ErrorKind::Interrupted.into());
    print(&heading())?;
    let mut is_conformant = true;
    for case in cases {
        let row = match try_case(case, &subject, &pause) {
            Ok(row) => row,
            Err(error) => {
                let failure =
                    Failure::new(code!("conformance"), format!("could not try the case {case}: {error}"), None);
                return signals::code_of_interruption().ok_or(failure);
            }
        };
        is_conformant &= row.judgement != Judgement::Broken;
        // Print each row at once, so that the user sees the progress.
        print(&line(&row))?;
        if row.judgement == Judgement::Broken && !row.said.is_empty() {
            console.detail(&format!("in the case {case} the command said:\n{}", row.said));
        }
    }
    Ok(u8::from(!is_conformant))
}

/// Makes a relative program path absolute, because the client runs in an empty home directory.
fn from_here(mut command: Vec<OsString>) -> Vec<OsString> {
    if let Some(program) = command.first_mut()
        && Path::new(program).components().count() > 1
        && let Ok(absolute) = std::path::absolute(&program)
    {
        *program = absolute.into();
    }
    command
}

fn heading() -> String {
    format!("{:<7}  {:<60}  {}\n", "verdict", "what was tried", "evidence")
}

fn line(row: &Row) -> String {
    let verdict = match row.judgement {
        Judgement::Kept => "ok",
        Judgement::Broken => "failed",
        Judgement::NotApplicable => "-",
    };
    format!("{verdict:<7}  {:<60}  {}\n", row.case.tried(), row.evidence)
}

fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::new(code!("stdout"), format!("could not print the table: {error}"), None))
}
