//! What is watched: reading `unstale.watch`, and calling `unstale.watch()` for `apply`.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;

use super::Error;
use crate::watched::{Audited, Spec, Watched};
use crate::watermark::PgTime;

/// Everything that is watched, and was until lately, by table.
///
/// # Errors
/// [`Error::Statement`].
pub async fn load(connection: &mut PgConnection) -> Result<Vec<Watched>, Error> {
    let rows = sqlx::query(
        "select id, rev, table_name, ended, sweepable, keys, delivery, updated_at, only_columns, max_ttl_microseconds,
                guarantee, reason, version, version_path,
                audited_microseconds, audit_complete, audit_compared, audit_stale, audit_unreadable from unstale.list_watches()",
    )
    .fetch_all(connection)
    .await
    .map_err(Error::of("reading the watches"))?;
    let watched = |row: &PgRow| Watched {
        id: row.get(0),
        rev: row.get(1),
        table: row.get(2),
        ended: row.get(3),
        sweepable: row.get(4),
        audited: row.get::<Option<i64>, _>(14).map(|at| Audited {
            at: PgTime(at),
            complete: row.get(15),
            compared: row.get(16),
            stale: row.get(17),
            unreadable: row.get(18),
        }),
        spec: Spec {
            keys: row.get(5),
            delivery: row.get(6),
            updated_at: row.get(7),
            only_columns: row.get(8),
            max_ttl: row
                .get::<Option<i64>, _>(9)
                .map(|micros| Duration::from_micros(micros.unsigned_abs())),
            guarantee: row.get(10),
            reason: row.get(11),
            version: row.get(12),
            version_path: row.get(13),
            any_prefix: false,
        },
    };
    Ok(rows.iter().map(watched).collect())
}

/// The full name of a table as a person wrote it; `None`: there is none.
///
/// # Errors
/// [`Error::Statement`], also if the name is no name.
pub async fn full_name(
    connection: &mut PgConnection,
    table: &str,
) -> Result<Option<String>, Error> {
    let row = sqlx::query(
        "select format('%I.%I', n.nspname, c.relname)
           from pg_class c join pg_namespace n on n.oid = c.relnamespace
          where c.oid = coalesce(to_regclass($1), case when cardinality(parse_ident($1)) = 1 then to_regclass('public.' || $1) end)",
    )
    .bind(table)
    .fetch_optional(connection)
    .await
    .map_err(Error::of("looking for a table"))?;
    Ok(row.map(|row| row.get(0)))
}

/// Would `unstale.watch()` take it? Changes nothing and takes no lock.
///
/// # Errors
/// [`Error::Statement`] with the sentence of the refusal.
pub async fn check(connection: &mut PgConnection, table: &str, spec: &Spec) -> Result<(), Error> {
    call(
        connection,
        "select unstale.with_policy(unstale.wanted($1::text::regclass, $2, $3, $4, $5, $6 * interval '1 second', $7), $8, $9, $10, $11) is not null",
        "this watch",
        table,
        spec,
    )
    .await?;
    Ok(())
}

/// The SQL that `unstale.watch()` would run, statement by statement; for the `nth` new watch of
/// several. Changes nothing and takes no lock.
///
/// # Errors
/// [`Error::Statement`] with the sentence of the refusal.
pub async fn preview(
    connection: &mut PgConnection,
    table: &str,
    spec: &Spec,
    nth: i32,
) -> Result<Vec<String>, Error> {
    let sql = "select unstale.preview($1::text::regclass, $2, $3, $4, $5, $6 * interval '1 second', $7, $8, $9, $10, $11, $12)";
    let rows = bind(sql, table, spec)
        .bind(nth)
        .fetch_all(connection)
        .await
        .map_err(Error::of("unstale.preview()"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// `unstale.watch()`; returns what it says: added, changed or unchanged.
///
/// # Errors
/// [`Error::Statement`] with the sentence of the refusal.
pub async fn watch(
    connection: &mut PgConnection,
    table: &str,
    spec: &Spec,
) -> Result<String, Error> {
    let row = call(
        connection,
        "select unstale.watch($1::text::regclass, $2, $3, $4, $5, $6 * interval '1 second', $7, $8, $9, $10, $11)",
        "unstale.watch()",
        table,
        spec,
    )
    .await?;
    Ok(row.get(0))
}

async fn call(
    connection: &mut PgConnection,
    sql: &'static str,
    what: &'static str,
    table: &str,
    spec: &Spec,
) -> Result<PgRow, Error> {
    bind(sql, table, spec).fetch_one(connection).await.map_err(Error::of(what))
}

/// $1 to $11: the arguments of `unstale.watch()`.
fn bind<'a>(
    sql: &'static str,
    table: &'a str,
    spec: &'a Spec,
) -> Query<'a, sqlx::Postgres, PgArguments> {
    sqlx::query(sql)
        .bind(table)
        .bind(&spec.keys)
        .bind(&spec.delivery)
        .bind(&spec.updated_at)
        .bind(&spec.only_columns)
        .bind(spec.max_ttl.map(|ttl| ttl.as_secs_f64()))
        .bind(spec.any_prefix)
        .bind(&spec.guarantee)
        .bind(&spec.reason)
        .bind(&spec.version)
        .bind(&spec.version_path)
}

/// Announces what no trigger says: dropped tables, partitions that come and go.
///
/// # Errors
/// [`Error::Statement`].
pub async fn notice_ddl(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query("select unstale.notice_ddl()")
        .execute(connection)
        .await
        .map_err(Error::of("looking for dropped tables"))?;
    Ok(())
}

/// The SQL that ends a watch, for people.
#[must_use]
pub fn unwatch_sql(watched: &Watched) -> String {
    match watched.table.strip_suffix(" (dropped)") {
        Some(_) => "select unstale.notice_ddl(); -- the table was dropped".to_owned(),
        None => format!("select unstale.unwatch('{}');", watched.table.replace('\'', "''")),
    }
}

/// `unstale.unwatch()`, also of a table that was dropped.
///
/// # Errors
/// [`Error::Statement`], for instance if the table's lock is not to be had.
pub async fn unwatch(connection: &mut PgConnection, watched: &Watched) -> Result<(), Error> {
    let query =
        sqlx::query("select unstale.unwatch(w.relation) from unstale.watch w where w.id = $1")
            .bind(watched.id);
    query.execute(connection).await.map_err(Error::of("unstale.unwatch()"))?;
    Ok(())
}
