//! An open gap: where catching up begins, and what a server may have undone.
//!
//! Must hold: what a gap demands only ever grows until it is closed. A gap in a gap is one gap.

use std::collections::VecDeque;
use std::time::Instant;

use crate::batch::{Lane, Work};
use crate::observe::{Cause, GapSummary, Observation};
use crate::rule::Target;
use crate::watermark::{Checkpoint, Progress, Server, Stored};

use super::{Action, CatchUp, Machine, State};

/// Where catching up begins, from the cheapest to the surest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Resume {
    /// At the checkpoint.
    Checkpoint,
    /// At the checkpoint of `replay.window` ago: Redis may have undone the deletes since.
    Replay,
    /// The same with the whole log: after a fail-over of PostgreSQL lost transactions' xids are given out again.
    ReplayAndLog,
    /// Nowhere: every key is deleted.
    Everything,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Gap {
    pub(super) cause: Cause,
    pub(super) since: Instant,
    pub(super) resume: Resume,
    /// Keys that were deleted lately are deleted once more: PostgreSQL may have undone the commits that they were deleted for.
    pub(super) again: bool,
    pub(super) swept: u64,
    pub(super) logged: u64,
    pub(super) keys: u64,
}

impl Gap {
    pub(super) fn new(cause: Cause, since: Instant) -> Self {
        Self { cause, since, resume: Resume::Checkpoint, again: false, swept: 0, logged: 0, keys: 0 }
    }

    pub(super) fn summary(&self, now: Instant) -> GapSummary {
        GapSummary { cause: self.cause, lasted: now - self.since, swept: self.swept, logged: self.logged, keys: self.keys }
    }
}

/// What was deleted within the last `replay.window`, as far as it fits.
#[derive(Debug, Default)]
pub(super) struct Recent {
    works: VecDeque<(Instant, Work)>,
    keys: usize,
    /// Something younger than the window did not fit.
    is_partial: bool,
}

impl Machine {
    /// What may be stored: nothing while a gap is open.
    pub(super) fn progress(&self) -> Option<Progress> {
        let redis = self.redis.as_ref().map(ToString::to_string);
        self.gap.is_none().then(|| Progress { proven: self.watermark.proven(), redis })
    }

    /// Keeps what Redis has done, within the window and the bound of the batch.
    pub(super) fn remember(&mut self, now: Instant, work: Work) {
        let Recent { works, keys, is_partial } = &mut self.recent;
        *keys += size(&work);
        works.push_back((now, work));
        if self.gap.as_ref().is_some_and(|gap| gap.again) && *keys <= self.settings.limits.max_pending {
            return; // it is needed as it is
        }
        while let Some((at, oldest)) = works.front() {
            let is_old = *at + self.settings.window < now;
            if !is_old && *keys <= self.settings.limits.max_pending {
                break;
            }
            *is_partial = !is_old;
            *keys -= size(oldest);
            works.pop_front();
        }
    }

    /// Another Redis, or the same after a restart: what the last one acknowledged lately may be undone.
    pub(super) fn redis_changed(&mut self, now: Instant) {
        self.say(Observation::RedisChanged);
        self.open_gap(now, crate::observe::Cause::Redis);
        self.demand(Resume::Replay, false);
        if matches!(self.state, State::CatchingUp(_) | State::Listening) {
            self.actions.push(Action::StopSweep);
            self.batch.clear(Lane::CatchUp);
            self.catch_up();
        }
    }

    fn demand(&mut self, resume: Resume, again: bool) {
        if let Some(gap) = &mut self.gap {
            gap.resume = gap.resume.max(resume);
            gap.again |= again;
        }
    }

    /// Is this the PostgreSQL that the progress is about, and has it kept what it told?
    pub(super) fn compare_histories(&mut self, server: Server, stored: Option<&Stored>) {
        let flush = |reason| (Resume::Everything, false, reason);
        let known = self.server.replace(server.clone());
        let remembered = self.watermark.proven().checkpoint.and_then(|checkpoint| checkpoint.watermark);
        let (resume, again, reason) = match (known, stored) {
            (_, None) if remembered.is_some() => flush("its checkpoint is gone, so the database was restored from before it"),
            (_, None) => return,
            (_, Some(stored)) if stored.forgotten => flush("this instance was away for longer than checkpoint.forget_after"),
            (None, Some(stored)) if stored.history != server.history => {
                flush("PostgreSQL failed over or was restored while this instance was away: what was lost is not known")
            }
            (Some(known), Some(stored)) if known.history != server.history => {
                let watermark = stored.proven.checkpoint.and_then(|checkpoint| checkpoint.watermark);
                let is_old = watermark < remembered.map(|remembered| remembered.earlier(self.settings.window));
                if is_old || system(&known) != system(&server) {
                    flush("the database was restored to an earlier time, or is another one")
                } else {
                    let reason = "failed over; keys deleted in the last replay.window are deleted again, older lost commits are not known";
                    (Resume::ReplayAndLog, true, reason)
                }
            }
            (Some(known), Some(_)) if known.started != server.started => {
                let reason =
                    "restarted; keys deleted in the last replay.window are deleted again, in case it lost commits (synchronous_commit)";
                (Resume::Checkpoint, true, reason)
            }
            _ => return,
        };
        self.demand(resume, again);
        if resume == Resume::Everything {
            self.say(Observation::Flushed { reason });
        } else {
            let reason = if self.recent.is_partial {
                "its last commits may be lost, and not all of their keys are remembered (batch.max_pending)"
            } else {
                reason
            };
            self.say(Observation::PostgresChanged { reason, again: self.recent.keys });
        }
    }

    /// Redis answers, NOTIFY arrives: read, or delete, what the gap demands.
    pub(super) fn begin_catching_up(&mut self) {
        let (resume, again) = self.gap.as_ref().map_or((Resume::Checkpoint, false), |gap| (gap.resume, gap.again));
        if again {
            for (_, work) in &self.recent.works {
                let targets: Vec<Target> = match work {
                    Work::Keys(keys) => keys.iter().cloned().map(Target::Key).collect(),
                    Work::Pattern(pattern) => vec![Target::Pattern(pattern.clone())],
                };
                for target in targets {
                    self.batch.add(Lane::CatchUp, target);
                }
            }
        }
        let proven = self.watermark.proven();
        let from = match resume {
            Resume::Everything => {
                let watches: Vec<i32> = self.rules.keys().copied().collect();
                watches.into_iter().for_each(|watch| self.widen(watch));
                let mark = self.batch.mark(Lane::CatchUp);
                return self.enter(State::CatchingUp(CatchUp::Settling(mark)));
            }
            Resume::Checkpoint => proven.checkpoint,
            Resume::Replay => proven.replay,
            Resume::ReplayAndLog => proven.replay.map(|replay| Checkpoint { log_xmin: 0, ..replay }),
        };
        self.actions.push(Action::Sweep(from));
        self.enter(State::CatchingUp(CatchUp::Sweeping));
    }
}

fn size(work: &Work) -> usize {
    match work {
        Work::Keys(keys) => keys.len(),
        Work::Pattern(_) => 1,
    }
}

/// The system identifier in a history.
fn system(server: &Server) -> &str {
    server.history.split('/').next().unwrap_or_default()
}
