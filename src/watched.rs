//! What is watched, as `unstale.watch` holds it, and as `unstale.watch()` and `unstale.toml` say
//! it.

use std::time::Duration;

use crate::watermark::PgTime;

/// A row of `unstale.watch`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Watched {
    /// `unstale.watch.id`.
    pub id: i32,
    /// Counts what changes the meaning of an announcement.
    pub rev: i32,
    /// Schema and name, quoted where SQL needs it.
    pub table: String,
    /// Not in force any more; it says what its logged changes mean.
    pub ended: bool,
    /// It has a column that says when a row changed.
    pub sweepable: bool,
    /// What the last audit has found.
    pub audited: Option<Audited>,
    /// As it was asked for.
    pub spec: Spec,
}

impl Watched {
    /// A watch with these key templates, and nothing else said of it.
    #[must_use]
    pub fn of(id: i32, rev: i32, table: &str, keys: &[&str]) -> Self {
        let spec =
            Spec { keys: keys.iter().map(|key| (*key).to_owned()).collect(), ..Spec::default() };
        Self { id, rev, table: table.to_owned(), spec, ..Self::default() }
    }
}

/// What an audit has found of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audited {
    /// When, by the database's clock.
    pub at: PgTime,
    /// All keys, not a sample.
    pub complete: bool,
    /// Cached values that were compared with their rows.
    pub compared: i64,
    /// Those of them that were stale.
    pub stale: i64,
    /// Cached values without a version to compare.
    pub unreadable: i64,
}

/// The arguments of `unstale.watch()` after the table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spec {
    /// Key templates.
    pub keys: Vec<String>,
    /// `row`, `statement` or `log`.
    pub delivery: String,
    /// The column that the sweep reads.
    pub updated_at: Option<String>,
    /// The columns whose UPDATE counts.
    pub only_columns: Option<Vec<String>>,
    /// How long a cached value may live.
    pub max_ttl: Option<Duration>,
    /// What its readers were promised: `lease`, `bounded` or `eventual`.
    pub guarantee: Option<String>,
    /// Why it is cached, and for so long.
    pub reason: Option<String>,
    /// The column whose value each cached copy carries.
    pub version: Option<String>,
    /// Where a cached copy carries it: a JSONPath in a string, or a field of a hash.
    pub version_path: Option<String>,
    /// Templates may begin with a column. Asked when a watch is made, and not kept.
    pub any_prefix: bool,
}
