//! Journey two: the successor of a credential that we hold.

use crate::clock::Clock;
use crate::config::Config;
use crate::credential::Credential;
use crate::http::HttpClient;
use crate::obtain::{ObtainError, replace_unless};
use crate::step::Watch;
use crate::store::PATIENCE;

/// Replaces the credential that we hold, unless another process has done so: then its successor is ours too.
///
/// A failure changes nothing; what is held stays in use until it ends.
pub fn renew(
    held: &Credential,
    config: &Config,
    transport: &HttpClient,
    clock: Clock,
    watch: Watch<'_>,
) -> Result<Credential, ObtainError> {
    renew_if(|| Ok(()), held, config, transport, clock, watch)
}

/// The same, with a last word before what was bought is kept.
pub(crate) fn renew_if(
    may_keep: impl FnOnce() -> Result<(), ObtainError>,
    held: &Credential,
    config: &Config,
    transport: &HttpClient,
    clock: Clock,
    watch: Watch<'_>,
) -> Result<Credential, ObtainError> {
    let successor = |stored: &Credential| stored != held && stored.is_usable(clock.now());
    replace_unless(successor, may_keep, config, transport, &|| Ok(PATIENCE), clock, watch)
}
