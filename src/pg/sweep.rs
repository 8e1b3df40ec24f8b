//! Catching up: the rows stamped since the watermark, then the log.
//!
//! Reads in pages of about `sweep.page_rows`. A page ends between two stamps, never between rows of one stamp: rows move, by
//! VACUUM FULL or by an UPDATE that does not count, and nothing but the stamp stays. As a bulk import has one stamp for all its
//! rows, the server keeps the page (a cursor WITH HOLD), and no snapshot is held while Redis is slow. Rows come through
//! `unstale.page_N()`, which runs as the table's owner and calls the function that the triggers use, so that both make equal keys.
//! A table that cannot be read, or not in time, is widened to all its keys, never left out.
//!
//! A page runs code of the table's owner: expression indexes, statistics, policies. That has no rights here but the owner's, and
//! may leave settings and temporary objects behind in the session. So after the first page every name in a statement has its
//! schema, and the settings are made anew for each table.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, Row};
use tokio::sync::mpsc;

use super::sqlstate::{Class, class};
use super::{Error, Postgres, log};
use crate::watermark::{Checkpoint, MARGIN, PgTime, Snapshot};

/// Rows of a page of the log: each may be a payload's size, 8 kB.
const LOG_ROWS: i64 = 100;

/// The next rows of the page that the server keeps should have about so many bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// Rows of a chunk, at the least and at the most: one may have some tens of kilobytes.
const CHUNK_ROWS: std::ops::RangeInclusive<usize> = 16..=500;

/// What the session is again before each table, whatever the code of the last one's owner has set.
const SETTINGS: &str =
    "reset all; set search_path = pg_catalog, pg_temp; set statement_timeout = 60000; set work_mem = '32MB'; set jit = off";

/// How far a stamp without a zone may be from the time that a person means.
const HALF_A_DAY: i64 = 14 * 3_600_000_000;

/// How often a table is tried that cannot be read.
const ATTEMPTS: u32 = 3;

/// Without an answer for so long, the connection is dead: the server gives up earlier (statement_timeout, lest a page's snapshot hold
/// back vacuum). The heartbeat has other connections.
const PATIENCE: Duration = Duration::from_secs(75);

/// What a sweep brings.
#[derive(Debug)]
pub enum Swept {
    /// Rows of a watched table, each as `unstale.row_N()` writes it.
    Rows(i32, Vec<String>),
    /// All rows of a watch up to this stamp have been brought.
    Page(i32, PgTime),
    /// A large table without an index on the sweep's column: each page reads all of it.
    NoIndex {
        /// Schema and name.
        table: String,
        /// The statement that mends it.
        remedy: String,
    },
    /// Logged changes.
    Log(Vec<String>),
    /// A table that cannot be read: all its keys are to be deleted.
    Unreadable {
        /// `unstale.watch.id`.
        watch: i32,
        /// Schema and name.
        table: String,
        /// Why, and the remedy.
        reason: String,
    },
    /// That was all.
    Ended,
    /// It has to be repeated.
    Failed(String),
}

/// Where a sweep begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct From {
    /// What is proven; `None`: sweep from when each watch was made.
    pub checkpoint: Option<Checkpoint>,
    /// Watches that an earlier, unfinished sweep has brought up to this stamp.
    pub done: HashMap<i32, PgTime>,
    /// Asked for by a person: these watches alone, and also from before they were made.
    pub by_hand: Option<Vec<i32>>,
}

/// A table to be swept.
struct Table {
    watch: i32,
    name: String,
    column: String,
    since: i64, // microseconds: no earlier change concerns us
    unreadable: Option<String>,
    needs_index: bool,
    is_local: bool, // its stamps have no zone
}

impl Table {
    /// The statement that makes the index it lacks.
    fn missing_index(&self) -> Option<String> {
        self.needs_index.then(|| format!("create index concurrently on {} ({})", self.name, self.column))
    }
}

/// The large tables that would be read page by page without an index: name, column, and the statement that mends it.
///
/// # Errors
/// [`Error::Statement`].
pub async fn without_index(connection: &mut PgConnection) -> Result<Vec<(String, String, String)>, Error> {
    let tables = tables(connection, None).await?;
    Ok(tables.iter().filter_map(|table| Some((table.name.clone(), table.column.clone(), table.missing_index()?))).collect())
}

/// Sweeps everything from the checkpoint on into `out`; ends when it is done, or when nobody receives any more.
pub async fn run(postgres: Postgres, from: From, page_rows: u32, out: mpsc::Sender<Swept>) {
    let end = match sweep(&postgres, &from, i64::from(page_rows), &out).await {
        Ok(()) => Swept::Ended,
        Err(error) => Swept::Failed(error.in_full()),
    };
    let _ = out.send(end).await; // an abandoned sweep has no receiver
}

async fn sweep(postgres: &Postgres, from: &From, page_rows: i64, out: &mpsc::Sender<Swept>) -> Result<(), Error> {
    let mut connection = in_time(postgres.connect()).await?;
    for table in in_time(tables(&mut connection, from.by_hand.as_deref())).await? {
        if let Some(remedy) = table.missing_index() {
            let _ = out.send(Swept::NoIndex { table: table.name.clone(), remedy }).await;
        }
        let reason = match &table.unreadable {
            Some(reason) => Some(reason.clone()),
            None => sweep_or_reason(&mut connection, &table, from, page_rows, out).await?,
        };
        let Some(reason) = reason else { continue };
        let _ = out.send(Swept::Unreadable { watch: table.watch, table: table.name, reason }).await;
    }
    let done = from.checkpoint.as_ref().map_or_else(Snapshot::nothing, |from| from.log.clone());
    let mut after = None;
    loop {
        let (changes, last) = in_time(log::page(&mut connection, &done, after, LOG_ROWS)).await?;
        let _ = out.send(Swept::Log(changes)).await;
        match last {
            Some(_) if !out.is_closed() => after = last,
            _ => return Ok(()),
        }
    }
}

/// Sweeps a table; `Some`: why it cannot be read. What may pass is tried again, but not for ever: the code of the table's owner may raise
/// whatever it likes.
async fn sweep_or_reason(
    connection: &mut PgConnection,
    table: &Table,
    from: &From,
    page_rows: i64,
    out: &mpsc::Sender<Swept>,
) -> Result<Option<String>, Error> {
    let mut attempt = 1;
    loop {
        match sweep_table(connection, table, from, page_rows, out).await {
            Err(Error::Statement { source, .. })
                if source.as_database_error().is_some() && (attempt == ATTEMPTS || class(&source) == Class::Table) =>
            {
                return Ok(Some(format!("it cannot be read ({source})")));
            }
            Err(Error::Statement { source, .. }) if source.as_database_error().is_some() => attempt += 1,
            result => return result.map(|()| None),
        }
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(PATIENCE, answer).await.unwrap_or(Err(Error::Timeout(PATIENCE)))
}

async fn tables(connection: &mut PgConnection, only: Option<&[i32]>) -> Result<Vec<Table>, Error> {
    let rows =
        sqlx::query("select watch, table_name, column_name, since, unsweepable, needs_index, is_local from unstale.sweep_tables($1)")
            .bind(only)
            .fetch_all(connection)
            .await
            .map_err(Error::of("reading what is to be swept"))?;
    let table = |row: &sqlx::postgres::PgRow| Table {
        watch: row.get(0),
        name: row.get(1),
        column: row.get(2),
        since: row.get::<Option<i64>, _>(3).unwrap_or(i64::MIN),
        unreadable: row.get(4),
        needs_index: row.get(5),
        is_local: row.get(6),
    };
    Ok(rows.iter().map(table).collect())
}

/// Where a table's sweep begins, in microseconds.
fn start_of(table: &Table, from: &From) -> i64 {
    let made = table.since.saturating_sub(i64::try_from((2 * MARGIN).as_micros()).unwrap_or(0));
    let proven = from.checkpoint.as_ref().and_then(|from| from.watermark).max(from.done.get(&table.watch).copied());
    match (proven, &from.by_hand) {
        (None, _) => made,
        (Some(proven), None) => proven.0.max(made),
        (Some(asked), Some(_)) if table.is_local => asked.0.saturating_sub(HALF_A_DAY),
        (Some(asked), Some(_)) => asked.0,
    }
}

async fn sweep_table(
    connection: &mut PgConnection,
    table: &Table,
    from: &From,
    page_rows: i64,
    out: &mpsc::Sender<Swept>,
) -> Result<(), Error> {
    let failed = || Error::of("sweeping a table");
    in_time(async { connection.execute(SETTINGS).await.map_err(Error::of("preparing the sweep")) }).await?;
    let start = start_of(table, from);
    let mut after = "-infinity".to_owned();
    let mut chunk_rows = *CHUNK_ROWS.start();
    while !out.is_closed() {
        let page = sqlx::query(AssertSqlSafe(page_sql(table.watch))).persistent(false).bind(start).bind(&after).bind(page_rows);
        in_time(async { page.execute(&mut *connection).await.map_err(failed()) }).await?;
        let (mut found, mut through) = (0, None);
        while !out.is_closed() {
            let rows = sqlx::query(AssertSqlSafe(format!("fetch {chunk_rows} from page"))).persistent(false).fetch_all(&mut *connection);
            let rows = in_time(async { rows.await.map_err(failed()) }).await?;
            let Some(last) = rows.last() else { break };
            found += rows.len();
            (after, through) = (last.get(1), last.get(2));
            let images: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            let bytes: usize = images.iter().map(String::len).sum();
            chunk_rows = (CHUNK_BYTES * rows.len() / bytes.max(1)).clamp(*CHUNK_ROWS.start(), *CHUNK_ROWS.end());
            let _ = out.send(Swept::Rows(table.watch, images)).await;
        }
        in_time(async { connection.execute("close page").await.map_err(failed()) }).await?;
        if i64::try_from(found).unwrap_or(i64::MAX) < page_rows {
            break;
        }
        if let Some(through) = through {
            let _ = out.send(Swept::Page(table.watch, PgTime(through))).await;
        }
    }
    Ok(())
}

/// $1 the start in microseconds, $2 the last stamp of the page before, $3 the rows of a page. A row that gets another stamp
/// meanwhile was changed and is announced, or gets a later one.
fn page_sql(watch: i32) -> String {
    format!(
        "declare page no scroll cursor with hold for
         select p.image, p.stamp::pg_catalog.text, unstale.microseconds(p.stamp)
           from unstale.page_{watch}(unstale.from_microseconds($1), $2::pg_catalog.text::pg_catalog.timestamptz, $3) p"
    )
}
