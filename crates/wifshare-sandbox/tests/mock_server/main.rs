//! The mock server over real connections, with a third-party HTTP client.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

mod client;

mod api;
mod clocks;
mod faults;
mod forgeries;
mod identity;
mod lifecycle;
mod platforms;
mod single_use;
