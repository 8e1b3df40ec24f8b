//! One session with PostgreSQL: LISTEN on one connection, heartbeats and bookkeeping on another.
//!
//! Must hold: LISTEN has succeeded before watches and checkpoint are read (P2). Whatever goes wrong
//! on either connection ends the session with [`Event::Lost`]; nothing reconnects behind the
//! machine's back, because that would hide a gap
//! (<https://github.com/launchbadge/sqlx/issues/4014>).

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgListener, PgNotification};
use sqlx::{Connection, Executor, Row};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::checkpoint::Instance;
use super::connect::Route;
use super::watches;
use super::{Error, Postgres, gaps, identity, log, migrate};
use crate::messages::{Cause, Event, GapSummary, Opening, Request};
use crate::watermark::{Beat, PgTime, Progress, Server};

/// Notifications between the connection and the driver; one has up to 8 kB. When the driver stops
/// taking them, PostgreSQL waits.
const NOTIFICATIONS: usize = 1024;

/// Heartbeats between two roundups: emptying the log, and looking for what no trigger says.
const ROUNDUP_EVERY: u64 = 10;

/// A session; dropping it ends it.
pub struct Session {
    /// What it says.
    pub events: mpsc::Receiver<Event>,
    /// What arrives, in order.
    pub notifications: mpsc::Receiver<PgNotification>,
    requests: mpsc::Sender<Request>,
    tasks: JoinSet<()>,
}

impl Session {
    /// Begins to open a session. `timeout` bounds each answer of the server on the control
    /// connection.
    #[must_use]
    pub fn open(postgres: Postgres, instance: Instance, timeout: Duration) -> Self {
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
        Self { events, notifications, requests, tasks }
    }

    /// Asks for something. Of each kind one is under way at most, so there is room; if ever there
    /// is none, the session ends, because what is not answered would be waited for.
    pub fn ask(&mut self, request: Request) {
        if self.requests.try_send(request).is_err() {
            self.tasks.abort_all();
        }
    }
}

async fn run(
    postgres: &Postgres,
    instance: Instance,
    timeout: Duration,
    event: &mpsc::Sender<Event>,
    notify: &mpsc::Sender<PgNotification>,
    asked: mpsc::Receiver<Request>,
) -> Result<(), Error> {
    let (mut connection, route) = postgres.route().await?;
    super::check_server(&mut connection).await?;
    migrate::check(&mut connection).await?;
    let mut listener = listen(&route, &mut connection, timeout / 2).await?;
    let mut control = Control::new(connection, instance, timeout).await?;
    if event.send(control.opening().await?).await.is_err() {
        return Ok(());
    }
    tokio::select! {
        result = control.serve(asked, event) => result,
        result = receive(&mut listener, notify) => result,
    }
}

/// All that a listener of this name does at its start and at each heartbeat, by the same code, and
/// nothing of it stays. Says what the server refuses of it. Not the emptying of the log, which
/// would keep writers waiting until it is undone.
///
/// # Errors
/// [`Error::Statement`]: what a listener would fail with, or the connection's end.
pub async fn check_permissions(route: &Route, instance: Instance) -> Result<(), Error> {
    let timeout = Duration::ZERO; // only `serve` needs one
    let mut control = Control::new(route.connect().await?, instance, timeout).await?;
    let result = control.check_permissions().await;
    if let Some(refusal) = control.refusals.drain(..).next() {
        return Err(refusal); // what came after it failed because of it
    }
    result?;
    control.connection.close().await.map_err(Error::of("ROLLBACK"))
}

/// A pool of one, fresh for each session: a listener that is dropped on a dead socket keeps its
/// place in the pool. It tries for as long as `patience` and then only says that it timed out; the
/// real cause comes from a connection without it.
pub(super) async fn listen(
    route: &Route,
    control: &mut PgConnection,
    patience: Duration,
) -> Result<PgListener, Error> {
    let mut listener = match PgListener::connect_with(&route.pool(patience)).await {
        Ok(listener) => listener,
        Err(source) => {
            route.connect().await?;
            return Err(Error::Connect { place: route.place().to_owned(), source });
        }
    };
    listener.eager_reconnect(false);
    listener.ignore_pool_close_event(true); // nobody closes the pool, and the check costs a tenth of a burst
    // Not PgListener::listen: the channel's name is a secret, and would stand in pg_stat_activity.
    if let Err(error) = sqlx::query("select unstale.listen()").execute(&mut listener).await {
        // "could not access status of transaction" on LISTEN passes once the queue's usage was
        // asked for (https://github.com/PostgREST/postgrest/pull/4858).
        let _ = sqlx::query("select pg_notification_queue_usage()").execute(control).await;
        return Err(Error::of("LISTEN")(error));
    }
    Ok(listener)
}

async fn receive(
    listener: &mut PgListener,
    notify: &mpsc::Sender<PgNotification>,
) -> Result<(), Error> {
    loop {
        match listener.try_recv().await {
            Ok(Some(notification)) => {
                if notify.send(notification).await.is_err() {
                    return Ok(());
                }
            }
            Ok(None) => {
                return Err(Error::Unsuitable("PostgreSQL closed the listening connection".into()));
            }
            Err(source) => {
                return Err(Error::Statement { what: "receiving notifications", source });
            }
        }
    }
}

/// The connection for everything but notifications.
struct Control {
    connection: PgConnection,
    instance: Instance,
    timeout: Duration,
    timeline: String,
    gap: Option<i64>, // id in the ledger
    reader: log::Reader,
    refusals: Vec<Error>, // of bookkeeping, still to be reported
}

impl Control {
    async fn new(
        mut connection: PgConnection,
        instance: Instance,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let reader = log::Reader::new(&mut connection).await?;
        let (timeline, refusals) = (String::new(), Vec::new());
        Ok(Self { connection, instance, timeout, timeline, gap: None, reader, refusals })
    }

    async fn opening(&mut self) -> Result<Event, Error> {
        let (server, unknown) = identity::ask(&mut self.connection).await?;
        self.timeline.clone_from(&server.timeline);
        Ok(Event::Subscribed(Box::new(self.subscribed(server, unknown).await?)))
    }

    async fn subscribed(
        &mut self,
        server: Server,
        unknown: Option<String>,
    ) -> Result<Opening, Error> {
        let seen_ago = self.instance.seen(&mut self.connection).await?; // before it is seen now
        let registered = self.instance.register(&mut self.connection).await;
        if seen_ago.is_none() {
            registered?; // the log would not be kept for this instance
        } else {
            self.tolerate(registered)?;
        }
        let noticed = watches::notice_ddl(&mut self.connection).await;
        self.tolerate(noticed)?;
        let watches = watches::load(&mut self.connection).await?;
        let row = sqlx::query("select pg_backend_pid()").fetch_one(&mut self.connection).await;
        let backend: i32 = row.map_err(Error::of("asking for the backend"))?.get(0);
        let mut stored = self.instance.stored(&mut self.connection).await?;
        if let (Some(stored), Some(ago)) = (&mut stored, seen_ago) {
            stored.saved_at = Some(super::clock(&mut self.connection).await?.earlier(ago));
        }
        let forgotten = self.instance.forgotten(&mut self.connection).await?;
        let seen = self.reader.seen().clone();
        Ok(Opening {
            backend: backend.cast_unsigned(),
            watches,
            server,
            unknown,
            stored,
            was_here: seen_ago.is_some(),
            forgotten,
            seen,
        })
    }

    async fn check_permissions(&mut self) -> Result<(), Error> {
        // Before the transaction, which a refusal would end.
        let (server, unknown) = identity::ask(&mut self.connection).await?;
        let begin = "begin; set local lock_timeout = '2s'; set local statement_timeout = '5s'"; // the listener waits for us meanwhile
        self.connection.execute(begin).await.map_err(Error::of("BEGIN"))?;
        self.subscribed(server, unknown).await?;
        self.instance.touch(&mut self.connection).await?;
        self.reader.page(&mut self.connection).await?;
        let gap =
            gaps::open(&mut self.connection, &self.instance.name, Cause::Start, Duration::ZERO)
                .await?;
        let summary = GapSummary {
            cause: Cause::Start,
            lasted: Duration::ZERO,
            swept: 0,
            logged: 0,
            keys: 0,
        };
        gaps::close(&mut self.connection, Some(gap), summary).await?;
        self.beat(0).await?;
        Ok(())
    }

    /// Bookkeeping that the server refuses (a full disk, a read-only moment, a right that was taken
    /// away) keeps nobody from deleting: it is reported, and what was noted before stays true.
    fn tolerate(&mut self, kept: Result<(), Error>) -> Result<(), Error> {
        match kept {
            Err(error) if error.is_refusal() => self.refusals.push(error),
            result => result?,
        }
        Ok(())
    }

    async fn keep(&mut self, progress: &Progress) -> Result<(), Error> {
        let kept = self.instance.save(&mut self.connection, progress, &self.timeline).await;
        self.tolerate(kept)
    }

    async fn serve(
        mut self,
        mut asked: mpsc::Receiver<Request>,
        event: &mpsc::Sender<Event>,
    ) -> Result<(), Error> {
        while let Some(request) = asked.recv().await {
            let answer = match tokio::time::timeout(self.timeout, self.answer(request)).await {
                Ok(answer) => answer?,
                Err(_) => return Err(Error::Timeout(self.timeout)),
            };
            let not_kept = self.refusals.drain(..).map(|error| Event::NotKept(error.in_full()));
            for said in not_kept.chain(answer) {
                if event.send(said).await.is_err() {
                    return Ok(());
                }
            }
        }
        let _ = tokio::time::timeout(self.timeout, self.connection.close()).await;
        Ok(())
    }

    async fn answer(&mut self, request: Request) -> Result<Option<Event>, Error> {
        match request {
            Request::Beat { n, progress } => {
                match progress {
                    Some(progress) => self.keep(&progress).await?,
                    None => {
                        let kept = self.instance.touch(&mut self.connection).await;
                        self.tolerate(kept)?;
                    }
                }
                let sent = self.beat(n).await?;
                if n.is_multiple_of(ROUNDUP_EVERY) {
                    let rotated = log::rotate(&mut self.connection).await;
                    self.tolerate(rotated)?;
                    let noticed = watches::notice_ddl(&mut self.connection).await;
                    self.tolerate(noticed)?;
                }
                Ok(Some(sent))
            }
            Request::ReadWatches => {
                Ok(Some(Event::Watches(watches::load(&mut self.connection).await?)))
            }
            Request::ReadLog => {
                let log::Page { changes, more } = self.reader.page(&mut self.connection).await?;
                Ok(Some(Event::LogRead { changes, more }))
            }
            Request::OpenGap(cause, ago) => {
                let noted = gaps::open(&mut self.connection, &self.instance.name, cause, ago).await;
                let noted = noted.map(|gap| self.gap = Some(gap));
                self.tolerate(noted).map(|()| None)
            }
            Request::CloseGap(summary) => {
                let noted = gaps::close(&mut self.connection, self.gap.take(), summary).await;
                self.tolerate(noted).map(|()| None)
            }
            Request::Keep(progress) => self.keep(&progress).await.map(|()| None),
            Request::Save(progress) => self.keep(&progress).await.map(|()| Some(Event::Saved)),
        }
    }

    /// `statement_timestamp()` is not later than the statement's snapshot, on which the watermark
    /// rests; `clock_timestamp()` would be.
    async fn beat(&mut self, n: u64) -> Result<Event, Error> {
        let row = sqlx::query(
            "select (extract(epoch from statement_timestamp()) * 1000000)::bigint, pg_current_snapshot()::text,
                    pg_notification_queue_usage(), unstale.beat($1)",
        )
        .bind(n.cast_signed())
        .fetch_one(&mut self.connection)
        .await
        .map_err(Error::of("sending a heartbeat"))?;
        let beat = Beat { n, at: PgTime(row.get(0)), snapshot: log::parse_snapshot(row.get(1))? };
        Ok(Event::BeatSent { beat, queue_ratio: row.get(2) })
    }
}
