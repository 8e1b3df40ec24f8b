//! One session with PostgreSQL: LISTEN on one connection, heartbeats and bookkeeping on another.
//!
//! Must hold: LISTEN has succeeded before watches and checkpoint are read (P2). Whatever goes wrong on either connection ends
//! the session with [`Event::Lost`]; nothing reconnects behind the machine's back, because that would hide a gap
//! (<https://github.com/launchbadge/sqlx/issues/4014>).

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgListener, PgNotification, PgPoolOptions};
use sqlx::{Connection, Row};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::watches::{self, Watched};
use super::{CHANNEL, Error, Postgres, log, migrate};
use crate::observe::{Cause, GapSummary};
use crate::watermark::{Beat, Checkpoint, PgTime};

/// Notifications between the connection and the driver. When the driver stops taking them, PostgreSQL waits.
const NOTIFICATIONS: usize = 4096;

/// Heartbeats between two prunings of the log.
const PRUNE_EVERY: u64 = 10;

/// What a session says of itself.
#[derive(Debug)]
pub enum Event {
    /// LISTEN is active; read afterwards.
    Subscribed {
        /// The backend that will send the heartbeats.
        backend: u32,
        /// What is watched.
        watches: Vec<Watched>,
        /// How far this instance had come.
        checkpoint: Option<Checkpoint>,
    },
    /// A heartbeat was sent; the share of the notification queue in use, 0 to 1.
    BeatSent(Beat, f64),
    /// The watches as they are now.
    Watches(Vec<Watched>),
    /// The changes of one transaction.
    LogRead(Vec<String>),
    /// The checkpoint is stored.
    Saved,
    /// The end.
    Lost(String),
}

/// What a session is asked for. Answered in order.
#[derive(Debug)]
pub enum Request {
    /// Send heartbeat `n`, after storing the checkpoint.
    Beat(u64, Option<Checkpoint>),
    /// Read the watches.
    Watches,
    /// Read a transaction's logged changes of one watch.
    Log {
        /// `unstale.watch.id`.
        watch: i32,
        /// The transaction.
        xid: u64,
    },
    /// Note an open gap, since this long ago.
    OpenGap(Cause, Duration),
    /// Note that it is closed.
    CloseGap(GapSummary),
    /// Store the checkpoint.
    Save(Checkpoint),
}

/// A session; dropping it ends it.
pub struct Session {
    /// What it says.
    pub events: mpsc::Receiver<Event>,
    /// What arrives, in order.
    pub notifications: mpsc::Receiver<PgNotification>,
    requests: mpsc::Sender<Request>,
    _tasks: JoinSet<()>,
}

impl Session {
    /// Begins to open a session. `timeout` bounds each answer of the server on the control connection.
    #[must_use]
    pub fn open(postgres: Postgres, instance: String, timeout: Duration) -> Self {
        let (event, events) = mpsc::channel(16);
        let (notify, notifications) = mpsc::channel(NOTIFICATIONS);
        let (requests, asked) = mpsc::channel(64);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let reason = match run(&postgres, instance, timeout, &event, &notify, asked).await {
                Ok(()) => return, // nobody is interested any more
                Err(error) => error.in_full(),
            };
            let _ = event.send(Event::Lost(reason)).await;
        });
        Self { events, notifications, requests, _tasks: tasks }
    }

    /// Asks for something. A session that is too slow to take it is on its way to being lost, which the machine's timers find.
    pub fn ask(&self, request: Request) {
        let _ = self.requests.try_send(request);
    }
}

async fn run(
    postgres: &Postgres,
    instance: String,
    timeout: Duration,
    event: &mpsc::Sender<Event>,
    notify: &mpsc::Sender<PgNotification>,
    asked: mpsc::Receiver<Request>,
) -> Result<(), Error> {
    let mut connection = postgres.connect().await?;
    super::check_server(&mut connection).await?;
    migrate::check(&mut connection).await?;
    let mut listener = listen(postgres, &mut connection, timeout / 2).await?;
    let mut control = Control { connection, instance, timeout, gap: None };
    if event.send(control.opening().await?).await.is_err() {
        return Ok(());
    }
    tokio::select! {
        result = control.serve(asked, event) => result,
        result = receive(&mut listener, notify) => result,
    }
}

/// A pool of one, fresh for each session: a listener that is dropped on a dead socket keeps its place in the pool.
/// It tries for as long as `patience` and then only says that it timed out; the real cause comes from a connection without it.
async fn listen(postgres: &Postgres, control: &mut PgConnection, patience: Duration) -> Result<PgListener, Error> {
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(patience)
        .max_lifetime(None)
        .idle_timeout(None)
        .test_before_acquire(false)
        .connect_lazy_with(postgres.options().clone());
    let mut listener = match PgListener::connect_with(&pool).await {
        Ok(listener) => listener,
        Err(source) => {
            postgres.connect().await?;
            return Err(Error::Connect { place: postgres.place(), source });
        }
    };
    listener.eager_reconnect(false);
    if let Err(error) = listener.listen(CHANNEL).await {
        // "could not access status of transaction" on LISTEN passes once the queue's usage was asked for
        // (https://github.com/PostgREST/postgrest/pull/4858).
        let _ = sqlx::query("select pg_notification_queue_usage()").execute(control).await;
        return Err(Error::of("LISTEN")(error));
    }
    Ok(listener)
}

async fn receive(listener: &mut PgListener, notify: &mpsc::Sender<PgNotification>) -> Result<(), Error> {
    loop {
        match listener.try_recv().await {
            Ok(Some(notification)) => {
                if notify.send(notification).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => return Err(Error::Unsuitable("PostgreSQL closed the listening connection".into())),
            Err(source) => return Err(Error::Statement { what: "receiving notifications", source }),
        }
    }
}

/// The connection for everything but notifications.
struct Control {
    connection: PgConnection,
    instance: String,
    timeout: Duration,
    gap: Option<i64>, // id in the ledger
}

impl Control {
    async fn opening(&mut self) -> Result<Event, Error> {
        let watches = watches::load(&mut self.connection).await?;
        let row = sqlx::query("select pg_backend_pid()").fetch_one(&mut self.connection).await;
        let backend: i32 = row.map_err(Error::of("asking for the backend"))?.get(0);
        let row = sqlx::query(
            "select (extract(epoch from watermark) * 1000000)::bigint, log_xmin::text::bigint
               from unstale.checkpoint where instance = $1",
        )
        .bind(&self.instance)
        .fetch_optional(&mut self.connection)
        .await
        .map_err(Error::of("reading the checkpoint"))?;
        let checkpoint = row
            .map(|row| Checkpoint { watermark: row.get::<Option<i64>, _>(0).map(PgTime), log_xmin: row.get::<i64, _>(1).cast_unsigned() });
        Ok(Event::Subscribed { backend: backend.cast_unsigned(), watches, checkpoint })
    }

    async fn serve(mut self, mut asked: mpsc::Receiver<Request>, event: &mpsc::Sender<Event>) -> Result<(), Error> {
        while let Some(request) = asked.recv().await {
            let answer = match tokio::time::timeout(self.timeout, self.answer(request)).await {
                Ok(answer) => answer?,
                Err(_) => return Err(Error::Timeout(self.timeout)),
            };
            if let Some(answer) = answer
                && event.send(answer).await.is_err()
            {
                break;
            }
        }
        let _ = tokio::time::timeout(self.timeout, self.connection.close()).await;
        Ok(())
    }

    async fn answer(&mut self, request: Request) -> Result<Option<Event>, Error> {
        match request {
            Request::Beat(n, checkpoint) => {
                if let Some(checkpoint) = checkpoint {
                    self.save(checkpoint).await?;
                }
                let sent = self.beat(n).await?;
                if n.is_multiple_of(PRUNE_EVERY) {
                    log::prune(&mut self.connection).await?;
                }
                Ok(Some(sent))
            }
            Request::Watches => Ok(Some(Event::Watches(watches::load(&mut self.connection).await?))),
            Request::Log { watch, xid } => Ok(Some(Event::LogRead(log::of_transaction(&mut self.connection, watch, xid).await?))),
            Request::OpenGap(cause, ago) => self.open_gap(cause, ago).await.map(|()| None),
            Request::CloseGap(summary) => self.close_gap(summary).await.map(|()| None),
            Request::Save(checkpoint) => {
                self.save(checkpoint).await?;
                Ok(Some(Event::Saved))
            }
        }
    }

    /// `statement_timestamp()` is not later than the statement's snapshot, on which the watermark rests;
    /// `clock_timestamp()` would be.
    async fn beat(&mut self, n: u64) -> Result<Event, Error> {
        let row = sqlx::query(
            "select (extract(epoch from statement_timestamp()) * 1000000)::bigint,
                    pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint,
                    pg_notification_queue_usage(), pg_notify($1, $2)
               from pg_current_snapshot() s",
        )
        .bind(CHANNEL)
        .bind(format!(r#"{{"heartbeat":{n}}}"#))
        .fetch_one(&mut self.connection)
        .await
        .map_err(Error::of("sending a heartbeat"))?;
        let (at, xmin, xmax): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        let beat = Beat { n, at: PgTime(at), xmin: xmin.cast_unsigned(), xmax: xmax.cast_unsigned() };
        Ok(Event::BeatSent(beat, row.get(3)))
    }

    async fn save(&mut self, checkpoint: Checkpoint) -> Result<(), Error> {
        sqlx::query(
            "insert into unstale.checkpoint (instance, watermark, log_xmin)
             values ($1, 'epoch'::timestamptz + $2::bigint * interval '1 microsecond', $3::text::xid8)
             on conflict (instance) do update
                set watermark = excluded.watermark, log_xmin = excluded.log_xmin, saved_at = clock_timestamp()",
        )
        .bind(&self.instance)
        .bind(checkpoint.watermark.map(|time| time.0))
        .bind(checkpoint.log_xmin.to_string())
        .execute(&mut self.connection)
        .await
        .map_err(Error::of("storing the checkpoint"))?;
        Ok(())
    }

    async fn open_gap(&mut self, cause: Cause, ago: Duration) -> Result<(), Error> {
        // What an earlier session, or process, did not catch up with is still the same gap.
        let row = sqlx::query(
            "with known as (
                 select id from unstale.gap where instance = $1 and not complete order by opened_at desc limit 1
             ), opened as (
                 insert into unstale.gap (instance, cause, opened_at)
                 select $1, $2, clock_timestamp() - $3::double precision * interval '1 second' where not exists (select from known)
                 returning id
             )
             select id from known union all select id from opened",
        )
        .bind(&self.instance)
        .bind(cause.label())
        .bind(ago.as_secs_f64())
        .fetch_one(&mut self.connection)
        .await
        .map_err(Error::of("noting a gap"))?;
        self.gap = Some(row.get(0));
        Ok(())
    }

    async fn close_gap(&mut self, summary: GapSummary) -> Result<(), Error> {
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        sqlx::query(
            "update unstale.gap set closed_at = clock_timestamp(), swept = $2, logged = $3, keys = $4, complete = true where id = $1",
        )
        .bind(self.gap.take())
        .bind(count(summary.swept))
        .bind(count(summary.logged))
        .bind(count(summary.keys))
        .execute(&mut self.connection)
        .await
        .map_err(Error::of("noting the end of a gap"))?;
        Ok(())
    }
}
