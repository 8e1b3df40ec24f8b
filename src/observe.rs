//! Everything that the program says.
//!
//! One enum, interpreted twice: as a line of the log and as metrics. Owns the words; refuses to
//! hold a row's value, a whole payload, or a URL.

use std::time::Duration;

use crate::exposure::Exposure;
use crate::messages::{Cause, GapSummary, Readiness, RepeatedFor};

pub mod log;
pub mod metrics;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Observation {
    /// LISTEN is active on a new session.
    Subscribed {
        /// Tables watched.
        watches: usize,
    },
    /// The session ended, or could not be opened.
    SessionLost {
        /// Why, for people.
        reason: String,
        /// Until the next attempt.
        retry_in: Duration,
        /// It was said a moment ago.
        again: bool,
    },
    /// From now on changes may be missed; catching up will find them.
    GapOpened {
        /// Why.
        cause: Cause,
    },
    /// What was missed has been deleted from Redis.
    GapClosed(GapSummary),
    /// Catching up takes a while.
    CatchingUp {
        /// Rows read from the tables so far.
        swept: u64,
        /// Rows read from the log so far.
        logged: u64,
        /// Keys and patterns found so far.
        keys: u64,
        /// Everything stamped before this is done, in microseconds since 1970 UTC.
        through: Option<i64>,
    },
    /// The configuration was read again.
    Reconfigured {
        /// Keys that have another value, which holds from now on.
        changed: Vec<&'static str>,
        /// Those whose new value needs a restart.
        fixed: Vec<&'static str>,
    },
    /// The configuration was to be read again, and cannot be used.
    ConfigurationRefused {
        /// What is wrong with it.
        reason: String,
    },
    /// Others on the network could read or answer what they should not.
    Exposed(Exposure),
    /// A large table is swept without an index, which is said once.
    SweepWithoutIndex {
        /// Schema and name.
        table: String,
        /// The statement that mends it.
        remedy: String,
    },
    /// A sweep ended early, and will be started again.
    SweepFailed {
        /// Why, for people.
        reason: String,
        /// Until the next attempt.
        retry_in: Duration,
        /// It was said a moment ago.
        again: bool,
    },
    /// A table cannot be swept, so all its keys are deleted.
    SweptByPattern {
        /// Schema and name.
        table: String,
        /// Why, and the remedy.
        reason: String,
    },
    /// Redis was away for so long that what waits was dropped in favour of a sweep.
    Overflowed {
        /// Targets that were dropped.
        waiting: usize,
    },
    /// Redis refused, failed or did not answer a command, which will be repeated.
    RedisFailed {
        /// Why, for people.
        reason: String,
    },
    /// Redis answers again.
    RedisRecovered,
    /// Another Redis answers, or the same one after a restart: it has undone what the last one had
    /// done.
    RedisChanged {
        /// How many keys and patterns are deleted again, if that is known; otherwise all of the
        /// last `replay.window`.
        again: Option<usize>,
    },
    /// PostgreSQL was restarted or failed over: it may have undone commits whose keys were deleted
    /// and cached again.
    PostgresChanged {
        /// What is done about it, and what is not known.
        reason: &'static str,
        /// Keys that are deleted once more.
        again: usize,
    },
    /// All keys of all watched tables are deleted, because what was missed cannot be found
    /// otherwise.
    Flushed {
        /// Why.
        reason: &'static str,
    },
    /// Progress could not be noted in the database. Deletion goes on, and a restart would have more
    /// to do.
    NotKept {
        /// Why, for people.
        reason: String,
        /// It was said a moment ago.
        again: bool,
    },
    /// The server does not say all of who it is, so that less is known of fail-overs.
    ServerTellsLittle {
        /// What is not known, and why.
        reason: String,
    },
    /// The log is no longer kept for an instance that is away.
    InstanceForgotten {
        /// Its name.
        instance: String,
    },
    /// Payloads that are not an announcement of a watched table were skipped.
    PayloadsSkipped {
        /// How many.
        count: u64,
        /// Why the first of them was; never the payload.
        reason: String,
    },
    /// A watch was made, changed or removed.
    WatchesChanged {
        /// Tables watched now.
        watches: usize,
    },
    /// A row of `unstale.watch` that cannot be used.
    WatchSkipped {
        /// Schema and name.
        table: String,
        /// Why.
        reason: String,
    },
    /// A watch ended, by `unstale.unwatch()` or DROP TABLE: all its keys are deleted.
    WatchEnded {
        /// Schema and name.
        table: String,
    },
    /// A heartbeat went through PostgreSQL and Redis.
    Fresh {
        /// From its commit to the acknowledgement by Redis.
        took: Duration,
    },
    /// A change that was followed as a sample is deleted.
    Delivered {
        /// From its arrival to the acknowledgement by Redis.
        took: Duration,
    },
    /// How things stand, reported with each heartbeat.
    Status {
        /// Keys and patterns that wait for Redis.
        pending: usize,
        /// How far the watermark is behind PostgreSQL's clock.
        watermark_age: Option<Duration>,
    },
    /// The share of PostgreSQL's notification queue in use, 0 to 1.
    NotifyQueue(f64),
    /// Redis was asked to delete, and did.
    Deleted {
        /// Keys that existed.
        existed: u64,
    },
    /// Keys are deleted once more.
    Repeated {
        /// How many.
        keys: usize,
        /// Why now.
        cause: RepeatedFor,
    },
    /// Keys were deleted, and too many wait already to be deleted once more.
    RepeatsDropped {
        /// How many.
        keys: usize,
        /// It was said a moment ago.
        again: bool,
    },
    /// A replica has answered.
    ReplicaLag {
        /// Which, from 0.
        replica: usize,
        /// What of the primary's write-ahead log it has still to replay.
        lag_bytes: u64,
    },
    /// A replica, or the primary, does not say how far it is.
    ReplicaFailed {
        /// Hosts and database.
        place: String,
        /// Why, for people.
        reason: String,
        /// It was said a moment ago.
        again: bool,
    },
    /// Readiness changed.
    Readiness(Readiness),
    /// A signal asks the process to end.
    StopAsked,
    /// Something small failed, and is done without or again: for whoever looks closely.
    Failed {
        /// What did not happen.
        event: &'static str,
        /// Why.
        reason: String,
    },
    /// The listener leaves.
    Stopped {
        /// Was everything that had been received deleted?
        drained: bool,
    },
}

/// Says it, in the log and in the metrics.
pub fn observe(observation: &Observation) {
    log::write(observation);
    metrics::record(observation);
}
