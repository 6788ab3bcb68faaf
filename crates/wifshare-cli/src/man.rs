//! `wifshare man`: man pages for wifshare and each command, generated from the same definition as `--help`.

use std::io::Write;

use clap::{Arg, Command, CommandFactory};
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use crate::arguments::{Arguments, ManArguments};
use crate::catalogue::code;
use crate::console::print;
use crate::failure::Failure;

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
    let name = arguments.command.as_ref().map_or("wifshare".to_owned(), |command| page_name(command));
    let page = pages.iter().find(|(page, _)| *page == name).map(|(_, page)| page);
    let missing = || Failure::usage(format!("there is no man page {name}"), "`wifshare --help` lists the commands");
    print("the man page", page.ok_or_else(missing)?)?;
    Ok(0)
}

fn page_name(command: &str) -> String {
    format!("wifshare-{command}")
}

/// The page of wifshare, and one for each of its commands.
fn pages() -> Vec<(String, Vec<u8>)> {
    let mut wifshare = Arguments::command().disable_help_subcommand(true);
    wifshare.build();
    let commands = wifshare.get_subcommands().filter(|command| !command.is_hide_set());
    let of_commands = commands.map(|command| (page_name(command.get_name()), page(command)));
    [("wifshare".to_owned(), page(&wifshare))].into_iter().chain(of_commands).collect()
}

fn page(command: &Command) -> Vec<u8> {
    let is_whole = command.has_subcommands();
    let name = if is_whole { "wifshare".to_owned() } else { page_name(command.get_name()) };
    let generator = clap_mangen::Man::new(command.clone());
    // Written by hand because clap_mangen leaves the date out of the line, and this page has none.
    let title = name.to_uppercase();
    let mut page =
        format!(".TH \"{title}\" \"1\" \"\" \"wifshare {}\" \"wifshare manual\"\n", env!("CARGO_PKG_VERSION"))
            .into_bytes();

    let mut opening = Roff::new();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    opening.control("SH", ["NAME"]).text([roman(format!("{name} - {about}"))]);
    opening.control("SH", ["SYNOPSIS"]).text(synopsis(command));
    opening.control("SH", ["DESCRIPTION"]);
    let whole = command.get_long_about().map(ToString::to_string).unwrap_or_default();
    paragraphs(&mut opening, whole.split_once("\n\n").map_or(&about, |(_, more)| more));
    opening.to_writer(&mut page).expect("a Vec takes what is written");

    if is_whole {
        generator.render_subcommands_section(&mut page).expect("a Vec takes what is written");
    }
    generator.render_options_section(&mut page).expect("a Vec takes what is written");

    let mut closing = Roff::new();
    examples(&mut closing, command);
    closing.control("SH", ["EXIT STATUS"]);
    list(&mut closing, exit_status(command.get_name()));
    let variables = environment(command);
    closing.control("SH", ["ENVIRONMENT"]);
    list(&mut closing, variables.iter().map(|(name, text)| (name.as_str(), text.as_str())));
    closing.control("SH", ["FILES"]);
    list(&mut closing, FILES);
    closing.control("SH", ["SEE ALSO"]).text(see_also(command));
    page.extend(closing.to_roff().into_bytes());
    page
}

/// The usage line of the help, with the command in bold.
fn synopsis(command: &Command) -> Vec<Inline> {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim().trim_start_matches("Usage: ").to_owned();
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    match usage.strip_prefix(name) {
        Some(rest) => vec![bold(name), roman(rest)],
        None => vec![roman(usage)],
    }
}

fn paragraphs(roff: &mut Roff, text: &str) {
    for (number, paragraph) in text.split("\n\n").enumerate() {
        if number > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(paragraph)]);
    }
}

/// The examples of the help, unchanged.
fn examples(roff: &mut Roff, command: &Command) {
    const OF_WIFSHARE: &str =
        "Examples:\n  wifshare exec -- ./job.sh\n  wifshare doctor\n  wifshare explain jti_reused";
    let after = command.get_after_help().map(ToString::to_string).filter(|text| text.starts_with("Example"));
    let text = after.unwrap_or_else(|| OF_WIFSHARE.to_owned());
    let (heading, lines) = text.split_once('\n').unwrap_or((&text, ""));
    roff.control("SH", ["EXAMPLES"]);
    if let Some((_, remark)) = heading.trim_end_matches("):").split_once(" (") {
        roff.text([roman(format!("{}{}.", remark[..1].to_uppercase(), &remark[1..]))]);
    }
    roff.control("PP", []).control("nf", []);
    for line in lines.lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
}

fn exit_status(command: &str) -> Vec<(&'static str, &'static str)> {
    let own: &[_] = match command {
        "exec" | "claude" => &[
            ("0\u{2013}255", "The exit code of the command; 128 + n if signal n ended it."),
            ("126", "The command was found but cannot be run."),
            ("127", "The command was not found."),
        ],
        "doctor" => &[("0", "Nothing wrong was found."), ("1", "Something is wrong; the findings say what.")],
        "demo" => &[("0", "All sharing processes succeeded with one exchange."), ("1", "They did not.")],
        "sandbox" => &[
            ("0", "A signal ended the server; or every rule that applies was kept (--conformance)."),
            ("1", "A rule was broken (--conformance)."),
        ],
        "wifshare" => &[("0\u{2013}255", "What the page of the command lists.")],
        _ => &[("0", "Success.")],
    };
    let all = [("2", "Usage error."), ("125", "wifshare failed; the message has a code for wifshare-explain(1).")];
    own.iter().copied().chain(all).collect()
}

/// The variables that the command reads: those that its options name in parentheses, and those of all commands.
fn environment(command: &Command) -> Vec<(String, String)> {
    let of_options = command.get_arguments().filter(|it| !it.is_hide_set()).filter_map(|argument| {
        let text = argument.get_help()?.to_string();
        let (help, variable) = text.rsplit_once(" (")?;
        let variable = variable.split([')', ';']).next()?;
        let is_variable = variable.contains('_') && variable.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        let option = argument.get_long()?;
        is_variable.then(|| (variable.to_owned(), format!("{help}; --{option} takes precedence.")))
    });
    let mut variables: Vec<(String, String)> = of_options.collect();
    let has = |id: &str| command.get_arguments().any(|argument: &Arg| argument.get_id() == id);
    let mut add = |name: &str, text: &str| variables.push((name.to_owned(), text.to_owned()));
    if has("identity_source") {
        add("ANTHROPIC_IDENTITY_TOKEN", "The identity token itself.");
        add("WIFSHARE_RUN", "The run to join; set by wifshare for commands and later steps.");
        add("HTTPS_PROXY, ALL_PROXY, NO_PROXY", "Proxy for requests to the API and to identity providers.");
        add("SSL_CERT_FILE", "Trusted root certificates, instead of the system's.");
    }
    add("NO_COLOR, CLICOLOR, CLICOLOR_FORCE", "Whether messages have colours.");
    add("COLUMNS", "Width of the output.");
    variables
}

const FILES: [(&str, &str); 1] = [(
    "wifshare-UID",
    "State directory, in $RUNNER_TEMP, $XDG_RUNTIME_DIR or the temporary directory unless --state-dir or \
     WIFSHARE_STATE_DIR names another: cached credentials, a ledger of used identity tokens (fingerprints only) and event \
     logs.",
)];

fn list<'a>(roff: &mut Roff, entries: impl IntoIterator<Item = (&'a str, &'a str)>) {
    for (term, text) in entries {
        roff.control("TP", []).text([bold(term)]).text([roman(text)]);
    }
}

fn see_also(command: &Command) -> Vec<Inline> {
    let pages: Vec<String> = match command.get_name() {
        "wifshare" => command.get_subcommands().map(|it| page_name(it.get_name())).collect(),
        name => {
            let related: &[&str] = match name {
                "exec" => &["claude", "start", "token", "gateway"],
                "claude" => &["exec", "start"],
                "start" => &["stop", "exec", "status"],
                "stop" => &["start", "status"],
                "token" => &["exec", "gateway"],
                "status" => &["report", "start"],
                "report" => &["status"],
                "gateway" => &["exec", "token"],
                "sandbox" => &["demo"],
                "demo" => &["sandbox", "exec"],
                "doctor" => &["explain", "status"],
                "explain" => &["doctor"],
                "completions" => &["man"],
                _ => &["completions"],
            };
            ["wifshare".to_owned()].into_iter().chain(related.iter().map(|it| page_name(it))).collect()
        }
    };
    let mut text = Vec::new();
    for (number, page) in pages.into_iter().enumerate() {
        text.push(roman(if number > 0 { ", " } else { "" }));
        text.extend([italic(page), roman("(1)")]);
    }
    text
}
