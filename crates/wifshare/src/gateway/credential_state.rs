//! Publishes the current state of the credential, from the run that renews it to the gateway that uses it.

use std::sync::Arc;

use tokio::sync::watch;

use super::admission::Refusal;
use crate::credential::Credential;

/// Current state of the credential: held, failed, or neither, which means pending.
#[derive(Clone, Debug, Default)]
pub struct CredentialState {
    pub(super) held: Option<Arc<Credential>>,
    pub(super) refused: Option<Refused>,
    /// The number of changes so far.
    pub(super) told: u64,
}

/// Why there is no credential.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    message: String,
    may_pass: bool,
}

/// Publishes the state of the credential.
#[derive(Debug)]
pub struct CredentialPublisher(watch::Sender<CredentialState>);

impl CredentialPublisher {
    /// Creates a publisher whose state is pending.
    #[expect(clippy::new_without_default, reason = "a board is put up by whoever keeps a credential, on purpose")]
    pub fn new() -> CredentialPublisher {
        CredentialPublisher(watch::Sender::new(CredentialState::default()))
    }

    /// Returns a receiver for a gateway.
    pub fn follow(&self) -> watch::Receiver<CredentialState> {
        self.0.subscribe()
    }

    /// Publishes a new valid credential.
    pub fn hold(&self, credential: &Credential) {
        self.tell(|credential_state| {
            credential_state.held = Some(Arc::new(credential.clone()));
            credential_state.refused = None;
        });
    }

    /// Publishes a failure. A held credential stays in use until it expires. Without one, requests are refused with
    /// this message, as temporary or permanent.
    pub fn refuse(&self, message: String, may_pass: bool) {
        self.tell(|credential_state| credential_state.refused = Some(Refused { message, may_pass }));
    }

    /// Reports that a requested renewal did not change the credential.
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
        // Clients retry after a 503, and do not after a 401.
        Refusal { status: if refused.may_pass { 503 } else { 401 }, message: refused.message.into() }
    }
}
