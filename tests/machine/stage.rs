//! One machine, and a world that does only what it is told to.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use unstale::batch::{Command, Limits};
use unstale::deletion::Deletions;
use unstale::delivered::Delivered;
use unstale::listener::machine::{Action, Input, Machine, Settings, State};
use unstale::mark::{Answer, Found, RedisMark};
use unstale::messages::{Event, Opening, Readiness, Request, Swept};
use unstale::observe::Observation;
use unstale::watched::Watched;
use unstale::watermark::{Beat, Checkpoint, LogRead, PgTime, Proven, Server, Snapshot, Stored};

/// The backend that sends the listener's heartbeats.
pub(crate) const BACKEND: u32 = 7;

/// Polls within one call of [`Stage::pass`], beyond which time stands still.
const MAX_POLLS: usize = 10_000;

/// Where a sweep was to begin.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sweep {
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) done: HashMap<i32, PgTime>,
    pub(crate) log: Option<LogRead>,
}

/// See the module. What the machine wants is kept here until a scenario takes it.
pub(crate) struct Stage {
    pub(crate) machine: Machine,
    pub(crate) now: Instant,
    pub(crate) requests: Vec<Request>,
    pub(crate) commands: Vec<Command>,
    pub(crate) sweeps: Vec<Sweep>,
    pub(crate) said: Vec<Observation>,
    /// How many sessions were opened, sessions closed, and sweeps stopped.
    pub(crate) counts: (u32, u32, u32),
    beats: u64, // of all sessions: each is sent a second after the last
    connection: u64,
    number: u64,
    found: Found,
    held_back: Option<u64>, // xmin of a transaction that stays open
}

pub(crate) fn settings() -> Settings {
    Settings {
        canary: "unstale:canary:test".into(),
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(10),
        backoff_min: Duration::from_millis(100),
        backoff_max: Duration::from_secs(1),
        seed: 1,
        limits: Limits { keys_per_command: 500, in_flight: 8, max_pending: 1_000, slot: None },
        stall: Duration::from_secs(5),
        window: Duration::from_secs(60),
        repeat: Vec::new(),
        replicas: 0,
        max_wait: Duration::from_secs(60),
        shutdown: Duration::from_secs(5),
    }
}

pub(crate) fn server(timeline: &str, started: i64) -> Server {
    Server { timeline: timeline.into(), started: PgTime(started) }
}

pub(crate) fn users(rev: i32, keys: &[&str]) -> Watched {
    Watched::of(1, rev, "public.users", keys)
}

/// What a new session finds on a server where nothing was stored yet.
pub(crate) fn opening(server: Server) -> Opening {
    Opening {
        backend: BACKEND,
        watches: vec![users(1, &["user:{id}"])],
        server,
        unknown: None,
        stored: None,
        was_here: false,
        forgotten: Vec::new(),
        seen: Snapshot::nothing(),
    }
}

/// What an instance that had come to this second had stored.
pub(crate) fn stored(timeline: &str, seconds: i64) -> Stored {
    let at = |seconds: i64| {
        let snapshot = snapshot(u64::try_from(seconds).expect("since the beginning"));
        Some(Checkpoint { watermark: Some(PgTime(seconds * 1_000_000)), log: snapshot })
    };
    let proven = Proven { checkpoint: at(seconds), replay: at(seconds - 60) };
    Stored {
        proven,
        redis: None,
        timeline: timeline.into(),
        forgotten: false,
        saved_at: Some(PgTime(seconds * 1_000_000)),
    }
}

/// Of a server on which a transaction ends each second.
pub(crate) fn snapshot(second: u64) -> Snapshot {
    Snapshot { xmin: 100 + second, xmax: 100 + second, open: [].into() }
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with(settings())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let now = Instant::now();
        let mut stage = Self {
            machine: Machine::new(settings, now),
            now,
            requests: Vec::new(),
            commands: Vec::new(),
            sweeps: Vec::new(),
            said: Vec::new(),
            counts: (0, 0, 0),
            beats: 1_000,
            connection: 1,
            number: 0,
            found: Found::Nothing,
            held_back: None,
        };
        stage.poll();
        stage
    }

    /// One that listens, on the server `7/1`.
    pub(crate) fn listening() -> Self {
        let mut stage = Self::new();
        stage.open(opening(server("7/1", 0)));
        stage.catch_up();
        stage
    }

    fn poll(&mut self) {
        for action in self.machine.poll(self.now) {
            match action {
                Action::OpenSession => self.counts.0 += 1,
                Action::CloseSession => self.counts.1 += 1,
                Action::StopSweep => self.counts.2 += 1,
                Action::Ask(request) => self.requests.push(request),
                Action::Sweep { checkpoint, done, log } => {
                    self.sweeps.push(Sweep { checkpoint, done, log })
                }
                Action::Send(command) => self.commands.push(command),
                Action::Observe(observation) => self.said.push(observation),
                Action::AskReplicas(_) => {}
            }
        }
    }

    /// One input, and what follows of it.
    pub(crate) fn input(&mut self, input: Input<'_>) {
        self.machine.handle(self.now, input);
        self.poll();
    }

    pub(crate) fn session(&mut self, event: Event) {
        self.input(Input::Session(event));
    }

    pub(crate) fn notify(&mut self, backend: u32, payload: &str) {
        self.input(Input::Notified { backend, payload });
    }

    /// A change of the user 42.
    pub(crate) fn change(&mut self, id: u32) {
        self.notify(99, &format!(r#"{{"watch":1,"rev":1,"new":{{"id":"{id}"}}}}"#));
    }

    pub(crate) fn swept(&mut self, swept: Swept) {
        self.input(Input::Swept(swept));
    }

    /// Lets time pass, and the machine do what is due meanwhile.
    pub(crate) fn pass(&mut self, duration: Duration) {
        let until = self.now + duration;
        for _ in 0..MAX_POLLS {
            match self.machine.deadline() {
                Some(deadline) if deadline <= until => self.now = self.now.max(deadline),
                _ => {
                    self.now = until;
                    return self.poll();
                }
            }
            self.poll();
        }
        panic!("time stands still in {:?}", self.machine.state());
    }

    /// A session is opened, as soon as the machine wants one.
    pub(crate) fn open(&mut self, opening: Opening) {
        if !matches!(self.machine.state(), State::Connecting { .. }) {
            self.pass(Duration::from_secs(1));
        }
        assert!(
            matches!(self.machine.state(), State::Connecting { .. }),
            "{:?}",
            self.machine.state()
        );
        self.requests.clear();
        self.session(Event::Subscribed(Box::new(opening)));
    }

    /// A transaction begins, and stays open.
    pub(crate) fn hold_back(&mut self) {
        self.held_back = Some(snapshot(self.beats).xmax);
    }

    /// The number of the heartbeat that was asked for last.
    pub(crate) fn beat_asked(&self) -> Option<u64> {
        self.requests
            .iter()
            .rev()
            .find_map(|request| if let Request::Beat { n, .. } = request { Some(*n) } else { None })
    }

    /// PostgreSQL takes the heartbeat that was asked for last.
    pub(crate) fn beat_sent(&mut self) -> u64 {
        let n = self.beat_asked().expect("a heartbeat was asked for");
        self.beats += 1;
        let second = self.beats;
        let at = PgTime(i64::try_from(second).expect("a small number") * 1_000_000);
        let mut snapshot = snapshot(second);
        if let Some(xid) = self.held_back {
            (snapshot.xmin, snapshot.open) = (xid, [xid].into());
        }
        self.session(Event::BeatSent { beat: Beat { n, at, snapshot }, queue_ratio: 0.0 });
        n
    }

    /// ... and it comes back, after everything else that had been said; in the log there is
    /// nothing.
    pub(crate) fn beat(&mut self) {
        let n = self.beat_sent();
        self.notify(BACKEND, &format!(r#"{{"heartbeat":{n}}}"#));
        self.log_is_empty();
    }

    pub(crate) fn log_is_empty(&mut self) {
        while self.take_requests(|request| *request == Request::ReadLog) > 0 {
            self.session(Event::LogRead { changes: Vec::new(), more: false });
        }
    }

    /// A heartbeat comes back, a sweep brings nothing, and Redis does everything.
    pub(crate) fn catch_up(&mut self) {
        self.beat();
        self.redis_does_all();
        if !self.sweeps.is_empty() {
            self.swept(Swept::Ended);
        }
        self.redis_does_all();
        assert_eq!(*self.machine.state(), State::Listening);
        self.sweeps.clear();
        self.requests.clear();
    }

    /// So many heartbeats, a second apart, each proven.
    pub(crate) fn beats(&mut self, count: u32) {
        for _ in 0..count {
            self.pass(Duration::from_secs(1));
            self.beat();
            self.redis_does_all();
        }
    }

    /// Takes the requests of a kind; how many there were.
    pub(crate) fn take_requests(&mut self, is_it: impl Fn(&Request) -> bool) -> usize {
        let before = self.requests.len();
        self.requests.retain(|request| !is_it(request));
        before - self.requests.len()
    }

    /// Redis does what it was asked for, and what it is asked for then.
    pub(crate) fn redis_does_all(&mut self) {
        while !self.commands.is_empty() {
            for command in std::mem::take(&mut self.commands) {
                self.redis_does(command);
            }
        }
    }

    pub(crate) fn redis_does(&mut self, command: Command) {
        self.number += 1;
        let mark =
            RedisMark { life: "me".into(), connection: self.connection, number: self.number };
        let answer = Answer { tag: "".into(), found: self.found.clone(), mark, is_marked: true };
        self.input(Input::Acknowledged {
            id: command.id,
            delivered: Delivered::whole(answer, command.deletions),
        });
    }

    /// Redis does nothing of what it was asked for.
    pub(crate) fn redis_fails(&mut self) {
        for id in self.commands.iter().map(|command| command.id).collect::<Vec<_>>() {
            self.input(Input::RedisFailed { id, reason: "refused".into() });
        }
    }

    /// Another connection finds the mark of this number, or none: what was done after it is undone.
    pub(crate) fn redis_fails_over(&mut self, kept: Option<u64>) {
        let connection = self.connection;
        self.found = kept.map_or(Found::Nothing, |number| {
            Found::Mark(RedisMark { life: "me".into(), connection, number })
        });
        self.connection += 1;
    }

    /// An earlier process has left this mark.
    pub(crate) fn redis_has(&mut self, mark: &str) {
        self.found = Found::Mark(mark.parse().expect("a mark"));
    }

    /// The number of the last deletion.
    pub(crate) fn deletions(&self) -> u64 {
        self.number
    }

    /// The keys and patterns that wait for Redis' answer, without the canary.
    pub(crate) fn deleting(&self) -> Vec<String> {
        let texts = self.commands.iter().flat_map(|command| match &command.deletions {
            Deletions::Keys(texts) | Deletions::Patterns(texts) => texts.iter(),
        });
        texts.filter(|text| !text.contains("canary")).cloned().collect()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.machine.readiness(self.now) == Readiness::Ready
    }

    pub(crate) fn why_not(&self) -> String {
        match self.machine.readiness(self.now) {
            Readiness::Ready => String::new(),
            Readiness::NotReady(why) => why,
        }
    }

    /// The last thing of this kind that was said.
    pub(crate) fn says(&self, is_it: impl Fn(&Observation) -> bool) -> bool {
        self.said.iter().any(is_it)
    }
}
