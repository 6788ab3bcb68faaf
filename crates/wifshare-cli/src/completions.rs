//! `wifshare completions` and `wifshare man`: what a shell and `man` want to know of the command line, made of the same
//! definition as `--help`.

use std::io::Write;

use clap::{Command, CommandFactory};

use crate::arguments::{Arguments, CompletionsArguments, ManArguments};
use crate::catalogue::code;
use crate::failure::Failure;

pub(crate) fn completions(arguments: &CompletionsArguments) -> Result<u8, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Arguments::command(), "wifshare", &mut script);
    print(&script)
}

pub(crate) fn man(arguments: &ManArguments) -> Result<u8, Failure> {
    let pages = pages();
    if let Some(directory) = &arguments.directory {
        for (name, page) in &pages {
            let path = directory.join(format!("{name}.1"));
            std::fs::File::create(&path).and_then(|mut file| file.write_all(page)).map_err(|error| {
                let hint = "give a directory that exists and can be written";
                Failure::new(code!("stdout"), format!("could not write {}: {error}", path.display()), Some(hint))
            })?;
        }
        return Ok(0);
    }
    let name = arguments.command.as_ref().map_or("wifshare".to_owned(), |command| format!("wifshare-{command}"));
    let page = pages.iter().find(|(page, _)| *page == name).map(|(_, page)| page);
    print(page.ok_or_else(|| Failure::usage(format!("there is no page {name}"), "`wifshare man` lists the commands"))?)
}

/// The page of wifshare, and one for each of its commands.
fn pages() -> Vec<(String, Vec<u8>)> {
    let mut wifshare = Arguments::command();
    wifshare.build();
    let commands: Vec<Command> = wifshare
        .get_subcommands()
        .filter(|command| !command.is_hide_set() && command.get_name() != "help")
        .cloned()
        .collect();
    let of_command = commands.into_iter().map(|command| {
        let name = format!("wifshare-{}", command.get_name());
        (name.clone(), command.display_name(name))
    });
    [("wifshare".to_owned(), wifshare.clone())]
        .into_iter()
        .chain(of_command)
        .map(|(name, command)| {
            let mut page = Vec::new();
            clap_mangen::Man::new(command).render(&mut page).expect("memory takes what is written");
            (name, page)
        })
        .collect()
}

fn print(bytes: &[u8]) -> Result<u8, Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| {
        Failure::new(code!("stdout"), format!("could not print: {error}"), Some("look who reads the output"))
    })?;
    Ok(0)
}
