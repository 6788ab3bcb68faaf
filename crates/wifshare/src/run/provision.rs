//! What a run provides: a credential or an identity token.

use std::fmt;
use std::str::FromStr;

use crate::delivery::{Delivery, UnknownDelivery};

/// What a run provides for its children.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provision {
    /// The shared credential, by this delivery.
    Credential(Delivery),
    /// An unspent identity token in a file, for the operator's own profile. The run makes no exchange.
    IdentityToken,
}

impl fmt::Display for Provision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Provision::Credential(delivery) => delivery.fmt(f),
            Provision::IdentityToken => f.write_str("identity-token"),
        }
    }
}

impl FromStr for Provision {
    type Err = UnknownDelivery;

    fn from_str(name: &str) -> Result<Self, UnknownDelivery> {
        match name {
            "identity-token" => Ok(Provision::IdentityToken),
            name => name.parse().map(Provision::Credential),
        }
    }
}
