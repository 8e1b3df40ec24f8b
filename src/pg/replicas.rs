//! How far the primary's write-ahead log goes, and how far each replica has replayed it.
//!
//! Owns a connection with each of them, apart from the session's: one that is away, or hangs, is in
//! nobody's way. Whoever is asked several times before it answers answers the last time.

use std::time::{Duration, Instant};

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::{Error, Postgres};
use crate::backoff::Backoff;

/// How long a server may take to be connected with, or to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// Between attempts to connect.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// With `synchronous_commit = off` a commit that was announced may not be written yet: its record
/// is inserted in any case.
const PRIMARY: &str = "select (pg_current_wal_insert_lsn() - '0/0')::bigint";

/// One that was promoted is behind nobody; what it had replayed would stand still.
const REPLICA: &str = "select (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end - '0/0')::bigint";

/// What a server says.
#[derive(Debug)]
pub enum Report {
    /// The primary was at this position after it was asked.
    Primary {
        /// When it was asked, as whoever asked had it.
        asked: Instant,
        /// In bytes.
        position: u64,
    },
    /// A replica has replayed up to this position.
    Replica {
        /// Which, from 0.
        number: usize,
        /// In bytes.
        position: u64,
    },
    /// No answer, or none that helps.
    Failed {
        /// Which replica, from 0; none: the primary.
        number: Option<usize>,
        /// Hosts and database.
        place: String,
        /// Why, for people.
        reason: String,
    },
}

/// See the module. Dropping it ends the connections.
pub struct Replicas {
    ask: watch::Sender<Instant>,
    reports: mpsc::Receiver<Report>,
    _tasks: JoinSet<()>,
}

impl Replicas {
    /// Connects when it is asked. `began` is any time before that.
    #[must_use]
    pub fn new(primary: &Postgres, replicas: &[Postgres], began: Instant) -> Self {
        let (ask, asked) = watch::channel(began);
        let (report, reports) = mpsc::channel(64);
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(primary.clone(), None, asked.clone(), report.clone()));
        for (number, replica) in replicas.iter().enumerate() {
            tasks.spawn(follow(replica.clone(), Some(number), asked.clone(), report.clone()));
        }
        Self { ask, reports, _tasks: tasks }
    }

    /// Asks all of them.
    pub fn ask(&self, now: Instant) {
        self.ask.send_replace(now);
    }

    /// What the next one says. May be abandoned and called again.
    pub async fn next(&mut self) -> Report {
        match self.reports.recv().await {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }
}

/// Answers until nobody asks any more, over as many connections as it takes.
async fn follow(
    server: Postgres,
    number: Option<usize>,
    mut asked: watch::Receiver<Instant>,
    report: mpsc::Sender<Report>,
) {
    let mut backoff =
        Backoff::new(BACKOFF.0, BACKOFF.1, number.map_or(0, |number| number as u64 + 1));
    loop {
        if asked.changed().await.is_err() {
            return;
        }
        let reason = match tokio::time::timeout(PATIENCE, server.connect()).await {
            Ok(Ok(mut connection)) => {
                match answer(&mut connection, number, &mut asked, &report, &mut backoff).await {
                    Ok(()) => return,
                    Err(error) => {
                        let _ = tokio::time::timeout(PATIENCE, connection.close()).await;
                        error.in_full()
                    }
                }
            }
            Ok(Err(error)) => error.in_full(),
            Err(_) => Error::Timeout(PATIENCE).in_full(),
        };
        let failed = Report::Failed { number, place: server.place(), reason };
        if report.send(failed).await.is_err() {
            return;
        }
        tokio::time::sleep(backoff.next_delay()).await;
    }
}

async fn answer(
    connection: &mut PgConnection,
    number: Option<usize>,
    asked: &mut watch::Receiver<Instant>,
    report: &mpsc::Sender<Report>,
    backoff: &mut Backoff,
) -> Result<(), Error> {
    loop {
        let at = *asked.borrow_and_update();
        let sql = if number.is_some() { REPLICA } else { PRIMARY };
        let asking = sqlx::query(sql).fetch_one(&mut *connection);
        let row =
            tokio::time::timeout(PATIENCE, asking).await.map_err(|_| Error::Timeout(PATIENCE))?;
        let row = row.map_err(Error::of("asking how far the write-ahead log is replayed"))?;
        let position: Option<i64> = row.get(0);
        let Some(position) = position.and_then(|position| u64::try_from(position).ok()) else {
            return Err(Error::Unsuitable("it does not say how far it has replayed".into()));
        };
        backoff.reset();
        let said = match number {
            Some(number) => Report::Replica { number, position },
            None => Report::Primary { asked: at, position },
        };
        if report.send(said).await.is_err() || asked.changed().await.is_err() {
            return Ok(());
        }
    }
}
