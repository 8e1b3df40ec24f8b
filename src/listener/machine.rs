//! What the listener does, and when. Pure: inputs and the time go in, actions come out.
//!
//! ```text
//! Connecting -> Subscribing -> CatchingUp <-> Listening        Draining -> Stopped
//!      ^             | any of them: the session is lost           ^
//!      +-- Waiting <-+                                            +-- any of them, and Waiting: a shutdown
//! ```
//!
//! [`Machine::handle`] takes in what happened, one thing at a time; [`Machine::poll`] lets the time
//! pass and says what is to be done, after a burst of inputs and at [`Machine::deadline`].
//!
//! What must hold:
//! - LISTEN is active before anything is read (P2): the driver subscribes, then reads watches and
//!   checkpoint, then says [`Event::Subscribed`](crate::messages::Event::Subscribed); the sweep
//!   starts after the first heartbeat has proved that NOTIFY arrives.
//! - While a gap is open the watermark stands still (P3) and the listener is not ready (P2).
//! - Everything is bounded (P4): a full batch stops reading; if Redis does nothing about it for a
//!   while, what waits is replaced by a new sweep from the watermark, and PostgreSQL is drained on.
//!
//! Each part owns what it is about:
//!
//! | | |
//! |---|---|
//! | `state`, `timers` | the transitions that there are; what happens because time passes |
//! | `postgres`, `redis` | what came in, handed to the parts |
//! | `intake` | the rules, and what changes and rows mean by them |
//! | `heartbeats`, `change_log`, `watch_reading` | of the session: the heartbeats on their way; when the log is read, and when the watches |
//! | `gap`, `history` | where catching up begins and how far it is; what another PostgreSQL means |
//! | `link` | Redis as it is known: who answers, what fails, what it may have undone |
//! | `second_delete`, `repeat`, `replicas` | keys that are deleted once more: when, after a time, or when replicas have replayed |
//! | `standing`, `repeat_filter` | what the probes and the status page see; the same failure is said once a minute |

mod change_log;
mod gap;
mod heartbeats;
mod history;
mod intake;
mod link;
mod message;
mod postgres;
mod redis;
mod repeat;
pub(super) mod repeat_filter;
mod replicas;
mod second_delete;
mod settings;
mod standing;
mod state;
mod timers;
mod watch_reading;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::batch::{Batch, Lane, Point};
use crate::deletion::Deletion;
use crate::messages::{Cause, Request};
use crate::observe::Observation;
use crate::watermark::{PgTime, Progress, Proven, Server, Snapshot, Watermark};

use change_log::ChangeLog;
use gap::{Gap, Plan, Resume};
use heartbeats::Heartbeats;
pub(crate) use intake::Intake;
use link::Link;
pub use message::{Action, Input, Tally};
use repeat_filter::RepeatFilter;
use second_delete::SecondDeletes;
pub use settings::Settings;
pub use standing::Standing;
pub use state::{CatchUp, State};
use watch_reading::WatchReading;

/// See the module.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    state: State,
    intake: Intake,
    batch: Batch,
    watermark: Watermark,
    backoff: Backoff,
    beats: Heartbeats,
    change_log: ChangeLog,
    watch_reading: WatchReading,
    gap: Option<Gap>,
    server: Option<Server>, // the PostgreSQL of the last session
    began: Option<PgTime>,  // the first heartbeat of this process, by PostgreSQL's clock
    link: Link,
    second_deletes: SecondDeletes,
    sweep_failure: Option<String>, // why the last sweep of this gap ended early
    replayed: Option<Instant>,     // when what Redis had undone was last begun to be repeated
    lost_because: String,
    said: RepeatFilter,
    not_kept: RepeatFilter,           // bookkeeping that was refused
    without_index: BTreeSet<String>,  // tables
    sample: Option<(Instant, Point)>, // a change that was received, and what must settle until its keys are gone
    actions: Vec<Action>,
}

impl Machine {
    /// A listener that has yet to connect; poll it.
    #[must_use]
    pub fn new(settings: Settings, now: Instant) -> Self {
        let backoff = Backoff::new(settings.backoff_min, settings.backoff_max, settings.seed);
        Self {
            batch: Batch::new(settings.limits),
            watermark: Watermark::new(Proven::default(), settings.window),
            second_deletes: SecondDeletes::new(&settings, now),
            settings,
            state: State::Waiting { until: now },
            intake: Intake::default(),
            backoff,
            beats: Heartbeats::new(0, now),
            change_log: ChangeLog::new(Snapshot::nothing(), now),
            watch_reading: WatchReading::new(now),
            gap: Some(Gap::new(Cause::Start, now)),
            server: None,
            began: None,
            link: Link::new(now),
            sweep_failure: None,
            replayed: None,
            lost_because: "not connected yet".into(),
            said: RepeatFilter::default(),
            not_kept: RepeatFilter::default(),
            without_index: BTreeSet::new(),
            sample: None,
            actions: vec![Action::Observe(Observation::GapOpened { cause: Cause::Start })],
        }
    }

    /// Other settings, from now on. A longer `replay.window` begins to count now: what is further
    /// back was not kept.
    pub fn reconfigure(&mut self, settings: Settings) {
        self.batch.set_limits(settings.limits);
        self.watermark.set_window(settings.window);
        self.second_deletes.reconfigure(&settings);
        self.backoff = Backoff::new(settings.backoff_min, settings.backoff_max, settings.seed);
        self.settings = settings;
    }

    /// Takes in what happened. [`Machine::poll`] follows, after the last input of a burst.
    pub fn handle(&mut self, now: Instant, input: Input<'_>) {
        match input {
            Input::Notified { backend, payload } => self.notified(now, backend, payload),
            Input::Session(event) => self.session_says(now, event),
            Input::Swept(swept) => self.swept(now, swept),
            Input::Acknowledged { id, delivered } => self.acknowledged(now, id, delivered),
            Input::RedisFailed { id, reason } => self.redis_failed(now, id, reason),
            Input::PrimaryAt { asked, position } => {
                self.second_deletes.note_primary_at(asked, position)
            }
            Input::ReplicaAt { replica, position } => {
                if let Some(lag) = self.second_deletes.note_replica_at(replica, position) {
                    self.say(lag);
                }
            }
            Input::Shutdown => self.shut_down(now),
        }
    }

    /// Lets the time pass; says what is to be done.
    pub fn poll(&mut self, now: Instant) -> Vec<Action> {
        self.tick(now);
        self.settle(now);
        self.send(now);
        std::mem::take(&mut self.actions)
    }

    /// May the next notification, or what a sweep brings, be handed in?
    #[must_use]
    pub fn accepts(&self, lane: Lane) -> bool {
        self.state.in_session() && !self.batch.is_full(lane)
    }

    /// Where it is.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// A watch's table.
    #[must_use]
    pub fn table(&self, watch: i32) -> Option<&str> {
        self.intake.table(watch)
    }

    /// Keys and patterns that wait for Redis.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.batch.waiting(Lane::Live) + self.batch.waiting(Lane::CatchUp)
    }

    /// What was counted since the last call, by watch.
    pub fn take_tallies(&mut self) -> BTreeMap<i32, Tally> {
        self.intake.take_tallies()
    }

    fn say(&mut self, observation: Observation) {
        self.actions.push(Action::Observe(observation));
    }

    fn ask(&mut self, request: Request) {
        self.actions.push(Action::Ask(request));
    }

    /// What may be stored, if there is anything: while a gap is open, what was proven before it,
    /// with the marks of now. Whoever comes after a kill would otherwise not know these, and take
    /// Redis for another one.
    fn progress(&self) -> Option<Progress> {
        if !self.gap.as_ref().is_none_or(Gap::keeps_what_was_proven) {
            return None;
        }
        let Proven { checkpoint, replay } = self.watermark.proven();
        Some(Progress { checkpoint: checkpoint?, replay, redis: self.link.stored() })
    }
}

/// Transitions.
impl Machine {
    /// The only place that assigns the state.
    fn enter(&mut self, state: State) {
        debug_assert!(self.state.may_become(&state), "from {:?} to {state:?}", self.state);
        self.state = state;
    }

    fn lost(&mut self, now: Instant, cause: Cause, reason: String) {
        if matches!(self.state, State::Waiting { .. } | State::Stopped) {
            return;
        }
        self.actions.push(Action::CloseSession);
        self.watch_reading = WatchReading::new(now); // what it holds, the gap covers
        let proven = self.beats.take_settled().and_then(|n| self.watermark.would_prove(n));
        self.watermark.forget_session();
        self.beats.forget();
        if let Some(gap) = &mut self.gap {
            gap.session_lost(proven);
        }
        self.batch.clear(Lane::CatchUp); // a new sweep brings it again
        if self.state.is_leaving() {
            return; // nothing more was wanted of it
        }
        let retry_in = self.backoff.next_delay();
        self.enter(State::Waiting { until: now + retry_in });
        self.open_gap(now, cause);
        self.lost_because.clone_from(&reason);
        let again = self.said.is_repeat(now, &reason);
        self.say(Observation::SessionLost { reason, retry_in, again });
    }

    /// The only place where a gap opens. One that opens while the session goes on is noted at once,
    /// another by the next session.
    fn open_gap(&mut self, now: Instant, cause: Cause) {
        if self.gap.is_some() {
            return;
        }
        self.gap = Some(Gap::new(cause, now));
        self.beats.forget();
        self.say(Observation::GapOpened { cause });
        if self.state.hears() {
            self.ask(Request::OpenGap(cause, Duration::ZERO));
        }
    }

    /// The only place where it closes: everything that it demanded is acknowledged.
    fn close_gap(&mut self, now: Instant) {
        let Some(gap) = self.gap.take() else { return };
        let summary = gap.summary(now);
        self.ask(Request::CloseGap(summary));
        self.say(Observation::GapClosed(summary));
        self.enter(State::Listening);
        self.beats.want(); // so that it is stored at once: a kill would make it be caught up with again
    }

    /// The gap demands more than it seemed to.
    fn demand(&mut self, resume: Resume, again: bool) {
        if let Some(gap) = &mut self.gap {
            gap.demand(resume, again);
        }
    }

    fn catch_up(&mut self) {
        if self.link.is_silent() {
            self.add_canary(); // it asks Redis until it answers
            self.enter(State::CatchingUp(CatchUp::AwaitingRedis));
        } else {
            self.begin_catching_up();
        }
    }

    /// Redis answers, NOTIFY arrives: read, or delete, what the gap demands.
    fn begin_catching_up(&mut self) {
        let undone = self.gap.as_mut().map(|gap| gap.undone(&self.link)).unwrap_or_default();
        for deletion in undone {
            self.batch.add(Lane::CatchUp, deletion);
        }
        let proven = self.watermark.proven();
        match self.gap.as_ref().map_or(Plan::Nothing, |gap| gap.plan(proven)) {
            Plan::Nothing => self.settle_catching_up(),
            Plan::Everything => {
                for watch in self.intake.watches() {
                    self.intake.everything(&mut self.batch, Lane::CatchUp, watch);
                }
                self.settle_catching_up();
            }
            Plan::Sweep { checkpoint, done, log } => {
                self.actions.push(Action::Sweep { checkpoint, done, log });
                self.enter(State::CatchingUp(CatchUp::Sweeping));
            }
        }
    }

    /// All that is to be deleted is collected.
    fn settle_catching_up(&mut self) {
        let point = self.batch.point(Lane::CatchUp);
        self.enter(State::CatchingUp(CatchUp::Settling(point)));
    }

    fn beat(&mut self, now: Instant) {
        let n = self.beats.ask(now);
        let progress = self.progress();
        self.ask(Request::Beat { n, progress });
    }

    /// Asks Redis for an answer.
    fn add_canary(&mut self) {
        self.batch.add(Lane::Live, Deletion::Key(self.settings.canary.clone()));
    }

    /// Redis was away for so long that the batch is full: from here on a sweep is cheaper.
    fn overflow(&mut self, now: Instant) {
        self.say(Observation::Overflowed { waiting: self.batch.waiting(Lane::Live) });
        self.batch.clear(Lane::Live);
        self.sample = None;
        self.batch.clear(Lane::CatchUp);
        self.beats.forget();
        self.link.note_away();
        if self.state == State::Subscribing {
            return; // the gap is open, and the sweep still to come
        }
        self.open_gap(now, Cause::Overflow);
        self.demand(Resume::Checkpoint, false);
        self.actions.push(Action::StopSweep);
        self.catch_up();
    }

    fn shut_down(&mut self, now: Instant) {
        if !self.state.is_leaving() {
            self.actions.push(Action::StopSweep);
            self.batch.clear(Lane::CatchUp);
            self.enter(State::Draining { until: now + self.settings.shutdown });
        }
    }

    fn stop(&mut self, drained: bool) {
        // In a gap, the session may be of a server that was not looked at yet, to which it would say
        // what was proven of another one.
        if self.gap.is_none()
            && let Some(progress) = self.progress()
        {
            self.ask(Request::Save(progress));
        }
        self.say(Observation::Stopped { drained });
        self.enter(State::Stopped);
    }
}

/// Conclusions.
impl Machine {
    /// Draws the conclusions of what Redis has acknowledged.
    fn settle(&mut self, now: Instant) {
        while let Some(asked) = self.beats.settle(now, |point| self.batch.is_settled(point)) {
            self.say(Observation::Fresh { took: now - asked });
        }
        if let Some((received, point)) = self.sample
            && self.batch.is_settled(point)
        {
            self.sample = None;
            self.say(Observation::Delivered { took: now - received });
        }
        if let Some(gap) = &mut self.gap {
            gap.settle(|point| self.batch.is_settled(point));
        }
        if let State::CatchingUp(CatchUp::Settling(point)) = self.state
            && self.batch.is_settled(point)
        {
            self.close_gap(now);
        }
        if self.gap.is_none()
            && let Some(n) = self.beats.take_settled()
        {
            self.watermark.acknowledged(n);
            if self.beats.is_awaited(n)
                && let Some(progress) = self.progress()
            {
                self.beats.note_stored();
                self.ask(Request::Keep(progress));
            }
        }
        if matches!(self.state, State::Draining { .. }) && self.batch.is_empty() {
            self.stop(true);
        }
    }

    /// What may be sent to Redis now: first what was not deleted yet, then what is deleted once
    /// more, as far as there are places.
    fn send(&mut self, now: Instant) {
        while let Some(command) = self.batch.next_command(now) {
            self.actions.push(Action::Send(command));
        }
        while !self.state.is_leaving()
            && self.batch.has_place_aside()
            && let Some((keys, cause)) =
                self.second_deletes.next(now, self.settings.limits.keys_per_command)
        {
            self.say(Observation::Repeated { keys: keys.len(), cause });
            let command = self.batch.aside(keys, now);
            self.actions.push(Action::Send(command));
        }
    }
}
