//! detect

pub mod model;
