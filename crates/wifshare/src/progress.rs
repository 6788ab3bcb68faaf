//! The progress of a journey, reported to an observer: to mask a secret, to print messages, to count.

use std::time::Duration;

use crate::credential::Credential;
use crate::identity_token::IdentityToken;

/// A step that a journey has just done or is about to do, in the order of execution.
#[derive(Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// A run has its lease and is about to obtain a credential.
    Begun,
    /// Another process holds the lock. Reported once a second during the wait.
    Waiting {
        /// How the lock holder describes itself, if readable.
        holder: Option<String>,
        /// How long this process has waited so far.
        since: Duration,
    },
    /// The wait is over: the lock was acquired, or another process settled what it was needed for.
    Waited {
        /// How the lock holder described itself at the last check. Checked once a second.
        holder: Option<String>,
        /// Duration of the whole wait.
        time: Duration,
    },
    /// An acceptable credential was found in the store; there is no exchange.
    Found(&'a Credential),
    /// The lock is held, and there is still no acceptable credential.
    Locked,
    /// The lock is released.
    Unlocked,
    /// The source is about to be asked for an identity token.
    Asking,
    /// The source returned an identity token. A CI masks it here, before anything can print it.
    Identified(&'a IdentityToken),
    /// The source returned a spent token. It is asked again if that can help.
    AlreadySpent,
    /// A cached failure applies to this process too; nothing is sent.
    Remembered {
        /// The stable error code.
        code: String,
    },
    /// An attempt to obtain a credential failed.
    Failed {
        /// The stable code of the error.
        code: String,
        /// The error and its causes, safe to show.
        message: String,
        /// The request id, if the endpoint assigned one.
        request_id: Option<String>,
        /// Whether the identity token may have been sent.
        sent: bool,
    },
    /// An attempt failed and is retried.
    Retrying {
        /// The failure, safe to show.
        cause: String,
        /// Delay until the retry.
        pause: Duration,
    },
    /// The connection to the token endpoint is established; nothing has been sent.
    Connected,
    /// The identity token is recorded in the ledger and synced: it now counts as spent.
    Recorded,
    /// The request is about to be sent.
    Sending,
    /// The process is asked to end during an exchange, and waits for the response.
    Lingering {
        /// Maximum duration of the wait.
        at_most: Duration,
    },
    /// The response arrived.
    Answered,
    /// The exchange returned this credential. A CI masks it here. It is in the store, unless [`NotKept`](Progress::NotKept)
    /// follows.
    Exchanged(&'a Credential),
    /// A private file was written and synced under a temporary name; it is about to be renamed to this name.
    Written(&'static str),
    /// The private file of this name was replaced.
    Replaced(&'static str),
    /// A credential was obtained but could not be stored for other processes. This process can still use it.
    NotKept(String),
    /// The remains of a killed run were removed.
    Swept,
    /// A credential that a child obtained by itself became the shared credential.
    Adopted(&'a Credential),
    /// The first credential of a run whose command is already running.
    Obtained(&'a Credential),
    /// There is no credential yet. Requests are refused until there is one.
    NotObtained {
        /// The failure, safe to show.
        cause: String,
        /// An instruction for the user.
        hint: Option<String>,
        /// Delay until the next attempt.
        pause: Duration,
    },
    /// A renewal failed; the held credential stays in use.
    NotRenewed {
        /// The failure, safe to show.
        cause: String,
        /// Delay until the next attempt.
        pause: Duration,
    },
    /// No unspent identity token could be written for the children; the existing one may be spent.
    NotHandedOut {
        /// The failure, safe to show.
        cause: String,
        /// Minimum delay until the next attempt.
        pause: Duration,
    },
    /// The credential of the children expired without a successor.
    Ended {
        /// The reason, safe to show.
        cause: String,
    },
    /// A run's files are checked periodically, because the system does not report changes.
    NotWatched {
        /// The limit that is reached, and how to raise it.
        limit: &'static str,
    },
    /// A connection to the gateway ended because of an internal error; others continue.
    ConnectionFault,
    /// The delivered credential was replaced by this one.
    Renewed(&'a Credential),
}

/// An observer of a journey.
pub type Observer<'a> = &'a (dyn Fn(&Progress<'_>) + Sync);
