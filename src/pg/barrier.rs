//! The barrier of `unstale wait`: is everything that was committed before it gone from an
//! instance's Redis?
//!
//! The proof is in migrations/repeatable/barrier.sql. Needs EXECUTE on the functions of
//! `unstale.grant_wait()`, and no table.

use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::Error;

/// The transaction that an instance's progress is compared with.
#[derive(Debug, Clone)]
pub struct Barrier(String);

/// Asks every listener to be quick, and returns what each has to get past. Not within a
/// transaction: its commit is the barrier.
///
/// # Errors
/// [`Error::Statement`].
pub async fn raise(connection: &mut PgConnection) -> Result<Barrier, Error> {
    let row = sqlx::query("select unstale.barrier()::text").fetch_one(connection).await;
    Ok(Barrier(
        row.map_err(Error::of(
            "asking the listeners to be quick, for which the role needs `unstale.grant_wait()`,",
        ))?
        .get(0),
    ))
}

/// Why an instance is not past it; `None`: it is, and everything that was committed before the
/// barrier is deleted.
///
/// # Errors
/// [`Error::Statement`].
pub async fn holds(
    connection: &mut PgConnection,
    barrier: &Barrier,
    instance: &str,
) -> Result<Option<String>, Error> {
    let query = sqlx::query("select unstale.before_barrier($1, $2::text::xid8)")
        .bind(instance)
        .bind(&barrier.0);
    Ok(query
        .fetch_one(connection)
        .await
        .map_err(Error::of("asking how far an instance is"))?
        .get(0))
}
