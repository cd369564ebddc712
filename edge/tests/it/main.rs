//! The real `gemba-edge` binary, from outside.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod configuration;
mod daemon;
mod delivery;
mod gateway;
mod ledger;
mod proxy;
mod whole_path;
