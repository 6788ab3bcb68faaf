//! Checks which values are in force, where each came from, and what overrides them.

use std::path::Path;

use wifshare::{ConfigError, Environment, ExistingAuth, Inputs, open_regular};

use super::finding::Finding;
use crate::joined;

/// Each value's name, flag, variable and default.
const VALUES: [(&str, &str, &str, Option<&str>); 6] = [
    ("rule", "--federation-rule-id", "ANTHROPIC_FEDERATION_RULE_ID", None),
    ("organisation", "--organization-id", "ANTHROPIC_ORGANIZATION_ID", None),
    ("service account", "--service-account-id", "ANTHROPIC_SERVICE_ACCOUNT_ID", None),
    ("workspace", "--workspace-id", "ANTHROPIC_WORKSPACE_ID", None),
    ("audience", "--audience", "ANTHROPIC_OIDC_AUDIENCE", Some("https://api.anthropic.com")),
    ("base URL", "--base-url", "ANTHROPIC_BASE_URL", Some("https://api.anthropic.com")),
];

/// Lists each value and its origin.
pub(super) fn values(inputs: &Inputs, environment: &Environment) -> Vec<Finding> {
    let said = VALUES.iter().map(|(what, flag, variable, default)| {
        match (flag_of(inputs, flag), environment.text(variable), default) {
            (Some(value), _, _) => format!("{what} {} (from {flag})", shown(value)),
            (None, Some(value), _) => format!("{what} {} (from {variable})", shown(value)),
            (None, None, Some(default)) => format!("{what} {default} (the default of {variable})"),
            (None, None, None) => format!("{what} none ({variable} is not set)"),
        }
    });
    said.map(|evidence| Finding::note("configuration", evidence)).collect()
}

/// Finds ids whose form the API would reject, and an audience that rules rarely have. A value that is certainly not an
/// id is left out here, because it already stops the configuration with its own error.
pub(super) fn forms(inputs: &Inputs, environment: &Environment, has_rule: bool) -> Vec<Finding> {
    let is_certain =
        |error: &ConfigError, name: &str| matches!(error, ConfigError::Value { name: it, .. } if *it == name);
    let refused = wifshare::resolve_for(wifshare::Purpose::IdentityToken, inputs, environment).err();
    let mut findings = Vec::new();
    for (what, flag, variable, default) in VALUES {
        let Some(value) = flag_of(inputs, flag).or_else(|| environment.text(variable)) else { continue };
        if refused.as_ref().is_some_and(|error| is_certain(error, variable)) {
            continue;
        }
        if let Some(bad) = wifshare::complaint(variable, value) {
            findings.push(Finding::failed("configuration", format!("{variable} {}", bad.what), Some(bad.cure)));
        } else if what == "audience" && Some(value) != default && !has_rule && !value.starts_with("api://") {
            findings.push(Finding::warning(
                "configuration",
                format!("the audience is {}, and rules usually want {}", shown(value), default.unwrap_or_default()),
                format!("unset {variable}, unless the rule in the Claude Console names this audience"),
            ));
        }
    }
    findings
}

/// Warns of variables that are set but blank.
pub(super) fn blanks(environment: &Environment) -> Vec<Finding> {
    const NAMES: [&str; 12] = [
        "ANTHROPIC_FEDERATION_RULE_ID",
        "ANTHROPIC_ORGANIZATION_ID",
        "ANTHROPIC_SERVICE_ACCOUNT_ID",
        "ANTHROPIC_WORKSPACE_ID",
        "ANTHROPIC_OIDC_AUDIENCE",
        "ANTHROPIC_BASE_URL",
        "ANTHROPIC_IDENTITY_TOKEN",
        "ANTHROPIC_IDENTITY_TOKEN_FILE",
        "ANTHROPIC_CONFIG_DIR",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
        "CLAUDE_CODE_OAUTH_TOKEN",
    ];
    let blank: Vec<&str> = NAMES.into_iter().filter(|name| environment.is_blank(name)).collect();
    if blank.is_empty() {
        return Vec::new();
    }
    vec![Finding::warning(
        "blank variables",
        format!(
            "{} {} blank, and blank counts as unset",
            blank.join(", "),
            if blank.len() == 1 { "is" } else { "are" }
        ),
        "an expression such as `vars.NAME` or `secrets.NAME` that names nothing sets a blank one; define it, or remove \
         the line",
    )]
}

/// Finds credentials that clients prefer to federation, from any source (docs/reference/protocol.md §3.2).
pub(super) fn shadows(existing_auth: ExistingAuth, environment: &Environment) -> Vec<Finding> {
    const CLOUDS: [&str; 3] = ["CLAUDE_CODE_USE_BEDROCK", "CLAUDE_CODE_USE_VERTEX", "CLAUDE_CODE_USE_FOUNDRY"];
    let mut findings = Vec::new();
    match existing_auth {
        ExistingAuth::Shadowed(name) => findings.push(Finding::warning(
            "shadow",
            format!("{name} is set, and every client prefers it to federation: `exec` exchanges nothing"),
            format!("unset {name} in this job"),
        )),
        ExistingAuth::OwnProfile(name) => findings.push(Finding::warning(
            "shadow",
            format!("{name} is set: that profile is left as it is, and only an identity token file is provided"),
            format!("unset {name} if wifshare shall share one credential; leave it if the profile is meant"),
        )),
        ExistingAuth::UnnamedProfile => findings.push(Finding::warning(
            "shadow",
            "ANTHROPIC_CONFIG_DIR is set without ANTHROPIC_PROFILE, beside the federation variables: `exec` delivers the \
             shared credential; without wifshare, claude and SDKs since October 2026 (Python 2.0.0, TypeScript 1.0.0) \
             federate, and older SDKs use the active profile of that directory",
            "unset ANTHROPIC_CONFIG_DIR, or set ANTHROPIC_PROFILE if a profile of that directory is meant",
        )),
        ExistingAuth::None => {}
    }
    for name in CLOUDS.into_iter().filter(|name| environment.has(name)) {
        findings.push(Finding::warning(
            "shadow",
            format!("{name} is set, and claude goes to that cloud instead of the Claude API"),
            format!("unset {name} if claude shall use the shared credential"),
        ));
    }
    let headers = environment.text("ANTHROPIC_CUSTOM_HEADERS").unwrap_or_default().to_ascii_lowercase();
    if headers.lines().any(|line| ["authorization:", "x-api-key:"].iter().any(|name| line.trim().starts_with(name))) {
        findings.push(Finding::warning(
            "shadow",
            "ANTHROPIC_CUSTOM_HEADERS holds a credential of its own, which the SDKs send instead",
            "take that line out of ANTHROPIC_CUSTOM_HEADERS",
        ));
    }
    let home = environment.os("HOME").map(|home| Path::new(home).join(".claude"));
    let project = Some(Path::new(".claude").to_owned());
    for directory in [environment.os("CLAUDE_CONFIG_DIR").map(Into::into).or(home), project].into_iter().flatten() {
        for name in ["settings.json", "settings.local.json"] {
            let path = directory.join(name);
            if has_another_api_key_helper(&path) {
                findings.push(Finding::warning(
                    "shadow",
                    format!("{} names an apiKeyHelper, which claude prefers to a profile", path.display()),
                    "remove it, or have it be `wifshare token --format api-key-helper`",
                ));
            }
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok("shadow", "no API key or profile overrides this sign-in"));
    }
    findings
}

/// Reports why there is no configuration. It is a note and not a failure if the job signs in by other means.
pub(super) fn missing(error: ConfigError, environment: &Environment, existing_auth: ExistingAuth) -> Finding {
    let check = match error {
        ConfigError::NoSource { .. } | ConfigError::BrokenSource { .. } | ConfigError::UnknownSource { .. } => {
            "identity source"
        }
        ConfigError::Unconfigured
        | ConfigError::Incomplete { .. }
        | ConfigError::BaseUrl { .. }
        | ConfigError::Value { .. } => "configuration",
    };
    let failure = joined::unconfigured(error, environment);
    let evidence = format!("error[{}]: {}", failure.name, failure.message);
    match existing_auth {
        ExistingAuth::None | ExistingAuth::UnnamedProfile => Finding::failed(check, evidence, failure.hint),
        ExistingAuth::Shadowed(_) | ExistingAuth::OwnProfile(_) => Finding::note(check, evidence),
    }
}

/// The base URL in force, before it is validated.
pub(super) fn base_url(inputs: &Inputs, environment: &Environment) -> String {
    let flag = inputs.base_url.as_deref().map(str::trim).filter(|url| !url.is_empty());
    let url = flag.or_else(|| environment.text("ANTHROPIC_BASE_URL")).unwrap_or("https://api.anthropic.com");
    url.trim_end_matches('/').to_owned()
}

fn flag_of<'a>(inputs: &'a Inputs, flag: &str) -> Option<&'a str> {
    let value = match flag {
        "--federation-rule-id" => &inputs.federation_rule_id,
        "--organization-id" => &inputs.organization_id,
        "--service-account-id" => &inputs.service_account_id,
        "--workspace-id" => &inputs.workspace_id,
        "--audience" => &inputs.audience,
        _ => &inputs.base_url,
    };
    value.as_deref().map(str::trim).filter(|value| !value.is_empty())
}

/// Makes a value safe to print. The values are names and not secrets, but a secret may have been pasted by mistake.
fn shown(value: &str) -> String {
    match value.contains('@') {
        true => "…".to_owned(),
        false => wifshare::safe_text(value),
    }
}

/// Whether the settings name an `apiKeyHelper` that is not wifshare.
fn has_another_api_key_helper(path: &Path) -> bool {
    use std::io::Read;

    let mut text = String::new();
    let read = open_regular(path).and_then(|file| file.take(1 << 20).read_to_string(&mut text));
    let settings = read.ok().and_then(|_| serde_json::from_str::<serde_json::Value>(&text).ok());
    let command = settings.and_then(|settings| Some(settings.get("apiKeyHelper")?.as_str()?.to_owned()));
    command.is_some_and(|command| !command.contains("wifshare token"))
}
