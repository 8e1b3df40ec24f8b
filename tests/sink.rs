//! What can happen to Redis and to the connection with it, and that no deletion is lost and nothing
//! counts as done that is not.

mod cluster;
mod mark;
mod refusals;
mod sentinel;

use std::time::Duration;

use unstale::scratch::{Redis, redis};

use crate::support::daemon::{Daemon, Settings};
use crate::support::liar::{Liar, honest};
use crate::support::link::Link;
use crate::support::servers::own_lasting_redis;
use crate::support::wait::{until, until_within};
use crate::support::world::World;

/// What the program may use, however long Redis is away.
const MEMORY_BYTES: u64 = 64 << 20;

/// A world, a link before its Redis, and a daemon behind that link, ready, with everything cached.
async fn linked() -> (World, Link, Daemon) {
    linked_with(|settings| settings).await
}

/// The same with other settings.
async fn linked_with(settings: impl FnOnce(Settings) -> Settings) -> (World, Link, Daemon) {
    let mut world = World::new().await;
    world.users(10).await;
    let link = Link::to_port(world.redis.port().expect("by TCP")).await;
    let mut daemon = settings(
        Daemon::settings(&world.database_url(), &format!("redis://127.0.0.1:{}", link.port()))
            .impatient(),
    )
    .start();
    daemon.ready().await;
    world.fill_users();
    (world, link, daemon)
}

/// A daemon for another URL of the world's Redis.
fn daemon_at(world: &World, redis_url: &str) -> Daemon {
    Daemon::settings(&world.database_url(), redis_url).impatient().start()
}

/// Waits until /ready says no, with a reason that holds `text`.
async fn not_ready_because(daemon: &Daemon, text: &str) -> String {
    until(&format!("the reason holds {text:?}"), async || {
        Some(daemon.not_ready().await).filter(|reason| reason.contains(text))
    })
    .await
}

#[tokio::test]
async fn a_command_whose_reply_is_lost_does_not_count_as_done_and_is_repeated() {
    // The UNLINK must run before its connection is given up, and must not wait behind the
    // heartbeats of that time.
    let settings = |settings: Settings| {
        let settings = settings.in_one_session().with("UNSTALE_REDIS__TIMEOUT", "20s");
        settings.with("UNSTALE_HEARTBEAT__INTERVAL", "500ms").with("UNSTALE_BATCH__IN_FLIGHT", "64")
    };
    let (mut world, link, mut daemon) = linked_with(settings).await;
    let log_xmin =
        "select pg_snapshot_xmin(log)::text::bigint from unstale.instance where name = 'test'";
    until("there is a checkpoint", async || {
        world.number("select count(*) from unstale.instance where log is not null").await == 1
    })
    .await;
    link.hold_replies();
    world.change_users().await;
    let xid = world.number("select min(xid::text::bigint) from unstale.change_log").await;
    until("the UNLINK ran", async || world.left(World::STALE).is_empty()).await;
    not_ready_because(&daemon, "Redis").await;
    // Heartbeats go on to store the checkpoint, and it stays where it is.
    for _ in 0..5 {
        let saved = "select (extract(epoch from saved_at) * 1000000)::bigint from unstale.instance where name = 'test'";
        let before = world.number(saved).await;
        until("the checkpoint is stored", async || world.number(saved).await > before).await;
        assert!(
            world.number(log_xmin).await <= xid,
            "the checkpoint passed a change that Redis has not acknowledged"
        );
    }
    // The replies are lost for good. Who took the commands for done would leave what is there now.
    world.fill_users();
    link.reset().await;
    link.heal().await;
    daemon.ready().await;
    world.users_are_fresh(&daemon).await;
    until("the checkpoint moves on", async || world.number(log_xmin).await > xid).await;
}

#[tokio::test]
async fn redis_may_be_killed_and_come_back_empty() {
    let (mut world, _link, mut daemon) = linked().await;
    for _ in 0..3 {
        world.redis.kill9();
        world.execute("update users set name = 'bob' where id = 1").await;
        not_ready_because(&daemon, "Redis").await;
        world.redis.start_again().expect("it starts");
        world.cache = world.redis.client().expect("it is up");
        daemon.ready().await;
    }
    world.fill_users();
    world.change_users().await;
    world.users_are_fresh(&daemon).await;
}

#[tokio::test]
async fn redis_may_be_killed_and_come_back_with_its_keys() {
    let mut world = World::new().await;
    world.users(10).await;
    world.redis = own_lasting_redis();
    world.cache = world.redis.client().expect("it is up");
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    for _ in 0..3 {
        world
            .execute(
                "delete from users where id > 1000; insert into users (id, email) values (3, '3@old'), (5, '5@old') on conflict do nothing;
                       update users set email = '4@old' where id = 4",
            )
            .await;
        daemon.settles().await;
        world.fill_users();
        world.redis.kill9();
        world.change_users().await;
        not_ready_because(&daemon, "Redis").await;
        world.redis.start_again().expect("it starts");
        world.cache = world.redis.client().expect("it is up");
        daemon.ready().await;
        world.users_are_fresh(&daemon).await;
    }
}

/// fred's own check for unresponsive connections never fires on one that is written to.
#[tokio::test]
async fn after_a_black_hole_commands_go_on() {
    let (mut world, link, mut daemon) = linked().await;
    for _ in 0..3 {
        link.black_hole();
        world.execute("update users set name = 'eve' where id = 1").await;
        not_ready_because(&daemon, "Redis").await;
        link.heal().await;
        daemon.ready().await;
    }
    world.fill_users();
    link.black_hole();
    world.change_users().await;
    not_ready_because(&daemon, "answer").await;
    // The old connections are gone for good, as when a router forgets them.
    link.reset().await;
    link.heal().await;
    daemon.ready().await;
    world.users_are_fresh(&daemon).await;
}

/// Where a connection task of fred has ended, later commands would wait for nobody.
#[tokio::test]
async fn after_a_hundred_failed_connections_it_still_recovers() {
    let mut world = World::new().await;
    world.users(10).await;
    let link = Link::to_port(world.redis.port().expect("by TCP")).await;
    // Many commands at the same time, each of which tries by itself.
    let settings =
        Daemon::settings(&world.database_url(), &format!("redis://127.0.0.1:{}", link.port()))
            .impatient()
            .with("UNSTALE_BATCH__KEYS_PER_COMMAND", "1")
            .with("UNSTALE_BATCH__IN_FLIGHT", "64");
    let mut daemon = settings.start();
    daemon.ready().await;
    world.fill_users();
    let accepted = "lines of the link";
    link.cut().await;
    world.change_users().await;
    world.execute("insert into users (id) select generate_series(2001, 2100)").await;
    not_ready_because(&daemon, "Redis").await;
    for _ in 0..100 {
        link.heal().await;
        until(accepted, async || link.connections() > 0).await;
        link.cut().await;
    }
    link.heal().await;
    daemon.ready().await;
    world.users_are_fresh(&daemon).await;
}

/// A full command buffer of fred would never drain.
#[tokio::test]
async fn more_commands_than_may_be_on_their_way_wait_and_are_done() {
    let mut world = World::new().await;
    world.users(5_000).await;
    let link = Link::to_port(world.redis.port().expect("by TCP")).await;
    let settings =
        Daemon::settings(&world.database_url(), &format!("redis://127.0.0.1:{}", link.port()))
            .with("UNSTALE_BATCH__KEYS_PER_COMMAND", "1")
            .with("UNSTALE_BATCH__IN_FLIGHT", "64");
    let mut daemon = settings.start();
    daemon.ready().await;
    world.fill((1..=5_000).map(|n| format!("user:{n}")));
    world.fill(["neighbour"]);
    link.slow(Duration::from_millis(5));
    world.change_each_user(1..=5_000).await;
    until("all are received", async || daemon.metric("unstale_changes_total", &[]) >= 5_000.0)
        .await;
    link.heal().await;
    world.gone((1..=5_000).map(|n| format!("user:{n}"))).await;
    daemon.settles().await;
    assert_eq!(world.left(["neighbour"]), ["neighbour"]);
}

#[tokio::test]
async fn a_redis_that_stops_in_its_tracks_is_waited_for() {
    let (mut world, _link, mut daemon) = linked().await;
    for _ in 0..3 {
        world.redis.pause();
        world.execute("update users set name = 'eve' where id = 1").await;
        not_ready_because(&daemon, "answer").await;
        world.redis.resume();
        daemon.ready().await;
    }
    world.fill_users();
    world.redis.pause();
    world.change_users().await;
    not_ready_because(&daemon, "answer").await;
    world.redis.resume();
    daemon.ready().await;
    world.users_are_fresh(&daemon).await;
}

#[tokio::test]
async fn while_redis_is_away_postgres_is_drained_in_little_memory_and_a_sweep_finds_the_rest() {
    const ROWS: u32 = 200_000;
    let mut world = World::new().await;
    world.users(ROWS).await;
    let link = Link::to_port(world.redis.port().expect("by TCP")).await;
    let settings =
        Daemon::settings(&world.database_url(), &format!("redis://127.0.0.1:{}", link.port()));
    let settings =
        settings.with("UNSTALE_REDIS__TIMEOUT", "1s").with("UNSTALE_BATCH__STALL", "300ms");
    let mut daemon = settings.with("UNSTALE_HEARTBEAT__INTERVAL", "200ms").start();
    daemon.ready().await;
    let keys = || (1..=ROWS).map(|n| format!("user:{n}"));
    world.fill(keys());
    world.fill(["neighbour", "email:1@old"]);
    link.black_hole();
    world
        .execute("update users set name = 'bob', updated_at = clock_timestamp() where id % 2 = 0")
        .await;
    world.execute("update users set name = 'bob' where id % 4 = 1").await;
    world.execute("delete from users where id % 4 = 3").await;
    let given_up = async || daemon.metric("unstale_gaps_total", &[("cause", "overflow")]) >= 1.0;
    until_within("the batch overflows", Duration::from_secs(60), given_up).await;
    // Drained to the last: a heartbeat that was sent after all of it has come back, or PostgreSQL's
    // queue would not be empty.
    until_within("PostgreSQL is drained", Duration::from_secs(60), async || {
        let state = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'unstale' and wait_event = 'ClientWrite'";
        daemon.metric("unstale_pending_keys", &[]) <= 50_512.0 && world.number(state).await == 0
    })
    .await;
    assert!(
        world.number("select count(*) from pg_stat_activity where datname = current_database() and application_name = 'unstale'").await
            >= 2
    );
    link.reset().await;
    link.heal().await;
    until_within("all keys are gone", Duration::from_secs(120), async || world.cached() <= 1).await;
    daemon.ready().await;
    assert_eq!(world.left(["neighbour"]), ["neighbour"]);
    let peak = daemon.peak_rss_bytes();
    assert!(peak < MEMORY_BYTES, "{} MB", peak >> 20);
    let complete = "select count(*) from unstale.gap where cause = 'overflow' and complete";
    until("the ledger has the gap", async || world.number(complete).await >= 1).await;
}

#[tokio::test]
async fn a_replica_is_refused_with_the_remedy_and_nothing_is_lost_when_it_is_a_primary_again() {
    let (mut world, _link, mut daemon) = linked().await;
    let unused = unstale::scratch::free_port().expect("a free port").to_string();
    // Its keys stay: it finds no primary to take others from.
    world.cache.ask(&["replicaof", "127.0.0.1", &unused]).expect("it answers");
    world.change_users().await;
    let reason = not_ready_because(&daemon, "READONLY").await;
    assert!(reason.contains("let REDIS_URL lead to the primary"), "{reason}");
    world.cache.ask(&["replicaof", "no", "one"]).expect("it answers");
    daemon.ready().await;
    world.users_are_fresh(&daemon).await;
}

#[tokio::test]
async fn a_user_without_unlink_is_refused_with_the_remedy_and_what_the_remedy_names_is_enough() {
    let mut world = World::new().await;
    world.users(10).await;
    let rule = |cache: &mut unstale::scratch::redis::Client, commands: &[&str]| {
        let head = [
            "acl",
            "setuser",
            "app",
            "reset",
            "on",
            ">secret",
            "~user:*",
            "~email:*",
            "~unstale:*",
        ];
        let all: Vec<&str> = head.into_iter().chain(commands.iter().copied()).collect();
        let reply = cache.ask(&all).expect("it answers");
        assert_eq!(reply, unstale::scratch::redis::Reply::Status("OK".into()));
    };
    rule(&mut world.cache, &["+ping", "+scan"]);
    let url = format!("redis://app:secret@127.0.0.1:{}/0", world.redis.port().expect("by TCP"));
    let mut daemon = daemon_at(&world, &url);
    let reason = not_ready_because(&daemon, "NOPERM").await;
    assert!(reason.contains("let the user run UNLINK, SCAN, PING, GET and SET"), "{reason}");
    world.fill_users();
    world.change_users().await;
    rule(&mut world.cache, &["+unlink", "+scan", "+ping", "+get", "+set"]);
    daemon.ready().await;
    world.users_are_fresh(&daemon).await;
    // TRUNCATE walks through all keys.
    world.fill(["user:1", "other:1"]);
    world.execute("truncate users").await;
    world.gone(["user:1"]).await;
    daemon.settles().await;
    assert_eq!(world.left(["other:1"]), ["other:1"]);
    let of_libraries: Vec<String> =
        daemon.lines().into_iter().filter(|line| line.contains("fred::")).collect();
    assert!(of_libraries.is_empty(), "said twice: {of_libraries:?}");
}

#[tokio::test]
async fn a_url_may_name_a_database_and_a_password_or_a_socket() {
    let mut world = World::new().await;
    world.users(10).await;
    world.cache.ask(&["config", "set", "requirepass", "p@ss/word"]).expect("it answers");
    let port = world.redis.port().expect("by TCP");
    let socket =
        world.redis.socket_url().replace("redis+unix://", "redis+unix://:p%40ss%2Fword@localhost");
    for (url, database) in
        [(format!("redis://:p%40ss%2Fword@127.0.0.1:{port}/5"), "5"), (socket, "0")]
    {
        world.cache.ask(&["select", if database == "0" { "5" } else { "0" }]).expect("it answers");
        world.fill_users();
        world.cache.ask(&["select", database]).expect("it answers");
        world.fill_users();
        let mut daemon = daemon_at(&world, &url);
        daemon.ready().await;
        world.execute("update users set name = 'bob' where id = 1").await;
        world.gone(["user:1"]).await;
        daemon.settles().await;
        assert_eq!(world.left(World::NEIGHBOURS), World::NEIGHBOURS);
        world.cache.ask(&["select", if database == "0" { "5" } else { "0" }]).expect("it answers");
        assert_eq!(world.left(["user:1"]), ["user:1"], "another database was changed");
        daemon.kill9();
    }
}
