//! What in the database would make a promise untrue: `unstale.findings()`, and what depends on the
//! role that asks.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};

use super::{Error, Route, identity, session, sweep};
use crate::finding::{Finding, Severity};

/// The functions that the role of a listener calls, beside the pages of the sweep, as in
/// migrations/repeatable/privileges.sql; a test holds the two equal.
pub const LISTENER_FUNCTIONS: &[&str] = &[
    "version",
    "listen",
    "beat",
    "probe",
    "barrier",
    "before_barrier",
    "list_watches",
    "register",
    "touch",
    "save",
    "stored",
    "forgotten",
    "seen",
    "open_gap",
    "close_gap",
    "last_gaps",
    "read_log",
    "log_since",
    "sweep_tables",
    "notice_ddl",
    "rotate_log",
    "findings",
    "microseconds",
    "from_microseconds",
    "audit_tables",
    "same_versions",
    "same_time",
    "save_audit",
];

/// What does not depend on the role that asks: `unstale.findings()`.
///
/// # Errors
/// [`Error::Statement`].
pub async fn of_database(connection: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let rows = sqlx::query("select severity, about, finding, remedy from unstale.findings()")
        .fetch_all(connection)
        .await
        .map_err(Error::of("looking at the database"))?;
    let finding = |row: &PgRow| Finding {
        severity: if row.get::<&str, _>(0) == "error" {
            Severity::Error
        } else {
            Severity::Warning
        },
        about: row.get(1),
        finding: row.get(2),
        remedy: row.get(3),
    };
    Ok(rows.iter().map(finding).collect())
}

/// All that is not as it should be.
///
/// # Errors
/// [`Error::Statement`].
pub async fn findings(connection: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let mut findings = of_database(connection).await?;
    let unindexed = sweep::without_index(connection).await?;
    findings.extend(unindexed.into_iter().map(|(table, column, remedy)| {
        let sentence = format!("a large table without an index on {column}: after a gap each page of a sweep reads all of it");
        Finding::warning(table, sentence, remedy + ";")
    }));
    findings.extend(watched(connection).await?);
    Ok(findings)
}

/// What the role may not do in the schema `unstale`: one call that grants it all; nothing if there
/// is no schema. Without these, nothing else can be looked at.
///
/// # Errors
/// [`Error::Statement`].
pub async fn privileges(connection: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let rows = sqlx::query(
        "select quote_ident(current_user), string_agg(needed, ', ' order by needed)
           from (select 'usage on schema unstale' from pg_namespace n where n.nspname = 'unstale' and not has_schema_privilege(n.oid, 'usage')
                 union all
                 select format('execute on function unstale.%I', p.proname)
                   from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                  where n.nspname = 'unstale' and (p.proname = any ($1) or p.proname ~ '^(page|audit)_[0-9]+$') and not has_function_privilege(p.oid, 'execute')) l(needed)
         having count(*) > 0",
    )
    .bind(LISTENER_FUNCTIONS)
    .fetch_all(connection)
    .await
    .map_err(Error::of("looking at the role"))?;
    let finding = |row: &PgRow| {
        let (role, needed): (String, String) = (row.get(0), row.get(1));
        let remedy = format!(
            "select unstale.grant_listener('{}'); -- as the owner of the schema unstale",
            role.replace('\'', "''")
        );
        Finding::error(format!("role {role}"), format!("it lacks {needed}"), remedy)
    };
    Ok(rows.iter().map(finding).collect())
}

/// What the listener does at its start and would stumble over, beyond rights in our schema: a
/// server that does not tell who it is, and too few connections.
///
/// # Errors
/// [`Error::Statement`].
pub async fn surroundings(connection: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let mut findings = connections(connection).await?;
    if let (_, Some(sentence)) = identity::ask(connection).await? {
        findings.push(Finding::warning(
            "PostgreSQL",
            sentence,
            identity::remedy(connection).await?,
        ));
    }
    let row = sqlx::query(
        "select quote_ident(session_user), quote_ident(current_user), session_user <> current_user",
    )
    .fetch_one(connection)
    .await;
    let row = row.map_err(Error::of("looking at the role"))?;
    if row.get(2) {
        let (login, role): (String, String) = (row.get(0), row.get(1));
        let sentence = format!("it runs as {role}, because the role has that setting");
        findings.push(Finding::warning(
            format!("role {login}"),
            sentence,
            format!("alter role {login} reset role;"),
        ));
    }
    Ok(findings)
}

/// Connections of a listener: heartbeats, notifications, and a sweep after each gap.
const LISTENER_CONNECTIONS: i64 = 3;

/// Limits that a role and a database have.
async fn connections(connection: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let rows = sqlx::query(
        "select format('role %I', r.rolname), r.rolconnlimit::bigint, format('alter role %I connection limit 5;', r.rolname)
           from pg_roles r where r.rolname = session_user and not r.rolsuper and r.rolconnlimit between 0 and $1 + 1
         union all
         select format('database %I', d.datname), d.datconnlimit::bigint, format('alter database %I connection limit -1;', d.datname)
           from pg_database d, pg_roles r
          where d.datname = current_database() and r.rolname = session_user and not r.rolsuper and d.datconnlimit between 0 and $1 + 1",
    )
    .bind(LISTENER_CONNECTIONS)
    .fetch_all(connection)
    .await
    .map_err(Error::of("looking for limits of connections"))?;
    let finding = |row: &PgRow| {
        let (about, limit, remedy): (String, i64, String) = (row.get(0), row.get(1), row.get(2));
        let sentence = format!(
            "its connection limit is {limit}; a listener needs {LISTENER_CONNECTIONS} while it catches up, and `unstale check` two more"
        );
        if limit < LISTENER_CONNECTIONS {
            Finding::error(about, sentence, remedy)
        } else {
            Finding::warning(about, sentence, remedy)
        }
    };
    Ok(rows.iter().map(finding).collect())
}

async fn watched(connection: &mut PgConnection) -> Result<Vec<Finding>, Error> {
    let row = sqlx::query("select count(*) from unstale.list_watches() where not ended")
        .fetch_one(connection)
        .await;
    let count: i64 = row.map_err(Error::of("counting the watches"))?.get(0);
    Ok(match count {
        0 => {
            let remedy = "select unstale.watch('public.users', keys => array['user:{id}']); -- as an example";
            vec![Finding::warning("watches", "no table is watched", remedy)]
        }
        1 => vec![Finding::ok("watches", "one table is watched")],
        n => vec![Finding::ok("watches", format!("{n} tables are watched"))],
    })
}

/// Does a notification arrive? Through a pooler in transaction mode, none does.
///
/// # Errors
/// [`Error::Connect`], [`Error::Statement`].
pub async fn delivers(
    route: &Route,
    connection: &mut PgConnection,
    patience: Duration,
) -> Result<bool, Error> {
    let mut listener = session::listen(route, connection, patience).await?;
    let row = sqlx::query("select pg_backend_pid(), unstale.beat(0)").fetch_one(connection).await; // believed by no listener
    let backend: i32 = row.map_err(Error::of("NOTIFY"))?.get(0);
    let ours = async {
        loop {
            match listener.try_recv().await {
                Ok(Some(notification)) if notification.process_id() == backend.cast_unsigned() => {
                    return true;
                }
                Ok(Some(_)) => {}
                _ => return false,
            }
        }
    };
    Ok(tokio::time::timeout(patience, ours).await.unwrap_or(false))
}

/// Asks the listener of an instance, in the way of every change, to delete the key that ends with
/// this probe.
///
/// # Errors
/// [`Error::Statement`].
pub async fn probe(connection: &mut PgConnection, probe: &str) -> Result<(), Error> {
    let asked = sqlx::query("select unstale.probe($1)").bind(probe).execute(connection).await;
    asked.map_err(Error::of("NOTIFY"))?;
    Ok(())
}

/// How long ago this instance's listener was there, in seconds; `None`: never.
///
/// # Errors
/// [`Error::Statement`].
pub async fn last_seen(
    connection: &mut PgConnection,
    instance: &str,
) -> Result<Option<f64>, Error> {
    let row =
        sqlx::query("select unstale.seen($1)").bind(instance).fetch_optional(connection).await;
    Ok(row.map_err(Error::of("looking for the listener"))?.and_then(|row| row.get(0)))
}

/// Other sessions of this program in this database: listeners, sweeps ...
///
/// # Errors
/// [`Error::Statement`].
pub async fn others(connection: &mut PgConnection) -> Result<i64, Error> {
    let sql = "select count(*) from pg_stat_activity
                where datname = current_database() and application_name ~ '^unstale(/|$)' and pid <> pg_backend_pid()";
    let row = sqlx::query(sql).fetch_one(connection).await;
    Ok(row.map_err(Error::of("looking for other sessions"))?.get(0))
}
