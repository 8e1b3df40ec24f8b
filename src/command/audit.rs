//! `unstale audit`: compares what is cached with the database.
//!
//! Forward: rows that changed last and random ones, the keys of each, what is cached there. Backward: keys found in Redis, the columns
//! that made them, and their rows; a key whose row is gone is stale. What differs is looked at again after a while, on both sides, and
//! is stale if nothing has changed. It needs no running listener and disturbs none. Must hold: bounded work at once, and no value of an
//! application, nor a key, in anything that it prints.

pub(crate) mod look;
mod render;
mod report;

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::time::{Instant, sleep, sleep_until};

use crate::audit::invert::Obscure;
use crate::batch::{Command, Work};
use crate::cli::Audit;
use crate::config::Config;
use crate::pg::Postgres;
use crate::pg::audit::{Reader, Rows};
use crate::sink::Sink;
use crate::sink::worker::{Report as Done, Workers};
use crate::{shutdown, visible};

use look::{Candidate, Difference, Look, Outcome, Subject};
use render::Program;
use report::{Count, Report, note};

/// Keys that are looked at together.
const BATCH: usize = 5_000;

/// Values that are held for a program together: each may be as long as Redis lets it.
const RENDERED: usize = 20;

/// Blocks that are read together.
const BLOCKS: i64 = 64;

/// Beyond the last second delete, how long a change may take before what is cached counts as stale.
const SETTLE: Duration = Duration::from_secs(1);

/// Suspects that wait for their second look.
const MOST_SUSPECTS: usize = 20_000;

/// Looks at a suspect, each after [`SETTLE`], if one of its sides has changed each time.
const LOOKS: u32 = 5;

/// How long Redis may fail to delete what is healed: long enough for a fail-over.
const REDIS_PATIENCE: Duration = Duration::from_secs(15);

/// Audits, and says how far it is.
///
/// # Errors
/// If anything is stale, a table that was named cannot be audited, a server fails, or a signal ends it.
pub async fn run(config: &Config, args: &Audit) -> anyhow::Result<()> {
    let postgres = Postgres::new(config.database_source()?)?;
    let sink = Sink::new(config.redis_source()?, &config.redis.tls, config.redis.timeout)?;
    let shutdown = shutdown::on_signals()?;
    let mut connection = super::connect(&postgres).await?;
    let mut tables = Vec::new();
    for table in &args.tables {
        tables.push(super::full_name(&mut connection, table).await?);
    }
    drop(connection);
    let mut reader = Reader::open(postgres).await?;
    let subjects = look::subjects(&mut reader, &tables).await?;
    if let Some(unknown) = tables.iter().find(|table| !subjects.iter().any(|subject| subject.table == **table)) {
        bail!("{unknown} is not watched; `select * from unstale.watches` lists what is");
    }
    let longest = config.repeat.after.iter().max().copied().unwrap_or_default();
    let mut audit = ManualAudit {
        look: Look::new(reader, sink.clone()),
        program: args.command.as_deref().map(Program::start).transpose()?,
        workers: args.heal.then(|| Workers::new(move || sink.clone())),
        keys_per_command: config.batch.keys_per_command,
        settle: longest + SETTLE,
        rate: args.rate,
        began: Instant::now(),
        looked: 0,
        known: HashSet::new(),
        hasher: RandomState::new(),
        suspects: Vec::new(),
        ripe: Instant::now(),
        stale: HashSet::new(),
        report: Report::new(subjects.iter().map(|subject| subject.table.clone()).collect(), args.json),
    };
    let result = shutdown.run_until_cancelled(Box::pin(audit.everything(&subjects, args))).await;
    match result {
        None => audit.report.reason = Some("stopped before the end".to_owned()),
        Some(Err(error)) => audit.report.reason = Some(format!("{error:#}")),
        Some(Ok(())) => {
            for (subject, table) in subjects.iter().zip(&mut audit.report.tables) {
                if let Some(reason) = audit.look.failed.remove(&subject.watch) {
                    audit.report.reason = Some(format!("{}: {reason}", subject.table));
                    table.skipped = Some(reason);
                }
            }
            audit.save(&subjects, args.all).await;
        }
    }
    audit.report.end()?;
    match (&audit.report.reason, audit.report.stale()) {
        (Some(reason), _) => bail!("not all is audited: {reason}"),
        (None, 0) => Ok(()),
        (None, n) if args.heal => bail!("{n} cached values were stale, and are deleted"),
        (None, n) => bail!("{n} cached values are stale; --heal deletes them"),
    }
}

/// An audit by hand.
struct ManualAudit {
    look: Look,
    program: Option<Program>,
    workers: Option<Workers>, // none: nothing is healed
    keys_per_command: usize,
    settle: Duration,
    rate: Option<u32>, // keys a second
    began: Instant,
    looked: u64,
    known: HashSet<u64>, // digests of keys that a sample has looked at
    hasher: RandomState,
    suspects: Vec<(Candidate, Suspicion)>,
    ripe: Instant,       // when the last suspect may be looked at again
    stale: HashSet<u64>, // digests of keys, because SCAN may bring one twice
    report: Report,
}

/// What is cached under a key, and what would be: are they the same, and which two are they? Values may be long, so they are not kept.
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

impl ManualAudit {
    async fn everything(&mut self, subjects: &[Subject], args: &Audit) -> anyhow::Result<()> {
        let sample = if args.all { None } else { Some(args.sample as usize) };
        let by_version = if self.program.is_none() { subjects } else { &[] };
        for (n, subject) in by_version.iter().enumerate() {
            if let Some(reason) = &subject.unauditable {
                note(&format!("{} is not audited: {reason}", subject.table));
                self.report.tables[n].skipped = Some(reason.clone());
                continue;
            }
            for (template, inverter) in subject.keys.iter().zip(&subject.inverters) {
                if let Err(obscure) = inverter {
                    note(&format!("{}: keys of '{template}' are not looked for in Redis: {obscure}", subject.table));
                    self.report.tables[n].obscure.push(template.clone());
                }
            }
            self.forward(subjects, n, sample).await?;
        }
        self.backward(subjects, sample).await?;
        self.confirm(subjects).await
    }

    /// Rows, and their keys. Of all, only those whose keys are not found from the other side.
    async fn forward(&mut self, subjects: &[Subject], n: usize, sample: Option<usize>) -> anyhow::Result<()> {
        let subject = &subjects[n];
        let is_adjacent = |template: usize| matches!(subject.inverters[template], Err(Obscure::Adjacent));
        let Some(sample) = sample else {
            if !(0..subject.keys.len()).any(is_adjacent) {
                return Ok(());
            }
            for first in (0..subject.blocks).step_by(usize::try_from(BLOCKS)?) {
                self.rows(subjects, n, &Rows::Blocks(first, BLOCKS), is_adjacent).await?;
            }
            return Ok(());
        };
        if subject.has_stamp {
            self.rows(subjects, n, &Rows::Recent(i64::try_from(sample)?), |_| true).await?;
        }
        // Random blocks, each at most once, until there are enough rows.
        let (mut rows, mut seen, mut random) = (0, HashSet::new(), self.hasher.hash_one(&subject.table));
        let blocks = u64::try_from(subject.blocks)?;
        while rows < sample && (seen.len() as u64) < blocks {
            let window = BLOCKS.unsigned_abs().min(blocks);
            let block = if blocks <= window { seen.len() as u64 } else { random % blocks };
            random = self.hasher.hash_one(random);
            if seen.insert(block) {
                rows += self.rows(subjects, n, &Rows::Blocks(i64::try_from(block)?, 1), |_| true).await?;
            }
        }
        Ok(())
    }

    /// Returns how many.
    async fn rows(&mut self, subjects: &[Subject], n: usize, rows: &Rows<'_>, wants: impl Fn(usize) -> bool) -> anyhow::Result<usize> {
        let subject = &subjects[n];
        let Some(found) = self.look.rows(subject, rows, 0).await else { return Ok(0) };
        let candidates: Vec<_> = found.iter().flat_map(|(image, _)| subject.candidates(n, image, &wants)).collect();
        for batch in candidates.chunks(BATCH) {
            self.judge(subjects, batch.to_vec(), true).await?;
        }
        Ok(found.len())
    }

    /// Keys that are there, and their rows: all of them, or so many of each template.
    async fn backward(&mut self, subjects: &[Subject], sample: Option<usize>) -> anyhow::Result<()> {
        let pattern = look::pattern(subjects)?;
        let mut wanted: Vec<Vec<usize>> = Vec::new(); // how many of each template are still wanted
        for subject in subjects {
            let most = if subject.unauditable.is_none() || self.program.is_some() { sample.unwrap_or(usize::MAX) } else { 0 };
            let wants = |inverter: &Result<_, _>| if inverter.is_ok() || self.program.is_some() { most } else { 0 };
            wanted.push(subject.inverters.iter().map(wants).collect());
        }
        let (mut cursor, mut batch) = ("0".to_owned(), Vec::new());
        while wanted.iter().flatten().any(|&left| left > 0) {
            let began = Instant::now();
            let (next, keys) = self.look.sink.keys_of_matching(&pattern, cursor).await.context("keys cannot be looked for")?;
            sleep(began.elapsed() / 2).await; // others hardly notice
            for key in keys {
                let Some(candidate) = self.candidate(subjects, &key) else {
                    if let Some(unclear) = subjects.iter().position(|subject| subject.is_unclear(&key)) {
                        self.report.tables[unclear].count.keys += 1;
                        self.report.tables[unclear].count.unreadable += 1;
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
                self.judge(subjects, std::mem::take(&mut batch), sample.is_some()).await?;
            }
            if next == "0" {
                break;
            }
            cursor = next;
        }
        self.judge(subjects, batch, sample.is_some()).await
    }

    /// Whose key it is. For a program it need not say its row.
    fn candidate(&self, subjects: &[Subject], key: &str) -> Option<Candidate> {
        let inverted = subjects.iter().enumerate().find_map(|(n, subject)| subject.candidate(n, key));
        if inverted.is_some() || self.program.is_none() {
            return inverted;
        }
        let found = subjects.iter().enumerate().find_map(|(n, subject)| Some((n, subject.template_of(key)?)));
        let (subject, template) = found.filter(|_| !key.contains(['\n', '\r']))?;
        Some(Candidate { subject, template, key: key.to_owned(), wanted: Vec::new() })
    }

    /// Looks at them. `once`: not at those that were looked at already.
    async fn judge(&mut self, subjects: &[Subject], mut batch: Vec<Candidate>, once: bool) -> anyhow::Result<()> {
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
        self.ripe = Instant::now() + self.settle;
        self.report.progress(self.looked);
        if self.suspects.len() >= MOST_SUSPECTS {
            self.confirm(subjects).await?;
        }
        match self.rate {
            Some(rate) => sleep_until(self.began + Duration::from_secs_f64(self.looked as f64 / f64::from(rate))).await,
            None => sleep(began.elapsed() / 8).await, // one question at a time, and a rest
        }
        Ok(())
    }

    /// What is to be looked at again, and why. The others are counted.
    async fn first_look(&mut self, subjects: &[Subject], batch: &[Candidate]) -> anyhow::Result<Vec<Option<Suspicion>>> {
        let mut found = Vec::with_capacity(batch.len());
        if self.program.is_some() {
            for (candidate, rendering) in batch.iter().zip(self.rendered(batch).await?) {
                let count = &mut self.report.tables[candidate.subject].count;
                count.keys += 1;
                count.compared += u64::from(rendering.is_some());
                found.push(rendering.filter(|rendering| !rendering.is_same).map(Suspicion::Rendered));
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
        let Some(program) = &mut self.program else { bail!("there is no program") };
        for chunk in batch.chunks(RENDERED) {
            let keys: Vec<&str> = chunk.iter().map(|candidate| candidate.key.as_str()).collect();
            for (candidate, cached) in chunk.iter().zip(self.look.raw(&keys).await?) {
                let Some(cached) = cached else {
                    renderings.push(None);
                    continue;
                };
                let rendered = program.value(&candidate.key).await?;
                let is_same = render::is_same(&cached, rendered.as_deref());
                renderings.push(Some(Rendering { is_same, digest: self.hasher.hash_one((cached, rendered)) }));
            }
        }
        Ok(renderings)
    }

    /// Looks again at all suspects, once enough time has passed since the last was found.
    async fn confirm(&mut self, subjects: &[Subject]) -> anyhow::Result<()> {
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
            self.ripe = Instant::now() + self.settle;
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
        if self.program.is_some() {
            let renderings = self.rendered(candidates).await?;
            let verdict = |(suspicion, later): (Suspicion, Option<Rendering>)| match (suspicion, later) {
                (_, None | Some(Rendering { is_same: true, .. })) => Ok(false),
                (Suspicion::Rendered(first), Some(later)) if first == later => Ok(true),
                (_, Some(later)) => Err(Suspicion::Rendered(later)),
            };
            return Ok(suspicions.into_iter().zip(renderings).map(verdict).collect());
        }
        let outcomes = self.look.at(subjects, candidates).await?;
        let verdict = |(suspicion, outcome): (Suspicion, Outcome)| match (suspicion, outcome) {
            (Suspicion::Version(first), outcome) => match (look::is_stale(&first, &outcome), outcome) {
                (None, Outcome::Differs(later)) => Err(Suspicion::Version(later)),
                (verdict, _) => Ok(verdict == Some(true)),
            },
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
        let Some(workers) = &mut self.workers else { return Ok(()) };
        for chunk in stale.chunks(self.keys_per_command) {
            let keys = chunk.iter().map(|candidate| candidate.key.clone()).collect();
            self.report.healed += delete(workers, Work::Keys(Arc::new(keys))).await?;
        }
        Ok(())
    }

    /// For the policy. That it cannot be noted is said, and no failure.
    async fn save(&mut self, subjects: &[Subject], complete: bool) {
        for (subject, table) in subjects.iter().zip(&self.report.tables).filter(|(_, table)| table.skipped.is_none()) {
            let Count { compared, unreadable, .. } = table.count;
            let counts = [compared, table.stale_keys(), unreadable].map(|count| i64::try_from(count).unwrap_or(i64::MAX));
            if let Err(error) = self.look.reader().save(subject.watch, complete, counts).await {
                note(&format!("what was found is not noted for `unstale policy`: {}", visible::line(&error.to_string())));
                return;
            }
        }
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
async fn delete(workers: &mut Workers, work: Work) -> anyhow::Result<u64> {
    let began = Instant::now();
    let mut existed = 0;
    workers.begin(Command { id: 0, work });
    loop {
        let (reason, left) = match workers.next().await {
            Done::Done { done, .. } => {
                existed += done.existed;
                match done.delivered.left {
                    None => return Ok(existed),
                    Some(left) => (left.reason, Some(left.work)),
                }
            }
            Done::Failed { reason, .. } => (reason, None),
        };
        if began.elapsed() > REDIS_PATIENCE {
            bail!(reason);
        }
        if let Some(work) = left {
            sleep(Duration::from_millis(250)).await;
            workers.begin(Command { id: 0, work });
        }
    }
}
