//! `wifshare explain`: what an error code means, why it happens, where to look and what to do.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::arguments::ExplainArguments;
use crate::catalogue::{CATALOGUE, Entry, code, find};
use crate::failure::Failure;

pub(crate) fn explain(arguments: &ExplainArguments) -> Result<u8, Failure> {
    let text = match (&arguments.code, arguments.markdown) {
        (_, true) => page(),
        (None, false) => list(),
        (Some(asked), false) => {
            // As it is copied from a log: `error[exchange-refused]`.
            let name = asked.trim_start_matches("error[").trim_end_matches([':', ']']);
            entry(find(name).ok_or_else(|| unknown(asked))?)
        }
    };
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::new(code!("stdout"), format!("could not print the explanation: {error}"), None))?;
    Ok(0)
}

fn unknown(asked: &str) -> Failure {
    Failure::usage(format!("no error has the code `{asked}`"), "`wifshare explain` lists them all")
}

fn list() -> String {
    let longest = CATALOGUE.iter().map(|entry| entry.code.len()).max().unwrap_or_default();
    CATALOGUE.iter().map(|entry| format!("{:longest$}  {}\n", entry.code, entry.meaning)).collect()
}

fn entry(entry: &Entry) -> String {
    let mut text = format!("error[{}]\n{}", entry.code, wrapped(entry.meaning, "  ", "  ", WIDTH));
    for (title, lines) in parts(entry) {
        let _ = write!(text, "\n{title}\n");
        text.extend(lines.iter().map(|line| wrapped(line, "  - ", "    ", WIDTH)));
    }
    text
}

/// `docs/errors.md`.
fn page() -> String {
    let mut text = String::from(
        "<!-- Made by `wifshare explain --markdown`; edit crates/wifshare-cli/src/catalogue.rs. -->\n# Errors\n\n\
         Every failure of wifshare has a stable code, which stands in brackets: `error[exchange-refused]`. This page is\n\
         what `wifshare explain CODE` prints, for all of them. In each list the usual comes first.\n\n\
         | code | meaning |\n|---|---|\n",
    );
    for entry in CATALOGUE {
        let _ = writeln!(text, "| [{0}](#{0}) | {1} |", entry.code, entry.meaning);
    }
    for entry in CATALOGUE {
        let _ = write!(text, "\n## {}\n\n{}\n", entry.code, entry.meaning);
        for (title, lines) in parts(entry) {
            let _ = write!(text, "\n{title}:\n\n");
            text.extend(lines.iter().map(|line| format!("- {line}\n")));
        }
    }
    text
}

fn parts(entry: &Entry) -> [(&'static str, &'static [&'static str]); 3] {
    [("Causes", entry.causes), ("Evidence", entry.evidence), ("Cures", entry.cures)]
}

/// How wide a text for people is, in characters.
pub(crate) const WIDTH: usize = 96;

/// Lines of at most so many characters: this before the first, and this before each of the others.
pub(crate) fn wrapped(text: &str, first: &str, others: &str, width: usize) -> String {
    let mut lines = vec![first.to_owned()];
    for (number, word) in text.split_whitespace().enumerate() {
        let line = lines.last_mut().expect("there is one from the beginning");
        if number == 0 {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(format!("{others}{word}"));
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_where_it_is_full_and_a_long_word_stays_whole() {
        assert_eq!(wrapped("a b", "- ", "  ", 96), "- a b\n");
        let word = "x".repeat(60);
        assert_eq!(wrapped(&format!("{word} {word} c"), "- ", "  ", 96), format!("- {word}\n  {word} c\n"));
        let long = "y".repeat(200);
        assert_eq!(wrapped(&long, "- ", "  ", 96), format!("- {long}\n"));
    }
}
