//! What each statement announces, on a real server.
//!
//! Owns: [`Ear`], which hears all that a statement says and nothing else: a marker is sent after it
//! and seen first.

mod ddl;
mod deliveries;
mod partitions;
mod statements;
mod sweepable;
mod types;
mod watching;

use sqlx::postgres::{PgDatabaseError, PgListener};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::support::world::World;

/// Keys by id and e-mail, and a stamp.
const USERS: &str = "create table users (id bigint primary key, email text, name text, updated_at timestamptz default clock_timestamp());
    select unstale.watch('users', array['user:{id}', 'by-email:{email}'])";

/// What is said of a change that is only in the log.
const BELL: &str = r#"{"bell":true}"#;

/// A database, and a connection that listens to it.
pub(crate) struct Ear {
    world: World,
    listener: PgListener,
}

impl Ear {
    /// In a database of its own, after `sql`.
    pub(crate) async fn after(sql: &str) -> Self {
        Self::in_world(World::new().await, sql).await
    }

    async fn in_world(world: World, sql: &str) -> Self {
        world.execute(sql).await;
        let mut listener =
            PgListener::connect(&world.database_url()).await.expect("the cluster is up");
        sqlx::query("select unstale.listen()").execute(&mut listener).await.expect("LISTEN");
        Self { world, listener }
    }

    /// What `sql` announces; of a change only what follows the watch, as in `1 "new":{"id":"1"}`
    /// for revision 1.
    pub(crate) async fn hears(&mut self, sql: &str) -> Vec<String> {
        self.world.execute(sql).await;
        self.world.execute("select pg_notify(unstale.channel(), 'marker')").await;
        let mut heard = Vec::new();
        loop {
            let payload =
                self.listener.recv().await.expect("the connection holds").payload().to_owned();
            match payload.as_str() {
                "marker" => return heard,
                r#"{"watches":true}"# => {}
                _ => heard.push(shortened(&payload)),
            }
        }
    }

    /// What was logged since the last call, in order.
    pub(crate) async fn logged(&self) -> Vec<String> {
        let sql = "with d as (delete from unstale.change_log returning *) select change from d order by d.xid, d.id";
        self.rows(sql).await.iter().map(|change| shortened(change)).collect()
    }

    /// The first column of a query, as text.
    pub(crate) async fn rows(&self, sql: &str) -> Vec<String> {
        sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_all(&self.world.sql)
            .await
            .unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The message, detail and hint with which `sql` fails.
    pub(crate) async fn refuses(&self, sql: &str) -> String {
        let result = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.world.sql).await;
        words(&result.err().unwrap_or_else(|| panic!("{sql} was taken")))
    }

    /// A connection whose settings and open transactions are the test's own.
    pub(crate) async fn session(&self) -> Session {
        Session(PgConnection::connect(&self.world.database_url()).await.expect("the cluster is up"))
    }
}

/// A connection of its own.
pub(crate) struct Session(PgConnection);

impl Session {
    pub(crate) async fn execute(&mut self, sql: &str) {
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.0).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// The first column of the only row.
    pub(crate) async fn value(&mut self, sql: &str) -> String {
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&mut self.0).await;
        row.unwrap_or_else(|error| panic!("{sql}: {error}")).get(0)
    }

    pub(crate) async fn refuses(&mut self, sql: &str) -> String {
        let result = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.0).await;
        words(&result.err().unwrap_or_else(|| panic!("{sql} was taken")))
    }
}

fn words(error: &sqlx::Error) -> String {
    let error = error.as_database_error().unwrap_or_else(|| panic!("{error}"));
    let error = error.downcast_ref::<PgDatabaseError>();
    [Some(error.message()), error.detail(), error.hint()]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("\n")
}

/// `{"watch":7,"rev":2,"new":{...}}` as `2 "new":{...}`.
fn shortened(payload: &str) -> String {
    let short = payload.strip_prefix(r#"{"watch":"#).and_then(|rest| rest.split_once(r#","rev":"#));
    let short =
        short.and_then(|(_, rest)| rest.strip_suffix('}')).and_then(|rest| rest.split_once(','));
    short.map_or_else(|| payload.to_owned(), |(rev, rest)| format!("{rev} {rest}"))
}
