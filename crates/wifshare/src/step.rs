//! The steps of a journey, told to whoever wants to watch: to mask a secret, to say what we wait for, to keep count.

use std::time::Duration;

use crate::credential::Credential;
use crate::identity_token::IdentityToken;

/// Something that a journey has just done or is about to do, in the order in which it happens.
#[derive(Debug)]
#[non_exhaustive]
pub enum Step<'a> {
    /// A run has its lease; it is about to obtain.
    Begun,
    /// The lock is held by another process, described by itself; told once a second while we wait.
    Waiting {
        /// What the holder wrote about itself, where it could be read.
        holder: Option<String>,
        /// How long we have waited so far.
        since: Duration,
    },
    /// The lock became ours, or what we waited for was there, after another process had held it for so long.
    Waited {
        /// What the holder wrote about itself the last time that we looked, once a second.
        holder: Option<String>,
        /// How long the whole wait was.
        time: Duration,
    },
    /// An acceptable credential is in the store; nothing is exchanged.
    Found(&'a Credential),
    /// The lock is ours and there is still no usable credential.
    Locked,
    /// The lock is released.
    Unlocked,
    /// The source is about to be asked for an identity token.
    Asking,
    /// The source handed out an identity token. A CI masks it here, before anything could print it.
    Identified(&'a IdentityToken),
    /// The source handed out a token that the ledger knows as spent; it is asked again where that can help.
    AlreadySpent,
    /// A failure of a moment ago is remembered and counts for us too; nothing is sent.
    Remembered {
        /// Its stable code.
        code: String,
    },
    /// A try to obtain a credential failed.
    Failed {
        /// The stable code of the error.
        code: String,
        /// The error and its causes, safe to show.
        message: String,
        /// The id of the request, where the endpoint gave one.
        request_id: Option<String>,
        /// Whether the identity token may have left.
        sent: bool,
    },
    /// A try failed and another one follows.
    Retrying {
        /// What failed, safe to show.
        cause: String,
        /// How long until the next try.
        pause: Duration,
    },
    /// The connection to the token endpoint stands; nothing has been sent.
    Connected,
    /// The identity token stands in the ledger, synced: from here on it counts as spent.
    Recorded,
    /// The request is about to leave.
    Sending,
    /// This process is asked to end while an exchange is under way, and waits for its answer this long.
    Lingering {
        /// How long at most.
        at_most: Duration,
    },
    /// An answer came back.
    Answered,
    /// The exchange bought this credential. A CI masks it here. It is in the store, unless [`NotKept`](Step::NotKept) follows.
    Exchanged(&'a Credential),
    /// A private file was written and synced under a temporary name; it is about to be renamed to this one.
    Written(&'static str),
    /// The private file of this name has been replaced.
    Replaced(&'static str),
    /// A credential was bought and could not be kept for the others; whoever bought it can still use it.
    NotKept(String),
    /// The remains of a dead run were removed.
    Swept,
    /// What a child had obtained by itself was adopted as the shared credential.
    Adopted(&'a Credential),
    /// The first credential of a run whose command works already.
    Obtained(&'a Credential),
    /// There is no credential yet, and requests are refused until there is one.
    NotObtained {
        /// What failed, safe to show.
        cause: String,
        /// What a person can do about it.
        hint: Option<String>,
        /// How long until the next try.
        pause: Duration,
    },
    /// A renewal failed; the credential that we hold stays in use.
    NotRenewed {
        /// What failed, safe to show.
        cause: String,
        /// How long until the next try.
        pause: Duration,
    },
    /// No unspent identity token could be put in place for the children; the one there may be spent.
    NotHandedOut {
        /// What failed, safe to show.
        cause: String,
        /// How long until the next try, at least.
        pause: Duration,
    },
    /// The credential that the children have has ended, and there is no successor.
    Ended {
        /// Why, safe to show.
        cause: String,
    },
    /// Changes of a run's files are looked for now and then, because the system does not notify of them.
    NotWatched {
        /// Which limit is reached, and what raises it.
        limit: &'static str,
    },
    /// A connection to the gateway ended because of an internal error; the others go on.
    ConnectionFault,
    /// The credential of the delivery was replaced by this one.
    Renewed(&'a Credential),
}

/// Whoever watches a journey.
pub type Watch<'a> = &'a (dyn Fn(&Step<'_>) + Sync);
