//! The one place where the sandbox asks what time it is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The wall clock as time since the Unix epoch.
#[expect(clippy::disallowed_methods, reason = "a server stamps its tokens itself; everything below takes `now`")]
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
