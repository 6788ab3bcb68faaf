//! Tests of the binary: real processes, real files, a real server on loopback.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test fails loudly, and its line is the reason")]
#![expect(clippy::disallowed_methods, reason = "tests stand outside the border: they make the world that is handed in")]
#![expect(clippy::print_stderr, reason = "a test that cannot run says so")]

mod action;
mod catalogue;
mod clients;
mod conformance;
mod containers;
mod crash;
mod cures;
mod demo;
mod doctor;
mod documents;
mod exec;
mod filesystem;
mod gateway;
mod gateway_clients;
mod gateway_ends;
mod gateway_hostile;
mod github;
mod help;
mod identities;
mod inotify;
mod inputs;
mod internal_error;
mod job;
mod keeper;
mod memory;
mod mistakes;
mod nesting;
mod place;
mod plugins;
mod promises;
mod readme;
mod recovery;
mod renewal_on_request;
mod report;
mod runner;
mod runs;
mod sandbox;
mod scenarios;
mod secrecy;
mod shells;
mod signals;
mod sources;
mod special_files;
mod start_ends;
mod status;
mod steps;
mod talk;
mod test_command;
mod token;
mod wall_clock;
