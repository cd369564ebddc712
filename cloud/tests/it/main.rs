//! The cloud against a real PostgreSQL.

mod database;
mod schema;
