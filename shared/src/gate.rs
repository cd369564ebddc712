//! The gate between MQTT clients and a broker: bytes in, decisions out.
