//! Entry point: parses the arguments, runs one command and returns its exit code.

mod access_log;
mod appended;
mod arguments;
mod background;
mod catalogue;
mod claude;
mod clock;
mod completions;
mod conformance;
mod console;
mod demo;
mod doctor;
mod event_writer;
mod exec;
mod explain;
mod failure;
mod gateway;
mod handover;
mod hardening;
mod internal_error;
mod job_process;
mod joined;
mod keeper;
mod man;
mod process_tracker;
mod progress;
mod report;
mod run_over;
mod sandbox;
mod share;
mod shell;
mod signals;
mod start;
mod started;
mod status;
mod stderr;
mod stop;
mod summary;
mod terminal;
mod token;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use wifshare::Environment;

use crate::arguments::{Arguments, Command};
use crate::console::{Console, LogFormat};
use crate::failure::{FAILED, Failure};
use crate::terminal::Terminal;

fn main() -> ExitCode {
    // The panic hook has reported it. The exit code is that of a failure of wifshare.
    std::panic::catch_unwind(run).unwrap_or(ExitCode::from(FAILED))
}

#[expect(clippy::disallowed_methods, reason = "the border: the environment is read here and nowhere else")]
fn run() -> ExitCode {
    let hidden = hardening::hide_this_process();
    signals::survive_file_size_limit();
    let environment: Environment = std::env::vars_os().collect();
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    let terminal = Terminal::of_talk(&environment);
    internal_error::report_panics(Console::new(0, LogFormat::among(&words), None, terminal, &environment));
    // `keeper` is internal and not a command for users: help, completions and man pages do not list it.
    if words == [keeper::NAME] {
        return end(keeper::keeper(hidden, &environment), Console::new(0, None, None, terminal, &environment));
    }
    let Arguments { console, command } = match Arguments::parse(&words, || Terminal::of_data(&environment).width) {
        Ok(arguments) => arguments,
        Err(said) => return not_a_command(&said, &words, terminal, &environment),
    };
    let console = Console::new(console.verbose, console.log_format, console.mask, terminal, &environment);
    if command.keeps_a_credential_in_memory()
        && let Err(failure) = hardening::guard_memory(hidden, &environment, console)
    {
        return end(Err(failure), console);
    }
    let ended = match command {
        Command::Exec(arguments) => exec::exec(arguments, &environment, console),
        Command::Claude(arguments) => claude::claude(arguments, &environment, console),
        Command::Start(arguments) => start::start(&arguments, &environment, console),
        Command::Stop(arguments) => stop::stop(&arguments, &environment, console),
        Command::Token(arguments) => token::token(&arguments, &environment, console),
        Command::Report(arguments) => report::report(&arguments, &environment),
        Command::Status(arguments) => status::status(&arguments, &environment),
        Command::Gateway(arguments) => gateway::gateway(&arguments, &environment, console),
        Command::Sandbox(arguments) => sandbox::sandbox(arguments, &environment, console),
        Command::Completions(arguments) => completions::completions(&arguments),
        Command::Man(arguments) => man::man(&arguments),
        Command::Doctor(arguments) => doctor::doctor(&arguments, &environment, console),
        Command::Explain(arguments) => explain::explain(&arguments),
        Command::Demo(arguments) => demo::demo(&arguments, &environment, console),
    };
    end(ended, console)
}

fn end(ended: Result<u8, Failure>, console: Console) -> ExitCode {
    match ended {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            console.failure(&failure);
            // A signal caused the end, whatever else failed because of it.
            ExitCode::from(signals::code_of_interruption().unwrap_or(failure.exit_code()))
        }
    }
}

/// Handles what clap returns instead of a command: help, the version, or a usage error.
fn not_a_command(said: &clap::Error, words: &[OsString], terminal: Terminal, environment: &Environment) -> ExitCode {
    if said.use_stderr()
        && let Some(format) = start::format_among(words, environment)
    {
        start::fail_where_evaluated(format, u8::try_from(said.exit_code()).unwrap_or(u8::MAX));
    }
    let console = Console::new(0, LogFormat::among(words), None, terminal, environment);
    let is_help = said.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand && !console.is_for_programs();
    match said.use_stderr() && !is_help {
        true => console.failure(&Failure::of_arguments(said)),
        // If standard output is closed, the help cannot be shown anyway.
        false => drop(said.print()),
    }
    ExitCode::from(u8::try_from(said.exit_code()).unwrap_or(u8::MAX))
}
