//! `unstale sweep`: deletes, by hand, the keys of what no trigger announced.
//!
//! It needs no running listener and disturbs none: it reads as the listener does after a gap, and deletes on its own. Stopped
//! in the middle, it has deleted what it says, and the same command does all of it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{IsTerminal as _, Write as _, stderr, stdout};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::batch::{Command, Work};
use crate::change::{self, Announcement, Row};
use crate::cli::Sweep;
use crate::config::Config;
use crate::messages::Swept;
use crate::pg::sweep::{ByHand, From, PAGE_TIMEOUT};
use crate::pg::{self, Postgres, watches};
use crate::rule::{Rule, Rules, Target};
use crate::sink::Sink;
use crate::sink::worker::{Report, Workers};
use crate::watermark::{Checkpoint, PgTime, Snapshot};
use crate::{shutdown, visible};

/// Chunks of rows between PostgreSQL and Redis.
const CHUNKS: usize = 4;

/// Bytes of keys in one command.
const FLUSH_BYTES: usize = 1 << 20;

/// How long Redis, or a part of it, may do nothing: long enough for a fail-over.
const REDIS_PATIENCE: Duration = Duration::from_secs(15);

/// Before what was handed back is tried again.
const PAUSE: Duration = Duration::from_millis(250);

/// Between two lines of progress, on a terminal and elsewhere.
const PROGRESS: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];

/// Sweeps, and says how far it is.
///
/// # Errors
/// If a table is not watched, a server fails, or a signal ends it. What was deleted until then is deleted.
pub async fn run(config: &Config, args: &Sweep) -> anyhow::Result<()> {
    let postgres = Postgres::new(config.database_source()?)?;
    let sink = Sink::new(config.redis_source()?, &config.redis.tls, config.redis.timeout)?;
    let shutdown = shutdown::on_signals()?;
    let mut connection = super::connect(&postgres).await?;
    let (rules, unstamped) = chosen(&mut connection, &args.tables).await?;
    let mut sweep = ManualSweep {
        workers: (!args.dry_run).then(|| Workers::new(move || sink.clone())),
        in_flight: config.batch.in_flight,
        on_their_way: 0,
        begun: 0,
        failing: None,
        rules,
        keys: HashSet::new(),
        bytes: 0,
        patterns: BTreeSet::new(),
        keys_per_command: config.batch.keys_per_command,
        rate: args.rate,
        began: Instant::now(),
        told: Instant::now(),
        count: Count::default(),
    };
    let work = async {
        match args.since {
            None => sweep.everything(None).await?,
            Some(since) => {
                let start = super::beginning(since, pg::clock(&mut connection).await?)?;
                sweep.everything(Some(&unstamped)).await?;
                sweep.since(postgres, start, config.sweep.page_rows).await?;
            }
        }
        sweep.finish().await
    };
    let result = shutdown.run_until_cancelled(Box::pin(work)).await;
    // What Redis is doing is counted, too, unless it does not say so in time.
    let _ = tokio::time::timeout(config.redis.timeout, sweep.settle()).await;
    sweep.end();
    match result {
        Some(result) => result.context("not all is swept; what was deleted stays deleted, and the same command does the rest"),
        None => bail!("stopped before the end; what was deleted stays deleted, and the same command does the rest"),
    }
}

/// The rules of the tables that were named, or of all, and those of them that cannot be swept by a stamp.
async fn chosen(connection: &mut sqlx::postgres::PgConnection, tables: &[String]) -> anyhow::Result<(Rules, HashSet<i32>)> {
    let mut wanted = HashSet::new();
    for table in tables {
        wanted.insert(super::full_name(connection, table).await?);
    }
    let (mut rules, mut unstamped) = (Rules::new(), HashSet::new());
    for watched in watches::load(connection).await?.into_iter().filter(|watched| !watched.ended) {
        if !tables.is_empty() && !wanted.remove(&watched.table) {
            continue;
        }
        if !watched.sweepable {
            unstamped.insert(watched.id);
        }
        rules.insert(watched.id, Rule::of(&watched)?);
    }
    if let Some(unknown) = wanted.into_iter().next() {
        bail!("{unknown} is not watched; `select * from unstale.watches` lists what is");
    }
    if rules.is_empty() {
        bail!("nothing is watched; call unstale.watch() or run `unstale apply` first");
    }
    Ok((rules, unstamped))
}

/// What was done so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    /// Rows and logged changes read.
    rows: u64,
    /// Keys, and patterns, that they make stale.
    keys: u64,
    /// Keys that were cached, and are not any more.
    deleted: u64,
}

/// A sweep by hand.
struct ManualSweep {
    workers: Option<Workers>, // none: only say what would be done
    in_flight: usize,         // commands at the same time
    on_their_way: usize,
    begun: u64,
    failing: Option<Instant>, // since when Redis has done nothing
    rules: Rules,
    keys: HashSet<String>,      // found, not deleted yet
    bytes: usize,               // of these
    patterns: BTreeSet<String>, // likewise; one walk for all of them, at the end
    keys_per_command: usize,
    rate: Option<u32>, // keys a second
    began: Instant,
    told: Instant,
    count: Count,
}

impl ManualSweep {
    /// All keys of these watches, or of all.
    async fn everything(&mut self, only: Option<&HashSet<i32>>) -> anyhow::Result<()> {
        let rules: Vec<Rule> = self.rules.values().filter(|rule| only.is_none_or(|only| only.contains(&rule.watch))).cloned().collect();
        for rule in rules {
            if only.is_some() {
                note(&format!("{} has no column that says when a row changed: all its keys are deleted", rule.table));
            }
            for target in rule.everything() {
                self.delete(target).await?;
            }
        }
        Ok(())
    }

    /// The rows stamped since then, and everything in the log, which is no longer than it has to be.
    async fn since(&mut self, postgres: Postgres, start: PgTime, page_rows: u32) -> anyhow::Result<()> {
        let (out, mut swept) = mpsc::channel(CHUNKS);
        let checkpoint = Checkpoint { watermark: Some(start), log: Snapshot::nothing() };
        let from = From {
            checkpoint: Some(checkpoint),
            done: HashMap::new(),
            log: None,
            by_hand: Some(ByHand { watches: self.rules.keys().copied().collect(), until: None }),
            page_timeout: PAGE_TIMEOUT,
        };
        tokio::spawn(pg::sweep::run(postgres, from, page_rows, out));
        while let Some(swept) = swept.recv().await {
            match swept {
                Swept::Rows(watch, rows) => self.rows(watch, &rows).await?,
                Swept::Log(changes) => self.changes(&changes).await?,
                Swept::Unreadable { watch, table, reason } => {
                    note(&format!("{table}: {reason}; all its keys are deleted"));
                    self.everything(Some(&HashSet::from([watch]))).await?;
                }
                Swept::NoIndex { table, remedy } => {
                    note(&format!("{table} is read page by page without an index; mend that with: {remedy}"))
                }
                Swept::Failed(reason) => bail!(reason),
                Swept::Page(..) | Swept::LogPage(_) | Swept::Ended => {}
            }
        }
        Ok(())
    }

    async fn rows(&mut self, watch: i32, rows: &[String]) -> anyhow::Result<()> {
        let Some(rule) = self.rules.get(&watch).cloned() else { return Ok(()) };
        for row in rows {
            self.count.rows += 1;
            for target in rule.row(&Row::parse(row)?) {
                self.delete(target).await?;
            }
        }
        Ok(())
    }

    async fn changes(&mut self, changes: &[String]) -> anyhow::Result<()> {
        for change in changes {
            let Ok(Announcement::Change(change)) = change::parse(change) else { continue };
            let Some(rule) = self.rules.get(&change.watch) else { continue };
            self.count.rows += 1;
            let mut targets = Vec::new();
            rule.stale(&change, |target| targets.push(target))?;
            for target in targets {
                self.delete(target).await?;
            }
        }
        Ok(())
    }

    async fn delete(&mut self, target: Target) -> anyhow::Result<()> {
        match target {
            Target::Key(key) => {
                self.bytes += key.len();
                self.keys.insert(key);
                if self.keys.len() >= self.keys_per_command || self.bytes >= FLUSH_BYTES { self.flush().await } else { Ok(()) }
            }
            Target::Pattern(pattern) => {
                if !self.patterns.contains(&pattern) && self.workers.is_none() {
                    note(&format!("would delete {pattern}"));
                }
                self.patterns.insert(pattern);
                Ok(())
            }
        }
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        self.bytes = 0;
        let keys: Vec<String> = self.keys.drain().collect();
        if keys.is_empty() {
            return Ok(());
        }
        self.perform(keys.len() as u64, Work::Keys(Arc::new(keys))).await
    }

    /// What is left, and the walk through Redis.
    async fn finish(&mut self) -> anyhow::Result<()> {
        self.flush().await?;
        let patterns: Vec<String> = std::mem::take(&mut self.patterns).into_iter().collect();
        if !patterns.is_empty() {
            self.perform(patterns.len() as u64, Work::Patterns(Arc::new(patterns))).await?;
        }
        self.wait_for(0).await
    }

    async fn perform(&mut self, keys: u64, work: Work) -> anyhow::Result<()> {
        self.wait_for(self.in_flight - 1).await?;
        self.begin(work);
        self.count.keys += keys;
        if let Some(rate) = self.rate {
            self.wait_for(0).await?;
            tokio::time::sleep_until(self.began + Duration::from_secs_f64(self.count.keys as f64 / f64::from(rate))).await;
        }
        if self.told.elapsed() >= PROGRESS[usize::from(!stderr().is_terminal())] {
            self.told = Instant::now();
            self.tell();
        }
        Ok(())
    }

    fn begin(&mut self, work: Work) {
        if let Some(workers) = &mut self.workers {
            self.begun += 1;
            self.on_their_way += 1;
            workers.begin(Command { id: self.begun, work });
        }
    }

    /// Until no more commands than this are on their way. Redis may be away for a moment.
    async fn wait_for(&mut self, most: usize) -> anyhow::Result<()> {
        while self.on_their_way > most
            && let Some(workers) = &mut self.workers
        {
            let (reason, left) = match workers.next().await {
                Report::Done { done, .. } => {
                    self.on_their_way -= 1;
                    self.count.deleted += done.existed;
                    match done.delivered.left {
                        Some(left) => (left.reason, Some(left.work)),
                        None => {
                            self.failing = None;
                            continue;
                        }
                    }
                }
                Report::Failed { reason, .. } => (reason, None),
            };
            if self.failing.get_or_insert_with(Instant::now).elapsed() > REDIS_PATIENCE {
                bail!(reason);
            }
            if let Some(left) = left {
                tokio::time::sleep(PAUSE).await;
                self.begin(left);
            }
        }
        Ok(())
    }

    /// Until nothing is on its way. What failed stays undone.
    async fn settle(&mut self) {
        while self.on_their_way > 0
            && let Some(workers) = &mut self.workers
        {
            if let Report::Done { done, .. } = workers.next().await {
                self.on_their_way -= 1;
                self.count.deleted += done.existed;
            }
        }
    }

    fn end(&self) {
        if stderr().is_terminal() {
            let _ = write!(stderr(), "\r\x1b[K"); // the line of progress
        }
        if stdout().is_terminal() {
            let _ = writeln!(stdout(), "{}", in_words(self.count, self.workers.is_none()));
        } else {
            let _ = writeln!(stdout(), "{}", as_json("done", self.count, self.workers.is_none(), self.began.elapsed()));
        }
    }

    fn tell(&self) {
        if stderr().is_terminal() {
            let _ = write!(stderr(), "\r\x1b[K{}", in_words(self.count, self.workers.is_none()));
        } else {
            let _ = writeln!(stdout(), "{}", as_json("progress", self.count, self.workers.is_none(), self.began.elapsed()));
        }
    }
}

fn in_words(Count { rows, keys, deleted }: Count, dry: bool) -> String {
    if dry {
        format!("{rows} rows read; {keys} keys and patterns would be deleted")
    } else {
        format!("{rows} rows read, {keys} keys and patterns asked for; {deleted} keys were cached, and are not any more")
    }
}

fn as_json(event: &str, Count { rows, keys, deleted }: Count, dry: bool, took: Duration) -> serde_json::Value {
    serde_json::json!({ "event": event, "rows": rows, "keys": keys, "deleted": deleted, "dry_run": dry, "seconds": took.as_secs_f64() })
}

/// Something to know, on a line of its own.
fn note(text: &str) {
    let _ = writeln!(stderr(), "{}{}", if stderr().is_terminal() { "\r\x1b[K" } else { "" }, visible::line(text));
}
