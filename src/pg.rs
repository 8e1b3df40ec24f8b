//! PostgreSQL: every line of SQL.
//!
//! Owns connections and their errors. Connections to PostgreSQL made here resolve nothing through `search_path`, wait for no
//! WAL flush (what we write is only bookkeeping, and an older checkpoint is safe), and are reaped by the server if we vanish.
//! Refuses to know Redis.

use std::str::FromStr;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgSslMode};
use sqlx::{ConnectOptions, Row};

use crate::exposure::{Exposure, ToPostgres};
use crate::watermark::PgTime;

pub mod check;
pub mod log;
pub mod migrate;
pub mod session;
pub mod sqlstate;
pub mod sweep;
pub mod tail;
mod tls;
pub mod watches;

/// The oldest major version with BEGIN ATOMIC functions and CREATE OR REPLACE TRIGGER; older ones are out of support.
const OLDEST_SERVER: i32 = 140_000;

/// What can go wrong with PostgreSQL. None holds a password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL cannot be read.
    #[error("DATABASE_URL is not a PostgreSQL URL; write postgres://user:password@host:5432/database")]
    Url,
    /// No connection.
    #[error("cannot connect to PostgreSQL at {place}{remedy}", remedy = tls::remedy(.source))]
    Connect {
        /// Host and database.
        place: String,
        /// Why.
        source: sqlx::Error,
    },
    /// Connected to something that cannot serve.
    #[error("{0}")]
    Unsuitable(String),
    /// The migrations have not been applied.
    #[error("the schema of unstale is missing or older than this program; run `unstale migrate`")]
    NotMigrated,
    /// A newer binary has migrated the database.
    #[error("the schema of unstale is at version {found} and this program knows {known}; install the newer unstale")]
    SchemaNewer {
        /// In the database.
        found: i64,
        /// In the program.
        known: i64,
    },
    /// A statement failed.
    #[error("{what} failed")]
    Statement {
        /// What it was for.
        what: &'static str,
        /// Why.
        source: sqlx::Error,
    },
    /// No answer in time.
    #[error("PostgreSQL did not answer within {0:?}")]
    Timeout(Duration),
}

impl Error {
    /// For `map_err`: names what a statement was for.
    pub(crate) fn of(what: &'static str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Statement { what, source }
    }

    /// The message with its cause, and the server's detail and hint, on one line.
    #[must_use]
    pub fn in_full(&self) -> String {
        match self {
            Self::Connect { source, .. } | Self::Statement { source, .. } => format!("{self}: {}", words(source)),
            _ => self.to_string(),
        }
    }
}

/// What the server says; sqlx would add a line number of PostgreSQL's own source, and leave out detail and hint.
fn words(error: &sqlx::Error) -> String {
    let Some(error) = error.as_database_error() else { return error.to_string() };
    let more = error.try_downcast_ref::<PgDatabaseError>().map(|error| [error.detail(), error.hint()]);
    let more = more.into_iter().flatten().flatten().map(|text| format!(" ({})", text.replace('\n', "; ")));
    [error.message().to_owned()].into_iter().chain(more).collect()
}

/// Where the database is. Its options hold the password, so it has no `Debug`.
#[derive(Clone)]
pub struct Postgres {
    options: PgConnectOptions,
    has_password: bool,
}

impl Postgres {
    /// Reads the URL.
    ///
    /// # Errors
    /// [`Error::Url`].
    pub fn new(url: &SecretString) -> Result<Self, Error> {
        let options = PgConnectOptions::from_str(url.expose_secret()).map_err(|_| Error::Url)?;
        let options = options
            .application_name("unstale")
            .options([
                ("search_path", "pg_catalog"),
                ("synchronous_commit", "off"),
                ("default_transaction_isolation", "read committed"),
                ("jit", "off"), // to compile what looks through the catalogs takes longer than to run it a thousand times
                ("tcp_keepalives_idle", "30"),
                ("tcp_keepalives_interval", "10"),
                ("tcp_keepalives_count", "3"),
                ("tcp_user_timeout", "60000"),
                ("idle_in_transaction_session_timeout", "60000"),
            ])
            .log_statements(tracing::log::LevelFilter::Off)
            .log_slow_statements(tracing::log::LevelFilter::Off, Duration::ZERO);
        Ok(Self { options, has_password: has_password(url.expose_secret()) })
    }

    /// Host and database, for people.
    #[must_use]
    pub fn place(&self) -> String {
        let host = match self.options.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", self.options.get_host(), self.options.get_port()),
        };
        format!("{host}/{}", self.options.get_database().unwrap_or(self.options.get_username()))
    }

    /// Could somebody in between read the password?
    #[must_use]
    pub fn exposure(&self) -> Option<Exposure> {
        let host = self.options.get_socket().is_none().then(|| self.options.get_host());
        let sslmode = match self.options.get_ssl_mode() {
            PgSslMode::Disable => "disable",
            PgSslMode::Allow => "allow",
            PgSslMode::Prefer => "prefer",
            PgSslMode::Require => "require",
            PgSslMode::VerifyCa => "verify-ca",
            PgSslMode::VerifyFull => "verify-full",
        };
        ToPostgres { host, sslmode, has_password: self.has_password }.exposure()
    }

    /// A connection of its own.
    ///
    /// # Errors
    /// [`Error::Connect`] with the real cause.
    pub async fn connect(&self) -> Result<PgConnection, Error> {
        self.options.connect().await.map_err(|source| Error::Connect { place: self.place(), source })
    }

    fn options(&self) -> &PgConnectOptions {
        &self.options
    }
}

/// Whether the URL or the environment has one; the options keep it to themselves.
fn has_password(url: &str) -> bool {
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    let user = place.split_once("://").and_then(|(_, place)| place.rsplit_once('@')).map_or("", |(user, _)| user);
    let in_query = query.split('&').any(|part| part.starts_with("password="));
    in_query || user.split_once(':').is_some_and(|(_, password)| !password.is_empty()) || std::env::var_os("PGPASSWORD").is_some()
}

/// The server's clock.
///
/// # Errors
/// [`Error::Statement`].
pub async fn clock(connection: &mut PgConnection) -> Result<PgTime, Error> {
    let row = sqlx::query("select (extract(epoch from clock_timestamp()) * 1000000)::bigint").fetch_one(connection).await;
    Ok(PgTime(row.map_err(Error::of("asking for the time"))?.get(0)))
}

/// Refuses a server that cannot serve, with a sentence.
///
/// # Errors
/// [`Error::Unsuitable`], or [`Error::Statement`].
pub async fn check_server(connection: &mut PgConnection) -> Result<(), Error> {
    let row = sqlx::query(
        "select current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery(),
                current_setting('server_encoding')",
    )
    .fetch_one(connection)
    .await
    .map_err(Error::of("asking the server what it is"))?;
    let (version, shown): (i32, String) = (row.get(0), row.get(1));
    if version < OLDEST_SERVER {
        return Err(Error::Unsuitable(format!("PostgreSQL {shown} is too old; unstale needs 14 or newer")));
    }
    if row.get(2) {
        return Err(Error::Unsuitable("this server is a standby, where LISTEN does not work; connect to the primary".into()));
    }
    if row.get::<String, _>(3) == "SQL_ASCII" {
        return Err(Error::Unsuitable(
            "this database is SQL_ASCII: a value that is not UTF-8 would end the session; move it to a database in UTF8".into(),
        ));
    }
    Ok(())
}
