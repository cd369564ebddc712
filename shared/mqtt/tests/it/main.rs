//! The gate with real sockets, real clients (rumqttc) and the real broker behind it; and the subscriber with
//! that broker, and with Mosquitto where it is installed.

mod plant;

mod broker;
mod delivery;
mod doors;
mod external;
mod pressure;
mod subscribers;
