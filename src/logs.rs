//! Where log lines go: stderr, so that stdout belongs to what a command prints; or the journal, if that is what stderr is.
//!
//! Installs the process's one subscriber. `RUST_LOG` is not read: a variable meant for another program must not silence
//! this one.

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
use crate::config::{Log, LogFormat};
use crate::visible;

/// What these libraries warn of they also return to us, and it is told once, in our words; fred, moreover, at each connection of
/// a Redis user that may do what it must and nothing else. A filter that names them brings them back.
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
    let asked = targets(&log.filter).map_err(|fault| anyhow::anyhow!("log.filter: {fault}"))?;
    Ok(asked.default_level().map_or(quiet.clone(), |level| quiet.with_default(level)).with_targets(&asked))
}

/// Reads `log.filter`: a level for all, a module, or `module=level`, with commas between them.
///
/// Not tracing-subscriber's `EnvFilter`: since <https://github.com/tokio-rs/tracing/pull/3243> it counts characters and cuts bytes, so
/// that a letter of two bytes ends the process; and it takes regular expressions of any size.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn targets(filter: &str) -> Result<Targets, String> {
    let mut targets = Targets::new();
    let mut is_empty = true;
    for directive in filter.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        is_empty = false;
        let (module, level) = match directive.split_once('=') {
            Some((module, level)) => (Some(module), Some(level)),
            None if directive.parse::<LevelFilter>().is_ok() => (None, Some(directive)),
            None => (Some(directive), None),
        };
        let level = match level {
            None => LevelFilter::TRACE,
            Some("") => return Err(format!("{directive} names no level")),
            Some(level) => level.parse().map_err(|_| format!("\"{level}\" is no level: off, error, warn, info, debug, trace"))?,
        };
        targets = match module {
            None => targets.with_default(level),
            Some(module) if is_module(module) => targets.with_target(module, level),
            Some(module) => return Err(format!("\"{module}\" is no module")),
        };
    }
    Ok(if is_empty { targets.with_default(LevelFilter::ERROR) } else { targets })
}

/// A path of Rust, as in `unstale::pg`.
fn is_module(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte))
}

/// The message and the fields of a line, as they may be shown.
struct Visible;

impl<'writer> FormatFields<'writer> for Visible {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> std::fmt::Result {
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
        LogFormat::Json => fmt::layer().with_writer(|| Json).json().flatten_event(true).boxed(),
        LogFormat::Journald => {
            let journal = Journal::open().context("the journal's socket")?;
            fmt::layer().with_writer(Arc::new(journal)).event_format(Entry).boxed()
        }
        LogFormat::Text | LogFormat::Auto => fmt::layer().with_writer(stderr).with_ansi(is_terminal).fmt_fields(Visible).boxed(),
    };
    let (filter, handle) = reload::Layer::new(filter(log)?);
    tracing_subscriber::registry().with(filter).with(lines).try_init().context("the log")?;
    Ok(Filter(handle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_levels_and_modules_and_nothing_else() {
        for filter in ["info", "warn,unstale=debug", "off, unstale::pg = trace".replace(" = ", "=").as_str(), "unstale", "INFO,", "", "3"] {
            assert!(targets(filter).is_ok(), "{filter}");
        }
        for filter in ["wärn", "wärn=debug", "a=b=c", "unstale=", "=info", "unstale[{x}]=info", "a=loud", "a[b{c=(((((((((x)]=info", "\0"]
        {
            assert!(targets(filter).is_err(), "{filter}");
        }
    }

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
