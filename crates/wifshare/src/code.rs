//! The stable names of what can go wrong, for documentation and scripts.

/// Writes the enum, its list and its names from one table, so that none of them can lack a line.
macro_rules! codes {
    ($($(#[$documentation:meta])* $code:ident = $name:literal,)*) => {
        /// What went wrong, by a name that stays: it stands in brackets in `error[…]`, and `wifshare explain` knows it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$documentation])* $code,)*
        }

        impl Code {
            /// Every code of this library.
            pub const ALL: &[Code] = &[$(Code::$code,)*];

            /// Its name, in lower case and hyphens.
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
    /// Not a single input of federation is there.
    Unconfigured = "unconfigured",
    /// Some inputs are there and one is missing.
    ConfiguredInPart = "configured-in-part",
    /// There is no way to an identity token, or the CI withholds it.
    NoIdentitySource = "no-identity-source",
    /// There would be a way, and a part of it is missing or wrong.
    BrokenIdentitySource = "broken-identity-source",
    /// The base URL cannot be used.
    BaseUrl = "base-url",
    /// A value that no such id can have.
    ImplausibleValue = "implausible-value",
    // -- the identity token --
    /// The CI's endpoint gave no answer.
    IdentityUnreachable = "identity-unreachable",
    /// The CI's endpoint refused.
    IdentityRefused = "identity-refused",
    /// The CI's endpoint answered something that holds no token.
    IdentityUnexpected = "identity-unexpected",
    /// The token file could not be read.
    IdentityFile = "identity-file",
    /// The identity command failed.
    IdentityCommand = "identity-command",
    /// What was handed out is no identity token.
    IdentityMalformed = "identity-malformed",
    /// The identity token was used before.
    IdentitySpent = "identity-spent",
    /// The identity token's life is over.
    IdentityExpired = "identity-expired",
    /// The identity token's subject is not the expected one.
    SubjectUnexpected = "subject-unexpected",
    /// The source hands out tokens of another issuer or subject than before.
    IdentityChanged = "identity-changed",
    // -- the exchange --
    /// The token endpoint could not be reached; nothing was sent.
    EndpointUnreachable = "endpoint-unreachable",
    /// A server's certificate was refused; nothing was sent.
    CertificateRefused = "certificate-refused",
    /// The token was sent, and the answer was lost.
    AnswerLost = "answer-lost",
    /// The token endpoint said no.
    ExchangeRefused = "exchange-refused",
    /// The token endpoint is busy or broken.
    EndpointBusy = "endpoint-busy",
    /// The token endpoint leads elsewhere.
    EndpointRedirects = "endpoint-redirects",
    /// The token endpoint's answer is no token response.
    AnswerUnexpected = "answer-unexpected",
    /// Credentials of this rule do not live long enough for what was asked.
    CredentialShortLived = "credential-short-lived",
    /// Inside a run: its credential does not last as long as it has to.
    RunNotRenewed = "run-not-renewed",
    // -- the state directory --
    /// It could not be read or written.
    StateUnusable = "state-unusable",
    /// Something that is not ours stands there.
    StateInTheWay = "state-in-the-way",
    /// The ledger of spent identity tokens is damaged.
    StateDamaged = "state-damaged",
    /// It belongs to somebody else.
    StateForeign = "state-foreign",
    /// Others may read or write it.
    StateLoose = "state-loose",
    /// A newer wifshare wrote it.
    StateNewer = "state-newer",
    /// It is on a file system where locks may lie.
    LocksUnreliable = "locks-unreliable",
    /// Another process holds the lock for too long.
    LockHeld = "lock-held",
    // -- processes --
    /// The gateway could not be opened.
    GatewayNotOpened = "gateway-not-opened",
    /// The process was asked to end before anything was spent.
    Interrupted = "interrupted",
    /// There is no such program.
    CommandNotFound = "command-not-found",
    /// There is one and it cannot be run.
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
