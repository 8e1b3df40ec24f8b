//! What is announced, for somebody who watches: LISTEN and the log, on connections of their own.
//!
//! Writes nothing, keeps no progress, and keeps no writer from ringing: the listeners beside it do
//! not notice.

use std::collections::VecDeque;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgListener};
use tokio::time::{Interval, interval};

use super::watches;
use super::{Error, Postgres, log, session};
use crate::watched::Watched;

/// How often the log is read: writers that see a listener awake do not ring.
const POLL: Duration = Duration::from_millis(200);

/// How a change was learned of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// NOTIFY.
    Notification,
    /// A row of the log that NOTIFY did not say.
    Log,
}

/// See the module.
pub struct Tail {
    listener: PgListener,
    control: PgConnection,
    reader: log::Reader,
    read: VecDeque<String>,
    poll: Interval,
    patience: Duration,
}

impl Tail {
    /// Listens from now on. `patience` bounds each answer of the server.
    ///
    /// # Errors
    /// [`Error`], as the listener's own session would have it.
    pub async fn open(postgres: &Postgres, patience: Duration) -> Result<Self, Error> {
        let (mut control, route) = postgres.route().await?;
        super::check_server(&mut control).await?;
        super::migrate::check(&mut control).await?;
        let listener = session::listen(&route, &mut control, patience).await?;
        let reader = log::Reader::new(&mut control).await?;
        Ok(Self {
            listener,
            control,
            reader,
            read: VecDeque::new(),
            poll: interval(POLL),
            patience,
        })
    }

    /// What is watched now.
    ///
    /// # Errors
    /// [`Error::Statement`].
    pub async fn watches(&mut self) -> Result<Vec<Watched>, Error> {
        watches::load(&mut self.control).await
    }

    /// The next announcement, as it was written.
    ///
    /// # Errors
    /// [`Error`]: the connection ended, and with it the stream.
    pub async fn next(&mut self) -> Result<(Source, String), Error> {
        loop {
            if let Some(change) = self.read.pop_front() {
                return Ok((Source::Log, change));
            }
            tokio::select! {
                notification = self.listener.try_recv() => match notification {
                    Ok(Some(notification)) => return Ok((Source::Notification, notification.payload().to_owned())),
                    Ok(None) => return Err(Error::Unsuitable("PostgreSQL closed the listening connection".into())),
                    Err(source) => return Err(Error::Statement { what: "receiving notifications", source }),
                },
                _ = self.poll.tick() => {
                    let page = tokio::time::timeout(self.patience, self.reader.page(&mut self.control)).await;
                    let page = page.map_err(|_| Error::Timeout(self.patience))??;
                    self.read.extend(page.changes);
                    if page.more {
                        self.poll.reset_immediately();
                    }
                }
            }
        }
    }
}
