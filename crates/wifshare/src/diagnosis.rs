//! What can be told of a refusal, as a value: it goes with the error, and to those who hear of it a moment later.

use serde::{Deserialize, Serialize};

/// Why the token endpoint refused, as far as it can be told from here; in texts that are safe to show.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// What it may be, the likeliest first.
    pub likely: Vec<String>,
    /// What it is not.
    pub ruled_out: Vec<String>,
}
