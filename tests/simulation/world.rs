//! The model: as small as it can be while it still has every way in which a change may go missing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::time::{Duration, Instant};

use unstale::batch::{Command, Lane, Limits, Work};
use unstale::listener::machine::{Action, Input, Machine, Opening, Settings, State};
use unstale::observe::Readiness;
use unstale::rule::Rule;
use unstale::watermark::{Beat, Checkpoint, MARGIN, PgTime};

/// A way to break the design on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    None,
    /// The trigger leaves everything to the sweep.
    NothingLogged,
    /// Heartbeats see no transaction but ended ones, so that the watermark follows the clock.
    OpenTransactionsIgnored,
    /// What a sweep brings was read before LISTEN.
    SweepBeforeListen,
}

const IDS: u64 = 8;
const EMAILS: u64 = 8;
const STEPS: usize = 300;
const MAX_PENDING: usize = 12;
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
    log: Vec<String>,
}

/// What will happen at some time. `session` and `listener` say to whom; if they are gone by then, nothing happens.
#[derive(Debug)]
enum Event {
    ListenActive { session: u64 },
    Input { session: u64, input: Input },
    Notification { session: u64, backend: u32, payload: String },
    SweepRow { sweep: u64, id: u64, row: Row },
    SweepLog { sweep: u64, from: u64 },
    SweepLogged { sweep: u64, change: String },
    SweepEnd { sweep: u64 },
    RedisAttempt { listener: u64, command: Command },
    RedisReply { listener: u64, id: u64 },
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
    log: Vec<(u64, String)>,
    checkpoint: Option<Checkpoint>,
    // the session; each has a number
    session: u64,
    listening: bool,
    black_holed: bool,
    last_delivery: Duration,
    lost_since: Duration,
    sweep: u64,
    // Redis
    redis_up: bool,
    redis_silent: bool,
    cache: HashMap<String, String>,
    // the listener
    listener: u64,
    machine: Machine,
}

fn settings(seed: u64) -> Settings {
    Settings {
        canary: "unstale:canary:test".into(),
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(5),
        backoff_min: Duration::from_millis(100),
        backoff_max: Duration::from_secs(10),
        seed,
        limits: Limits { keys_per_command: 3, in_flight: 3, max_pending: MAX_PENDING },
        stall: Duration::from_secs(2),
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
            checkpoint: None,
            session: 0,
            listening: false,
            black_holed: false,
            last_delivery: Duration::ZERO,
            lost_since: Duration::ZERO,
            sweep: 0,
            redis_up: true,
            redis_silent: false,
            cache: HashMap::new(),
            listener: 0,
            machine: Machine::new(settings(seed), base + Duration::from_secs(1)),
        }
    }

    /// Lives through the history, heals everything, and compares.
    pub(super) fn run(mut self) -> Result<(), String> {
        self.handle(Input::Tick);
        for _ in 0..STEPS {
            let pause = if self.one_in(20) { 5_000 } else { 200 };
            let pause = Duration::from_millis(self.below(pause));
            self.pass(pause)?;
            if self.one_in(12) { self.fault() } else { self.work() }
        }
        self.heal();
        let mut patience = 600;
        while !self.is_quiet() {
            patience -= 1;
            if patience == 0 {
                return Err(format!("never ready again: {:?}", self.machine.readiness(self.instant())));
            }
            self.pass(Duration::from_millis(500))?;
        }
        self.compare()
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
            let timer = self.machine.deadline().map_or(until, |deadline| deadline.saturating_duration_since(self.base)).max(self.now);
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
                self.handle(Input::Tick);
            }
            self.check()?;
        }
        self.handle(Input::Tick);
        self.check()
    }

    fn check(&self) -> Result<(), String> {
        let ready = self.machine.readiness(self.instant()) == Readiness::Ready;
        let deaf_for = self.now.saturating_sub(self.lost_since);
        if ready && (!self.listening || self.black_holed) && deaf_for > Duration::from_secs(7) {
            return Err(format!("P2: ready, and deaf for {deaf_for:?}"));
        }
        if self.machine.pending() > 4 * MAX_PENDING {
            return Err(format!("P4: {} pending", self.machine.pending()));
        }
        Ok(())
    }

    // ----- the application

    fn work(&mut self) {
        match self.below(10) {
            0..=4 => self.fill(),
            5 if self.open.len() < 4 => self.begin(),
            6 if !self.open.is_empty() => self.end(),
            _ => self.write(),
        }
    }

    /// Caches what is committed, atomically; a fill in flight is the leases' business.
    fn fill(&mut self) {
        let key = if self.one_in(2) { format!("u:{}", self.below(IDS)) } else { format!("e:{}", self.below(EMAILS)) };
        let value = self.truth(&key);
        if self.redis_up && !self.redis_silent {
            self.say(|| format!("cache {key} = {value}"));
            self.cache.insert(key, value);
        }
    }

    fn truth(&self, key: &str) -> String {
        let (kind, number) = key.split_once(':').expect("a key of ours");
        let number: u64 = number.parse().expect("a key of ours");
        let rows = self.rows.iter().filter(|(id, row)| if kind == "u" { **id == number } else { row.email == number });
        rows.map(|(id, row)| format!("{id}@{}", row.version)).collect::<Vec<_>>().join(",")
    }

    fn begin(&mut self) {
        if !self.up {
            return;
        }
        let xid = self.take_xid();
        let transaction =
            Transaction { xid, began: self.clock(), prepared: false, writes: BTreeMap::new(), notifies: Vec::new(), log: Vec::new() };
        self.say(|| format!("begin {xid}"));
        self.open.push(transaction);
    }

    fn take_xid(&mut self) -> u64 {
        self.next_xid += 1;
        self.next_xid - 1
    }

    /// A write, in one of the open transactions or in its own.
    fn write(&mut self) {
        if !self.up {
            return;
        }
        let open: Vec<usize> = (0..self.open.len()).filter(|&i| !self.open[i].prepared).collect();
        let own = open.is_empty() || self.one_in(2);
        let at = if own {
            self.begin();
            self.open.len() - 1
        } else {
            open[self.below(open.len() as u64) as usize]
        };
        if own && self.one_in(40) {
            self.truncate(at);
        } else {
            let id = self.below(IDS);
            let locked = self.open.iter().enumerate().any(|(i, other)| i != at && other.writes.contains_key(&id));
            if !locked {
                self.write_row(at, id);
            }
        }
        if own {
            self.commit(at);
        }
    }

    fn write_row(&mut self, at: usize, id: u64) {
        let old = match self.open[at].writes.get(&id) {
            Some(written) => written.clone(),
            None => self.rows.get(&id).cloned(),
        };
        let clock = self.clock();
        let kept = old.as_ref().map(|old| old.stamp);
        let stamp = match self.below(6) {
            0..=2 => clock,                             // clock_timestamp()
            3 => self.open[at].began,                   // now()
            4 => kept.unwrap_or(clock - 3600 * MICROS), // forgotten
            _ => clock - 3600 * MICROS,                 // of another system
        };
        self.version += 1;
        let email = self.below(EMAILS);
        let new = match &old {
            Some(_) if self.one_in(5) => None,
            Some(old) if !self.one_in(3) => Some(Row { email: old.email, stamp, version: self.version }),
            _ => Some(Row { email, stamp, version: self.version }),
        };
        let same_keys = matches!((&old, &new), (Some(old), Some(new)) if old.email == new.email);
        let inserted = old.is_none() && new.is_some();
        let fresh = stamp >= clock - MARGIN.as_micros() as i64;
        let object = |row: &Row| format!(r#"{{"id":"{id}","email":"{}"}}"#, row.email);
        let change = match (&old, &new) {
            (None, None) => return,
            (Some(old), None) => format!(r#"{{"watch":1,"rev":1,"old":{}}}"#, object(old)),
            (Some(old), Some(new)) if !same_keys => {
                format!(r#"{{"watch":1,"rev":1,"new":{},"old":{}}}"#, object(new), object(old))
            }
            (_, Some(new)) => format!(r#"{{"watch":1,"rev":1,"new":{}}}"#, object(new)),
        };
        self.say(|| format!("  {} writes {id}: {old:?} -> {new:?}", self.open[at].xid));
        let transaction = &mut self.open[at];
        transaction.notifies.push(change.clone());
        if !(fresh && (same_keys || inserted)) && self.flaw != Flaw::NothingLogged {
            transaction.log.push(change);
        }
        transaction.writes.insert(id, new);
    }

    /// Only alone: it takes the table's lock.
    fn truncate(&mut self, at: usize) {
        if self.open.len() > 1 {
            return;
        }
        let change = r#"{"watch":1,"rev":1,"all":true}"#.to_owned();
        let transaction = &mut self.open[at];
        transaction.notifies.push(change.clone());
        if self.flaw != Flaw::NothingLogged {
            transaction.log.push(change);
        }
        transaction.writes = self.rows.keys().map(|id| (*id, None)).collect();
    }

    fn end(&mut self) {
        let at = self.below(self.open.len() as u64) as usize;
        match self.below(8) {
            0 => drop(self.open.remove(at)),
            1 => self.open[at].prepared = true,
            2..=4 => self.commit(at),
            _ => {} // it stays open
        }
    }

    fn commit(&mut self, at: usize) {
        let transaction = self.open.remove(at);
        self.say(|| format!("commit {}", transaction.xid));
        for (id, row) in transaction.writes {
            match row {
                Some(row) => self.rows.insert(id, row),
                None => self.rows.remove(&id),
            };
        }
        self.log.extend(transaction.log.into_iter().map(|change| (transaction.xid, change)));
        for payload in transaction.notifies {
            self.notify(1, payload);
        }
    }

    /// In the order of commit, to whoever listens now.
    fn notify(&mut self, backend: u32, payload: String) {
        if self.listening && !self.black_holed {
            self.last_delivery = self.last_delivery.max(self.now + Duration::from_micros(self.random % 3_000));
            self.at(self.last_delivery, Event::Notification { session: self.session, backend, payload });
        }
    }

    // ----- faults

    fn fault(&mut self) {
        match self.below(9) {
            0 => self.cut("cut"),
            1 if self.listening => {
                self.say(|| "black hole".into());
                self.black_holed = true;
                self.lost_since = self.now;
            }
            2 if self.up => {
                self.say(|| "postgres down".into());
                self.up = false;
                self.open.retain(|transaction| transaction.prepared);
                self.cut("the server went away");
                self.later(15_000, Event::PostgresBack);
            }
            3 if self.redis_up => {
                self.say(|| "redis down".into());
                self.redis_up = false;
                self.later(20_000, Event::RedisBack);
            }
            4 if !self.redis_silent => {
                self.say(|| "redis answers no more".into());
                self.redis_silent = true;
                self.later(10_000, Event::RedisBack);
            }
            5 => {
                self.say(|| "redis forgets".into());
                self.cache.clear();
            }
            6 => {
                // Within one margin in all, as the design allows.
                let step = self.below(3) as i64 * MICROS;
                if self.clock_back + step <= MARGIN.as_micros() as i64 {
                    self.say(|| format!("the clock steps back by {step} us"));
                    self.clock_back += step;
                }
            }
            7 => self.restart(),
            _ => self.handle(Input::Shutdown),
        }
    }

    fn cut(&mut self, why: &str) {
        if self.session_is_open() {
            self.say(|| format!("session lost: {why}"));
            self.end_session();
            self.handle(Input::Lost(why.into()));
        }
    }

    fn session_is_open(&self) -> bool {
        matches!(self.machine.state(), State::Connecting { .. } | State::Subscribing | State::CatchingUp(_) | State::Listening)
    }

    /// kill -9, or after a shutdown: what was in flight may or may not reach Redis, and nobody waits for it.
    fn restart(&mut self) {
        self.say(|| "the listener is restarted".into());
        self.end_session();
        self.sweep += 1;
        self.listener += 1;
        self.machine = Machine::new(settings(self.seed + self.listener), self.instant());
        self.handle(Input::Tick);
    }

    fn end_session(&mut self) {
        if self.listening && !self.black_holed {
            self.lost_since = self.now;
        }
        self.session += 1;
        self.listening = false;
        self.black_holed = false;
    }

    fn heal(&mut self) {
        self.say(|| "all heals".into());
        self.up = true;
        self.redis_up = true;
        self.redis_silent = false;
        while !self.open.is_empty() {
            self.commit(0);
        }
        if matches!(self.machine.state(), State::Draining { .. } | State::Stopped) {
            self.restart();
        }
    }

    // ----- the listener's surroundings

    fn handle(&mut self, input: Input) {
        let actions = self.machine.handle(self.instant(), input);
        for action in actions {
            self.act(action);
        }
        if *self.machine.state() == State::Stopped {
            self.restart();
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::OpenSession => {
                self.end_session();
                let session = self.session;
                self.before_listen = Some(self.rows.clone());
                if self.up {
                    self.later(50, Event::ListenActive { session });
                } else {
                    self.later(50, Event::Input { session, input: Input::Lost("connection refused".into()) });
                }
            }
            Action::CloseSession => {
                self.end_session();
                self.sweep += 1;
            }
            Action::Beat { n, checkpoint } => self.beat(n, checkpoint),
            Action::Sweep(from) => self.start_sweep(from),
            Action::StopSweep => self.sweep += 1,
            Action::Send(command) => self.later(2, Event::RedisAttempt { listener: self.listener, command }),
            Action::Stop(Some(checkpoint)) if self.up && self.listening && !self.black_holed => self.save(checkpoint),
            Action::ReadWatches => {
                let input = Input::Watches(vec![rule()]);
                if self.listening && !self.black_holed {
                    self.later(5, Event::Input { session: self.session, input });
                }
            }
            Action::Observe(observation) => self.say(|| format!("    {observation:?}")),
            Action::Stop(_) | Action::OpenGap(..) | Action::CloseGap(_) => {}
            Action::ReadLog { .. } => unreachable!("no payload here is too long"),
        }
    }

    fn save(&mut self, checkpoint: Checkpoint) {
        self.checkpoint = Some(checkpoint);
        self.log.retain(|(xid, _)| *xid >= checkpoint.log_xmin); // pruned
    }

    fn beat(&mut self, n: u64, checkpoint: Option<Checkpoint>) {
        if self.black_holed || !self.listening {
            return;
        }
        if let Some(checkpoint) = checkpoint {
            self.save(checkpoint);
        }
        let xmax = self.next_xid;
        let oldest = self.open.iter().map(|transaction| transaction.xid).min().unwrap_or(xmax);
        let xmin = if self.flaw == Flaw::OpenTransactionsIgnored { xmax } else { oldest };
        let beat = Beat { n, at: PgTime(self.clock()), xmin, xmax };
        self.take_xid();
        self.notify(self.session as u32, format!(r#"{{"heartbeat":{n}}}"#));
        self.later(3, Event::Input { session: self.session, input: Input::BeatSent(beat) });
    }

    /// Rows in the order of their stamps, each read when its turn comes; then the log.
    fn start_sweep(&mut self, from: Option<Checkpoint>) {
        self.sweep += 1;
        let sweep = self.sweep;
        let watermark = from.and_then(|from| from.watermark).map_or(i64::MIN, |watermark| watermark.0);
        let rows = match (self.flaw, &self.before_listen) {
            (Flaw::SweepBeforeListen, Some(rows)) => rows.clone(),
            _ => self.rows.clone(),
        };
        let mut at = self.now;
        for (id, row) in rows.into_iter().filter(|(_, row)| row.stamp >= watermark) {
            at += Duration::from_micros(self.below(20_000));
            self.at(at, Event::SweepRow { sweep, id, row });
        }
        at += Duration::from_micros(self.below(20_000));
        self.at(at, Event::SweepLog { sweep, from: from.map_or(0, |from| from.log_xmin) });
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::ListenActive { session } if session == self.session && self.up => {
                self.listening = true;
                self.last_delivery = self.now;
                let opening = Opening { backend: session as u32, rules: vec![rule()], checkpoint: self.checkpoint };
                self.later(30, Event::Input { session, input: Input::Subscribed(opening) });
            }
            Event::Input { session, input } if session == self.session && !self.black_holed => self.handle(input),
            Event::Notification { session, backend, payload } if session == self.session && !self.black_holed => {
                if self.machine.accepts(Lane::Live) {
                    self.say(|| format!("    <- {payload}"));
                    self.machine.notified(self.instant(), backend, &payload);
                    self.handle(Input::Tick);
                } else {
                    // It waits on the connection, and those behind it wait, too: the sequence keeps their order.
                    self.wait_in_line(Event::Notification { session, backend, payload });
                }
            }
            Event::SweepRow { sweep, id, row } if sweep == self.sweep => {
                if self.machine.accepts(Lane::CatchUp) {
                    self.machine.swept(1, &format!(r#"{{"id":"{id}","email":"{}"}}"#, row.email));
                    self.handle(Input::Tick);
                } else {
                    self.wait_in_line(Event::SweepRow { sweep, id, row });
                }
            }
            Event::SweepLog { sweep, from } if sweep == self.sweep => {
                let changes: Vec<_> = self.log.iter().filter(|(xid, _)| *xid >= from).map(|(_, change)| change.clone()).collect();
                for change in changes {
                    self.at(self.now, Event::SweepLogged { sweep, change });
                }
                self.at(self.now, Event::SweepEnd { sweep });
            }
            Event::SweepLogged { sweep, change } if sweep == self.sweep => {
                if self.machine.accepts(Lane::CatchUp) {
                    self.machine.swept_log(&change);
                    self.handle(Input::Tick);
                } else {
                    self.wait_in_line(Event::SweepLogged { sweep, change });
                }
            }
            Event::SweepEnd { sweep } if sweep == self.sweep => {
                if self.machine.accepts(Lane::CatchUp) {
                    self.handle(Input::SweepEnded);
                } else {
                    self.wait_in_line(Event::SweepEnd { sweep });
                }
            }
            Event::RedisAttempt { listener, command } => self.redis(listener, command),
            Event::RedisReply { listener, id } if listener == self.listener => self.handle(Input::Acknowledged(id)),
            Event::PostgresBack => self.up = true,
            Event::RedisBack => {
                self.redis_up = true;
                self.redis_silent = false;
            }
            _ => {} // for somebody who is gone
        }
    }

    /// A full pipe: everything of the same kind is put off together, in its order.
    fn wait_in_line(&mut self, first: Event) {
        let same = |event: &Event| match &first {
            Event::Notification { .. } => matches!(event, Event::Notification { .. }),
            _ => matches!(event, Event::SweepRow { .. } | Event::SweepLogged { .. } | Event::SweepEnd { .. } | Event::SweepLog { .. }),
        };
        let (mut line, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.schedule)
            .into_sorted_vec()
            .into_iter()
            .rev()
            .map(|Reverse(scheduled)| scheduled)
            .partition(|scheduled| same(&scheduled.event));
        self.schedule = rest.into_iter().map(Reverse).collect();
        line.sort();
        let again = self.now + Duration::from_millis(10);
        self.at(again, first);
        for scheduled in line {
            self.last_delivery = self.last_delivery.max(scheduled.at).max(again);
            self.at(scheduled.at.max(again), scheduled.event);
        }
    }

    fn redis(&mut self, listener: u64, command: Command) {
        let fails = !self.redis_up || self.redis_silent || self.one_in(20);
        // Refused, or done with the reply lost.
        if self.redis_up && (!fails || self.one_in(2)) {
            self.say(|| format!("    redis does {command:?}"));
            match &command.work {
                Work::Keys(keys) => keys.iter().for_each(|key| drop(self.cache.remove(key))),
                Work::Pattern(pattern) => {
                    let prefix = pattern.trim_end_matches('*').to_owned();
                    self.cache.retain(|key, _| !key.starts_with(&prefix));
                }
            }
        }
        if listener != self.listener {
            return; // nobody repeats it, and nobody hears
        }
        if fails {
            self.handle(Input::RedisFailed("no answer".into()));
            self.later(1_000, Event::RedisAttempt { listener, command });
        } else {
            self.later(2, Event::RedisReply { listener, id: command.id });
        }
    }

    // ----- the end

    fn is_quiet(&self) -> bool {
        self.machine.readiness(self.instant()) == Readiness::Ready
            && !self.black_holed // it is not quiet before that is noticed
            && self.machine.pending() == 0
            && !self.schedule.iter().any(|Reverse(scheduled)| matches!(scheduled.event, Event::RedisAttempt { .. } | Event::RedisReply { .. } | Event::Notification { .. }))
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

fn rule() -> Rule {
    Rule::new(1, 1, "public.users".into(), &["u:{id}".into(), "e:{email}".into()]).expect("templates")
}
