//! Who the server is: whether it is still the same, has failed over since, or was restored.
//!
//! Managed servers refuse some of the functions that tell (Aurora `pg_current_wal_lsn()`, others
//! `pg_control_system()`), and administrators revoke them. Without them less is known of
//! fail-overs, which is said, and everything else works.

use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::Error;
use crate::watermark::{PgTime, Server};

/// What a part of the history is where the server does not tell it.
const UNKNOWN: &str = "?";

/// What tells the system's identifier, and what tells its timeline, from the best to the next best.
/// After a promotion a checkpoint's timeline is the earlier one for a while.
const SYSTEM: [&str; 1] = ["select system_identifier::text from pg_control_system()"];
const TIMELINE: [&str; 2] = [
    "select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)",
    "select upper(lpad(to_hex(timeline_id), 8, '0')) from pg_control_checkpoint()",
];

/// Asks the server who it is. The sentence says what is not known, if anything.
///
/// # Errors
/// [`Error::Statement`] if the connection fails; a refusal is no failure.
pub(super) async fn ask(connection: &mut PgConnection) -> Result<(Server, Option<String>), Error> {
    let mut refusals = Vec::new();
    let system = first_answer(connection, &SYSTEM, &mut refusals).await?;
    let timeline = first_answer(connection, &TIMELINE, &mut refusals).await?;
    let started =
        sqlx::query("select (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint")
            .fetch_one(connection)
            .await;
    let started = PgTime(started.map_err(Error::of("asking the server when it started"))?.get(0));
    let unknown = [("another server", &system), ("a fail-over", &timeline)]
        .into_iter()
        .filter(|(_, part)| part.is_none());
    let unknown: Vec<&str> = unknown.map(|(sign, _)| sign).collect();
    let sentence = (!unknown.is_empty()).then(|| {
        let signs = unknown.join(" and ");
        format!("{signs} can be told only by the time at which the server started, and not while no listener runs: {}", refusals.join("; "))
    });
    let part = |part: Option<String>| part.unwrap_or_else(|| UNKNOWN.to_owned());
    Ok((Server { timeline: format!("{}/{}", part(system), part(timeline)), started }, sentence))
}

async fn first_answer(
    connection: &mut PgConnection,
    ways: &[&'static str],
    refusals: &mut Vec<String>,
) -> Result<Option<String>, Error> {
    let mut refused = Vec::new();
    for way in ways {
        match sqlx::query(*way).fetch_one(&mut *connection).await {
            Ok(row) => return Ok(Some(row.get(0))),
            Err(sqlx::Error::Database(refusal)) => refused.push(refusal.message().to_owned()),
            Err(error) => return Err(Error::of("asking the server who it is")(error)),
        }
    }
    refusals.extend(refused);
    Ok(None)
}

/// The grants that would let it tell; a comment where the server refuses everybody.
///
/// # Errors
/// [`Error::Statement`].
pub(super) async fn remedy(connection: &mut PgConnection) -> Result<String, Error> {
    let row = sqlx::query(
        "select string_agg(format('grant execute on function %s to %I;', f::regprocedure, current_user), ' ')
           from unnest(array['pg_control_system()', 'pg_current_wal_lsn()', 'pg_walfile_name(pg_lsn)']) f
          where not has_function_privilege(f, 'execute')",
    )
    .fetch_one(connection)
    .await
    .map_err(Error::of("looking at the role"))?;
    let grants: Option<String> = row.get(0);
    Ok(grants.unwrap_or_else(|| {
        "# nothing can be done where the server refuses it, as Aurora does".to_owned()
    }))
}
