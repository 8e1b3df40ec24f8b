//! The schema `unstale`: applying the embedded migrations, and refusing one that is newer than this program.

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor, Row};

use super::{Error, Postgres};

/// Of our own: `_sqlx_migrations` belongs to the application.
const TABLE: &str = "unstale.migrations";

/// Serializes twenty `migrate`s at once, and the creation of the schema, which sqlx does outside of its own lock.
const ADVISORY_LOCK: i64 = 0x0075_6e73_7461_6c65; // "unstale"

/// Version, name, text. The text is what psql would run.
const MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "tables", include_str!("../../migrations/0001_tables.sql")),
    (2, "templates", include_str!("../../migrations/0002_templates.sql")),
    (3, "triggers", include_str!("../../migrations/0003_triggers.sql")),
    (4, "watch", include_str!("../../migrations/0004_watch.sql")),
    (5, "check", include_str!("../../migrations/0005_check.sql")),
];

/// The version of this program's schema.
#[must_use]
pub fn known_version() -> i64 {
    MIGRATIONS.iter().map(|(version, ..)| *version).max().unwrap_or(0)
}

/// Applies what is missing; returns the names of what was applied. Twice is harmless, and so is twenty at once.
///
/// # Errors
/// [`Error::SchemaNewer`], or what the server says.
pub async fn migrate(postgres: &Postgres) -> Result<Vec<String>, Error> {
    // A connection of its own, closed at the end whatever happens: that ends the advisory lock.
    let mut connection = postgres.connect().await?;
    super::check_server(&mut connection).await?;
    sqlx::query("select pg_advisory_lock($1)")
        .bind(ADVISORY_LOCK)
        .execute(&mut connection)
        .await
        .map_err(Error::of("waiting for another `unstale migrate`"))?;
    let before = version(&mut connection).await?;
    if before.is_some_and(|found| found > known_version()) {
        return refuse_newer(before.unwrap_or_default());
    }
    // Other sessions rely on a migration that we report as applied.
    connection
        .execute("set synchronous_commit = on; set client_min_messages = warning; create schema if not exists unstale")
        .await
        .map_err(Error::of("creating the schema, for which the role needs `grant create on database`,"))?;
    let by_hand = before.is_none() && applied_by_hand(&mut connection).await?;
    run(&mut connection, by_hand).await?;
    let applied = MIGRATIONS.iter().filter(|(version, ..)| !by_hand && before.is_none_or(|before| *version > before));
    let applied = applied.map(|(version, name, _)| format!("{version:04}_{name}")).collect();
    connection.close().await.map_err(Error::of("closing the connection"))?;
    Ok(applied)
}

/// Applies the migrations that are missing in the ledger; `only_note` writes them into it and nothing else.
async fn run(connection: &mut PgConnection, only_note: bool) -> Result<(), Error> {
    let migrations = MIGRATIONS
        .iter()
        .map(|&(version, name, sql)| Migration::new(version, name.into(), MigrationType::Simple, sqlx::SqlStr::from_static(sql), false));
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.dangerous_set_table_name(TABLE);
    migrator.set_locking(false);
    migrator.run_direct(None, connection, only_note).await.map_err(sqlx::Error::from).map_err(Error::of("a migration"))
}

/// Was the schema made with psql, or with a tool that has its own ledger? Then the newest object is there.
async fn applied_by_hand(connection: &mut PgConnection) -> Result<bool, Error> {
    let row = sqlx::query("select to_regproc('unstale.findings') is not null").fetch_one(connection).await;
    Ok(row.map_err(Error::of("looking for the schema"))?.get(0))
}

/// The version of the database's schema; `None`: there is none.
async fn version(connection: &mut PgConnection) -> Result<Option<i64>, Error> {
    let exists = sqlx::query("select to_regclass('unstale.migrations') is not null").fetch_one(&mut *connection).await;
    if !exists.map_err(Error::of("looking for the schema"))?.get::<bool, _>(0) {
        return Ok(None);
    }
    let row = sqlx::query("select max(version) from unstale.migrations where success").fetch_one(connection).await;
    Ok(row.map_err(Error::of("reading unstale.migrations"))?.get(0))
}

/// Refuses a schema that this program does not know.
///
/// # Errors
/// [`Error::NotMigrated`], [`Error::SchemaNewer`], or [`Error::Statement`].
pub async fn check(connection: &mut PgConnection) -> Result<(), Error> {
    match version(connection).await? {
        Some(found) if found > known_version() => refuse_newer(found),
        Some(found) if found == known_version() => Ok(()),
        Some(_) => Err(Error::NotMigrated),
        None if applied_by_hand(connection).await? => Ok(()),
        None => Err(Error::NotMigrated),
    }
}

/// Is anything of it there?
///
/// # Errors
/// [`Error::Statement`].
pub async fn is_there(connection: &mut PgConnection) -> Result<bool, Error> {
    let row = sqlx::query("select to_regnamespace('unstale') is not null").fetch_one(connection).await;
    Ok(row.map_err(Error::of("looking for the schema"))?.get(0))
}

/// Drops the schema and all that is in it.
///
/// # Errors
/// [`Error::Statement`], for instance if somebody has a lock on a table of it.
pub async fn remove(connection: &mut PgConnection) -> Result<(), Error> {
    let statement = "set lock_timeout = '10s'; set client_min_messages = warning; drop schema unstale cascade";
    connection.execute(statement).await.map_err(Error::of("dropping the schema"))?;
    Ok(())
}

fn refuse_newer<T>(found: i64) -> Result<T, Error> {
    Err(Error::SchemaNewer { found, known: known_version() })
}
