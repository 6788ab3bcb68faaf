//! Errors of the journeys, with their codes, hints and retry rules.

use std::time::{Duration, SystemTime};

use crate::backoff::Backoff;
use crate::clock::{Interrupted, epoch_seconds};
use crate::code::Code;
use crate::diagnosis::Diagnosis;
use crate::exchange::TokenError;
use crate::http::{MaybeSent, NotSent};
use crate::identity::{IdentityError, Reissue};
use crate::private_file::PrivateFileError;
use crate::resource;
use crate::store::{CachedFailure, Spent, StoreError};

/// Why there is no credential.
#[derive(Debug, thiserror::Error)]
pub enum ObtainError {
    /// The stored state could not be used.
    #[error("could not use the state of this identity")]
    Store(#[source] StoreError),
    /// No identity token is available.
    #[error("could not obtain an identity token from {origin}")]
    Identity {
        /// Description of the source.
        origin: String,
        /// The cause.
        #[source]
        source: IdentityError,
    },
    /// The source only has a token that was already used.
    #[error("the identity token of {origin} was already {}", spent.story(*now))]
    Spent {
        /// Description of the source.
        origin: String,
        /// Whether the source can issue another token.
        reissue: Reissue,
        /// The entry in the ledger.
        spent: Box<Spent>,
        /// When the ledger was checked.
        now: SystemTime,
    },
    /// The token expired before it could be used.
    #[error("the identity token of {origin} expired {} s ago", ago.as_secs())]
    TooOld {
        /// Description of the source.
        origin: String,
        /// Time since the expiry.
        ago: Duration,
    },
    /// The token has an unexpected subject. It was not used.
    #[error("the identity token of {origin} has the subject `{subject}`, and `{expected}` is expected")]
    Subject {
        /// Description of the source.
        origin: String,
        /// The token's subject.
        subject: String,
        /// The expected subject.
        expected: String,
    },
    /// The source returns tokens of a different principal than before.
    #[error("{origin} now hands out an identity token of {theirs}, and this process acts for {ours}")]
    OtherPrincipal {
        /// Description of the source.
        origin: String,
        /// The principal of this process, safe to show.
        ours: String,
        /// The principal of the token, safe to show.
        theirs: String,
    },
    /// The token endpoint could not be reached; nothing was sent.
    #[error("could not reach the token endpoint; the identity token was not sent")]
    NotSent(#[source] NotSent),
    /// The token was sent, and the outcome is unknown.
    #[error("lost the answer of the token endpoint; the identity token counts as spent")]
    MaybeSent {
        /// Whether the source can issue another token.
        reissue: Reissue,
        /// The cause.
        #[source]
        source: MaybeSent,
    },
    /// The response of the token endpoint contains no credential.
    #[error("could not exchange the identity token at {endpoint}")]
    Token {
        /// The token endpoint.
        endpoint: String,
        /// Whether the source can issue another token.
        reissue: Reissue,
        /// Likely causes of a refusal.
        diagnosis: Box<Diagnosis>,
        /// The error in the response.
        #[source]
        source: TokenError,
    },
    /// An exchange of this or another process failed recently, and would fail again.
    #[error("{} (asked by {} {} s ago; the answer is remembered for {} s more)",
        .0.message, .0.owner, epoch_seconds(*.1).saturating_sub(.0.at),
        .0.remaining(*.1).unwrap_or_default().as_secs() + 1)]
    Remembered(Box<CachedFailure>, SystemTime),
    /// The rule's credentials are too short-lived for the request.
    #[error("a credential of this federation rule lives {} s, and {} s were asked for", lifetime.as_secs(), asked.as_secs())]
    ShortLived {
        /// Lifetime of a credential.
        lifetime: Duration,
        /// The requested lifetime.
        asked: Duration,
    },
    /// The enclosing run's credential does not last as long as requested.
    #[error("the run around this command holds a credential that is good for {} s, less than needed", left.as_secs())]
    RunNotRenewed {
        /// Remaining lifetime of that credential.
        left: Duration,
    },
    /// The gateway could not be started; no token was requested.
    #[error("could not open the gateway")]
    Gateway(#[source] std::io::Error),
    /// The process was asked to end before a token was spent.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl From<StoreError> for ObtainError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Interrupted(interrupted) => ObtainError::Interrupted(interrupted),
            StoreError::File(_)
            | StoreError::Held { .. }
            | StoreError::Newer { .. }
            | StoreError::Damaged { .. }
            | StoreError::UnreliableLocks { .. } => ObtainError::Store(error),
        }
    }
}

impl ObtainError {
    /// Returns the stable error code. A cached failure keeps its original code.
    pub fn code(&self) -> &str {
        let code = match self {
            ObtainError::Store(StoreError::File(error)) => match error {
                PrivateFileError::Io { .. } => Code::StateUnusable,
                PrivateFileError::Link(_) | PrivateFileError::WrongKind { .. } | PrivateFileError::Oversized(_) => {
                    Code::StateInTheWay
                }
                PrivateFileError::Foreign { .. } => Code::StateForeign,
                PrivateFileError::Loose { .. } => Code::StateLoose,
            },
            ObtainError::Store(StoreError::Held { .. }) => Code::LockHeld,
            ObtainError::Store(StoreError::Newer { .. }) => Code::StateNewer,
            ObtainError::Store(StoreError::Damaged { .. }) => Code::StateDamaged,
            ObtainError::Store(StoreError::UnreliableLocks { .. }) => Code::LocksUnreliable,
            ObtainError::Store(StoreError::Interrupted(_)) | ObtainError::Interrupted(_) => Code::Interrupted,
            ObtainError::Identity { source, .. } => match source {
                IdentityError::Unreachable { .. } if source.certificate().is_some() => Code::CertificateRefused,
                IdentityError::Unreachable { .. } => Code::IdentityUnreachable,
                IdentityError::Refused { .. } => Code::IdentityRefused,
                IdentityError::Unexpected { .. } => Code::IdentityUnexpected,
                IdentityError::File { .. } => Code::IdentityFile,
                IdentityError::Command { .. } => Code::IdentityCommand,
                IdentityError::Malformed { .. } => Code::IdentityMalformed,
                IdentityError::Interrupted(_) => Code::Interrupted,
            },
            ObtainError::Spent { .. } => Code::IdentitySpent,
            ObtainError::TooOld { .. } => Code::IdentityExpired,
            ObtainError::Subject { .. } => Code::SubjectUnexpected,
            ObtainError::NotSent(NotSent { certificate: Some(_), .. }) => Code::CertificateRefused,
            ObtainError::OtherPrincipal { .. } => Code::IdentityChanged,
            ObtainError::NotSent(_) => Code::EndpointUnreachable,
            ObtainError::MaybeSent { .. } => Code::AnswerLost,
            ObtainError::Token { source, .. } => match source {
                TokenError::Refused { .. } => Code::ExchangeRefused,
                TokenError::Busy { .. } => Code::EndpointBusy,
                TokenError::Redirected(_) => Code::EndpointRedirects,
                TokenError::Unexpected { .. } => Code::AnswerUnexpected,
            },
            ObtainError::Remembered(refusal, _) => return &refusal.code,
            ObtainError::ShortLived { .. } => Code::CredentialShortLived,
            ObtainError::RunNotRenewed { .. } => Code::RunNotRenewed,
            ObtainError::Gateway(_) => Code::GatewayNotOpened,
        };
        code.name()
    }

    /// Returns likely causes of a refusal; `None` for every other failure.
    pub fn diagnosis(&self) -> Option<&Diagnosis> {
        match self {
            ObtainError::Token { diagnosis, source: TokenError::Refused { .. }, .. } => Some(diagnosis),
            ObtainError::Remembered(refusal, _) => refusal.diagnosis.as_ref(),
            ObtainError::Token { .. }
            | ObtainError::Store(_)
            | ObtainError::Identity { .. }
            | ObtainError::Spent { .. }
            | ObtainError::TooOld { .. }
            | ObtainError::Subject { .. }
            | ObtainError::OtherPrincipal { .. }
            | ObtainError::NotSent(_)
            | ObtainError::MaybeSent { .. }
            | ObtainError::ShortLived { .. }
            | ObtainError::RunNotRenewed { .. }
            | ObtainError::Gateway(_)
            | ObtainError::Interrupted(_) => None,
        }
    }

    /// Returns the request id that the token endpoint assigned, for a look-up on the server's side.
    pub fn request_id(&self) -> Option<&str> {
        match self {
            ObtainError::Token { source, .. } => source.request_id(),
            _ => None,
        }
    }

    /// Returns an instruction for the user.
    pub fn hint(&self) -> Option<String> {
        match self {
            ObtainError::Store(error) => error.hint(),
            ObtainError::Identity { source, .. } => source.hint(),
            ObtainError::Spent { reissue, .. } => Some(how_to_go_on(*reissue)),
            ObtainError::TooOld { .. } => Some(
                "take the identity token right before it is used, or let wifshare ask the CI for it; \
                 look at the clock of this host too"
                    .to_owned(),
            ),
            ObtainError::Subject { .. } => Some(
                "run the job where its subject matches (branch, environment, event), or correct --expect-subject; in it, * \
                 stands for any text"
                    .to_owned(),
            ),
            ObtainError::NotSent(NotSent { certificate: Some(fault), .. }) => Some(fault.cure()),
            ObtainError::OtherPrincipal { .. } => Some(
                "give each identity a run of its own: end this one (let its command end, or `wifshare stop`) and start \
                 another; two jobs that share a file or a command need one each"
                    .to_owned(),
            ),
            ObtainError::NotSent(NotSent { cause, .. }) if resource::cure_in(cause).is_some() => {
                resource::cure_in(cause).map(str::to_owned)
            }
            ObtainError::NotSent(_) => Some(
                "look whether this host reaches ANTHROPIC_BASE_URL; HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE are honoured"
                    .to_owned(),
            ),
            ObtainError::MaybeSent { reissue, .. } => Some(how_to_go_on(*reissue)),
            // Unless the source issues tokens on demand, there is no other token for a retry.
            ObtainError::Token { source: TokenError::Busy { .. }, reissue, .. } if *reissue != Reissue::OnDemand => {
                Some(how_to_go_on(*reissue))
            }
            ObtainError::Token { source, .. } => Some(source.hint()),
            ObtainError::Remembered(refusal, _) => refusal.hint.clone(),
            ObtainError::ShortLived { .. } => {
                Some("ask for less with --min-life, or raise the rule's token lifetime in the Claude Console".to_owned())
            }
            ObtainError::RunNotRenewed { .. } => {
                Some("ask for less with --min-life; the run renews its credential by its own schedule".to_owned())
            }
            ObtainError::Gateway(error) if resource::cure(error).is_some() => resource::cure(error).map(str::to_owned),
            ObtainError::Gateway(error) if error.kind() == std::io::ErrorKind::InvalidFilename => {
                Some("choose a shorter path with --unix, or leave it out to listen on loopback".to_owned())
            }
            ObtainError::Gateway(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Some("create that directory, or choose another path with --unix".to_owned())
            }
            ObtainError::Gateway(_) => Some(
                "choose another address with --listen (it has to be of this machine alone) or another path with --unix; \
                 what is at the place already is left alone"
                    .to_owned(),
            ),
            ObtainError::Interrupted(_) => None,
        }
    }

    /// Returns whether a retry by the caller, a moment later, may succeed.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            ObtainError::Spent { reissue, .. } => !matches!(reissue, Reissue::Limited(_)),
            ObtainError::Identity { source, .. } if source.certificate().is_some() => false,
            ObtainError::Identity { source, .. } => match source {
                IdentityError::Refused { status, .. } => status.is_server_error() || *status == 429,
                IdentityError::Unreachable { .. }
                | IdentityError::Unexpected { .. }
                | IdentityError::Command { .. } => true,
                IdentityError::File { .. } | IdentityError::Malformed { .. } | IdentityError::Interrupted(_) => false,
            },
            ObtainError::RunNotRenewed { .. } => true,
            error => error.may_pass(),
        }
    }

    /// Returns whether a retry with a new identity token may succeed.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            // Neither a refused certificate nor a limit of this process is different the next time.
            ObtainError::NotSent(NotSent { certificate, cause, .. }) => {
                certificate.is_none() && resource::cure_in(cause).is_none()
            }
            ObtainError::MaybeSent { .. } | ObtainError::Spent { .. } => true,
            ObtainError::Token { source, .. } => matches!(source, TokenError::Busy { .. }),
            ObtainError::Store(_)
            | ObtainError::Identity { .. }
            | ObtainError::TooOld { .. }
            | ObtainError::Subject { .. }
            | ObtainError::OtherPrincipal { .. }
            | ObtainError::Remembered(..)
            | ObtainError::ShortLived { .. }
            | ObtainError::RunNotRenewed { .. }
            | ObtainError::Gateway(_)
            | ObtainError::Interrupted(_) => false,
        }
    }

    /// Returns an exponential pause with jitter. Respects the endpoint's Retry-After within limits.
    pub(super) fn pause_after(&self, tries: u32) -> Duration {
        const LONGEST: Duration = Duration::from_secs(10);
        let mut backoff = Backoff::new(Duration::from_secs(1), LONGEST).after(tries.saturating_sub(1));
        let asked = match self {
            ObtainError::Token { source: TokenError::Busy { retry_after, .. }, .. } => *retry_after,
            _ => None,
        };
        backoff.pause(Duration::ZERO, LONGEST, asked).unwrap_or_default()
    }

    /// Returns how long to cache the failure for other processes: the more certain it is that they would fail in the
    /// same way, the longer. A failure that may affect only this process, such as an unreachable network or a command
    /// that cannot be started, is not cached.
    pub(super) fn is_worth_remembering_for(&self) -> Option<Duration> {
        const PASSING: Duration = Duration::from_secs(5);
        const LASTING: Duration = Duration::from_secs(30);
        match self {
            ObtainError::Token { source: TokenError::Refused { .. } | TokenError::Redirected(_), .. } => Some(LASTING),
            // A user who fixes the root certificates expects an immediate effect.
            ObtainError::Identity { source, .. } if source.certificate().is_some() => None,
            ObtainError::Token { source: TokenError::Busy { .. } | TokenError::Unexpected { .. }, .. }
            | ObtainError::MaybeSent { .. } => Some(PASSING),
            // An overloaded or failing endpoint did not refuse the request.
            ObtainError::Identity { source: IdentityError::Refused { status, .. }, .. }
                if !status.is_server_error() && *status != 429 =>
            {
                Some(LASTING)
            }
            ObtainError::Identity {
                source: IdentityError::Refused { .. } | IdentityError::Unexpected { .. }, ..
            } => Some(PASSING),
            ObtainError::NotSent(_) => None,
            // Checking the ledger or a file is cheap, and the next check may have a different result.
            ObtainError::Identity { .. }
            | ObtainError::Spent { .. }
            | ObtainError::TooOld { .. }
            | ObtainError::Subject { .. } => None,
            ObtainError::OtherPrincipal { .. } => None,
            ObtainError::Store(_)
            | ObtainError::Remembered(..)
            | ObtainError::ShortLived { .. }
            | ObtainError::RunNotRenewed { .. }
            | ObtainError::Gateway(_)
            | ObtainError::Interrupted(_) => None,
        }
    }
}

fn how_to_go_on(reissue: Reissue) -> String {
    match reissue {
        Reissue::OnDemand => {
            "each identity token is accepted once; run the command again, and wifshare asks for a new one".to_owned()
        }
        Reissue::Rotated => {
            "each identity token is accepted once; wait until the file is replaced by whoever writes it, \
             or let wifshare ask the CI itself (unset ANTHROPIC_IDENTITY_TOKEN_FILE)"
                .to_owned()
        }
        Reissue::Limited(_) => "each identity token is accepted once, and this job was given no other; \
             wrap all its steps in one `wifshare exec`, or run the job again for a new token"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    fn answered(source: TokenError) -> ObtainError {
        let diagnosis = Box::new(Diagnosis { likely: vec!["the rule".to_owned()], ruled_out: Vec::new() });
        ObtainError::Token { endpoint: "e".to_owned(), reissue: Reissue::OnDemand, diagnosis, source }
    }

    #[test]
    fn refusal_has_a_diagnosis_and_a_request_id() {
        let (status, message, request_id) = (StatusCode::UNAUTHORIZED, String::new(), ", request id req_1".to_owned());
        let refused =
            answered(TokenError::Refused { status, message: message.clone(), request_id: request_id.clone() });
        assert_eq!(refused.diagnosis().map(|diagnosis| diagnosis.likely.len()), Some(1));
        assert_eq!(refused.request_id(), Some("req_1"));
        let busy = answered(TokenError::Busy { status, message, request_id, retry_after: None });
        assert_eq!((busy.diagnosis(), busy.request_id()), (None, Some("req_1")));
        let interrupted = ObtainError::Interrupted(Interrupted);
        assert_eq!((interrupted.diagnosis(), interrupted.request_id()), (None, None));
    }

    #[test]
    fn only_transient_errors_are_passing() {
        let of_the_source = |source| ObtainError::Identity { origin: "a test".to_owned(), source };
        let refused = |status| {
            let (platform, message, hint) = ("Test CI", String::new(), "");
            of_the_source(IdentityError::Refused { platform, status, message, hint })
        };
        assert!(refused(StatusCode::SERVICE_UNAVAILABLE).is_passing());
        assert!(!refused(StatusCode::FORBIDDEN).is_passing());
        let (origin, reason) = ("a test".to_owned(), crate::identity_token::Malformed::Empty);
        assert!(!of_the_source(IdentityError::Malformed { origin, reason }).is_passing());
        assert!(!ObtainError::Interrupted(Interrupted).is_passing());
    }
}
