//! `wifshare completions`: prints a completion script, generated from the same definition as `--help`.

use clap::{Arg, Command, CommandFactory};
use clap_complete::Shell;

use crate::arguments::{Arguments, CompletionsArguments};
use crate::console::print;
use crate::failure::Failure;

pub(crate) fn completions(arguments: &CompletionsArguments) -> Result<u8, Failure> {
    let mut whole = Arguments::command();
    whole.build();
    let mut script = Vec::new();
    let mut offered = offered(&whole).version(env!("CARGO_PKG_VERSION"));
    clap_complete::generate(arguments.shell, &mut offered, "wifshare", &mut script);
    if arguments.shell == Shell::Fish {
        script.extend(positional_values(&offered).into_bytes());
    }
    print("the completions", &script)?;
    Ok(0)
}

/// The same command without its hidden options, which `clap_complete` would offer.
fn offered(command: &Command) -> Command {
    // clap needs names that live as long as the program. It ends soon after this, so leaking them is fine.
    let name: &'static str = command.get_name().to_owned().leak();
    // clap adds its own `help` and `version` to the copy.
    let is_clap_s = |name: &str| ["help", "version"].contains(&name);
    let commands = command.get_subcommands().filter(|it| !it.is_hide_set() && !is_clap_s(it.get_name()));
    let arguments = command.get_arguments().filter(|it| !it.is_hide_set() && !is_clap_s(it.get_id().as_str()));
    Command::new(name)
        .about(command.get_about().cloned().unwrap_or_default())
        .args(arguments.cloned())
        .subcommands(commands.map(offered))
}

/// Completions for the values of positional arguments, which `clap_complete` omits for fish.
fn positional_values(command: &Command) -> String {
    let mut lines = String::new();
    for command in command.get_subcommands() {
        let values: Vec<String> = command
            .get_positionals()
            .flat_map(Arg::get_possible_values)
            .map(|value| value.get_name().to_owned())
            .collect();
        if !values.is_empty() {
            let (name, values) = (command.get_name(), values.join(" "));
            lines +=
                &format!("complete -c wifshare -n \"__fish_wifshare_using_subcommand {name}\" -f -a \"{values}\"\n");
        }
    }
    lines
}
