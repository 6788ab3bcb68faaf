//! A configuration directory in the format of the official clients: one profile and its credential
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
use crate::progress::Observer;
use crate::secret::Secret;

/// A directory with `configs/<profile>.json` and `credentials/<profile>.json`.
#[derive(Clone, Debug)]
pub struct ProfileDirectory {
    path: PathBuf,
    kind: Kind,
}

/// The current content of a credential file. A client may have written it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InPlace {
    /// The access token.
    pub access_token: Secret,
    /// When the access token expires.
    pub expires_at: SystemTime,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// `user_oauth` without a client id: the clients use the credential, read it again, and never make
    /// an exchange.
    Fixed,
    /// `oidc_federation`: the clients use the stored credential while it is fresh, and make an exchange themselves
    /// afterwards. The profile contains nothing else, as that of the published action, and variables complete it.
    Federation,
}

impl Kind {
    /// A profile name that every client accepts.
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
    /// A static profile in this directory.
    pub fn fixed(path: PathBuf) -> Self {
        ProfileDirectory { path, kind: Kind::Fixed }
    }

    /// A federation profile in this directory.
    pub fn federation(path: PathBuf) -> Self {
        ProfileDirectory { path, kind: Kind::Federation }
    }

    /// Writes the profile. `base_url` is the API for which the credential is valid.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn create(&self, base_url: &str, observer: Observer<'_>) -> Result<(), PrivateFileError> {
        let profile = match self.kind {
            // No workspace: the token is bound to one already, and the header for it would be wrong.
            Kind::Fixed => {
                json!({ "version": "1.0", "authentication": { "type": "user_oauth" }, "base_url": base_url })
            }
            Kind::Federation => json!({ "version": "1.0", "authentication": { "type": "oidc_federation" } }),
        };
        let configs = self.path.join("configs");
        private_file::private_directory(&configs)?;
        private_file::private_directory(&self.credentials())?;
        private_file::replace_unsynced(&configs, self.kind.file(), &pretty(&profile), observer)
    }

    /// Replaces the credential. It always contains an expiry: without one, the SDKs would use the token until their
    /// process ends.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn publish(&self, credential: &Credential, observer: Observer<'_>) -> Result<(), PrivateFileError> {
        let text = pretty(&json!({
            "version": "1.0",
            "type": "oauth_token",
            "access_token": credential.access_token.expose(),
            "expires_at": epoch_seconds(credential.expires_at),
        }));
        private_file::replace_unsynced(&self.credentials(), self.kind.file(), &text, observer)
    }

    /// The current credential. A child of a federation profile may have replaced it. `None` if it cannot be read.
    pub fn in_place(&self) -> Option<InPlace> {
        parse(&private_file::read(&self.credentials().join(self.kind.file())).ok()??)
    }

    /// Selects this profile by name, which has precedence over a login of the user.
    pub fn select(&self, environment: &mut Environment) {
        environment.set("ANTHROPIC_CONFIG_DIR", &self.path);
        environment.set("ANTHROPIC_PROFILE", self.kind.profile());
    }

    /// The directory of the credential file.
    pub fn credentials(&self) -> PathBuf {
        self.path.join("credentials")
    }
}

/// Parses a credential file. Returns `None` for a token that is invalid in a header.
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

/// The published action's directory name for these inputs: the first 16 hexadecimal digits of the SHA-256 of their JSON
/// (docs/reference/protocol.md §4.2). Other inputs have another directory, so that no client finds a credential for a
/// different identity.
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
    fn published_credential_is_in_place() {
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
    fn fingerprint_distinguishes_absent_empty_and_swapped_inputs() {
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
    fn each_profile_kind_has_the_name_its_clients_expect() {
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
