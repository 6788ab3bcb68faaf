//! How the children of a run receive the credential: the files and variables of each delivery.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::credential::Credential;
use crate::environment::Environment;
use crate::secret::Secret;

mod handed_out;
mod profile_directory;

pub use handed_out::HandedOutToken;
#[cfg(any(test, fuzzing))]
pub(crate) use profile_directory::parse as parse_delivered;
pub use profile_directory::{ProfileDirectory, fingerprint};

/// A way to give the credential to children.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delivery {
    /// A static profile, whose credential file is replaced before it is stale. No child can spend an identity token.
    #[default]
    Profile,
    /// The layout of claude-code-action: a stored credential, and an unspent identity token for clients that make the
    /// exchange themselves.
    Federation,
    /// The access token in a variable. It does not change after the child has started.
    Environment,
    /// A base URL on this machine, and a capability that is worthless elsewhere. The credential stays in this process.
    Gateway,
}

impl Delivery {
    /// Whether this delivery gives a child less than the other. In ascending order: a capability, a token that is not
    /// renewed, a file that is renewed, and a file with an identity token.
    pub fn gives_less_than(self, other: Delivery) -> bool {
        let gives = |delivery| match delivery {
            Delivery::Gateway => 0,
            Delivery::Environment => 1,
            Delivery::Profile => 2,
            Delivery::Federation => 3,
        };
        gives(self) < gives(other)
    }

    /// All deliveries, the default first.
    pub const ALL: [Delivery; 4] = [Delivery::Profile, Delivery::Federation, Delivery::Environment, Delivery::Gateway];
}

/// The variables with an identity token, which a child could exchange itself. The variables to request one depend on
/// the platform, and are arguments.
const BUYS: [&str; 2] = ["ANTHROPIC_IDENTITY_TOKEN", "ANTHROPIC_IDENTITY_TOKEN_FILE"];

/// The variables that make a client use federation, or that complete a profile.
const FEDERATION: [&str; 6] = [
    "ANTHROPIC_FEDERATION_RULE_ID",
    "ANTHROPIC_ORGANIZATION_ID",
    "ANTHROPIC_SERVICE_ACCOUNT_ID",
    "ANTHROPIC_WORKSPACE_ID",
    "ANTHROPIC_OIDC_AUDIENCE",
    "ANTHROPIC_SCOPE",
];

/// The variables that clients prefer to a profile, even if they are blank: the Python SDK uses a blank key and then
/// fails to authenticate (docs/reference/protocol.md §3.3).
const PREFERRED: [&str; 3] = ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "CLAUDE_CODE_OAUTH_TOKEN"];

/// The variables that a delivery can remove, without those that request a token from a platform.
pub fn taken() -> impl Iterator<Item = &'static str> {
    BUYS.iter().chain(&FEDERATION).chain(&PREFERRED).copied()
}

/// Removes the variables with which a child could make an exchange, except those in `keep`. `asks` are the variables
/// that request identity tokens from a platform.
pub fn remove_token_variables(environment: &mut Environment, keep: &[String], asks: &[&str]) {
    for name in BUYS.iter().chain(asks).filter(|name| !keep.iter().any(|kept| kept == *name)) {
        environment.remove(name);
    }
}

/// What a delivery adds to the environment of a child.
#[derive(Clone, Copy, Debug)]
pub enum Handout<'a> {
    /// `ANTHROPIC_CONFIG_DIR` and `ANTHROPIC_PROFILE`, for a static profile.
    Profile(&'a ProfileDirectory),
    /// The same for a federation profile, the file with an unspent identity token if there is one, and the federation
    /// variables.
    Federation {
        /// The profile with the stored credential.
        profile: &'a ProfileDirectory,
        /// The file with an unspent identity token. Without one, the operator's own variables stay.
        identity_token_file: Option<&'a Path>,
        /// The federation variables and their values.
        variables: &'a [(&'static str, String)],
    },
    /// `ANTHROPIC_AUTH_TOKEN`.
    Environment(&'a Credential),
    /// `ANTHROPIC_BASE_URL` and `ANTHROPIC_AUTH_TOKEN`, of a gateway.
    Gateway {
        /// The gateway's base URL.
        base_url: &'a str,
        /// The gateway's capability.
        capability: &'a Secret,
        /// Whether to set `ANTHROPIC_API_KEY` to the capability too, for clients that read only that.
        api_key: bool,
    },
    /// Only the file with an unspent identity token, for the operator's own profile.
    IdentityToken(&'a Path),
}

/// The environment for a child: that of its parent, without the variables for exchanges, and with what the delivery
/// adds. `asks` are the variables that request identity tokens from a platform. Variables in `keep` are not removed.
pub fn environment(handout: Handout<'_>, parent: &Environment, keep: &[String], asks: &[String]) -> Environment {
    let mut child = parent.clone();
    let asks: Vec<&str> = asks.iter().map(String::as_str).collect();
    let mut remove = |names: &[&str]| {
        for name in names.iter().filter(|name| !keep.iter().any(|kept| kept == *name)) {
            child.remove(name);
        }
    };
    remove(&asks);
    match handout {
        Handout::Profile(_) | Handout::Environment(_) | Handout::Gateway { .. } => {
            remove(&BUYS);
            remove(&FEDERATION);
            remove(&PREFERRED);
        }
        Handout::Federation { identity_token_file: Some(_), .. } => {
            remove(&BUYS);
            remove(&PREFERRED);
        }
        // Keep the operator's identity token, because there is no other one.
        Handout::Federation { identity_token_file: None, .. } => {
            remove(&PREFERRED);
        }
        Handout::IdentityToken(_) => remove(&BUYS),
    }
    // wifshare treats a blank variable as unset, but some clients use it as a value.
    for name in BUYS.iter().chain(&asks).chain(&FEDERATION).filter(|name| parent.is_blank(name)) {
        child.remove(name);
    }
    match handout {
        Handout::Profile(profile) => profile.select(&mut child),
        Handout::Environment(credential) => {
            child.set("ANTHROPIC_AUTH_TOKEN", credential.access_token.expose());
        }
        Handout::Gateway { base_url, capability, api_key } => {
            child.set("ANTHROPIC_BASE_URL", base_url);
            child.set("ANTHROPIC_AUTH_TOKEN", capability.expose());
            if api_key {
                child.set("ANTHROPIC_API_KEY", capability.expose());
            }
            bypass_proxy_for_loopback(&mut child);
        }
        Handout::Federation { profile, identity_token_file, variables } => {
            for (name, value) in variables {
                child.set(*name, value);
            }
            if let Some(path) = identity_token_file {
                child.set("ANTHROPIC_IDENTITY_TOKEN_FILE", path);
            }
            profile.select(&mut child);
        }
        Handout::IdentityToken(path) => child.set("ANTHROPIC_IDENTITY_TOKEN_FILE", path),
    }
    child
}

/// Excludes loopback from the proxy, because clients use a configured proxy for this machine too.
fn bypass_proxy_for_loopback(child: &mut Environment) {
    const PROXIES: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
    if !PROXIES.iter().any(|name| child.has(name)) {
        return;
    }
    let both = ["NO_PROXY", "no_proxy"];
    let before = both.iter().find_map(|name| child.text(name)).map(str::to_owned);
    let spared = before.map_or_else(|| LOOPBACK.to_owned(), |before| format!("{before},{LOOPBACK}"));
    for name in both {
        child.set(name, &spared);
    }
}

const LOOPBACK: &str = "127.0.0.1";

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Delivery::Profile => "profile",
            Delivery::Federation => "federation",
            Delivery::Environment => "environment",
            Delivery::Gateway => "gateway",
        })
    }
}

/// The name is not that of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a delivery; there are profile, federation, environment and gateway")]
pub struct UnknownDelivery;

impl FromStr for Delivery {
    type Err = UnknownDelivery;

    fn from_str(name: &str) -> Result<Self, UnknownDelivery> {
        Delivery::ALL.into_iter().find(|delivery| delivery.to_string() == name).ok_or(UnknownDelivery)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::from_epoch_seconds;
    use crate::secret::Secret;

    const ASKS: [&str; 2] = ["ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"];

    fn environment(handout: Handout<'_>, parent: &Environment, keep: &[String]) -> Environment {
        super::environment(handout, parent, keep, &ASKS.map(str::to_owned))
    }

    fn parent() -> Environment {
        let everything = BUYS.iter().chain(&ASKS).chain(&FEDERATION).chain(&PREFERRED).map(|name| (*name, "x"));
        everything.chain([("PATH", "/bin"), ("ANTHROPIC_BASE_URL", "https://api.example")]).collect()
    }

    fn names(environment: &Environment) -> Vec<String> {
        environment.iter().map(|(name, _)| name.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn profile_child_environment_has_no_sign_in_variables() {
        let profile = ProfileDirectory::fixed("/run/p".into());
        let child = environment(Handout::Profile(&profile), &parent(), &[]);
        assert_eq!(names(&child), ["ANTHROPIC_BASE_URL", "ANTHROPIC_CONFIG_DIR", "ANTHROPIC_PROFILE", "PATH"]);
    }

    #[test]
    fn environment_child_has_only_the_token() {
        let now = from_epoch_seconds(0);
        let access_token = Secret::new("t".to_owned());
        let credential = Credential { access_token, expires_at: now, obtained_at: now, generation: 1 };
        let child = environment(Handout::Environment(&credential), &parent(), &[]);
        assert_eq!(names(&child), ["ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "PATH"]);
        assert_eq!(child.text("ANTHROPIC_AUTH_TOKEN"), Some("t"));
    }

    #[test]
    fn gateway_child_has_only_an_address_and_a_capability() {
        let capability = Secret::new("c".to_owned());
        let handout = Handout::Gateway { base_url: "http://127.0.0.1:9", capability: &capability, api_key: false };
        let child = environment(handout, &parent(), &[]);
        assert_eq!(names(&child), ["ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "PATH"]);
        assert_eq!(child.text("ANTHROPIC_BASE_URL"), Some("http://127.0.0.1:9"));
        assert_eq!(child.text("ANTHROPIC_AUTH_TOKEN"), Some("c"));
        let handout = Handout::Gateway { base_url: "http://127.0.0.1:9", capability: &capability, api_key: true };
        let child = environment(handout, &parent(), &[]);
        assert_eq!(names(&child), ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "PATH"]);
        assert_eq!(child.text("ANTHROPIC_API_KEY"), Some("c"));
    }

    #[test]
    fn gateway_address_is_added_to_no_proxy() {
        let capability = Secret::new("c".to_owned());
        let handout = Handout::Gateway { base_url: "http://127.0.0.1:9", capability: &capability, api_key: false };
        let proxied = |more: &[(&str, &str)]| {
            let parent = [("HTTP_PROXY", "http://proxy")].iter().chain(more).copied().collect();
            environment(handout, &parent, &[]).text("NO_PROXY").map(str::to_owned)
        };
        assert_eq!(proxied(&[]).as_deref(), Some("127.0.0.1"));
        assert_eq!(proxied(&[("no_proxy", "a,b")]).as_deref(), Some("a,b,127.0.0.1"));
        assert!(!environment(handout, &parent(), &[]).has("NO_PROXY"));
    }

    #[test]
    fn federation_child_keeps_the_ids_and_loses_the_request_token() {
        let profile = ProfileDirectory::federation("/run/p".into());
        let handout = Handout::Federation {
            profile: &profile,
            identity_token_file: Some(Path::new("/run/t")),
            variables: &[("ANTHROPIC_FEDERATION_RULE_ID", "fdrl_flag".to_owned())],
        };
        let child = environment(handout, &parent(), &[]);
        assert_eq!(child.text("ANTHROPIC_FEDERATION_RULE_ID"), Some("fdrl_flag"));
        assert_eq!(child.text("ANTHROPIC_ORGANIZATION_ID"), Some("x"));
        assert_eq!(child.text("ANTHROPIC_IDENTITY_TOKEN_FILE"), Some("/run/t"));
        assert!(!child.has("ANTHROPIC_IDENTITY_TOKEN"));
        assert!(!child.has("ACTIONS_ID_TOKEN_REQUEST_TOKEN"));
        assert!(!child.has("ANTHROPIC_API_KEY"));
    }

    #[test]
    fn existing_profile_changes_only_the_identity_token_file() {
        let child = environment(Handout::IdentityToken(Path::new("/run/t")), &parent(), &[]);
        assert_eq!(child.text("ANTHROPIC_IDENTITY_TOKEN_FILE"), Some("/run/t"));
        assert!(child.has("ANTHROPIC_API_KEY") && child.has("ANTHROPIC_FEDERATION_RULE_ID"));
        assert!(!child.has("ACTIONS_ID_TOKEN_REQUEST_URL"));
    }

    #[test]
    fn keep_env_keeps_a_variable() {
        let profile = ProfileDirectory::fixed("/run/p".into());
        let keep = ["ANTHROPIC_WORKSPACE_ID".to_owned()];
        let child = environment(Handout::Profile(&profile), &parent(), &keep);
        assert!(child.has("ANTHROPIC_WORKSPACE_ID"));
    }

    #[test]
    fn delivery_parses_from_its_name() {
        for delivery in Delivery::ALL {
            assert_eq!(delivery.to_string().parse(), Ok(delivery));
        }
        assert_eq!("Profile".parse::<Delivery>(), Err(UnknownDelivery));
    }
}
