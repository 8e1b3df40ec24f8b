//! A gap of a million changed rows: how fast is it swept, how much memory does that take, and do
//! live changes wait for it?
//!
//! The baseline is a plain `COPY` of the same rows' keys in the same run. `./dev bench sweep`, on
//! private throw-away servers.

use std::time::{Duration, Instant};

use crate::stage::report::percentile;
use crate::stage::{self, Stage};
use anyhow::ensure;
use futures_util::TryStreamExt as _;
use sqlx::postgres::{PgConnection, PgPoolCopyExt as _, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};

const ROWS: u64 = 1_000_000;
/// Between two live changes.
const PACE: Duration = Duration::from_millis(5);

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn measure() -> anyhow::Result<()> {
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(()); // `cargo test --benches` measures nothing
    }
    let stage = Stage::build()?;
    let mut sql = PgConnection::connect(&stage.postgres.url("postgres")).await?;
    let sqls = format!(
        "create table users (id bigint primary key, name text, updated_at timestamptz not null default now());
         create table live (id bigint primary key, name text, updated_at timestamptz not null default now());
         insert into users select g, 'name ' || g from generate_series(1, {ROWS}) g;
         insert into live select g, 'name ' || g from generate_series(1, 1000) g;
         create index on users (updated_at);
         update users set updated_at = '2020-01-01';
         select unstale.watch('public.users', array['user:{{id}}']);
         select unstale.watch('public.live', array['live:{{id}}'])"
    );
    sql.execute(AssertSqlSafe(sqls)).await?;
    sql.execute("vacuum analyze").await?;
    drop(stage.listen()?); // so that there is a checkpoint to go on from
    for (name, stamp) in [
        ("each with a stamp of its own", "clock_timestamp()"),
        ("all with one stamp, as of a bulk import", "now()"),
    ] {
        println!("{ROWS} rows changed while nobody listened, {name}:");
        // Without the triggers, which would log what is stamped more than the margin ago: the sweep
        // is measured, not the log.
        sql.execute("alter table users disable trigger user").await?;
        sql.execute(AssertSqlSafe(format!("update users set name = 'new', updated_at = {stamp}")))
            .await?;
        sql.execute("alter table users enable trigger user").await?;
        sql.execute("vacuum analyze users").await?;
        one_gap(&stage, &mut sql).await?;
    }
    Ok(())
}

async fn one_gap(stage: &Stage, sql: &mut PgConnection) -> anyhow::Result<()> {
    let pool = PgPoolOptions::new().connect(&stage.postgres.url("postgres")).await?;
    let began = Instant::now();
    let mut copy = pool
        .copy_out_raw(
            "copy (select 'user:' || id from users where updated_at >= '2021-01-01') to stdout",
        )
        .await?;
    let mut bytes = 0;
    while let Some(chunk) = copy.try_next().await? {
        bytes += chunk.len();
    }
    let copied = began.elapsed();
    drop(copy);
    let mut cache = stage.redis.client()?;
    cache.put_all((1..=ROWS).map(|id| format!("user:{id}")), "old")?;

    let listener = stage.start()?;
    let (mut waits, mut id) = (Vec::new(), 0_i64);
    let catches_up = || listener.readiness().is_err_and(|reason| reason.contains("catching up"));
    while !catches_up() {
        ensure!(listener.readiness().is_err(), "it has caught up before it was seen to");
    }
    while catches_up() {
        id = id % 1000 + 1;
        let key = format!("live:{id}");
        cache.put(&key, "old")?;
        sqlx::query("update live set name = 'new', updated_at = clock_timestamp() where id = $1")
            .bind(id)
            .execute(&mut *sql)
            .await?;
        let committed = Instant::now();
        while cache.has(&key)? {
            ensure!(committed.elapsed() < Duration::from_secs(60), "{key} is still cached");
        }
        waits.push(committed.elapsed());
        std::thread::sleep(PACE);
    }
    let gap = sqlx::query(
        "select extract(epoch from closed_at - opened_at)::float8, swept, logged from unstale.gap where complete order by id desc limit 1",
    );
    let gap = gap.fetch_one(&mut *sql).await?;
    let (seconds, swept, logged): (f64, i64, i64) = (gap.get(0), gap.get(1), gap.get(2));
    let left = cache.count_of((1..=ROWS).map(|id| format!("user:{id}")))?;
    ensure!(left == 0, "{left} keys are still cached");
    println!("  COPY of their keys   {:>8.2} s   ({bytes} bytes)", copied.as_secs_f64());
    println!(
        "  swept and deleted    {seconds:>8.2} s   ({swept} rows, {logged} of the log; {:.0} rows/s; {:.1}x COPY)",
        swept as f64 / seconds,
        seconds / copied.as_secs_f64()
    );
    println!(
        "  live changes         p50 {:.2?}   p99 {:.2?}   ({} of them, meanwhile)",
        percentile(&mut waits, 0.5),
        percentile(&mut waits, 0.99),
        waits.len()
    );
    println!("  listener's peak RSS  {:.0} MB", stage::peak_megabytes(listener.pid())?);
    Ok(())
}
