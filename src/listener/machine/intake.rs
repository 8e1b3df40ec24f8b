//! What changes and rows mean, by the rules of the watches: keys that wait in the batch, and
//! numbers for the metrics.
//!
//! Must hold: what cannot be believed is counted, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::batch::{Again, Batch, Lane};
use crate::change::{Change, Malformed, Row};
use crate::observe::Observation;
use crate::rule::{Rule, Rules};

use super::Tally;

/// Payloads that are not ours may come by the thousand: after the first, they are reported in sums.
const SKIPPED_INTERVAL: Duration = Duration::from_secs(10);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Intake {
    rules: Rules,
    tallies: BTreeMap<i32, Tally>,
    skipped: Skipped,
}

/// What was skipped and not reported yet.
#[derive(Debug, Default)]
struct Skipped {
    count: u64,
    reason: String, // of the first
    due: Option<Instant>,
    reported: Option<Instant>,
}

/// How rules differ from those of before.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    /// Watches that are new, or others.
    pub(super) changed: BTreeSet<i32>,
    /// Tables whose watch is in force no more.
    pub(super) ended: Vec<String>,
    /// Is anything different, also a watch that is gone?
    pub(super) is_any: bool,
}

impl Intake {
    /// With these rules.
    pub(crate) fn new(rules: Vec<Rule>) -> Self {
        let mut intake = Self::default();
        intake.set_rules(rules);
        intake
    }

    /// These rules are in force.
    pub(super) fn set_rules(&mut self, rules: Vec<Rule>) -> Difference {
        let new: Rules = rules.into_iter().map(|rule| (rule.watch, rule)).collect();
        let has_ended = |rule: &&Rule| {
            rule.ended && self.rules.get(&rule.watch).is_some_and(|known| !known.ended)
        };
        let ended = new.values().filter(has_ended).map(|rule| rule.table.clone()).collect();
        let differs = |(watch, rule): &(&i32, &Rule)| self.rules.get(watch) != Some(rule);
        let changed = new.iter().filter(differs).map(|(watch, _)| *watch).collect();
        let is_any = new != self.rules;
        self.rules = new;
        Difference { changed, ended, is_any }
    }

    /// How many watches are in force.
    pub(super) fn in_force(&self) -> usize {
        self.rules.values().filter(|rule| !rule.ended).count()
    }

    /// All watches, also ended ones.
    pub(crate) fn watches(&self) -> Vec<i32> {
        self.rules.keys().copied().collect()
    }

    /// A watch's table.
    pub(crate) fn table(&self, watch: i32) -> Option<&str> {
        self.rules.get(&watch).map(|rule| rule.table.as_str())
    }

    /// Is the watch known in this revision, or a later one?
    pub(super) fn knows(&self, watch: i32, rev: i32) -> bool {
        self.rules.get(&watch).is_some_and(|rule| rev <= rule.rev)
    }

    /// What a change of this watch is without collecting it.
    pub(super) fn is_of_a_watch(&self, watch: i32) -> Result<(), Malformed> {
        if self.rules.contains_key(&watch) { Ok(()) } else { Err(Malformed::UnknownWatch) }
    }

    /// Collects what a change makes stale.
    pub(crate) fn change(
        &mut self,
        batch: &mut Batch,
        lane: Lane,
        change: &Change<'_>,
    ) -> Result<(), Malformed> {
        let rule = self.rules.get(&change.watch).ok_or(Malformed::UnknownWatch)?;
        let again = again(rule);
        let mut keys = 0;
        rule.stale(change, |target| keys += u64::from(batch.add_again(lane, target, again)))?;
        let tally = self.tallies.entry(change.watch).or_default();
        tally.changes += u64::from(lane == Lane::Live);
        tally.keys += keys;
        Ok(())
    }

    /// Collects what a swept row makes stale; how many keys are new.
    pub(crate) fn row(&mut self, batch: &mut Batch, lane: Lane, watch: i32, row: &str) -> u64 {
        let Some(rule) = self.rules.get(&watch) else { return 0 };
        let Ok(row) = Row::parse(row) else {
            self.everything(batch, lane, watch);
            return 0;
        };
        let again = again(rule);
        let keys =
            rule.row(&row).map(|target| u64::from(batch.add_again(lane, target, again))).sum();
        let tally = self.tallies.entry(watch).or_default();
        tally.swept += 1;
        tally.keys += keys;
        keys
    }

    /// Collects all keys of a watch.
    pub(crate) fn everything(&self, batch: &mut Batch, lane: Lane, watch: i32) {
        for target in self.rules.get(&watch).into_iter().flat_map(Rule::everything) {
            batch.add(lane, target);
        }
    }

    /// Counts what cannot be believed.
    pub(super) fn believe(&mut self, now: Instant, result: Result<(), Malformed>) {
        if let Err(malformed) = result {
            let skipped = &mut self.skipped;
            skipped.count += 1;
            if skipped.count == 1 {
                skipped.reason = malformed.to_string();
                skipped.due =
                    Some(skipped.reported.map_or(now, |reported| reported + SKIPPED_INTERVAL));
            }
        }
    }

    /// When what was skipped is to be reported.
    pub(super) fn report_due(&self) -> Option<Instant> {
        self.skipped.due
    }

    /// Reports it.
    pub(super) fn report(&mut self, now: Instant) -> Observation {
        let Skipped { count, reason, .. } = std::mem::replace(
            &mut self.skipped,
            Skipped { reported: Some(now), ..Skipped::default() },
        );
        Observation::PayloadsSkipped { count, reason }
    }

    /// What was counted since the last call, by watch.
    pub(super) fn take_tallies(&mut self) -> BTreeMap<i32, Tally> {
        std::mem::take(&mut self.tallies)
    }
}

/// Is what this rule deletes deleted once more?
fn again(rule: &Rule) -> Again {
    if rule.leased { Again::Replicas } else { Again::Always }
}
