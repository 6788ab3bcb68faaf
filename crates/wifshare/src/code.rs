//! Stable names of errors, for documentation and scripts.

/// Generates the enum, its list and its names from one table, so that they cannot disagree.
macro_rules! codes {
    ($($(#[$documentation:meta])* $code:ident = $name:literal,)*) => {
        /// A stable error code. It appears in brackets as `error[…]`, and `wifshare explain` documents it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$documentation])* $code,)*
        }

        impl Code {
            /// All codes of this library.
            pub const ALL: &[Code] = &[$(Code::$code,)*];

            /// Returns the name in lower case with hyphens.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Code::$code => $name,)*
                }
            }
        }
    };
}

codes! {
    // -- the configuration --
    /// No federation setting is set.
    Unconfigured = "unconfigured",
    /// Some federation settings are set and one is missing.
    ConfiguredInPart = "configured-in-part",
    /// No identity source was found, or the CI withholds the token.
    NoIdentitySource = "no-identity-source",
    /// An identity source was found, but a part of its setup is missing or wrong.
    BrokenIdentitySource = "broken-identity-source",
    /// The base URL is invalid.
    BaseUrl = "base-url",
    /// A value cannot be an id of this kind.
    ImplausibleValue = "implausible-value",
    // -- the identity token --
    /// The CI's token endpoint did not respond.
    IdentityUnreachable = "identity-unreachable",
    /// The CI's token endpoint refused the request.
    IdentityRefused = "identity-refused",
    /// The response of the CI's token endpoint contains no token.
    IdentityUnexpected = "identity-unexpected",
    /// The token file could not be read.
    IdentityFile = "identity-file",
    /// The identity command failed.
    IdentityCommand = "identity-command",
    /// The source returned something that is not an identity token.
    IdentityMalformed = "identity-malformed",
    /// The identity token was already used.
    IdentitySpent = "identity-spent",
    /// The identity token has expired.
    IdentityExpired = "identity-expired",
    /// The identity token's subject is not the expected one.
    SubjectUnexpected = "subject-unexpected",
    /// The source returns tokens of a different issuer or subject than before.
    IdentityChanged = "identity-changed",
    // -- the exchange --
    /// The token endpoint could not be reached; nothing was sent.
    EndpointUnreachable = "endpoint-unreachable",
    /// A server's certificate was rejected; nothing was sent.
    CertificateRefused = "certificate-refused",
    /// The token was sent, and no response arrived.
    AnswerLost = "answer-lost",
    /// The token endpoint rejected the token or the request.
    ExchangeRefused = "exchange-refused",
    /// The token endpoint is overloaded or failing.
    EndpointBusy = "endpoint-busy",
    /// The token endpoint redirects.
    EndpointRedirects = "endpoint-redirects",
    /// The response is not a valid token response.
    AnswerUnexpected = "answer-unexpected",
    /// The rule's credentials are too short-lived for the request.
    CredentialShortLived = "credential-short-lived",
    /// Inside a run: the run's credential does not last as long as requested.
    RunNotRenewed = "run-not-renewed",
    // -- the state directory --
    /// The state directory could not be read or written.
    StateUnusable = "state-unusable",
    /// A link, an object of the wrong kind or an oversized file is in the way.
    StateInTheWay = "state-in-the-way",
    /// The ledger of spent identity tokens is damaged.
    StateDamaged = "state-damaged",
    /// The state directory belongs to another user.
    StateForeign = "state-foreign",
    /// Other users can read or write the state directory.
    StateLoose = "state-loose",
    /// A newer version of wifshare wrote the state.
    StateNewer = "state-newer",
    /// The state directory is on a file system with unreliable locks.
    LocksUnreliable = "locks-unreliable",
    /// Another process holds the lock for too long.
    LockHeld = "lock-held",
    // -- processes --
    /// The gateway could not be started.
    GatewayNotOpened = "gateway-not-opened",
    /// The process was asked to end before a token was spent.
    Interrupted = "interrupted",
    /// The command does not exist.
    CommandNotFound = "command-not-found",
    /// The command exists but cannot be executed.
    CommandNotRunnable = "command-not-runnable",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn code_names_are_unique_and_kebab_case() {
        let names: BTreeSet<&str> = Code::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')));
    }
}
