//! Catching up: the rows stamped since the watermark, then the log.
//!
//! Reads in pages of about `sweep.page_rows`. A page ends between two stamps, never between rows of one stamp: rows move, by
//! VACUUM FULL or by an UPDATE that does not count, and nothing but the stamp stays. As a bulk import has one stamp for all its
//! rows, the server keeps the page (a cursor WITH HOLD), and no snapshot is held while Redis is slow. Rows come through
//! `unstale.row_N()`, the function that the triggers use, so that both make equal keys. A table that cannot be read is
//! widened to all its keys, never left out.

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

/// The next rows of the page that the server keeps: a few tens of kilobytes.
const NEXT_CHUNK: &str = "fetch 500 from page";

/// A page that takes longer is given up, lest its snapshot hold back vacuum.
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Without an answer for so long, the connection is dead: the server gives up earlier. The heartbeat has other connections.
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
    type_name: String,
    since: i64, // microseconds: no earlier change concerns us
    unreadable: Option<String>,
    needs_index: bool,
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
    let timeout = format!("set statement_timeout = {}; set work_mem = '32MB'", PAGE_TIMEOUT.as_millis());
    in_time(async { connection.execute(AssertSqlSafe(timeout)).await.map_err(Error::of("preparing the sweep")) }).await?;
    for table in in_time(tables(&mut connection, from.by_hand.as_deref())).await? {
        if let Some(remedy) = table.missing_index() {
            let _ = out.send(Swept::NoIndex { table: table.name.clone(), remedy }).await;
        }
        let reason = if let Some(reason) = &table.unreadable {
            reason.clone()
        } else {
            match sweep_table(&mut connection, &table, from, page_rows, out).await {
                Err(Error::Statement { source, .. }) if class(&source) == Class::Table => format!("it cannot be read ({source})"),
                result => {
                    result?;
                    continue;
                }
            }
        };
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

async fn in_time<T>(answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(PATIENCE, answer).await.unwrap_or(Err(Error::Timeout(PATIENCE)))
}

async fn tables(connection: &mut PgConnection, only: Option<&[i32]>) -> Result<Vec<Table>, Error> {
    let rows = sqlx::query(
        "select w.id, format('%I.%I', n.nspname, c.relname), coalesce(quote_ident(a.attname), ''), coalesce(a.atttypid::regtype::text, ''),
                (extract(epoch from w.since) * 1000000)::bigint,
                case when a.attname is null
                     then 'the column that it was swept by is gone; call unstale.watch() again'
                     when row_security_active(c.oid)
                     then 'row-level security hides rows from the sweep; let the listener''s role bypass it (alter role ... bypassrls)'
                end,
                a.attnum is not null and c.reltuples > 100000 and not exists (
                    select from pg_index i where i.indrelid = c.oid and i.indisvalid and i.indpred is null and i.indkey[0] = a.attnum)
           from unstale.watch w
           join pg_class c on c.oid = w.relation
           join pg_namespace n on n.oid = c.relnamespace
           left join pg_attribute a on a.attrelid = c.oid and a.attnum = unstale.sweep_column(w)
          where w.sweep_attnum is not null and w.ended is null and ($1 is null or w.id = any ($1))
          order by w.id",
    )
    .bind(only)
    .fetch_all(connection)
    .await
    .map_err(Error::of("reading what is to be swept"))?;
    let table = |row: &sqlx::postgres::PgRow| Table {
        watch: row.get(0),
        name: row.get(1),
        column: row.get(2),
        type_name: row.get(3),
        since: row.get(4),
        unreadable: row.get(5),
        needs_index: row.get(6),
    };
    Ok(rows.iter().map(table).collect())
}

async fn sweep_table(
    connection: &mut PgConnection,
    table: &Table,
    from: &From,
    page_rows: i64,
    out: &mpsc::Sender<Swept>,
) -> Result<(), Error> {
    let made = table.since - i64::try_from((2 * MARGIN).as_micros()).unwrap_or(0);
    let proven = from.checkpoint.as_ref().and_then(|from| from.watermark).max(from.done.get(&table.watch).copied());
    let earliest = if from.by_hand.is_some() { i64::MIN } else { made };
    let start = proven.map_or(made, |proven| proven.0.max(earliest));
    let mut after: Option<String> = None;
    while !out.is_closed() {
        let page = sqlx::query(AssertSqlSafe(page_sql(table, after.is_some()))).persistent(false).bind(start).bind(page_rows);
        let page = if let Some(stamp) = after.take() { page.bind(stamp) } else { page };
        in_time(async { page.execute(&mut *connection).await.map_err(Error::of("sweeping a table")) }).await?;
        let (mut found, mut through) = (0, None);
        while !out.is_closed() {
            let rows = sqlx::query(NEXT_CHUNK).persistent(false).fetch_all(&mut *connection);
            let rows = in_time(async { rows.await.map_err(Error::of("sweeping a table")) }).await?;
            let Some(last) = rows.last() else { break };
            found += rows.len();
            (after, through) = (Some(last.get(1)), last.get(2));
            let _ = out.send(Swept::Rows(table.watch, rows.iter().map(|row| row.get(0)).collect())).await;
        }
        in_time(async { connection.execute("close page").await.map_err(Error::of("sweeping a table")) }).await?;
        if i64::try_from(found).unwrap_or(i64::MAX) < page_rows {
            break;
        }
        if let Some(through) = through {
            let _ = out.send(Swept::Page(table.watch, PgTime(through))).await;
        }
    }
    Ok(())
}

/// $1 the start in microseconds, $2 the rows of a page, $3 the last stamp of the page before. A row that gets another stamp
/// meanwhile was changed and is announced, or gets a later one. `t.*`, because `t` may be a column.
fn page_sql(table: &Table, continued: bool) -> String {
    let Table { watch, name, column, type_name, .. } = table;
    let start = "('epoch'::timestamptz + $1::bigint * interval '1 microsecond')";
    // A timestamp without a zone is UTC, as in the trigger.
    let start = if type_name.starts_with("timestamp without") { format!("timezone('UTC', {start})") } else { start.to_owned() };
    let place = if continued { format!("and t.{column} > $3::text::{type_name}") } else { String::new() };
    format!(
        "declare page no scroll cursor with hold for
         select unstale.row_{watch}(t.*), t.{column}::text,
                case when isfinite(t.{column}) then (extract(epoch from t.{column}) * 1000000)::bigint end
           from {name} t
          where t.{column} >= {start} {place}
          order by t.{column}
          fetch first ($2::bigint) rows with ties"
    )
}
