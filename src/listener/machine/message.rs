//! What goes into the machine and what comes out of it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::batch::Command;
use crate::delivered::Delivered;
use crate::observe::{Cause, GapSummary, Observation};
use crate::rule::Rule;
use crate::watermark::{Beat, Checkpoint, LogRead, PgTime, Progress, Server, Snapshot, Stored};

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// Time passed.
    Tick,
    /// LISTEN is active, and afterwards this was read.
    Subscribed(Opening),
    /// The session ended or could not be opened.
    Lost(String),
    /// The control connection sent the heartbeat that was asked for.
    BeatSent(Beat),
    /// The watches as they are now.
    Watches(Vec<Rule>),
    /// A page of changes that are only in the log, asked for with [`Action::ReadLog`].
    LogRead {
        /// What NOTIFY would have said.
        changes: Vec<String>,
        /// There is another page.
        more: bool,
    },
    /// The sweep has brought everything.
    SweepEnded,
    /// The sweep failed.
    SweepFailed(String),
    /// Redis has done a command, or what could be done of it.
    Acknowledged {
        /// The command.
        id: u64,
        /// Who did what.
        delivered: Delivered,
    },
    /// Redis failed to do a command; the sink repeats it.
    RedisFailed {
        /// The command.
        id: u64,
        /// Why, for people.
        reason: String,
    },
    /// The primary's write-ahead log went up to here after it was asked.
    PrimaryAt {
        /// When.
        asked: Instant,
        /// In bytes.
        position: u64,
    },
    /// A replica has replayed it up to here; none: it does not say.
    ReplicaAt {
        /// Which, from 0.
        replica: usize,
        /// In bytes.
        position: Option<u64>,
    },
    /// SIGTERM.
    Shutdown,
}

/// What a new session found.
#[derive(Debug)]
pub struct Opening {
    /// The backend that sends this listener's heartbeats; those of others are not believed.
    pub backend: u32,
    /// What is watched.
    pub rules: Vec<Rule>,
    /// Who the server is.
    pub server: Server,
    /// How far this instance had come; `None`: it was never here.
    pub stored: Option<Stored>,
    /// What had ended after LISTEN, and before the watches were read.
    pub seen: Snapshot,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Connect, LISTEN, then read watches and checkpoint.
    OpenSession,
    /// Drop the session, its sweep, and what it still brings.
    CloseSession,
    /// Send heartbeat `n`; store the progress before it.
    Beat {
        /// Counts from 1 in each session.
        n: u64,
        /// What is proven; `None` while a gap is open.
        progress: Option<Progress>,
    },
    /// Read the watches, and receive nothing before.
    ReadWatches,
    /// Read the next page of changes that are only in the log.
    ReadLog,
    /// Read everything since the checkpoint from the tables and the log.
    Sweep {
        /// What is proven; `None`: nothing.
        checkpoint: Option<Checkpoint>,
        /// Watches that an unfinished sweep in the same gap has brought up to this stamp.
        done: HashMap<i32, PgTime>,
        /// What of the log it has brought.
        log: Option<LogRead>,
    },
    /// Abandon a running sweep.
    StopSweep,
    /// Ask primary and replicas how far they are.
    AskReplicas(Instant),
    /// Ask Redis.
    Send(Command),
    /// Note in the ledger that a gap is open, since this long ago.
    OpenGap(Cause, Duration),
    /// Note in the ledger that it is closed.
    CloseGap(GapSummary),
    /// Store the progress now, and go on.
    Keep(Progress),
    /// Store the progress now, then leave.
    Stop(Option<Progress>),
    /// Tell.
    Observe(Observation),
}

/// What was counted for a table since it was last asked.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Changes announced.
    pub changes: u64,
    /// Keys and patterns to be deleted for them.
    pub keys: u64,
    /// Rows that a sweep found.
    pub swept: u64,
}
