//! `unstale audit`: compares what is cached with the database.
//!
//! Forward: rows that changed last and random ones, or all that changed since a time; the keys of
//! each, what is cached there. Backward: keys found in Redis, the columns that made them, and their
//! rows; a key whose row is gone is stale. What differs is looked at again after a while, on both
//! sides, and is stale if nothing has changed. It needs no running listener and disturbs none. Must
//! hold: bounded work at once, and no value of an application, nor a key, in anything that it
//! prints.

mod find;
mod judge;
pub(crate) mod look;
mod render;
mod report;

use std::time::Duration;

use anyhow::bail;

use crate::cli::Audit;
use crate::config::Config;
use crate::pg::audit::{Reader, TIMEOUT};
use crate::pg::{self, Postgres};
use crate::sink::Sink;
use crate::sink::worker::Workers;
use crate::{shutdown, visible};

use find::{Search, Stretch};
use judge::{Judge, Ways};
use look::{Look, Subject};
use render::Program;
use report::{Count, Report, note};

/// Beyond the last second delete, how long a change may take before what is cached counts as stale.
const SETTLE: Duration = Duration::from_secs(1);

/// Audits, and says how far it is.
///
/// # Errors
/// If anything is stale, a table that was named cannot be audited, a server fails, or a signal ends
/// it.
pub async fn run(config: &Config, args: &Audit) -> anyhow::Result<()> {
    let postgres = Postgres::new(config.database_source()?)?;
    let sink = Sink::new(config.redis_source()?, &config.redis.tls, config.redis.timeout)?;
    let shutdown = shutdown::on_signals()?;
    let mut connection = super::connect(&postgres).await?;
    let mut tables = Vec::new();
    for table in &args.tables {
        tables.push(super::full_name(&mut connection, table).await?);
    }
    let since = match args.since {
        Some(since) => {
            let now = pg::clock(&mut connection).await?;
            Some(Stretch {
                postgres: postgres.clone(),
                from: super::beginning(since, now)?,
                until: now,
            })
        }
        None => None,
    };
    drop(connection);
    let mut reader = Reader::open(postgres, TIMEOUT).await?;
    let subjects = look::subjects(&mut reader, &tables).await?;
    if let Some(unknown) =
        tables.iter().find(|table| !subjects.iter().any(|subject| subject.table == **table))
    {
        bail!("{unknown} is not watched; `select * from unstale.watches` lists what is");
    }
    let longest = config.repeat.after.iter().max().copied().unwrap_or_default();
    let ways = Ways {
        program: args.command.as_deref().map(Program::start).transpose()?,
        workers: args.heal.then(|| {
            Workers::new({
                let sink = sink.clone();
                move || sink.clone()
            })
        }),
        keys_per_command: config.batch.keys_per_command,
        settle: longest + SETTLE,
        rate: args.rate,
    };
    let report =
        Report::new(subjects.iter().map(|subject| subject.table.clone()).collect(), args.json);
    let mut search = Search::new(&subjects, Judge::new(Look::new(reader, sink), ways, report));
    let result = shutdown.run_until_cancelled(Box::pin(everything(&mut search, since, args))).await;
    let mut judge = search.judge;
    match result {
        None => judge.report.reason = Some("stopped before the end".to_owned()),
        Some(Err(error)) => judge.report.reason = Some(format!("{error:#}")),
        Some(Ok(())) => {
            for (subject, table) in subjects.iter().zip(&mut judge.report.tables) {
                if let Some(reason) = judge.look.failed.remove(&subject.watch) {
                    judge.report.reason = Some(format!("{}: {reason}", subject.table));
                    table.skipped = Some(reason);
                }
            }
            save(&mut judge, &subjects, args.all).await;
        }
    }
    judge.report.end()?;
    match (&judge.report.reason, judge.report.stale()) {
        (Some(reason), _) => bail!("not all is audited: {reason}"),
        (None, 0) => Ok(()),
        (None, n) if args.heal => bail!("{n} cached values were stale, and are deleted"),
        (None, n) => bail!("{n} cached values are stale; --heal deletes them"),
    }
}

async fn everything(
    search: &mut Search<'_>,
    since: Option<Stretch>,
    args: &Audit,
) -> anyhow::Result<()> {
    let sample = if args.all { None } else { Some(args.sample as usize) };
    let has_program = search.judge.has_program();
    let mut chosen = Vec::new(); // those whose rows are looked at
    for (n, subject) in search.subjects.iter().enumerate() {
        if has_program {
            chosen.push(n);
            continue;
        }
        if let Some(reason) = &subject.unauditable {
            note(&format!("{} is not audited: {reason}", subject.table));
            search.judge.report.tables[n].skipped = Some(reason.clone());
            continue;
        }
        for (template, inverter) in subject.keys.iter().zip(&subject.inverters) {
            if let Err(obscure) = inverter {
                note(&format!(
                    "{}: keys of '{template}' are not looked for in Redis: {obscure}",
                    subject.table
                ));
                search.judge.report.tables[n].obscure.push(template.clone());
            }
        }
        chosen.push(n);
    }
    match since {
        Some(since) => search.since(since, &chosen, args.sample as usize).await?,
        None if has_program => {} // it is asked about keys that are there
        None => {
            for n in chosen {
                search.forward(n, sample).await?;
            }
        }
    }
    search.backward(sample).await?;
    search.judge.confirm(search.subjects).await
}

/// For the policy. That it cannot be noted is said, and no failure.
async fn save(judge: &mut Judge, subjects: &[Subject], complete: bool) {
    for (subject, table) in
        subjects.iter().zip(&judge.report.tables).filter(|(_, table)| table.skipped.is_none())
    {
        let Count { compared, unreadable, .. } = table.count;
        let counts = [compared, table.stale_keys(), unreadable]
            .map(|count| i64::try_from(count).unwrap_or(i64::MAX));
        if let Err(error) = judge.look.reader().save(subject.watch, complete, counts).await {
            note(&format!(
                "what was found is not noted for `unstale policy`: {}",
                visible::line(&error.to_string())
            ));
            return;
        }
    }
}
