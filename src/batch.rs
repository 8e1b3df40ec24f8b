//! What is to be deleted from Redis, each thing once, and what of it has been acknowledged.
//!
//! Owns the only queue between the changes and the sink. Two lanes, one for live changes and one
//! for catching up, so that a long sweep does not hold up what changes now. A lane collects
//! deletions in a set; when the sink has a free place, the whole set becomes a *generation* of
//! commands. A [`Point`] says "all that was added until now", and is settled once every command of
//! every generation up to it is acknowledged. Pure.
//!
//! Bounded in number and in bytes: the caller asks [`Batch::is_full`] before it adds, and what is
//! on its way has bounds of its own. Patterns are a walk through all of Redis: one walk at a time
//! serves all that wait when it begins, whatever lane they are in, and after it there is a pause as
//! long as it took, so that repeated messages get no more than half of the time. What a part of
//! Redis could not do is handed back: it takes no place, is held once however often it changes, and
//! is tried again.
//!
//! Beside the lanes there are commands that nothing waits for: keys that are deleted once more
//! (listener/machine/repeat.rs). They get a place only while no lane wants it, and a part of the
//! places.

mod command;
mod in_flight;
mod queue;

use crate::deletion::{Deletion, Deletions};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indexmap::IndexSet;

pub use command::{Again, Command, Lane, Limits, Point};
use in_flight::{InFlight, OnItsWay};
use queue::{Queue, Sealed};

/// In a cluster, how long a generation waits for the one before it, at the most. More keys of one
/// slot come together meanwhile, and a primary that does not answer holds up nothing else for
/// longer.
const GATHERED: Duration = Duration::from_millis(10);

/// Before what was handed back is tried again.
const RETRY: Duration = Duration::from_millis(250);

/// See the module.
#[derive(Debug)]
pub struct Batch {
    limits: Limits,
    live: Queue,
    catch_up: Queue,
    in_flight: InFlight,
    next_retry: Option<Instant>,  // of what was handed back
    handed_back: Option<Instant>, // since when something always is
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            live: Queue::default(),
            catch_up: Queue::default(),
            in_flight: InFlight::default(),
            next_retry: None,
            handed_back: None,
        }
    }

    /// Other bounds, from now on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Adds what is not waiting already, and is deleted once.
    pub fn add(&mut self, lane: Lane, deletion: Deletion) -> bool {
        self.add_again(lane, deletion, Again::Never)
    }

    /// Adds what is not waiting already; on its way does not count, because Redis may have done it
    /// before the change. Returns whether it was new.
    pub fn add_again(&mut self, lane: Lane, deletion: Deletion, again: Again) -> bool {
        self.queue_mut(lane).add(deletion, again)
    }

    /// Everything added to the lane so far.
    #[must_use]
    pub fn point(&self, lane: Lane) -> Point {
        Point { lane, generation: self.queue(lane).generation() }
    }

    /// Has Redis acknowledged everything up to the point?
    #[must_use]
    pub fn is_settled(&self, point: Point) -> bool {
        self.queue(point.lane).is_settled(point.generation)
    }

    /// May nothing more be added to the lane for now? In a cluster only the bytes count: the more
    /// keys wait together, the more of them share a slot, and with it an UNLINK.
    #[must_use]
    pub fn is_full(&self, lane: Lane) -> bool {
        let is_counted = self.limits.slot.is_none();
        is_counted && self.waiting(lane) >= self.limits.max_pending
            || self.queue(lane).bytes() >= self.limits.max_bytes()
    }

    /// Deletions that wait in a lane, not counting those on their way.
    #[must_use]
    pub fn waiting(&self, lane: Lane) -> usize {
        self.queue(lane).waiting()
    }

    /// Deletions that wait in both lanes, how many of them are patterns (but for those that were
    /// handed back), and their bytes.
    #[must_use]
    pub fn all_waiting(&self) -> (usize, usize, usize) {
        let of = |count: fn(&Queue) -> usize| count(&self.live) + count(&self.catch_up);
        (of(Queue::waiting), of(Queue::patterns), of(Queue::bytes))
    }

    /// Commands that Redis has not answered.
    #[must_use]
    pub fn on_their_way(&self) -> usize {
        self.in_flight.count()
    }

    /// Is nothing waiting and nothing on its way, but what nothing waits for?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.in_flight.is_empty() && self.waiting(Lane::Live) + self.waiting(Lane::CatchUp) == 0
    }

    /// When patterns that wait for the pause after a walk may be sent, or what was handed back.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let walk = self
            .in_flight
            .walk_pause()
            .filter(|_| self.live.has_sealed_patterns() || self.catch_up.has_sealed_patterns());
        let lanes = [Lane::Live, Lane::CatchUp].into_iter();
        let generations = lanes.filter_map(|lane| {
            self.gathers_until(lane).filter(|_| self.in_flight.has_place(lane, &self.limits))
        });
        walk.into_iter().chain(self.next_retry).chain(generations).min()
    }

    /// Since when a part of Redis has not done what it should.
    #[must_use]
    pub fn handed_back_since(&self) -> Option<Instant> {
        self.handed_back
    }

    /// Is something not done yet that was handed back once?
    #[must_use]
    pub fn owes_handed_back(&self) -> bool {
        self.handed_back.is_some()
    }

    /// The next request, if one more may be on its way: a walk, which takes no place from keys;
    /// live changes; catching up, which has half of the places.
    pub fn next_command(&mut self, now: Instant) -> Option<Command> {
        let limits = self.limits;
        if self.next_retry.take_if(|retry| *retry <= now).is_some() {
            self.live.release(&limits);
            self.catch_up.release(&limits);
        }
        if let Some(walk) = self.next_patterns(now) {
            return Some(walk);
        }
        for lane in [Lane::Live, Lane::CatchUp] {
            if !self.in_flight.has_place(lane, &limits)
                || self.gathers_until(lane).is_some_and(|until| now < until)
            {
                continue;
            }
            if let Some(Sealed { generation, again, keys }) =
                self.queue_mut(lane).next_keys(&limits)
            {
                return Some(self.begin(Some((lane, generation)), again, keys, now));
            }
        }
        None
    }

    /// Until when the next generation is collected, though there is a place.
    fn gathers_until(&self, lane: Lane) -> Option<Instant> {
        if self.limits.slot.is_none() || !self.queue(lane).collects() || self.is_full(lane) {
            return None;
        }
        self.in_flight.oldest(lane).map(|began| began + GATHERED)
    }

    fn begin(
        &mut self,
        of: Option<(Lane, u64)>,
        again: Again,
        keys: Vec<String>,
        now: Instant,
    ) -> Command {
        let deletions = Deletions::Keys(Arc::new(keys));
        Command { id: self.in_flight.begin(of, again, &deletions, now), deletions }
    }

    /// Is there a place for a command beside the lanes? Call it when [`Batch::next_command`] has
    /// nothing more.
    #[must_use]
    pub fn has_place_aside(&self) -> bool {
        self.in_flight.has_place_aside(&self.limits)
            && self.live.has_no_keys()
            && self.catch_up.has_no_keys()
    }

    /// A command that no point waits for, and that is done for nobody.
    pub fn aside(&mut self, keys: Vec<String>, now: Instant) -> Command {
        self.begin(None, Again::Never, keys, now)
    }

    /// All patterns that wait, if a walk may begin.
    fn next_patterns(&mut self, now: Instant) -> Option<Command> {
        self.in_flight.next_walk(now).filter(|next| *next <= now)?;
        let limits = self.limits;
        let mut patterns = IndexSet::new();
        let mut generations = Vec::new();
        for lane in [Lane::Live, Lane::CatchUp] {
            for (pattern, generation) in self.queue_mut(lane).take_patterns(&limits) {
                generations.push((lane, generation));
                patterns.insert(pattern);
            }
        }
        if patterns.is_empty() {
            return None;
        }
        let deletions = Deletions::Patterns(Arc::new(patterns.into_iter().collect()));
        Some(Command { id: self.in_flight.begin_walk(generations, now), deletions })
    }

    /// Redis has done the command. Returns what becomes of its keys later, unless it was one beside
    /// the lanes.
    pub fn acknowledge(&mut self, id: u64, now: Instant) -> Option<Again> {
        let again = if let Some(generations) = self.in_flight.end_walk(id, now) {
            generations
                .into_iter()
                .for_each(|(lane, generation)| self.queue_mut(lane).is_done(generation));
            Again::Never
        } else {
            let OnItsWay { of, again, .. } = self.in_flight.end(id)?;
            let (lane, generation) = of?;
            self.queue_mut(lane).is_done(generation);
            again
        };
        if self.live.owes_nothing_held() && self.catch_up.owes_nothing_held() {
            self.handed_back = None;
        }
        if self.is_empty() {
            self.live.shrink();
            self.catch_up.shrink();
        }
        Some(again)
    }

    /// Redis has done the command but for this, which waits for a part of Redis; of one beside the
    /// lanes it is given up. Returns as [`Batch::acknowledge`] does.
    pub fn hand_back(&mut self, id: u64, left: &Deletions, now: Instant) -> Option<Again> {
        let (generations, again) = match (self.in_flight.walk(id), self.in_flight.get(id)) {
            (Some(generations), _) => (generations.to_vec(), Again::Never),
            (_, Some(OnItsWay { of: Some(generation), again, .. })) => (vec![*generation], *again),
            _ => return self.acknowledge(id, now),
        };
        // A walk serves both lanes at once, and what the one waits for the other may.
        for (lane, generation) in generations {
            self.queue_mut(lane).hold(generation, left, again);
        }
        self.next_retry.get_or_insert(now + RETRY);
        self.handed_back.get_or_insert(now);
        self.acknowledge(id, now)
    }

    /// Forgets what waits in a lane. Its points mean nothing any more; the caller reopens the gap
    /// instead.
    pub fn clear(&mut self, lane: Lane) {
        self.queue_mut(lane).clear();
        if self.live.owes_nothing_held() && self.catch_up.owes_nothing_held() {
            (self.handed_back, self.next_retry) = (None, None);
        }
    }

    fn queue(&self, lane: Lane) -> &Queue {
        match lane {
            Lane::Live => &self.live,
            Lane::CatchUp => &self.catch_up,
        }
    }

    fn queue_mut(&mut self, lane: Lane) -> &mut Queue {
        match lane {
            Lane::Live => &mut self.live,
            Lane::CatchUp => &mut self.catch_up,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::in_flight::{IN_FLIGHT_BYTES, PAUSE};
    use super::queue::COMMAND_BYTES;
    use super::*;

    const LIMITS: Limits = Limits { keys_per_command: 2, in_flight: 2, max_pending: 5, slot: None };

    fn key(name: &str) -> Deletion {
        Deletion::Key(name.into())
    }

    fn pattern(text: &str) -> Deletion {
        Deletion::Pattern(text.into())
    }

    fn now() -> Instant {
        Instant::now()
    }

    fn patterns(command: Option<Command>) -> (u64, Vec<String>) {
        match command {
            Some(Command { id, deletions: Deletions::Patterns(patterns) }) => {
                let mut patterns = patterns.to_vec();
                patterns.sort();
                (id, patterns)
            }
            other => panic!("no walk: {other:?}"),
        }
    }

    fn keys(command: Option<Command>) -> (u64, Vec<String>) {
        match command {
            Some(Command { id, deletions: Deletions::Keys(keys) }) => {
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
        let (first, sent) = keys(batch.next_command(now()));
        assert_eq!(sent, ["a"]);
        batch.add(Lane::Live, key("a"));
        let (second, sent) = keys(batch.next_command(now()));
        assert_eq!(sent, ["a"]);
        assert_eq!(batch.next_command(now()), None);
        batch.acknowledge(first, now());
        batch.acknowledge(second, now());
        assert!(batch.is_empty());
    }

    #[test]
    fn a_mark_is_settled_when_everything_before_it_is_acknowledged_in_any_order() {
        let mut batch = Batch::new(LIMITS);
        let nothing = batch.point(Lane::Live);
        assert!(batch.is_settled(nothing));
        for name in ["a", "b", "c"] {
            batch.add(Lane::Live, key(name));
        }
        let point = batch.point(Lane::Live);
        assert!(!batch.is_settled(point), "collected");
        let (first, _) = keys(batch.next_command(now()));
        batch.add(Lane::Live, key("after the point"));
        let (second, _) = keys(batch.next_command(now()));
        batch.acknowledge(second, now());
        assert!(!batch.is_settled(point), "the first is on its way");
        batch.acknowledge(first, now());
        assert!(batch.is_settled(point), "what came after the point does not matter");
        let later = batch.point(Lane::Live);
        assert!(!batch.is_settled(later));
    }

    #[test]
    fn catching_up_leaves_places_to_live_changes() {
        let mut batch = Batch::new(LIMITS);
        for n in 0..4 {
            batch.add(Lane::CatchUp, key(&n.to_string()));
        }
        assert!(batch.next_command(now()).is_some());
        assert_eq!(batch.next_command(now()), None, "half of the places");
        batch.add(Lane::Live, key("live"));
        assert_eq!(keys(batch.next_command(now())).1, ["live"]);
    }

    /// The first byte of a key stands for its slot.
    const CLUSTER: Limits = Limits { slot: Some(|key| key[0].into()), ..LIMITS };

    #[test]
    fn in_a_cluster_the_keys_of_a_slot_go_together_and_neighbours_apart() {
        let mut batch = Batch::new(Limits { max_pending: 100, ..CLUSTER });
        for name in ["c1", "a1", "d1", "b1", "a2", "d2", "c2", "b2"] {
            batch.add(Lane::Live, key(name));
        }
        let sent: Vec<_> = (0..4)
            .map(|_| {
                let (id, sent) = keys(batch.next_command(now()));
                batch.acknowledge(id, now());
                sent
            })
            .collect();
        assert_eq!(sent, [["a1", "a2"], ["c1", "c2"], ["b1", "b2"], ["d1", "d2"]]);
        assert!(batch.is_empty());
    }

    #[test]
    fn in_a_cluster_a_wave_waits_for_the_one_before_it_but_not_for_long() {
        let start = Instant::now();
        let mut batch = Batch::new(CLUSTER);
        batch.add(Lane::Live, key("a"));
        let (first, _) = keys(batch.next_command(start));
        batch.add(Lane::Live, key("b"));
        assert_eq!((batch.next_command(start), batch.due()), (None, Some(start + GATHERED)));
        batch.acknowledge(first, start);
        let (second, _) = keys(batch.next_command(start));
        batch.add(Lane::Live, key("c"));
        batch.add(Lane::CatchUp, key("d"));
        assert_eq!(keys(batch.next_command(start)).1, ["d"], "it is of the other lane");
        batch.acknowledge(second, start);
        assert_eq!(keys(batch.next_command(start)).1, ["c"], "the generation before it is done");

        let mut batch = Batch::new(CLUSTER);
        batch.add(Lane::Live, key("a"));
        keys(batch.next_command(start)); // nobody answers
        batch.add(Lane::Live, key("b"));
        assert_eq!(keys(batch.next_command(start + GATHERED)).1, ["b"]);
        let mut full = Batch::new(CLUSTER);
        full.add(Lane::Live, key("a"));
        keys(full.next_command(start));
        full.add(Lane::Live, key("b"));
        assert_eq!(full.next_command(start), None);
        full.add(Lane::Live, key(&"c".repeat(1 << 20)));
        assert_eq!(keys(full.next_command(start)).1, ["b"], "nothing more would fit");
    }

    #[test]
    fn one_walk_at_a_time_serves_all_patterns_that_wait_and_keys_pass_it() {
        let start = Instant::now();
        let mut batch = Batch::new(Limits { in_flight: 1, ..LIMITS });
        for lane in [Lane::Live, Lane::CatchUp] {
            for name in ["a*", "b*"] {
                batch.add(lane, pattern(name));
            }
        }
        batch.add(Lane::Live, key("k"));
        let (id, walked) = patterns(batch.next_command(start));
        assert_eq!(walked, ["a*", "b*"]);
        let points = [batch.point(Lane::Live), batch.point(Lane::CatchUp)];
        let (other, sent) = keys(batch.next_command(start));
        assert_eq!(sent, ["k"]);
        batch.acknowledge(other, start);
        batch.add(Lane::Live, pattern("c*"));
        batch.add(Lane::Live, pattern("a*"));
        assert_eq!(batch.next_command(start), None, "a walk is under way");
        assert!(!points.iter().any(|point| batch.is_settled(*point)));
        batch.acknowledge(id, start + Duration::from_secs(1));
        assert!(points.iter().all(|point| batch.is_settled(*point)));
        assert_eq!(patterns(batch.next_command(start + Duration::from_secs(2))).1, ["a*", "c*"]);
    }

    #[test]
    fn after_a_walk_there_is_a_pause_as_long_as_it_took() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut batch = Batch::new(LIMITS);
        batch.add(Lane::Live, pattern("a*"));
        let (id, _) = patterns(batch.next_command(start));
        assert_eq!(batch.due(), None);
        batch.add(Lane::Live, pattern("a*"));
        batch.acknowledge(id, after(3));
        assert_eq!(batch.next_command(after(5)), None);
        assert_eq!(batch.due(), Some(after(6)));
        let (id, _) = patterns(batch.next_command(after(6)));
        batch.acknowledge(id, after(600));
        batch.add(Lane::Live, pattern("a*"));
        assert!(
            batch.next_command(after(609)).is_none() && batch.next_command(after(610)).is_some(),
            "no longer than ten seconds"
        );
    }

    #[test]
    fn what_is_handed_back_takes_no_place_is_held_once_and_holds_up_every_later_mark() {
        let start = now();
        let mut batch = Batch::new(LIMITS);
        let left = |keys: &[&str]| {
            Deletions::Keys(Arc::new(keys.iter().map(|key| (*key).to_owned()).collect()))
        };
        for name in ["here", "away"] {
            batch.add(Lane::Live, key(name));
        }
        let first = batch.point(Lane::Live);
        let (id, _) = keys(batch.next_command(start));
        batch.hand_back(id, &left(&["away"]), start);
        for _ in 0..10 {
            batch.add(Lane::Live, key("away"));
            batch.add(Lane::Live, key("other"));
            let (id, sent) = keys(batch.next_command(start));
            assert_eq!(sent, ["away", "other"]);
            batch.hand_back(id, &left(&["away"]), start);
            assert_eq!(batch.waiting(Lane::Live), 1);
        }
        let last = batch.point(Lane::Live);
        assert!(!batch.is_settled(first) && !batch.is_settled(last) && batch.owes_handed_back());
        assert_eq!((batch.next_command(start), batch.due()), (None, Some(start + RETRY)));

        let (again, sent) = keys(batch.next_command(start + RETRY));
        assert_eq!(sent, ["away"]);
        batch.hand_back(again, &left(&["away"]), start + RETRY);
        assert!(!batch.is_settled(first) && batch.handed_back_since() == Some(start));
        let (again, _) = keys(batch.next_command(start + RETRY * 2));
        assert!(!batch.is_settled(first) && batch.owes_handed_back(), "it is on its way");
        batch.acknowledge(again, start + RETRY * 2);
        assert!(
            batch.is_settled(first)
                && batch.is_settled(last)
                && !batch.owes_handed_back()
                && batch.is_empty()
        );
        assert_eq!(batch.live.bytes(), 0);
    }

    #[test]
    fn a_walk_is_handed_back_and_its_lane_can_be_cleared() {
        let start = now();
        let mut batch = Batch::new(LIMITS);
        batch.add(Lane::Live, pattern("a*"));
        let point = batch.point(Lane::Live);
        let (id, _) = patterns(batch.next_command(start));
        batch.hand_back(id, &Deletions::Patterns(Arc::new(vec!["a*".into()])), start);
        batch.add(Lane::Live, pattern("a*"));
        let (id, walked) = patterns(batch.next_command(start + PAUSE.1));
        assert_eq!(walked, ["a*"]);
        assert!(!batch.is_settled(point));
        batch.hand_back(id, &Deletions::Patterns(Arc::new(vec!["a*".into()])), start);
        batch.clear(Lane::Live);
        assert!(
            batch.is_empty()
                && batch.due().is_none()
                && !batch.owes_handed_back()
                && batch.live.bytes() == 0
        );
    }

    #[test]
    fn in_a_cluster_a_lane_is_full_by_its_bytes_alone() {
        let mut batch = Batch::new(CLUSTER);
        let long = "x".repeat(100 << 10);
        for n in 0..10 {
            batch.add(Lane::Live, key(&format!("{n}{long}")));
        }
        assert!(!batch.is_full(Lane::Live), "ten of five");
        batch.add(Lane::Live, key(&format!("last{long}")));
        assert!(batch.is_full(Lane::Live), "more than a megabyte");
    }

    #[test]
    fn a_lane_is_full_by_its_bytes_and_a_command_is_short() {
        let mut batch = Batch::new(Limits {
            keys_per_command: 1_000,
            in_flight: 64,
            max_pending: 1_000,
            slot: None,
        });
        let mut added = 0;
        while !batch.is_full(Lane::Live) {
            batch.add(Lane::Live, key(&format!("{added}{}", "x".repeat(100 << 10))));
            added += 1;
        }
        assert_eq!(added, 11, "of a megabyte");
        let mut on_their_way = Vec::new();
        for n in 0..100 {
            batch.add(Lane::CatchUp, key(&format!("{n}{}", "y".repeat(100 << 10))));
        }
        while let Some(command) = batch.next_command(now()) {
            let bytes = command.deletions.bytes();
            assert!(bytes <= COMMAND_BYTES, "{bytes}");
            on_their_way.push(command);
        }
        let bytes: usize = on_their_way.iter().map(|command| command.deletions.bytes()).sum();
        assert!((IN_FLIGHT_BYTES..IN_FLIGHT_BYTES + COMMAND_BYTES).contains(&bytes), "{bytes}");
        while let Some(command) = on_their_way.pop() {
            batch.acknowledge(command.id, now());
            on_their_way.extend(batch.next_command(now()));
        }
        assert!(
            batch.is_empty()
                && batch.live.bytes() + batch.catch_up.bytes() + batch.in_flight.bytes() == 0
        );
        batch.add(Lane::Live, key(&"z".repeat(COMMAND_BYTES * 2)));
        assert_eq!(keys(batch.next_command(now())).1.len(), 1, "a longer key goes alone");
    }

    #[test]
    fn a_full_lane_says_so_and_can_be_cleared_while_commands_are_on_their_way() {
        let mut batch = Batch::new(LIMITS);
        for n in 0..6 {
            batch.add(Lane::Live, key(&n.to_string()));
        }
        assert!(batch.is_full(Lane::Live) && !batch.is_full(Lane::CatchUp));
        let (id, _) = keys(batch.next_command(now()));
        batch.clear(Lane::Live);
        assert_eq!(batch.waiting(Lane::Live), 0);
        batch.add(Lane::Live, key("new"));
        let point = batch.point(Lane::Live);
        let (new, _) = keys(batch.next_command(now()));
        batch.acknowledge(new, now());
        assert!(!batch.is_settled(point), "an earlier generation is on its way");
        batch.acknowledge(id, now());
        assert!(batch.is_settled(point) && batch.is_empty());
    }
}
