//! What goes wrong: the plan of a round, made from its seed, and the doing of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use tokio::task::block_in_place;
use unstale::scratch::redis::Reply;

use super::cache::Servers;
use super::random::Random;
use super::shared::now;
use super::tables;
use crate::support::daemon::{Daemon, Settings};
use crate::support::link::Link;
use crate::support::wait::{pace, until_within};
use crate::support::world::World;

/// How long a cluster may take to find to itself.
const HEALING: Duration = Duration::from_secs(60);

/// What it happens to. One fault at a time each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Listener,
    Postgres,
    /// The listener's sessions in the server.
    Backends,
    PostgresLink,
    Redis,
    RedisLink,
    Sentinel,
    /// A table of the application; whoever does it gives up if it cannot have the lock.
    Table,
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// SIGKILL; it comes back at the end.
    Killed,
    /// SIGTERM, or PostgreSQL's fast shutdown.
    Restarted,
    /// PostgreSQL's immediate shutdown.
    Stopped,
    /// SIGSTOP.
    Paused,
    /// `pg_terminate_backend`.
    Terminated,
    /// `pg_cancel_backend`.
    Cancelled,
    Cut,
    Reset,
    BlackHoled,
    /// The commands run, and the replies wait.
    RepliesHeld,
    Slow,
    /// A replica becomes the primary, because somebody asked for it.
    FailedOver,
    /// Slots are given to another primary, with their keys.
    Resharded,
    /// VACUUM FULL: its rows move, and no trigger says so.
    Rewritten,
    /// Its watch gets another template or delivery, or loses it: triggers and functions are
    /// replaced.
    WatchedAnew,
}

/// All that can happen, what is worse more often. A round goes through it in a shuffled order,
/// again and again.
const DECK: [(Part, Fault); 26] = [
    (Part::Listener, Fault::Killed),
    (Part::Listener, Fault::Killed),
    (Part::Listener, Fault::Killed),
    (Part::Listener, Fault::Restarted),
    (Part::Listener, Fault::Restarted),
    (Part::Listener, Fault::Paused),
    (Part::Postgres, Fault::Killed),
    (Part::Postgres, Fault::Killed),
    (Part::Postgres, Fault::Restarted),
    (Part::Postgres, Fault::Stopped),
    (Part::Backends, Fault::Terminated),
    (Part::Backends, Fault::Cancelled),
    (Part::PostgresLink, Fault::Cut),
    (Part::PostgresLink, Fault::Reset),
    (Part::PostgresLink, Fault::BlackHoled),
    (Part::PostgresLink, Fault::RepliesHeld),
    (Part::PostgresLink, Fault::Slow),
    (Part::Redis, Fault::Killed),
    (Part::Redis, Fault::Paused),
    (Part::RedisLink, Fault::Cut),
    (Part::RedisLink, Fault::Reset),
    (Part::RedisLink, Fault::BlackHoled),
    (Part::RedisLink, Fault::RepliesHeld),
    (Part::RedisLink, Fault::Slow),
    (Part::Table, Fault::Rewritten),
    (Part::Table, Fault::WatchedAnew),
];

/// Instead of those of one Redis.
const OF_CLUSTER: [(Part, Fault); 11] = [
    (Part::Redis, Fault::Killed),
    (Part::Redis, Fault::Killed),
    (Part::Redis, Fault::Killed),
    (Part::Redis, Fault::Paused),
    (Part::Redis, Fault::Paused),
    (Part::Redis, Fault::FailedOver),
    (Part::Redis, Fault::FailedOver),
    (Part::Redis, Fault::Resharded),
    (Part::Redis, Fault::Resharded),
    (Part::Redis, Fault::Resharded),
    (Part::Redis, Fault::Resharded),
];

/// Likewise.
const OF_SENTINEL: [(Part, Fault); 8] = [
    (Part::Redis, Fault::Killed),
    (Part::Redis, Fault::Killed),
    (Part::Redis, Fault::Paused),
    (Part::Redis, Fault::Paused),
    (Part::Redis, Fault::FailedOver),
    (Part::Redis, Fault::FailedOver),
    (Part::Sentinel, Fault::Killed),
    (Part::Sentinel, Fault::Paused),
];

/// What can happen with these servers.
fn deck(servers: &Servers) -> Vec<(Part, Fault)> {
    let others =
        DECK.iter().filter(|(part, _)| !matches!(part, Part::Redis | Part::RedisLink)).copied();
    match servers {
        Servers::World => DECK.to_vec(),
        Servers::Cluster(_) => others.chain(OF_CLUSTER).collect(),
        Servers::Guarded(_) => others.chain(OF_SENTINEL).collect(),
    }
}

/// Something to do at some time of a round.
#[derive(Debug, Clone, Copy)]
struct Step {
    part: Part,
    fault: Fault,
    begins: bool,
    /// A number, for faults of which there are several kinds.
    which: usize,
}

/// What to do in a round of this length, in order.
fn plan(random: &mut Random, length: Duration, all: &[(Part, Fault)]) -> Vec<(Duration, Step)> {
    let (mut steps, mut deck) = (Vec::new(), Vec::new());
    let mut free: BTreeMap<Part, Duration> = BTreeMap::new();
    let mut at = random.millis(300..900);
    // Dense rounds keep a gap open; others let the listener come to rest.
    let calm = 1 + u32::from(random.one_in(2)) + u32::from(random.one_in(2));
    while at < length {
        if deck.is_empty() {
            deck = all.to_vec();
            random.shuffle(&mut deck);
        }
        let next = deck.iter().position(|(part, _)| free.get(part).is_none_or(|free| *free <= at));
        if let Some(next) = next {
            let (part, fault) = deck.remove(next);
            let lasts = match random.below(10) {
                0..2 => Duration::ZERO,
                2..7 => random.millis(50..700),
                7..9 => random.millis(700..2_000),
                _ => random.millis(2_000..5_000),
            };
            free.insert(part, at + lasts + Duration::from_millis(50));
            let which = random.below(60);
            steps.push((at, Step { part, fault, begins: true, which }));
            steps.push((at + lasts, Step { part, fault, begins: false, which }));
        }
        at += calm
            * match random.below(10) {
                0..3 => Duration::ZERO, // two at once
                3..6 => random.millis(50..500),
                6..9 => random.millis(500..1_500),
                _ => random.millis(1_500..3_500),
            };
    }
    steps.retain(|(at, _)| *at < length); // what is still wrong then is healed
    steps.sort_by_key(|(at, _)| *at); // stable: a fault begins before it ends
    steps
}

/// The servers, the links, the listener, and what is wrong with them.
pub(super) struct Faults {
    pub(super) world: World,
    servers: Servers,
    postgres: Link,
    redis: Link,
    settings: Settings,
    listener: Option<Daemon>,
    counts: BTreeMap<(Part, Fault), u64>,
    /// What happened in this round, for people.
    story: Vec<String>,
    /// What the listeners of this round said before they ended.
    said: Vec<String>,
}

impl Faults {
    /// Starts the listener.
    pub(super) async fn new(world: World, servers: Servers) -> Self {
        let postgres = Link::to_port(world.postgres().port()).await;
        let redis = Link::to_port(world.redis.port().expect("it was asked for TCP")).await;
        // Impatient, so that many faults fit into a minute.
        let (url, window) = match &servers {
            // Nothing is undone here. A longer window would delete again, and so hide, what was
            // missed.
            Servers::World => (format!("redis://127.0.0.1:{}", redis.port()), "1s"),
            Servers::Cluster(cluster) => (cluster.url(), "20s"),
            Servers::Guarded(guarded) => (guarded.url(), "20s"),
        };
        let settings = Daemon::settings(&world.database_url_at(postgres.port()), &url)
            .with("UNSTALE_HEARTBEAT__INTERVAL", "100ms")
            .with("UNSTALE_HEARTBEAT__TIMEOUT", "600ms")
            .with("UNSTALE_BACKOFF__MIN", "20ms")
            .with("UNSTALE_BACKOFF__MAX", "400ms")
            .with("UNSTALE_REDIS__TIMEOUT", "300ms")
            .with("UNSTALE_BATCH__MAX_PENDING", "1000")
            .with("UNSTALE_BATCH__STALL", "300ms")
            .with("UNSTALE_SWEEP__PAGE_ROWS", "300")
            .with("UNSTALE_REPLAY__WINDOW", window)
            .with("UNSTALE_SHUTDOWN__TIMEOUT", "1s");
        let listener = Some(settings.clone().start());
        Self {
            world,
            servers,
            postgres,
            redis,
            settings,
            listener,
            counts: BTreeMap::new(),
            story: Vec::new(),
            said: Vec::new(),
        }
    }

    /// Does what the seed says for `length`; some of it is still wrong at the end.
    pub(super) async fn play(&mut self, random: &mut Random, length: Duration) {
        (self.story, self.said) = (Vec::new(), Vec::new());
        let began = Instant::now();
        for (at, step) in plan(random, length, &deck(&self.servers)) {
            pace(at.saturating_sub(began.elapsed())).await;
            self.step(step).await;
        }
        pace(length.saturating_sub(began.elapsed())).await;
    }

    async fn step(&mut self, step: Step) {
        self.tell(&format!(
            "{:?} {:?} {}",
            step.part,
            step.fault,
            if step.begins { "begins" } else { "ends" }
        ));
        if step.begins {
            *self.counts.entry((step.part, step.fault)).or_default() += 1;
            self.begin(step).await;
        } else {
            self.end(step.part).await;
        }
    }

    async fn begin(&mut self, Step { part, fault, which, .. }: Step) {
        match (part, fault) {
            (Part::Listener, Fault::Killed) => self.end_listener(Daemon::kill9),
            (Part::Listener, Fault::Restarted) => self.end_listener(|listener| {
                let status = listener.terminate();
                // It may still have been starting.
                assert!(
                    status.success() || listener.lines().is_empty(),
                    "SIGTERM ended the listener with {status}:\n{}",
                    listener.lines().join("\n")
                );
            }),
            (Part::Listener, _) => self.listener.iter_mut().for_each(Daemon::pause),
            (Part::Postgres, Fault::Killed) => block_in_place(|| self.world.own_postgres().kill9()),
            (Part::Postgres, Fault::Stopped) => {
                block_in_place(|| self.world.own_postgres().stop_immediately())
            }
            (Part::Postgres, _) => block_in_place(|| self.world.own_postgres().restart())
                .expect("PostgreSQL comes back"),
            (Part::Backends, Fault::Terminated) => {
                self.execute(&signal_backends("pg_terminate_backend", which)).await
            }
            (Part::Backends, _) => self.execute(&signal_backends("pg_cancel_backend", which)).await,
            (Part::Table, Fault::Rewritten) => {
                let table = ["kept_0", "neglected", "plain", "logged"][which % 4];
                self.execute(&format!("set lock_timeout = '200ms'; vacuum full public.{table}"))
                    .await;
            }
            (Part::Table, _) => self.execute(tables::WATCHES[which % tables::WATCHES.len()]).await,
            (Part::Redis | Part::Sentinel, fault) => {
                block_in_place(|| self.servers.begin(&mut self.world.redis, part, fault, which))
            }
            (Part::PostgresLink, fault) => spoil(&self.postgres, fault).await,
            (Part::RedisLink, fault) => spoil(&self.redis, fault).await,
        }
    }

    /// Ends whatever is wrong with it; harmless if nothing is.
    async fn end(&mut self, part: Part) {
        match part {
            Part::Listener => match &mut self.listener {
                Some(listener) => listener.resume(),
                None => self.listener = Some(self.settings.clone().start()),
            },
            Part::Postgres if self.world.postgres().pid().is_none() => {
                block_in_place(|| self.world.own_postgres().start_again())
                    .expect("PostgreSQL recovers");
            }
            Part::Redis | Part::Sentinel => {
                block_in_place(|| self.servers.end(&mut self.world.redis, part))
            }
            Part::PostgresLink => self.postgres.heal().await,
            Part::RedisLink => self.redis.heal().await,
            Part::Postgres | Part::Backends | Part::Table => {}
        }
    }

    fn end_listener(&mut self, how: impl FnOnce(&mut Daemon)) {
        let Some(mut listener) = self.listener.take() else { return };
        block_in_place(|| {
            how(&mut listener);
            self.said.extend(listener.lines());
            drop(listener);
        });
    }

    /// Whatever becomes of it: the server may be going away just now.
    async fn execute(&self, sql: &str) {
        if let Ok(mut connection) =
            PgConnection::connect(&self.world.postgres().socket_url(self.world.database())).await
        {
            for sql in sql.split(';') {
                let _ = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await;
            }
        }
    }

    /// Ends everything that is wrong.
    pub(super) async fn heal(&mut self) {
        self.tell("all heals");
        for part in [
            Part::Postgres,
            Part::PostgresLink,
            Part::Redis,
            Part::Sentinel,
            Part::RedisLink,
            Part::Listener,
        ] {
            self.end(part).await;
        }
        let well = until_within("Redis is well again", HEALING, async || self.servers.are_well());
        if tokio::time::timeout(HEALING - Duration::from_secs(1), well).await.is_err() {
            panic!("Redis is not well again within {HEALING:?}:\n{}", self.servers.described());
        }
    }

    /// The keys of each primary.
    pub(super) fn keys(&self) -> Vec<Reply> {
        self.servers.keys(&self.world.redis)
    }

    /// The listener, which runs.
    pub(super) fn listener(&mut self) -> &mut Daemon {
        self.listener.as_mut().expect("all is healed")
    }

    fn tell(&mut self, what: &str) {
        self.story.push(format!("{} {what}", now()));
    }

    /// What happened in this round, with what the listeners said, in order.
    pub(super) fn story(&self) -> String {
        let lines = self.listener.iter().flat_map(Daemon::lines);
        let lines: Vec<String> = self.said.iter().cloned().chain(lines).collect();
        format!(
            "faults of the round:\n{}\nthe listeners said:\n{}",
            self.story.join("\n"),
            lines.join("\n")
        )
    }

    /// How often each fault happened.
    pub(super) fn counts(&self) -> &BTreeMap<(Part, Fault), u64> {
        &self.counts
    }
}

/// All of them, or only the older ones: then the session has lost one connection and not the other.
fn signal_backends(function: &str, which: usize) -> String {
    format!(
        "select {function}(pid) from (
             select pid from pg_stat_activity where application_name = 'unstale' and datname = current_database()
              order by backend_start limit {}) some",
        1 + which % 3
    )
}

async fn spoil(link: &Link, fault: Fault) {
    match fault {
        Fault::Cut => link.cut().await,
        Fault::Reset => link.reset().await,
        Fault::BlackHoled => link.black_hole(),
        Fault::RepliesHeld => link.hold_replies(),
        _ => link.slow(Duration::from_millis(40)),
    }
}
