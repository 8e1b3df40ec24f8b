//! Where log lines go: stderr, so that stdout belongs to what a command prints; or the journal, if that is what stderr is.
//!
//! Installs the process's one subscriber. `RUST_LOG` is not read: a variable meant for another program must not silence
//! this one.

mod journal;

use std::io::{IsTerminal as _, stderr};
use std::sync::Arc;

use anyhow::Context as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, Registry, fmt};

use self::journal::{Entry, Journal};
use crate::config::{Log, LogFormat};

/// What these libraries warn of they also return to us, and it is told once, in our words; fred, moreover, at each connection of
/// a Redis user that may do what it must and nothing else. A filter that names them brings them back.
const LIBRARIES: &str = "fred=off,sqlx=off,sqlx_core=off,sqlx_postgres=off";

/// Which lines are written; may change while they are.
pub struct Filter(Handle<EnvFilter, Registry>);

impl Filter {
    /// As configured.
    ///
    /// # Errors
    ///
    /// If it does not parse, which [`crate::config::Config`] rules out.
    pub fn set(&self, log: &Log) -> anyhow::Result<()> {
        self.0.reload(filter(log)?).context("the log")
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
    let format = match log.format {
        LogFormat::Auto if is_terminal => LogFormat::Text,
        LogFormat::Auto if journal::is_stderr() => LogFormat::Journald,
        LogFormat::Auto => LogFormat::Json,
        chosen => chosen,
    };
    let lines = match format {
        LogFormat::Json => fmt::layer().with_writer(stderr).json().flatten_event(true).boxed(),
        LogFormat::Journald => {
            let journal = Journal::open().context("the journal's socket")?;
            fmt::layer().with_writer(Arc::new(journal)).event_format(Entry).boxed()
        }
        LogFormat::Text | LogFormat::Auto => fmt::layer().with_writer(stderr).with_ansi(is_terminal).boxed(),
    };
    let (filter, handle) = reload::Layer::new(filter(log)?);
    tracing_subscriber::registry().with(filter).with(lines).try_init().context("the log")?;
    Ok(Filter(handle))
}
