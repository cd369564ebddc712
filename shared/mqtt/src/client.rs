//! A rumqttc client with our TLS and our backoff.
