//! What the configuration decides.

use std::time::Duration;

use crate::batch::Limits;

/// See the module.
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
