//! A mock server for workload identity federation.
//!
//! A CI job's identity token is exchanged once for an access token (RFC 7523 §2.1), and the second exchange of the same
//! token is refused. [`Sandbox::start`] runs both sides on loopback: an OpenID provider like that of GitHub Actions, and
//! a token endpoint with a Messages API like Anthropic's. Both enforce single use as the real ones do. [`Settings`]
//! control lifetimes, delays, wrong clocks and a script of [`Fault`]s; [`Counters`] show what a client did.
//! [`conformance`] tests whether a command keeps the rules of single use.
//!
//! ```
//! use wifshare_sandbox::{Settings, Sandbox};
//!
//! let sandbox = Sandbox::start(Settings::fail_first(1, 503))?;
//! for (name, value) in sandbox.environment() {
//!     // The variables of a CI job: set them for the client under test.
//!     assert!(!name.is_empty() && !value.is_empty());
//! }
//! assert_eq!(sandbox.counters().exchanges_accepted, 0);
//! # std::io::Result::Ok(())
//! ```
//!
//! | path | endpoint |
//! |---|---|
//! | `GET /idtoken` | the CI: an identity token, for requests with the request token |
//! | `POST /azure-pipelines/oidctoken` | Azure Pipelines, for the same bearer |
//! | `GET /computeMetadata/v1/…/identity` | Google Cloud's metadata server |
//! | `GET /metadata/identity/oauth2/token` | Azure's instance metadata service |
//! | `GET /msi/token` | App Service's identity endpoint; the request token is its header |
//! | `POST /entra/TENANT/oauth2/v2.0/token` | Microsoft Entra, for an identity token of this issuer |
//! | `GET /.well-known/openid-configuration`, `GET /.well-known/jwks` | the issuer's metadata and public keys |
//! | `POST /v1/oauth/token` | the token endpoint |
//! | `POST /v1/messages`, `POST /v1/messages/count_tokens`, `GET /v1/models`, `GET /v1/models/NAME` | the API, for live access tokens |
//! | `GET /sandbox/counters`, `GET /sandbox/history` | what a client did |
//! | `GET /sandbox/settings`, `PUT /sandbox/settings` | the settings; one that is not named in a `PUT` returns to its default |
//! | `POST /sandbox/revoke` | refuses all access tokens that were issued so far |
//!
//! Nothing under `/sandbox` requires authentication. The server listens on loopback only, and its signing key lives as
//! long as the process, so its tokens are worthless elsewhere.

mod answer;
mod assertion;
mod batches;
mod bearer;
mod clock;
pub mod conformance;
mod fault;
mod identity_endpoint;
mod issuer;
mod ledger;
mod messages;
mod platforms;
mod random;
mod sandbox;
mod server;
mod settings;
mod signing;
mod state;
mod token_endpoint;

pub use fault::Fault;
pub use ledger::{Counters, ExchangeRecord, Verdict};
pub use sandbox::Sandbox;
pub use settings::{FederationRule, Settings};
