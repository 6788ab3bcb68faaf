//! Nested runs: how a process finds the run that it is in, and recognizes what that run delivered.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::delivery::Delivery;
use crate::environment::Environment;
use crate::hexadecimal::hexadecimal;
use crate::identity;
use crate::private_file;
use crate::secret::Secret;
use crate::store::{self, Store};

/// The variable that contains the path of the run's directory.
pub const RUN_VARIABLE: &str = "WIFSHARE_RUN";

/// The variable that marks `ANTHROPIC_AUTH_TOKEN` and `ANTHROPIC_API_KEY` as delivered by a run. It contains the
/// [`delivered`] mark of the token.
pub const DELIVERED_VARIABLE: &str = "WIFSHARE_DELIVERED";

/// The variable that contains the base URL of the run's gateway.
pub const GATEWAY_VARIABLE: &str = "WIFSHARE_GATEWAY";

/// The variable that contains the `ANTHROPIC_BASE_URL` from before the gateway replaced it.
pub const BASE_URL_VARIABLE: &str = "WIFSHARE_BASE_URL";

/// The variables that identify an identity. A run records them, and a child with other values means another identity.
pub const IDENTITY_VARIABLES: [&str; 5] = [
    "ANTHROPIC_FEDERATION_RULE_ID",
    "ANTHROPIC_ORGANIZATION_ID",
    "ANTHROPIC_SERVICE_ACCOUNT_ID",
    "ANTHROPIC_WORKSPACE_ID",
    "ANTHROPIC_BASE_URL",
];

/// The file in which a run records its identity.
pub(super) const INPUTS: &str = "identity.json";

/// The key in that file for the gateway's base URL.
pub(super) const GATEWAY: &str = "gateway";

/// The key in that file for the delivery.
pub(super) const DELIVERY: &str = "delivery";

/// How the outer run shares its credential.
#[derive(Clone, Debug)]
pub enum Enclosing {
    /// In a store.
    Store {
        /// The store.
        store: Store,
        /// The directory of the run.
        run: PathBuf,
    },
    /// Through a gateway.
    Gateway {
        /// The capability that its children received.
        capability: Secret,
        /// The directory of the run's identity key.
        directory: PathBuf,
    },
}

impl Enclosing {
    /// The directory of the run's identity key.
    pub fn directory(&self) -> &Path {
        match self {
            Enclosing::Store { store, .. } => store.directory(),
            Enclosing::Gateway { directory, .. } => directory,
        }
    }
}

/// The mark of a delivered access token: its SHA-256 in hexadecimal, which does not reveal the token.
pub fn delivered(access_token: &Secret) -> String {
    hexadecimal(&Sha256::digest(access_token.expose()))
}

/// The variables in which a run delivers an access token or a capability.
pub const DELIVERED_TOKENS: [&str; 2] = ["ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY"];

/// The value of this variable, if the outer run delivered it. `None` if it is a credential of the job's own.
pub fn delivered_token(environment: &Environment, name: &str) -> Option<Secret> {
    let token = Secret::new(environment.text(name)?.to_owned());
    (environment.text(DELIVERED_VARIABLE)? == delivered(&token)).then_some(token)
}

/// Whether a base URL is that of this gateway, with or without the `/v1` that some clients require.
pub fn is_gateway(gateway: &str, base_url: &str) -> bool {
    let base_url = base_url.strip_suffix('/').unwrap_or(base_url);
    base_url.strip_suffix("/v1").unwrap_or(base_url) == gateway
}

/// The run that this process is in: the environment names it, it is alive, it shares a credential, and the environment
/// does not contradict its identity.
pub fn enclosing(environment: &Environment) -> Option<Enclosing> {
    let directory = Path::new(environment.os(RUN_VARIABLE)?);
    if !directory.is_absolute() || !store::is_alive(directory) {
        return None;
    }
    let inputs = read_inputs(directory)?;
    let gateway = inputs.get(GATEWAY);
    let agrees = |name: &str| {
        let is_ours = |said: &str| inputs.get(name).is_some_and(|ours| ours == said);
        let is_the_gateway =
            |said: &str| name == "ANTHROPIC_BASE_URL" && gateway.is_some_and(|ours| is_gateway(ours, said));
        environment.text(name).is_none_or(|said| is_ours(said) || is_the_gateway(said))
    };
    // A container may lack the job's ids. Different ids mean another job.
    let is_same_job = |(name, said): &(&str, String)| inputs.get(*name).is_none_or(|ours| ours == said);
    if !IDENTITY_VARIABLES.iter().all(|name| agrees(name)) || !identity::job(environment).ids.iter().all(is_same_job) {
        return None;
    }
    match gateway {
        Some(_) => {
            let directory = directory.parent()?.parent()?.to_owned();
            // A command in between may have passed on only one of the two.
            let capability = DELIVERED_TOKENS.iter().find_map(|name| delivered_token(environment, name))?;
            Some(Enclosing::Gateway { capability, directory })
        }
        None => Store::of_run(directory).map(|store| Enclosing::Store { store, run: directory.to_owned() }),
    }
}

/// The delivery of the run that the environment names; `None` if it does not deliver a credential.
pub fn delivery_around(environment: &Environment) -> Option<Delivery> {
    delivery_of(Path::new(environment.os(RUN_VARIABLE)?))
}

/// The delivery of the run with this directory.
pub(super) fn delivery_of(run: &Path) -> Option<Delivery> {
    read_inputs(run)?.get(DELIVERY)?.parse().ok()
}

/// The identity that the run with this directory recorded.
pub(super) fn read_inputs(directory: &Path) -> Option<BTreeMap<String, String>> {
    parse(&private_file::read(&directory.join(INPUTS)).ok()??)
}

/// Parses the recorded identity, by variable.
pub(crate) fn parse(inputs: &[u8]) -> Option<BTreeMap<String, String>> {
    serde_json::from_slice(inputs).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::{Clock, epoch_seconds, from_epoch_seconds};
    use crate::credential::Credential;
    use crate::store::{Location, OnLastRun};

    #[test]
    fn living_run_is_joined_by_the_same_identity() {
        let holder = tempfile::tempdir().unwrap();
        let (root, key) = (holder.path().join("state"), "0123456789abcdef0123456789abcdef".to_owned());
        let store = Store::at(&Location { root, key, source: "a test".to_owned(), remintable: true });
        let lease = store.lease(Clock::system(), &|_| {}).unwrap();
        let inputs =
            br#"{"ANTHROPIC_FEDERATION_RULE_ID":"fdrl_1","ANTHROPIC_BASE_URL":"https://a","BUILDKITE_JOB_ID":"1"}"#;
        private_file::replace(lease.directory(), INPUTS, inputs, &|_| {}).unwrap();
        let directory = lease.directory().to_owned();
        let joins = |variables: &[(&str, &str)]| {
            let mut environment: Environment = variables.iter().copied().collect();
            environment.set(RUN_VARIABLE, &directory);
            enclosing(&environment).map(|around| around.directory().to_owned())
        };
        assert_eq!(joins(&[]), None, "it shares nothing yet");
        let obtained_at = from_epoch_seconds(epoch_seconds(Clock::system().now()));
        let expires_at = obtained_at + Duration::from_secs(600);
        let access_token = Secret::new("t".to_owned());
        let credential = Credential { access_token, expires_at, obtained_at, generation: 0 };
        store.lock(Duration::ZERO, Clock::system(), &|_| {}).unwrap().keep(credential);
        let ours = Some(store.directory().to_owned());
        for (variables, joined) in [
            (&[][..], &ours),
            (&[("ANTHROPIC_FEDERATION_RULE_ID", "fdrl_1")], &ours),
            (&[("ANTHROPIC_WORKSPACE_ID", " ")], &ours),
            (&[("BUILDKITE_JOB_ID", "1")], &ours),
            (&[("CIRCLE_WORKFLOW_JOB_ID", "1")], &ours),
            (&[("BUILDKITE_JOB_ID", "2")], &None),
            (&[("ANTHROPIC_FEDERATION_RULE_ID", "fdrl_2")], &None),
            (&[("ANTHROPIC_BASE_URL", "https://b")], &None),
            (&[("ANTHROPIC_WORKSPACE_ID", "default")], &None),
        ] {
            assert_eq!(joins(variables), *joined, "{variables:?}");
        }
        assert!(enclosing(&Environment::default()).is_none());
        let inputs = br#"{"ANTHROPIC_BASE_URL":"https://a","gateway":"http://127.0.0.1:9"}"#;
        private_file::replace(&directory, INPUTS, inputs, &|_| {}).unwrap();
        let mark = delivered(&Secret::new("c".to_owned()));
        let credentials = [("ANTHROPIC_AUTH_TOKEN", "c"), (DELIVERED_VARIABLE, &mark)];
        for (more, joined) in [
            (None, &ours),
            (Some(("ANTHROPIC_BASE_URL", "http://127.0.0.1:9")), &ours),
            (Some(("ANTHROPIC_BASE_URL", "http://127.0.0.1:9/v1")), &ours),
            (Some(("ANTHROPIC_BASE_URL", "http://127.0.0.1:9/v1/")), &ours),
            (Some(("ANTHROPIC_BASE_URL", "http://127.0.0.1:9/v2")), &None),
            (Some(("ANTHROPIC_BASE_URL", "http://127.0.0.1:8")), &None),
            (Some(("ANTHROPIC_AUTH_TOKEN", "somebody's own")), &None),
        ] {
            assert_eq!(joins(&credentials.into_iter().chain(more).collect::<Vec<_>>()), *joined, "{more:?}");
        }
        assert_eq!(joins(&[("ANTHROPIC_API_KEY", "c"), (DELIVERED_VARIABLE, &mark)]), ours, "as an API key alone");
        lease.end(|| OnLastRun::Keep).unwrap();
        assert_eq!(joins(&[]), None, "it is over");
    }

    #[test]
    fn delivered_mark_is_the_hash_of_the_token() {
        let mark = delivered(&Secret::new("abc".to_owned()));
        assert_eq!(mark, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
