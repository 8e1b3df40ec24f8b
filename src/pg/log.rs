//! `unstale.change_log`: what a sweep could not find.

use futures_util::TryStreamExt;
use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::Error;

/// Rows deleted at once, so that pruning never holds its locks, or the connection, for long.
const PRUNE_ROWS: i64 = 5_000;

/// What of one transaction is read at once; beyond, all keys of the table are deleted instead.
const TRANSACTION_ROWS: i64 = 10_000;
const TRANSACTION_BYTES: i64 = 4 << 20;

/// A page of logged changes of transactions from `xmin` on, in the order (xid, id), after the place `after`.
/// Returns the changes and the place of the last.
///
/// # Errors
/// [`Error::Statement`].
pub async fn page(
    connection: &mut PgConnection,
    xmin: u64,
    after: Option<(String, i64)>,
    rows: i64,
) -> Result<(Vec<String>, Option<(String, i64)>), Error> {
    let (xid, id) = after.unwrap_or_else(|| (xmin.to_string(), i64::MIN));
    let mut stream = sqlx::query(
        // ORDER BY of a bare name would be by the text in the select list, where 1000 comes before 999.
        "select l.change, l.xid::text, l.id from unstale.change_log l
          where (l.xid, l.id) > ($1::text::xid8, $2) order by l.xid, l.id limit $3",
    )
    .bind(xid)
    .bind(id)
    .bind(rows)
    .fetch(connection);
    let (mut changes, mut last) = (Vec::new(), None);
    while let Some(row) = stream.try_next().await.map_err(Error::of("reading the log"))? {
        changes.push(row.get(0));
        last = Some((row.get(1), row.get(2)));
    }
    Ok((changes, last))
}

/// One transaction's changes of one watch; of more than can be held, the one change that stands for all of them.
///
/// # Errors
/// [`Error::Statement`].
pub async fn of_transaction(connection: &mut PgConnection, watch: i32, xid: u64) -> Result<Vec<String>, Error> {
    let rows = sqlx::query(
        r#"with logged as materialized (
               select change from unstale.change_log where xid = $1::text::xid8 and watch = $2 limit $3 + 1
           ), size as (
               select count(*) <= $3 and coalesce(sum(octet_length(change)), 0) <= $4 as fits from logged
           )
           select change from logged, size where fits
           union all
           select format('{"watch":%s,"rev":0,"all":true}', $2) from size where not fits"#,
    )
    .bind(xid.to_string())
    .bind(watch)
    .bind(TRANSACTION_ROWS)
    .bind(TRANSACTION_BYTES)
    .fetch_all(connection)
    .await;
    Ok(rows.map_err(Error::of("reading the log"))?.iter().map(|row| row.get(0)).collect())
}

/// Deletes some of what every instance has done, a replay window ago; instances that are forgotten do not count.
///
/// # Errors
/// [`Error::Statement`].
pub async fn prune(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query(
        "delete from unstale.change_log where (xid, id) in (
             select l.xid, l.id from unstale.change_log l
              where l.xid < (select coalesce(c.replay_log_xmin, '0'::xid8) from unstale.checkpoint c
                              where c.saved_at >= clock_timestamp() - c.forget_after order by 1 limit 1)
              order by l.xid, l.id limit $1)",
    )
    .bind(PRUNE_ROWS)
    .execute(connection)
    .await
    .map_err(Error::of("pruning the log"))?;
    Ok(())
}
