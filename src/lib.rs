//! The map of unstale.

pub mod config;
