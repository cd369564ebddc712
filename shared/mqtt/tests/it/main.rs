//! The gate with real sockets, real clients (rumqttc) and the real broker behind it; and the subscriber with
//! that broker, and with Mosquitto where it is installed.

#![expect(clippy::unwrap_used, reason = "a test ends where something is missing")]
#![expect(clippy::disallowed_methods, reason = "the clients here are devices, with and without sessions")]
#![expect(clippy::print_stderr, reason = "a skipped test says so")]
#![expect(unreachable_pub, reason = "what several modules use is public among them")]

mod plant;

mod broker;
mod delivery;
mod doors;
mod external;
mod pressure;
mod subscribers;
