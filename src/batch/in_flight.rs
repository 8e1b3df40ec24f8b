//! What Redis has not answered yet: commands of keys, in places, and one walk for patterns, which
//! takes none. Pure.

use crate::deletion::Deletions;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{Again, Lane, Limits};

/// Bytes of keys on their way at the same time. The sink holds each of them up to three times:
/// ours, fred's, and encoded.
pub(super) const IN_FLIGHT_BYTES: usize = 4 << 20;

/// One place of so many is for commands beside the lanes.
const ASIDE: usize = 4;

/// The pause after a walk, at the least and at the most.
pub(super) const PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(10));

/// See the module.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    commands: HashMap<u64, OnItsWay>,
    bytes: usize,
    walk: Option<Walk>,
    next_walk: Option<Instant>, // not before
    last_id: u64,
}

/// A command of keys.
#[derive(Debug)]
pub(super) struct OnItsWay {
    /// Its generation; none: beside the lanes.
    pub(super) of: Option<(Lane, u64)>,
    /// What becomes of its keys later.
    pub(super) again: Again,
    began: Instant,
    bytes: usize,
}

/// The walk that is under way, and the generations that its patterns are of.
#[derive(Debug)]
struct Walk {
    id: u64,
    began: Instant,
    generations: Vec<(Lane, u64)>,
}

impl InFlight {
    /// Commands that Redis has not answered.
    pub(super) fn count(&self) -> usize {
        self.commands.len() + usize::from(self.walk.is_some())
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Is there nothing but what nothing waits for?
    pub(super) fn is_empty(&self) -> bool {
        self.walk.is_none() && self.commands.values().all(|command| command.of.is_none())
    }

    fn has_room(&self, limits: &Limits) -> bool {
        self.commands.len() < limits.in_flight && self.bytes < IN_FLIGHT_BYTES
    }

    /// May one more command of the lane be on its way? Catching up has half of the places.
    pub(super) fn has_place(&self, lane: Lane, limits: &Limits) -> bool {
        self.has_room(limits)
            && (lane == Lane::Live || self.of_lane(lane).count() < limits.in_flight.div_ceil(2))
    }

    /// May one more command beside the lanes?
    pub(super) fn has_place_aside(&self, limits: &Limits) -> bool {
        let aside = self.commands.values().filter(|command| command.of.is_none()).count();
        aside < limits.in_flight.div_ceil(ASIDE) && self.has_room(limits)
    }

    fn of_lane(&self, lane: Lane) -> impl Iterator<Item = &OnItsWay> {
        self.commands
            .values()
            .filter(move |command| command.of.is_some_and(|(other, _)| other == lane))
    }

    /// When the lane's oldest command was sent.
    pub(super) fn oldest(&self, lane: Lane) -> Option<Instant> {
        self.of_lane(lane).map(|command| command.began).min()
    }

    /// A command of keys is sent; its number.
    pub(super) fn begin(
        &mut self,
        of: Option<(Lane, u64)>,
        again: Again,
        deletions: &Deletions,
        began: Instant,
    ) -> u64 {
        self.last_id += 1;
        self.bytes += deletions.bytes();
        self.commands.insert(self.last_id, OnItsWay { of, again, began, bytes: deletions.bytes() });
        self.last_id
    }

    /// One that is not answered yet.
    pub(super) fn get(&self, id: u64) -> Option<&OnItsWay> {
        self.commands.get(&id)
    }

    /// It is answered.
    pub(super) fn end(&mut self, id: u64) -> Option<OnItsWay> {
        let command = self.commands.remove(&id)?;
        self.bytes -= command.bytes;
        Some(command)
    }

    /// When a walk may begin; none: one is under way.
    pub(super) fn next_walk(&self, now: Instant) -> Option<Instant> {
        if self.walk.is_some() { None } else { Some(self.next_walk.unwrap_or(now)) }
    }

    /// When the pause after the last walk ends.
    pub(super) fn walk_pause(&self) -> Option<Instant> {
        self.next_walk.filter(|_| self.walk.is_none())
    }

    /// A walk begins, for patterns of these generations; its number.
    pub(super) fn begin_walk(&mut self, generations: Vec<(Lane, u64)>, now: Instant) -> u64 {
        self.last_id += 1;
        self.walk = Some(Walk { id: self.last_id, began: now, generations });
        self.last_id
    }

    /// The generations of the walk, if this is it.
    pub(super) fn walk(&self, id: u64) -> Option<&[(Lane, u64)]> {
        self.walk.as_ref().filter(|walk| walk.id == id).map(|walk| walk.generations.as_slice())
    }

    /// The walk has ended, if this is it.
    pub(super) fn end_walk(&mut self, id: u64, now: Instant) -> Option<Vec<(Lane, u64)>> {
        let Walk { began, generations, .. } = self.walk.take_if(|walk| walk.id == id)?;
        self.next_walk = Some(now + now.saturating_duration_since(began).clamp(PAUSE.0, PAUSE.1));
        Some(generations)
    }
}
