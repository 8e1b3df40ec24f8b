//! PostgreSQL: every line of SQL.
//!
//! Owns connections (in `connect`) and their errors. Refuses to know Redis.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgDatabaseError};

use crate::watermark::PgTime;

mod addresses;
pub mod audit;
pub mod barrier;
pub mod check;
pub mod checkpoint;
mod connect;
pub mod gaps;
mod identity;
pub mod log;
pub mod migrate;
mod options;
mod passfile;
mod remedy;
pub mod replicas;
pub mod session;
pub mod sqlstate;
pub mod sweep;
pub mod tail;
mod tls;
mod url;
pub mod watches;

pub use connect::{Postgres, Route};

/// What our sessions are called in `pg_stat_activity`, before a slash and what the URL calls them.
const APPLICATION: &str = "unstale";

/// The oldest major version with BEGIN ATOMIC functions and CREATE OR REPLACE TRIGGER; older ones
/// are out of support.
const OLDEST_SERVER: i32 = 140_000;

/// What can go wrong with PostgreSQL. None holds a password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL cannot be read.
    #[error("DATABASE_URL: {0}")]
    Url(String),
    /// No connection.
    #[error("cannot connect to PostgreSQL at {place}{remedy}", remedy = remedy::remedy(.source))]
    Connect {
        /// Host and database.
        place: String,
        /// Why.
        source: sqlx::Error,
    },
    /// Of several hosts none is a primary that answers; why, of each.
    #[error("cannot connect to PostgreSQL: {0}")]
    NoPrimary(String),
    /// Connected to a standby where a primary is to be found; with what there is to add.
    #[error("it is a standby{0}")]
    Standby(String),
    /// Something stands between that cannot be listened through.
    #[error("{0}")]
    Pooler(String),
    /// Connected to something that cannot serve.
    #[error("{0}")]
    Unsuitable(String),
    /// The migrations have not been applied.
    #[error("the schema of unstale is missing or older than this program; run `unstale migrate`")]
    NotMigrated,
    /// A newer binary has migrated the database.
    #[error(
        "the schema of unstale is at version {found} and this program knows {known}; install the newer unstale"
    )]
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
            Self::Connect { source, .. } | Self::Statement { source, .. } => {
                format!("{self}: {}", words(source))
            }
            _ => self.to_string(),
        }
    }

    /// Did the server refuse a statement, and go on? Not if it ends the connection, or did not
    /// answer.
    fn is_refusal(&self) -> bool {
        let Self::Statement { source: sqlx::Error::Database(error), .. } = self else {
            return false;
        };
        // 57: it shuts down; 08: the connection is broken.
        !error.code().is_some_and(|code| ["57", "08"].iter().any(|class| code.starts_with(class)))
    }

    /// The same for a list of hosts, each of which is named already.
    fn without_place(&self) -> String {
        match self {
            Self::Connect { source, .. } => format!("{}{}", words(source), remedy::remedy(source)),
            Self::NoPrimary(reasons) => reasons.clone(),
            _ => self.in_full(),
        }
    }

    /// What to paste, or where to look, if this kept a connection from coming about.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Connect { source, .. } => remedy::command(source),
            Self::Pooler(_) => {
                "# let DATABASE_URL lead to PostgreSQL itself, or to a pool in session mode".into()
            }
            Self::NoPrimary(_) | Self::Standby(_) => {
                "# correct the hosts in DATABASE_URL, or start the primary".into()
            }
            Self::Timeout(_) => "# look for a firewall, or for a server that hangs".into(),
            Self::Statement { source, .. } => remedy::after_refusal(source),
            Self::NotMigrated => "unstale migrate".into(),
            _ => "# correct DATABASE_URL".into(),
        }
    }
}

/// What the server says; sqlx would add a line number of PostgreSQL's own source, and leave out
/// detail and hint.
fn words(error: &sqlx::Error) -> String {
    let Some(error) = error.as_database_error() else { return error.to_string() };
    let more =
        error.try_downcast_ref::<PgDatabaseError>().map(|error| [error.detail(), error.hint()]);
    let more =
        more.into_iter().flatten().flatten().map(|text| format!(" ({})", text.replace('\n', "; ")));
    [error.message().to_owned()].into_iter().chain(more).collect()
}

/// The server's clock.
///
/// # Errors
/// [`Error::Statement`].
pub async fn clock(connection: &mut PgConnection) -> Result<PgTime, Error> {
    let row = sqlx::query("select (extract(epoch from clock_timestamp()) * 1000000)::bigint")
        .fetch_one(connection)
        .await;
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
        return Err(Error::Unsuitable(format!(
            "PostgreSQL {shown} is too old; unstale needs 14 or newer"
        )));
    }
    if row.get(2) {
        return Err(Error::Unsuitable(
            "this server is a standby, where LISTEN does not work; connect to the primary".into(),
        ));
    }
    if row.get::<String, _>(3) == "SQL_ASCII" {
        return Err(Error::Unsuitable(
            "this database is SQL_ASCII: a value that is not UTF-8 would end the session; move it to a database in UTF8".into(),
        ));
    }
    Ok(())
}
