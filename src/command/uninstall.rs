//! `unstale uninstall`: takes away all that `unstale` put into a database, and the keys that nobody
//! would delete from then on.
//!
//! In this order, so that it may fail at any point and be called again: the triggers, the keys, the
//! schema.

use anyhow::bail;
use sqlx::postgres::PgConnection;

use crate::cli::Uninstall;
use crate::config::Config;
use crate::deletion::{Deletion, Deletions};
use crate::pg::watches;
use crate::pg::{self, Postgres};
use crate::rule::{Rule, escape_glob};
use crate::sink::Sink;
use crate::visible;

/// Says each step, and does it unless `--dry-run`.
///
/// # Errors
/// If a listener is running, a lock is not to be had, or a server fails. What was done until then
/// stays; another call does the rest.
pub async fn run(config: &Config, args: &Uninstall) -> anyhow::Result<()> {
    let postgres = Postgres::new(config.database_source()?)?;
    let sink = Sink::new(config.redis_source()?, &config.redis.tls, config.redis.timeout)?;
    let mut connection = postgres.connect().await?;
    if !pg::migrate::is_there(&mut connection).await? {
        return super::print(b"there is no schema unstale in this database\n");
    }
    pg::migrate::check(&mut connection).await?;
    if !args.dry_run {
        refuse_running(&mut connection).await?;
    }
    let watches = watches::load(&mut connection).await?;
    let (mut keys, mut patterns) = (Vec::new(), Vec::new());
    for watched in &watches {
        if !watched.ended {
            let table = visible::in_sql(&watched.table);
            say(&table.map_or_else(
                || format!("-- unwatch {}", watched.table),
                |table| format!("select unstale.unwatch({table});"),
            ))?;
            if !args.dry_run {
                watches::unwatch(&mut connection, watched).await?;
            }
        }
        for deletion in Rule::of(watched)?.everything() {
            say(&format!("-- delete {} from Redis", deletion.text()))?;
            match deletion {
                Deletion::Key(key) => keys.push(key),
                Deletion::Pattern(pattern) => patterns.push(pattern),
            }
        }
    }
    let (mark, marks) = marks(&config.instance);
    say(&format!("-- delete {mark}, or of a cluster {marks}, from Redis"))?;
    keys.push(mark);
    patterns.push(marks);
    if !args.dry_run {
        sink.finish(Deletions::Keys(keys.into())).await?;
        sink.finish(Deletions::Patterns(patterns.into())).await?; // one walk for all of them
    }
    say("drop schema unstale cascade;")?;
    if !args.dry_run {
        pg::migrate::remove(&mut connection).await?;
    }
    say(
        "-- Left to you: the service (systemctl disable --now unstale), and the listener's role (as an administrator:",
    )?;
    say("-- drop owned by unstale_listener; drop role unstale_listener;).")?;
    if args.dry_run { say("-- dry run: nothing was changed") } else { Ok(()) }
}

/// The key of an instance's mark, and those of its marks in a cluster.
fn marks(instance: &str) -> (String, String) {
    let mark = format!("unstale:mark:{instance}");
    let mut pattern = String::new();
    escape_glob(&mark, &mut pattern);
    pattern.push_str(":*");
    (mark, pattern)
}

/// Its session would end with the schema, and it would come back for ever to say that the schema is
/// missing.
async fn refuse_running(connection: &mut PgConnection) -> anyhow::Result<()> {
    match pg::check::others(connection).await? {
        0 => Ok(()),
        others => bail!(
            "{others} other sessions of unstale are in this database; end them first (systemctl disable --now unstale)"
        ),
    }
}

fn say(step: &str) -> anyhow::Result<()> {
    super::print(format!("{}\n", visible::line(step)).as_bytes())
}
