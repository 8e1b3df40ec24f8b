//! What the listener does, and when. Pure: inputs and the time go in, actions come out.
//!
//! ```text
//! Connecting -> Subscribing -> CatchingUp -> Listening -> Draining -> Stopped
//!      ^             any loss of the session |
//!      +---- Waiting <-----------------------+
//! ```
//!
//! What must hold:
//! - LISTEN is active before anything is read (P2): the driver subscribes, then reads watches and checkpoint, then says
//!   [`Input::Subscribed`]; the sweep starts after the first heartbeat has proved that NOTIFY arrives.
//! - While a gap is open the watermark stands still (P3) and the listener is not ready (P2).
//! - Everything is bounded (P4): a full batch stops reading; if Redis does nothing about it for a while, what waits is
//!   dropped in favour of a new sweep from the watermark, and PostgreSQL is drained on.
//! - `enter` alone assigns the state. Each timer is a field compared in [`Machine::deadline`] and in `tick` (timers.rs).

mod barrier;
mod gap;
mod heart;
mod intake;
mod link;
mod log;
mod message;
mod reading;
mod repeat;
pub(super) mod repeat_filter;
mod replicas;
mod standing;
mod timers;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::batch::{Batch, Lane, Limits, Mark};
use crate::delivered::Delivered;
use crate::observe::{Cause, Observation, Readiness};
use crate::rule::{Rules, Target};
use crate::watermark::{Proven, Server, Watermark};

use barrier::Barrier;
use gap::{Gap, Resume};
use heart::Heart;
use intake::Skipped;
use link::Link;
use log::Log;
pub use message::{Action, Input, Opening, Tally};
use reading::Reading;
use repeat::Repeats;
use repeat_filter::RepeatFilter;
use replicas::Replicas;
pub use standing::Standing;

/// Stands for all commands of which something was handed back: no command has this number.
const HANDED_BACK: u64 = 0;

/// What the configuration decides.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of the key that each heartbeat deletes, to see Redis answer.
    pub canary: String,
    /// Between two heartbeats.
    pub interval: Duration,
    /// Without a sign of life for so long, a session is over.
    pub timeout: Duration,
    /// Shortest delay before another attempt.
    pub backoff_min: Duration,
    /// Longest delay before another attempt.
    pub backoff_max: Duration,
    /// Makes the jitter.
    pub seed: u64,
    /// Bounds of the batch.
    pub limits: Limits,
    /// How long Redis may leave a full batch as it is.
    pub stall: Duration,
    /// How far back a server may undo what it has acknowledged.
    pub window: Duration,
    /// When a key is deleted once more, after it was.
    pub repeat: Vec<Duration>,
    /// How many replicas there are whose readers fill the cache.
    pub replicas: usize,
    /// How long they are waited for.
    pub max_wait: Duration,
    /// How long draining may take.
    pub shutdown: Duration,
}

/// Where the listener is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// No session. Set by every loss; left at `until`.
    Waiting {
        /// The next attempt.
        until: Instant,
    },
    /// A session is being opened. Left when LISTEN has succeeded, or after `timeout`.
    Connecting {
        /// When it began.
        since: Instant,
    },
    /// LISTEN has succeeded. Left when the first heartbeat has come back.
    Subscribing,
    /// The gap is being closed. Left when all that a sweep and the log brought is acknowledged.
    CatchingUp(CatchUp),
    /// Every change is deleted as it comes.
    Listening,
    /// Nothing more is received. Left when everything is acknowledged, or at `until`.
    Draining {
        /// When to give up.
        until: Instant,
    },
    /// The end.
    Stopped,
}

/// How far catching up is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatchUp {
    /// Redis does not answer: changes are not even collected, because the sweep to come finds them.
    AwaitingRedis,
    /// A sweep failed.
    AwaitingRetry {
        /// The next attempt.
        until: Instant,
    },
    /// Rows come in.
    Sweeping,
    /// All rows have come; they wait for Redis.
    Settling(Mark),
}

/// See the module.
#[derive(Debug)]
pub struct Machine {
    settings: Settings,
    state: State,
    rules: Rules,
    batch: Batch,
    watermark: Watermark,
    backoff: Backoff,
    heart: Heart,
    barrier: Barrier,
    log: Log,
    gap: Option<Gap>,
    server: Option<Server>, // the PostgreSQL of the last session
    link: Link,
    sweep_failure: Option<String>, // why the last sweep of this gap ended early
    replayed: Option<Instant>,     // when what Redis had undone was last begun to be repeated
    reading: Reading,
    repeats: Repeats,
    replicas: Replicas,
    lost_because: String,
    tallies: BTreeMap<i32, Tally>,
    skipped: Skipped,
    said: RepeatFilter,
    sample: Option<(Instant, Mark)>, // a change that was received, and what must settle until its keys are gone
    actions: Vec<Action>,
}

impl Machine {
    /// A listener that has yet to connect; tick it.
    #[must_use]
    pub fn new(settings: Settings, now: Instant) -> Self {
        let backoff = Backoff::new(settings.backoff_min, settings.backoff_max, settings.seed);
        Self {
            batch: Batch::new(settings.limits),
            watermark: Watermark::new(Proven::default(), settings.window),
            repeats: Repeats::new(&settings.repeat),
            replicas: Replicas::new(settings.replicas, settings.max_wait),
            settings,
            state: State::Waiting { until: now },
            rules: Rules::new(),
            backoff,
            heart: Heart::new(0, now),
            barrier: Barrier::default(),
            log: Log::default(),
            gap: Some(Gap::new(Cause::Start, now)),
            server: None,
            link: Link::new(now),
            sweep_failure: None,
            replayed: None,
            reading: Reading::default(),
            lost_because: "not connected yet".into(),
            tallies: BTreeMap::new(),
            skipped: Skipped::default(),
            said: RepeatFilter::default(),
            sample: None,
            actions: vec![Action::Observe(Observation::GapOpened { cause: Cause::Start })],
        }
    }

    /// Other settings, from now on. A longer `replay.window` begins to count now: what is further back was not kept.
    pub fn reconfigure(&mut self, settings: Settings) {
        self.batch.set_limits(settings.limits);
        self.watermark.set_window(settings.window);
        self.repeats.set(&settings.repeat);
        self.replicas.set(settings.replicas, settings.max_wait);
        self.backoff = Backoff::new(settings.backoff_min, settings.backoff_max, settings.seed);
        self.settings = settings;
    }

    /// Takes in what happened, and says what is to be done.
    pub fn handle(&mut self, now: Instant, input: Input) -> Vec<Action> {
        match input {
            Input::Tick => {}
            Input::Subscribed(opening) => self.subscribed(now, opening),
            Input::Lost(reason) => self.lost(now, Cause::Session, reason),
            Input::BeatSent(beat) => {
                self.heart.answered = true;
                self.log.beat = beat.n;
                self.watermark.sent(beat);
                self.read_log();
            }
            Input::Watches(rules) => {
                self.heart.heard = now;
                let changed = self.set_rules(rules);
                self.watches_are_read(now, &changed);
            }
            Input::LogRead { changes, more } => self.log_read(now, changes, more),
            Input::SweepEnded => {
                self.sweep_failure = None;
                if self.state == State::CatchingUp(CatchUp::Sweeping) {
                    let mark = self.batch.mark(Lane::CatchUp);
                    self.enter(State::CatchingUp(CatchUp::Settling(mark)));
                }
            }
            Input::SweepFailed(reason) => {
                if self.state == State::CatchingUp(CatchUp::Sweeping) {
                    let retry_in = self.backoff.next_delay();
                    let again = self.said.is_repeat(now, &reason);
                    self.sweep_failure = Some(reason.clone());
                    self.say(Observation::SweepFailed { reason, retry_in, again });
                    self.enter(State::CatchingUp(CatchUp::AwaitingRetry { until: now + retry_in }));
                }
            }
            Input::Acknowledged { id, delivered } => self.acknowledged(now, id, delivered),
            Input::RedisFailed { id, reason } => self.redis_failed(now, id, reason),
            Input::PrimaryAt { asked, position } => self.primary_is_at(asked, position),
            Input::ReplicaAt { replica, position } => self.replica_is_at(replica, position),
            Input::Shutdown => self.shut_down(now),
        }
        self.tick(now);
        self.settle(now);
        while let Some(command) = self.batch.next_command(now) {
            self.actions.push(Action::Send(command));
        }
        self.ask_replicas(now);
        self.send_repeats(now);
        std::mem::take(&mut self.actions)
    }

    /// May the next notification, or swept row of this lane, be handed in?
    #[must_use]
    pub fn accepts(&self, lane: Lane) -> bool {
        self.in_session() && !self.batch.is_full(lane)
    }

    /// Promise P7, or what stands against it.
    #[must_use]
    pub fn readiness(&self, now: Instant) -> Readiness {
        let why = match &self.state {
            State::Waiting { .. } | State::Connecting { .. } => format!("no session with PostgreSQL: {}", self.lost_because),
            State::Subscribing => "waiting for the first heartbeat to come back".into(),
            State::CatchingUp(CatchUp::AwaitingRedis) => {
                format!("catching up waits for Redis: {}", self.link.failure().unwrap_or("no answer"))
            }
            State::CatchingUp(_) => {
                let cause = self.gap.as_ref().map_or("none", |gap| gap.cause.label());
                match (self.link.failure(), &self.sweep_failure) {
                    (Some(failure), _) => format!("catching up after a gap ({cause}), and Redis: {failure}"),
                    (None, Some(failure)) => format!("catching up after a gap ({cause}), and its sweep ended early: {failure}"),
                    (None, None) => format!("catching up after a gap ({cause})"),
                }
            }
            State::Draining { .. } | State::Stopped => "shutting down".into(),
            State::Listening => match (self.link.failure(), self.heart.settled_at) {
                (Some(failure), _) => format!("Redis: {failure}"),
                (None, Some(at)) if now.saturating_duration_since(at) <= self.settings.interval * 2 => return Readiness::Ready,
                (None, _) => "no heartbeat came through PostgreSQL and Redis within two intervals".into(),
            },
        };
        Readiness::NotReady(why)
    }

    /// Where it is.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How far PostgreSQL's clock was ahead of the watermark at the last heartbeat.
    #[must_use]
    pub fn watermark_age(&self) -> Option<Duration> {
        self.watermark.age()
    }

    /// What is watched, by its table's name.
    #[must_use]
    pub fn table(&self, watch: i32) -> Option<&str> {
        self.rules.get(&watch).map(|rule| rule.table.as_str())
    }

    /// Keys and patterns that wait for Redis.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.batch.waiting(Lane::Live) + self.batch.waiting(Lane::CatchUp)
    }

    /// What was counted since the last call, by watch.
    pub fn take_tallies(&mut self) -> BTreeMap<i32, Tally> {
        std::mem::take(&mut self.tallies)
    }
}

/// Transitions.
impl Machine {
    /// Is there a session that listens, and is it listened to?
    fn in_session(&self) -> bool {
        matches!(self.state, State::Subscribing | State::CatchingUp(_) | State::Listening)
    }

    /// The only place that assigns the state.
    fn enter(&mut self, state: State) {
        self.state = state;
    }

    fn subscribed(&mut self, now: Instant, opening: Opening) {
        if !matches!(self.state, State::Connecting { .. }) {
            return;
        }
        self.heart = Heart::new(opening.backend, now);
        self.barrier = Barrier::default();
        self.log = Log::of(opening.seen);
        self.reading = Reading::default();
        self.set_rules(opening.rules);
        self.say(Observation::Subscribed { watches: intake::in_force(&self.rules) });
        // What is remembered is newer than what is stored, but a server that was restarted may have given out its xids again.
        let is_same_server = self.server.as_ref() == Some(&opening.server);
        self.compare_histories(opening.server, opening.stored.as_ref());
        let stored = opening.stored.as_ref().map(|stored| stored.proven.clone()).unwrap_or_default();
        let proven = match &self.gap {
            Some(gap) if gap.resume == Resume::Everything => Proven::default(), // of another server, or of a log that is gone
            _ if is_same_server => self.watermark.proven(),
            _ => stored,
        };
        self.watermark = Watermark::new(proven, self.settings.window);
        if let Some(stored) = &opening.stored {
            self.link.resume(now, stored.redis.as_deref());
        }
        let gap = self.gap.get_or_insert_with(|| Gap::new(Cause::Session, now));
        self.actions.push(Action::OpenGap(gap.cause, now - gap.since));
        self.enter(State::Subscribing);
        self.beat(now);
    }

    fn beat_came_back(&mut self, n: u64) {
        if self.state == State::Subscribing {
            self.backoff.reset();
            self.catch_up();
        }
        self.beat_is_heard(n);
        self.beat_is_complete();
    }

    /// A heartbeat that has come back proves something once the log was read after it was sent.
    fn beat_is_complete(&mut self) {
        let n = self.log.heard.min(self.log.read);
        if n <= self.log.complete {
            return;
        }
        self.log.complete = n;
        if self.state == State::CatchingUp(CatchUp::AwaitingRedis) {
            return; // what came before it was not collected
        }
        self.batch.add(Lane::Live, Target::Key(self.settings.canary.clone()));
        let mark = self.batch.mark(Lane::Live);
        self.heart.came_back(n, mark);
    }

    fn catch_up(&mut self) {
        if self.link.is_silent() {
            // The canary asks Redis until it answers.
            self.batch.add(Lane::Live, Target::Key(self.settings.canary.clone()));
            self.enter(State::CatchingUp(CatchUp::AwaitingRedis));
        } else {
            self.begin_catching_up();
        }
    }

    fn lost(&mut self, now: Instant, cause: Cause, reason: String) {
        if matches!(self.state, State::Waiting { .. } | State::Stopped) {
            return;
        }
        self.actions.push(Action::CloseSession);
        self.reading = Reading::default(); // what it holds, the gap covers
        self.keep_pages();
        self.watermark.forget_session();
        self.heart.forget();
        if let Some(gap) = &mut self.gap {
            gap.resume = gap.resume.max(Resume::Checkpoint); // from here on something may be missed, too
        }
        self.batch.clear(Lane::CatchUp); // a new sweep brings it again
        if matches!(self.state, State::Draining { .. }) {
            return; // nothing more was wanted of it
        }
        self.open_gap(now, cause);
        let retry_in = self.backoff.next_delay();
        self.lost_because.clone_from(&reason);
        let again = self.said.is_repeat(now, &reason);
        self.say(Observation::SessionLost { reason, retry_in, again });
        self.enter(State::Waiting { until: now + retry_in });
    }

    fn open_gap(&mut self, now: Instant, cause: Cause) {
        if self.gap.is_none() {
            self.gap = Some(Gap::new(cause, now));
            self.heart.forget();
            self.say(Observation::GapOpened { cause });
        }
    }

    /// A gap that opens while the session goes on is noted at once.
    fn open_gap_in_session(&mut self, now: Instant, cause: Cause) {
        if self.gap.is_none() {
            self.open_gap(now, cause);
            self.actions.push(Action::OpenGap(cause, Duration::ZERO));
        }
    }

    /// Redis was away for so long that the batch is full: from here on a sweep is cheaper.
    fn overflow(&mut self, now: Instant) {
        self.say(Observation::Overflowed { waiting: self.batch.waiting(Lane::Live) });
        self.batch.clear(Lane::Live);
        self.sample = None;
        self.batch.clear(Lane::CatchUp);
        self.heart.forget();
        self.link.is_away();
        if self.state == State::Subscribing {
            return; // the gap is open, and the sweep still to come
        }
        self.open_gap_in_session(now, Cause::Overflow);
        self.demand(Resume::Checkpoint, false);
        self.actions.push(Action::StopSweep);
        self.catch_up();
    }

    fn acknowledged(&mut self, now: Instant, id: u64, delivered: Delivered) {
        if self.batch.is_full(Lane::Live) {
            self.heart.heard = now; // nothing was received meanwhile because we did not listen
        }
        let Delivered { parts, left, tags } = delivered;
        let again = match &left {
            Some(left) => self.batch.hand_back(id, &left.work, now),
            None => self.batch.acknowledge(id, now),
        };
        let mut told = self.link.are_here(now, &tags, self.settings.window);
        for part in parts {
            told.push((part.answer.tag.clone(), self.link.done(now, &part.answer)));
            if let Some(again) = again {
                self.repeat_later(now, &part.work, again);
                self.remember(now, &part.answer, part.work);
            }
        }
        for (tag, kept) in told {
            self.redis_undid(now, &tag, kept);
        }
        if let Some(left) = left {
            self.redis_failed(now, HANDED_BACK, left.reason);
        } else if !self.batch.owes_handed_back() {
            self.link.is_well_again(HANDED_BACK);
        }
        if self.link.is_well_again(id) {
            self.say(Observation::RedisRecovered);
        }
        if self.state == State::CatchingUp(CatchUp::AwaitingRedis) {
            self.catch_up();
        }
    }

    fn redis_failed(&mut self, now: Instant, id: u64, reason: String) {
        self.heart.doubt(now);
        if self.link.failed(id, reason.clone()) {
            self.say(Observation::RedisFailed { reason });
        }
    }

    /// Draws the conclusions of what Redis has acknowledged.
    fn settle(&mut self, now: Instant) {
        while let Some(asked) = self.heart.settle(now, |mark| self.batch.is_settled(mark)) {
            self.say(Observation::Fresh { took: now - asked });
        }
        if let Some((received, mark)) = self.sample
            && self.batch.is_settled(mark)
        {
            self.sample = None;
            self.say(Observation::Delivered { took: now - received });
        }
        self.settle_pages();
        self.ask_for_watches(now);
        self.ask_for_log(now);
        if let State::CatchingUp(CatchUp::Settling(mark)) = self.state
            && self.batch.is_settled(mark)
            && let Some(gap) = self.gap.take()
        {
            let summary = gap.summary(now);
            self.actions.push(Action::CloseGap(summary));
            self.say(Observation::GapClosed(summary));
            self.enter(State::Listening);
        }
        if self.gap.is_none()
            && let Some(n) = self.heart.take_settled()
        {
            self.watermark.acknowledged(n);
            self.beat_is_proven(n);
        }
        if matches!(self.state, State::Draining { .. }) && self.batch.is_empty() {
            self.stop(true);
        }
    }

    fn shut_down(&mut self, now: Instant) {
        match self.state {
            State::Draining { .. } | State::Stopped => {}
            _ => {
                self.actions.push(Action::StopSweep);
                self.batch.clear(Lane::CatchUp);
                self.enter(State::Draining { until: now + self.settings.shutdown });
            }
        }
    }

    fn stop(&mut self, drained: bool) {
        self.actions.push(Action::Stop(self.progress()));
        self.say(Observation::Stopped { drained });
        self.enter(State::Stopped);
    }

    fn say(&mut self, observation: Observation) {
        self.actions.push(Action::Observe(observation));
    }
}
