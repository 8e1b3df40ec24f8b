//! Where log lines go: stderr, so that stdout belongs to what a command prints.
//!
//! Installs the process's one subscriber. `RUST_LOG` is not read: a variable meant for another program must not silence
//! this one.

use std::io::{IsTerminal as _, stderr};

use anyhow::Context as _;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Error;

use crate::config::{Log, LogFormat};

/// What these libraries warn of they also return to us, and it is told once, in our words; fred, moreover, at each connection of
/// a Redis user that may do what it must and nothing else. A filter that names them brings them back.
const LIBRARIES: &str = "fred=off,sqlx=off,sqlx_core=off,sqlx_postgres=off";

/// Which lines are written; may change while they are.
pub struct Filter(Box<dyn Fn(EnvFilter) -> Result<(), Error> + Send + Sync>);

impl Filter {
    /// As configured.
    ///
    /// # Errors
    ///
    /// If it does not parse, which [`crate::config::Config`] rules out.
    pub fn set(&self, log: &Log) -> anyhow::Result<()> {
        self.0(filter(log)?).context("the log")
    }
}

fn filter(log: &Log) -> anyhow::Result<EnvFilter> {
    EnvFilter::builder().parse(format!("{LIBRARIES},{}", log.filter)).context("log.filter")
}

/// Starts the log as configured.
///
/// # Errors
///
/// If the filter does not parse (which [`crate::config::Config`] rules out) or a log was started before.
pub fn init(log: &Log) -> anyhow::Result<Filter> {
    let is_terminal = stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter(log)?).with_writer(stderr).with_ansi(is_terminal);
    let is_json = match log.format {
        LogFormat::Auto => !is_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let (installed, filter) = if is_json {
        let lines = lines.json().flatten_event(true).with_filter_reloading();
        let handle = lines.reload_handle();
        (lines.try_init(), Filter(Box::new(move |filter| handle.reload(filter))))
    } else {
        let lines = lines.with_filter_reloading();
        let handle = lines.reload_handle();
        (lines.try_init(), Filter(Box::new(move |filter| handle.reload(filter))))
    };
    installed.map_err(|error| anyhow::anyhow!(error).context("the log"))?;
    Ok(filter)
}
