//! The edge daemon: from sensors' MQTT messages to summaries and events that the cloud has stored.
//!
//! A module uses what stands above it in this list, never what stands below it.

pub mod reading;

pub mod files;
pub mod passwords;
pub mod config;
pub mod clock;
pub mod health;

pub mod devices;
pub mod ingest;
pub mod generations;
pub mod journal;
pub mod window;
pub mod detect;
pub mod summary;
pub mod outbox;
pub mod pipeline;
pub mod identity;
pub mod session;
pub mod uplink;

pub mod enroll;
pub mod publisher;
pub mod recording;
pub mod backtest;
pub mod replay;
pub mod simulate;
pub mod status;
pub mod outbox_cli;

pub mod run;
pub mod reload;
pub mod check;
pub mod diag;
pub mod cli;
