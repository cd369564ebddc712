//! The cloud daemon: from many gateways' frames to a supervisor's screen.
//!
//! A module uses what stands above it in this list, never what stands below it.

pub mod clock;

pub mod config;
pub mod keys;
pub mod metrics;

pub mod users;
pub mod alarms;
pub mod incidents;
pub mod tickets;
pub mod plans;
pub mod reliability;
pub mod machines;
pub mod history;
pub mod views;
pub mod series;
pub mod notifications;
pub mod mail;
pub mod energy;
pub mod export;

pub mod cluster;
pub mod store;
pub mod backup;
pub mod live;
pub mod intake;
pub mod deliver;
pub mod enrolment;
pub mod api;
pub mod web;

pub mod serve;
pub mod cli;
