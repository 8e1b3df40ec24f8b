//! A test's world: a database with the schema in it, a Redis, and connections to both.
//!
//! Owns: the database, which goes some time after the world does.
//! Must hold: worlds share nothing but the cluster (NOTIFY is per database).

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::OnceCell;
use unstale::scratch::redis::Client;
use unstale::scratch::{Postgres, Redis};

use super::daemon::{self, Daemon};
use super::servers::{own_redis, shared_postgres};

/// The migrated database that those of the tests are copies of.
const TEMPLATE: &str = "unstale_template";

/// Databases whose worlds are gone. The next world drops them: a destructor cannot wait for that.
static LEFT: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// The cluster under a world.
enum Cluster {
    Shared(&'static Postgres),
    Own(Box<Postgres>),
}

/// A database, a Redis, and connections to both.
pub(crate) struct World {
    /// Connections to the database, for the test's own SQL.
    pub(crate) sql: PgPool,
    /// The Redis of this test.
    pub(crate) redis: Redis,
    /// A connection to that.
    pub(crate) cache: Client,
    database: String,
    cluster: Cluster,
}

impl World {
    /// With the schema `unstale` in its newest state.
    pub(crate) async fn new() -> Self {
        static MIGRATED: OnceCell<()> = OnceCell::const_new();
        let postgres = shared_postgres();
        MIGRATED.get_or_init(async || migrated_database(postgres, TEMPLATE).await).await;
        Self::of_template(TEMPLATE).await
    }

    /// Without the schema, for tests of the migrations.
    pub(crate) async fn bare() -> Self {
        Self::of_template("template1").await
    }

    /// With the schema, on a cluster that nobody shares.
    pub(crate) async fn on(postgres: Postgres) -> Self {
        Self::with(postgres, own_redis()).await
    }

    /// With the schema, on a cluster that nobody shares and a Redis that is not everyday.
    pub(crate) async fn with(postgres: Postgres, redis: Redis) -> Self {
        migrated_database(&postgres, "app").await;
        Self::in_database("app".to_owned(), Cluster::Own(Box::new(postgres)), redis)
    }

    async fn of_template(template: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let database = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let postgres = shared_postgres();
        let left = std::mem::take(&mut *LEFT.lock().expect("nobody panics with it"));
        for old in left {
            execute(postgres, &format!("drop database {old} with (force)")).await;
        }
        execute(postgres, &format!("create database {database} template {template}")).await;
        Self::in_database(database, Cluster::Shared(postgres), own_redis())
    }

    fn in_database(database: String, cluster: Cluster, redis: Redis) -> Self {
        let cache = redis.client().expect("Redis has just started");
        let options = connect_options(cluster.postgres(), &database);
        let sql = PgPoolOptions::new().max_connections(10).connect_lazy_with(options);
        Self { sql, redis, cache, database, cluster }
    }

    /// The cluster, for its port and its programs.
    pub(crate) fn postgres(&self) -> &Postgres {
        self.cluster.postgres()
    }

    /// The cluster, to kill it. Only a world [on](Self::on) a cluster of its own may.
    pub(crate) fn own_postgres(&mut self) -> &mut Postgres {
        match &mut self.cluster {
            Cluster::Own(postgres) => postgres,
            Cluster::Shared(_) => {
                panic!("this cluster is everybody's: use World::on(own_postgres())")
            }
        }
    }

    /// The database's name.
    pub(crate) fn database(&self) -> &str {
        &self.database
    }

    /// The database's URL, by TCP.
    pub(crate) fn database_url(&self) -> String {
        self.postgres().url(&self.database)
    }

    /// The database's URL through a [`Link`](super::link::Link) or another port.
    pub(crate) fn database_url_at(&self, port: u16) -> String {
        format!("postgres://postgres@127.0.0.1:{port}/{}", self.database)
    }

    /// The Redis' URL, by TCP.
    pub(crate) fn redis_url(&self) -> String {
        self.redis.url()
    }

    /// Runs SQL, any number of statements. A new transaction each call, as an application's would
    /// be.
    pub(crate) async fn execute(&self, sql: &str) {
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&self.sql).await;
        done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// A daemon's settings for these servers; start it with `.start()`.
    pub(crate) fn daemon(&self) -> daemon::Settings {
        Daemon::settings(&self.database_url(), &self.redis_url())
    }
}

impl Cluster {
    fn postgres(&self) -> &Postgres {
        match self {
            Self::Shared(postgres) => postgres,
            Self::Own(postgres) => postgres,
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Cluster::Shared(_) = self.cluster {
            LEFT.lock().expect("nobody panics with it").push(std::mem::take(&mut self.database));
        }
    }
}

/// Creates a database and lets the real binary put the schema in.
async fn migrated_database(postgres: &Postgres, name: &str) {
    execute(postgres, &format!("create database {name}")).await;
    let migrated = daemon::command("migrate", &[("DATABASE_URL", &postgres.url(name))]);
    assert!(migrated.status.success(), "unstale migrate: {migrated:?}");
}

/// One statement outside of any test's database.
async fn execute(postgres: &Postgres, sql: &str) {
    let options = connect_options(postgres, "postgres");
    let mut connection = PgConnection::connect_with(&options).await.expect("the cluster is up");
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await;
    done.unwrap_or_else(|error| panic!("{sql}: {error}"));
    connection.close().await.expect("a polite end");
}

/// Through the socket, so that no link stands between. `new_without_pgpass`: nothing of the
/// developer's own.
fn connect_options(postgres: &Postgres, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(postgres.directory())
        .port(postgres.port())
        .username("postgres")
        .database(database)
}
