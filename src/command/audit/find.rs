//! Where candidates come from: rows of the tables, and keys that are found in Redis. Each is handed
//! to the judge, a batch at a time.
//!
//! Must hold: both servers are asked one question at a time; what is held of the rows and keys is
//! bounded.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use anyhow::{Context as _, bail};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::audit::invert::Obscure;
use crate::change::{self, Announcement, What};
use crate::messages::Swept;
use crate::pg::Postgres;
use crate::pg::audit::Rows;
use crate::pg::sweep::{self, ByHand};
use crate::watermark::{Checkpoint, PgTime, Snapshot};

use super::judge::{BATCH, Judge};
use super::look::{self, Candidate, Subject};
use super::report::note;

/// Blocks that are read together.
const BLOCKS: i64 = 64;

/// Rows of a page of those that changed since a time: few enough that a page is kept here, and
/// holds no snapshot while its keys are looked at (src/pg/sweep.rs), enough that a table without an
/// index is not read for each handful.
const PAGE_ROWS: u32 = 10_000;

/// What changed in it is looked at.
pub(super) struct Stretch {
    /// Where the sweep reads, on connections of its own.
    pub(super) postgres: Postgres,
    pub(super) from: PgTime,
    /// What changes faster than it is looked at ends here.
    pub(super) until: PgTime,
}

/// See the module.
pub(super) struct Search<'a> {
    pub(super) subjects: &'a [Subject],
    pub(super) judge: Judge,
    random: RandomState,
}

impl<'a> Search<'a> {
    pub(super) fn new(subjects: &'a [Subject], judge: Judge) -> Self {
        Self { subjects, judge, random: RandomState::new() }
    }

    /// Rows, and their keys. Of all, only those whose keys are not found from the other side.
    pub(super) async fn forward(&mut self, n: usize, sample: Option<usize>) -> anyhow::Result<()> {
        let subject = &self.subjects[n];
        let is_adjacent =
            |template: usize| matches!(subject.inverters[template], Err(Obscure::Adjacent));
        let Some(sample) = sample else {
            if !(0..subject.keys.len()).any(is_adjacent) {
                return Ok(());
            }
            for first in (0..subject.blocks).step_by(usize::try_from(BLOCKS)?) {
                self.rows(n, &Rows::Blocks(first, BLOCKS), is_adjacent).await?;
            }
            return Ok(());
        };
        if subject.has_stamp {
            self.rows(n, &Rows::Recent(i64::try_from(sample)?), |_| true).await?;
        }
        // Random blocks, each at most once, until there are enough rows.
        let (mut rows, mut seen, mut random) =
            (0, HashSet::new(), self.random.hash_one(&subject.table));
        let blocks = u64::try_from(subject.blocks)?;
        while rows < sample && (seen.len() as u64) < blocks {
            let window = BLOCKS.unsigned_abs().min(blocks);
            let block = if blocks <= window { seen.len() as u64 } else { random % blocks };
            random = self.random.hash_one(random);
            if seen.insert(block) {
                rows += self.rows(n, &Rows::Blocks(i64::try_from(block)?, 1), |_| true).await?;
            }
        }
        Ok(())
    }

    /// Rows stamped in this stretch and changes that the log still holds, as a sweep finds them. Of
    /// a watch without stamps a sample: nobody can say which of its rows have changed.
    pub(super) async fn since(
        &mut self,
        stretch: Stretch,
        chosen: &[usize],
        sample: usize,
    ) -> anyhow::Result<()> {
        let subjects = self.subjects;
        for &n in chosen {
            let Subject { table, has_stamp, .. } = &subjects[n];
            if *has_stamp {
                self.judge.report.tables[n].is_limited = true;
                continue;
            }
            let instead =
                if self.judge.has_program() { "none of them is" } else { "a sample of them is" };
            note(&format!(
                "{table} has no column that says when a row changed, so that --since does not limit its rows: {instead} looked at"
            ));
            if !self.judge.has_program() {
                self.forward(n, Some(sample)).await?;
            }
        }
        let places: HashMap<i32, usize> = chosen.iter().map(|&n| (subjects[n].watch, n)).collect();
        let from = sweep::From {
            checkpoint: Some(Checkpoint {
                watermark: Some(stretch.from),
                log: Snapshot::nothing(),
            }),
            done: HashMap::new(),
            log: None,
            by_hand: Some(ByHand {
                watches: places.keys().copied().collect(),
                until: Some(stretch.until),
            }),
            page_timeout: sweep::PAGE_TIMEOUT,
        };
        let (out, mut swept) = mpsc::channel(1);
        tokio::spawn(sweep::run(stretch.postgres, from, PAGE_ROWS, out));
        let mut batch = Vec::new();
        while let Some(swept) = swept.recv().await {
            match swept {
                Swept::Rows(watch, rows) => {
                    let Some(&n) = places.get(&watch) else { continue };
                    batch.extend(
                        rows.iter().flat_map(|image| subjects[n].candidates(n, image, |_| true)),
                    );
                }
                Swept::Log(changes) => batch
                    .extend(changes.iter().flat_map(|change| logged(subjects, &places, change))),
                Swept::Unreadable { watch, reason, .. } => {
                    drop(self.judge.look.failed.insert(watch, reason))
                }
                Swept::NoIndex { table, remedy } => {
                    note(&format!(
                        "{table} is read page by page without an index; mend that with: {remedy}"
                    ));
                }
                Swept::Failed(reason) => bail!(reason),
                Swept::Page(..) | Swept::LogPage(_) | Swept::Ended => {}
            }
            if batch.len() >= BATCH {
                self.judge.judge(subjects, std::mem::take(&mut batch), true).await?;
            }
        }
        self.judge.judge(subjects, batch, true).await
    }

    /// Returns how many.
    async fn rows(
        &mut self,
        n: usize,
        rows: &Rows<'_>,
        wants: impl Fn(usize) -> bool,
    ) -> anyhow::Result<usize> {
        let subject = &self.subjects[n];
        let Some(found) = self.judge.look.rows(subject, rows, 0).await else { return Ok(0) };
        let candidates: Vec<_> =
            found.iter().flat_map(|(image, _)| subject.candidates(n, image, &wants)).collect();
        for batch in candidates.chunks(BATCH) {
            self.judge.judge(self.subjects, batch.to_vec(), true).await?;
        }
        Ok(found.len())
    }

    /// Keys that are there, and their rows: all of them, or so many of each template.
    pub(super) async fn backward(&mut self, sample: Option<usize>) -> anyhow::Result<()> {
        let subjects = self.subjects;
        let pattern = look::pattern(subjects)?;
        let mut wanted: Vec<Vec<usize>> = Vec::new(); // how many of each template are still wanted
        for subject in subjects {
            let most = if subject.unauditable.is_none() || self.judge.has_program() {
                sample.unwrap_or(usize::MAX)
            } else {
                0
            };
            let wants = |inverter: &Result<_, _>| {
                if inverter.is_ok() || self.judge.has_program() { most } else { 0 }
            };
            wanted.push(subject.inverters.iter().map(wants).collect());
        }
        let (mut cursor, mut batch) = ("0".to_owned(), Vec::new());
        while wanted.iter().flatten().any(|&left| left > 0) {
            let began = Instant::now();
            let (next, keys) = self
                .judge
                .look
                .sink
                .keys_of_matching(&pattern, cursor)
                .await
                .context("keys cannot be looked for")?;
            sleep(began.elapsed() / 2).await; // others hardly notice
            for key in keys {
                let Some(candidate) = self.candidate(&key) else {
                    if let Some(unclear) =
                        subjects.iter().position(|subject| subject.is_unclear(&key))
                    {
                        self.judge.report.tables[unclear].count.keys += 1;
                        self.judge.report.tables[unclear].count.unreadable += 1;
                    }
                    continue;
                };
                let left = &mut wanted[candidate.subject][candidate.template];
                if *left > 0 {
                    *left -= 1;
                    batch.push(candidate);
                }
            }
            if batch.len() >= BATCH {
                self.judge
                    .judge(self.subjects, std::mem::take(&mut batch), sample.is_some())
                    .await?;
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
        self.judge.judge(self.subjects, batch, sample.is_some()).await
    }

    /// Whose key it is. For a program it need not say its row.
    fn candidate(&self, key: &str) -> Option<Candidate> {
        let inverted =
            self.subjects.iter().enumerate().find_map(|(n, subject)| subject.candidate(n, key));
        if inverted.is_some() || !self.judge.has_program() {
            return inverted;
        }
        let found = self
            .subjects
            .iter()
            .enumerate()
            .find_map(|(n, subject)| Some((n, subject.template_of(key)?)));
        let (subject, template) = found.filter(|_| !key.contains(['\n', '\r']))?;
        Some(Candidate { subject, template, key: key.to_owned(), wanted: Vec::new() })
    }
}

/// The keys of the rows of a logged change.
fn logged(subjects: &[Subject], places: &HashMap<i32, usize>, change: &str) -> Vec<Candidate> {
    let Ok(Announcement::Change(change)) = change::parse(change) else { return Vec::new() };
    let (Some(&n), What::Rows(rows)) = (places.get(&change.watch), &change.what) else {
        return Vec::new();
    };
    rows.iter().flat_map(|row| subjects[n].candidates_of(n, row, |_| true)).collect()
}
