//! A burst of a million changes in one transaction: how long after its commit is the last key gone?
//! And what does that cost?
//!
//! Beside it, the same burst with what people write instead: Node with pg-listen and ioredis,
//! Python with asyncpg and redis-py (`benches/peers`, from npm and PyPI); and as the limit, Redis
//! alone, which is handed the keys of the burst by clients that have them ready; and a cluster of
//! three primaries on the same cores. All alternate within a round; figures are medians of five.
//! `./dev bench drain`, in about ten minutes; `UNSTALE_ROUNDS=1` is quicker, and so are
//! `UNSTALE_PEERS=no` and `UNSTALE_PART=cluster`, which is the cluster beside one server.

use std::time::{Duration, Instant};

use crate::stage::peers::{self, Kind};
use crate::stage::report::{Report, median};
use crate::stage::{self, Stage};
use anyhow::{Context as _, ensure};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use unstale::scratch::Redis;
use unstale::scratch::redis::{self, Client, Cluster};

const ROWS: u64 = 1_000_000;
const KEYS_PER_COMMAND: usize = 500;
const IDLE: Duration = Duration::from_secs(20);

/// Who deletes the keys, and how the table is delivered.
const CASES: [(&str, Option<Kind>, &str); 5] = [
    ("unstale, row", None, "row"),
    ("unstale, statement", None, "statement"),
    ("unstale, log", None, "log"),
    ("Node: pg-listen, ioredis", Some(Kind::Node), "row"),
    ("Python: asyncpg, redis-py", Some(Kind::Python), "row"),
];

/// The listener's mark in Redis, which stays.
const MARK: &str = "unstale:mark:default";

/// What none of them can pass.
const ALONE: &str = "Redis alone";

/// The same through a cluster.
const IN_CLUSTER: &str = "unstale, row, into a cluster of three";

/// How long a node of it may be busy.
const NODE_TIMEOUT_MS: u32 = 15_000;

/// Enough that Redis never waits for one.
const ALONE_CLIENTS: usize = 4;

/// Of one burst.
struct Burst {
    /// Changes a second, from the commit to the last key gone.
    speed: f64,
    /// CPU seconds of the listener.
    cpu: f64,
    /// The most memory it ever used, in MB.
    memory: f64,
}

#[tokio::main(flavor = "current_thread")]
pub(crate) async fn measure() -> anyhow::Result<()> {
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(()); // `cargo test --benches` measures nothing
    }
    let rounds = stage::rounds()?;
    let cases: Vec<_> =
        CASES.into_iter().filter(|(_, kind, _)| kind.is_none() || !without_peers()).collect();
    let only_cluster = std::env::var("UNSTALE_PART").is_ok_and(|part| part == "cluster");
    let cases = if only_cluster { cases[..1].to_vec() } else { cases };
    if cases.iter().any(|(_, kind, _)| kind.is_some()) {
        peers::install()?;
    }
    let stage = Stage::build()?;
    let mut sql = PgConnection::connect(&stage.postgres.url("postgres")).await?;
    sql.execute("create table users (id bigint primary key, name text, updated_at timestamptz not null default clock_timestamp()) with (fillfactor = 45)").await?;
    sql.execute(AssertSqlSafe(format!(
        "insert into users select g, 'name' from generate_series(1, {ROWS}) g"
    )))
    .await?;
    sql.execute("vacuum analyze users").await?;

    let mut report = Report::new("drain", "A burst of a million changes");
    let mut bursts: Vec<Vec<Burst>> = cases.iter().map(|_| Vec::new()).collect();
    let cluster = Cluster::start(3, 0, NODE_TIMEOUT_MS, &redis::Options::default())?;
    let (mut alone, mut in_cluster) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        for (case, bursts) in cases.iter().zip(&mut bursts) {
            eprintln!("round {round} of {rounds}: {}", case.0);
            bursts.push(burst(&stage, &mut sql, case).await.with_context(|| case.0)?);
        }
        eprintln!("round {round} of {rounds}: {IN_CLUSTER}");
        in_cluster.push(burst_into_cluster(&stage, &mut sql, &cluster).await.context(IN_CLUSTER)?);
        eprintln!("round {round} of {rounds}: {ALONE}");
        alone.push(redis_alone(&stage)?);
    }
    let mut rows = vec![
        ["", "changes/s", "against unstale, row", "CPU seconds", "peak RSS"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut first = 0.0;
    let names = cases.iter().map(|(name, ..)| *name).chain([IN_CLUSTER]);
    bursts.push(in_cluster);
    for (name, bursts) in names.zip(&bursts) {
        let of = |figure: fn(&Burst) -> f64| median(bursts.iter().map(figure).collect());
        let speed = of(|burst| burst.speed);
        first = if first == 0.0 { speed } else { first };
        let (cpu, memory) = (of(|burst| burst.cpu), of(|burst| burst.memory));
        rows.push(vec![
            name.to_owned(),
            format!("{speed:.0}"),
            format!("{:.2}", speed / first),
            format!("{cpu:.2}"),
            format!("{memory:.0} MB"),
        ]);
    }
    let alone = median(alone);
    rows.push(vec![
        ALONE.to_owned(),
        format!("{alone:.0}"),
        format!("{:.2}", alone / first),
        String::new(),
        String::new(),
    ]);
    report.say("One UPDATE of 1,000,000 rows, each with a cached key; from its commit to the last key gone. More is better.");
    report.table(&rows);
    idle(&stage, &mut report)?;
    report.save()
}

/// What peers hear: a trigger of their own, because most of a burst is in unstale's log.
const EACH_ROW: &str = "
    select unstale.unwatch(w.relation) from unstale.watch w;
    drop trigger if exists each_row on users;
    create or replace function each_row() returns trigger language plpgsql as $$
    begin
        perform pg_notify(unstale.channel(), format('{\"new\":{\"id\":\"%s\"}}', new.id));
        return null;
    end $$;
    create trigger each_row after update on users for each row execute function each_row()";

/// Instead of what the peers hear, if they were there.
async fn watch(sql: &mut PgConnection, delivery: &str) -> anyhow::Result<()> {
    sql.execute("drop trigger if exists each_row on users").await?;
    sql.execute(AssertSqlSafe(format!(
        "select unstale.watch('users', array['user:{{id}}'], '{delivery}')"
    )))
    .await?;
    Ok(())
}

/// `UNSTALE_PEERS=no`: only what is ours is measured.
fn without_peers() -> bool {
    std::env::var("UNSTALE_PEERS").is_ok_and(|text| text == "no")
}

async fn burst(
    stage: &Stage,
    sql: &mut PgConnection,
    (_, kind, delivery): &(&str, Option<Kind>, &str),
) -> anyhow::Result<Burst> {
    if kind.is_some() {
        sql.execute(EACH_ROW).await?;
    } else {
        watch(sql, delivery).await?;
    }
    sql.execute("vacuum users").await?;
    let mut cache = stage.redis.client()?;
    cache.put_all((1..=ROWS).map(|id| format!("user:{id}")), "old")?;
    let (ours, theirs) = match kind {
        None => (Some(stage.listen()?), None),
        Some(kind) => {
            cache.count(&["del", MARK])?; // the peers have none
            (None, Some(peers::start(*kind, stage)?))
        }
    };
    // A new watch, or a start, deletes all keys; the peers know nothing of that.
    cache.put_all((1..=ROWS).map(|id| format!("user:{id}")), "old")?;
    ensure!(cache.size()? >= ROWS, "the keys are not there");
    let pid = ours
        .as_ref()
        .map(stage::Listener::pid)
        .or(theirs.as_ref().map(peers::Peer::pid))
        .context("one of them runs")?;
    let before = cpu_seconds(pid)?;
    sql.execute("update users set name = 'new', updated_at = clock_timestamp()").await?;
    let committed = Instant::now();
    while cache.size()? > u64::from(ours.is_some()) {
        // The mark.
        ensure!(
            committed.elapsed() < Duration::from_secs(120),
            "{} keys are still cached",
            cache.size()?
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    let speed = ROWS as f64 / committed.elapsed().as_secs_f64();
    Ok(Burst { speed, cpu: cpu_seconds(pid)? - before, memory: stage::peak_megabytes(pid)? })
}

async fn burst_into_cluster(
    stage: &Stage,
    sql: &mut PgConnection,
    cluster: &Cluster,
) -> anyhow::Result<Burst> {
    watch(sql, "row").await?;
    sql.execute("vacuum users").await?;
    let mut caches = cluster.nodes.iter().map(Redis::client).collect::<Result<Vec<_>, _>>()?;
    let mut size = move || {
        caches.iter_mut().try_fold(0, |sum, cache| Ok::<_, std::io::Error>(sum + cache.size()?))
    };
    cluster.put_all((1..=ROWS).map(|id| format!("user:{id}")), "old")?;
    let listener = stage.listen_to(&cluster.url())?;
    cluster.put_all((1..=ROWS).map(|id| format!("user:{id}")), "old")?;
    ensure!(size()? >= ROWS, "the keys are not there");
    for node in 0..cluster.nodes.len() {
        cluster.ask(node, &["config", "resetstat"])?;
    }
    let before = cpu_seconds(listener.pid())?;
    sql.execute("update users set name = 'new', updated_at = clock_timestamp()").await?;
    let committed = Instant::now();
    while size()? > cluster.nodes.len() as u64 {
        // The marks stay.
        ensure!(
            committed.elapsed() < Duration::from_secs(120),
            "{} keys are still cached",
            size()?
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    let speed = ROWS as f64 / committed.elapsed().as_secs_f64();
    let cpu = cpu_seconds(listener.pid())? - before;
    let unlinks: u64 =
        (0..cluster.nodes.len()).map(|node| unlinks(cluster, node)).sum::<anyhow::Result<_>>()?;
    eprintln!("{:.1} keys to an UNLINK", ROWS as f64 / unlinks as f64);
    Ok(Burst { speed, cpu, memory: stage::peak_megabytes(listener.pid())? })
}

/// How many UNLINKs a node has performed.
fn unlinks(cluster: &Cluster, node: usize) -> anyhow::Result<u64> {
    let stats = cluster.text(node, &["info", "commandstats"])?;
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_unlink:calls="));
    let calls = calls.and_then(|calls| calls.split(',').next()).context("it has performed some")?;
    Ok(calls.parse()?)
}

/// Keys a second, by clients that have nothing else to do.
fn redis_alone(stage: &Stage) -> anyhow::Result<f64> {
    let mut cache = stage.redis.client()?;
    cache.put_all((1..=ROWS).map(|id| format!("user:{id}")), "old")?;
    let keys: Vec<String> = (1..=ROWS).map(|id| format!("user:{id}")).collect();
    let commands: Vec<Vec<&str>> = keys
        .chunks(KEYS_PER_COMMAND)
        .map(|keys| ["unlink"].into_iter().chain(keys.iter().map(String::as_str)).collect())
        .collect();
    let clients: Vec<_> =
        (0..ALONE_CLIENTS).map(|_| stage.redis.client()).collect::<Result<_, _>>()?;
    cache.count(&["del", MARK])?;
    let began = Instant::now();
    std::thread::scope(|scope| {
        let share = commands.len().div_ceil(ALONE_CLIENTS);
        let work = |(mut client, commands): (Client, &[Vec<&str>])| {
            commands.iter().try_for_each(|command| client.count(command).map(drop))
        };
        let workers: Vec<_> = clients
            .into_iter()
            .zip(commands.chunks(share))
            .map(|part| scope.spawn(move || work(part)))
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it does not panic"))
    })?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(cache.size()? == 0, "some keys are still there");
    Ok(ROWS as f64 / seconds)
}

fn idle(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    eprintln!("idle for {IDLE:?}");
    let listener = stage.listen()?;
    let before = cpu_seconds(listener.pid())?;
    std::thread::sleep(IDLE);
    let share = (cpu_seconds(listener.pid())? - before) / IDLE.as_secs_f64();
    report.say(&format!(
        "Idle, with the default settings, after it caught up with the last burst: {:.2} % of a core, {:.1} MB RSS.",
        share * 100.0,
        stage::megabytes(listener.pid(), "VmRSS:")?
    ));
    Ok(())
}

/// User and system time that a process has used, in seconds.
fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> =
        stat.rsplit(')').next().context("a name in brackets")?.split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}
