//! Wrapped or malformed input is refused before it is stored or sent, so that the corrected value works at once.

use crate::job::{Job, settings};

/// Common replacements for a token, and a word of the error for each.
fn wrapped(token: &str) -> Vec<(String, &'static str)> {
    let (begin, end) = token.split_at(60);
    vec![
        (format!("\"{token}\""), "it is in quotes"),
        (format!("'{token}'"), "it is in quotes"),
        (format!("Bearer {token}"), "`Bearer`"),
        (format!("Authorization: Bearer {token}"), "`Bearer`"),
        (format!("{{\"value\":\"{token}\"}}"), "`.value`"),
        (format!("{{\"token\":\"{token}\"}}"), "`.token`"),
        (format!("{{\"access_token\":\"{token}\"}}"), "`.access_token`"),
        (format!("{{\"id_token\":\"{token}\"}}"), "`.id_token`"),
        (format!("\u{feff}{token}"), "byte order mark"),
        ("${{ steps.token.outputs.value }}".to_owned(), "`${{ … }}`"),
        ("$ID_TOKEN".to_owned(), "`$NAME`"),
        ("$(ID_TOKEN)".to_owned(), "`$(…)`"),
        ("/var/run/secrets/token".to_owned(), "the path of a file"),
        (format!("{begin}\n{end}"), "line breaks or spaces"),
        (token.replace('.', "%2E"), "percent-encoded"),
        (format!("{token}%"), "zsh"),
        (format!("ID_TOKEN={token}"), "a name and `=`"),
        (format!("{token}\n{token}"), "several tokens"),
        ("null".to_owned(), "nothing"),
    ]
}

/// Checks that the current configuration is refused with these words, and that nothing is stored, sent or printed.
fn assert_refused(job: &mut Job, words: &str) {
    let ended = job.token(&[]);
    assert_eq!(ended.code, 125, "{words}: {}", ended.stderr);
    assert!(ended.stderr.contains("error[identity-malformed]"), "{words}: {}", ended.stderr);
    assert!(ended.stderr.contains(words) && ended.stderr.contains("hint: "), "{words}: {}", ended.stderr);
    assert_eq!(job.counters().exchanges_received, 0, "{words}");
    assert!(!job.state().join("spent").exists(), "{words}: nothing is spent");
}

#[test]
fn wrapped_token_is_refused_from_each_source() {
    for source in ["file", "variable", "command"] {
        let mut job = Job::new(settings());
        job.without_endpoint();
        let token = job.sandbox.issue_identity_token();
        let path = job.path("token");
        let script = format!("cat {}", path.display());
        let put = |job: &mut Job, text: &str| match source {
            "variable" => job.set("ANTHROPIC_IDENTITY_TOKEN", text),
            _ => std::fs::write(&path, text).unwrap(),
        };
        if source == "file" {
            job.set("ANTHROPIC_IDENTITY_TOKEN_FILE", path.to_str().unwrap());
        }
        for (text, words) in wrapped(&token) {
            put(&mut job, &text);
            if source == "command" {
                let ended = job.run(&["token", "--identity-command", &script]);
                assert!(ended.code == 125 && ended.stderr.contains(words), "{words}: {}", ended.stderr);
                assert!(!job.state().join("spent").exists(), "{words}: nothing is spent");
            } else {
                assert_refused(&mut job, words);
            }
        }
        put(&mut job, &format!("{token}\n"));
        let repaired = match source {
            "command" => job.token(&["--identity-command", &script]),
            _ => job.token(&[]),
        };
        assert_eq!(repaired.code, 0, "{source}: {}", repaired.stderr);
        job.assert_exchanges(1);
    }
}

#[test]
fn utf_16_and_nul_in_a_token_file_are_named() {
    let mut job = Job::new(settings());
    let token = job.sandbox.issue_identity_token();
    let path = job.use_token_file("");
    let utf_16 = |mark: &[u8], order: fn(u16) -> [u8; 2]| -> Vec<u8> {
        mark.iter().copied().chain(token.encode_utf16().flat_map(order)).collect()
    };
    for (bytes, words) in [
        (utf_16(b"\xff\xfe", u16::to_le_bytes), "UTF-16"),
        (utf_16(b"\xfe\xff", u16::to_be_bytes), "UTF-16"),
        (utf_16(b"", u16::to_le_bytes), "UTF-16"),
        ([token.as_bytes(), b"\0"].concat(), "NUL"),
        ([token.as_bytes(), b"\xff"].concat(), "not UTF-8"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        assert_refused(&mut job, words);
    }
    std::fs::write(&path, &token).unwrap();
    assert_eq!(job.token(&[]).code, 0);
    job.assert_exchanges(1);
}

#[test]
fn malformed_token_is_refused_by_every_command_and_doctor() {
    let mut job = Job::new(settings());
    let token = job.sandbox.issue_identity_token();
    job.use_token_file(&format!("\"{token}\""));
    for ended in [job.exec(&[], "true"), job.run(&["start", "--format", "json"])] {
        assert!(ended.code == 125 && ended.stderr.contains("it is in quotes"), "{}", ended.stderr);
    }
    let ended = job.run(&["doctor"]);
    assert!(ended.code == 1 && ended.stdout.contains("it is in quotes"), "{}", ended.stdout);
    assert_eq!(job.counters().exchanges_received, 0);
}

#[test]
fn token_in_place_of_its_path_is_not_printed() {
    let mut job = Job::new(settings());
    let token = job.sandbox.issue_identity_token();
    job.without_endpoint();
    job.set("ANTHROPIC_IDENTITY_TOKEN_FILE", &token);
    for ended in [job.token(&[]), job.exec(&[], "true"), job.run(&["doctor"])] {
        let said = format!("{}{}", ended.stdout, ended.stderr);
        assert!(said.contains("is not a path: it is an identity token"), "{said}");
    }
    job.unset("ANTHROPIC_IDENTITY_TOKEN_FILE");
    let ended = job.run(&["token", "--identity-token-file", &token]);
    assert!(ended.stderr.contains("it is an identity token"), "{}", ended.stderr);
}

#[test]
fn wrapped_id_is_refused_and_named() {
    for (variable, value, words) in [
        ("ANTHROPIC_FEDERATION_RULE_ID", "\"fdrl_01SandboxRule\"", "in quotes"),
        ("ANTHROPIC_ORGANIZATION_ID", "'00000000-0000-4000-8000-0000005a4db0'", "in quotes"),
        ("ANTHROPIC_SERVICE_ACCOUNT_ID", "${{ vars.SERVICE_ACCOUNT }}", "`${{ … }}`"),
        ("ANTHROPIC_WORKSPACE_ID", "$WORKSPACE", "`$NAME`"),
        ("ANTHROPIC_WORKSPACE_ID", "wrkspc_1 wrkspc_2", "spaces"),
        ("ANTHROPIC_FEDERATION_RULE_ID", "svac_01SandboxAccount", "is the id of a service account"),
        ("ANTHROPIC_ORGANIZATION_ID", "fdrl_01SandboxRule", "is the id of a federation rule"),
        ("ANTHROPIC_OIDC_AUDIENCE", "\"https://api.anthropic.com\"", "in quotes"),
    ] {
        let mut job = Job::new(settings());
        job.set(variable, value);
        let ended = job.token(&[]);
        assert!(ended.stderr.contains("error[implausible-value]"), "{variable}={value}: {}", ended.stderr);
        assert!(ended.stderr.contains(variable) && ended.stderr.contains(words), "{}", ended.stderr);
        assert_eq!(job.counters().identity_tokens_issued, 0, "nobody is asked");
    }
}
