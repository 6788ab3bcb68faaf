//! The record that `start` leaves for later steps in a variable. `stop` undoes the changes with it, and a command that
//! runs after the keeper has ended signs in with it. It contains ids and paths, and no secrets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use wifshare::{DEFAULT_BASE_URL, Environment, Keeper, RUN_VARIABLE};

use crate::arguments::{EXPECT_SUBJECT, IdentityArguments};
use crate::clock::clock;

/// The variable with the record.
pub(crate) const VARIABLE: &str = "WIFSHARE_STARTED";

/// Variables whose values may be recorded: ids, addresses and paths. All others may contain secrets.
const NOT_SECRET: [&str; 13] = [
    "ANTHROPIC_FEDERATION_RULE_ID",
    "ANTHROPIC_ORGANIZATION_ID",
    "ANTHROPIC_SERVICE_ACCOUNT_ID",
    "ANTHROPIC_WORKSPACE_ID",
    "ANTHROPIC_OIDC_AUDIENCE",
    "ANTHROPIC_SCOPE",
    "ANTHROPIC_BASE_URL",
    "ANTHROPIC_IDENTITY_TOKEN_FILE",
    EXPECT_SUBJECT,
    "ANTHROPIC_CONFIG_DIR",
    "ANTHROPIC_PROFILE",
    "NO_PROXY",
    "no_proxy",
];

/// What `start` found and changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Started {
    /// The user who started the keeper.
    pub(crate) user: u32,
    /// Start time, in seconds since the epoch.
    pub(crate) at: u64,
    /// The signed-in identity, for a later `start` whose environment names none.
    pub(crate) identity: BTreeMap<String, String>,
    /// The original values of variables that were set or removed; `None` if a variable was not set.
    pub(crate) before: BTreeMap<String, Option<String>>,
    /// Names of removed variables whose values may be secret. The values are not recorded.
    pub(crate) taken: Vec<String>,
    /// Runs of living keepers from earlier steps. `stop` ends them too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) beside: Vec<PathBuf>,
}

impl Started {
    /// Reads the record of an earlier step from this environment.
    pub(crate) fn in_environment(environment: &Environment) -> Option<Started> {
        serde_json::from_str(environment.text(VARIABLE)?).ok()
    }

    /// Creates the record for a keeper. `own` is the job's own environment, `gives` the variables that the keeper sets.
    pub(crate) fn of(keeper: &Keeper, identity: &IdentityArguments, gives: &Environment, own: &Environment) -> Started {
        let text = |name: &str| own.get(name).and_then(|value| value.to_str());
        let may_be_written =
            |name: &str| NOT_SECRET.contains(&name) || text(name).is_none_or(|value| value.trim().is_empty());
        let given = gives.iter().filter_map(|(name, _)| name.to_str());
        let taken = keeper.takes.iter().map(String::as_str).filter(|name| own.get(name).is_some());
        let changed: Vec<&str> = given.chain(taken).collect();
        let (before, secret): (Vec<&str>, Vec<&str>) = changed.into_iter().partition(|name| may_be_written(name));
        let before = before.into_iter().map(|name| (name.to_owned(), text(name).map(str::to_owned))).collect();
        let more = ["ANTHROPIC_OIDC_AUDIENCE", "ANTHROPIC_SCOPE", "ANTHROPIC_IDENTITY_TOKEN_FILE", EXPECT_SUBJECT];
        let more = more.iter().filter_map(|name| Some(((*name).to_owned(), own.text(name)?.to_owned())));
        let ids = keeper.identity.iter().map(|(name, value)| (name.clone(), value.clone()));
        let is_usual = |name: &str, value: &str| name == "ANTHROPIC_BASE_URL" && value == DEFAULT_BASE_URL;
        Started {
            user: user(),
            at: written_at(keeper).duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
            identity: more
                .chain(identity.not_shared().map(|(name, value)| (name.to_owned(), value)))
                .chain(ids)
                .filter(|(name, value)| !is_usual(name, value))
                .collect(),
            before,
            taken: secret.into_iter().map(str::to_owned).collect(),
            beside: Vec::new(),
        }
    }

    /// Adds the record of an earlier `start` in this environment, so that it is not lost.
    pub(crate) fn after(mut self, keeper: &Keeper, environment: &Environment) -> Started {
        let before = Started::in_environment(environment).unwrap_or_default();
        let around = environment.os(RUN_VARIABLE).map(|run| Path::new(run).to_owned());
        let is_another = |run: &PathBuf| *run != keeper.directory && Keeper::of_run(run).is_some();
        self.beside = before.beside.into_iter().chain(around).filter(is_another).collect();
        let is_new = |name: &String| !self.taken.contains(name) && !self.before.contains_key(name);
        let taken: Vec<String> = before.taken.into_iter().filter(is_new).collect();
        self.taken.extend(taken);
        self
    }

    /// Formats the record as one line, the value of its variable.
    pub(crate) fn as_text(&self) -> String {
        serde_json::to_string(self).expect("texts and numbers become JSON")
    }

    /// When the keeper was started.
    pub(crate) fn since(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.at)
    }

    /// Restores the job's own values. A value that was set since then stays.
    pub(crate) fn restore(&self, environment: &mut Environment) {
        for (name, before) in &self.before {
            let is_left_by_start = !environment.has(name) || is_of_the_gateway(name, before.as_deref(), environment);
            match before {
                Some(before) if is_left_by_start => environment.set(name, before),
                None if is_left_by_start => environment.remove(name),
                Some(_) | None => {}
            }
        }
    }

    /// Adds the signed-in identity to an environment that names none.
    pub(crate) fn complete(&self, environment: &mut Environment) {
        // The check of the subject that `start` requested also applies after the keeper has ended.
        if let Some(expected) = self.identity.get(EXPECT_SUBJECT).filter(|_| !environment.has(EXPECT_SUBJECT)) {
            environment.set(EXPECT_SUBJECT, expected);
        }
        if environment.has("ANTHROPIC_FEDERATION_RULE_ID") || environment.has("ANTHROPIC_ORGANIZATION_ID") {
            return;
        }
        for (name, value) in &self.identity {
            if NOT_SECRET.contains(&name.as_str()) && !environment.has(name) {
                environment.set(name, value);
            }
        }
    }
}

/// When the keeper recorded its variables. This is close to its start, and the same for every process that joins it.
fn written_at(keeper: &Keeper) -> SystemTime {
    let written = std::fs::metadata(keeper.directory.join("keeper.json")).and_then(|metadata| metadata.modified());
    written.unwrap_or_else(|_| clock().now())
}

/// Whether this value is the list of hosts without a proxy that the gateway made from the original one.
fn is_of_the_gateway(name: &str, before: Option<&str>, environment: &Environment) -> bool {
    const OURS: &str = "127.0.0.1";
    let is_list = name.eq_ignore_ascii_case("NO_PROXY");
    let made = before.filter(|before| !before.trim().is_empty()).map(|before| format!("{},{OURS}", before.trim()));
    is_list && environment.text(name) == Some(made.as_deref().unwrap_or(OURS))
}

/// The id of the user that runs this process.
#[cfg(unix)]
pub(crate) fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Not tested: other systems have no numeric user ids.
#[cfg(not(unix))]
pub(crate) fn user() -> u32 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(before: &[(&str, Option<&str>)]) -> Started {
        let before = before.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect();
        Started { before, ..Started::default() }
    }

    #[test]
    fn restore_resets_variables_that_start_blanked_or_removed() {
        let started = started(&[("A", Some("own")), ("B", Some("own")), ("C", None), ("D", Some("own"))]);
        let mut environment = Environment::from_iter([("A", ""), ("C", " "), ("D", "of a later step")]);
        started.restore(&mut environment);
        assert_eq!(environment, Environment::from_iter([("A", "own"), ("B", "own"), ("D", "of a later step")]));
    }

    #[test]
    fn restore_removes_the_gateway_from_no_proxy() {
        for (before, now, after) in [
            (Some("a,b"), "a,b,127.0.0.1", Some("a,b")),
            (None, "127.0.0.1", None),
            (Some("a"), "a,127.0.0.1,c", Some("a,127.0.0.1,c")),
        ] {
            let mut environment = Environment::from_iter([("NO_PROXY", now)]);
            started(&[("NO_PROXY", before)]).restore(&mut environment);
            assert_eq!(environment.text("NO_PROXY"), after, "{now}");
        }
    }

    #[test]
    fn identity_of_start_completes_an_environment_without_one() {
        let identity =
            [("ANTHROPIC_FEDERATION_RULE_ID", "fdrl_1"), ("ANTHROPIC_WORKSPACE_ID", "default"), ("PATH", "/x")];
        let identity = identity.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let started = Started { identity, ..Started::default() };
        let mut environment = Environment::from_iter([("PATH", "")]);
        started.complete(&mut environment);
        assert_eq!(environment.text("ANTHROPIC_FEDERATION_RULE_ID"), Some("fdrl_1"));
        assert_eq!((environment.text("ANTHROPIC_WORKSPACE_ID"), environment.text("PATH")), (Some("default"), None));
        let mut another = Environment::from_iter([("ANTHROPIC_FEDERATION_RULE_ID", "fdrl_2")]);
        started.complete(&mut another);
        assert!(!another.has("ANTHROPIC_WORKSPACE_ID"), "another identity is meant");
    }
}
