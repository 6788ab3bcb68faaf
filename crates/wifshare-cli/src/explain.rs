//! `wifshare explain`: prints the meaning of an error code, its causes, where to look and what to do.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::arguments::ExplainArguments;
use crate::catalogue::{CATALOGUE, Entry, code, find};
use crate::failure::Failure;

pub(crate) fn explain(arguments: &ExplainArguments) -> Result<u8, Failure> {
    let asked = arguments.code.join(" ");
    let text = match (asked.trim(), arguments.markdown) {
        (_, true) => page(),
        ("", false) => list(),
        (asked, false) => pages(&search(asked)?),
    };
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::new(code!("stdout"), format!("could not print the explanation: {error}"), None))?;
    Ok(0)
}

/// Search words and the codes that they lead to: messages of servers, clients and operating systems.
const SEARCHED: [(&[&str], &[&str]); 16] = [
    (&["jti_reused", "jti", "token reused", "replay", "already used"], &["exchange-refused", "identity-spent"]),
    (
        &["401", "unauthorized", "invalid_grant", "authentication_error", "authentication failed"],
        &["exchange-refused", "identity-spent", "identity-refused"],
    ),
    (
        &["400", "invalid_request", "invalid_request_error", "invalid_client", "unsupported grant_type"],
        &["exchange-refused", "implausible-value"],
    ),
    (&["workspace_id_required", "match_subject_prefix", "subject_prefix", "immutable subject"], &["exchange-refused"]),
    (
        &["403", "forbidden", "permission_error", "pending", "resource not accessible"],
        &["identity-refused", "exchange-refused"],
    ),
    (
        &["429", "500", "502", "503", "504", "529", "overloaded", "overloaded_error", "rate_limit_error"],
        &["endpoint-busy", "identity-refused"],
    ),
    (
        &[
            "id-token",
            "id-token: write",
            "actions_id_token_request_url",
            "unable to get actions_id_token_request_url",
            "act",
        ],
        &["no-identity-source", "broken-identity-source"],
    ),
    (
        &["could not resolve authentication method", "no credentials", "not logged in"],
        &["unconfigured", "configured-in-part"],
    ),
    (
        &[
            "certificate",
            "x509",
            "tls",
            "ssl",
            "unable_to_get_issuer_cert_locally",
            "self_signed_cert_in_chain",
            "cert_has_expired",
            "certificate_verify_failed",
            "unknownissuer",
        ],
        &["certificate-refused"],
    ),
    (
        &["econnrefused", "enotfound", "etimedout", "econnreset", "connection refused", "proxy", "407"],
        &["endpoint-unreachable", "identity-unreachable"],
    ),
    (&["eacces", "eperm", "permission denied"], &["state-foreign", "state-unusable", "command-not-runnable"]),
    (&["enospc", "edquot", "no space left on device", "erofs", "read-only file system"], &["state-unusable"]),
    (&["emfile", "enfile", "too many open files", "ulimit"], &["state-unusable", "gateway-not-opened"]),
    (&["eaddrinuse", "address already in use"], &["gateway-not-opened"]),
    (
        &["126", "127", "enoent", "command not found", "exec format error"],
        &["command-not-found", "command-not-runnable"],
    ),
    (&["expired", "exp", "clock", "clock skew"], &["identity-expired", "exchange-refused"]),
];

/// Finds entries by code, by search word, or by a text in the entry.
///
/// # Errors
/// Returns a usage error if nothing matches. It suggests a code if one has a similar spelling.
fn search(asked: &str) -> Result<Vec<&'static Entry>, Failure> {
    // The user may paste it from a log: `error[exchange-refused]:`.
    let name = asked.trim_start_matches("error[").trim_end_matches([':', ']']).trim_matches(['"', '\'', '`']);
    let name = name.to_lowercase();
    // `exchange refused` and `EXCHANGE_REFUSED` are the same code.
    if let Some(entry) = find(&name).or_else(|| find(&name.replace([' ', '_'], "-"))) {
        return Ok(vec![entry]);
    }
    if let Some((_, codes)) = SEARCHED.iter().find(|(words, _)| words.contains(&name.as_str())) {
        return Ok(codes.iter().filter_map(|code| find(code)).collect());
    }
    // A misspelt code leads to a suggestion; any other text is searched for in the entries.
    let nearest = CATALOGUE
        .iter()
        .map(|entry| (strsim::damerau_levenshtein(entry.code, &name), entry.code))
        .min()
        .filter(|(distance, code)| *distance <= 1 + code.len() / 4);
    let has_it = |entry: &&Entry| {
        let lists = [entry.causes, entry.evidence, entry.cures];
        let mut texts = std::iter::once(entry.meaning).chain(lists.into_iter().flatten().copied());
        texts.any(|text| text.to_lowercase().contains(&name))
    };
    match nearest {
        Some((_, code)) => Err(Failure::usage(
            format!("no error has the code `{}`; did you mean `{code}`?", wifshare::safe_text(asked)),
            &format!("run `wifshare explain {code}`"),
        )),
        None if name.len() >= 3 && CATALOGUE.iter().any(|entry| has_it(&entry)) => {
            Ok(CATALOGUE.iter().filter(has_it).collect())
        }
        None => Err(Failure::usage(
            format!("no error has the code `{}`, and none speaks of it", wifshare::safe_text(asked)),
            "`wifshare explain` lists them all",
        )),
    }
}

fn pages(entries: &[&'static Entry]) -> String {
    entries.iter().map(|it| entry(it)).collect::<Vec<_>>().join("\n")
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

/// Generates `docs/reference/errors.md`.
fn page() -> String {
    let mut text = String::from(
        "<!-- Made by `wifshare explain --markdown`; edit crates/wifshare-cli/src/catalogue.rs. -->\n# Errors\n\n\
         Every failure of wifshare has a stable code in brackets: `error[exchange-refused]`. This page has the output of\n\
         `wifshare explain CODE` for all codes. Each list starts with the most common entry.\n\n\
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

/// Maximum width of text for people, in characters.
pub(crate) const WIDTH: usize = 96;

/// Wraps text to this width. The first line starts with `first`, each further line with `others`.
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

    fn codes(asked: &str) -> Vec<&'static str> {
        search(asked).map(|entries| entries.iter().map(|entry| entry.code).collect()).unwrap_or_default()
    }

    #[test]
    fn search_words_lead_to_codes() {
        for (asked, first) in [
            ("exchange-refused", "exchange-refused"),
            ("error[exchange-refused]:", "exchange-refused"),
            ("Exchange-Refused", "exchange-refused"),
            ("EXCHANGE_REFUSED", "exchange-refused"),
            ("exchange refused", "exchange-refused"),
            ("jti_reused", "exchange-refused"),
            ("JTI_REUSED", "exchange-refused"),
            ("invalid_grant", "exchange-refused"),
            ("401", "exchange-refused"),
            ("\"Authentication failed\"", "exchange-refused"),
            ("SELF_SIGNED_CERT_IN_CHAIN", "certificate-refused"),
            ("too many open files", "state-unusable"),
            ("NFS", "locks-unreliable"),
        ] {
            let found = codes(asked);
            assert_eq!(found.first(), Some(&first), "{asked}: {found:?}");
        }
        assert!(codes("jti_reused").contains(&"identity-spent"));
        assert!(codes("symbolic link").contains(&"state-in-the-way"), "a text that stands in an entry");
        for (words, codes) in SEARCHED {
            assert!(words.iter().all(|word| word.to_lowercase() == *word), "{words:?}");
            assert!(codes.iter().all(|code| find(code).is_some()), "{codes:?}");
        }
    }

    #[test]
    fn misspelt_code_is_suggested() {
        for (asked, meant) in [
            ("exchange-refsed", "exchange-refused"),
            ("exchnage-refused", "exchange-refused"),
            ("state-forein", "state-foreign"),
        ] {
            let failure = search(asked).expect_err(asked);
            assert!(failure.message.contains(&format!("did you mean `{meant}`?")), "{}", failure.message);
        }
        let failure = search("sk-ant-oat01-secret").expect_err("a secret");
        assert!(!failure.message.contains("oat01"), "{}", failure.message);
    }

    #[test]
    fn wrapped_line_breaks_at_its_width_and_keeps_long_words() {
        assert_eq!(wrapped("a b", "- ", "  ", 96), "- a b\n");
        let word = "x".repeat(60);
        assert_eq!(wrapped(&format!("{word} {word} c"), "- ", "  ", 96), format!("- {word}\n  {word} c\n"));
        let long = "y".repeat(200);
        assert_eq!(wrapped(&long, "- ", "  ", 96), format!("- {long}\n"));
    }
}
