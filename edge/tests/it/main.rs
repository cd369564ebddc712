//! The real `gemba-edge` binary, from outside.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on fails, and says what it saw")]
#![allow(unreachable_pub, reason = "its modules are parts of one program")]

mod certificates;
mod chaos;
mod check;
mod clock;
mod configuration;
mod daemon;
mod delivery;
mod devices;
mod external;
mod gateway;
mod ledger;
mod link;
mod mosquitto;
mod plant;
mod powercut;
mod process;
mod proxy;
mod reload;
mod service;
mod whole_path;
