//! How long after its commit is a row's key gone, and how fast does a bulk statement's backlog drain?
//!
//! Prints both beside a baseline of the same run: the application's own "UPDATE, then DEL" in the same process.
//! `./dev bench latency`, on private throw-away servers, in about half a minute.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};
use unstale::scratch::guard::{Guard, Process};
use unstale::scratch::redis::Client;
use unstale::scratch::{Postgres, Redis, free_port, postgres, redis};

const CHANGES: u32 = 2_000;
const PER_SECOND: u32 = 200;
const BULK_ROWS: i64 = 200_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(()); // `cargo test --benches` measures nothing
    }
    let postgres = Postgres::start(&postgres::Options { tcp: true, ..Default::default() })?;
    let redis = Redis::start(&redis::Options { tcp: true, ..Default::default() })?;
    let mut sql = PgConnection::connect(&postgres.url("postgres")).await?;
    let mut cache = redis.client()?;
    let environment = [("DATABASE_URL", postgres.url("postgres")), ("REDIS_URL", redis.url()), ("UNSTALE_LOG__FILTER", "warn".to_owned())];
    let port = free_port()?;
    let guard = Guard::new()?;
    let mut migrate = std::process::Command::new(env!("CARGO_BIN_EXE_unstale"));
    migrate.arg("migrate").env_clear().envs(environment.clone()).stdout(Stdio::null());
    ensure!(migrate.status()?.success(), "unstale migrate failed");
    sql.execute(
        "create table users (id bigint primary key, name text, updated_at timestamptz not null default clock_timestamp());
         create table plain (id bigint primary key, name text, updated_at timestamptz not null default clock_timestamp());
         insert into users select g, 'name ' || g from generate_series(1, 200000) g;
         insert into plain select * from users;
         select unstale.watch('public.users', array['user:{id}'])",
    )
    .await?;
    let mut command = guard.command("TERM", env!("CARGO_BIN_EXE_unstale"))?;
    command.arg("run").env_clear().envs(environment).env("UNSTALE_HTTP__LISTEN", format!("127.0.0.1:{port}"));
    let listener = Process::start(command)?;
    ready(port)?;

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
    let status = std::fs::read_to_string(format!("/proc/{}/status", listener.pid()))?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    println!("  listener's peak    {}", peak.trim_start_matches("VmHWM:").trim());
    Ok(())
}

fn ready(port: u16) -> anyhow::Result<()> {
    use std::io::{Read as _, Write as _};
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        let mut answer = String::new();
        if let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port))
            && stream.write_all(b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200")
        {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    anyhow::bail!("the listener was not ready within 30 s")
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
    samples.sort();
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share) as usize];
    Ok([at(0.5), at(0.99), at(0.999)])
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
