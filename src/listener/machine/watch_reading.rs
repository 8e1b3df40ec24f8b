//! When the watches are read, and what arrives meanwhile.
//!
//! Any role can send the message that asks for a reading, so messages are coalesced: one reading
//! that begins after a message serves all that came before it, and readings take a share of the
//! time. Receiving goes on. A change that was received after such a message and before its reading
//! may be one of another revision than the known one. Must hold: it is understood by the rules that
//! are known, if it can be, at once; it is held, and understood once more where its rule turns out
//! to be another one; and no heartbeat that came after it is complete before that (P3). What is
//! held is bounded in bytes; beyond, a watch that turns out to be changed is widened to all its
//! keys.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Bytes of changes that are held.
const HELD_BYTES: usize = 256 << 10;

/// Watches of changes that were not held; with more, all of them are meant.
const MAX_WIDENED: usize = 1_024;

/// Watches known to be unknown, at the most.
const MAX_UNKNOWN: usize = 1_024;

/// Pause after a reading, in times of what it took, and at the least.
const PAUSE: (u32, Duration) = (4, Duration::from_millis(20));

/// See the module. Readings are counted from 1 in each session.
#[derive(Debug)]
pub(super) struct WatchReading {
    begun: u64,
    ended: u64,
    wanted: u64,            // up to this one
    began: Option<Instant>, // the one that is under way
    next: Instant,          // not before
    held: VecDeque<Held>,
    held_bytes: usize,
    widened: BTreeMap<i32, u64>, // watches of changes that were not held, and the reading that they need
    all_widened: Option<u64>,    // likewise, of any watch
    beats: VecDeque<(u64, u64)>, // heard, and the reading that they need
    unknown: BTreeMap<i32, i32>, // watches that a reading did not find, and up to which revision
}

/// A change, and the reading after which it is understood.
#[derive(Debug)]
struct Held {
    needs: u64,
    change: HeldChange,
}

/// A change that was held.
#[derive(Debug)]
pub(super) struct HeldChange {
    /// As it was received.
    pub(super) payload: String,
    /// By the rules of then.
    pub(super) is_understood: bool,
}

/// What a reading lets go.
#[derive(Debug)]
pub(super) struct Released {
    /// Changes, in the order of their arrival.
    pub(super) changes: Vec<HeldChange>,
    /// Watches of changes that were not held, and are others than they were.
    pub(super) widened: BTreeSet<i32>,
    /// The last heartbeat that was heard before the reading was wanted.
    pub(super) beat: Option<u64>,
}

impl WatchReading {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            begun: 0,
            ended: 0,
            wanted: 0,
            began: None,
            next: now,
            held: VecDeque::new(),
            held_bytes: 0,
            widened: BTreeMap::new(),
            all_widened: None,
            beats: VecDeque::new(),
            unknown: BTreeMap::new(),
        }
    }

    /// The watches may have changed; the returned reading will show it.
    pub(super) fn want(&mut self) -> u64 {
        self.wanted = self.begun + 1;
        self.wanted
    }

    /// The reading after which what arrives now is understood, if one is awaited.
    pub(super) fn awaited(&self) -> Option<u64> {
        (self.wanted > self.ended).then_some(self.wanted)
    }

    /// How many have ended.
    pub(super) fn ended(&self) -> u64 {
        self.ended
    }

    /// When one that is wanted may begin.
    pub(super) fn due(&self) -> Option<Instant> {
        (self.wanted > self.begun && self.began.is_none()).then_some(self.next)
    }

    /// One begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.begun += 1;
        self.began = Some(now);
    }

    /// It has ended; `changed` are the watches that are others than they were.
    pub(super) fn end(&mut self, now: Instant, changed: &BTreeSet<i32>) -> Released {
        if let Some(began) = self.began.take() {
            self.ended = self.begun;
            self.next = now + (now.saturating_duration_since(began) * PAUSE.0).max(PAUSE.1);
        }
        self.unknown.retain(|watch, _| !changed.contains(watch));
        let ended = self.ended;
        let due = |needs: &u64| *needs <= ended;
        let mut changes = Vec::new();
        while let Some(held) = self.held.pop_front_if(|held| due(&held.needs)) {
            self.held_bytes -= held.change.payload.len();
            changes.push(held.change);
        }
        let mut widened: BTreeSet<i32> =
            self.widened.extract_if(.., |_, needs| due(needs)).map(|(watch, _)| watch).collect();
        widened.retain(|watch| changed.contains(watch));
        if self.all_widened.take_if(|needs| due(needs)).is_some() {
            widened.clone_from(changed);
        }
        let mut beat = None;
        while let Some((n, _)) = self.beats.pop_front_if(|(_, needs)| due(needs)) {
            beat = Some(n);
        }
        Released { changes, widened, beat }
    }

    /// Keeps a change until the reading that is awaited has ended.
    pub(super) fn hold(&mut self, needs: u64, watch: i32, payload: &str, is_understood: bool) {
        if self.held_bytes + payload.len() <= HELD_BYTES {
            self.held_bytes += payload.len();
            self.held.push_back(Held {
                needs,
                change: HeldChange { payload: payload.to_owned(), is_understood },
            });
        } else if self.widened.len() < MAX_WIDENED || self.widened.contains_key(&watch) {
            self.widened.insert(watch, needs);
        } else {
            self.all_widened = Some(needs);
        }
    }

    /// Keeps a heartbeat until then. Of those that need the same reading the last one proves the
    /// most.
    pub(super) fn hold_beat(&mut self, needs: u64, n: u64) {
        self.beats.pop_back_if(|(_, last)| *last == needs);
        self.beats.push_back((n, needs));
    }

    /// Did a reading not find the watch, in no revision so new?
    pub(super) fn is_unknown(&self, watch: i32, rev: i32) -> bool {
        self.unknown.get(&watch).is_some_and(|known| rev <= *known)
    }

    /// A reading did not find it: later changes like this one need none.
    pub(super) fn not_found(&mut self, watch: i32, rev: i32) {
        if self.unknown.len() >= MAX_UNKNOWN {
            self.unknown.clear();
        }
        let known = self.unknown.entry(watch).or_insert(rev);
        *known = rev.max(*known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_bounded_and_beyond_that_a_changed_watch_is_widened() {
        let now = Instant::now();
        let mut reading = WatchReading::new(now);
        let needs = reading.want();
        for n in 0..100_000 {
            reading.hold(
                needs,
                1 + n % 5_000,
                &format!(r#"{{"watch":{},"rev":1,"new":{{"id":"{n}"}}}}"#, 1 + n % 5_000),
                true,
            );
        }
        assert!(reading.held_bytes <= HELD_BYTES && reading.widened.len() <= MAX_WIDENED);
        reading.begin(now);
        let released = reading.end(now, &[1, 4_999].into());
        assert_eq!(released.widened, [1, 4_999].into(), "the others are what they were");
        assert_eq!((reading.held_bytes, reading.held.len()), (0, 0));
    }
}
