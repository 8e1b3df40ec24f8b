//! A lane of the batch: what is collected, sealed into generations of commands, handed back, and
//! not acknowledged yet. Pure.

use crate::deletion::{Deletion, Deletions, cost};
use std::collections::{BTreeMap, VecDeque};

use indexmap::IndexMap;
use indexmap::map::Entry;

use super::{Again, Limits};

/// Places that an empty set keeps after a burst.
const KEPT: usize = 1_024;

/// Bytes of keys in one command, unless a single key is longer. Redis is not held up by it, and a
/// retry copies no more.
pub(super) const COMMAND_BYTES: usize = 1 << 20;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    generations: u64, // the generation that is being collected is the next one
    open: IndexMap<Deletion, Again>, // what it has so far
    open_patterns: usize, // of these
    keys: VecDeque<Sealed>, // sealed, not on its way
    patterns: IndexMap<String, u64>, // likewise, with its generation; each pattern once, so that a template has one at the most
    sealed: usize,                   // deletions in `keys` and `patterns`
    held: IndexMap<Deletion, Again>, // handed back
    held_generation: u64, // the earliest of those that they are of: each later point waits for it, too
    bytes: usize,         // of all that waits
    unacknowledged: BTreeMap<u64, usize>, // commands of keys, and patterns, by generation
}

/// Keys of one command.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) generation: u64,
    pub(super) again: Again,
    pub(super) keys: Vec<String>,
}

impl Queue {
    /// Collects what it does not have yet. Returns whether it was new.
    pub(super) fn add(&mut self, deletion: Deletion, again: Again) -> bool {
        match self.open.entry(deletion) {
            Entry::Occupied(mut known) => {
                *known.get_mut() = again.max(*known.get());
                false
            }
            Entry::Vacant(place) => {
                self.bytes += cost(place.key().text());
                self.open_patterns += usize::from(matches!(place.key(), Deletion::Pattern(_)));
                place.insert(again);
                true
            }
        }
    }

    /// The last generation that has anything.
    pub(super) fn generation(&self) -> u64 {
        self.generations + u64::from(!self.open.is_empty())
    }

    /// Is everything acknowledged up to this generation?
    pub(super) fn is_settled(&self, until: u64) -> bool {
        self.generations >= until
            && self
                .unacknowledged
                .first_key_value()
                .is_none_or(|(&generation, _)| generation > until)
    }

    /// Deletions that wait.
    pub(super) fn waiting(&self) -> usize {
        self.open.len() + self.sealed + self.held.len()
    }

    /// How many of them are patterns, but for those that were handed back.
    pub(super) fn patterns(&self) -> usize {
        self.open_patterns + self.patterns.len()
    }

    /// What they take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Is all that has keys still being collected?
    pub(super) fn collects(&self) -> bool {
        self.keys.is_empty() && !self.open.is_empty()
    }

    /// Does nothing wait for a place?
    pub(super) fn has_no_keys(&self) -> bool {
        self.keys.is_empty() && self.open.is_empty()
    }

    /// Do patterns wait for a walk?
    pub(super) fn has_sealed_patterns(&self) -> bool {
        !self.patterns.is_empty()
    }

    /// The next command's keys.
    pub(super) fn next_keys(&mut self, limits: &Limits) -> Option<Sealed> {
        if self.keys.is_empty() && !self.open.is_empty() {
            self.seal(limits);
        }
        let sealed = self.keys.pop_front()?;
        self.sealed -= sealed.keys.len();
        self.bytes -= sealed.keys.iter().map(|key| cost(key)).sum::<usize>();
        Some(sealed)
    }

    /// Keeps what was handed back of a generation, until it is released.
    pub(super) fn hold(&mut self, generation: u64, left: &Deletions, again: Again) {
        let generation = if self.owes_nothing_held() {
            generation
        } else {
            generation.min(self.held_generation)
        };
        if self.held.is_empty() || generation != self.held_generation {
            *self.unacknowledged.entry(generation).or_default() += 1;
            if !self.held.is_empty() {
                self.is_done(self.held_generation);
            }
        }
        self.held_generation = generation;
        for deletion in left.iter() {
            match self.held.entry(deletion) {
                Entry::Occupied(mut known) => *known.get_mut() = again.max(*known.get()),
                Entry::Vacant(place) => {
                    self.bytes += cost(place.key().text());
                    place.insert(again);
                }
            }
        }
    }

    /// What was handed back waits for a place again, before all else.
    pub(super) fn release(&mut self, limits: &Limits) {
        if self.held.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.keys);
        let held = std::mem::take(&mut self.held);
        self.divide(self.held_generation, held.into_iter(), limits);
        self.keys.extend(waiting);
        self.is_done(self.held_generation);
    }

    /// Is all done that was ever held?
    pub(super) fn owes_nothing_held(&self) -> bool {
        self.held.is_empty() && !self.unacknowledged.contains_key(&self.held_generation)
    }

    /// All patterns that wait.
    pub(super) fn take_patterns(&mut self, limits: &Limits) -> IndexMap<String, u64> {
        if self.keys.is_empty() && self.open_patterns > 0 {
            self.seal(limits);
        }
        let patterns = std::mem::take(&mut self.patterns);
        self.sealed -= patterns.len();
        self.bytes -= patterns.keys().map(|pattern| cost(pattern)).sum::<usize>();
        patterns
    }

    /// One command, or pattern, of the generation is done.
    pub(super) fn is_done(&mut self, generation: u64) {
        if let Some(left) = self.unacknowledged.get_mut(&generation) {
            *left -= 1;
            if *left == 0 {
                self.unacknowledged.remove(&generation);
            }
        }
    }

    /// Forgets what waits.
    pub(super) fn clear(&mut self) {
        self.open = IndexMap::new(); // also gives its memory back
        self.open_patterns = 0;
        for Sealed { generation, .. } in std::mem::take(&mut self.keys) {
            self.is_done(generation);
        }
        for (_, generation) in std::mem::take(&mut self.patterns) {
            self.is_done(generation);
        }
        self.sealed = 0;
        if !self.held.is_empty() {
            self.held = IndexMap::new();
            self.is_done(self.held_generation);
        }
        self.held_generation = 0;
        self.bytes = 0;
    }

    /// Nothing waits and nothing is on its way: gives memory back.
    pub(super) fn shrink(&mut self) {
        self.open.shrink_to(KEPT);
    }

    fn seal(&mut self, limits: &Limits) {
        self.generations += 1;
        self.open_patterns = 0;
        let mut open = std::mem::take(&mut self.open);
        self.divide(self.generations, open.drain(..), limits);
        self.open = open; // with its memory
    }

    /// Makes commands, and patterns that wait for a walk, of a generation.
    fn divide(
        &mut self,
        generation: u64,
        deletions: impl Iterator<Item = (Deletion, Again)>,
        limits: &Limits,
    ) {
        let Some(slot) = limits.slot else {
            return self.divide_in_order(generation, deletions, limits);
        };
        let mut deletions: Vec<_> = deletions.collect();
        deletions.sort_by_cached_key(|(deletion, _)| match deletion {
            Deletion::Key(key) => slot(key.as_bytes()),
            Deletion::Pattern(_) => 0,
        });
        let first = self.keys.len();
        self.divide_in_order(generation, deletions.into_iter(), limits);
        // Neighbours are of one primary, and all primaries are to be busy at the same time.
        let mut divided: Vec<_> = self.keys.split_off(first).into_iter().enumerate().collect();
        let stride = divided.len().div_ceil(limits.in_flight).max(1);
        divided.sort_by_key(|(place, _)| place % stride);
        self.keys.extend(divided.into_iter().map(|(_, sealed)| sealed));
    }

    fn divide_in_order(
        &mut self,
        generation: u64,
        deletions: impl Iterator<Item = (Deletion, Again)>,
        limits: &Limits,
    ) {
        let before = self.keys.len() + self.patterns.len();
        let mut open: [(Vec<String>, usize); 3] = Default::default(); // keys and their bytes, by what becomes of them later
        for (deletion, again) in deletions {
            let cost = cost(deletion.text());
            match deletion {
                Deletion::Key(key) => {
                    let (keys, bytes) = &mut open[again as usize];
                    if keys.len() == limits.keys_per_command
                        || *bytes + cost > COMMAND_BYTES && !keys.is_empty()
                    {
                        let full =
                            std::mem::replace(keys, Vec::with_capacity(limits.keys_per_command));
                        self.keys.push_back(Sealed { generation, again, keys: full });
                        *bytes = 0;
                    }
                    *bytes += cost;
                    keys.push(key);
                    self.sealed += 1;
                }
                Deletion::Pattern(pattern) => match self.patterns.get(&pattern) {
                    // One that waits already will be sent after this change, too, and every later
                    // point waits for its generation.
                    Some(earlier) if *earlier <= generation => self.bytes -= cost,
                    Some(_) => {
                        self.bytes -= cost;
                        *self.unacknowledged.entry(generation).or_default() += 1;
                        if let Some(later) = self.patterns.insert(pattern, generation) {
                            self.is_done(later);
                        }
                    }
                    None => {
                        self.patterns.insert(pattern, generation);
                        self.sealed += 1;
                    }
                },
            }
        }
        for (again, (keys, _)) in
            [Again::Never, Again::Replicas, Again::Always].into_iter().zip(open)
        {
            if !keys.is_empty() {
                self.keys.push_back(Sealed { generation, again, keys });
            }
        }
        let commands = self.keys.len() + self.patterns.len() - before;
        if commands > 0 {
            *self.unacknowledged.entry(generation).or_default() += commands;
        }
    }
}
