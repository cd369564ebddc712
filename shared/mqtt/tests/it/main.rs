//! The gate with real sockets, real clients (rumqttc) and the real broker behind it.

mod plant;

mod delivery;
