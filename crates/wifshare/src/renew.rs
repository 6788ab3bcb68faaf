//! The renew journey: obtains the successor of a held credential.

use crate::clock::Clock;
use crate::config::Config;
use crate::credential::Credential;
use crate::http::HttpClient;
use crate::obtain::{ObtainError, replace_unless};
use crate::progress::Observer;
use crate::store::PATIENCE;

/// Replaces a held credential, or returns its successor if another process already replaced it.
///
/// A failure changes nothing; the held credential stays in use until it expires.
///
/// # Errors
/// Fails if no successor can be obtained.
pub fn renew(
    held: &Credential,
    config: &Config,
    transport: &HttpClient,
    clock: Clock,
    observer: Observer<'_>,
) -> Result<Credential, ObtainError> {
    renew_if(|| Ok(()), held, config, transport, clock, observer)
}

/// Like [`renew`], with a final check before the new credential is stored.
pub(crate) fn renew_if(
    may_keep: impl FnOnce() -> Result<(), ObtainError>,
    held: &Credential,
    config: &Config,
    transport: &HttpClient,
    clock: Clock,
    observer: Observer<'_>,
) -> Result<Credential, ObtainError> {
    let successor = |stored: &Credential| stored != held && stored.is_usable(clock.now());
    replace_unless(successor, may_keep, config, transport, &|| Ok(PATIENCE), clock, observer)
}
