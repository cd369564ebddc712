//! The gate between MQTT clients and a broker: bytes in, decisions out.
//!
//! Every client's connection ends at the gate. Its publishes go to the ingest, and are answered when they are
//! safe there; they go to the broker as well only where somebody subscribes or where they are retained. What
//! the broker is left with: subscriptions, their queues, and retained messages. Wills are the gate's: it knows
//! best when a client is gone, and the ingest sees them like any message.
//!
//! Spoken is MQTT 3.1.1. A client of MQTT 5 is told so (CONNACK 0x84) and most fall back to 3.1.1 by
//! themselves. MQTT 3.1.1 has no way to refuse one PUBLISH: one that the grant does not cover is counted,
//! answered like any other, and goes nowhere. A SUBSCRIBE beyond the grant is refused for that filter (0x80).
//! Topics and filters that begin with `$` (shared subscriptions with them) are refused in the same way.
//! `QoS` 2 is taken from publishers; subscribers are granted at most `QoS` 1.

pub mod connection;
pub mod filter;
pub mod packet;
pub mod session;

pub use connection::{Connection, Grant, Limits, Output};
pub use filter::{Filter, FilterError, Interest};
pub use session::Session;
