//! The cloud against a real PostgreSQL.

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
