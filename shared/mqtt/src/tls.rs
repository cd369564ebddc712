//! TLS settings for servers and clients, with a current rustls.
