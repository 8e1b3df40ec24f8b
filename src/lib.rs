//! The map of unstale.

pub mod cli;
pub mod command;
pub mod config;
pub mod error;
pub mod http;
pub mod logs;
pub mod shutdown;
pub mod systemd;
