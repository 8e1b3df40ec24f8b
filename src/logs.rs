//! Where log lines go: stderr, so that stdout belongs to what a command prints; or the journal, if
//! that is what stderr is.
//!
//! Installs the process's one subscriber. `RUST_LOG` is not read: a variable meant for another
//! program must not silence this one.

mod journal;

use std::io::{self, IsTerminal as _, stderr};
use std::sync::Arc;

use anyhow::Context as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{DefaultFields, FormatFields, Writer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, field::RecordFields, fmt};

use self::journal::{Entry, Journal};
use crate::config::{self, Log, LogFormat};
use crate::visible;

/// What these libraries warn of they also return to us, and it is said once, in our words; fred,
/// moreover, at each connection of a Redis user that may do what it must and nothing else. A filter
/// that names them brings them back.
const LIBRARIES: [&str; 4] = ["fred", "sqlx", "sqlx_core", "sqlx_postgres"];

/// Which lines are written; may change while they are.
pub struct Filter(Handle<Targets, Registry>);

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

fn filter(log: &Log) -> anyhow::Result<Targets> {
    let quiet = Targets::new().with_targets(LIBRARIES.map(|library| (library, LevelFilter::OFF)));
    let asked =
        config::targets(&log.filter).map_err(|fault| anyhow::anyhow!("log.filter: {fault}"))?;
    Ok(asked
        .default_level()
        .map_or(quiet.clone(), |level| quiet.with_default(level))
        .with_targets(&asked))
}

/// The message and the fields of a line, as they may be shown.
struct Visible;

impl<'writer> FormatFields<'writer> for Visible {
    fn format_fields<R: RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> std::fmt::Result {
        let mut text = String::new();
        DefaultFields::new().format_fields(Writer::new(&mut text), fields)?;
        writer.write_str(&visible::line(&text))
    }
}

/// Lines of JSON, which may be looked at in a terminal. Each write is a line.
struct Json;

impl io::Write for Json {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        stderr().write_all(visible::json(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts the log as configured.
///
/// # Errors
///
/// If the filter does not parse (which [`crate::config::Config`] rules out) or a log was started
/// before.
pub fn init(log: &Log) -> anyhow::Result<Filter> {
    let is_terminal = stderr().is_terminal();
    let format = match log.format {
        LogFormat::Auto if is_terminal => LogFormat::Text,
        LogFormat::Auto if journal::is_stderr() => LogFormat::Journald,
        LogFormat::Auto => LogFormat::Json,
        chosen => chosen,
    };
    let lines = match format {
        LogFormat::Json => fmt::layer().with_writer(|| Json).json().flatten_event(true).boxed(),
        LogFormat::Journald => {
            let journal = Journal::open().context("the journal's socket")?;
            fmt::layer().with_writer(Arc::new(journal)).event_format(Entry).boxed()
        }
        LogFormat::Text | LogFormat::Auto => {
            fmt::layer().with_writer(stderr).with_ansi(is_terminal).fmt_fields(Visible).boxed()
        }
    };
    let (filter, handle) = reload::Layer::new(filter(log)?);
    tracing_subscriber::registry().with(filter).with(lines).try_init().context("the log")?;
    Ok(Filter(handle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_are_silent_until_they_are_named() {
        let log = |filter: &str| filter_of(filter);
        assert!(!log("trace").would_enable("sqlx::query", &tracing::Level::ERROR));
        assert!(log("info,sqlx=warn").would_enable("sqlx::query", &tracing::Level::WARN));
        assert!(log("info").would_enable("unstale::http", &tracing::Level::INFO));
    }

    fn filter_of(filter: &str) -> Targets {
        super::filter(&Log { filter: filter.to_owned(), ..Log::default() }).expect("a filter")
    }
}
