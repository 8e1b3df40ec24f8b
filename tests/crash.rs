//! Chaos on real servers: writers and readers go on while anything is killed, paused or cut off, at
//! moments that a seed chooses. Then all heals, and no key may be cached with a value that is not
//! the row's (P1). No writer may have failed for any other reason than that its server was away
//! (P5).
//!
//! `./dev chaos 30m` goes on for longer, and `UNSTALE_CHAOS_REDIS=cluster` or `sentinel` has it
//! happen to these. A failure prints its seed; `UNSTALE_SEED` repeats the choices, but not the
//! timing. A test that cannot fail proves nothing: `UNSTALE_CHAOS_FLAW=log` breaks the rule of the
//! log and `UNSTALE_CHAOS_FLAW=watermark` the watermark, and either must be found.

mod cache;
mod faults;
mod fills;
mod random;
mod shared;
mod tables;
mod writers;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection, Row};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use unstale::scratch::redis::Reply;

use crate::support::servers::{own_lasting_redis, own_postgres_with};
use crate::support::wait::{pace, until};
use crate::support::world::World;
use cache::{Cache, Servers};
use faults::Faults;
use random::Random;
use shared::Shared;
use tables::{MARKER, TABLES};
use writers::Haste;

/// How long an ordinary run makes trouble.
const SHORT: Duration = Duration::from_secs(11);

/// Likewise a round of a long one, in seconds. The longer ones exceed two margins of the watermark
/// by far.
const ROUND: std::ops::Range<u64> = 12..45;

/// A long run, unless `UNSTALE_CHAOS` says how long.
const LONG: Duration = Duration::from_mins(30);

/// How long the listener may take to catch up with all that it has missed: a debug build, on a
/// machine that it shares with the faults.
const CATCH_UP: Duration = Duration::from_mins(3);

/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(5);

/// Long transactions last several pauses of up to this: at times longer than two margins of the
/// watermark.
const LONG_PAUSE: Duration = Duration::from_secs(6);

const WRITERS: u64 = 4;
const LONG_WRITERS: u64 = 2;
const READERS: u64 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_or_cut_off_nothing_stale_is_left() {
    let mut chaos = Chaos::begin().await;
    chaos.round(SHORT).await;
    chaos.summary().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes half an hour: ./dev chaos"]
async fn nothing_stale_is_left_for_as_long_as_one_cares_to_look() {
    let length = std::env::var("UNSTALE_CHAOS").map_or(LONG, |text| {
        humantime::parse_duration(&text)
            .unwrap_or_else(|error| panic!("UNSTALE_CHAOS={text}: {error}"))
    });
    let began = Instant::now();
    let mut chaos = Chaos::begin().await;
    chaos.progress = true;
    while began.elapsed() < length {
        let round = chaos.random(1000).millis(ROUND.start * 1000..ROUND.end * 1000);
        chaos.round(round.min(length)).await;
    }
    chaos.summary().await;
}

/// A key with a value that is not the row's.
struct Stale {
    key: String,
    cached: String,
    truth: String,
}

struct Chaos {
    seed: u64,
    began: Instant,
    rounds: u64,
    compared: u64,
    progress: bool,
    faults: Faults,
    shared: Arc<Shared>,
    /// Where `log` of the checkpoint is read.
    proof: &'static str,
}

impl Chaos {
    async fn begin() -> Self {
        let seed = std::env::var("UNSTALE_SEED").map_or_else(
            |_| RandomState::new().hash_one(()) % 1_000_000,
            |text| text.parse().unwrap_or_else(|_| panic!("UNSTALE_SEED is not a number: {text}")),
        );
        // A killed server keeps what it has acknowledged: then only the listener can lose
        // something.
        let postgres = own_postgres_with([
            ("fsync", "on"),
            ("full_page_writes", "on"),
            ("max_locks_per_transaction", "256"),
        ]);
        let world = World::with(postgres, own_lasting_redis()).await;
        world.execute(tables::SCHEMA).await;
        let proof = break_something(&world).await;
        let servers = Servers::start();
        let shared = Arc::new(Shared::new(
            world.sql.connect_options().as_ref().clone(),
            servers.routes(world.redis.socket()),
        ));
        let mut faults = Faults::new(world, servers).await;
        faults.listener().ready().await;
        println!("UNSTALE_SEED={seed}");
        Self {
            seed,
            began: Instant::now(),
            rounds: 0,
            compared: 0,
            progress: false,
            faults,
            shared,
            proof,
        }
    }

    /// Chaos for a while, then peace, then no key may be stale.
    async fn round(&mut self, length: Duration) {
        self.rounds += 1;
        let stop = CancellationToken::new();
        let (mut writers, mut readers) = (JoinSet::new(), JoinSet::new());
        for task in 0..WRITERS + LONG_WRITERS {
            let haste = if task < WRITERS { Haste::Short } else { Haste::Long(LONG_PAUSE) };
            writers.spawn(writers::write(
                self.shared.clone(),
                self.random(1 + task),
                haste,
                stop.clone(),
            ));
        }
        for task in 0..READERS {
            readers.spawn(fills::fill(self.shared.clone(), self.random(100 + task), stop.clone()));
        }
        let mut random = self.random(0);
        if self.progress {
            let progress = progress(self.shared.clone(), self.began, self.rounds);
            tokio::select! {
                () = self.faults.play(&mut random, length) => {}
                () = progress => {}
            }
        } else {
            self.faults.play(&mut random, length).await;
        }
        // The last writes fall into the faults that are still there.
        stop.cancel();
        while let Some(ended) = writers.join_next().await {
            ended.expect("a writer panicked");
        }
        self.faults.heal().await;
        while let Some(ended) = readers.join_next().await {
            ended.expect("a reader panicked");
        }
        self.come_through().await;
        let before = self.compared;
        self.judge().await;
        if self.progress {
            let (faults, keys) =
                (self.faults.counts().values().sum::<u64>(), self.compared - before);
            println!(
                "{:>5} s, round {}: {faults} faults so far, {keys} keys compared, 0 stale",
                self.began.elapsed().as_secs(),
                self.rounds
            );
        }
    }

    fn random(&self, task: u64) -> Random {
        Random::new(self.seed, self.rounds, task)
    }

    async fn sql(&self) -> PgConnection {
        PgConnection::connect_with(&self.shared.options).await.expect("PostgreSQL is up")
    }

    fn cache(&self) -> Cache {
        Cache::connect(&self.shared.cache).expect("Redis is up")
    }

    /// Waits until a change that comes after all others is through: its key is gone, and a
    /// heartbeat that began after its commit has come back with all before it acknowledged, and no
    /// gap is open.
    async fn come_through(&mut self) {
        let listener = self.faults.listener();
        listener.ready_within(CATCH_UP).await;
        let (mut sql, mut cache) = (self.sql().await, self.cache());
        let key = TABLES[0].row_key(MARKER);
        cache.put(&[(key.clone(), "marker".to_owned())]).expect("Redis is up");
        let marked = sqlx::query(
            "insert into public.kept (id, version, updated_at) values ($1, $2, now())
                on conflict (id) do update set version = excluded.version, updated_at = excluded.updated_at
             returning pg_current_xact_id()::text",
        );
        let marked = marked
            .bind(MARKER)
            .bind(self.shared.version())
            .fetch_one(&mut sql)
            .await
            .expect("PostgreSQL is up");
        let xid: String = marked.get(0);
        until("the marker is through", async || !cache.has(&key)).await;
        let passed = format!(
            "select coalesce(bool_or(pg_visible_in_snapshot($1::text::xid8, log)), false) from {}",
            self.proof
        );
        until("the checkpoint has passed the marker", async || {
            let passed = sqlx::query(sqlx::AssertSqlSafe(passed.as_str()))
                .bind(&xid)
                .fetch_one(&mut sql)
                .await;
            passed.expect("PostgreSQL is up").get::<bool, _>(0)
        })
        .await;
        self.faults.listener().ready().await;
    }

    /// Compares every key that is cached.
    async fn judge(&mut self) {
        let stale = self.compare().await;
        if !stale.is_empty() {
            let mut later = self.later(&stale).await;
            later.push_str(&self.faults.story());
            self.summary().await;
            panic!(
                "{} of {} cached keys are stale; UNSTALE_SEED={}\n{later}",
                stale.len(),
                self.compared,
                self.seed
            );
        }
        let complaints = self.shared.complaints();
        assert!(
            complaints.is_empty(),
            "UNSTALE_SEED={}: the application was refused: {complaints:#?}",
            self.seed
        );
    }

    async fn compare(&mut self) -> Vec<Stale> {
        let truth = tables::truth(&mut self.sql().await).await.expect("PostgreSQL is up");
        let mut cache = self.cache();
        let keys: Vec<String> = self.faults.keys().into_iter().flat_map(texts).flatten().collect();
        let mut stale = Vec::new();
        for keys in keys.chunks(500) {
            let values = texts(Reply::List(cache.values(keys).expect("Redis is up")));
            for (key, cached) in keys.iter().zip(values) {
                let (Some(truth), Some(cached)) = (truth.get(key), cached) else { continue }; // the canary, or just gone
                self.compared += 1;
                if cached != *truth {
                    stale.push(Stale { key: key.clone(), cached, truth: truth.clone() });
                }
            }
        }
        stale
    }

    /// The histories of some stale keys, and whether they were only late.
    async fn later(&self, stale: &[Stale]) -> String {
        pace(Duration::from_secs(2)).await;
        let mut cache = self.cache();
        let still = stale.iter().filter(|stale| cache.has(&stale.key)).count();
        let mut text = format!("{still} of them are still cached two seconds later\n");
        for Stale { key, cached, truth } in stale.iter().take(12) {
            let history = self.shared.history(key);
            text.push_str(&format!(
                "{key} is cached as '{cached}' and is '{truth}':\n  {}\n",
                history.join("\n  ")
            ));
        }
        text
    }

    async fn summary(&self) {
        let seconds = self.began.elapsed().as_secs();
        println!(
            "UNSTALE_SEED={}: {} rounds in {seconds} s, {} cached keys compared",
            self.seed, self.rounds, self.compared
        );
        println!("{}", done(&self.shared));
        let gaps = "select cause, count(*), count(*) filter (where complete), sum(swept)::bigint, sum(logged)::bigint, sum(keys)::bigint
                      from unstale.gap group by cause order by cause";
        for gap in
            sqlx::query(gaps).fetch_all(&mut self.sql().await).await.expect("PostgreSQL is up")
        {
            let [opened, closed, swept, logged, keys] =
                [1, 2, 3, 4, 5].map(|column| gap.get::<i64, _>(column));
            let cause: String = gap.get(0);
            println!(
                "{opened:>6} gaps ({cause}), {closed} closed: {swept} rows and {logged} logged changes read, {keys} keys deleted"
            );
        }
        for ((part, fault), count) in self.faults.counts() {
            println!("{count:>6} x {part:?} {fault:?}");
        }
    }
}

/// What writers and readers have done.
fn done(shared: &Shared) -> String {
    let [committed, rolled_back, lost, undecided, changes, fills] = [
        &shared.tally.committed,
        &shared.tally.rolled_back,
        &shared.tally.lost,
        &shared.tally.undecided,
        &shared.tally.changes,
        &shared.tally.fills,
    ]
    .map(|count| count.load(Ordering::Relaxed));
    format!(
        "{changes} changes in {committed} transactions ({rolled_back} rolled back, {lost} lost, {undecided} of them in COMMIT), {fills} keys cached"
    )
}

async fn progress(shared: Arc<Shared>, began: Instant, round: u64) {
    loop {
        println!("{:>5} s, round {round}: {}", began.elapsed().as_secs(), done(&shared));
        pace(PROGRESS).await;
    }
}

/// The texts of a list.
fn texts(reply: Reply) -> Vec<Option<String>> {
    let Reply::List(replies) = reply else { panic!("not a list: {reply:?}") };
    let text = |reply| match reply {
        Reply::Value(value) => {
            value.map(|bytes| String::from_utf8(bytes).expect("it was a string"))
        }
        other => panic!("not a value: {other:?}"),
    };
    replies.into_iter().map(text).collect()
}

/// Does what `UNSTALE_CHAOS_FLAW` asks for. Returns where the true `log` of the checkpoint is.
async fn break_something(world: &World) -> &'static str {
    match std::env::var("UNSTALE_CHAOS_FLAW").as_deref() {
        Err(_) => return "unstale.instance",
        Ok("log") => {
            world
                .execute(
                    "create function public.forget() returns trigger language plpgsql as 'begin return null; end';
                     create trigger flaw before insert on unstale.change_log_1 for each row execute function public.forget();
                     create trigger flaw before insert on unstale.change_log_2 for each row execute function public.forget();
                     create trigger flaw before insert on unstale.change_log_3 for each row execute function public.forget();",
                )
                .await;
            return "unstale.instance";
        }
        Ok("watermark") => {}
        Ok(other) => panic!("UNSTALE_CHAOS_FLAW={other}: write log or watermark"),
    }
    world
        .execute(
            "create table public.proof (log pg_snapshot);
             -- What it makes of an inserted row is also what ON CONFLICT DO UPDATE sees.
             create function public.hurry() returns trigger language plpgsql as '
             begin
                 insert into public.proof values (new.log);
                 new.watermark := clock_timestamp();
                 new.log := pg_current_snapshot();
                 new.replay_watermark := new.watermark;
                 new.replay_log := new.log;
                 return new;
             end';
             create trigger flaw before insert on unstale.instance for each row execute function public.hurry();",
        )
        .await;
    "public.proof"
}
