//! What is to be deleted from Redis, each thing once, and what of it has been acknowledged.
//!
//! Owns the only queue between the changes and the sink. Two lanes, one for live changes and one for catching up, so that a
//! long sweep does not hold up what changes now. A lane collects targets in a set; when the sink has a free place, the whole
//! set becomes a *wave* of commands. A [`Mark`] says "all that was added until now", and is settled once every command of
//! every wave up to it is acknowledged. Bounded: the caller asks [`Batch::is_full`] before it adds. Pure.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use indexmap::IndexSet;

use crate::rule::Target;

/// Places that an empty set keeps after a burst.
const KEPT: usize = 1_024;

/// Which of the two queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Changes as they are announced.
    Live,
    /// What a sweep or the log brings.
    CatchUp,
}

/// One request to Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Given back to [`Batch::acknowledge`].
    pub id: u64,
    /// What it does.
    pub work: Work,
}

/// What one request does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// UNLINK of these keys.
    Keys(Arc<Vec<String>>),
    /// SCAN and UNLINK of all that matches the glob.
    Pattern(String),
}

/// All that was added to a lane until some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    lane: Lane,
    wave: u64,
}

/// Bounds, from the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Keys in one UNLINK.
    pub keys_per_command: usize,
    /// Commands on their way at the same time.
    pub in_flight: usize,
    /// Targets waiting in one lane.
    pub max_pending: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Batch {
    limits: Limits,
    live: Queue,
    catch_up: Queue,
    in_flight: HashMap<u64, (Lane, u64, Work)>, // command -> its lane, its wave, what it does
    last_id: u64,
}

#[derive(Debug, Default)]
struct Queue {
    cut_waves: u64,                       // the wave that is being collected is the next one
    open: IndexSet<Target>,               // what it has so far
    keys: VecDeque<(u64, Vec<String>)>,   // cut, not on its way, with its wave
    patterns: VecDeque<(u64, String)>,    // likewise; each pattern once, so that a template has one at the most
    cut: usize,                           // targets in `keys` and `patterns`
    unacknowledged: BTreeMap<u64, usize>, // commands by wave
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, live: Queue::default(), catch_up: Queue::default(), in_flight: HashMap::new(), last_id: 0 }
    }

    /// Other bounds, from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Adds what is not waiting already; on its way does not count, because Redis may have done it before the change.
    /// Returns whether it was new.
    pub fn add(&mut self, lane: Lane, target: Target) -> bool {
        self.queue(lane).open.insert(target)
    }

    /// Everything added to the lane so far.
    pub fn mark(&mut self, lane: Lane) -> Mark {
        let queue = self.queue(lane);
        Mark { lane, wave: queue.cut_waves + u64::from(!queue.open.is_empty()) }
    }

    /// Has Redis acknowledged everything up to the mark?
    #[must_use]
    pub fn is_settled(&self, mark: Mark) -> bool {
        let queue = self.queue_of(mark.lane);
        queue.cut_waves >= mark.wave && queue.unacknowledged.first_key_value().is_none_or(|(&wave, _)| wave > mark.wave)
    }

    /// May nothing more be added to the lane for now?
    #[must_use]
    pub fn is_full(&self, lane: Lane) -> bool {
        self.waiting(lane) >= self.limits.max_pending
    }

    /// Targets that wait in a lane, not counting those on their way.
    #[must_use]
    pub fn waiting(&self, lane: Lane) -> usize {
        let queue = self.queue_of(lane);
        queue.open.len() + queue.cut
    }

    /// Is nothing waiting and nothing on its way?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty() && self.waiting(Lane::Live) + self.waiting(Lane::CatchUp) == 0
    }

    /// The next request, if one more may be on its way. Live changes first; catching up has half of the places, and one
    /// pattern at a time, because each walks through the whole of Redis.
    pub fn next_command(&mut self) -> Option<Command> {
        if self.in_flight.len() >= self.limits.in_flight {
            return None;
        }
        let catching_up = self.in_flight.values().filter(|(lane, ..)| *lane == Lane::CatchUp).count();
        let scanning = self.in_flight.values().any(|(.., work)| matches!(work, Work::Pattern(_)));
        for lane in [Lane::Live, Lane::CatchUp] {
            if lane == Lane::CatchUp && catching_up >= self.limits.in_flight.div_ceil(2) {
                continue;
            }
            let keys_per_command = self.limits.keys_per_command;
            if let Some((wave, work)) = self.queue(lane).next(keys_per_command, scanning) {
                self.last_id += 1;
                self.in_flight.insert(self.last_id, (lane, wave, work.clone()));
                return Some(Command { id: self.last_id, work });
            }
        }
        None
    }

    /// Redis has done the command, which is returned.
    pub fn acknowledge(&mut self, id: u64) -> Option<Work> {
        let (lane, wave, work) = self.in_flight.remove(&id)?;
        let queue = self.queue(lane);
        if let Some(left) = queue.unacknowledged.get_mut(&wave) {
            *left -= 1;
            if *left == 0 {
                queue.unacknowledged.remove(&wave);
            }
        }
        if self.is_empty() {
            self.live.open.shrink_to(KEPT);
            self.catch_up.open.shrink_to(KEPT);
        }
        Some(work)
    }

    /// Forgets what waits in a lane. Its marks mean nothing any more; the caller reopens the gap instead.
    pub fn clear(&mut self, lane: Lane) {
        let queue = self.queue(lane);
        queue.open = IndexSet::new(); // also gives its memory back
        let keys = std::mem::take(&mut queue.keys).into_iter().map(|(wave, _)| wave);
        let patterns = std::mem::take(&mut queue.patterns).into_iter().map(|(wave, _)| wave);
        for wave in keys.chain(patterns) {
            if let Some(left) = queue.unacknowledged.get_mut(&wave) {
                *left -= 1;
            }
        }
        queue.unacknowledged.retain(|_, left| *left > 0);
        queue.cut = 0;
    }

    fn queue_of(&self, lane: Lane) -> &Queue {
        match lane {
            Lane::Live => &self.live,
            Lane::CatchUp => &self.catch_up,
        }
    }

    fn queue(&mut self, lane: Lane) -> &mut Queue {
        match lane {
            Lane::Live => &mut self.live,
            Lane::CatchUp => &mut self.catch_up,
        }
    }
}

impl Queue {
    fn next(&mut self, keys_per_command: usize, scanning: bool) -> Option<(u64, Work)> {
        if self.keys.is_empty() && !self.open.is_empty() {
            self.cut_wave(keys_per_command);
        }
        if !scanning && let Some((wave, pattern)) = self.patterns.pop_front() {
            self.cut -= 1;
            return Some((wave, Work::Pattern(pattern)));
        }
        let (wave, keys) = self.keys.pop_front()?;
        self.cut -= keys.len();
        Some((wave, Work::Keys(Arc::new(keys))))
    }

    fn cut_wave(&mut self, keys_per_command: usize) {
        self.cut_waves += 1;
        let wave = self.cut_waves;
        let before = self.keys.len() + self.patterns.len();
        let mut keys = Vec::with_capacity(keys_per_command.min(self.open.len()));
        for target in self.open.drain(..) {
            match target {
                Target::Key(key) => {
                    keys.push(key);
                    self.cut += 1;
                    if keys.len() == keys_per_command {
                        self.keys.push_back((wave, std::mem::take(&mut keys)));
                    }
                }
                // One that waits already will be sent after this change, too, and every later mark waits for its wave.
                Target::Pattern(pattern) if self.patterns.iter().any(|(_, waiting)| *waiting == pattern) => {}
                Target::Pattern(pattern) => {
                    self.patterns.push_back((wave, pattern));
                    self.cut += 1;
                }
            }
        }
        if !keys.is_empty() {
            self.keys.push_back((wave, keys));
        }
        let commands = self.keys.len() + self.patterns.len() - before;
        if commands > 0 {
            self.unacknowledged.insert(wave, commands);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { keys_per_command: 2, in_flight: 2, max_pending: 5 };

    fn key(name: &str) -> Target {
        Target::Key(name.into())
    }

    fn keys(command: Option<Command>) -> (u64, Vec<String>) {
        match command {
            Some(Command { id, work: Work::Keys(keys) }) => {
                let mut keys = keys.to_vec();
                keys.sort();
                (id, keys)
            }
            other => panic!("no keys: {other:?}"),
        }
    }

    #[test]
    fn a_key_waits_once_and_is_sent_again_if_it_changes_while_on_its_way() {
        let mut batch = Batch::new(LIMITS);
        batch.add(Lane::Live, key("a"));
        batch.add(Lane::Live, key("a"));
        let (first, sent) = keys(batch.next_command());
        assert_eq!(sent, ["a"]);
        batch.add(Lane::Live, key("a"));
        let (second, sent) = keys(batch.next_command());
        assert_eq!(sent, ["a"]);
        assert_eq!(batch.next_command(), None);
        batch.acknowledge(first);
        batch.acknowledge(second);
        assert!(batch.is_empty());
    }

    #[test]
    fn a_mark_is_settled_when_everything_before_it_is_acknowledged_in_any_order() {
        let mut batch = Batch::new(LIMITS);
        let nothing = batch.mark(Lane::Live);
        assert!(batch.is_settled(nothing));
        for name in ["a", "b", "c"] {
            batch.add(Lane::Live, key(name));
        }
        let mark = batch.mark(Lane::Live);
        assert!(!batch.is_settled(mark), "collected");
        let (first, _) = keys(batch.next_command());
        batch.add(Lane::Live, key("after the mark"));
        let (second, _) = keys(batch.next_command());
        batch.acknowledge(second);
        assert!(!batch.is_settled(mark), "the first is on its way");
        batch.acknowledge(first);
        assert!(batch.is_settled(mark), "what came after the mark does not matter");
        let later = batch.mark(Lane::Live);
        assert!(!batch.is_settled(later));
    }

    #[test]
    fn catching_up_leaves_places_to_live_changes() {
        let mut batch = Batch::new(LIMITS);
        for n in 0..4 {
            batch.add(Lane::CatchUp, key(&n.to_string()));
        }
        assert!(batch.next_command().is_some());
        assert_eq!(batch.next_command(), None, "half of the places");
        batch.add(Lane::Live, key("live"));
        assert_eq!(keys(batch.next_command()).1, ["live"]);
    }

    #[test]
    fn one_pattern_at_a_time_and_keys_pass_it() {
        let mut batch = Batch::new(Limits { in_flight: 8, ..LIMITS });
        for pattern in ["a*", "b*"] {
            batch.add(Lane::Live, Target::Pattern(pattern.into()));
        }
        batch.add(Lane::Live, key("k"));
        let Some(Command { id, work: Work::Pattern(_) }) = batch.next_command() else { panic!("a pattern first") };
        assert_eq!(keys(batch.next_command()).1, ["k"]);
        assert_eq!(batch.next_command(), None);
        batch.acknowledge(id);
        assert!(matches!(batch.next_command(), Some(Command { work: Work::Pattern(_), .. })));
    }

    #[test]
    fn a_full_lane_says_so_and_can_be_cleared_while_commands_are_on_their_way() {
        let mut batch = Batch::new(LIMITS);
        for n in 0..6 {
            batch.add(Lane::Live, key(&n.to_string()));
        }
        assert!(batch.is_full(Lane::Live) && !batch.is_full(Lane::CatchUp));
        let (id, _) = keys(batch.next_command());
        batch.clear(Lane::Live);
        assert_eq!(batch.waiting(Lane::Live), 0);
        batch.add(Lane::Live, key("new"));
        let mark = batch.mark(Lane::Live);
        let (new, _) = keys(batch.next_command());
        batch.acknowledge(new);
        assert!(!batch.is_settled(mark), "an earlier wave is on its way");
        batch.acknowledge(id);
        assert!(batch.is_settled(mark) && batch.is_empty());
    }
}
