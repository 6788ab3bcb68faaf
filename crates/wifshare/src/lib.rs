//! **One identity token, one exchange, every process.**
//!
//! A CI job proves who it is with an OIDC identity token that is accepted once, and starts many processes that all need
//! the access token it buys. This library obtains the identity token, exchanges it once (workload identity federation,
//! RFC 7523), and lets every process of the job share the credential until the job ends.
//!
//! ```no_run
//! use wifshare::{Clock, Environment, Inputs, HttpClient, obtain, resolve};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let environment: Environment = std::env::vars_os().collect();
//! let config = resolve(&Inputs::default(), &environment)?;
//! let transport = HttpClient::new(&environment);
//! let credential = obtain(&config, &transport, Clock::system(), &|_| {})?;
//! println!("signed in until {:?}", credential.expires_at);
//! # Ok(())
//! # }
//! ```
//!
//! The library prints nothing, ends no process and reads no ambient state: environment, clock and transport are
//! arguments.
//! A room (a module about one thing) imports no other room. A journey calls the rooms in order. Start with [`obtain`].

// -- vocabulary --
mod backoff;
mod clock;
mod code;
mod credential;
mod diagnosis;
mod environment;
mod event;
mod github_subject;
mod hexadecimal;
mod http;
mod id;
mod identity_token;
mod message;
mod principal;
mod private_file;
mod progress;
mod resource;
mod secret;
mod subject;
mod wakeup;
mod wrapping;
// -- rooms --
mod child;
mod delivery;
mod descendants;
mod events;
mod exchange;
mod gateway;
mod identity;
mod store;

// -- journeys --
mod config;
mod holder;
mod obtain;
mod renew;
mod run;

// Not part of the library: properties that hold for any input, for the tests and for a fuzzer.
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;

pub use crate::http::{CertificateFault, Connection, Connector, HttpClient, MaybeSent, NotSent, SendError};
#[cfg(unix)]
pub use child::Signaller;
pub use child::{Child, SpawnError, Streams, exit_code};
pub use clock::{Clock, Interrupted};
pub use code::Code;
pub use config::{
    Config, ConfigError, DEFAULT_BASE_URL, ExistingAuth, Inputs, Proof, Purpose, existing_auth, resolve, resolve_for,
    state_directory,
};
pub use credential::{Credential, Freshness};
pub use delivery::{Delivery, UnknownDelivery, remove_token_variables};
pub use descendants::{Descendants, Living, Sighting, living_with, program_name};
pub use diagnosis::Diagnosis;
pub use environment::Environment;
pub use event::{Event, EventKind, moment};
pub use events::EventLog;
pub use exchange::{Grant, TokenError};
pub use gateway::{
    CAPABILITY_LIFE, Caller, CredentialPublisher, CredentialState, Gateway, GatewayConfig, Limits, Listen, Served,
    new_capability,
};
pub use github_subject::{is_immutable, with_ids_of, without_ids};
pub use holder::Holder;
pub use id::{BadForm, complaint};
pub use identity::{
    Answer, Detected, DetectionInput, Endpoint, FixedEndpoints, IdentityCommand, IdentityError, IdentitySource, Job,
    NamedBy, Network, Question, Reissue, RenewalOutlook, TokenVariable, choose, detect, job, platforms,
    variables_of_the_cis,
};
pub use identity_token::{Claims, Fingerprint, IdentityToken, Malformed};
pub use message::{Request, Response, answered_at, safe_text, whole_message};
pub use obtain::{EXCHANGE_GRACE, ObtainError, obtain, obtain_lasting, prove};
pub use principal::{OwnPrincipal, Principal};
pub use private_file::{PrivateFileError, open_regular, open_to_append};
pub use progress::{Observer, Progress};
pub use renew::renew;
pub use resource::cure as cure_of_limit;
pub use run::{
    BASE_URL_VARIABLE, DELIVERED_TOKENS, DELIVERED_VARIABLE, Enclosing, Ending, GATEWAY_VARIABLE, GatewayOptions,
    IDENTITY_VARIABLES, Provision, RUN_VARIABLE, Run, credential_of_run, delivered, delivered_token, delivery_around,
    enclosing, is_gateway, renews_on_request,
};
pub use secret::Secret;
pub use store::{
    CachedFailure, Keeper, Lease, Location, LockedStore, Memory, OnLastRun, PATIENCE, ProcessIdentity, Snapshot, Spent,
    StartLock, Store, StoreError, Use, clear, extend, is_alive, keepers, look, sweep, until,
};
pub use subject::SubjectPattern;

pub use wrapping::Wrapping;
