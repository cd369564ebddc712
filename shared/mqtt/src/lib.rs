//! MQTT for both daemons: the gate in front of the embedded broker, and clients of other brokers.
//!
//! The rules (which packets pass, what a grant allows) are in `gemba_shared::gate` and do no I/O; this crate
//! moves the bytes.

pub mod broker;
pub mod client;
pub mod delivery;
pub mod gate;
pub mod tls;
