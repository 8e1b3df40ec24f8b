//! What is stale among candidates: a first look at each, a second one at what differs, and a delete
//! for what is found, if that is wanted.
//!
//! Must hold: a mismatch counts only after a second look; bounded work at once, at no more than the
//! rate; each key counts once.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use tokio::time::{Instant, sleep, sleep_until};

use crate::batch::Command;
use crate::deletion::Deletions;
use crate::sink::worker::{Report as Done, Workers};

use super::look::{self, Candidate, Difference, Look, Outcome, Subject};
use super::render::{self, Program};
use super::report::Report;

/// Keys that are looked at together.
pub(super) const BATCH: usize = 5_000;

/// Values that are held for a program together: each may be as long as Redis lets it.
const RENDERED: usize = 20;

/// Suspects that wait for their second look.
const MOST_SUSPECTS: usize = 20_000;

/// Looks at a suspect, each after [`Ways::settle`], if one of its sides has changed each time.
const LOOKS: u32 = 5;

/// How long Redis may fail to delete what is healed: long enough for a fail-over.
const REDIS_PATIENCE: Duration = Duration::from_secs(15);

/// How a judge works.
pub(super) struct Ways {
    /// What the application would cache, instead of versions.
    pub(super) program: Option<Program>,
    /// Deletes what is stale; none: nothing is healed.
    pub(super) workers: Option<Workers>,
    pub(super) keys_per_command: usize,
    /// How long a change may take before what is cached counts as stale.
    pub(super) settle: Duration,
    /// Keys a second.
    pub(super) rate: Option<u32>,
}

/// See the module.
pub(super) struct Judge {
    pub(super) look: Look,
    pub(super) report: Report,
    ways: Ways,
    began: Instant,
    looked: u64,
    known: HashSet<u64>, // digests of keys that were looked at, where each is to be looked at once
    hasher: RandomState,
    suspects: Vec<(Candidate, Suspicion)>,
    ripe: Instant,       // when the last suspect may be looked at again
    stale: HashSet<u64>, // digests of keys, because SCAN may bring one twice
}

/// What is cached under a key, and what would be: are they the same, and which two are they? Values
/// may be long, so they are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rendering {
    is_same: bool,
    digest: u64,
}

/// Why a key is suspected.
enum Suspicion {
    Version(Box<Difference>),
    Rendered(Rendering),
}

impl Judge {
    pub(super) fn new(look: Look, ways: Ways, report: Report) -> Self {
        let now = Instant::now();
        Self {
            look,
            report,
            ways,
            began: now,
            looked: 0,
            known: HashSet::new(),
            hasher: RandomState::new(),
            suspects: Vec::new(),
            ripe: now,
            stale: HashSet::new(),
        }
    }

    /// Does a program say what would be cached?
    pub(super) fn has_program(&self) -> bool {
        self.ways.program.is_some()
    }

    /// Looks at them. `once`: not at those that were looked at already.
    pub(super) async fn judge(
        &mut self,
        subjects: &[Subject],
        mut batch: Vec<Candidate>,
        once: bool,
    ) -> anyhow::Result<()> {
        if once {
            batch.retain(|candidate| self.known.insert(self.hasher.hash_one(&candidate.key)));
        }
        if batch.is_empty() {
            return Ok(());
        }
        let began = Instant::now();
        self.looked += batch.len() as u64;
        let found = self.first_look(subjects, &batch).await?;
        for (candidate, suspicion) in batch.into_iter().zip(found) {
            if let Some(suspicion) = suspicion {
                self.suspects.push((candidate, suspicion));
            }
        }
        self.ripe = Instant::now() + self.ways.settle;
        self.report.progress(self.looked);
        if self.suspects.len() >= MOST_SUSPECTS {
            self.confirm(subjects).await?;
        }
        match self.ways.rate {
            Some(rate) => {
                sleep_until(
                    self.began + Duration::from_secs_f64(self.looked as f64 / f64::from(rate)),
                )
                .await
            }
            None => sleep(began.elapsed() / 8).await, // one question at a time, and a rest
        }
        Ok(())
    }

    /// What is to be looked at again, and why. The others are counted.
    async fn first_look(
        &mut self,
        subjects: &[Subject],
        batch: &[Candidate],
    ) -> anyhow::Result<Vec<Option<Suspicion>>> {
        let mut found = Vec::with_capacity(batch.len());
        if self.has_program() {
            for (candidate, rendering) in batch.iter().zip(self.rendered(batch).await?) {
                let count = &mut self.report.tables[candidate.subject].count;
                count.keys += 1;
                count.compared += u64::from(rendering.is_some());
                found.push(
                    rendering.filter(|rendering| !rendering.is_same).map(Suspicion::Rendered),
                );
            }
            return Ok(found);
        }
        for (candidate, outcome) in batch.iter().zip(self.look.at(subjects, batch).await?) {
            let count = &mut self.report.tables[candidate.subject].count;
            count.keys += 1;
            count.compared += u64::from(matches!(outcome, Outcome::Same | Outcome::Differs(_)));
            count.unreadable += u64::from(outcome == Outcome::Unreadable);
            found.push(match outcome {
                Outcome::Differs(difference) => Some(Suspicion::Version(difference)),
                _ => None,
            });
        }
        Ok(found)
    }

    /// What is cached under each, and what the program would cache; `None`: nothing is cached.
    async fn rendered(&mut self, batch: &[Candidate]) -> anyhow::Result<Vec<Option<Rendering>>> {
        let mut renderings = Vec::with_capacity(batch.len());
        let Some(program) = &mut self.ways.program else { bail!("there is no program") };
        for chunk in batch.chunks(RENDERED) {
            let keys: Vec<&str> = chunk.iter().map(|candidate| candidate.key.as_str()).collect();
            for (candidate, cached) in chunk.iter().zip(self.look.raw(&keys).await?) {
                let Some(cached) = cached else {
                    renderings.push(None);
                    continue;
                };
                let rendered = program.value(&candidate.key).await?;
                let is_same = render::is_same(&cached, rendered.as_deref());
                renderings.push(Some(Rendering {
                    is_same,
                    digest: self.hasher.hash_one((cached, rendered)),
                }));
            }
        }
        Ok(renderings)
    }

    /// Looks again at all suspects, once enough time has passed since the last was found.
    pub(super) async fn confirm(&mut self, subjects: &[Subject]) -> anyhow::Result<()> {
        for _ in 0..LOOKS {
            if self.suspects.is_empty() {
                return Ok(());
            }
            sleep_until(self.ripe).await;
            let suspects = std::mem::take(&mut self.suspects);
            let mut stale = Vec::new();
            for chunk in in_chunks(suspects) {
                let (candidates, suspicions): (Vec<_>, Vec<_>) = chunk.into_iter().unzip();
                let again = self.second_look(subjects, &candidates, suspicions).await?;
                for (candidate, verdict) in candidates.into_iter().zip(again) {
                    match verdict {
                        Ok(true) => stale.push(candidate),
                        Ok(false) => {}
                        Err(suspicion) => self.suspects.push((candidate, suspicion)),
                    }
                }
            }
            self.ripe = Instant::now() + self.ways.settle;
            self.found(stale).await?;
        }
        for (candidate, _) in self.suspects.drain(..) {
            self.report.tables[candidate.subject].count.unsettled += 1;
        }
        Ok(())
    }

    /// Is each stale? `Err`: something has changed, and it is to be looked at again.
    async fn second_look(
        &mut self,
        subjects: &[Subject],
        candidates: &[Candidate],
        suspicions: Vec<Suspicion>,
    ) -> anyhow::Result<Vec<Result<bool, Suspicion>>> {
        if self.ways.program.is_some() {
            let renderings = self.rendered(candidates).await?;
            let verdict =
                |(suspicion, later): (Suspicion, Option<Rendering>)| match (suspicion, later) {
                    (_, None | Some(Rendering { is_same: true, .. })) => Ok(false),
                    (Suspicion::Rendered(first), Some(later)) if first == later => Ok(true),
                    (_, Some(later)) => Err(Suspicion::Rendered(later)),
                };
            return Ok(suspicions.into_iter().zip(renderings).map(verdict).collect());
        }
        let outcomes = self.look.at(subjects, candidates).await?;
        let verdict = |(suspicion, outcome): (Suspicion, Outcome)| match (suspicion, outcome) {
            (Suspicion::Version(first), outcome) => {
                match (look::is_stale(&first, &outcome), outcome) {
                    (None, Outcome::Differs(later)) => Err(Suspicion::Version(later)),
                    (verdict, _) => Ok(verdict == Some(true)),
                }
            }
            (Suspicion::Rendered(_), _) => Ok(false),
        };
        Ok(suspicions.into_iter().zip(outcomes).map(verdict).collect())
    }

    /// Counts what is stale, and heals it.
    async fn found(&mut self, mut stale: Vec<Candidate>) -> anyhow::Result<()> {
        stale.retain(|candidate| self.stale.insert(self.hasher.hash_one(&candidate.key)));
        for candidate in &stale {
            self.report.tables[candidate.subject].stale(candidate.template);
        }
        let Some(workers) = &mut self.ways.workers else { return Ok(()) };
        for chunk in stale.chunks(self.ways.keys_per_command) {
            let keys = chunk.iter().map(|candidate| candidate.key.clone()).collect();
            self.report.healed += delete(workers, Deletions::Keys(Arc::new(keys))).await?;
        }
        Ok(())
    }
}

/// In the order in which they were found.
fn in_chunks<T>(mut all: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    std::iter::from_fn(move || {
        let rest = all.split_off(all.len().min(BATCH));
        let chunk = std::mem::replace(&mut all, rest);
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// Deletes, and waits for it. Returns how many were there.
async fn delete(workers: &mut Workers, deletions: Deletions) -> anyhow::Result<u64> {
    let began = Instant::now();
    let mut existed = 0;
    workers.begin(Command { id: 0, deletions });
    loop {
        let (reason, left) = match workers.next().await {
            Done::Done { done, .. } => {
                existed += done.existed;
                match done.delivered.left {
                    None => return Ok(existed),
                    Some(left) => (left.reason, Some(left.deletions)),
                }
            }
            Done::Failed { reason, .. } => (reason, None),
        };
        if began.elapsed() > REDIS_PATIENCE {
            bail!(reason);
        }
        if let Some(deletions) = left {
            sleep(Duration::from_millis(250)).await;
            workers.begin(Command { id: 0, deletions });
        }
    }
}
