//! A lane of the batch: what is collected, cut into waves of commands, handed back, and not acknowledged yet. Pure.

use std::collections::{BTreeMap, VecDeque};

use indexmap::IndexMap;
use indexmap::map::Entry;

use super::{Again, COMMAND_BYTES, Limits, OVERHEAD, Work};
use crate::rule::Target;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) cut_waves: u64,                       // the wave that is being collected is the next one
    pub(super) open: IndexMap<Target, Again>,        // what it has so far
    pub(super) open_patterns: usize,                 // of these
    pub(super) keys: VecDeque<Cut>,                  // cut, not on its way
    pub(super) patterns: IndexMap<String, u64>,      // likewise, with its wave; each pattern once, so that a template has one at the most
    pub(super) cut: usize,                           // targets in `keys` and `patterns`
    pub(super) held: IndexMap<Target, Again>,        // handed back
    pub(super) held_wave: u64,                       // the earliest of those that they are of: each later mark waits for it, too
    pub(super) bytes: usize,                         // of all that waits
    pub(super) unacknowledged: BTreeMap<u64, usize>, // commands of keys, and patterns, by wave
}

/// Keys of one command.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) wave: u64,
    pub(super) again: Again,
    pub(super) keys: Vec<String>,
}

impl Queue {
    pub(super) fn next_keys(&mut self, limits: &Limits) -> Option<Cut> {
        if self.keys.is_empty() && !self.open.is_empty() {
            self.cut_wave(limits);
        }
        let cut = self.keys.pop_front()?;
        self.cut -= cut.keys.len();
        self.bytes -= cut.keys.iter().map(|key| key.len() + OVERHEAD).sum::<usize>();
        Some(cut)
    }

    /// Keeps what was handed back of a wave, until it is released.
    pub(super) fn hold(&mut self, wave: u64, left: &Work, again: Again) {
        let wave = if self.owes_nothing_held() { wave } else { wave.min(self.held_wave) };
        if self.held.is_empty() || wave != self.held_wave {
            *self.unacknowledged.entry(wave).or_default() += 1;
            if !self.held.is_empty() {
                self.is_done(self.held_wave);
            }
        }
        self.held_wave = wave;
        let target: fn(String) -> Target = if let Work::Keys(_) = left { Target::Key } else { Target::Pattern };
        for target in left.texts().iter().cloned().map(target) {
            match self.held.entry(target) {
                Entry::Occupied(mut known) => *known.get_mut() = again.max(*known.get()),
                Entry::Vacant(place) => {
                    self.bytes += cost(place.key());
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
        self.cut(self.held_wave, held.into_iter(), limits);
        self.keys.extend(waiting);
        self.is_done(self.held_wave);
    }

    /// Is all done that was ever held?
    pub(super) fn owes_nothing_held(&self) -> bool {
        self.held.is_empty() && !self.unacknowledged.contains_key(&self.held_wave)
    }

    pub(super) fn take_patterns(&mut self, limits: &Limits) -> IndexMap<String, u64> {
        if self.keys.is_empty() && self.open_patterns > 0 {
            self.cut_wave(limits);
        }
        let patterns = std::mem::take(&mut self.patterns);
        self.cut -= patterns.len();
        self.bytes -= patterns.keys().map(|pattern| pattern.len() + OVERHEAD).sum::<usize>();
        patterns
    }

    /// One command, or pattern, of the wave is done.
    pub(super) fn is_done(&mut self, wave: u64) {
        if let Some(left) = self.unacknowledged.get_mut(&wave) {
            *left -= 1;
            if *left == 0 {
                self.unacknowledged.remove(&wave);
            }
        }
    }

    pub(super) fn cut_wave(&mut self, limits: &Limits) {
        self.cut_waves += 1;
        self.open_patterns = 0;
        let mut open = std::mem::take(&mut self.open);
        self.cut(self.cut_waves, open.drain(..), limits);
        self.open = open; // with its memory
    }

    /// Makes commands, and patterns that wait for a walk, of a wave.
    fn cut(&mut self, wave: u64, targets: impl Iterator<Item = (Target, Again)>, limits: &Limits) {
        let Some(slot) = limits.slot else { return self.cut_in_order(wave, targets, limits) };
        let mut targets: Vec<_> = targets.collect();
        targets.sort_by_cached_key(|(target, _)| match target {
            Target::Key(key) => slot(key.as_bytes()),
            Target::Pattern(_) => 0,
        });
        let first = self.keys.len();
        self.cut_in_order(wave, targets.into_iter(), limits);
        // Neighbours are of one primary, and all primaries are to be busy at the same time.
        let mut cut: Vec<_> = self.keys.split_off(first).into_iter().map(Some).collect();
        let stride = cut.len().div_ceil(limits.in_flight).max(1);
        for start in 0..stride {
            self.keys.extend(cut.iter_mut().skip(start).step_by(stride).filter_map(Option::take));
        }
    }

    fn cut_in_order(&mut self, wave: u64, targets: impl Iterator<Item = (Target, Again)>, limits: &Limits) {
        let before = self.keys.len() + self.patterns.len();
        let mut open: [(Vec<String>, usize); 3] = Default::default(); // keys and their bytes, by what becomes of them later
        for (target, again) in targets {
            let cost = cost(&target);
            match target {
                Target::Key(key) => {
                    let (keys, bytes) = &mut open[again as usize];
                    if keys.len() == limits.keys_per_command || *bytes + cost > COMMAND_BYTES && !keys.is_empty() {
                        let full = std::mem::replace(keys, Vec::with_capacity(limits.keys_per_command));
                        self.keys.push_back(Cut { wave, again, keys: full });
                        *bytes = 0;
                    }
                    *bytes += cost;
                    keys.push(key);
                    self.cut += 1;
                }
                Target::Pattern(pattern) => match self.patterns.get(&pattern) {
                    // One that waits already will be sent after this change, too, and every later mark waits for its wave.
                    Some(earlier) if *earlier <= wave => self.bytes -= cost,
                    Some(_) => {
                        self.bytes -= cost;
                        *self.unacknowledged.entry(wave).or_default() += 1;
                        if let Some(later) = self.patterns.insert(pattern, wave) {
                            self.is_done(later);
                        }
                    }
                    None => {
                        self.patterns.insert(pattern, wave);
                        self.cut += 1;
                    }
                },
            }
        }
        for (again, (keys, _)) in [Again::Never, Again::Replicas, Again::Always].into_iter().zip(open) {
            if !keys.is_empty() {
                self.keys.push_back(Cut { wave, again, keys });
            }
        }
        let commands = self.keys.len() + self.patterns.len() - before;
        if commands > 0 {
            *self.unacknowledged.entry(wave).or_default() += commands;
        }
    }
}

/// What it takes while it waits.
pub(super) fn cost(target: &Target) -> usize {
    let (Target::Key(text) | Target::Pattern(text)) = target;
    text.len() + OVERHEAD
}
