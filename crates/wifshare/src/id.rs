//! Checks the form of federation ids: which values are certainly wrong, and which the API would refuse.

use crate::wrapping::Wrapping;

/// What is wrong with a value, and an instruction. Neither contains the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadForm {
    /// The problem, in words that follow the variable's name.
    pub what: String,
    /// An instruction.
    pub cure: String,
}

/// The kinds of ids: variable, description, prefix.
const KINDS: [(&str, &str, &str); 3] = [
    ("ANTHROPIC_FEDERATION_RULE_ID", "a federation rule", "fdrl_"),
    ("ANTHROPIC_SERVICE_ACCOUNT_ID", "a service account", "svac_"),
    ("ANTHROPIC_WORKSPACE_ID", "a workspace", "wrkspc_"),
];
const ORGANIZATION: &str = "ANTHROPIC_ORGANIZATION_ID";
const ISSUER_PREFIX: &str = "fdis_";
const LONGEST: usize = 512;

/// Returns what is certainly wrong with a value, whatever form future ids may have.
pub(crate) fn mistake(variable: &str, value: &str) -> Option<BadForm> {
    let anew = || format!("look where {variable} is set; copy it anew from the Claude Console");
    let bad = |what: &str, cure: String| Some(BadForm { what: what.to_owned(), cure });
    let is_audience = kind(variable).is_none() && variable != ORGANIZATION;
    match Wrapping::of_id(value) {
        // An audience is often a URL, and may have any form.
        Some(Wrapping::Url | Wrapping::Path | Wrapping::OtherJson | Wrapping::Placeholder) if is_audience => {}
        Some(wrapping @ Wrapping::OtherCredential(_)) => {
            return bad(
                &format!("is not an id: {wrapping}"),
                format!("{}, and revoke what was pasted: it may be in a log", anew()),
            );
        }
        Some(Wrapping::IdentityToken) => return bad("is not an id: it is an identity token", anew()),
        Some(Wrapping::OtherJson)
            if value.strip_prefix('{').and_then(|id| id.strip_suffix('}')).is_some_and(is_uuid) =>
        {
            return bad("is in braces", "remove the braces".to_owned());
        }
        Some(Wrapping::OtherJson) => return bad("is not an id: it is a JSON document", anew()),
        Some(Wrapping::Path) => return bad("is not an id: it is the path of a file", anew()),
        Some(wrapping) => return bad(&format!("is not a plain value: {wrapping}"), wrapping.cure()),
        None => {}
    }
    let rest = kind(variable).and_then(|(.., prefix)| value.strip_prefix(prefix)).unwrap_or(value);
    if !is_audience && (2..=64).contains(&rest.len()) && rest.bytes().all(|byte| b"0xX-_.*".contains(&byte)) {
        return bad("is a placeholder of some documentation", anew());
    }
    if value.len() > LONGEST {
        return bad(&format!("is too long (limit: {LONGEST} characters)"), anew());
    }
    if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return bad("contains spaces or invalid characters", anew());
    }
    if !is_audience && value.contains('=') {
        return bad("is not an id: a name and `=` stand before it", "keep the id alone".to_owned());
    }
    if !is_audience && let Some(other) = kind_of(value).filter(|other| *other != expected(variable).0) {
        let (kind, form) = expected(variable);
        return bad(&format!("is the id of {other}, and {kind} ({form}) is expected"), anew());
    }
    None
}

/// Returns what the API would refuse in a value, according to the current form of ids.
pub fn complaint(variable: &str, value: &str) -> Option<BadForm> {
    if let Some(bad) = mistake(variable, value) {
        return Some(bad);
    }
    let (kind, form) = expected(variable);
    let prefix = match self::kind(variable) {
        None if variable == ORGANIZATION => "",
        None => return None,
        Some((_, _, prefix)) => prefix,
    };
    let rest = value.strip_prefix(prefix);
    let is_right = match variable {
        ORGANIZATION => is_uuid(value),
        "ANTHROPIC_WORKSPACE_ID" if value == "default" => true,
        _ => rest.is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric())),
    };
    if is_right {
        return None;
    }
    let in_lower_case = value.to_ascii_lowercase();
    let has_wrong_case = match variable {
        "ANTHROPIC_WORKSPACE_ID" if in_lower_case == "default" => true,
        _ => !prefix.is_empty() && rest.is_none() && in_lower_case.starts_with(prefix),
    };
    let cure = match has_wrong_case {
        true => format!(
            "write {} in lower case",
            if in_lower_case == "default" { "`default`" } else { "what stands before `_`" }
        ),
        false => format!("copy {variable} anew from the Claude Console: the id, and not the name"),
    };
    Some(BadForm { what: format!("is not the id of {kind}: {form} is expected"), cure })
}

fn kind(variable: &str) -> Option<(&'static str, &'static str, &'static str)> {
    KINDS.into_iter().find(|(name, ..)| *name == variable)
}

/// Returns what this variable names, and in which form.
fn expected(variable: &str) -> (&'static str, &'static str) {
    match variable {
        "ANTHROPIC_FEDERATION_RULE_ID" => ("a federation rule", "`fdrl_…`"),
        "ANTHROPIC_SERVICE_ACCOUNT_ID" => ("a service account", "`svac_…`"),
        "ANTHROPIC_WORKSPACE_ID" => ("a workspace", "`wrkspc_…` or `default`"),
        _ => ("an organisation", "a UUID such as 01234567-89ab-cdef-0123-456789abcdef"),
    }
}

/// Returns the kind of id that a text certainly is.
fn kind_of(value: &str) -> Option<&'static str> {
    let begins_with = |prefix: &str| value.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix));
    match () {
        () if is_uuid(value) => Some("an organisation"),
        () if begins_with(ISSUER_PREFIX) => Some("a federation issuer"),
        () => KINDS.iter().find(|(_, _, prefix)| begins_with(prefix)).map(|(_, kind, _)| *kind),
    }
}

fn is_uuid(text: &str) -> bool {
    let lengths = text.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: &str = "ANTHROPIC_FEDERATION_RULE_ID";
    const SERVICE_ACCOUNT: &str = "ANTHROPIC_SERVICE_ACCOUNT_ID";
    const WORKSPACE: &str = "ANTHROPIC_WORKSPACE_ID";
    const AUDIENCE: &str = "ANTHROPIC_OIDC_AUDIENCE";
    const UUID: &str = "00000000-0000-4000-8000-0000005a4db0";

    #[test]
    fn definite_id_mistakes_are_named() {
        for (variable, value, words) in [
            (RULE, "\"fdrl_1\"", "in quotes"),
            (RULE, "'fdrl_1'", "in quotes"),
            (ORGANIZATION, "\u{201c}00000000-0000-4000-8000-0000005a4db0\u{201d}", "in quotes"),
            (RULE, "${{ vars.RULE }}", "`${{ … }}`"),
            (WORKSPACE, "$WORKSPACE", "`$NAME`"),
            (SERVICE_ACCOUNT, "$(serviceAccount)", "`$(…)`"),
            (RULE, "fdrl_1 ", "spaces"),
            (RULE, "fdrl_1 fdrl_2", "spaces"),
            (RULE, "\u{feff}fdrl_1", "byte order mark"),
            (RULE, "fdrl_1\u{200b}", "invisible"),
            (RULE, "id=fdrl_1", "`=`"),
            (RULE, "<rule>", "placeholder"),
            (RULE, "fdrl_...", "placeholder"),
            (RULE, "fdrl_XXXX", "placeholder"),
            (ORGANIZATION, "00000000-0000-0000-0000-000000000000", "placeholder"),
            (ORGANIZATION, "{00000000-0000-4000-8000-0000005a4db0}", "in braces"),
            (RULE, "***", "masked value"),
            (RULE, "null", "nothing"),
            (RULE, UUID, "the id of an organisation"),
            (RULE, "svac_1", "the id of a service account"),
            (RULE, "fdis_1", "the id of a federation issuer"),
            (ORGANIZATION, "fdrl_1", "the id of a federation rule"),
            (WORKSPACE, "FDRL_1", "the id of a federation rule"),
            (SERVICE_ACCOUNT, "wrkspc_1", "the id of a workspace"),
            (RULE, "sk-ant-api03-abc", "an API key"),
            (RULE, "eyJhbGciOiJ9.e30.c2ln", "an identity token"),
            (RULE, "https://platform.claude.com/rules/fdrl_1", "a URL"),
            (RULE, "{\"id\":\"fdrl_1\"}", "a JSON document"),
            (AUDIENCE, "\"https://api.anthropic.com\"", "in quotes"),
            (AUDIENCE, "${{ vars.AUDIENCE }}", "`${{ … }}`"),
            (AUDIENCE, "https://a b", "spaces"),
        ] {
            let bad = mistake(variable, value).unwrap_or_else(|| panic!("{variable} {value}"));
            assert!(bad.what.contains(words), "{variable} {value}: {}", bad.what);
            assert!(!bad.cure.is_empty());
            if words != "placeholder" && words != "nothing" {
                assert!(!format!("{} {}", bad.what, bad.cure).contains(value), "{}", bad.what);
            }
        }
        for (variable, value) in [
            (RULE, "my-org"),
            (ORGANIZATION, "acme"),
            (WORKSPACE, "Default"),
            (AUDIENCE, "https://api.example/a?b=c"),
            (AUDIENCE, "api://AzureADTokenExchange"),
            (AUDIENCE, UUID),
            (AUDIENCE, "/projects/1"),
        ] {
            assert_eq!(mistake(variable, value), None, "{variable} {value}");
        }
    }

    #[test]
    fn invalid_id_format_is_a_complaint() {
        for (variable, value, words) in [
            (RULE, "my-org", "`fdrl_…` is expected"),
            (RULE, "fdrl_", "`fdrl_…` is expected"),
            (RULE, "FDRL_1", "`fdrl_…` is expected"),
            (ORGANIZATION, "acme", "a UUID"),
            (ORGANIZATION, "00000000-0000-4000-8000-0000005a4db", "a UUID"),
            (SERVICE_ACCOUNT, "svac-1", "`svac_…` is expected"),
            (WORKSPACE, "Default", "or `default` is expected"),
            (WORKSPACE, "research", "or `default` is expected"),
            (RULE, "\"fdrl_1\"", "in quotes"),
        ] {
            let bad = complaint(variable, value).unwrap_or_else(|| panic!("{variable} {value}"));
            assert!(bad.what.contains(words), "{variable} {value}: {}", bad.what);
        }
        assert!(complaint(WORKSPACE, "DEFAULT").is_some_and(|bad| bad.cure.contains("`default` in lower case")));
        assert!(complaint(RULE, "Fdrl_1").is_some_and(|bad| bad.cure.contains("lower case")));
        for (variable, value) in [
            (RULE, "fdrl_01SandboxRule"),
            (ORGANIZATION, UUID),
            (ORGANIZATION, "ABCDEF00-0000-4000-8000-0000005a4db0"),
            (SERVICE_ACCOUNT, "svac_01SandboxAccount"),
            (WORKSPACE, "wrkspc_01abc"),
            (WORKSPACE, "default"),
            (AUDIENCE, "anything"),
        ] {
            assert_eq!(complaint(variable, value), None, "{variable} {value}");
        }
    }
}
