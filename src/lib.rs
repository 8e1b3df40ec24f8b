//! The map of unstale.
#![allow(missing_docs)]
pub mod backoff;
pub mod batch;
pub mod change;
pub mod cli;
pub mod command;
pub mod config;
pub mod error;
pub mod http;
pub mod listener;
pub mod logs;
pub mod observe;
pub mod pg;
pub mod rule;
pub mod scratch;
pub mod shutdown;
pub mod sink;
pub mod systemd;
pub mod watermark;
