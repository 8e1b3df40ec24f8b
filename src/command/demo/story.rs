//! What happens in the demo, step by step, and what must come out.
//!
//! Owns: the application's side: its table, its writes, its cached values. The SQL here is the
//! application's own; that it needs nothing but its own SQL is the point. Must hold: every claim
//! that is printed has just been checked, key by key. What does not come out as promised is an
//! error, and the demo ends with it.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row as _};

use super::say::{Say, count};
use super::stage::{DATABASE, PATIENCE, Stage};
use crate::scratch::redis::{Client, Reply};

/// Rows in the table, and cached profiles.
const USERS: u64 = 200_000;

/// Rows of the bulk import; the others are the neighbours.
const IMPORTED: u64 = 100_000;

/// Single updates that are measured, and the pause between them: about 200 a second.
const UPDATES: u64 = 200;
const PACE: Duration = Duration::from_millis(5);

/// How long the second delete (`repeat.after`) may take.
const SECOND_DELETE: Duration = Duration::from_secs(3);

/// Keys that are not the application's (the listener's canary comes and goes).
const OTHERS: u64 = 2;

const TABLE: &str = "create table public.users (
    id bigint primary key, email text not null, name text not null, updated_at timestamptz not null default now())";

const WATCH: &str = "select unstale.watch('public.users',
    keys => array['user:{id}:profile', 'user:by-email:{email}'])";

fn profile(id: u64) -> String {
    format!("user:{id}:profile")
}

fn by_email(email: &str) -> String {
    format!("user:by-email:{email}")
}

/// Runs SQL in a transaction of its own.
async fn execute(sql: &mut PgConnection, statement: &str) -> anyhow::Result<()> {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(sql).await?;
    Ok(())
}

/// The application: a connection to its database and one to its cache.
pub(super) struct Story<'a> {
    stage: &'a mut Stage,
    sql: PgConnection,
    cache: Client,
    say: Say,
}

impl<'a> Story<'a> {
    /// Sets the scene: a table with rows, the schema, the watch, a listener that is ready.
    pub(super) async fn begin(stage: &'a mut Stage, say: Say) -> anyhow::Result<Self> {
        execute(&mut stage.connect("postgres").await?, &format!("create database {DATABASE}"))
            .await?;
        let sql = stage.connect(DATABASE).await?;
        let cache = stage.redis.client()?;
        let mut story = Self { stage, sql, cache, say };
        let servers = story.servers().await?;
        say.aside(&format!("{servers}, private and throw-away"));

        execute(&mut story.sql, TABLE).await?;
        let rows = format!(
            "insert into public.users (id, email, name, updated_at)
                select n, 'user' || n || '@example.com', 'User ' || n, now() - interval '1 day' from generate_series(1, {USERS}) n"
        );
        execute(&mut story.sql, &rows).await?;
        story.stage.migrate()?;
        execute(&mut story.sql, WATCH).await?;
        story.stage.start_listener()?;
        story.stage.ready().await?;
        say.aside(&format!(
            "unstale migrate, then unstale run; a table of {} users, and:",
            count(USERS)
        ));
        say.blank();
        WATCH.lines().for_each(|line| say.line(&format!("    {line}")));
        Ok(story)
    }

    async fn servers(&mut self) -> anyhow::Result<String> {
        let version: String =
            sqlx::query("show server_version").fetch_one(&mut self.sql).await?.get(0);
        let Reply::Value(Some(info)) = self.cache.ask(&["info", "server"])? else {
            bail!("Redis does not say what it is")
        };
        let info = String::from_utf8_lossy(&info).into_owned();
        let field =
            |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let redis = match (field("valkey_version:"), field("redis_version:")) {
            (Some(version), _) => format!("Valkey {version}"),
            (None, version) => format!("Redis {}", version.unwrap_or_default()),
        };
        // "15.18 (Debian 15.18-0+deb12u1)"
        let postgres = version.split(' ').next().unwrap_or_default();
        Ok(format!("PostgreSQL {postgres} and {redis}"))
    }

    /// A profile is cached and its row changes, again and again: how long is the old one there?
    pub(super) async fn one_change(&mut self) -> anyhow::Result<()> {
        self.say.title(&format!("A profile changes, {} times", count(UPDATES)));
        let mut delays = Vec::new();
        let mut next = tokio::time::interval(PACE);
        for id in 1..=UPDATES {
            next.tick().await;
            self.cache.put(&profile(id), "old")?;
            execute(&mut self.sql, &format!("begin; update public.users set name = 'New', updated_at = now() where id = {id}")).await?;
            // The clock starts before COMMIT is even sent: nobody can have seen the new row
            // earlier.
            let start = Instant::now();
            execute(&mut self.sql, "commit").await?;
            while self.cache.has(&profile(id))? {
                ensure!(
                    start.elapsed() < PATIENCE,
                    "{} is still cached {} s after its row changed",
                    profile(id),
                    PATIENCE.as_secs()
                );
            }
            delays.push(start.elapsed());
        }
        delays.sort_unstable();
        let at = |percent: usize| delays[(delays.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
        let numbers =
            format!("median {:.2} ms, p99 {:.2} ms, worst {:.2} ms", at(50), at(99), at(100));
        self.say.held("COMMIT sent to key gone", &numbers);
        Ok(())
    }

    /// A row is deleted.
    pub(super) async fn delete(&mut self) -> anyhow::Result<()> {
        self.say.title("A row is deleted");
        let keys = vec![profile(1), by_email("user1@example.com")];
        self.cache.put_all(keys.clone(), "old")?;
        let start = Instant::now();
        execute(&mut self.sql, "delete from public.users where id = 1").await?;
        let milliseconds = self.all_gone(keys, start).await?;
        self.say.held("profile and by-email gone", &format!("{milliseconds:.1} ms"));
        Ok(())
    }

    /// A key column changes: what is cached under the old value is stale, and so is "not found"
    /// under the new one.
    pub(super) async fn key_change(&mut self) -> anyhow::Result<()> {
        self.say.title("An email address changes");
        let keys = vec![by_email("user2@example.com"), by_email("new@example.com"), profile(2)];
        self.cache.put_all(keys.clone(), "old")?;
        let start = Instant::now();
        execute(
            &mut self.sql,
            "update public.users set email = 'new@example.com', updated_at = now() where id = 2",
        )
        .await?;
        let milliseconds = self.all_gone(keys, start).await?;
        self.say.held("old, new and profile gone", &format!("{milliseconds:.1} ms"));
        Ok(())
    }

    /// The listener is killed, rows change in every way that a sweep by `updated_at` alone would
    /// miss, it comes back.
    pub(super) async fn crash(&mut self) -> anyhow::Result<()> {
        self.say.title("The listener is killed (SIGKILL), and rows change meanwhile");
        // Open since before the crash: its row is stamped now, and seen only after the listener is
        // back.
        let mut slow = self.stage.connect(DATABASE).await?;
        execute(
            &mut slow,
            "begin; update public.users set name = 'Slow', updated_at = now() where id = 150001",
        )
        .await?;
        self.stage.kill_listener()?;
        let changes = [
            (
                "update public.users set name = 'Down', updated_at = now() where id = 150002",
                vec![profile(150_002)],
            ),
            ("update public.users set name = 'Down' where id = 150003", vec![profile(150_003)]),
            (
                "delete from public.users where id = 150004",
                vec![profile(150_004), by_email("user150004@example.com")],
            ),
            (
                "update public.users set email = 'down@example.com' where id = 150005",
                vec![
                    profile(150_005),
                    by_email("user150005@example.com"),
                    by_email("down@example.com"),
                ],
            ),
        ];
        let mut stale = vec![profile(150_001)];
        for (statement, keys) in changes {
            execute(&mut self.sql, statement).await?;
            stale.extend(keys);
        }
        execute(&mut slow, "commit").await?;
        let neighbour = profile(150_006);
        self.cache.put_all(stale.iter().chain([&neighbour]).cloned(), "old")?;
        let cached = self.cache.count_of(stale.clone())?;
        ensure!(
            cached == stale.len() as u64,
            "keys went although the listener was dead: this demo proves nothing"
        );
        self.say.aside("an update, another that forgets updated_at, a delete, a new address,");
        self.say.aside(&format!(
            "and the commit of a transaction from before the crash: {cached} stale keys"
        ));

        let start = Instant::now();
        self.stage.start_listener()?;
        self.stage.ready().await?;
        let ready = start.elapsed();
        // No waiting here: ready means that the gap is closed.
        let left = self.cache.count_of(stale.clone())?;
        ensure!(
            left == 0,
            "the listener says that it is ready, and {left} of {cached} stale keys are still cached"
        );
        ensure!(self.cache.has(&neighbour)?, "{neighbour} is gone, whose row did not change");
        self.say
            .held("started again, caught up", &format!("{:.0} ms", ready.as_secs_f64() * 1000.0));
        self.say.held("stale keys left", "0");
        self.slow_readers(&stale).await
    }

    /// Readers that were slow put old values back: the second delete takes them. Those of all
    /// changes before come no later, so that none takes what is cached from here on.
    async fn slow_readers(&mut self, keys: &[String]) -> anyhow::Result<()> {
        let start = Instant::now();
        self.cache.put_all(keys.iter().cloned(), "old")?;
        while self.cache.count_of(keys.iter().cloned())? > 0 {
            // On a machine that needed a second from their deletion to here, it has come already.
            if start.elapsed() > SECOND_DELETE {
                let unlink: Vec<&str> =
                    std::iter::once("unlink").chain(keys.iter().map(String::as_str)).collect();
                self.cache.ask(&unlink)?;
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.say.held(
            "what slow readers put back",
            &format!("gone after {:.0} ms", start.elapsed().as_secs_f64() * 1000.0),
        );
        Ok(())
    }

    /// Half of the table is imported over itself by plain SQL; exactly that half of the cache must
    /// go.
    pub(super) async fn bulk_import(&mut self) -> anyhow::Result<()> {
        self.say.title(&format!(
            "A bulk import: one INSERT ... ON CONFLICT of {} rows",
            count(IMPORTED)
        ));
        self.cache.put_all((1..=USERS).map(profile), "old")?;
        let cached = self.cache.count_of((1..=USERS).map(profile))?;
        ensure!(cached == USERS, "of {USERS} profiles only {cached} could be cached");

        let import = format!(
            "insert into public.users (id, email, name)
                select n, 'user' || n || '@example.com', 'Imported ' || n from generate_series(1, {IMPORTED}) n
                on conflict (id) do update set name = excluded.name, updated_at = excluded.updated_at"
        );
        let start = Instant::now();
        execute(&mut self.sql, &import).await?;
        let committed = start.elapsed();
        while self.cache.size()? > USERS - IMPORTED + OTHERS {
            ensure!(
                start.elapsed() < 2 * PATIENCE,
                "not all keys of the import are gone after {} s",
                2 * PATIENCE.as_secs()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let gone = start.elapsed();
        self.all_gone((1..=IMPORTED).map(profile).collect(), start).await?;
        let neighbours = self.cache.count_of((IMPORTED + 1..=USERS).map(profile))?;
        ensure!(
            neighbours == USERS - IMPORTED,
            "{} keys of rows that did not change are gone",
            USERS - IMPORTED - neighbours
        );

        let lag = gone.saturating_sub(committed);
        self.say.held("committed", &format!("after {:.2} s", committed.as_secs_f64()));
        let rate = IMPORTED * 1000 / u64::try_from(lag.as_millis())?.max(1);
        let numbers = format!("{:.2} s later: {} a second", lag.as_secs_f64(), count(rate));
        self.say.held(&format!("{} keys deleted", count(IMPORTED)), &numbers);
        self.say.held(&format!("{} neighbours", count(neighbours)), "all still cached");
        Ok(())
    }

    /// Waits until none of these keys is cached; the milliseconds since `start`.
    async fn all_gone(&mut self, keys: Vec<String>, start: Instant) -> anyhow::Result<f64> {
        loop {
            let left = self.cache.count_of(keys.iter().cloned())?;
            if left == 0 {
                return Ok(start.elapsed().as_secs_f64() * 1000.0);
            }
            let (all, seconds) = (keys.len(), PATIENCE.as_secs());
            ensure!(
                start.elapsed() < 2 * PATIENCE,
                "{left} of {all} keys ({} ...) are still cached after {seconds} s",
                keys[0]
            );
            tokio::task::yield_now().await;
        }
    }
}
