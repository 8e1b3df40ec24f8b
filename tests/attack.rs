//! Attacks by roles of lower rights, on real servers: whoever may only connect, create a schema,
//! own a watched table, or write one gets no other role's rights, reads nothing, and stops nothing.
//!
//! Each of these succeeded once. Bookkeeping that the owner has spoiled is here, too: it must not
//! keep a listener from starting.

mod auditing;
mod bookkeeping;
mod bystanders;
mod names;
mod owners;
mod schema;
mod sweeping;
mod values;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::daemon;
use crate::support::world::World;

/// A role of this test alone: roles are the whole cluster's.
async fn role(world: &World, name: &str) -> String {
    let role = format!("{name}_{}", world.database());
    world.execute(&format!("create role {role} login")).await;
    role
}

/// The database's URL for a role, whatever its name.
fn url(world: &World, role: &str) -> String {
    let encoded: String = role.bytes().map(|byte| format!("%{byte:02x}")).collect();
    world.database_url().replacen("postgres@", &format!("{encoded}@"), 1)
}

/// A session of a role.
async fn session(world: &World, role: &str) -> PgConnection {
    PgConnection::connect(&url(world, role)).await.expect("the role may connect")
}

/// Runs SQL in a session of a role; what the server refuses is the result.
async fn attempt(connection: &mut PgConnection, sql: &str) -> Result<(), String> {
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await;
    done.map(drop).map_err(|error| error.to_string())
}

/// The same, which must be allowed.
async fn run(connection: &mut PgConnection, sql: &str) {
    attempt(connection, sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// A listener's role, as config/roles.sql makes it.
async fn listener(world: &World) -> String {
    let listener = role(world, "listener").await;
    world.execute(&format!("select unstale.grant_listener('{listener}')")).await;
    listener
}

/// A daemon that connects as a role.
fn daemon_as(world: &World, role: &str) -> daemon::Settings {
    world.daemon().with("DATABASE_URL", &url(world, role)).impatient().in_one_session()
}

/// `unstale` as a role: whether it succeeded, and what it said.
fn unstale(world: &World, role: &str, arguments: &str) -> (bool, String) {
    let output = daemon::command(
        arguments,
        &[("DATABASE_URL", &url(world, role)), ("REDIS_URL", &world.redis_url())],
    );
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output.status.success(), text)
}
