//! The subcommands, one module each. Each gets what it needs as arguments and says what went wrong
//! as an error.

pub mod apply;
pub mod audit;
pub mod check;
pub mod completions;
pub mod demo;
pub mod explain;
pub mod man;
pub mod migrate;
pub mod policy;
pub mod run;
pub mod status;
pub mod sweep;
pub mod tail;
pub mod uninstall;
pub mod wait;

use std::io::{ErrorKind, Write as _, stdout};
use std::time::SystemTime;

use anyhow::Context as _;
use sqlx::postgres::PgConnection;

use crate::batch::Limits;
use crate::cli::Since;
use crate::config::Config;
use crate::pg::{self, Postgres, watches};
use crate::sink::Sink;
use crate::watermark::PgTime;

/// A connection to a server that suits, with a schema of this release.
async fn connect(postgres: &Postgres) -> anyhow::Result<PgConnection> {
    let mut connection = postgres.connect().await?;
    pg::check_server(&mut connection).await?;
    pg::migrate::check(&mut connection).await?;
    Ok(connection)
}

/// The bounds of a batch for this Redis.
fn limits(config: &Config, sink: &Sink) -> Limits {
    Limits {
        keys_per_command: config.batch.keys_per_command,
        in_flight: config.batch.in_flight,
        max_pending: config.batch.max_pending,
        slot: sink.slot(),
    }
}

/// The full name of a table as a person wrote it.
async fn full_name(connection: &mut PgConnection, table: &str) -> anyhow::Result<String> {
    let name = watches::full_name(connection, table).await?;
    name.with_context(|| {
        format!("there is no table {table}; name it with its schema, as in public.users")
    })
}

/// What a person's `--since` means at this time of the database's clock.
fn beginning(since: Since, now: PgTime) -> anyhow::Result<PgTime> {
    Ok(match since {
        Since::Ago(time) => now.earlier(time),
        Since::At(time) => {
            PgTime(i64::try_from(time.duration_since(SystemTime::UNIX_EPOCH)?.as_micros())?)
        }
    })
}

/// Writes a whole document to stdout. A reader that has seen enough (`unstale man | head`) is no
/// failure.
fn print(document: &[u8]) -> anyhow::Result<()> {
    let mut stdout = stdout().lock();
    match stdout.write_all(document).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
