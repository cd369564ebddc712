//! The embedded rumqttd: on loopback only, with a secret of its own, probed for life.
