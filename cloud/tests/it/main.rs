//! The cloud against a real PostgreSQL.

mod api;
mod database;
mod schema;
