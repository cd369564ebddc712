//! The real `gemba-edge` binary, from outside.

mod configuration;
mod daemon;
mod delivery;
mod gateway;
mod ledger;
mod proxy;
mod whole_path;
