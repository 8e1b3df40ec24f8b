//! The model: as small as it can be while it still has every way in which a change may go missing.

mod application;
mod faults;
mod surroundings;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use unstale::batch::{Command, Limits};
use unstale::deletion::Deletions;
use unstale::listener::machine::{CatchUp, Machine, Settings, State};
use unstale::mark::{Answer, Found};
use unstale::messages;
use unstale::messages::Readiness;
use unstale::watermark::{LogPlace, LogRead, PgTime, Snapshot, Stored};

/// A way to break the design on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    None,
    /// The trigger leaves everything to the sweep.
    NothingLogged,
    /// A change that is not announced, because somebody else is announcing, is not logged either.
    OthersNotLogged,
    /// Heartbeats see no transaction but ended ones, so that the watermark follows the clock.
    OpenTransactionsIgnored,
    /// What a sweep brings was read before LISTEN.
    SweepBeforeListen,
    /// The mark that a connection finds is not looked at.
    FailOverUnnoticed,
    /// A fail-over takes the cache back, and not the mark.
    MarkOutlivesDeletes,
    /// A sweep that was cut off goes on from the last stamp that it has brought.
    PagesTrusted,
    /// A sweep of the log that was cut off goes on from its place, whatever has ended since.
    LogPlaceTrusted,
    /// The log is read from the last transaction on that was found in it.
    LogReadInOrder,
    /// A message says that the watches changed, and what is read then is as it was before.
    WatchesReadBefore,
    /// A PostgreSQL that has failed over says that it is still the same.
    TimelineUnchanged,
}

const IDS: u64 = 8;
const EMAILS: u64 = 8;
const STEPS: usize = 300;
const MAX_PENDING: usize = 12;
/// Of histories with a standby: what was deleted lately has to fit, or nothing is promised of lost
/// commits.
const MAX_PENDING_WITH_STANDBY: usize = 5_000;
const WINDOW: Duration = Duration::from_secs(20);
const MICROS: i64 = 1_000_000;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    email: u64,
    stamp: i64,
    version: u64,
}

type Rows = BTreeMap<u64, Row>;

/// An open transaction. It holds the locks of the rows that it has written.
#[derive(Debug)]
struct Transaction {
    xid: u64,
    began: i64,
    prepared: bool,
    writes: BTreeMap<u64, Option<Row>>,
    notifies: Vec<String>,
    log: Vec<(bool, String)>, // was it announced?
    announces: bool,          // nobody else does until it ends
}

/// PostgreSQL as an asynchronous standby has it.
#[derive(Debug, Clone)]
struct Standby {
    at: Duration,
    next_xid: u64,
    rows: Rows,
    log: Vec<(u64, bool, String)>,
    rev: u64,
    stored: Option<Stored>,
    saved_at: i64,
}

/// What will happen at some time. `session` and `listener` say to whom; if they are gone by then,
/// nothing happens.
#[derive(Debug)]
enum Event {
    ListenActive { session: u64 },
    Session { session: u64, says: messages::Event },
    Notification { session: u64, backend: u32, payload: String },
    SweepPage { sweep: u64, after: i64, done: Snapshot },
    SweepLog { sweep: u64, done: Snapshot, after: Option<LogPlace> },
    SweepEnd { sweep: u64 },
    LogPage { session: u64 },
    RedisAttempt { listener: u64, command: Command },
    RedisReply { listener: u64, id: u64, redis: u64, answer: Answer, deletions: Deletions },
    PostgresBack,
    RedisBack,
}

struct Scheduled {
    at: Duration,
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

pub(super) struct World {
    seed: u64,
    random: u64,
    flaw: Flaw,
    verbose: bool,
    base: Instant,
    now: Duration,
    clock_back: i64, // microseconds that the clock was set back in all
    schedule: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    // PostgreSQL
    up: bool,
    next_xid: u64,
    version: u64,
    rows: Rows,
    before_listen: Option<Rows>,
    open: Vec<Transaction>,
    log: Vec<(u64, bool, String)>,
    delivers_by_log: bool,
    rev: u64, // of the watch; an even one has a template more
    stored: Option<Stored>,
    saved_at: i64, // when a listener last stored anything, progress or not
    timeline: u64,
    starts: i64,
    standbys: VecDeque<Standby>,
    // the session; each has a number
    session: u64,
    listening: bool,
    black_holed: bool,
    seen: Snapshot, // of the log
    seen_next: Option<Snapshot>,
    pages: VecDeque<String>, // of a reading that has begun
    last_delivery: Duration,
    lost_since: Duration,
    sweep: u64,
    sweep_pace: u64, // microseconds to a page, at the most
    is_healed: bool,
    log_done: Option<LogRead>, // what of the log the running sweep leaves out
    brought: Option<PgTime>,   // the last stamp that sweeps of this gap have brought
    // Redis
    redis_up: bool,
    redis_silent: bool,
    cache: HashMap<String, String>,
    redis_id: u64,
    redis_heard: u64, // the one whose answer the listener heard last
    mark: Found,      // in Redis
    replicas: VecDeque<(Duration, HashMap<String, String>, Found)>, // cache and mark as they were
    connection: Option<(u64, u64, Found)>, // the listener's: to which Redis, its number, and the mark that it found
    untold: Option<Found>,
    connections: u64,
    numbers: u64,
    // the listener
    listener: u64,
    machine: Machine,
}

/// One history in four has a standby, which now and then becomes PostgreSQL.
fn has_standby(seed: u64) -> bool {
    seed % 4 == 3
}

fn max_pending(seed: u64) -> usize {
    if has_standby(seed) { MAX_PENDING_WITH_STANDBY } else { MAX_PENDING }
}

fn is_cluster(history: u64, listener: u64) -> bool {
    (history + listener).is_multiple_of(3)
}

/// Each listener of a history has others, but for what the history rests on.
fn settings(history: u64, listener: u64) -> Settings {
    let seed = history + listener;
    Settings {
        canary: "unstale:canary:test".into(),
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(5),
        backoff_min: Duration::from_millis(100),
        backoff_max: Duration::from_secs(10),
        seed,
        limits: Limits {
            keys_per_command: 3,
            in_flight: 3,
            max_pending: max_pending(history),
            slot: is_cluster(history, listener).then_some(unstale::sink::slot),
        },
        stall: Duration::from_secs(2),
        window: WINDOW,
        // Most do without: a second delete hides that a first one was lost.
        repeat: if seed.is_multiple_of(4) {
            vec![Duration::from_secs(1), Duration::from_millis(1 + seed % 5_000)]
        } else {
            Vec::new()
        },
        replicas: 0,
        max_wait: Duration::from_secs(30),
        shutdown: Duration::from_secs(10),
    }
}

impl World {
    pub(super) fn new(seed: u64, flaw: Flaw, verbose: bool) -> Self {
        let base = Instant::now();
        Self {
            seed,
            random: seed,
            flaw,
            verbose,
            base,
            now: Duration::from_secs(1),
            clock_back: 0,
            schedule: BinaryHeap::new(),
            sequence: 0,
            up: true,
            next_xid: 100,
            version: 0,
            rows: Rows::new(),
            before_listen: None,
            open: Vec::new(),
            log: Vec::new(),
            delivers_by_log: seed % 2 == 1,
            rev: 1,
            stored: None,
            saved_at: 0,
            timeline: 1,
            starts: 0,
            standbys: VecDeque::new(),
            session: 0,
            listening: false,
            black_holed: false,
            seen: Snapshot::nothing(),
            seen_next: None,
            pages: VecDeque::new(),
            last_delivery: Duration::ZERO,
            lost_since: Duration::ZERO,
            sweep: 0,
            sweep_pace: 0,
            is_healed: false,
            log_done: None,
            brought: None,
            redis_up: true,
            redis_silent: false,
            cache: HashMap::new(),
            redis_id: 1,
            redis_heard: 0,
            mark: Found::Nothing,
            replicas: VecDeque::new(),
            connection: None,
            untold: None,
            connections: 0,
            numbers: 0,
            listener: 0,
            machine: Machine::new(settings(seed, 0), base + Duration::from_secs(1)),
        }
    }

    /// Lives through the history, heals everything, and compares.
    pub(super) fn run(mut self) -> Result<(), String> {
        self.turn();
        for _ in 0..STEPS {
            let pause = if self.one_in(20) { 5_000 } else { 200 };
            let pause = Duration::from_millis(self.below(pause));
            self.pass(pause)?;
            // What is cut off in the middle of a sweep is hardest, and would be rare.
            if *self.machine.state() == State::CatchingUp(CatchUp::Sweeping) && self.one_in(10) {
                self.cut("in the middle of a sweep")
            } else if self.one_in(12) {
                self.fault()
            } else {
                self.work()
            }
            self.replicas.push_back((self.now, self.cache.clone(), self.mark.clone()));
            self.replicas.retain(|(at, ..)| *at + WINDOW > self.now);
            self.replicate();
        }
        self.heal();
        let mut patience = 600;
        while !self.is_quiet() {
            patience -= 1;
            if patience == 0 {
                return Err(format!(
                    "never ready again: {:?}",
                    self.machine.readiness(self.instant())
                ));
            }
            self.pass(Duration::from_millis(500))?;
        }
        Ok(()) // and compared
    }

    // ----- time

    /// splitmix64
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn instant(&self) -> Instant {
        self.base + self.now
    }

    fn clock(&self) -> i64 {
        1_000_000 * MICROS + self.now.as_micros() as i64 - self.clock_back
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.verbose {
            println!("{:>10.3} {}", self.now.as_secs_f64(), what());
        }
    }

    fn later(&mut self, milliseconds: u64, event: Event) {
        let at = self.now + Duration::from_micros(self.below(milliseconds * 1000 + 1));
        self.at(at, event);
    }

    fn at(&mut self, at: Duration, event: Event) {
        self.sequence += 1;
        self.schedule.push(Reverse(Scheduled { at, sequence: self.sequence, event }));
    }

    /// Lets time pass, and everything that is due happen.
    fn pass(&mut self, duration: Duration) -> Result<(), String> {
        let until = self.now + duration;
        let mut events = 0;
        loop {
            events += 1;
            if events > 100_000 {
                return Err(format!("time stands still in {:?}", self.machine.state()));
            }
            let timer = self
                .machine
                .deadline()
                .map_or(until, |deadline| deadline.saturating_duration_since(self.base))
                .max(self.now);
            let due = self.schedule.peek().map_or(until, |Reverse(scheduled)| scheduled.at);
            if timer.min(due) >= until {
                self.now = until;
                break;
            }
            self.now = self.now.max(timer.min(due));
            if due <= timer {
                if let Some(Reverse(scheduled)) = self.schedule.pop() {
                    self.happen(scheduled.event);
                }
            } else {
                self.turn();
            }
            self.check()?;
        }
        self.turn();
        self.check()?;
        if self.is_quiet() { self.compare() } else { Ok(()) }
    }

    fn check(&self) -> Result<(), String> {
        let ready = self.machine.readiness(self.instant()) == Readiness::Ready;
        let deaf_for = self.now.saturating_sub(self.lost_since);
        if ready && (!self.listening || self.black_holed) && deaf_for > Duration::from_secs(7) {
            return Err(format!("P2: ready, and deaf for {deaf_for:?}"));
        }
        // In a cluster only bytes are bounded (batch.rs), and a history has few.
        if !is_cluster(self.seed, self.listener)
            && self.machine.pending() > 4 * max_pending(self.seed)
        {
            return Err(format!("P4: {} pending", self.machine.pending()));
        }
        Ok(())
    }

    // ----- the end

    fn is_quiet(&self) -> bool {
        self.machine.readiness(self.instant()) == Readiness::Ready
            && !self.black_holed // it is not quiet before that is noticed
            && self.redis_heard == self.redis_id
            && self.machine.pending() == 0
            && !self.schedule.iter().any(|Reverse(scheduled)| match &scheduled.event {
                Event::Session { says: messages::Event::LogRead { changes, .. }, .. } => !changes.is_empty(), // it is read all the time
                event => matches!(event, Event::RedisAttempt { .. } | Event::RedisReply { .. } | Event::Notification { .. } | Event::Session { .. }),
            })
            && self.log.iter().all(|(xid, announced, _)| *announced || self.seen.sees(*xid)) // or it will be read in a moment
    }

    fn compare(&self) -> Result<(), String> {
        for (key, value) in &self.cache {
            let truth = self.truth(key);
            if *value != truth {
                return Err(format!("P1: {key} is cached as '{value}' and is '{truth}'"));
            }
        }
        Ok(())
    }
}
