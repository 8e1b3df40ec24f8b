//! What the listener, its session with PostgreSQL and a sweep say to each other, and of themselves.

use std::time::Duration;

use crate::watched::Watched;
use crate::watermark::{Beat, LogPlace, PgTime, Progress, Server, Snapshot, Stored};

/// What a session is asked for. Answered in order.
#[derive(Debug, PartialEq)]
pub enum Request {
    /// Send heartbeat `n`, after storing the progress.
    Beat {
        /// Counts from 1 in each session.
        n: u64,
        /// What is proven; `None` while a gap is open.
        progress: Option<Progress>,
    },
    /// Read the watches.
    ReadWatches,
    /// Read the next page of changes that are only in the log.
    ReadLog,
    /// Note in the ledger that a gap is open, since this long ago.
    OpenGap(Cause, Duration),
    /// Note in the ledger that it is closed.
    CloseGap(GapSummary),
    /// Store the progress.
    Keep(Progress),
    /// Store the progress, and answer [`Event::Saved`].
    Save(Progress),
}

/// What a session says.
#[derive(Debug)]
pub enum Event {
    /// LISTEN is active; read afterwards.
    Subscribed(Box<Opening>),
    /// The heartbeat that was asked for was sent.
    BeatSent {
        /// Its number, and what it proves once it has come back.
        beat: Beat,
        /// The share of the notification queue in use, 0 to 1.
        queue_ratio: f64,
    },
    /// The watches as they are now.
    Watches(Vec<Watched>),
    /// A page of changes that are only in the log.
    LogRead {
        /// What NOTIFY would have said.
        changes: Vec<String>,
        /// There is another page.
        more: bool,
    },
    /// The checkpoint is stored, or cannot be.
    Saved,
    /// Progress could not be noted. Deletion goes on; a restart would have more to do.
    NotKept(String),
    /// It has ended, or could not be opened.
    Lost(String),
}

/// What a new session found.
#[derive(Debug)]
pub struct Opening {
    /// The backend that sends this listener's heartbeats; those of others are not believed.
    pub backend: u32,
    /// What is watched.
    pub watches: Vec<Watched>,
    /// Who the server is.
    pub server: Server,
    /// What of that it does not say, as a sentence.
    pub unknown: Option<String>,
    /// How far this instance had come; `None`: it has never caught up.
    pub stored: Option<Stored>,
    /// Has it been here before, however far it came?
    pub was_here: bool,
    /// Instances that are away for longer than their `forget_after`.
    pub forgotten: Vec<String>,
    /// What had ended after LISTEN, and before the watches were read.
    pub seen: Snapshot,
}

/// What a sweep brings.
#[derive(Debug)]
pub enum Swept {
    /// Rows of a watched table, each as `unstale.row_N()` writes it.
    Rows(i32, Vec<String>),
    /// All rows of a watch up to this stamp have been brought.
    Page(i32, PgTime),
    /// A large table without an index on the sweep's column: each page reads all of it.
    NoIndex {
        /// Schema and name.
        table: String,
        /// The statement that mends it.
        remedy: String,
    },
    /// Logged changes.
    Log(Vec<String>),
    /// All of the log up to this place has been brought.
    LogPage(LogPlace),
    /// A table that cannot be read: all its keys are to be deleted.
    Unreadable {
        /// `unstale.watch.id`.
        watch: i32,
        /// Schema and name.
        table: String,
        /// Why, and the remedy.
        reason: String,
    },
    /// That was all.
    Ended,
    /// It has to be repeated.
    Failed(String),
}

/// Why keys are deleted once more. The label of `unstale_repeated_keys_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepeatedFor {
    /// A time of `repeat.after` has passed.
    Time,
    /// All replicas have replayed past their change.
    Replicas,
    /// `replicas.max_wait` has passed, and some have not.
    MaxWait,
}

impl RepeatedFor {
    /// The metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Replicas => "replicas",
            Self::MaxWait => "max_wait",
        }
    }
}

/// Why a gap opened. The label of `unstale_gaps_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The listener started.
    Start,
    /// PostgreSQL ended the session, or it could not be opened.
    Session,
    /// The connection is there, and nothing comes: half-open.
    Heartbeat,
    /// Redis was away for too long.
    Overflow,
    /// Another Redis answers.
    Redis,
}

impl Cause {
    /// The metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Session => "session",
            Self::Heartbeat => "heartbeat",
            Self::Overflow => "overflow",
            Self::Redis => "redis",
        }
    }
}

/// What catching up took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GapSummary {
    /// Why it opened.
    pub cause: Cause,
    /// From the loss to the last acknowledgement.
    pub lasted: Duration,
    /// Rows read from the tables.
    pub swept: u64,
    /// Rows read from the log.
    pub logged: u64,
    /// Keys and patterns deleted.
    pub keys: u64,
}

/// Promise P7: a heartbeat went through PostgreSQL and back, and Redis answered, within two
/// intervals, and no gap is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It holds.
    Ready,
    /// It does not, for this reason.
    NotReady(String),
}
