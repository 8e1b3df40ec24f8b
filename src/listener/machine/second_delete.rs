//! The second delete: keys that are deleted once more, some time after they were.
//!
//! A reader that holds no lease may have read the old row before the commit, and store it after the
//! delete. To delete the key again a moment later makes that rarer; nothing is promised by it. A
//! reader of a replica finds the old row there until the replica has replayed the commit. Must
//! hold: no first delete, no heartbeat and no watermark waits for a repeat; what does not fit is
//! deleted once, and counted.

use std::time::{Duration, Instant};

use crate::batch::Again;
use crate::deletion::Deletions;
use crate::messages::RepeatedFor;
use crate::observe::Observation;

use super::Settings;
use super::repeat::{Packed, Repeats};
use super::repeat_filter::RepeatFilter;
use super::replicas::Replicas;

/// See the module.
#[derive(Debug)]
pub(super) struct SecondDeletes {
    by_time: Repeats,
    by_replicas: Replicas,
    said: RepeatFilter, // that some did not fit
}

impl SecondDeletes {
    pub(super) fn new(settings: &Settings, now: Instant) -> Self {
        let by_replicas = Replicas::new(settings.replicas, settings.max_wait, now);
        Self { by_time: Repeats::new(&settings.repeat), by_replicas, said: RepeatFilter::default() }
    }

    /// Other settings, from now on.
    pub(super) fn reconfigure(&mut self, settings: &Settings) {
        self.by_time.set(&settings.repeat);
        self.by_replicas.set(settings.replicas, settings.max_wait);
    }

    /// Keys that wait.
    pub(super) fn waiting(&self) -> usize {
        self.by_time.waiting() + self.by_replicas.waiting()
    }

    /// Redis has deleted these. Returns what there is to say of those that do not fit.
    pub(super) fn deleted(
        &mut self,
        now: Instant,
        deletions: &Deletions,
        again: Again,
    ) -> Option<Observation> {
        let Deletions::Keys(keys) = deletions else { return None };
        let by_time = again == Again::Always && !self.by_time.is_empty();
        let by_replicas = again != Again::Never && self.by_replicas.are_there();
        if !by_time && !by_replicas {
            return None;
        }
        let packed = Packed::new(keys);
        let fits = (!by_time || self.by_time.deleted(now, &packed))
            & (!by_replicas || self.by_replicas.deleted(now, packed));
        (!fits).then(|| Observation::RepeatsDropped {
            keys: keys.len(),
            again: self.said.is_repeat(now, "they do not fit"),
        })
    }

    /// When the next are to be deleted.
    pub(super) fn due(&self) -> Option<Instant> {
        self.by_time.due().into_iter().chain(self.by_replicas.late()).min()
    }

    /// The next ones that may be.
    pub(super) fn next(
        &mut self,
        now: Instant,
        keys_per_command: usize,
    ) -> Option<(Vec<String>, RepeatedFor)> {
        let by_time =
            self.by_time.next(now, keys_per_command).map(|keys| (keys, RepeatedFor::Time));
        by_time.or_else(|| self.by_replicas.next(now, keys_per_command))
    }

    /// When to ask primary and replicas how far they are.
    pub(super) fn ask_due(&self, interval: Duration) -> Option<Instant> {
        self.by_replicas.ask_due(interval)
    }

    /// They are asked.
    pub(super) fn ask(&mut self, now: Instant) {
        self.by_replicas.ask(now);
    }

    /// The primary's position, asked for at this time.
    pub(super) fn note_primary_at(&mut self, asked: Instant, position: u64) {
        self.by_replicas.note_primary_at(asked, position);
    }

    /// What a replica has replayed; none: it does not say.
    pub(super) fn note_replica_at(
        &mut self,
        replica: usize,
        position: Option<u64>,
    ) -> Option<Observation> {
        let lag_bytes = self.by_replicas.note_replica_at(replica, position)?;
        Some(Observation::ReplicaLag { replica, lag_bytes })
    }
}
