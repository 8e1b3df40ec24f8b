//! What an audit says: its progress, and what it has found of each table. Counts and templates,
//! never a key or a value.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _, stderr};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::visible;

/// Between two lines of progress, on a terminal and elsewhere.
const PROGRESS: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];

/// What was found of a table.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Count {
    /// Keys that were looked at, cached or not.
    pub(super) keys: u64,
    /// Cached values that were compared.
    pub(super) compared: u64,
    /// Cached values without a version.
    pub(super) unreadable: u64,
    /// Cached values that changed from one look to the next, however often they were looked at.
    pub(super) unsettled: u64,
}

/// See [`Count`].
#[derive(Debug, Default)]
pub(super) struct Table {
    name: String,
    pub(super) count: Count,
    stale: BTreeMap<usize, u64>, // by template
    /// Templates whose keys are not looked for.
    pub(super) obscure: Vec<String>,
    /// Its rows are those that changed since a time.
    pub(super) is_limited: bool,
    /// Why nothing of it was audited.
    pub(super) skipped: Option<String>,
}

impl Table {
    /// One more of this template.
    pub(super) fn stale(&mut self, template: usize) {
        *self.stale.entry(template).or_default() += 1;
    }

    pub(super) fn stale_keys(&self) -> u64 {
        self.stale.values().sum()
    }
}

/// See the module.
pub(super) struct Report {
    pub(super) tables: Vec<Table>,
    /// Keys that were deleted.
    pub(super) healed: u64,
    /// Why it is not complete.
    pub(super) reason: Option<String>,
    json: bool,
    began: Instant,
    reported: Instant,
}

impl Report {
    pub(super) fn new(tables: Vec<String>, json: bool) -> Self {
        let tables = tables.into_iter().map(|name| Table { name, ..Table::default() }).collect();
        Self {
            tables,
            healed: 0,
            reason: None,
            json,
            began: Instant::now(),
            reported: Instant::now(),
        }
    }

    pub(super) fn stale(&self) -> u64 {
        self.tables.iter().map(Table::stale_keys).sum()
    }

    /// Now and then.
    pub(super) fn progress(&mut self, looked: u64) {
        let is_terminal = stderr().is_terminal();
        if self.reported.elapsed() < PROGRESS[usize::from(!is_terminal)] {
            return;
        }
        self.reported = Instant::now();
        let line = format!("{looked} keys looked at");
        let _ = if is_terminal {
            write!(stderr(), "\r\x1b[K{line}")
        } else {
            writeln!(stderr(), "{line}")
        };
    }

    /// All of it, on standard output.
    pub(super) fn end(&self) -> anyhow::Result<()> {
        if stderr().is_terminal() {
            let _ = write!(stderr(), "\r\x1b[K"); // the line of progress
        }
        let text = if self.json { format!("{:#}\n", self.in_json()) } else { self.in_words() };
        super::super::print(visible::json(&text).as_bytes())
    }

    fn in_json(&self) -> Value {
        let table = |table: &Table| {
            let Count { keys, compared, unreadable, unsettled } = table.count;
            json!({
                "table": table.name, "keys": keys, "compared": compared, "stale": table.stale_keys(), "unreadable": unreadable,
                "unsettled": unsettled, "not_inverted": table.obscure, "limited": table.is_limited, "skipped": table.skipped,
            })
        };
        json!({
            "tables": self.tables.iter().map(table).collect::<Vec<_>>(),
            "stale": self.stale(), "healed": self.healed, "complete": self.reason.is_none(), "seconds": self.began.elapsed().as_secs_f64(),
        })
    }

    fn in_words(&self) -> String {
        let mut text = String::new();
        for table in self.tables.iter().filter(|table| table.skipped.is_none()) {
            let Count { keys, compared, unreadable, unsettled } = table.count;
            let _ = write!(
                text,
                "{}: {keys} keys, {compared} cached values compared, {} stale",
                visible::line(&table.name),
                table.stale_keys()
            );
            if unreadable > 0 {
                let _ = write!(text, ", {unreadable} without a version");
            }
            if unsettled > 0 {
                let _ = write!(text, ", {unsettled} changed all the time");
            }
            text.push('\n');
        }
        if self.healed > 0 {
            let _ = writeln!(text, "{} keys deleted", self.healed);
        }
        text
    }
}

/// Something to know, on a line of its own.
pub(super) fn note(text: &str) {
    let _ = writeln!(
        stderr(),
        "{}{}",
        if stderr().is_terminal() { "\r\x1b[K" } else { "" },
        visible::line(text)
    );
}
