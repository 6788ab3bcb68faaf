//! A run inside a run: how the outer one is found, and how what it delivered is known again.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::environment::Environment;
use crate::private_file;
use crate::secret::Secret;
use crate::store::{self, Store};

/// The variable by which a run names itself to its children: the path of its own directory.
pub const RUN_VARIABLE: &str = "WIFSHARE_RUN";

/// The variable that tells which `ANTHROPIC_AUTH_TOKEN` is a run's delivery and not somebody's own: its [`delivered`]
/// mark.
pub const DELIVERED_VARIABLE: &str = "WIFSHARE_DELIVERED";

/// The variables by which a child can mean another identity than the run's.
const IDENTITY: [&str; 5] = [
    "ANTHROPIC_FEDERATION_RULE_ID",
    "ANTHROPIC_ORGANIZATION_ID",
    "ANTHROPIC_SERVICE_ACCOUNT_ID",
    "ANTHROPIC_WORKSPACE_ID",
    "ANTHROPIC_BASE_URL",
];

/// Where a run writes down whose credential it shares.
pub(super) const INPUTS: &str = "identity.json";

/// What marks an access token as delivered: the SHA-256 of it, in hexadecimal. It tells nothing of the token.
pub fn delivered(access_token: &Secret) -> String {
    Sha256::digest(access_token.expose()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The store of the run that this process is inside of: one that the environment names, that lives, that shares a
/// credential, and whose identity is not contradicted by the environment.
pub fn enclosing(environment: &Environment) -> Option<Store> {
    let directory = Path::new(environment.os(RUN_VARIABLE)?);
    if !directory.is_absolute() || !store::is_alive(directory) {
        return None;
    }
    let inputs = private_file::read(&directory.join(INPUTS)).ok()??;
    let inputs: BTreeMap<String, String> = serde_json::from_slice(&inputs).ok()?;
    let agrees =
        |name: &str| environment.text(name).is_none_or(|said| inputs.get(name).is_some_and(|ours| ours == said));
    IDENTITY.iter().all(|name| agrees(name)).then(|| Store::of_run(directory))?
}
