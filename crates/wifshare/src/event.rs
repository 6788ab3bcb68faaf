//! Events as data: one fact about the sharing, with its time and the process that reports it. Never contains a secret.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::credential::Credential;
use crate::message::safe_text;
use crate::progress::Progress;

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it happened, in RFC 3339 with milliseconds, in UTC.
    #[serde(with = "rfc3339")]
    pub time: SystemTime,
    /// The process that reports it.
    pub pid: u32,
    /// When that process started, in the kernel's ticks since boot. Short-lived processes omit it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<u64>,
    /// The kind of event with its data.
    #[serde(flatten)]
    pub what: EventKind,
}

/// The kinds of events. In JSON, the name is in `event`, next to the other fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventKind {
    /// A run acquired its lease.
    RunBegan {
        /// The wifshare command that began the run.
        command: String,
        /// How the run's children receive the credential.
        delivery: String,
        /// Where its identity tokens come from.
        source: String,
        /// The federation rule.
        rule: String,
        /// The service account, if one is requested.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service_account: Option<String>,
        /// The workspace, if one is requested.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        workspace: Option<String>,
    },
    /// A wifshare command joined the enclosing run.
    RunJoined {
        /// The command.
        command: String,
    },
    /// A run ended.
    RunEnded {
        /// What happened to the credential: `removed`, `shared`, `kept`, or `nothing` if there was none.
        credential: String,
    },
    /// Another process held the lock while this one waited.
    LockWaited {
        /// How that process described itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        holder: Option<String>,
        /// Duration in milliseconds.
        ms: u64,
    },
    /// A usable credential was found in the store.
    Found {
        /// Its generation.
        generation: u64,
        /// When it ends.
        #[serde(with = "rfc3339")]
        expires_at: SystemTime,
    },
    /// The source was asked for an identity token.
    IdentityAsked,
    /// The source returned a token that was already spent.
    IdentityRepeated,
    /// An identity token was written for clients that federate by themselves.
    IdentityHandedOut,
    /// No unspent identity token could be written.
    IdentityNotHandedOut {
        /// Why not.
        message: String,
    },
    /// The exchange request is about to be sent.
    ExchangeSent,
    /// The exchange returned a credential.
    ExchangeAccepted {
        /// Its generation.
        generation: u64,
        /// When it ends.
        #[serde(with = "rfc3339")]
        expires_at: SystemTime,
    },
    /// The exchange was sent and failed, or its outcome is unknown.
    ExchangeFailed {
        /// The stable code of the error.
        code: String,
        /// The error and its causes.
        message: String,
        /// The request id, for a look-up on the server's side.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
    },
    /// Something failed before the exchange was sent.
    ObtainFailed {
        /// The stable code of the error.
        code: String,
        /// The error and its causes.
        message: String,
    },
    /// A recent failure of another process was found; nothing was sent.
    RefusalHeard {
        /// The stable code of the error.
        code: String,
    },
    /// A failed operation is about to be retried.
    Retrying {
        /// Milliseconds until the retry.
        ms: u64,
    },
    /// A credential was obtained but could not be stored.
    NotKept {
        /// Why not.
        message: String,
    },
    /// The credential of a run's delivery was replaced.
    Renewed {
        /// The generation of the new one.
        generation: u64,
        /// When it ends.
        #[serde(with = "rfc3339")]
        expires_at: SystemTime,
    },
    /// A credential that a child obtained by itself became the shared credential.
    Adopted {
        /// Its generation.
        generation: u64,
        /// When it ends.
        #[serde(with = "rfc3339")]
        expires_at: SystemTime,
    },
    /// A renewal failed; the credential in use stays.
    NotRenewed {
        /// Why.
        message: String,
    },
    /// The credential expired without a successor.
    CredentialEnded {
        /// Why.
        message: String,
    },
    /// The remains of a killed run were removed.
    Swept,
    /// A run started a command.
    ChildStarted {
        /// Its process id.
        process: u32,
        /// The first word of its command line, without its directory; never an argument.
        program: String,
    },
    /// The command ended.
    ChildEnded {
        /// Its process id.
        process: u32,
        /// Its exit code, as a shell reports it.
        code: u8,
    },
    /// A run saw a process among the descendants of its command, for the first time or under a new name.
    ProcessSeen {
        /// The process id.
        process: u32,
        /// When it started, in the kernel's ticks since boot.
        process_started: u64,
        /// The parent's process id.
        parent: u32,
        /// The first word of its command line, without its directory; never an argument.
        program: String,
    },
    /// A process seen earlier no longer exists.
    ProcessEnded {
        /// The process id.
        process: u32,
        /// When it started, in the kernel's ticks since boot.
        process_started: u64,
    },
    /// The gateway answered a request.
    RequestServed {
        /// The request method.
        method: String,
        /// The path, without the query.
        path: String,
        /// The response status. 499 if the client disconnected before there was a response, 0 if there was none.
        status: u16,
        /// Duration in milliseconds.
        ms: u64,
        /// Bytes received from the client.
        bytes_in: u64,
        /// Bytes sent to the client.
        bytes_out: u64,
        /// The client's process id, if it was looked up.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        process: Option<u32>,
    },
    /// A connection to the gateway ended because of an internal error.
    ConnectionFault,
    /// The credential file of a run was opened this many times since the last check.
    CredentialOpened {
        /// How many times.
        times: u64,
    },
}

impl EventKind {
    /// Returns the event for a step, or `None` if the step is not logged.
    pub fn of(step: &Progress<'_>) -> Option<EventKind> {
        let end = |credential: &Credential| (credential.generation, credential.expires_at);
        Some(match step {
            Progress::Waited { holder, time } => {
                EventKind::LockWaited { holder: holder.clone(), ms: milliseconds(*time) }
            }
            Progress::Found(credential) => {
                let (generation, expires_at) = end(credential);
                EventKind::Found { generation, expires_at }
            }
            Progress::Asking => EventKind::IdentityAsked,
            Progress::AlreadySpent => EventKind::IdentityRepeated,
            Progress::Sending => EventKind::ExchangeSent,
            Progress::Exchanged(credential) => {
                let (generation, expires_at) = end(credential);
                EventKind::ExchangeAccepted { generation, expires_at }
            }
            Progress::Remembered { code } => EventKind::RefusalHeard { code: code.clone() },
            Progress::Failed { code, message, request_id, sent: true } => EventKind::ExchangeFailed {
                code: code.clone(),
                message: safe_text(message),
                request_id: request_id.as_deref().map(safe_text),
            },
            Progress::Failed { code, message, sent: false, .. } => {
                EventKind::ObtainFailed { code: code.clone(), message: safe_text(message) }
            }
            Progress::Retrying { pause, .. } => EventKind::Retrying { ms: milliseconds(*pause) },
            Progress::NotKept(message) => EventKind::NotKept { message: safe_text(message) },
            Progress::Swept => EventKind::Swept,
            Progress::Adopted(credential) => {
                let (generation, expires_at) = end(credential);
                EventKind::Adopted { generation, expires_at }
            }
            Progress::NotRenewed { cause, .. } => EventKind::NotRenewed { message: safe_text(cause) },
            Progress::NotHandedOut { cause, .. } => EventKind::IdentityNotHandedOut { message: safe_text(cause) },
            Progress::Ended { cause } => EventKind::CredentialEnded { message: safe_text(cause) },
            Progress::NotObtained { cause, .. } => EventKind::NotRenewed { message: safe_text(cause) },
            Progress::Obtained(credential) | Progress::Renewed(credential) => {
                let (generation, expires_at) = end(credential);
                EventKind::Renewed { generation, expires_at }
            }
            Progress::ConnectionFault => EventKind::ConnectionFault,
            Progress::Replaced("identity-token") => EventKind::IdentityHandedOut,
            // No step carries the data of a run. The code that begins the run writes that event.
            Progress::Begun
            | Progress::Lingering { .. }
            | Progress::Waiting { .. }
            | Progress::Locked
            | Progress::Unlocked
            | Progress::Identified(_)
            | Progress::Connected
            | Progress::Recorded
            | Progress::Answered
            | Progress::NotWatched { .. }
            | Progress::Written(_)
            | Progress::Replaced(_) => return None,
        })
    }

    /// Returns the event for a gateway request. Method and path come from the client, so they are shortened and
    /// redacted.
    pub fn request(
        method: &str,
        path: &str,
        status: u16,
        took: Duration,
        bytes: (u64, u64),
        process: Option<u32>,
    ) -> EventKind {
        const LONGEST: usize = 120;
        let short = |text: &str| safe_text(text).chars().take(LONGEST).collect();
        let (method, path, ms) = (short(method), short(path), milliseconds(took));
        EventKind::RequestServed { method, path, status, ms, bytes_in: bytes.0, bytes_out: bytes.1, process }
    }

    /// Returns whether a job can produce very many of these. The log reserves space for the other kinds.
    pub fn is_one_of_many(&self) -> bool {
        matches!(
            self,
            EventKind::ProcessSeen { .. }
                | EventKind::ProcessEnded { .. }
                | EventKind::CredentialOpened { .. }
                | EventKind::RequestServed { .. }
                | EventKind::ConnectionFault
                | EventKind::Found { .. }
                | EventKind::RunJoined { .. }
        )
    }
}

/// Formats a moment in RFC 3339 with milliseconds, in UTC.
pub fn moment(time: SystemTime) -> String {
    // A four-digit year ends at 9999.
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_millis(time.clamp(SystemTime::UNIX_EPOCH, last)).to_string()
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

mod rfc3339 {
    use std::time::SystemTime;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::moment(*time))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_rfc3339(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::from_epoch_seconds;

    fn event(what: EventKind) -> Event {
        Event { time: from_epoch_seconds(1_000_000_000) + Duration::from_micros(7_400), pid: 7, started: None, what }
    }

    #[test]
    fn event_is_one_flat_object_with_milliseconds() {
        let expires_at = from_epoch_seconds(1_000_000_600);
        let text = serde_json::to_string(&event(EventKind::Found { generation: 2, expires_at })).expect("JSON");
        assert_eq!(
            text,
            r#"{"time":"2001-09-09T01:46:40.007Z","pid":7,"event":"found","generation":2,"expires_at":"2001-09-09T01:56:40.000Z"}"#
        );
    }

    #[test]
    fn event_survives_its_json() {
        let time = from_epoch_seconds(1_000_000_000) + Duration::from_millis(7);
        for what in [EventKind::Swept, EventKind::ChildEnded { process: 3, code: 143 }] {
            let event = Event { time, started: Some(4), ..event(what) };
            let text = serde_json::to_string(&event).expect("JSON");
            assert_eq!(serde_json::from_str::<Event>(&text).expect(&text), event);
        }
    }

    #[test]
    fn reflected_token_in_a_message_is_redacted() {
        let message = format!("bad assertion eyJ{}", "a".repeat(60));
        let step =
            Progress::Failed { code: "c".to_owned(), message, request_id: Some("sk-ant-x".to_owned()), sent: true };
        let text = serde_json::to_string(&event(EventKind::of(&step).expect("an event"))).expect("JSON");
        assert!(!text.contains("eyJ") && !text.contains("sk-ant"), "{text}");
    }
}
