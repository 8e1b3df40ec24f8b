//! `unstale wait`: returns when everything that was committed before the call is gone from Redis.

use std::time::Duration;

use anyhow::bail;
use sqlx::postgres::PgConnection;
use tokio::time::{Instant, sleep, timeout_at};

use crate::cli::Wait;
use crate::config::Config;
use crate::pg::{self, Postgres, barrier};
use crate::visible::line;

/// Between two questions, at first; it doubles up to [`LONGEST`].
const SHORTEST: Duration = Duration::from_millis(1);
/// Between two questions, at last: a listener that is away is not asked for a thousand times a
/// second.
const LONGEST: Duration = Duration::from_millis(50);
/// A listener that has not heard the call was not listening; it may be now.
const AGAIN: Duration = Duration::from_millis(500);

/// Returns when the instance is past a barrier that it raises now.
///
/// # Errors
/// With what it waits for, if that takes longer than `--timeout`; or if PostgreSQL cannot be asked.
pub async fn run(config: &Config, args: &Wait) -> anyhow::Result<()> {
    let deadline = Instant::now() + args.timeout;
    let instance = args.instance.as_deref().unwrap_or(&config.instance);
    let mut connection = match timeout_at(
        deadline,
        super::connect(&Postgres::new(config.database_source()?)?),
    )
    .await
    {
        Ok(connected) => connected?,
        Err(_) => {
            bail!("PostgreSQL did not answer within {}", humantime::format_duration(args.timeout))
        }
    };
    match until(&mut connection, instance, deadline).await? {
        None => Ok(()),
        Some(reason) => {
            bail!("not within {}: {}", humantime::format_duration(args.timeout), line(&reason))
        }
    }
}

/// Waits for one instance; what it still waited for at the deadline, or `None`.
///
/// # Errors
/// If PostgreSQL cannot be asked.
pub async fn until(
    connection: &mut PgConnection,
    instance: &str,
    deadline: Instant,
) -> Result<Option<String>, pg::Error> {
    let mut reason = "PostgreSQL did not answer".to_owned();
    let waiting = async {
        let barrier = barrier::raise(connection).await?;
        let (mut raised, mut pause) = (Instant::now(), SHORTEST);
        while let Some(why) = barrier::holds(connection, &barrier, instance).await? {
            reason = why;
            sleep(pause).await;
            pause = (pause * 2).min(if raised.elapsed() < LONGEST { SHORTEST } else { LONGEST });
            if raised.elapsed() >= AGAIN {
                barrier::raise(connection).await?; // for its call alone: what is waited for is the first
                raised = Instant::now();
            }
        }
        Ok(())
    };
    match timeout_at(deadline, waiting).await {
        Ok(done) => done.map(|()| None),
        Err(_) => Ok(Some(reason)),
    }
}
