//! What does being watched cost the writer, in each delivery, with the listener running?
//!
//! A statement over 200,000 rows, and 1 to 64 concurrent writers of one row (pgbench), with and
//! without waiting for the disk. The kinds alternate within each round; figures are medians of five
//! rounds, beside a table that is not watched. Then, how long a key outlives its row's commit while
//! others write (delays.rs). `./dev bench writers`, in about twenty minutes; `UNSTALE_ROUNDS=1` is
//! quicker, and `UNSTALE_PART=bulk`, `concurrent` or `delays` is one of the three.

mod delays;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::stage::report::{Report, median};
use crate::stage::{self, Stage};
use anyhow::{Context as _, ensure};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use unstale::scratch::redis::Client;

const KINDS: [&str; 4] = ["none", "row", "statement", "log"];
const ROWS: u32 = 200_000;
const CLIENTS: [u32; 4] = [1, 4, 16, 64];
const SECONDS: u32 = 3;

struct Bench {
    stage: Stage,
    sql: PgConnection,
    cache: Client,
    report: Report,
    rounds: usize,
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn measure() -> anyhow::Result<()> {
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(()); // `cargo test --benches` measures nothing
    }
    let rounds = stage::rounds()?;
    let stage = Stage::build()?;
    let (sql, cache) =
        (PgConnection::connect(&stage.postgres.url("postgres")).await?, stage.redis.client()?);
    let mut bench = Bench {
        stage,
        sql,
        cache,
        report: Report::new("writers", "What being watched costs the writer"),
        rounds,
    };
    bench.prepare().await?;
    let listener = bench.stage.listen()?;
    bench.settle().await?;
    let part = std::env::var("UNSTALE_PART").unwrap_or_default();
    if part.is_empty() || part == "bulk" {
        bench.bulk().await?;
    }
    if part.is_empty() || part == "concurrent" {
        bench.concurrent().await?;
    }
    if part.is_empty() || part == "delays" {
        delays::measure(&mut bench).await?;
    }
    bench.report.say(&format!(
        "The listener's peak RSS throughout: {:.0} MB.",
        stage::peak_megabytes(listener.pid())?
    ));
    if part.is_empty() { bench.report.save() } else { Ok(()) }
}

impl Bench {
    async fn prepare(&mut self) -> anyhow::Result<()> {
        for kind in KINDS {
            let create = format!(
                "create table {kind}_bulk (id bigint primary key, email text, name text, updated_at timestamptz not null default clock_timestamp());
                 create table {kind}_small (like {kind}_bulk including all);
                 insert into {kind}_small select g, 'user' || g || '@example.com', 'name' from generate_series(1, {ROWS}) g"
            );
            self.sql.execute(AssertSqlSafe(create)).await?;
            if kind != "none" {
                for table in ["bulk", "small"] {
                    let watch = format!(
                        "select unstale.watch('{kind}_{table}', array['{kind}:{{id}}'], '{kind}')"
                    );
                    self.sql.execute(AssertSqlSafe(watch)).await?;
                }
            }
        }
        let markers = "create table marker (id int primary key); create table log_marker (id int primary key);
                       select unstale.watch('marker', array['marker']), unstale.watch('log_marker', array['log_marker'], 'log')";
        self.sql.execute(markers).await?;
        self.sql.execute("vacuum analyze").await?;
        Ok(())
    }

    /// Waits until the listener has done everything, so that it takes nothing from what comes next.
    async fn settle(&mut self) -> anyhow::Result<()> {
        for marker in ["marker", "log_marker"] {
            self.cache.put(marker, "x")?;
            self.sql
                .execute(AssertSqlSafe(format!(
                    "insert into {marker} values (1); delete from {marker}"
                )))
                .await?;
        }
        let began = Instant::now();
        while self.cache.count(&["exists", "marker", "log_marker"])? > 0 {
            ensure!(
                began.elapsed() < Duration::from_secs(60),
                "the listener does not come to an end"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    async fn bulk(&mut self) -> anyhow::Result<()> {
        const STATEMENTS: [&str; 3] = ["INSERT", "UPDATE", "DELETE"];
        let mut seconds = vec![vec![Vec::new(); KINDS.len()]; STATEMENTS.len()];
        for round in 1..=self.rounds {
            eprintln!("statements over {ROWS} rows, round {round} of {}", self.rounds);
            for (k, kind) in in_turn(round) {
                for (s, statement) in STATEMENTS.iter().enumerate() {
                    let sql = match *statement {
                        "INSERT" => format!(
                            "insert into {kind}_bulk select g, 'user' || g || '@example.com', 'name' from generate_series(1, {ROWS}) g"
                        ),
                        "UPDATE" => format!(
                            "update {kind}_bulk set name = 'new', updated_at = clock_timestamp()"
                        ),
                        _ => format!("delete from {kind}_bulk"),
                    };
                    self.sql.execute("checkpoint").await?;
                    let began = Instant::now();
                    self.sql.execute(AssertSqlSafe(sql)).await?;
                    seconds[s][k].push(began.elapsed().as_secs_f64());
                    self.settle().await?;
                    self.sql.execute(AssertSqlSafe(format!("vacuum analyze {kind}_bulk"))).await?;
                }
            }
        }
        let mut rows = vec![header("")];
        for (statement, of_kinds) in STATEMENTS.iter().zip(seconds) {
            let medians: Vec<f64> = of_kinds.into_iter().map(median).collect();
            let cells = medians
                .iter()
                .map(|seconds| format!("{seconds:.2} s, {:.2}x", seconds / medians[0]));
            rows.push([(*statement).to_owned()].into_iter().chain(cells).collect());
        }
        self.report
            .say(&format!("## One statement over {ROWS} rows\n\nTime, and the ratio to the same table without a watch. Less is better."));
        self.report.table(&rows);
        Ok(())
    }

    async fn concurrent(&mut self) -> anyhow::Result<()> {
        self.report.say(
            "## Concurrent writers of one row\n\nTransactions a second, and the share that is left of an unwatched table's. More is better.",
        );
        for (sync, words) in [("on", "waiting for the disk"), ("off", "synchronous_commit = off")] {
            let mut speeds = vec![vec![Vec::new(); KINDS.len()]; CLIENTS.len()];
            for round in 1..=self.rounds {
                eprintln!("concurrent writers, {words}, round {round} of {}", self.rounds);
                for (c, clients) in CLIENTS.into_iter().enumerate() {
                    for (k, kind) in in_turn(round) {
                        speeds[c][k].push(self.pgbench(kind, clients, sync)?);
                        self.settle().await?;
                    }
                }
                self.sql.execute("vacuum").await?;
            }
            let mut rows = vec![header(words)];
            for (clients, of_kinds) in CLIENTS.iter().zip(speeds) {
                let medians: Vec<f64> = of_kinds.into_iter().map(median).collect();
                let cells =
                    medians.iter().map(|speed| format!("{speed:.0}/s, {:.2}", speed / medians[0]));
                rows.push([format!("{clients} writers")].into_iter().chain(cells).collect());
            }
            self.report.table(&rows);
        }
        Ok(())
    }

    /// Transactions a second.
    fn pgbench(&self, kind: &str, clients: u32, sync: &str) -> anyhow::Result<f64> {
        let output = self.start_pgbench(kind, clients, sync, SECONDS)?.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let speed = text
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        speed.with_context(|| {
            format!("pgbench failed: {text}{}", String::from_utf8_lossy(&output.stderr))
        })
    }

    fn start_pgbench(
        &self,
        kind: &str,
        clients: u32,
        sync: &str,
        seconds: u32,
    ) -> anyhow::Result<Child> {
        let script = self.stage.postgres.directory().join("script.sql");
        let sql = format!(
            "\\set id random(1, {ROWS})\nupdate {kind}_small set name = 'new', updated_at = clock_timestamp() where id = :id;\n"
        );
        std::fs::write(&script, sql)?;
        Command::new(self.stage.postgres.programs().join("pgbench"))
            .args([
                "-n",
                "-M",
                "prepared",
                "-j",
                "2",
                "-c",
                &clients.to_string(),
                "-T",
                &seconds.to_string(),
                "-U",
                "postgres",
            ])
            .arg("-f")
            .arg(&script)
            .args([
                "-h",
                &self.stage.postgres.directory().display().to_string(),
                "-p",
                &self.stage.postgres.port().to_string(),
                "postgres",
            ])
            .env("PGOPTIONS", format!("-c synchronous_commit={sync}"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("pgbench, which comes with PostgreSQL's server")
    }
}

/// The kinds, each round beginning with another, so that none always comes after the one that
/// leaves most to clean up.
fn in_turn(round: usize) -> impl Iterator<Item = (usize, &'static str)> {
    (0..KINDS.len()).map(move |n| (n + round) % KINDS.len()).map(|k| (k, KINDS[k]))
}

fn header(words: &str) -> Vec<String> {
    [words].into_iter().chain(KINDS).map(str::to_owned).collect()
}
