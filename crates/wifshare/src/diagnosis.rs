//! Likely causes of a refused exchange, as a value. Stored with the error for processes that read it shortly after.

use serde::{Deserialize, Serialize};

/// Why the token endpoint probably refused, in texts that are safe to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Possible causes, the most likely first.
    pub likely: Vec<String>,
    /// Causes that are ruled out.
    pub ruled_out: Vec<String>,
}
