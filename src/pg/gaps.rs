//! The ledger of gaps, read.

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::Error;
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
pub async fn last(connection: &mut PgConnection, instance: &str, most: usize) -> Result<Vec<Gap>, Error> {
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
