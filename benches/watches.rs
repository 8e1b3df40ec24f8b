//! What do many watches cost: to make them, to look at them, to keep an eye on them, and to make
//! their code anew?
//!
//! 3,000 tables, a third of them in each delivery. `./dev bench watches`, in about two minutes;
//! `UNSTALE_TABLES=300` is quicker.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use crate::stage::Stage;
use crate::stage::report::{Report, median};
use anyhow::{Context as _, ensure};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

const DELIVERIES: [&str; 3] = ["row", "statement", "log"];

/// Whose code is made anew.
const OUTDATED: u32 = 300;

/// How often a query of the heartbeat is measured.
const QUERIES: usize = 21;

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn measure() -> anyhow::Result<()> {
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(()); // `cargo test --benches` measures nothing
    }
    let tables: u32 = std::env::var("UNSTALE_TABLES")
        .map_or(Ok(3_000), |tables| tables.parse())
        .context("UNSTALE_TABLES is not a number")?;
    let stage = Stage::build()?;
    let mut sql = PgConnection::connect(&stage.postgres.url("postgres")).await?;
    let config = prepare(&stage, &mut sql, tables).await?;
    let mut report = Report::new("watches", "What many watches cost");
    let mut rows = vec![vec![format!("{tables} tables"), "seconds".to_owned()]];
    let mut say = |what: &str, seconds: f64| {
        eprintln!("{what}: {seconds:.3} s");
        rows.push(vec![what.to_owned(), format!("{seconds:.3}")]);
    };
    let configured = ["--config", config.to_str().context("a path in UTF-8")?];
    say("`unstale apply`, all new", timed(&stage, "apply", &configured)?);
    say("`unstale apply`, nothing new", timed(&stage, "apply", &configured)?);
    let began = Instant::now();
    let listener = stage.listen()?;
    say("start of the listener, with two heartbeats", began.elapsed().as_secs_f64());
    say("`unstale check`", timed(&stage, "check", &[])?);
    for (what, query) in [
        ("every tenth heartbeat: unstale.notice_ddl()", "select unstale.notice_ddl()"),
        ("a changed watch: unstale.list_watches()", "select count(*) from unstale.list_watches()"),
        ("a gap: unstale.sweep_tables()", "select count(*) from unstale.sweep_tables()"),
    ] {
        let mut seconds = Vec::new();
        for _ in 0..QUERIES {
            let began = Instant::now();
            sql.execute(query).await?;
            seconds.push(began.elapsed().as_secs_f64());
        }
        say(what, median(seconds));
    }
    drop(listener);
    let outdated = format!(
        "update unstale.watch set code = 0 where id in (select id from unstale.watch order by id limit {OUTDATED})"
    );
    sql.execute(AssertSqlSafe(outdated)).await?;
    say(
        &format!("`unstale migrate`, the code of {OUTDATED} made anew"),
        timed(&stage, "migrate", &[])?,
    );
    let left: i64 = sqlx::query_scalar("select count(*) from unstale.watch where code = 0")
        .fetch_one(&mut sql)
        .await?;
    ensure!(left == 0, "{left} were left as they were");
    report.table(&rows);
    report.save()
}

/// Makes the tables, and the file that lists them.
async fn prepare(stage: &Stage, sql: &mut PgConnection, tables: u32) -> anyhow::Result<PathBuf> {
    let mut config = String::new();
    for n in 1..=tables {
        let create = format!(
            "create table t{n} (id bigint primary key, email text, name text, updated_at timestamptz not null default clock_timestamp())"
        );
        sql.execute(AssertSqlSafe(create)).await?;
        let delivery = DELIVERIES[n as usize % DELIVERIES.len()];
        writeln!(
            config,
            "[[watch]]\ntable = \"public.t{n}\"\nkeys = [\"t{n}:{{id}}\", \"e{n}:{{email}}\"]\ndelivery = \"{delivery}\""
        )?;
    }
    let path = stage.postgres.directory().join("unstale.toml");
    std::fs::write(&path, config)?;
    Ok(path)
}

/// Seconds that the program takes. `check` fails where something is not as it should be, which is
/// not what is measured.
fn timed(stage: &Stage, command: &str, arguments: &[&str]) -> anyhow::Result<f64> {
    let began = Instant::now();
    let output = stage.command(command).args(arguments).stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success() || command == "check",
        "unstale {command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(began.elapsed().as_secs_f64())
}
