//! How long after its commit is a row's key gone, and how fast does a bulk statement's backlog drain?
//!
//! Prints both beside a baseline of the same run: the application's own "UPDATE, then DEL" in the same process.
//! `./dev bench latency`, on private throw-away servers, in about half a minute.

mod stage;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};
use stage::{Stage, percentile};
use unstale::scratch::redis::Client;

const CHANGES: u32 = 2_000;
const PER_SECOND: u32 = 200;
const BULK_ROWS: i64 = 200_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(()); // `cargo test --benches` measures nothing
    }
    let stage = Stage::build()?;
    let mut sql = PgConnection::connect(&stage.postgres.url("postgres")).await?;
    let mut cache = stage.redis.client()?;
    sql.execute(
        "create table users (id bigint primary key, name text, updated_at timestamptz not null default clock_timestamp());
         create table plain (id bigint primary key, name text, updated_at timestamptz not null default clock_timestamp());
         insert into users select g, 'name ' || g from generate_series(1, 200000) g;
         insert into plain select * from users;
         select unstale.watch('public.users', array['user:{id}'])",
    )
    .await?;
    let listener = stage.listen()?;

    println!("{CHANGES} changes at {PER_SECOND} a second, from the commit's answer to the key being gone:");
    let floor = latency(&mut sql, &mut cache, "plain", true).await?;
    let unstale = latency(&mut sql, &mut cache, "users", false).await?;
    println!("  UPDATE, then DEL   p50 {:>9.3?}   p99 {:>9.3?}   p99.9 {:>9.3?}", floor[0], floor[1], floor[2]);
    println!("  unstale, row       p50 {:>9.3?}   p99 {:>9.3?}   p99.9 {:>9.3?}", unstale[0], unstale[1], unstale[2]);
    println!("  ratio              p50 {:>8.1}x", unstale[0].as_secs_f64() / floor[0].as_secs_f64());

    println!("one UPDATE of {BULK_ROWS} rows with a cached key each:");
    let took = bulk(&mut sql, &mut cache, "plain").await?;
    println!("  unwatched          {:>9.3?}", took.0);
    let (statement, drained) = bulk(&mut sql, &mut cache, "users").await?;
    println!(
        "  row                {statement:>9.3?}   ({:.2}x), then {drained:.3?} until the last key is gone",
        statement.as_secs_f64() / took.0.as_secs_f64()
    );
    println!("  listener's peak RSS {}", listener.peak_memory()?);
    Ok(())
}

/// p50, p99 and p99.9.
async fn latency(sql: &mut PgConnection, cache: &mut Client, table: &str, by_hand: bool) -> anyhow::Result<[Duration; 3]> {
    let statement = format!("update {table} set name = 'new', updated_at = clock_timestamp() where id = $1");
    let mut samples = Vec::new();
    let pace = Duration::from_secs(1) / PER_SECOND;
    let mut next = Instant::now();
    for id in 1..=i64::from(CHANGES) {
        let key = format!("user:{id}");
        cache.put(&key, "old")?;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next += pace;
        sqlx::query(sqlx::AssertSqlSafe(statement.as_str())).bind(id).execute(&mut *sql).await?;
        let committed = Instant::now();
        if by_hand {
            cache.ask(&["del", &key])?;
        }
        while cache.has(&key)? {
            ensure!(committed.elapsed() < Duration::from_secs(10), "{key} is still cached");
        }
        samples.push(committed.elapsed());
    }
    Ok([0.5, 0.99, 0.999].map(|share| percentile(&mut samples, share)))
}

/// How long the statement takes, and how long after it the last key is gone.
async fn bulk(sql: &mut PgConnection, cache: &mut Client, table: &str) -> anyhow::Result<(Duration, Duration)> {
    let watched = table == "users";
    if watched {
        cache.put_all((1..=BULK_ROWS).map(|id| format!("user:{id}")), "old")?;
        ensure!(cache.size()? >= BULK_ROWS.unsigned_abs(), "the keys are not there");
    }
    let began = Instant::now();
    let statement = format!("update {table} set name = 'bulk', updated_at = clock_timestamp()");
    sqlx::query(sqlx::AssertSqlSafe(statement)).execute(sql).await.context("the bulk UPDATE")?;
    let (statement, committed) = (began.elapsed(), Instant::now());
    while watched && cache.size()? > 0 {
        ensure!(committed.elapsed() < Duration::from_secs(60), "keys are still cached");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok((statement, committed.elapsed()))
}
