//! Does what the machine decides: the only reader of the clock, and the place where PostgreSQL and
//! Redis meet.
//!
//! One task owns the machine. Sessions, sweeps and commands to Redis run in tasks of their own and
//! talk to it through bounded channels; it stops taking from a channel when the machine does not
//! accept more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::postgres::PgNotification;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::board::Board;
use super::machine::repeat_filter::RepeatFilter;
use super::machine::{Action, Input, Machine, Settings, State};
use super::sampler::{Sampler, Sampling};
use crate::batch::Lane;
use crate::messages::{Event, Readiness, Request, Swept};
use crate::observe::{Observation, metrics, observe};
use crate::pg::Postgres;
use crate::pg::checkpoint::Instance;
use crate::pg::replicas::{self, Replicas};
use crate::pg::session::Session;
use crate::pg::sweep;
use crate::sink::Sink;
use crate::sink::worker::{Report, Workers};
use crate::systemd;

/// Notifications taken at once, between two looks at everything else.
const BURST: usize = 128;

/// Between two copies for the status page.
const SHOWN_EVERY: Duration = Duration::from_millis(250);

/// What the driver is made of. All of it may be replaced while it runs: sessions and commands to
/// Redis take what there is when they begin, or begin again.
#[derive(Clone)]
pub struct Dependencies {
    /// Where changes come from.
    pub postgres: Postgres,
    /// Those of them that readers read, too.
    pub replicas: Vec<Postgres>,
    /// Where keys are deleted.
    pub sink: Arc<Sink>,
    /// The same servers, by connections for those that look what is cached.
    pub audited: Arc<Sink>,
    /// Under what name progress is kept.
    pub instance: Instance,
    /// Rows of a page of a sweep.
    pub page_rows: u32,
    /// Decisions of the machine.
    pub settings: Settings,
    /// Which of the deleted keys are looked at again, and when.
    pub sampling: Sampling,
}

/// Listens until `shutdown`, then drains. The probes read `readiness`, the status page the board,
/// and what is deleted is offered to the sampler.
pub async fn run(
    mut parts: watch::Receiver<Dependencies>,
    readiness: watch::Sender<Readiness>,
    (board, sampler): (Arc<Board>, Sampler),
    shutdown: CancellationToken,
) {
    let settings = parts.borrow_and_update().settings.clone();
    let driver = Driver {
        machine: Machine::new(settings, Instant::now()),
        session: None,
        sweep: None,
        arrived: VecDeque::with_capacity(BURST),
        workers: Workers::new({
            let parts = parts.clone();
            move || parts.borrow().sink.clone()
        }),
        replicas: None,
        replicas_told: BTreeMap::new(),
        reported: None,
        watchdog: systemd::watchdog_interval(),
        watchdog_due: Instant::now(),
        starting_due: Some(Instant::now()),
        saving: false,
        shown_due: Instant::now(),
        parts,
        readiness,
        board,
        sampler,
    };
    driver.run(shutdown).await;
}

struct Driver {
    parts: watch::Receiver<Dependencies>,
    readiness: watch::Sender<Readiness>,
    board: Arc<Board>,
    shown_due: Instant,
    sampler: Sampler,
    machine: Machine,
    session: Option<Session>,
    sweep: Option<(mpsc::Receiver<Swept>, JoinSet<()>)>,
    arrived: VecDeque<PgNotification>, // taken from the session, not yet accepted by the machine
    workers: Workers,
    replicas: Option<Replicas>,
    replicas_told: BTreeMap<Option<usize>, RepeatFilter>, // of each that failed, once a minute
    reported: Option<Readiness>,
    watchdog: Option<Duration>, // how often systemd wants to hear that this loop turns
    watchdog_due: Instant,
    starting_due: Option<Instant>, // until it was ready once, when to say that the start goes on
    saving: bool,                  // the last checkpoint, on the way out
}

/// Whatever came first.
enum Wake {
    Shutdown,
    Session(Option<Event>),
    Arrived,
    Swept(Option<Swept>),
    Redis(Report),
    Replicas(replicas::Report),
    OtherParts,
    Time,
}

impl Driver {
    async fn run(mut self, shutdown: CancellationToken) {
        self.turn();
        let mut burst = Vec::with_capacity(BURST);
        while *self.machine.state() != State::Stopped {
            let deadline = self.deadline();
            let draining = matches!(self.machine.state(), State::Draining { .. });
            let take_notifications = self.arrived.is_empty() && self.machine.accepts(Lane::Live);
            let take_swept = self.machine.accepts(Lane::CatchUp);
            let wake = tokio::select! {
                () = shutdown.cancelled(), if !draining => Wake::Shutdown,
                wake = next_of_session(&mut self.session, &mut burst, take_notifications) => wake,
                swept = next_swept(&mut self.sweep), if take_swept => Wake::Swept(swept),
                report = self.workers.next() => Wake::Redis(report),
                report = next_of_replicas(&mut self.replicas) => Wake::Replicas(report),
                Ok(()) = self.parts.changed() => Wake::OtherParts,
                () = tokio::time::sleep_until(deadline.into()) => Wake::Time,
            };
            self.wake(wake, &mut burst);
        }
        self.leave().await;
    }

    fn wake(&mut self, wake: Wake, burst: &mut Vec<PgNotification>) {
        match wake {
            Wake::Shutdown => {
                systemd::stopping();
                self.starting_due = None; // it would put off the end instead
                self.handle(Input::Shutdown);
            }
            Wake::Session(event) => self.session_says(
                event.unwrap_or_else(|| Event::Lost("the session's task ended".into())),
            ),
            Wake::Arrived => self.arrived.extend(burst.drain(..)),
            Wake::Swept(swept) => {
                let swept = swept.unwrap_or_else(|| Swept::Failed("the sweep's task ended".into()));
                if matches!(swept, Swept::Ended | Swept::Failed(_)) {
                    self.sweep = None;
                }
                self.handle(Input::Swept(swept));
            }
            Wake::Redis(Report::Done { id, done }) => {
                observe(&Observation::Deleted { existed: done.existed });
                self.sampler.offer(&done.delivered);
                self.handle(Input::Acknowledged { id, delivered: done.delivered });
            }
            Wake::Redis(Report::Failed { id, reason }) => {
                self.handle(Input::RedisFailed { id, reason })
            }
            Wake::Replicas(report) => self.replica(report),
            Wake::OtherParts => {
                self.replicas = None; // they may be others
                let parts = self.parts.borrow_and_update();
                self.sampler.reconfigure(&parts.sampling);
                self.machine.reconfigure(parts.settings.clone());
            }
            Wake::Time => {}
        }
        let now = Instant::now();
        while self.machine.accepts(Lane::Live)
            && let Some(notification) = self.arrived.pop_front()
        {
            self.machine.handle(
                now,
                Input::Notified {
                    backend: notification.process_id(),
                    payload: notification.payload(),
                },
            );
        }
        self.turn();
        self.report();
        self.tell_systemd(now);
    }

    /// That the loop turns; and until it was ready once, that the start goes on.
    fn tell_systemd(&mut self, now: Instant) {
        if let Some(every) = self.watchdog
            && now >= self.watchdog_due
        {
            systemd::watchdog();
            self.watchdog_due = now + every;
        }
        if self.starting_due.is_some_and(|due| now >= due) {
            systemd::starting();
            self.starting_due = Some(now + systemd::START_INTERVAL);
        }
    }

    /// When to wake at the latest: the machine's timers, readiness that expires, the watchdog.
    fn deadline(&self) -> Instant {
        let soon =
            Instant::now() + self.parts.borrow().settings.interval.min(systemd::START_INTERVAL);
        let machine = self.machine.deadline().unwrap_or(soon);
        if self.watchdog.is_some() {
            machine.min(soon).min(self.watchdog_due)
        } else {
            machine.min(soon)
        }
    }

    /// The watches that it has read are also shown.
    fn session_says(&mut self, event: Event) {
        match &event {
            Event::Subscribed(opening) => self.board.watches(&opening.watches),
            Event::Watches(watches) => self.board.watches(watches),
            _ => {}
        }
        self.handle(Input::Session(event));
    }

    fn replica(&mut self, report: replicas::Report) {
        match report {
            replicas::Report::Primary { asked, position } => {
                self.handle(Input::PrimaryAt { asked, position })
            }
            replicas::Report::Replica { number, position } => {
                self.handle(Input::ReplicaAt { replica: number, position: Some(position) })
            }
            replicas::Report::Failed { number, place, reason } => {
                let again = self
                    .replicas_told
                    .entry(number)
                    .or_default()
                    .is_repeat(Instant::now(), &reason);
                observe(&Observation::ReplicaFailed { place, reason, again });
                if let Some(replica) = number {
                    self.handle(Input::ReplicaAt { replica, position: None });
                }
            }
        }
    }

    fn handle(&mut self, input: Input<'_>) {
        self.machine.handle(Instant::now(), input);
    }

    /// Does what is to be done now.
    fn turn(&mut self) {
        for action in self.machine.poll(Instant::now()) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::OpenSession => {
                let parts = self.parts.borrow().clone();
                self.session =
                    Some(Session::open(parts.postgres, parts.instance, parts.settings.timeout));
            }
            Action::CloseSession => {
                self.session = None;
                self.sweep = None;
                self.arrived.clear(); // the gap that is open now covers them
            }
            Action::Ask(request) => {
                self.saving |= matches!(request, Request::Save(_));
                if let Some(session) = &mut self.session {
                    session.ask(request);
                }
            }
            Action::Sweep { checkpoint, done, log } => {
                let from = sweep::From {
                    checkpoint,
                    done,
                    log,
                    by_hand: None,
                    page_timeout: sweep::PAGE_TIMEOUT,
                };
                let (out, swept) = mpsc::channel(4);
                let mut task = JoinSet::new();
                let Dependencies { postgres, page_rows, .. } = self.parts.borrow().clone();
                task.spawn(sweep::run(postgres, from, page_rows, out));
                self.sweep = Some((swept, task));
            }
            Action::AskReplicas(now) => {
                let replicas = self.replicas.get_or_insert_with(|| {
                    let Dependencies { postgres, replicas, .. } = &*self.parts.borrow();
                    Replicas::new(postgres, replicas, now)
                });
                replicas.ask(now);
            }
            Action::StopSweep => self.sweep = None,
            Action::Send(command) => self.workers.begin(command),
            Action::Observe(observation) => self.observe(&observation),
        }
    }

    /// What the machine says is also shown.
    fn observe(&self, observation: &Observation) {
        observe(observation);
        self.board.note(Instant::now(), observation);
    }

    /// Counts what happened, and reports to the probes and to systemd.
    fn report(&mut self) {
        let now = Instant::now();
        for (watch, tally) in self.machine.take_tallies() {
            self.board.counted(now, watch, tally);
            let table = self.machine.table(watch).unwrap_or("unwatched");
            metrics::count(table, tally.changes, tally.keys, tally.swept);
        }
        let readiness = self.machine.readiness(now);
        if now >= self.shown_due || self.reported.as_ref() != Some(&readiness) {
            self.shown_due = now + SHOWN_EVERY;
            self.board.stands(self.machine.standing(now));
        }
        if self.reported.as_ref() == Some(&readiness) {
            return;
        }
        let was_ready = self.reported == Some(Readiness::Ready);
        if self.reported.is_none() || was_ready || readiness == Readiness::Ready {
            observe(&Observation::Readiness(readiness.clone())); // further reasons are for the probes alone
        }
        match &readiness {
            Readiness::Ready => {
                self.starting_due = None;
                systemd::status("ready");
                systemd::ready();
            }
            Readiness::NotReady(reason) => systemd::status(reason),
        }
        self.readiness.send_replace(readiness.clone());
        self.reported = Some(readiness);
    }

    /// Waits until the last checkpoint is stored, if that can be.
    async fn leave(mut self) {
        self.report();
        let (Some(mut session), true) = (self.session, self.saving) else { return };
        let stored = async {
            while let Some(event) = session.events.recv().await {
                if matches!(event, Event::Saved | Event::Lost(_)) {
                    break;
                }
            }
        };
        let patience = self.parts.borrow().settings.timeout;
        let _ = tokio::time::timeout(patience, stored).await;
    }
}

async fn next_of_session(
    session: &mut Option<Session>,
    burst: &mut Vec<PgNotification>,
    take_notifications: bool,
) -> Wake {
    let Some(Session { events, notifications, .. }) = session else {
        return std::future::pending().await;
    };
    tokio::select! {
        event = events.recv() => Wake::Session(event),
        taken = notifications.recv_many(burst, BURST), if take_notifications => {
            // At the end of the notifications, the last event says why.
            if taken > 0 { Wake::Arrived } else { Wake::Session(events.recv().await) }
        }
    }
}

async fn next_of_replicas(replicas: &mut Option<Replicas>) -> replicas::Report {
    match replicas {
        Some(replicas) => replicas.next().await,
        None => std::future::pending().await,
    }
}

async fn next_swept(sweep: &mut Option<(mpsc::Receiver<Swept>, JoinSet<()>)>) -> Option<Swept> {
    match sweep {
        Some((swept, _)) => swept.recv().await,
        None => std::future::pending().await,
    }
}
