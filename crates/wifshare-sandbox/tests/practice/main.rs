//! The sandbox over real connections, with a client that nobody here wrote.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on stops where it stands")]

mod client;

mod api;
mod clocks;
mod faults;
mod forgeries;
mod identity;
mod lifecycle;
mod platforms;
mod single_use;
