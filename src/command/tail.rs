//! `unstale tail`: changes as they are committed, and the keys that they make stale, for a person
//! who looks for a fault.
//!
//! It deletes nothing and needs no Redis: what it prints is what a listener deletes.

use std::collections::HashSet;
use std::io::{ErrorKind, Write as _, stderr, stdout};
use std::time::SystemTime;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::change::{self, Announcement, Change, What};
use crate::cli::Tail;
use crate::config::Config;
use crate::deletion::Deletion;
use crate::pg::Postgres;
use crate::pg::tail::{self, Source};
use crate::rule::{Rule, Rules};
use crate::watched::Watched;
use crate::{shutdown, visible};

/// Keys on a line for people.
const SHOWN: usize = 8;

/// Prints a line for each change until a signal, or until nobody reads any more.
///
/// # Errors
/// If a table is not watched, or the connection to PostgreSQL ends.
pub async fn run(config: &Config, args: &Tail) -> anyhow::Result<()> {
    let postgres = Postgres::new(config.database_source()?)?;
    let shutdown = shutdown::on_signals()?;
    let mut tail = tail::Tail::open(&postgres, config.heartbeat.timeout).await?;
    let mut rules = rules(tail.watches().await?)?;
    let wanted = wanted(&rules, &args.tables)?;
    let _ = writeln!(stderr(), "listening at {}; Ctrl-C ends it", visible::line(&postgres.place()));
    loop {
        let Some(heard) = shutdown.run_until_cancelled(tail.next()).await else { return Ok(()) };
        let (source, text) =
            heard.context("what was committed from now on is not shown; start it again")?;
        let change = match change::parse(&text) {
            Ok(Announcement::Change(change)) => change,
            Ok(Announcement::Watches) => {
                rules = self::rules(tail.watches().await?)?;
                continue;
            }
            Ok(
                Announcement::Bell
                | Announcement::Heartbeat(_)
                | Announcement::Wait
                | Announcement::Probe(_),
            ) => continue,
            Err(malformed) => {
                let _ = writeln!(stderr(), "skipped: {}", visible::line(&malformed.to_string()));
                continue;
            }
        };
        if rules.get(&change.watch).is_none_or(|rule| rule.rev < change.rev) {
            rules = self::rules(tail.watches().await?)?;
        }
        let Some(rule) = rules.get(&change.watch) else { continue }; // it ended long ago
        if wanted.is_empty() || wanted.contains(&rule.table) {
            let seen = seen(rule, source, &change)?;
            let line = if args.json {
                visible::json(&seen.to_string()).into_owned()
            } else {
                visible::line(&in_words(&seen)).into_owned()
            };
            match writeln!(stdout(), "{line}") {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
        }
    }
}

fn rules(watches: Vec<Watched>) -> anyhow::Result<Rules> {
    let rule = |watched: Watched| Ok((watched.id, Rule::of(&watched)?));
    watches.into_iter().map(rule).collect()
}

/// The full names of the tables that were asked for. A name without a schema means the table of
/// that name in any.
fn wanted(rules: &Rules, tables: &[String]) -> anyhow::Result<HashSet<String>> {
    let mut wanted = HashSet::new();
    for table in tables {
        let is_it = |name: &&str| {
            name == table || name.split_once('.').is_some_and(|(_, name)| name == table)
        };
        let names: Vec<&str> =
            rules.values().map(|rule| rule.table.as_str()).filter(is_it).collect();
        if names.is_empty() {
            bail!("{table} is not watched; `select * from unstale.watches` lists what is");
        }
        wanted.extend(names.into_iter().map(str::to_owned));
    }
    Ok(wanted)
}

/// One line of `--json`. Keys only: what a listener deletes.
fn seen(rule: &Rule, source: Source, change: &Change<'_>) -> anyhow::Result<Value> {
    let (mut keys, mut patterns) = (Vec::new(), Vec::new());
    rule.stale(change, |deletion| match deletion {
        Deletion::Key(key) if keys.contains(&key) => {}
        Deletion::Key(key) => keys.push(key),
        Deletion::Pattern(pattern) => patterns.push(pattern),
    })?;
    let rows = match &change.what {
        What::Rows(rows) => Some(rows.len()),
        What::All => None,
    };
    Ok(json!({
        "time": humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        "table": rule.table,
        "by": match source { Source::Notification => "notify", Source::Log => "log" },
        "rows": rows,
        "keys": keys,
        "patterns": patterns,
    }))
}

fn in_words(seen: &Value) -> String {
    let texts = |name: &str| {
        seen[name]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut keys: Vec<String> = texts("keys").into_iter().chain(texts("patterns")).collect();
    let others = keys.len().saturating_sub(SHOWN);
    keys.truncate(SHOWN);
    if others > 0 {
        keys.push(format!("and {others} others"));
    }
    if seen["rows"].is_null() {
        keys.insert(0, "all rows".to_owned());
    }
    let text = |name: &str| seen[name].as_str().unwrap_or_default();
    let time = text("time").get(11..23).unwrap_or_default(); // without the date
    format!("{time}  {:<6}  {}  {}", text("by"), text("table"), keys.join("  "))
}
