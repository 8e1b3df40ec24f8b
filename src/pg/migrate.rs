//! The schema `unstale`: applying the embedded migrations, and refusing one that is newer than this
//! program.
//!
//! Numbered files make tables, once. Repeatable files make functions, all of them anew whenever one
//! differs, in one transaction with the numbered ones. Then each watch's generated code is made
//! anew, in a transaction of its own, so that no table's lock is held for longer than that takes.
//! Refuses a schema that others could put code into: it runs in every writer's transaction.

use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor, Row};

use super::Error;

/// Of our own: `_sqlx_migrations` belongs to the application.
const TABLE: &str = "unstale.migrations";

/// How long another `unstale migrate`, or whoever else has a lock on our tables, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Version, name, text. The text is the same that psql would run. Numbers 2 to 5 were functions,
/// which are repeatable now.
const NUMBERED: &[(i64, &str, &str)] = &[
    (1, "tables", include_str!("../../migrations/0001_tables.sql")),
    (6, "private", include_str!("../../migrations/0006_private.sql")),
    (7, "policy", include_str!("../../migrations/0007_policy.sql")),
    (8, "audit", include_str!("../../migrations/0008_audit.sql")),
];

/// Name and text, in any order.
const REPEATABLE: &[(&str, &str)] = &[
    ("audit", include_str!("../../migrations/repeatable/audit.sql")),
    ("barrier", include_str!("../../migrations/repeatable/barrier.sql")),
    ("ddl", include_str!("../../migrations/repeatable/ddl.sql")),
    ("findings", include_str!("../../migrations/repeatable/findings.sql")),
    ("instances", include_str!("../../migrations/repeatable/instances.sql")),
    ("legacy", include_str!("../../migrations/repeatable/legacy.sql")),
    ("locks", include_str!("../../migrations/repeatable/locks.sql")),
    ("policy", include_str!("../../migrations/repeatable/policy.sql")),
    ("preview", include_str!("../../migrations/repeatable/preview.sql")),
    ("privileges", include_str!("../../migrations/repeatable/privileges.sql")),
    ("replication", include_str!("../../migrations/repeatable/replication.sql")),
    ("rotation", include_str!("../../migrations/repeatable/rotation.sql")),
    ("statements", include_str!("../../migrations/repeatable/statements.sql")),
    ("sweep", include_str!("../../migrations/repeatable/sweep.sql")),
    ("templates", include_str!("../../migrations/repeatable/templates.sql")),
    ("triggers", include_str!("../../migrations/repeatable/triggers.sql")),
    ("upgrade", include_str!("../../migrations/repeatable/upgrade.sql")),
    ("watch", include_str!("../../migrations/repeatable/watch.sql")),
    ("wire", include_str!("../../migrations/repeatable/wire.sql")),
];

/// The version of this program's schema, the same as in migrations/repeatable/upgrade.sql.
#[must_use]
pub fn known_version() -> i64 {
    NUMBERED.iter().map(|(version, ..)| *version).max().unwrap_or(0)
}

/// What `unstale migrate` did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Migrated {
    /// The names of the files that were applied.
    pub applied: Vec<String>,
    /// Watches whose generated code is of an older release.
    pub outdated: Vec<Outdated>,
}

/// A watch whose generated code is of an older release.
#[derive(Debug, PartialEq, Eq)]
pub struct Outdated {
    /// `unstale.watch.id`.
    pub watch: i32,
    /// Schema and name.
    pub table: String,
}

/// Applies what is missing or differs. Twice is harmless, and so is twenty at once.
///
/// # Errors
/// [`Error::SchemaNewer`]; [`Error::Unsuitable`] if the schema belongs to somebody else, or others
/// may create in it; or what the server says.
pub async fn migrate(connection: &mut PgConnection) -> Result<Migrated, Error> {
    super::check_server(connection).await?;
    // Other sessions rely on a migration that we report as applied.
    let settings = format!(
        "set synchronous_commit = on; set client_min_messages = warning; set lock_timeout = {}",
        PATIENCE.as_millis()
    );
    connection
        .execute(AssertSqlSafe(settings))
        .await
        .map_err(Error::of("preparing the migration"))?;
    let applied = match apply(connection).await {
        // Somebody else made the schema at the same time: it is looked at like any other.
        Err(Error::Statement { source, .. }) if is_race(&source) => apply(connection).await?,
        result => result?,
    };
    let rows = sqlx::query(
        "select w.id, w.relation::text from unstale.watch w join pg_class c on c.oid = w.relation
          where w.ended is null and w.code <> unstale.release() order by w.id",
    );
    let rows = rows
        .fetch_all(connection)
        .await
        .map_err(Error::of("looking for watches of an older release"))?;
    Ok(Migrated {
        applied,
        outdated: rows
            .iter()
            .map(|row| Outdated { watch: row.get(0), table: row.get(1) })
            .collect(),
    })
}

/// Makes the generated code of one watch anew; false: it stays as it was, because its table is in
/// use.
///
/// # Errors
/// [`Error::Statement`].
pub async fn regenerate(connection: &mut PgConnection, outdated: &Outdated) -> Result<bool, Error> {
    let row = sqlx::query("select unstale.regenerate($1)")
        .bind(outdated.watch)
        .fetch_one(connection)
        .await;
    Ok(row.map_err(Error::of("making a watch's triggers anew"))?.get::<i32, _>(0) > 0)
}

/// Everything in one transaction: a writer sees the functions of before, or those of now.
async fn apply(connection: &mut PgConnection) -> Result<Vec<String>, Error> {
    let mut transaction = connection.begin().await.map_err(Error::of("beginning the migration"))?;
    if is_there(&mut transaction).await? {
        refuse_strangers(&mut transaction).await?;
    } else {
        let create = transaction.execute("create schema unstale").await;
        create.map_err(Error::of(
            "creating the schema, for which the role needs `grant create on database`,",
        ))?;
    }
    let before = version(&mut transaction).await?;
    if before > known_version() {
        return refuse_newer(before);
    }
    lock(&mut transaction).await?;
    let mut applied = run_numbered(&mut transaction).await?;
    applied.extend(run_repeatable(&mut transaction).await?);
    transaction.commit().await.map_err(Error::of("committing the migration"))?;
    Ok(applied)
}

/// Another `unstale migrate` is waited for, and named if it takes too long.
async fn lock(connection: &mut PgConnection) -> Result<(), Error> {
    let row = sqlx::query("select to_regclass('unstale.migrations') is not null")
        .fetch_one(&mut *connection)
        .await;
    if !row.map_err(Error::of("looking for the ledger"))?.get::<bool, _>(0) {
        return Ok(());
    }
    let locked =
        connection.execute("lock table unstale.migrations in share row exclusive mode").await;
    locked.map(drop).map_err(Error::of(
        "waiting for another `unstale migrate`, which has a lock on unstale.migrations,",
    ))
}

/// The schema was made by somebody else, or at the same time by another `unstale migrate`.
fn is_race(error: &sqlx::Error) -> bool {
    error
        .as_database_error()
        .and_then(|error| error.code())
        .is_some_and(|code| matches!(&*code, "42P06" | "23505"))
}

/// Refuses a schema of somebody else's, and one in which something is: its functions run in the
/// transactions of every writer, with its owner's rights. This does not call any of them.
async fn refuse_strangers(connection: &mut PgConnection) -> Result<(), Error> {
    let row = sqlx::query(
        "select n.nspowner::regrole::text, current_user::text, n.nspowner = r.oid,
                -- Before PostgreSQL 15 a role could make others its members: that it owns the schema must be somebody else's will.
                not r.rolsuper and exists (select from pg_auth_members m join pg_roles g on g.oid = m.grantor
                                            where m.roleid = n.nspowner and m.member = r.oid and (g.rolsuper or g.rolcreaterole)),
                array(select case a.grantee when 0 then 'public' else a.grantee::regrole::text end from aclexplode(n.nspacl) a
                       where a.privilege_type = 'CREATE' and a.grantee <> n.nspowner),
                array(select format('function %s of %s', p.oid::regprocedure, p.proowner::regrole) from pg_proc p
                       where p.pronamespace = n.oid and p.proowner <> n.nspowner and p.proname !~ '^(page|audit)_[0-9]+$'
                      union all
                      select format('%s of %s', c.oid::regclass, c.relowner::regrole) from pg_class c
                       where c.relnamespace = n.oid and c.relkind not in ('i', 't', 'c') and c.relowner <> n.nspowner)
           from pg_namespace n, pg_roles r
          where n.nspname = 'unstale' and r.rolname = current_user",
    )
    .fetch_one(&mut *connection)
    .await
    .map_err(Error::of("looking at who owns the schema unstale"))?;
    let (owner, us): (String, String) = (row.get(0), row.get(1));
    let (creators, strangers): (Vec<String>, Vec<String>) = (row.get(4), row.get(5));
    if !row.get::<bool, _>(2) {
        if !row.get::<bool, _>(3) {
            return Err(Error::Unsuitable(format!(
                "the schema unstale belongs to {owner}, and its functions would run in the transactions of every writer; \
                 run `unstale migrate` as {owner}, or, if that role should not have made it: drop schema unstale cascade; (now: {us})"
            )));
        }
        let become_owner = format!("set local role {owner}"); // quoted by regrole
        connection
            .execute(AssertSqlSafe(become_owner))
            .await
            .map_err(Error::of("becoming the owner of the schema unstale"))?;
    }
    if !creators.is_empty() {
        let creators = creators.join(", ");
        return Err(Error::Unsuitable(format!(
            "others may create in the schema unstale, and so put code of theirs into every writer's transaction: {creators}; \
             revoke create on schema unstale from {creators};"
        )));
    }
    if !strangers.is_empty() {
        return Err(Error::Unsuitable(format!(
            "the schema unstale belongs to {owner}, but in it there is {}; drop it if nobody knows it, or give it to {owner}",
            strangers.join(", ")
        )));
    }
    Ok(())
}

/// Applies the numbered files that the ledger lacks, and those that were applied by hand only to
/// the ledger.
async fn run_numbered(connection: &mut PgConnection) -> Result<Vec<String>, Error> {
    let by_hand = applied_by_hand(connection).await?;
    let migrations = NUMBERED.iter().map(|&(version, name, sql)| {
        Migration::new(
            version,
            name.into(),
            MigrationType::Simple,
            sqlx::SqlStr::from_static(sql),
            false,
        )
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.dangerous_set_table_name(TABLE);
    migrator.set_locking(false);
    migrator.set_ignore_missing(true); // numbers 2 to 5
    let known = ledger(connection).await?;
    let failed = Error::of("a migration");
    let mut run = migrator.run_direct(Some(by_hand), connection, true).await;
    if run.is_ok() {
        run = migrator.run_direct(None, connection, false).await;
    }
    run.map_err(sqlx::Error::from).map_err(failed)?;
    let applied =
        NUMBERED.iter().filter(|(version, ..)| !known.contains(version) && *version > by_hand);
    Ok(applied.map(|(version, name, _)| format!("{version:04}_{name}")).collect())
}

/// The numbers in the ledger.
async fn ledger(connection: &mut PgConnection) -> Result<Vec<i64>, Error> {
    let exists = sqlx::query("select to_regclass('unstale.migrations') is not null")
        .fetch_one(&mut *connection)
        .await;
    if !exists.map_err(Error::of("looking for the ledger"))?.get::<bool, _>(0) {
        return Ok(Vec::new());
    }
    let rows = sqlx::query("select version from unstale.migrations where success")
        .fetch_all(connection)
        .await;
    Ok(rows
        .map_err(Error::of("reading unstale.migrations"))?
        .iter()
        .map(|row| row.get(0))
        .collect())
}

/// The newest numbered file whose objects are there, made with psql, or with a tool that has its
/// own ledger; 0: none.
async fn applied_by_hand(connection: &mut PgConnection) -> Result<i64, Error> {
    let row = sqlx::query(
        "select case when to_regclass('unstale.audit') is not null then 8
                     when exists (select from pg_attribute a where a.attrelid = to_regclass('unstale.watch') and a.attname = 'guarantee') then 7
                     when to_regclass('unstale.repeatable') is not null then 6
                     when to_regclass('unstale.change_log') is not null then 1 else 0 end::bigint",
    );
    Ok(row.fetch_one(connection).await.map_err(Error::of("looking for the schema"))?.get(0))
}

/// Applies all repeatable files if one differs from its last application.
async fn run_repeatable(connection: &mut PgConnection) -> Result<Vec<String>, Error> {
    let (names, texts): (Vec<&str>, Vec<&str>) = REPEATABLE.iter().copied().unzip();
    let rows = sqlx::query(
        "select f.name from unnest($1::text[], $2::text[]) f(name, text)
          where not exists (select from unstale.repeatable r where r.name = f.name and r.digest = md5(f.text)) order by f.name",
    );
    let rows = rows
        .bind(&names)
        .bind(&texts)
        .fetch_all(&mut *connection)
        .await
        .map_err(Error::of("reading unstale.repeatable"))?;
    let differ: Vec<String> =
        rows.iter().map(|row| format!("repeatable/{}", row.get::<&str, _>(0))).collect();
    if differ.is_empty() {
        return Ok(differ);
    }
    for sql in texts.iter().copied() {
        connection
            .execute(sqlx::SqlStr::from_static(sql))
            .await
            .map_err(Error::of("making the functions of the schema unstale"))?;
    }
    connection
        .execute("select unstale.secure()")
        .await
        .map_err(Error::of("setting who may call what"))?;
    sqlx::query(
        "with applied as (
             insert into unstale.repeatable (name, digest) select f.name, md5(f.text) from unnest($1::text[], $2::text[]) f(name, text)
             on conflict (name) do update set digest = excluded.digest, applied_at = clock_timestamp())
         delete from unstale.repeatable r where r.name <> all ($1::text[])",
    )
    .bind(&names)
    .bind(&texts)
    .execute(&mut *connection)
    .await
    .map_err(Error::of("writing unstale.repeatable"))?;
    // Last: writers wait for its locks on the log until the transaction ends.
    connection
        .execute("select unstale.guard_bookkeeping()")
        .await
        .map_err(Error::of("guarding the bookkeeping"))?;
    Ok(differ)
}

/// The version of the database's schema; 0: there is none. A role that may not use the schema is
/// told so by the server.
async fn version(connection: &mut PgConnection) -> Result<i64, Error> {
    let row = sqlx::query(
        "select case when exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                                   where n.nspname = 'unstale' and p.proname = 'version' and p.pronargs = 0) then 2
                     when exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
                                   where n.nspname = 'unstale' and c.relname = 'change_log') then 1
                     else 0 end,
                (select o.oid::regrole::text from pg_namespace n join pg_roles o on o.oid = n.nspowner, pg_roles us
                  where n.nspname = 'unstale' and us.rolname = current_user and us.rolsuper and not o.rolsuper)",
    );
    let row = row.fetch_one(&mut *connection).await.map_err(Error::of("looking for the schema"))?;
    if let Some(owner) = row.get::<Option<String>, _>(1) {
        // To call any function of it would lend its owner our rights.
        return Err(Error::Unsuitable(format!(
            "the schema unstale belongs to {owner}, whose functions a superuser must not call; connect as {owner} or as a role of \
             `unstale.grant_listener()`, or, if that role should not have made it: drop schema unstale cascade;"
        )));
    }
    let found: i32 = row.get(0);
    if found < 2 {
        return Ok(i64::from(found));
    }
    let row = sqlx::query("select unstale.version()").fetch_one(connection).await;
    Ok(i64::from(
        row.map_err(Error::of("asking for the version of the schema unstale"))?.get::<i32, _>(0),
    ))
}

/// Refuses a schema that this program does not know.
///
/// # Errors
/// [`Error::NotMigrated`], [`Error::SchemaNewer`], or [`Error::Statement`].
pub async fn check(connection: &mut PgConnection) -> Result<(), Error> {
    match version(connection).await? {
        found if found > known_version() => refuse_newer(found),
        found if found == known_version() => Ok(()),
        _ => Err(Error::NotMigrated),
    }
}

/// Is anything of it there?
///
/// # Errors
/// [`Error::Statement`].
pub async fn is_there(connection: &mut PgConnection) -> Result<bool, Error> {
    let row =
        sqlx::query("select to_regnamespace('unstale') is not null").fetch_one(connection).await;
    Ok(row.map_err(Error::of("looking for the schema"))?.get(0))
}

/// Drops the schema and all that is in it.
///
/// # Errors
/// [`Error::Statement`], for instance if somebody has a lock on a table of it.
pub async fn remove(connection: &mut PgConnection) -> Result<(), Error> {
    let statement =
        "set lock_timeout = '10s'; set client_min_messages = warning; drop schema unstale cascade";
    connection.execute(statement).await.map_err(Error::of("dropping the schema"))?;
    Ok(())
}

fn refuse_newer<T>(found: i64) -> Result<T, Error> {
    Err(Error::SchemaNewer { found, known: known_version() })
}
