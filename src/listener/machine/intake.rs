//! What comes in from PostgreSQL, and the keys that it makes stale.
//!
//! Must hold: a change is collected, or the sweep to come will find it; what cannot be believed is counted, and nothing else.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::batch::Lane;
use crate::change::{self, Announcement, Change, Malformed, Row};
use crate::observe::Observation;
use crate::rule::{Rule, Rules, Target};

use super::{CatchUp, Machine, State};

/// Payloads that are not ours may come by the thousand: after the first, they are told of in sums.
const SKIPPED_INTERVAL: Duration = Duration::from_secs(10);

/// What was skipped and not told yet.
#[derive(Debug, Default)]
pub(super) struct Skipped {
    count: u64,
    reason: String,
    told: Option<Instant>,
}

impl Machine {
    /// A notification, in the order of its arrival. Call [`Machine::handle`] after the last of a burst.
    pub fn notified(&mut self, now: Instant, backend: u32, payload: &str) {
        self.heart.heard = now;
        let announcement = change::parse(payload);
        let believed = announcement.and_then(|announcement| match announcement {
            Announcement::Heartbeat(n) => {
                // Any role can send one; only our own proves anything. Another instance's is not for us.
                if backend == self.heart.backend && n <= self.heart.last {
                    self.beat_came_back(n);
                }
                Ok(())
            }
            Announcement::Watches => {
                self.reading.want();
                Ok(())
            }
            Announcement::Bell => {
                self.log_is_rung(now);
                Ok(())
            }
            Announcement::Wait => {
                self.is_awaited();
                Ok(())
            }
            Announcement::Probe(probe) => {
                self.probed(&probe);
                Ok(())
            }
            Announcement::Change(change) => {
                let changed = self.announced(payload, &change);
                self.take_sample(now);
                self.expect_logged(now);
                changed
            }
        });
        self.believe(believed);
    }

    /// A key beside this instance's canary, put there by `unstale check`: that it goes proves that this listener hears this database
    /// and deletes from that Redis.
    fn probed(&mut self, probe: &str) {
        let key = format!("unstale:canary:{probe}");
        let is_ours = key.strip_prefix(&self.settings.canary).is_some_and(|rest| rest.starts_with(':'));
        if is_ours && self.state != State::CatchingUp(CatchUp::AwaitingRedis) {
            self.batch.add(Lane::Live, Target::Key(key));
        }
    }

    /// A change, which is held as well while its watch may be another than the known one.
    fn announced(&mut self, payload: &str, change: &Change<'_>) -> Result<(), Malformed> {
        let Some(needs) = self.reading.awaited() else { return self.changed(Lane::Live, change) };
        if self.state == State::CatchingUp(CatchUp::AwaitingRedis) {
            return Ok(()); // the sweep to come finds it
        }
        let is_known = self.rules.get(&change.watch).is_some_and(|rule| change.rev <= rule.rev);
        self.reading.hold(needs, change.watch, payload, is_known);
        if is_known { self.changed(Lane::Live, change) } else { Ok(()) }
    }

    /// Follows one change at a time on its way to Redis.
    pub(super) fn take_sample(&mut self, now: Instant) {
        if self.sample.is_none() {
            self.sample = Some((now, self.batch.mark(Lane::Live)));
        }
    }

    /// A row that a sweep found, as `unstale.row_N()` writes it.
    pub fn swept(&mut self, watch: i32, row: &str) {
        let Some(rule) = self.rules.get(&watch) else { return };
        let Ok(row) = Row::parse(row) else { return self.widen(watch) };
        let tally = self.tallies.entry(watch).or_default();
        tally.swept += 1;
        let keys: u64 = rule.row(&row).map(|target| u64::from(self.batch.add(Lane::CatchUp, target))).sum();
        tally.keys += keys;
        if let Some(gap) = &mut self.gap {
            gap.swept += 1;
            gap.keys += keys;
        }
    }

    /// A row of the log, met while catching up.
    pub fn swept_log(&mut self, change: &str) {
        let keys_before = self.batch.waiting(Lane::CatchUp);
        self.logged(Lane::CatchUp, change);
        if let Some(gap) = &mut self.gap {
            gap.logged += 1;
            gap.keys += (self.batch.waiting(Lane::CatchUp) - keys_before) as u64;
        }
    }

    /// A table that cannot be swept: all its keys are deleted.
    pub fn widen(&mut self, watch: i32) {
        self.widen_in(Lane::CatchUp, watch);
    }

    pub(super) fn widen_in(&mut self, lane: Lane, watch: i32) {
        if let Some(rule) = self.rules.get(&watch) {
            for target in rule.everything() {
                self.batch.add(lane, target);
            }
        }
    }

    pub(super) fn changed(&mut self, lane: Lane, change: &Change<'_>) -> Result<(), Malformed> {
        let rule = self.rules.get(&change.watch).ok_or(Malformed::UnknownWatch)?;
        if lane == Lane::Live && self.state == State::CatchingUp(CatchUp::AwaitingRedis) {
            return Ok(()); // the sweep to come finds it
        }
        let mut keys = 0;
        rule.stale(change, |target| keys += u64::from(self.batch.add(lane, target)))?;
        let tally = self.tallies.entry(change.watch).or_default();
        tally.changes += u64::from(lane == Lane::Live);
        tally.keys += keys;
        Ok(())
    }

    /// A change as the log holds it.
    pub(super) fn logged(&mut self, lane: Lane, change: &str) {
        self.logged_as(lane, change::parse(change));
    }

    /// The same, parsed.
    pub(super) fn logged_as(&mut self, lane: Lane, parsed: Result<Announcement<'_>, Malformed>) {
        let believed = match parsed {
            Ok(Announcement::Change(change)) => match self.changed(lane, &change) {
                Err(Malformed::UnknownWatch) => Ok(()), // ended long ago, and its keys were deleted then
                result => result,
            },
            Ok(_) => Err(Malformed::Meaningless),
            Err(malformed) => Err(malformed),
        };
        self.believe(believed);
    }

    pub(super) fn believe(&mut self, result: Result<(), Malformed>) {
        if let Err(malformed) = result {
            self.skipped.count += 1;
            if self.skipped.reason.is_empty() {
                self.skipped.reason = malformed.to_string();
            }
        }
    }

    pub(super) fn tell_skipped(&mut self, now: Instant) {
        if self.skipped.count > 0 && self.skipped.told.is_none_or(|told| now >= told + SKIPPED_INTERVAL) {
            let Skipped { count, reason, .. } = std::mem::replace(&mut self.skipped, Skipped { told: Some(now), ..Skipped::default() });
            self.say(Observation::PayloadsSkipped { count, reason });
        }
    }

    /// Returns the watches that are others than they were.
    pub(super) fn set_rules(&mut self, rules: Vec<Rule>) -> BTreeSet<i32> {
        let new: Rules = rules.into_iter().map(|rule| (rule.watch, rule)).collect();
        for ended in new.values().filter(|rule| rule.ended) {
            if self.rules.get(&ended.watch).is_some_and(|known| !known.ended) {
                self.say(Observation::WatchEnded { table: ended.table.clone() });
            }
        }
        let differs = |(watch, rule): &(&i32, &Rule)| self.rules.get(watch) != Some(rule);
        let changed: BTreeSet<i32> = new.iter().filter(differs).map(|(watch, _)| *watch).collect();
        if new != self.rules {
            if !matches!(self.state, State::Connecting { .. }) {
                self.say(Observation::WatchesChanged { watches: in_force(&new) });
            }
            self.rules = new;
        }
        changed
    }
}

/// How many of them are watches in force.
pub(super) fn in_force(rules: &Rules) -> usize {
    rules.values().filter(|rule| !rule.ended).count()
}
