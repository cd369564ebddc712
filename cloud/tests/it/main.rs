//! The cloud against a real PostgreSQL.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod alarms;
mod api;
mod backup;
mod broken;
mod commands;
mod daemon;
mod database;
mod deliveries;
mod enrolment;
mod frames;
mod incidents;
mod history;
mod intake;
mod plant;
mod promise;
mod receivers;
mod rules;
mod running;
mod schema;
mod tls;
