//! A credential that is in no file.

use std::sync::{Arc, Mutex, PoisonError};

use crate::credential::Credential;

/// A place for one credential in this process's memory; its copies are the same place.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<Option<Credential>>>);

impl Memory {
    pub(super) fn get(&self) -> Option<Credential> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, credential: &Credential) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(credential.clone());
    }
}
