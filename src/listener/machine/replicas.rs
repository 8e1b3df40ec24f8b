//! Replicas that lag: keys that are deleted once more when every replica has replayed past their
//! change.
//!
//! A reader that looks at a replica after a miss finds the old row there until the replica has
//! replayed the commit, and no lease helps against that. Must hold: a key goes again only when each
//! replica has replayed past a position of the primary that was read after the key's change had
//! been received, so that whoever reads there from then on reads the new row; or
//! `replicas.max_wait` after it was deleted, whatever the replicas say. No first delete waits for
//! any of this, and what waits is bounded in bytes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::messages::RepeatedFor;

use super::repeat::{Held, Packed};

/// Bytes of keys that wait for the replicas.
const HELD_BYTES: usize = 32 << 20;

/// How often the servers are asked while keys wait: about how long a key stays stale after its
/// replica has caught up.
const BUSY: Duration = Duration::from_millis(50);

/// Positions that are remembered at the most. Those of a time when there are more are not needed:
/// later ones cover it.
const MAX_POSITIONS: usize = 4_096;

/// See the module. Positions are those of the write-ahead log, in bytes.
#[derive(Debug)]
pub(super) struct Replicas {
    max_wait: Duration,
    replayed: Vec<Option<u64>>, // by each replica; none while it does not answer
    primary: Option<u64>,
    positions: VecDeque<(Instant, u64)>, // what was received before this time was committed before this position
    released: Option<Instant>,           // all replicas have replayed what was received before
    held: Held,                          // with the time at which they were deleted
    since: Instant,                      // there are replicas
    asked: Option<Instant>,
}

impl Replicas {
    pub(super) fn new(count: usize, max_wait: Duration, now: Instant) -> Self {
        Self {
            max_wait,
            replayed: vec![None; count],
            primary: None,
            positions: VecDeque::new(),
            released: None,
            held: Held::default(),
            since: now,
            asked: None,
        }
    }

    /// Other replicas, or as many others. What waits goes on waiting, for these.
    pub(super) fn set(&mut self, count: usize, max_wait: Duration) {
        self.max_wait = max_wait;
        self.replayed = vec![None; count];
        self.asked = None;
    }

    /// Keys that wait for the replicas.
    pub(super) fn waiting(&self) -> usize {
        self.held.count()
    }

    /// Are there any?
    pub(super) fn are_there(&self) -> bool {
        !self.replayed.is_empty()
    }

    /// Everything that was received before `asked` was committed before this position.
    pub(super) fn note_primary_at(&mut self, asked: Instant, position: u64) {
        self.primary = Some(position);
        if self.held.first().is_some_and(|first| first <= asked)
            && self.positions.len() < MAX_POSITIONS
        {
            self.positions.push_back((asked, position));
        }
        self.release();
    }

    /// Returns by how many bytes it is behind, if that is known.
    pub(super) fn note_replica_at(&mut self, replica: usize, position: Option<u64>) -> Option<u64> {
        *self.replayed.get_mut(replica)? = position;
        self.release();
        Some(self.primary?.saturating_sub(position?))
    }

    fn release(&mut self) {
        let Some(replayed) = self.replayed.iter().copied().min().flatten() else { return };
        while let Some((received, _)) =
            self.positions.pop_front_if(|(_, position)| *position <= replayed)
        {
            self.released = Some(received);
        }
    }

    /// These were deleted. Returns whether they are held.
    pub(super) fn deleted(&mut self, now: Instant, keys: Arc<Packed>) -> bool {
        let fits = self.held.bytes() + keys.bytes() <= HELD_BYTES;
        if fits {
            self.held.push(now, keys);
        }
        fits
    }

    /// Since when keys that may go now have waited, and why they may.
    fn ready(&self, now: Instant) -> Option<(Instant, RepeatedFor)> {
        let first = self.held.first()?;
        match self.released {
            Some(released) if first <= released => Some((released, RepeatedFor::Replicas)),
            _ => now
                .checked_sub(self.max_wait)
                .filter(|late| first <= *late)
                .map(|late| (late, RepeatedFor::MaxWait)),
        }
    }

    /// The next ones that may go.
    pub(super) fn next(
        &mut self,
        now: Instant,
        keys_per_command: usize,
    ) -> Option<(Vec<String>, RepeatedFor)> {
        let (until, cause) = self.ready(now)?;
        Some((self.held.take(until, keys_per_command), cause))
    }

    /// When the first go whatever the replicas say.
    pub(super) fn late(&self) -> Option<Instant> {
        self.held.first().map(|first| first + self.max_wait)
    }

    /// When to ask all servers where they are.
    pub(super) fn ask_due(&self, interval: Duration) -> Option<Instant> {
        let pause = if self.held.first().is_some() { BUSY } else { interval };
        self.are_there().then(|| self.asked.map_or(self.since, |asked| asked + pause))
    }

    /// They are asked.
    pub(super) fn ask(&mut self, now: Instant) {
        self.asked = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn packed(key: &str) -> Arc<Packed> {
        Packed::new(&[key.to_owned()])
    }

    #[test]
    fn keys_go_when_the_slowest_replica_is_past_a_position_that_was_asked_for_after_they_were_deleted()
     {
        let (mut replicas, start) = (Replicas::new(2, SECOND * 60, Instant::now()), Instant::now());
        replicas.held.push(start + SECOND, packed("a"));
        replicas.note_primary_at(start, 100); // asked before: proves nothing about it
        replicas.note_replica_at(0, Some(100));
        replicas.note_replica_at(1, Some(100));
        assert_eq!(replicas.ready(start + SECOND * 2), None);
        replicas.note_primary_at(start + SECOND, 200);
        replicas.note_replica_at(0, Some(250));
        assert_eq!(replicas.ready(start + SECOND * 2), None, "the other one is at 100");
        assert_eq!(replicas.note_replica_at(1, Some(199)), Some(1));
        assert_eq!(replicas.ready(start + SECOND * 2), None);
        replicas.note_replica_at(1, Some(200));
        assert_eq!(
            replicas.ready(start + SECOND * 2),
            Some((start + SECOND, RepeatedFor::Replicas))
        );
        assert_eq!(replicas.held.take(start + SECOND, 500), ["a"]);
    }

    #[test]
    fn a_replica_that_does_not_answer_is_waited_for_no_longer_than_max_wait() {
        let (mut replicas, start) = (Replicas::new(2, SECOND * 60, Instant::now()), Instant::now());
        replicas.held.push(start, packed("a"));
        replicas.held.push(start + SECOND, packed("b"));
        replicas.note_primary_at(start + SECOND, 100);
        replicas.note_replica_at(0, Some(100));
        assert_eq!(replicas.note_replica_at(1, None), None);
        assert_eq!(replicas.ready(start + SECOND * 59), None);
        let (until, cause) = replicas.ready(start + SECOND * 60).expect("max_wait is over");
        assert_eq!(
            (replicas.held.take(until, 500), cause),
            (vec!["a".to_owned()], RepeatedFor::MaxWait)
        );
        assert_eq!(replicas.ready(start + SECOND * 60), None, "b was deleted later");
    }

    #[test]
    fn positions_are_bounded_and_a_late_answer_covers_what_was_not_remembered() {
        let (mut replicas, start) =
            (Replicas::new(1, SECOND * 3600, Instant::now()), Instant::now());
        replicas.held.push(start, packed("a"));
        for n in 0..10_000_u32 {
            replicas.note_primary_at(start + BUSY * n, u64::from(n));
        }
        assert_eq!(replicas.positions.len(), MAX_POSITIONS);
        replicas.held.push(start + BUSY * 9_999, packed("b"));
        replicas.note_replica_at(0, Some(9_999));
        replicas.note_primary_at(start + BUSY * 10_000, 9_999);
        assert_eq!(
            replicas.ready(start + BUSY * 10_000),
            Some((start + BUSY * 10_000, RepeatedFor::Replicas))
        );
    }
}
