//! The cloud against a real PostgreSQL.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod api;
mod broken;
mod commands;
mod daemon;
mod database;
mod enrolment;
mod frames;
mod intake;
mod plant;
mod promise;
mod schema;
mod tls;
