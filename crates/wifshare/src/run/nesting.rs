//! A run inside a run: how the outer one is found, and how what it delivered is known again.

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

/// The variable by which a run names itself to its children: the path of its own directory.
pub const RUN_VARIABLE: &str = "WIFSHARE_RUN";

/// The variable that marks which `ANTHROPIC_AUTH_TOKEN` and `ANTHROPIC_API_KEY` a run delivered: it holds the
/// [`delivered`] mark of the token.
pub const DELIVERED_VARIABLE: &str = "WIFSHARE_DELIVERED";

/// The variable that tells which `ANTHROPIC_BASE_URL` is a run's gateway.
pub const GATEWAY_VARIABLE: &str = "WIFSHARE_GATEWAY";

/// The variable that tells what `ANTHROPIC_BASE_URL` was before the gateway took its place.
pub const BASE_URL_VARIABLE: &str = "WIFSHARE_BASE_URL";

/// The variables that name an identity: as a run writes them down, and by which a child can mean another one.
pub const IDENTITY_VARIABLES: [&str; 5] = [
    "ANTHROPIC_FEDERATION_RULE_ID",
    "ANTHROPIC_ORGANIZATION_ID",
    "ANTHROPIC_SERVICE_ACCOUNT_ID",
    "ANTHROPIC_WORKSPACE_ID",
    "ANTHROPIC_BASE_URL",
];

/// Where a run writes down whose credential it shares.
pub(super) const INPUTS: &str = "identity.json";

/// Beside it: where its gateway listens, if it has one.
pub(super) const GATEWAY: &str = "gateway";

/// And what it gives to its children.
pub(super) const DELIVERY: &str = "delivery";

/// How a run around us shares its credential.
#[derive(Clone, Debug)]
pub enum Enclosing {
    /// By a file in a store.
    Store {
        /// The store.
        store: Store,
        /// The directory of the run.
        run: PathBuf,
    },
    /// By a gateway, to whoever shows this capability.
    Gateway {
        /// What its children were given.
        capability: Secret,
        /// The directory of its identity key.
        directory: PathBuf,
    },
}

impl Enclosing {
    /// The directory of its identity key.
    pub fn directory(&self) -> &Path {
        match self {
            Enclosing::Store { store, .. } => store.directory(),
            Enclosing::Gateway { directory, .. } => directory,
        }
    }
}

/// What marks an access token as delivered: the SHA-256 of it, in hexadecimal. It tells nothing of the token.
pub fn delivered(access_token: &Secret) -> String {
    hexadecimal(&Sha256::digest(access_token.expose()))
}

/// The variables in which a run delivers an access token or a capability.
pub const DELIVERED_TOKENS: [&str; 2] = ["ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_API_KEY"];

/// The value of this variable, if it is what the run around us delivered and not a credential of the job's own.
pub fn delivered_token(environment: &Environment, name: &str) -> Option<Secret> {
    let token = Secret::new(environment.text(name)?.to_owned());
    (environment.text(DELIVERED_VARIABLE)? == delivered(&token)).then_some(token)
}

/// Whether a base URL is this gateway's: as it was given, or with the `/v1` that some clients want there.
pub fn is_gateway(gateway: &str, base_url: &str) -> bool {
    let base_url = base_url.strip_suffix('/').unwrap_or(base_url);
    base_url.strip_suffix("/v1").unwrap_or(base_url) == gateway
}

/// The run that this process is inside of: one that the environment names, that lives, that shares a credential, and
/// whose identity is not contradicted by the environment.
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
    // A container may not have the job's ids; who has others is another job.
    let is_same_job = |(name, said): &(&str, String)| inputs.get(*name).is_none_or(|ours| ours == said);
    if !IDENTITY_VARIABLES.iter().all(|name| agrees(name)) || !identity::job(environment).ids.iter().all(is_same_job) {
        return None;
    }
    match gateway {
        Some(_) => {
            let directory = directory.parent()?.parent()?.to_owned();
            // A command in between may have passed on one of the two alone.
            let capability = DELIVERED_TOKENS.iter().find_map(|name| delivered_token(environment, name))?;
            Some(Enclosing::Gateway { capability, directory })
        }
        None => Store::of_run(directory).map(|store| Enclosing::Store { store, run: directory.to_owned() }),
    }
}

/// What the run that the environment names gives to its children; `None` where that is not a delivery of the credential.
pub fn delivery_around(environment: &Environment) -> Option<Delivery> {
    delivery_of(Path::new(environment.os(RUN_VARIABLE)?))
}

/// What the run with this directory gives to its children.
pub(super) fn delivery_of(run: &Path) -> Option<Delivery> {
    read_inputs(run)?.get(DELIVERY)?.parse().ok()
}

/// What the run with this directory wrote down of itself.
pub(super) fn read_inputs(directory: &Path) -> Option<BTreeMap<String, String>> {
    parse(&private_file::read(&directory.join(INPUTS)).ok()??)
}

/// The identity that a run wrote down, by variable.
pub(crate) fn parse(inputs: &[u8]) -> Option<BTreeMap<String, String>> {
    serde_json::from_slice(inputs).ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::{Clock, epoch_seconds, from_epoch_seconds};
    use crate::credential::Credential;
    use crate::store::{Afterwards, Location};

    #[test]
    fn a_living_run_is_joined_by_whoever_means_the_same_identity() {
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
        lease.end(|| Afterwards::Keep).unwrap();
        assert_eq!(joins(&[]), None, "it is over");
    }

    #[test]
    fn a_mark_is_the_hash_of_the_token() {
        let mark = delivered(&Secret::new("abc".to_owned()));
        assert_eq!(mark, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
