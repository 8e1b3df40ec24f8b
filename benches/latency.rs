//! How long after its commit is a row's key gone?
//!
//! At several rates and in each delivery, beside the application's own "UPDATE, then DEL" in the
//! same run. Redis itself says when a key goes (keyspace events). `./dev bench latency`, in about
//! five minutes; `UNSTALE_ROUNDS=1` is quicker.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::stage::report::{Report, median, percentile};
use crate::stage::{self, Stage};
use anyhow::{Context as _, ensure};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use unstale::scratch::redis::{Client, Reply};

const ROWS: u32 = 25_000;
/// Changes a second, and how many write them.
const LOADS: [(u32, u32); 4] = [(100, 8), (1_000, 1), (1_000, 8), (5_000, 8)];
const SECONDS: u32 = 4;
/// By the application, and in each delivery.
const CASES: [&str; 4] = ["UPDATE, then DEL", "row", "statement", "log"];

/// Of one run, in milliseconds; and the rate that the writers reached.
struct Outcome {
    percentiles: [f64; 3],
    reached: f64,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
pub(crate) async fn measure() -> anyhow::Result<()> {
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(()); // `cargo test --benches` measures nothing
    }
    let rounds = stage::rounds()?;
    let stage = Arc::new(Stage::build()?);
    let mut sql = PgConnection::connect(&stage.postgres.url("postgres")).await?;
    for (case, name) in CASES.iter().enumerate() {
        let create = format!(
            "create table t{case} (id bigint primary key, name text, updated_at timestamptz not null default clock_timestamp()) with (fillfactor = 50);
             insert into t{case} select g, 'name' from generate_series(1, {ROWS}) g"
        );
        sql.execute(AssertSqlSafe(create)).await?;
        if case > 0 {
            sql.execute(AssertSqlSafe(format!(
                "select unstale.watch('t{case}', array['k{case}:{{id}}'], '{name}')"
            )))
            .await?;
        }
    }
    sql.execute("vacuum analyze").await?;
    let _listener = stage.listen()?;
    stage.redis.client()?.ask(&["config", "set", "notify-keyspace-events", "Eg"])?;

    let mut report = Report::new("latency", "From the commit's answer to the key being gone");
    let header = ["", "p50", "p99", "p99.9", "changes/s"].map(str::to_owned).to_vec();
    for (rate, writers) in LOADS {
        let mut outcomes: Vec<Vec<Outcome>> = CASES.iter().map(|_| Vec::new()).collect();
        for round in 1..=rounds {
            eprintln!("{rate} changes a second of {writers}, round {round} of {rounds}");
            for (case, outcomes) in outcomes.iter_mut().enumerate() {
                outcomes.push(run(&stage, case, (rate, writers)).await?);
            }
        }
        let mut rows = vec![header.clone()];
        for (name, outcomes) in CASES.iter().zip(&outcomes) {
            let of =
                |i: usize| median(outcomes.iter().map(|outcome| outcome.percentiles[i]).collect());
            let reached = median(outcomes.iter().map(|outcome| outcome.reached).collect());
            rows.push(vec![
                (*name).to_owned(),
                ms(of(0)),
                ms(of(1)),
                ms(of(2)),
                format!("{reached:.0}"),
            ]);
        }
        let of = if writers == 1 { "one writer".to_owned() } else { format!("{writers} writers") };
        report.say(&format!(
            "## {rate} changes a second of {of}\n\nMedians of {rounds} alternating rounds."
        ));
        report.table(&rows);
    }
    report.save()
}

/// Each of some rows is changed once, its key cached before.
async fn run(
    stage: &Arc<Stage>,
    case: usize,
    (rate, count): (u32, u32),
) -> anyhow::Result<Outcome> {
    let changes = (rate * SECONDS).min(ROWS);
    let mut cache = stage.redis.client()?;
    cache.put_all((1..=changes).map(|id| format!("k{case}:{id}")), "old")?;
    let gone = watch_keys(stage, case, changes)?;
    let began = Instant::now() + Duration::from_millis(50);
    let mut writers = Vec::new();
    for writer in 0..count {
        let stage = stage.clone();
        writers.push(tokio::spawn(async move {
            write(&stage, case, rate, (writer + 1..=changes).step_by(count as usize), began).await
        }));
    }
    let mut committed = vec![began; changes as usize + 1];
    for writer in writers {
        for (id, at) in writer.await?? {
            committed[id as usize] = at;
        }
    }
    let reached = f64::from(changes) / began.elapsed().as_secs_f64();
    let mut waits = Vec::new();
    for _ in 0..changes {
        let (id, at) = gone.recv().context("a key is still cached")?;
        waits.push(at.saturating_duration_since(committed[id as usize]));
    }
    Ok(Outcome {
        percentiles: [0.5, 0.99, 0.999]
            .map(|share| percentile(&mut waits, share).as_secs_f64() * 1000.0),
        reached,
    })
}

/// What it has written, with the time of each commit's answer.
async fn write(
    stage: &Stage,
    case: usize,
    rate: u32,
    ids: impl Iterator<Item = u32>,
    began: Instant,
) -> anyhow::Result<Vec<(u32, Instant)>> {
    let mut sql = PgConnection::connect(&stage.postgres.url("postgres")).await?;
    let mut cache = stage.redis.client()?;
    let statement =
        format!("update t{case} set name = 'new', updated_at = clock_timestamp() where id = $1");
    let mut done = Vec::new();
    for id in ids {
        tokio::time::sleep_until((began + Duration::from_secs(1) * (id - 1) / rate).into()).await;
        sqlx::query(AssertSqlSafe(statement.as_str()))
            .bind(i64::from(id))
            .execute(&mut sql)
            .await?;
        done.push((id, Instant::now()));
        if case == 0 {
            cache.ask(&["del", &format!("k0:{id}")])?;
        }
    }
    Ok(done)
}

/// When each of the keys goes, as Redis says it.
fn watch_keys(stage: &Stage, case: usize, keys: u32) -> anyhow::Result<Receiver<(u32, Instant)>> {
    let (send, gone) = channel();
    let mut events: Client = stage.redis.client()?;
    ensure!(
        matches!(events.ask(&["subscribe", "__keyevent@0__:del"])?, Reply::List(_)),
        "no events"
    );
    let prefix = format!("k{case}:");
    std::thread::spawn(move || {
        let mut left = keys;
        while left > 0 {
            let Ok(Reply::List(push)) = events.next_push() else { return };
            let now = Instant::now();
            if let Some(Reply::Value(Some(key))) = push.last()
                && let Some(id) = String::from_utf8_lossy(key)
                    .strip_prefix(&prefix)
                    .and_then(|id| id.parse().ok())
            {
                left -= 1;
                let _ = send.send((id, now)); // unless the bench has failed
            }
        }
    });
    Ok(gone)
}

fn ms(milliseconds: f64) -> String {
    format!("{milliseconds:.2} ms")
}
