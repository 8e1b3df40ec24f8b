//! How large does the log become when 10,000 rows a second are written into a table that is
//! delivered by it?
//!
//! For some minutes, in the middle third of which a transaction stays open that holds vacuum back
//! for the whole database. `./dev bench growth` takes ten; `UNSTALE_MINUTES=60` is the hour.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::stage::report::{Report, median};
use crate::stage::{self, Stage};
use anyhow::Context as _;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};

const TABLE: u64 = 100_000;
const RATE: u64 = 10_000;
/// As many as are logged one by one, which takes the most space.
const ROWS_A_STATEMENT: u64 = 20;
const SAMPLES: u32 = 60;

/// At one moment, in MB.
struct Sample {
    minutes: f64,
    log: f64,
    indexes: f64,
    /// The table that is written, with its index: it does bloat while vacuum is held back.
    table: f64,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
pub(crate) async fn measure() -> anyhow::Result<()> {
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(()); // `cargo test --benches` measures nothing
    }
    let minutes: u32 = std::env::var("UNSTALE_MINUTES")
        .map_or(Ok(10), |minutes| minutes.parse().context("UNSTALE_MINUTES is not a number"))?;
    let time = Duration::from_secs(60) * minutes;
    let stage = Arc::new(Stage::build()?);
    let mut sql = PgConnection::connect(&stage.postgres.url("postgres")).await?;
    let create = format!(
        "create table users (id bigint primary key, name text, updated_at timestamptz not null default clock_timestamp())
             with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
         insert into users select g, 'name' from generate_series(1, {TABLE}) g;
         select unstale.watch('users', array['user:{{id}}'], 'log')"
    );
    sql.execute(AssertSqlSafe(create)).await?;
    let listener = stage.listen()?;

    let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let began = Instant::now();
    let writer = tokio::spawn(write(stage.clone(), began, stop.clone(), written.clone()));
    let holder = tokio::spawn(hold(stage.clone(), began + time / 3, time / 3));
    let mut samples = Vec::new();
    for i in 1..=SAMPLES {
        tokio::time::sleep_until((began + time * i / SAMPLES).into()).await;
        samples.push(sample(&mut sql, began).await?);
        eprintln!(
            "{:.1} of {minutes} minutes: log {:.1} MB",
            samples[i as usize - 1].minutes,
            samples[i as usize - 1].log
        );
    }
    stop.store(true, Ordering::Relaxed);
    writer.await??;
    holder.await??;
    let rate = written.load(Ordering::Relaxed) as f64 / began.elapsed().as_secs_f64();
    say(&samples, rate, minutes, stage::peak_megabytes(listener.pid())?)
}

fn say(samples: &[Sample], rate: f64, minutes: u32, memory: f64) -> anyhow::Result<()> {
    let mut report = Report::new("growth", "How large the log becomes");
    report.say(&format!(
        "{rate:.0} rows a second for {minutes} minutes, {ROWS_A_STATEMENT} to a statement; in the middle third with a transaction open that \
         holds vacuum back. Peak RSS of the listener: {memory:.0} MB."
    ));
    let mut rows = vec![
        ["third", "log, median", "log, most", "its indexes, most", "the written table, at the end"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for (third, name) in
        samples.chunks(samples.len() / 3).zip(["free", "vacuum held back", "free again"])
    {
        let most = |of: fn(&Sample) -> f64| third.iter().map(of).fold(0.0, f64::max);
        let middle = median(third.iter().map(|sample| sample.log).collect());
        let table = third.last().map_or(0.0, |sample| sample.table);
        let cells = [middle, most(|sample| sample.log), most(|sample| sample.indexes), table]
            .map(|mb| format!("{mb:.0} MB"));
        rows.push([name.to_owned()].into_iter().chain(cells).collect());
    }
    report.table(&rows);
    report.save()
}

async fn write(
    stage: Arc<Stage>,
    began: Instant,
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
) -> anyhow::Result<()> {
    let mut sql = PgConnection::connect(&stage.postgres.url("postgres")).await?;
    let statement = format!(
        "update users set name = 'new', updated_at = clock_timestamp() where id > $1 and id <= $1 + {ROWS_A_STATEMENT}"
    );
    for n in 0.. {
        tokio::time::sleep_until(
            (began + Duration::from_secs(1) * n * ROWS_A_STATEMENT as u32 / RATE as u32).into(),
        )
        .await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let from = u64::from(n) * ROWS_A_STATEMENT % TABLE;
        let done = sqlx::query(AssertSqlSafe(statement.as_str()))
            .bind(i64::try_from(from)?)
            .execute(&mut sql)
            .await?;
        written.fetch_add(done.rows_affected(), Ordering::Relaxed);
    }
    Ok(())
}

/// Keeps a transaction open that has written and reads with one snapshot.
async fn hold(stage: Arc<Stage>, from: Instant, time: Duration) -> anyhow::Result<()> {
    tokio::time::sleep_until(from.into()).await;
    let mut sql = PgConnection::connect(&stage.postgres.url("postgres")).await?;
    sql.execute("begin isolation level repeatable read; select pg_current_xact_id()").await?;
    tokio::time::sleep_until((from + time).into()).await;
    sql.execute("commit").await?;
    Ok(())
}

async fn sample(sql: &mut PgConnection, began: Instant) -> anyhow::Result<Sample> {
    let row = sqlx::query(
        "select (select sum(pg_table_size(i.inhrelid))::float8 from pg_inherits i where i.inhparent = 'unstale.change_log'::regclass),
                (select sum(pg_indexes_size(i.inhrelid))::float8 from pg_inherits i where i.inhparent = 'unstale.change_log'::regclass),
                pg_total_relation_size('users')::float8",
    )
    .fetch_one(sql)
    .await?;
    let mb = |i: usize| row.get::<f64, _>(i) / 1e6;
    Ok(Sample {
        minutes: began.elapsed().as_secs_f64() / 60.0,
        log: mb(0),
        indexes: mb(1),
        table: mb(2),
    })
}
