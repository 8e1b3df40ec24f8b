//! The ledger of gaps, `unstale.gap`.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::Error;
use crate::messages::{Cause, GapSummary};
use crate::watermark::PgTime;

/// A row of `unstale.gap`.
#[derive(Debug, Clone, PartialEq)]
pub struct Gap {
    /// Why it opened.
    pub cause: String,
    /// When.
    pub opened_at: PgTime,
    /// `None`: it is open.
    pub lasted_seconds: Option<f64>,
    /// Rows read from the tables.
    pub swept: u64,
    /// Rows read from the log.
    pub logged: u64,
    /// Keys deleted.
    pub keys: u64,
}

/// The last gaps of an instance, the latest first.
///
/// # Errors
/// [`Error::Statement`].
pub async fn last(
    connection: &mut PgConnection,
    instance: &str,
    most: usize,
) -> Result<Vec<Gap>, Error> {
    let rows = sqlx::query("select cause, opened_at, lasted_seconds, swept, logged, keys from unstale.last_gaps($1, $2)")
        .bind(instance)
        .bind(i32::try_from(most).unwrap_or(i32::MAX))
        .fetch_all(connection)
        .await
        .map_err(Error::of("reading the ledger of gaps"))?;
    let gap = |row: &PgRow| Gap {
        cause: row.get(0),
        opened_at: PgTime(row.get::<Option<i64>, _>(1).unwrap_or(0)), // none: before or after all time
        lasted_seconds: row.get(2),
        swept: row.get::<i64, _>(3).unsigned_abs(),
        logged: row.get::<i64, _>(4).unsigned_abs(),
        keys: row.get::<i64, _>(5).unsigned_abs(),
    };
    Ok(rows.iter().map(gap).collect())
}

/// Notes an open gap, since this long ago; its number. What an earlier session, or process, did not
/// catch up with is still the same gap.
pub(super) async fn open(
    connection: &mut PgConnection,
    instance: &str,
    cause: Cause,
    ago: Duration,
) -> Result<i64, Error> {
    let row = sqlx::query("select unstale.open_gap($1, $2, $3 * interval '1 second')")
        .bind(instance)
        .bind(cause.label())
        .bind(ago.as_secs_f64())
        .fetch_one(connection)
        .await
        .map_err(Error::of("noting a gap"))?;
    Ok(row.get(0))
}

/// Notes that it is closed.
pub(super) async fn close(
    connection: &mut PgConnection,
    gap: Option<i64>,
    summary: GapSummary,
) -> Result<(), Error> {
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    sqlx::query("select unstale.close_gap($1, $2, $3, $4)")
        .bind(gap)
        .bind(count(summary.swept))
        .bind(count(summary.logged))
        .bind(count(summary.keys))
        .execute(connection)
        .await
        .map_err(Error::of("noting the end of a gap"))?;
    Ok(())
}
