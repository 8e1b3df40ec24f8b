//! Catching up: the rows stamped since the watermark, then the log.
//!
//! Reads in pages of about `sweep.page_rows`. A page ends between two stamps, never between rows of
//! one stamp: rows move, by VACUUM FULL or by an UPDATE that does not count, and nothing but the
//! stamp stays. A page is read before it is handed on, so that no snapshot is held while Redis is
//! slow; one of many rows, as a bulk import has one stamp for all of them, in parts. Rows come
//! through `unstale.page_N()`, which runs as the table's owner and calls the function that the
//! triggers use, so that both make equal keys. A table that cannot be read, or not in time, is
//! widened to all its keys, never left out.
//!
//! A page runs code of the table's owner: expression indexes, statistics, policies. While that runs
//! it has the owner's rights and no others; but what it leaves for the end of the transaction (a
//! deferred trigger, a cursor WITH HOLD) would run as the session's role. So a page's transaction
//! is read-only and never commits, which also undoes its settings. That code may raise what it
//! likes, sleep on whatever cancels it, or break the session: then the table has failed, not the
//! sweep. What is not undone (prepared statements, locks of the session) meets statements without a
//! name, and is discarded before the next table. The log is read by another session.

use std::collections::HashMap;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor, Row};
use tokio::sync::mpsc;

use super::sqlstate::{Class, class};
use super::{Error, Postgres, log};
use crate::messages::Swept;
use crate::watermark::{Checkpoint, LogRead, MARGIN, PgTime, Snapshot};

/// Rows of a page of the log: each may be a payload's size, 8 kB.
const LOG_ROWS: i64 = 100;

/// The next rows of the page that the server keeps should have about so many bytes.
const CHUNK_BYTES: usize = 64 << 10;

/// Rows of a chunk, at the least and at the most: one may have some tens of kilobytes.
const CHUNK_ROWS: std::ops::RangeInclusive<usize> = 16..=500;

/// A page's rows are kept here until there are so many bytes of them: then they are handed on while
/// its snapshot is held.
const SPOOL_BYTES: usize = 4 << 20;

/// How long a statement of a page may take.
pub const PAGE_TIMEOUT: Duration = Duration::from_secs(60);

/// How far a stamp without a zone may be from the time that a person means.
const HALF_A_DAY: i64 = 14 * 3_600_000_000;

/// How often a table is tried that cannot be read.
const ATTEMPTS: u32 = 3;

/// Without an answer for so long after the statement's timeout, the connection is dead, or the code
/// of a table's owner does not let itself be cancelled.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Where a sweep begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct From {
    /// What is proven; `None`: sweep from when each watch was made.
    pub checkpoint: Option<Checkpoint>,
    /// Watches that an earlier, unfinished sweep has brought up to this stamp.
    pub done: HashMap<i32, PgTime>,
    /// What of the log it has brought.
    pub log: Option<LogRead>,
    /// Asked for by a person; `None`: by the listener.
    pub by_hand: Option<ByHand>,
    /// How long a statement of a page may take: [`PAGE_TIMEOUT`].
    pub page_timeout: Duration,
}

/// What a person asks for: these watches alone, and also from before they were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByHand {
    /// `unstale.watch.id` of each.
    pub watches: Vec<i32>,
    /// A table ends with the page that has come this far, so that one whose rows change faster than
    /// they are looked at has an end.
    pub until: Option<PgTime>,
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
        self.needs_index
            .then(|| format!("create index concurrently on {} ({})", self.name, self.column))
    }
}

/// The large tables that would be read page by page without an index: name, column, and the
/// statement that mends it.
///
/// # Errors
/// [`Error::Statement`].
pub async fn without_index(
    connection: &mut PgConnection,
) -> Result<Vec<(String, String, String)>, Error> {
    let tables = tables(connection, None).await?;
    Ok(tables
        .iter()
        .filter_map(|table| {
            Some((table.name.clone(), table.column.clone(), table.missing_index()?))
        })
        .collect())
}

/// Sweeps everything from the checkpoint on into `out`; ends when it is done, or when nobody
/// receives any more.
pub async fn run(postgres: Postgres, from: From, page_rows: u32, out: mpsc::Sender<Swept>) {
    let end = match sweep(&postgres, &from, i64::from(page_rows), &out).await {
        Ok(()) => Swept::Ended,
        Err(error) => Swept::Failed(error.in_full()),
    };
    let _ = out.send(end).await; // an abandoned sweep has no receiver
}

async fn sweep(
    postgres: &Postgres,
    from: &From,
    page_rows: i64,
    out: &mpsc::Sender<Swept>,
) -> Result<(), Error> {
    let mut session = Session::open(postgres, from.page_timeout).await?;
    for table in in_time(
        PAGE_TIMEOUT,
        tables(&mut session.connection, from.by_hand.as_ref().map(|by_hand| &by_hand.watches[..])),
    )
    .await?
    {
        if let Some(remedy) = table.missing_index() {
            let _ = out.send(Swept::NoIndex { table: table.name.clone(), remedy }).await;
        }
        let reason = match &table.unreadable {
            Some(reason) => Some(reason.clone()),
            None => sweep_or_reason(postgres, &mut session, &table, from, page_rows, out).await?,
        };
        let Some(reason) = reason else { continue };
        let _ = out.send(Swept::Unreadable { watch: table.watch, table: table.name, reason }).await;
    }
    drop(session);
    sweep_log(postgres, from, out).await
}

/// After an unfinished sweep: first what had not ended for it, up to where it came, then what comes
/// after that place.
async fn sweep_log(
    postgres: &Postgres,
    from: &From,
    out: &mpsc::Sender<Swept>,
) -> Result<(), Error> {
    let mut connection = in_time(PAGE_TIMEOUT, postgres.connect()).await?;
    let mut page = async |done: &Snapshot, after| {
        let (changes, last) =
            in_time(PAGE_TIMEOUT, log::page(&mut connection, done, after, LOG_ROWS)).await?;
        let _ = out.send(Swept::Log(changes)).await;
        Ok::<_, Error>(last.filter(|_| !out.is_closed()))
    };
    let mut after = None;
    if let Some(LogRead { seen, through }) = &from.log {
        while after.is_none_or(|after| after < *through) {
            let Some(last) = page(seen, after).await? else { break };
            after = Some(last);
        }
        after = Some(*through);
    }
    let done = from.checkpoint.as_ref().map_or_else(Snapshot::nothing, |from| from.log.clone());
    while let Some(last) = page(&done, after).await? {
        after = Some(last);
        let _ = out.send(Swept::LogPage(last)).await;
    }
    Ok(())
}

/// A session in which the code of tables' owners may have run.
pub(super) struct Session {
    pub(super) connection: PgConnection,
    backend: i32,
    timeout: Duration, // of a statement
}

impl Session {
    pub(super) async fn open(postgres: &Postgres, timeout: Duration) -> Result<Self, Error> {
        let mut connection = in_time(PAGE_TIMEOUT, postgres.connect()).await?;
        let asked = sqlx::query("select pg_backend_pid()").fetch_one(&mut connection);
        let row = in_time(PAGE_TIMEOUT, async {
            asked.await.map_err(Error::of("asking for the backend"))
        })
        .await?;
        Ok(Self { backend: row.get(0), connection, timeout })
    }

    /// The same anew, whatever this one has become. A backend that did not let itself be cancelled
    /// is ended: the end of its client would not do that.
    pub(super) async fn replace(
        &mut self,
        postgres: &Postgres,
        is_stuck: bool,
    ) -> Result<(), Error> {
        let mut new = Self::open(postgres, self.timeout).await?;
        if is_stuck {
            let ended = sqlx::query("select pg_terminate_backend($1)")
                .bind(self.backend)
                .execute(&mut new.connection);
            in_time(PAGE_TIMEOUT, async {
                ended.await.map_err(Error::of("ending a session of the sweep"))
            })
            .await?;
        }
        *self = new;
        Ok(())
    }

    /// What it is again before each table. Not DISCARD ALL, which would also give up a role that
    /// our own role is to have.
    pub(super) async fn clean(&mut self) -> Result<(), Error> {
        let milliseconds = self.timeout.as_millis();
        self.run(&format!(
            "close all; deallocate all; select pg_advisory_unlock_all();
             set search_path = pg_catalog, pg_temp; set statement_timeout = {milliseconds}; set work_mem = '32MB'; set jit = off;
             set idle_in_transaction_session_timeout = '10min'"
        ))
        .await
    }

    pub(super) async fn run(&mut self, sql: &str) -> Result<(), Error> {
        let (limit, done) = (self.timeout + PATIENCE, self.connection.execute(AssertSqlSafe(sql)));
        in_time(limit, async { done.await.map_err(Error::of("sweeping a table")) }).await?;
        Ok(())
    }
}

/// Sweeps a table; `Some`: why it cannot be read. What may pass is tried again, but not for ever:
/// the code of the table's owner may raise whatever it likes, and end the session by a setting.
async fn sweep_or_reason(
    postgres: &Postgres,
    session: &mut Session,
    table: &Table,
    from: &From,
    page_rows: i64,
    out: &mpsc::Sender<Swept>,
) -> Result<Option<String>, Error> {
    let mut attempt = 1;
    loop {
        let Err(error) = sweep_table(session, table, from, page_rows, out).await else {
            return Ok(None);
        };
        let is_stuck = matches!(error, Error::Timeout(_));
        session.replace(postgres, is_stuck).await?; // fails if the server is to blame
        let is_for_good = is_stuck
            || matches!(&error, Error::Statement { source, .. } if class(source) == Class::Table);
        if is_for_good || attempt == ATTEMPTS {
            let reason = if let Error::Statement { source, .. } = &error {
                source.to_string()
            } else {
                error.to_string()
            };
            return Ok(Some(format!("it cannot be read ({reason})")));
        }
        attempt += 1;
    }
}

pub(super) async fn in_time<T>(
    limit: Duration,
    answer: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(limit, answer).await.unwrap_or(Err(Error::Timeout(limit)))
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
    let proven = from
        .checkpoint
        .as_ref()
        .and_then(|from| from.watermark)
        .max(from.done.get(&table.watch).copied());
    match (proven, &from.by_hand) {
        (None, _) => made,
        (Some(proven), None) => proven.0.max(made),
        (Some(asked), Some(_)) if table.is_local => asked.0.saturating_sub(HALF_A_DAY),
        (Some(asked), Some(_)) => asked.0,
    }
}

/// Where it may end, in microseconds.
fn end_of(table: &Table, from: &From) -> i64 {
    let asked = from.by_hand.as_ref().and_then(|by_hand| by_hand.until);
    asked.map_or(i64::MAX, |until| {
        until.0.saturating_add(if table.is_local { HALF_A_DAY } else { 0 })
    })
}

async fn sweep_table(
    session: &mut Session,
    table: &Table,
    from: &From,
    page_rows: i64,
    out: &mpsc::Sender<Swept>,
) -> Result<(), Error> {
    session.clean().await?;
    let start = start_of(table, from);
    let until = end_of(table, from);
    let mut after = "-infinity".to_owned();
    while !out.is_closed() {
        // Not even an error leaves a transaction to commit: the session is replaced.
        session.run("begin isolation level read committed read only").await?;
        let page = read_page(session, table.watch, (start, &after, page_rows), out).await?;
        let is_last = i64::try_from(page.rows).unwrap_or(i64::MAX) < page_rows;
        let through = match &page.last {
            Some(last) if !is_last => microseconds(session, last).await?,
            _ => None,
        };
        session.run("rollback").await?;
        for images in page.spool {
            let _ = out.send(Swept::Rows(table.watch, images)).await;
        }
        let Some(last) = page.last.filter(|_| !is_last) else { break };
        after = last;
        if let Some(through) = through {
            let _ = out.send(Swept::Page(table.watch, PgTime(through))).await;
            if through >= until {
                break;
            }
        }
    }
    Ok(())
}

/// What of a page is not handed on yet, how many rows it had, and the stamp of its last row.
#[derive(Default)]
struct Page {
    spool: Vec<Vec<String>>,
    rows: usize,
    last: Option<String>,
}

async fn read_page(
    session: &mut Session,
    watch: i32,
    (start, after, page_rows): (i64, &str, i64),
    out: &mpsc::Sender<Swept>,
) -> Result<Page, Error> {
    let failed = || Error::of("sweeping a table");
    let (limit, connection) = (session.timeout + PATIENCE, &mut session.connection);
    let declared = sqlx::query(AssertSqlSafe(page_sql(watch)))
        .persistent(false)
        .bind(start)
        .bind(after)
        .bind(page_rows);
    in_time(limit, async { declared.execute(&mut *connection).await.map_err(failed()) }).await?;
    let mut page = Page::default();
    let (mut chunk_rows, mut spooled) = (*CHUNK_ROWS.start(), 0);
    while !out.is_closed() {
        let rows = sqlx::query(AssertSqlSafe(format!("fetch {chunk_rows} from page")))
            .persistent(false)
            .fetch_all(&mut *connection);
        let rows = in_time(limit, async { rows.await.map_err(failed()) }).await?;
        let Some(last) = rows.last() else { break };
        page.rows += rows.len();
        // try_get: the code of the table's owner may have set another client_encoding.
        page.last = Some(last.try_get(1).map_err(failed())?);
        let images: Vec<String> =
            rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(failed())?;
        let bytes: usize = images.iter().map(String::len).sum();
        chunk_rows =
            (CHUNK_BYTES * rows.len() / bytes.max(1)).clamp(*CHUNK_ROWS.start(), *CHUNK_ROWS.end());
        spooled += bytes;
        page.spool.push(images);
        if spooled > SPOOL_BYTES {
            for images in page.spool.drain(..) {
                let _ = out.send(Swept::Rows(watch, images)).await;
            }
            spooled = 0;
        }
    }
    Ok(page)
}

/// The stamp of a page's last row. Once a page: of each of its rows it would cost two thirds of the
/// sweep.
async fn microseconds(session: &mut Session, stamp: &str) -> Result<Option<i64>, Error> {
    let sql = "select unstale.microseconds($1::pg_catalog.text::pg_catalog.timestamptz)";
    let asked =
        sqlx::query_scalar(sql).persistent(false).bind(stamp).fetch_one(&mut session.connection);
    in_time(session.timeout + PATIENCE, async {
        asked.await.map_err(Error::of("sweeping a table"))
    })
    .await
}

/// $1 the start in microseconds, $2 the last stamp of the page before, $3 the rows of a page. A row
/// that gets another stamp meanwhile was changed and is announced, or gets a later one.
fn page_sql(watch: i32) -> String {
    format!(
        "declare page no scroll cursor for
         select p.image, p.stamp::pg_catalog.text
           from unstale.page_{watch}(unstale.from_microseconds($1), $2::pg_catalog.text::pg_catalog.timestamptz, $3) p"
    )
}
