//! The credential as it stands, told by whoever keeps it to whoever needs it.

use std::sync::Arc;

use tokio::sync::watch;

use super::admission::Refusal;
use crate::credential::Credential;

/// How it stands with the credential. At first there is neither one nor a reason why not: it is awaited.
#[derive(Clone, Debug, Default)]
pub struct CredentialState {
    pub(super) held: Option<Arc<Credential>>,
    pub(super) refused: Option<Refused>,
    /// How often something was told.
    pub(super) told: u64,
}

/// Why there is none.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    message: String,
    may_pass: bool,
}

/// Where it is told.
#[derive(Debug)]
pub struct CredentialPublisher(watch::Sender<CredentialState>);

impl CredentialPublisher {
    /// A board where nothing was told yet.
    #[expect(clippy::new_without_default, reason = "a board is put up by whoever keeps a credential, on purpose")]
    pub fn new() -> CredentialPublisher {
        CredentialPublisher(watch::Sender::new(CredentialState::default()))
    }

    /// For a gateway, to follow what is told.
    pub fn follow(&self) -> watch::Receiver<CredentialState> {
        self.0.subscribe()
    }

    /// This credential is good from now on.
    pub fn hold(&self, credential: &Credential) {
        self.tell(|credential_state| {
            credential_state.held = Some(Arc::new(credential.clone()));
            credential_state.refused = None;
        });
    }

    /// No credential could be had. What is held stays good until it ends; without any, requests are refused with this
    /// message, as something that may pass or as something that will not.
    pub fn refuse(&self, message: String, may_pass: bool) {
        self.tell(|credential_state| credential_state.refused = Some(Refused { message, may_pass }));
    }

    /// Somebody asked for another credential, and this one stays.
    pub fn nothing_new(&self) {
        self.tell(|_| {});
    }

    fn tell(&self, change: impl FnOnce(&mut CredentialState)) {
        self.0.send_modify(|credential_state| {
            change(credential_state);
            credential_state.told += 1;
        });
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Refusal {
        // Clients try a 503 again and take a 401 for an answer.
        Refusal { status: if refused.may_pass { 503 } else { 401 }, message: refused.message.into() }
    }
}
