//! From the commit's answer to the key being gone, with the default delivery, while others write,
//! announce or hold a transaction open.

use std::time::{Duration, Instant};

use anyhow::ensure;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use unstale::scratch::redis::Client;

use super::Bench;

/// Rows of the probes' table.
const PROBES: u32 = 1_000;

/// How long each situation lasts, but for the open transaction's.
const SECONDS: u32 = 15;

/// How long a transaction that has announced stays open.
const OPEN_SECONDS: u32 = 120;

/// Changes a second of each writer whose transactions overlap, which are open for `OVERLAP`
/// milliseconds.
const PACE: Duration = Duration::from_millis(20);

/// See [`PACE`]: taken in turn.
const OVERLAP: [u64; 4] = [5, 18, 31, 50];

pub(super) async fn measure(bench: &mut Bench) -> anyhow::Result<()> {
    let create = format!(
        "create table probe (id int primary key, name text, updated_at timestamptz not null default clock_timestamp()) with (fillfactor = 50);
         insert into probe select g, 'name' from generate_series(1, {PROBES}) g;
         select unstale.watch('probe', array['probe:{{id}}'])"
    );
    bench.sql.execute(AssertSqlSafe(create)).await?;
    bench.settle().await?;
    let mut rows = vec![["while", "p50", "p99", "most", "probes"].map(str::to_owned).to_vec()];
    let mut say = |words: String, mut waits: Vec<Duration>| {
        waits.sort();
        let at = |share: f64| {
            format!(
                "{:.2} ms",
                waits[((waits.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0
            )
        };
        eprintln!("{words}: p50 {}, p99 {}", at(0.5), at(0.99));
        rows.push(vec![words, at(0.5), at(0.99), at(1.0), waits.len().to_string()]);
    };
    say("nobody else writes".to_owned(), probe(bench, SECONDS, Duration::ZERO, 1).await?);
    for (sync, words) in [("on", "waiting for the disk"), ("off", "synchronous_commit = off")] {
        for clients in super::CLIENTS {
            let mut pgbench = bench.start_pgbench("row", clients, sync, SECONDS + 2)?;
            say(
                format!("{clients} writers saturate the machine, {words}"),
                probe(bench, SECONDS, Duration::ZERO, 1).await?,
            );
            ensure!(pgbench.wait()?.success(), "pgbench failed");
            bench.settle().await?;
        }
    }
    for writers in [2, 4] {
        let waits = probe(bench, SECONDS, Duration::from_millis(1), writers).await?;
        say(format!("{writers} writers whose transactions overlap, 5 to 50 ms each"), waits);
    }
    let mut holder = PgConnection::connect(&bench.stage.postgres.url("postgres")).await?;
    holder.execute("begin; insert into marker values (-1)").await?;
    say(
        format!("a transaction that has announced is open for {OPEN_SECONDS} s"),
        probe(bench, OPEN_SECONDS, Duration::ZERO, 1).await?,
    );
    holder.execute("rollback").await?;
    bench.report.say("## From the commit's answer to the key being gone\n\nThe default delivery; each probe changes one row, 50 times a second at the most.");
    bench.report.table(&rows);
    Ok(())
}

/// Writers that each change rows of their own, one after the other; those of several stay in their
/// transactions for a while.
async fn probe(
    bench: &Bench,
    seconds: u32,
    open: Duration,
    writers: u32,
) -> anyhow::Result<Vec<Duration>> {
    let mut tasks = Vec::new();
    for writer in 0..writers {
        let sql = PgConnection::connect(&bench.stage.postgres.url("postgres")).await?;
        let ids = (writer + 1..=PROBES).step_by(writers as usize).collect();
        tasks.push(tokio::spawn(write(
            sql,
            bench.stage.redis.client()?,
            ids,
            Duration::from_secs(seconds.into()),
            !open.is_zero(),
        )));
    }
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await??);
    }
    ensure!(!waits.is_empty(), "no probe came to an end");
    Ok(waits)
}

async fn write(
    mut sql: PgConnection,
    mut cache: Client,
    ids: Vec<u32>,
    length: Duration,
    overlaps: bool,
) -> anyhow::Result<Vec<Duration>> {
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (began, mut waits) = (Instant::now(), Vec::new());
    for (id, open) in ids.iter().cycle().zip(OVERLAP.iter().cycle()) {
        if began.elapsed() > length {
            break;
        }
        pace.tick().await;
        let key = format!("probe:{id}");
        cache.put(&key, "old")?;
        let update = format!(
            "update probe set name = 'new', updated_at = clock_timestamp() where id = {id}"
        );
        if overlaps {
            sql.execute(AssertSqlSafe(format!("begin; {update}"))).await?;
            tokio::time::sleep(Duration::from_millis(*open)).await;
            sql.execute("commit").await?;
        } else {
            sql.execute(AssertSqlSafe(update)).await?;
        }
        let committed = Instant::now();
        while cache.has(&key)? {
            ensure!(committed.elapsed() < Duration::from_secs(60), "{key} stays cached");
            tokio::task::yield_now().await; // the clock of the runtime has milliseconds
            std::thread::sleep(Duration::from_micros(100));
        }
        waits.push(committed.elapsed());
    }
    Ok(waits)
}
