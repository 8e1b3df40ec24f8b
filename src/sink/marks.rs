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

/// Was the server set back? `least` is what it had acknowledged when `mark` was sent, or what was
/// found when the connection was made, and `before` what `mark` was written over.
pub(super) fn is_set_back(before: &Found, least: &Found, mark: &RedisMark) -> bool {
    match (before, least) {
        (_, Found::Nothing | Found::Refused) => false,
        (Found::Mark(before), Found::Mark(least)) if before.life == least.life => {
            before.number < least.number
        }
        // The first of this connection, on its way together with `mark`, was written over `least`.
        (Found::Mark(before), Found::Mark(_)) => {
            (&before.life, before.connection) != (&mark.life, mark.connection)
        }
        (_, Found::Mark(_)) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_its_way_together_does_not_set_a_server_back() {
        let mark =
            |life: &str, connection, number| RedisMark { life: life.into(), connection, number };
        let sent = mark("me", 2, 12);
        let [killed, earlier, first, later] =
            [("before", 4, 90), ("me", 1, 9), ("me", 2, 10), ("me", 2, 11)]
                .map(|(life, connection, number)| Found::Mark(mark(life, connection, number)));
        for (before, least, expected) in [
            (&killed, &killed, false),
            (&first, &killed, false),
            (&earlier, &killed, true),
            (&killed, &first, true),
            (&first, &earlier, false),
            (&later, &first, false),
            (&first, &later, true),
            (&Found::Nothing, &killed, true),
            (&killed, &Found::Nothing, false),
        ] {
            assert_eq!(
                is_set_back(before, least, &sent),
                expected,
                "{before:?} where {least:?} was known"
            );
        }
    }
}
