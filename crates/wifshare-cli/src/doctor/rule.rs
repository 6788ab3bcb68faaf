//! Compares a federation rule with one identity token, offline.
//!
//! The rule is a JSON object as the Admin API returns it (with its matchers in `match`), or only its matchers
//! (docs/reference/protocol.md §5.5).

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use serde_json::{Map, Value};
use wifshare::{Config, IdentityToken, is_immutable, safe_text, with_ids_of, without_ids};

use super::finding::Finding;
use crate::clock::clock;
use crate::console::whole;
use crate::failure::Failure;

const CHECK: &str = "rule";

/// The parts of a rule that can be judged here.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Rule {
    id: Option<String>,
    organization_id: Option<String>,
    service_account_id: Option<String>,
    subject_prefix: Option<String>,
    audience: Option<String>,
    claims: BTreeMap<String, String>,
    /// Matchers that cannot be judged here, such as a CEL `condition`.
    unjudged: Vec<String>,
    token_lifetime: Option<Duration>,
    workspaces: Workspaces,
}

#[derive(Debug, Default, PartialEq)]
enum Workspaces {
    #[default]
    Unknown,
    One(String),
    Several,
}

impl Rule {
    /// Reads a rule from the file that the user named.
    ///
    /// # Errors
    /// Returns a usage error if the file cannot be read or is not a rule.
    pub(crate) fn read(path: &Path) -> Result<Rule, Failure> {
        const LARGEST: u64 = 1 << 20;
        let refuse = |what: String| {
            Failure::usage(
                format!("could not read the rule {}: {what}", path.display()),
                "a federation rule is a JSON object, as the Admin API gives it; `match` holds its matchers",
            )
        };
        let mut text = String::new();
        let file = wifshare::open_regular(path).map_err(|error| refuse(error.to_string()))?;
        file.take(LARGEST).read_to_string(&mut text).map_err(|error| refuse(error.to_string()))?;
        let object: Map<String, Value> = serde_json::from_str(&text).map_err(|error| refuse(error.to_string()))?;
        Rule::parse(&object).map_err(refuse)
    }

    fn parse(object: &Map<String, Value>) -> Result<Rule, String> {
        const MATCHERS: [&str; 3] = ["subject_prefix", "audience", "claims"];
        let matchers = match object.get("match") {
            Some(Value::Object(matchers)) => matchers,
            Some(_) => return Err("`match` is not an object".to_owned()),
            None => object,
        };
        let text = |object: &Map<String, Value>, name: &str| match object.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(format!("`{name}` is not a text")),
        };
        let mut rule = Rule {
            id: text(object, "id")?,
            organization_id: text(object, "organization_id")?,
            service_account_id: text(object, "service_account_id")?,
            subject_prefix: text(matchers, "subject_prefix")?,
            audience: text(matchers, "audience")?,
            token_lifetime: object.get("token_lifetime_seconds").and_then(Value::as_u64).map(Duration::from_secs),
            ..Rule::default()
        };
        if let Some(Value::Object(target)) = object.get("target") {
            rule.service_account_id = rule.service_account_id.or(text(target, "service_account_id")?);
        }
        match matchers.get("claims") {
            None | Some(Value::Null) => {}
            Some(Value::Object(claims)) => {
                for name in claims.keys() {
                    let value = text(claims, name)?.unwrap_or_default();
                    rule.claims.insert(name.clone(), value);
                }
            }
            Some(_) => return Err("`claims` is not an object".to_owned()),
        }
        // A whole rule has other keys as well as its matchers. Within `match`, every key is a matcher.
        let is_within_match = object.contains_key("match");
        let is_unjudged = |name: &str, value: &Value| {
            !value.is_null() && !MATCHERS.contains(&name) && (is_within_match || name == "condition")
        };
        rule.unjudged =
            matchers.iter().filter(|(name, it)| is_unjudged(name, it)).map(|(name, _)| name.clone()).collect();
        let is_true = |name| object.get(name).and_then(Value::as_bool) == Some(true);
        rule.workspaces = match text(object, "workspace_id")? {
            _ if is_true("applies_to_all_workspaces") || is_true("workspace_id_required") => Workspaces::Several,
            Some(one) => Workspaces::One(one),
            None => Workspaces::Unknown,
        };
        Ok(rule)
    }

    /// Returns one finding for each matcher and each id.
    pub(super) fn judge(&self, token: &IdentityToken, config: &Config) -> Vec<Finding> {
        let mut findings = Vec::new();
        findings.extend(self.subject_prefix.as_deref().map(|prefix| judge_subject(prefix, token)));
        findings.extend(self.audience.as_deref().map(|audience| judge_audience(audience, token, config)));
        findings.extend(self.claims.iter().map(|(name, value)| judge_claim(name, value, token)));
        findings.extend(self.unjudged.iter().map(|name| {
            Finding::note(
                CHECK,
                format!("`{}` is not judged here; the Console tells whether it matched", safe_text(name)),
            )
        }));
        if self.subject_prefix.is_none() && self.claims.is_empty() && self.unjudged.is_empty() {
            findings.push(Finding::warning(
                CHECK,
                "it has no matcher but the audience",
                "a rule needs a subject_prefix, a claim or a condition; is this the rule's whole JSON?",
            ));
        }
        for (what, variable, rules, configured) in [
            ("rule", "ANTHROPIC_FEDERATION_RULE_ID", &self.id, Some(&config.grant.federation_rule_id)),
            ("organisation", "ANTHROPIC_ORGANIZATION_ID", &self.organization_id, Some(&config.grant.organization_id)),
            (
                "service account",
                "ANTHROPIC_SERVICE_ACCOUNT_ID",
                &self.service_account_id,
                config.grant.service_account_id.as_ref(),
            ),
        ] {
            findings.extend(
                rules.as_ref().zip(configured).filter(|(rule, ours)| rule != ours && !ours.is_empty()).map(
                    |(rule, ours)| {
                        Finding::failed(
                            CHECK,
                            format!("its {what} is {}, and {} is configured", safe_text(rule), safe_text(ours)),
                            Some(format!(
                                "set {variable} to what this rule has, or look at the rule that is configured"
                            )),
                        )
                    },
                ),
            );
        }
        findings.extend(self.judge_workspace(config));
        findings.extend(self.judge_lifetime(token));
        findings
    }

    fn judge_workspace(&self, config: &Config) -> Option<Finding> {
        let asked = config.grant.workspace_id.as_deref();
        match (&self.workspaces, asked) {
            (Workspaces::Several, None) => Some(Finding::failed(
                CHECK,
                "it covers several workspaces, and ANTHROPIC_WORKSPACE_ID is not set",
                Some("set ANTHROPIC_WORKSPACE_ID to wrkspc_… or `default`".to_owned()),
            )),
            (Workspaces::One(one), Some(asked)) if one != asked => Some(Finding::failed(
                CHECK,
                format!("it is for the workspace {}, and {} is asked for", safe_text(one), safe_text(asked)),
                Some("set ANTHROPIC_WORKSPACE_ID to the rule's workspace, or unset it".to_owned()),
            )),
            (Workspaces::One(_) | Workspaces::Several | Workspaces::Unknown, _) => None,
        }
    }

    fn judge_lifetime(&self, token: &IdentityToken) -> Option<Finding> {
        const SHORTEST: Duration = Duration::from_secs(60);
        const LONGEST: Duration = Duration::from_secs(86_400);
        let lifetime = self.token_lifetime?;
        if !(SHORTEST..=LONGEST).contains(&lifetime) {
            return Some(Finding::warning(
                CHECK,
                format!("its token lifetime is {} s", lifetime.as_secs()),
                "a rule's token lifetime is between 60 s and 86400 s",
            ));
        }
        let left = token.claims().expires_at.and_then(|end| end.duration_since(clock().now()).ok());
        let bought = lifetime.min((left.unwrap_or_default() * 2).max(SHORTEST));
        let evidence =
            format!("its token lifetime is {}: a credential bought now lives {}", whole(lifetime), whole(bought));
        Some(Finding::ok(CHECK, evidence))
    }
}

fn judge_subject(prefix: &str, token: &IdentityToken) -> Finding {
    let subject = token.claims().subject.as_deref().unwrap_or_default();
    if matches(prefix, subject) {
        return Finding::ok(CHECK, format!("the subject matches `{}`", safe_text(prefix)));
    }
    let is_case = matches(&prefix.to_lowercase(), &subject.to_lowercase());
    let is_short = !prefix.ends_with('*') && subject.starts_with(prefix);
    let cure = match (is_case, is_short) {
        (true, _) => "only upper and lower case differ, and a rule compares exactly".to_owned(),
        (_, true) => "without `*` at its end a subject_prefix has to be the whole subject".to_owned(),
        _ => cure_of_ids(prefix, subject).unwrap_or_else(|| {
            "correct the rule's subject_prefix in the Console, or run the job where its subject matches".to_owned()
        }),
    };
    Finding::failed(
        CHECK,
        format!("the subject `{}` does not match `{}`", safe_text(subject), safe_text(prefix)),
        Some(cure),
    )
}

/// Suggests a fix if rule and subject differ only in GitHub's immutable ids.
fn cure_of_ids(prefix: &str, subject: &str) -> Option<String> {
    if !matches(&without_ids(prefix), &without_ids(subject)) {
        return None;
    }
    let plain = || safe_text(&without_ids(prefix));
    match (is_immutable(prefix), is_immutable(subject)) {
        (false, true) => Some(format!(
            "GitHub issues subjects with immutable ids for repositories made since 15 July 2026: set the rule's \
             subject_prefix to `{}`",
            safe_text(&with_ids_of(prefix, subject)?)
        )),
        (true, false) => Some(format!(
            "this repository has subjects without ids (it is older than 15 July 2026, or immutable subjects are turned \
             off): set the rule's subject_prefix to `{}`",
            plain()
        )),
        (true, true) => Some(format!(
            "the names are the same and an id differs: the repository or its owner was deleted and made anew. Set the \
             rule's subject_prefix to `{}` if it is to be trusted",
            safe_text(&with_ids_of(&without_ids(prefix), subject)?)
        )),
        (false, false) => None,
    }
}

/// Exact match, or prefix match if the pattern ends in `*`. Case-sensitive.
fn matches(prefix: &str, subject: &str) -> bool {
    match prefix.strip_suffix('*') {
        Some(prefix) => subject.starts_with(prefix),
        None => subject == prefix,
    }
}

fn judge_audience(audience: &str, token: &IdentityToken, config: &Config) -> Finding {
    if token.claims().audience.iter().any(|one| one == audience) {
        return Finding::ok(CHECK, format!("the audience is `{}`", safe_text(audience)));
    }
    let cure = match config.audience == audience {
        true => "issue the identity token for that audience, where it is made",
        false => "set ANTHROPIC_OIDC_AUDIENCE to it, or correct the rule",
    };
    Finding::failed(
        CHECK,
        format!("it wants the audience `{}`, which the identity token does not have", safe_text(audience)),
        Some(cure.to_owned()),
    )
}

fn judge_claim(name: &str, value: &str, token: &IdentityToken) -> Finding {
    let cure = || Some("correct the rule's `claims`, or run the job where the claim has that value".to_owned());
    match token.claim(name) {
        Some(has) if has == value => Finding::ok(CHECK, format!("the claim `{}` matches", safe_text(name))),
        Some(has) => Finding::failed(
            CHECK,
            format!("the claim `{}` is `{}`, and `{}` is wanted", safe_text(name), safe_text(&has), safe_text(value)),
            cure(),
        ),
        None => {
            Finding::failed(CHECK, format!("the identity token has no text in the claim `{}`", safe_text(name)), cure())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Rule, String> {
        Rule::parse(&serde_json::from_str(text).expect("an object"))
    }

    #[test]
    fn subject_prefix_is_exact_unless_it_ends_in_a_star() {
        for (prefix, subject, is_match) in [
            ("repo:a/b:*", "repo:a/b:ref:refs/heads/main", true),
            ("repo:a/b:*", "repo:a/bc:ref", false),
            ("repo:a/b", "repo:a/b:ref", false),
            ("repo:a/b", "repo:a/b", true),
            ("repo:A/b:*", "repo:a/b:ref", false),
            ("*", "anything", true),
            ("", "", true),
        ] {
            assert_eq!(matches(prefix, subject), is_match, "{prefix} {subject}");
        }
    }

    #[test]
    fn subject_differing_only_in_ids_has_a_hint() {
        const PLAIN: &str = "repo:o/r:ref:refs/heads/main";
        const WITH_IDS: &str = "repo:o@65/r@74:ref:refs/heads/main";
        for (prefix, subject, words) in [
            ("repo:o/r:*", WITH_IDS, Some("`repo:o@65/r@74:*`")),
            ("repo:o/*", WITH_IDS, Some("`repo:o@65/*`")),
            (PLAIN, WITH_IDS, Some("`repo:o@65/r@74:ref:refs/heads/main`")),
            ("repo:o@65/r@74:*", PLAIN, Some("`repo:o/r:*`")),
            ("repo:o@65/r@9:*", WITH_IDS, Some("deleted and made anew")),
            ("repo:o/other:*", WITH_IDS, None),
            ("repo:o/other:*", PLAIN, None),
        ] {
            let cure = cure_of_ids(prefix, subject);
            assert_eq!(cure.is_some(), words.is_some(), "{prefix} {subject}: {cure:?}");
            assert!(words.is_none_or(|words| cure.is_some_and(|cure| cure.contains(words))), "{prefix} {subject}");
        }
    }

    #[test]
    fn rule_is_parsed_whole_or_as_its_matchers() {
        let whole = parse(
            r#"{"id":"fdrl_1","name":"ci","match":{"subject_prefix":"repo:*","audience":"a","claims":{"ref":"m"},
                "condition":"true","new_thing":1},"token_lifetime_seconds":600,"applies_to_all_workspaces":true,
                "target":{"service_account_id":"svac_1"}}"#,
        )
        .expect("a rule");
        assert_eq!(whole.unjudged, ["condition", "new_thing"]);
        assert_eq!(whole.claims["ref"], "m");
        assert_eq!(whole.workspaces, Workspaces::Several);
        assert_eq!(whole.service_account_id.as_deref(), Some("svac_1"));
        assert_eq!(whole.token_lifetime, Some(Duration::from_secs(600)));
        let matchers =
            parse(r#"{"subject_prefix":"repo:*","audience":"a","workspace_id":"wrkspc_1"}"#).expect("a rule");
        assert_eq!(matchers.subject_prefix, whole.subject_prefix);
        assert_eq!(matchers.workspaces, Workspaces::One("wrkspc_1".to_owned()));
        for wrong in [r#"{"match":[]}"#, r#"{"subject_prefix":1}"#, r#"{"claims":{"ref":1}}"#, r#"{"claims":"x"}"#] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
