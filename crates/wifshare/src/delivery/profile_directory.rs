//! A configuration directory as the official clients read it: one profile and its credential
//! (docs/reference/protocol.md §2).

use std::path::PathBuf;
use std::time::SystemTime;

use serde_json::json;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::clock::{epoch_seconds, from_epoch_seconds};
use crate::credential::{Credential, is_bearer_token};
use crate::environment::Environment;
use crate::hexadecimal::hexadecimal;
use crate::private_file::{self, PrivateFileError};
use crate::secret::Secret;
use crate::step::Watch;

/// A directory with `configs/<profile>.json` and `credentials/<profile>.json`.
#[derive(Clone, Debug)]
pub struct ProfileDirectory {
    path: PathBuf,
    kind: Kind,
}

/// What stands in a credential file at this moment, whoever wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InPlace {
    /// The access token.
    pub access_token: Secret,
    /// When it ends.
    pub expires_at: SystemTime,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// `user_oauth` without a client id: the clients take the credential as it is and re-read it, and never exchange.
    Fixed,
    /// `oidc_federation`: the clients take the credential in place while it is fresh, and would exchange by themselves
    /// after that. The profile says no more, as the published action's does; the variables fill the gaps.
    Federation,
}

impl Kind {
    /// A name that every client's own rule for profile names accepts.
    fn profile(self) -> &'static str {
        match self {
            Kind::Fixed => "wifshare",
            Kind::Federation => "default",
        }
    }

    fn file(self) -> &'static str {
        match self {
            Kind::Fixed => "wifshare.json",
            Kind::Federation => "default.json",
        }
    }
}

impl ProfileDirectory {
    /// A static profile at this place.
    pub fn fixed(path: PathBuf) -> Self {
        ProfileDirectory { path, kind: Kind::Fixed }
    }

    /// A federation profile at this place.
    pub fn federation(path: PathBuf) -> Self {
        ProfileDirectory { path, kind: Kind::Federation }
    }

    /// Writes the profile; `base_url` is where the credential is valid.
    pub fn create(&self, base_url: &str, watch: Watch<'_>) -> Result<(), PrivateFileError> {
        let profile = match self.kind {
            // No workspace: the token is bound to one already, and the header that it would cause is not for it.
            Kind::Fixed => {
                json!({ "version": "1.0", "authentication": { "type": "user_oauth" }, "base_url": base_url })
            }
            Kind::Federation => json!({ "version": "1.0", "authentication": { "type": "oidc_federation" } }),
        };
        let configs = self.path.join("configs");
        private_file::private_directory(&configs)?;
        private_file::private_directory(&self.credentials())?;
        private_file::replace_unsynced(&configs, self.kind.file(), &pretty(&profile), watch)
    }

    /// Puts this credential in place of the one before. The end is always written: without it the SDKs would keep the
    /// token for the life of their process.
    pub fn publish(&self, credential: &Credential, watch: Watch<'_>) -> Result<(), PrivateFileError> {
        let text = pretty(&json!({
            "version": "1.0",
            "type": "oauth_token",
            "access_token": credential.access_token.expose(),
            "expires_at": epoch_seconds(credential.expires_at),
        }));
        private_file::replace_unsynced(&self.credentials(), self.kind.file(), &text, watch)
    }

    /// What stands in place now; a child of a federation profile may have replaced it. `None` where it cannot be read.
    pub fn in_place(&self) -> Option<InPlace> {
        parse(&private_file::read(&self.credentials().join(self.kind.file())).ok()??)
    }

    /// Points a client at this profile, by name: that ranks above a login of the user's own.
    pub fn select(&self, environment: &mut Environment) {
        environment.set("ANTHROPIC_CONFIG_DIR", &self.path);
        environment.set("ANTHROPIC_PROFILE", self.kind.profile());
    }

    /// Where the credential lies.
    pub fn credentials(&self) -> PathBuf {
        self.path.join("credentials")
    }
}

/// A credential file, whoever wrote it. A token that could not stand in a header is none.
pub(crate) fn parse(bytes: &[u8]) -> Option<InPlace> {
    #[derive(serde::Deserialize)]
    struct Read {
        access_token: String,
        expires_at: u64,
    }
    let Read { access_token, expires_at } = serde_json::from_slice(bytes).ok()?;
    let access_token = Secret::new(access_token);
    is_bearer_token(access_token.expose()).then(|| InPlace { access_token, expires_at: from_epoch_seconds(expires_at) })
}

/// The published action's name for a directory of these inputs: the first 16 hexadecimal digits of the SHA-256 of
/// their JSON (docs/reference/protocol.md §4.2). Another input is another directory, so that no client finds a
/// credential that was issued for something else.
pub fn fingerprint(inputs: [Option<&str>; 6]) -> String {
    let hash = Sha256::digest(json!(inputs).to_string());
    format!("config-{}", hexadecimal(&hash[..8]))
}

fn pretty(value: &serde_json::Value) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(32 * 1024));
    serde_json::to_writer_pretty(&mut *bytes, value).expect("a value becomes JSON");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_in_place() {
        let holder = tempfile::tempdir().expect("a directory");
        let profile = ProfileDirectory::fixed(holder.path().join("p"));
        profile.create("https://api.example", &|_| {}).expect("created");
        assert_eq!(profile.in_place(), None);
        let obtained_at = from_epoch_seconds(1000);
        let access_token = Secret::new("t".to_owned());
        let expires_at = from_epoch_seconds(1600);
        let credential = Credential { access_token: access_token.clone(), expires_at, obtained_at, generation: 1 };
        profile.publish(&credential, &|_| {}).expect("published");
        assert_eq!(profile.in_place(), Some(InPlace { access_token, expires_at }));
    }

    #[test]
    fn a_fingerprint_tells_absent_from_empty_and_every_input_from_the_others() {
        let plain = fingerprint([Some("fdrl_1"), Some("org"), None, None, None, None]);
        assert_eq!(plain.len(), "config-".len() + 16);
        assert_eq!(plain, "config-".to_owned() + &hex_of(r#"["fdrl_1","org",null,null,null,null]"#));
        assert_ne!(plain, fingerprint([Some("fdrl_1"), Some("org"), Some(""), None, None, None]));
        assert_ne!(plain, fingerprint([Some("fdrl_1"), None, Some("org"), None, None, None]));
    }

    fn hex_of(text: &str) -> String {
        hexadecimal(&Sha256::digest(text)[..8])
    }

    #[test]
    fn each_kind_of_profile_has_the_name_that_its_clients_are_told() {
        let holder = tempfile::tempdir().expect("a directory");
        let moment = from_epoch_seconds(1000);
        let access_token = Secret::new("t".to_owned());
        let credential = Credential { access_token, expires_at: moment, obtained_at: moment, generation: 1 };
        let (fixed, federation) = (holder.path().join("f"), holder.path().join("g"));
        for (profile, name) in
            [(ProfileDirectory::fixed(fixed), "wifshare"), (ProfileDirectory::federation(federation), "default")]
        {
            profile.create("https://api.example", &|_| {}).expect("created");
            profile.publish(&credential, &|_| {}).expect("published");
            for directory in ["configs", "credentials"] {
                assert!(profile.path.join(directory).join(format!("{name}.json")).is_file(), "{directory} of {name}");
            }
            let mut environment = Environment::default();
            profile.select(&mut environment);
            assert_eq!(environment.text("ANTHROPIC_PROFILE"), Some(name));
            assert_eq!(environment.os("ANTHROPIC_CONFIG_DIR"), Some(profile.path.as_os_str()));
        }
    }
}
