//! What goes into the machine and what comes out of it.

use std::collections::HashMap;
use std::time::Instant;

use crate::batch::Command;
use crate::delivered::Delivered;
use crate::messages::{Event, Request, Swept};
use crate::observe::Observation;
use crate::watermark::{Checkpoint, LogRead, PgTime};

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// A notification, in the order of its arrival.
    Notified {
        /// The backend that has sent it.
        backend: u32,
        /// What it says.
        payload: &'a str,
    },
    /// The session says something.
    Session(Event),
    /// The sweep brings something.
    Swept(Swept),
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

/// What is to be done.
#[derive(Debug, PartialEq)]
pub enum Action {
    /// Connect, LISTEN, then read watches and checkpoint.
    OpenSession,
    /// Drop the session, its sweep, and what it still brings.
    CloseSession,
    /// Ask the session.
    Ask(Request),
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
    /// Say it.
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
