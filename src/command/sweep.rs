//! `unstale sweep`: deletes, by hand, the keys of what no trigger announced.
//!
//! It needs no running listener and disturbs none: it reads as the listener does after a gap, and
//! deletes on its own. Stopped in the middle, it has deleted what it says, and the same command
//! does all of it.

use std::collections::{HashMap, HashSet};
use std::io::{IsTerminal as _, Write as _, stderr, stdout};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::sync::mpsc;

use crate::batch::{Batch, Command, Lane};
use crate::change::{self, Announcement};
use crate::cli::Sweep;
use crate::config::Config;
use crate::deletion::Deletions;
use crate::listener::machine::Intake;
use crate::messages::Swept;
use crate::pg::sweep::{ByHand, From, PAGE_TIMEOUT};
use crate::pg::{self, Postgres, watches};
use crate::rule::Rule;
use crate::sink::Sink;
use crate::sink::worker::{Report, Workers};
use crate::watermark::{Checkpoint, PgTime, Snapshot};
use crate::{shutdown, visible};

/// Chunks of rows between PostgreSQL and Redis.
const CHUNKS: usize = 4;

/// How long Redis, or a part of it, may do nothing: long enough for a fail-over.
const REDIS_PATIENCE: Duration = Duration::from_secs(15);

/// Between two lines of progress, on a terminal and elsewhere.
const PROGRESS: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];

/// Sweeps, and says how far it is.
///
/// # Errors
/// If a table is not watched, a server fails, or a signal ends it. What was deleted until then is
/// deleted.
pub async fn run(config: &Config, args: &Sweep) -> anyhow::Result<()> {
    let postgres = Postgres::new(config.database_source()?)?;
    let sink = Sink::new(config.redis_source()?, &config.redis.tls, config.redis.timeout)?;
    let shutdown = shutdown::on_signals()?;
    let mut connection = super::connect(&postgres).await?;
    let (rules, unstamped) = chosen(&mut connection, &args.tables).await?;
    let mut sweep = ManualSweep {
        intake: Intake::new(rules),
        batch: Batch::new(super::limits(config, &sink)),
        workers: (!args.dry_run).then(|| Workers::new(move || sink.clone())),
        failing: None,
        rate: args.rate,
        began: Instant::now(),
        reported: Instant::now(),
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
        Some(result) => result.context(
            "not all is swept; what was deleted stays deleted, and the same command does the rest",
        ),
        None => bail!(
            "stopped before the end; what was deleted stays deleted, and the same command does the rest"
        ),
    }
}

/// The rules of the tables that were named, or of all, and those of them that cannot be swept by a
/// stamp.
async fn chosen(
    connection: &mut sqlx::postgres::PgConnection,
    tables: &[String],
) -> anyhow::Result<(Vec<Rule>, HashSet<i32>)> {
    let mut wanted = HashSet::new();
    for table in tables {
        wanted.insert(super::full_name(connection, table).await?);
    }
    let (mut rules, mut unstamped) = (Vec::new(), HashSet::new());
    for watched in watches::load(connection).await?.into_iter().filter(|watched| !watched.ended) {
        if !tables.is_empty() && !wanted.remove(&watched.table) {
            continue;
        }
        if !watched.sweepable {
            unstamped.insert(watched.id);
        }
        rules.push(Rule::of(&watched)?);
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

/// A sweep by hand: what it finds is collected, bounded, and deleted as by the listener.
struct ManualSweep {
    workers: Option<Workers>, // none: only say what would be done
    intake: Intake,
    batch: Batch,
    failing: Option<Instant>, // since when Redis has done nothing
    rate: Option<u32>,        // keys a second
    began: Instant,
    reported: Instant,
    count: Count,
}

impl ManualSweep {
    /// All keys of these watches, or of all.
    async fn everything(&mut self, only: Option<&HashSet<i32>>) -> anyhow::Result<()> {
        for watch in self.intake.watches() {
            match only {
                Some(only) if !only.contains(&watch) => continue,
                Some(_) => {
                    let table = self.intake.table(watch).unwrap_or_default();
                    note(&format!(
                        "{table} has no column that says when a row changed: all its keys are deleted"
                    ));
                }
                None => {}
            }
            self.intake.everything(&mut self.batch, Lane::Live, watch);
        }
        self.send_until(|batch| !batch.is_full(Lane::Live)).await
    }

    /// The rows stamped since then, and everything in the log, which is no longer than it has to
    /// be.
    async fn since(
        &mut self,
        postgres: Postgres,
        start: PgTime,
        page_rows: u32,
    ) -> anyhow::Result<()> {
        let (out, mut swept) = mpsc::channel(CHUNKS);
        let checkpoint = Checkpoint { watermark: Some(start), log: Snapshot::nothing() };
        let from = From {
            checkpoint: Some(checkpoint),
            done: HashMap::new(),
            log: None,
            by_hand: Some(ByHand { watches: self.intake.watches(), until: None }),
            page_timeout: PAGE_TIMEOUT,
        };
        tokio::spawn(pg::sweep::run(postgres, from, page_rows, out));
        while let Some(swept) = swept.recv().await {
            match swept {
                Swept::Rows(watch, rows) => {
                    self.count.rows += rows.len() as u64;
                    for row in &rows {
                        self.intake.row(&mut self.batch, Lane::Live, watch, row);
                    }
                }
                Swept::Log(changes) => changes.iter().for_each(|change| self.logged(change)),
                Swept::Unreadable { watch, table, reason } => {
                    note(&format!("{table}: {reason}; all its keys are deleted"));
                    self.intake.everything(&mut self.batch, Lane::Live, watch);
                }
                Swept::NoIndex { table, remedy } => note(&format!(
                    "{table} is read page by page without an index; mend that with: {remedy}"
                )),
                Swept::Failed(reason) => bail!(reason),
                Swept::Page(..) | Swept::LogPage(_) | Swept::Ended => {}
            }
            self.send_until(|batch| !batch.is_full(Lane::Live)).await?;
        }
        Ok(())
    }

    /// A change of the log; those of tables that nobody asked for are not meant.
    fn logged(&mut self, change: &str) {
        if let Ok(Announcement::Change(change)) = change::parse(change)
            && self.intake.change(&mut self.batch, Lane::Live, &change).is_ok()
        {
            self.count.rows += 1;
        }
    }

    /// Until everything is deleted.
    async fn finish(&mut self) -> anyhow::Result<()> {
        self.send_until(Batch::is_empty).await
    }

    /// Sends what may be sent, until the batch is so. Redis may be away for a moment.
    async fn send_until(&mut self, is_enough: impl Fn(&Batch) -> bool) -> anyhow::Result<()> {
        loop {
            while let Some(command) = self.batch.next_command(Instant::now()) {
                self.send(command).await?;
            }
            if is_enough(&self.batch) {
                return Ok(());
            }
            self.wait().await?;
        }
    }

    async fn send(&mut self, command: Command) -> anyhow::Result<()> {
        self.count.keys += command.deletions.len() as u64;
        match &mut self.workers {
            Some(workers) => workers.begin(command),
            None => {
                if let Deletions::Patterns(patterns) = &command.deletions {
                    patterns.iter().for_each(|pattern| note(&format!("would delete {pattern}")));
                }
                self.batch.acknowledge(command.id, Instant::now());
            }
        }
        if let Some(rate) = self.rate {
            while self.batch.on_their_way() > 0 {
                self.wait().await?;
            }
            let pause = Duration::from_secs_f64(self.count.keys as f64 / f64::from(rate));
            tokio::time::sleep_until((self.began + pause).into()).await;
        }
        if self.reported.elapsed() >= PROGRESS[usize::from(!stderr().is_terminal())] {
            self.reported = Instant::now();
            self.report();
        }
        Ok(())
    }

    /// For Redis' next answer, or until the batch has something to send.
    async fn wait(&mut self) -> anyhow::Result<()> {
        let due = self.batch.due();
        let time = async {
            match due {
                Some(due) => tokio::time::sleep_until(due.into()).await,
                None => std::future::pending().await,
            }
        };
        let answer = async {
            match &mut self.workers {
                Some(workers) => workers.next().await,
                None => std::future::pending().await, // everything is acknowledged at once
            }
        };
        let report = tokio::select! {
            report = answer => report,
            () = time => return Ok(()),
        };
        let Some(reason) = self.answered(report) else {
            self.failing = None;
            return Ok(());
        };
        if self.failing.get_or_insert_with(Instant::now).elapsed() > REDIS_PATIENCE {
            bail!(reason);
        }
        Ok(())
    }

    /// Returns why Redis, or a part of it, did nothing.
    fn answered(&mut self, report: Report) -> Option<String> {
        let (id, done) = match report {
            Report::Done { id, done } => (id, done),
            Report::Failed { reason, .. } => return Some(reason),
        };
        self.count.deleted += done.existed;
        match done.delivered.left {
            Some(left) => {
                self.batch.hand_back(id, &left.deletions, Instant::now());
                Some(left.reason)
            }
            None => {
                self.batch.acknowledge(id, Instant::now());
                None
            }
        }
    }

    /// Until nothing is on its way. What failed stays undone.
    async fn settle(&mut self) {
        while self.batch.on_their_way() > 0
            && let Some(workers) = &mut self.workers
        {
            let report = workers.next().await;
            self.answered(report);
        }
    }

    fn end(&self) {
        if stderr().is_terminal() {
            let _ = write!(stderr(), "\r\x1b[K"); // the line of progress
        }
        if stdout().is_terminal() {
            let _ = writeln!(stdout(), "{}", in_words(self.count, self.workers.is_none()));
        } else {
            let _ = writeln!(
                stdout(),
                "{}",
                as_json("done", self.count, self.workers.is_none(), self.began.elapsed())
            );
        }
    }

    fn report(&self) {
        if stderr().is_terminal() {
            let _ = write!(stderr(), "\r\x1b[K{}", in_words(self.count, self.workers.is_none()));
        } else {
            let _ = writeln!(
                stdout(),
                "{}",
                as_json("progress", self.count, self.workers.is_none(), self.began.elapsed())
            );
        }
    }
}

fn in_words(Count { rows, keys, deleted }: Count, dry: bool) -> String {
    if dry {
        format!("{rows} rows read; {keys} keys and patterns would be deleted")
    } else {
        format!(
            "{rows} rows read, {keys} keys and patterns asked for; {deleted} keys were cached, and are not any more"
        )
    }
}

fn as_json(
    event: &str,
    Count { rows, keys, deleted }: Count,
    dry: bool,
    took: Duration,
) -> serde_json::Value {
    serde_json::json!({ "event": event, "rows": rows, "keys": keys, "deleted": deleted, "dry_run": dry, "seconds": took.as_secs_f64() })
}

/// Something to know, on a line of its own.
fn note(text: &str) {
    let _ = writeln!(
        stderr(),
        "{}{}",
        if stderr().is_terminal() { "\r\x1b[K" } else { "" },
        visible::line(text)
    );
}
