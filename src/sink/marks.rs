//! The marks of this process: their key, and their numbers.
//!
//! Owns the counters. They outlive a connection, and a change of the configuration, so that a
//! number is never given out twice.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::mark::{Found, RedisMark};

/// See the module.
#[derive(Debug)]
pub struct Marks {
    key: String,
    canary: String,
    life: Arc<str>,
    connections: AtomicU64,
    numbers: AtomicU64,
}

impl Marks {
    /// Those of an instance, in a new life.
    #[must_use]
    pub fn new(instance: &str) -> Self {
        let life = format!("{:016x}", RandomState::new().hash_one(())).into();
        Self {
            key: format!("unstale:mark:{instance}"),
            canary: canary(instance),
            life,
            connections: AtomicU64::new(0),
            numbers: AtomicU64::new(0),
        }
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// The key that each heartbeat deletes.
    pub(super) fn canary(&self) -> &str {
        &self.canary
    }

    pub(super) fn life(&self) -> &str {
        &self.life
    }

    pub(super) fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn next(&self, connection: u64) -> RedisMark {
        RedisMark {
            life: self.life.clone(),
            connection,
            number: self.numbers.fetch_add(1, Ordering::Relaxed) + 1,
        }
    }
}

fn canary(instance: &str) -> String {
    format!("unstale:canary:{instance}")
}

/// What the value of the key says.
pub(super) fn found(value: Option<&str>) -> Found {
    value.and_then(|value| value.parse().ok()).map_or(Found::Nothing, Found::Mark)
}

/// Was the server set back? `least` is what it had acknowledged, or what was found when the
/// connection was made.
pub(super) fn is_set_back(found: &Found, least: &Found) -> bool {
    match (found, least) {
        (_, Found::Nothing | Found::Refused) => false,
        (Found::Mark(found), Found::Mark(least)) => {
            found.life != least.life || found.number < least.number
        }
        (_, Found::Mark(_)) => true,
    }
}
