//! The whole program on real servers: start, ready, a change, its keys gone; and that it leaves,
//! fails and comes back well.

mod lifetime;
mod schemas;

use std::time::Duration;

use crate::support::daemon::Daemon;
use crate::support::servers::own_redis;
use crate::support::wait::{until, until_within};
use crate::support::world::World;

/// What the program may use, however much changes at once.
const MEMORY_BYTES: u64 = 64 << 20;

#[tokio::test]
async fn every_kind_of_change_deletes_its_keys_and_nothing_else() {
    let mut world = World::new().await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    world.fill_users();
    world.change_users().await;
    world.users_are_fresh(&daemon).await;
}

#[tokio::test]
async fn composite_keys_constant_keys_and_null_make_the_keys_they_should() {
    let mut world = World::new().await;
    world
        .execute(
            "create table members (team int, name text, nick text, primary key (team, name));
             select unstale.watch('members', array['m:{team}:{name}', 'nick:{nick}', '{{t{team}}}:members', 'members:count']);
             insert into members values (1, 'a', 'nick'), (1, 'b', null), (2, 'a', null);",
        )
        .await;
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    let all = [
        "m:1:a",
        "m:1:b",
        "m:2:a",
        "nick:nick",
        "nick:",
        "nick:null",
        "nick:x",
        "{t1}:members",
        "{t2}:members",
        "members:count",
    ];
    for (sql, stale) in [
        (
            "update members set nick = null where team = 1 and name = 'a'",
            &["m:1:a", "nick:nick", "{t1}:members", "members:count"][..],
        ),
        (
            "update members set nick = 'x' where team = 2",
            &["m:2:a", "nick:x", "{t2}:members", "members:count"],
        ),
        (
            "update members set team = 2 where name = 'b'",
            &["m:1:b", "m:2:b", "{t1}:members", "{t2}:members", "members:count"],
        ),
        ("delete from members where name = 'b'", &["m:2:b", "{t2}:members", "members:count"]),
    ] {
        world.fill(all);
        world.fill(stale.iter().copied());
        world.execute(sql).await;
        world.gone(stale.iter().copied()).await;
        daemon.settles().await;
        let neighbours: Vec<&str> = all.into_iter().filter(|key| !stale.contains(key)).collect();
        assert_eq!(world.left(neighbours.clone()), neighbours, "{sql}");
    }
}

#[tokio::test]
async fn truncate_deletes_what_its_templates_match_and_takes_their_literals_literally() {
    let mut world = World::new().await;
    world
        .execute(
            r"create table odd (id int primary key, part text);
              select unstale.watch('odd', array['q?[a-c]*\:{id}:end', '^{id}-{part}$', 'odd:list']);",
        )
        .await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    // Enough of others that the walk takes many steps.
    world.fill((0..20_000).map(|n| format!("other:{n}")));
    let stale = [
        r"q?[a-c]*\:1:end",
        r"q?[a-c]*\:2:end",
        r"q?[a-c]*\::end",
        "q?[a-c]*\\:\r\n{*}:end",
        "^1-x$",
        "^-$",
        "odd:list",
    ];
    let neighbours = [
        r"qx[a-c]*\:1:end",
        r"q?a*\:1:end",
        r"q?[a-c]xyz\:1:end",
        r"q?[a-c]*:1:end",
        r"q?[a-c]*\:1:endx",
        r"xq?[a-c]*\:1:end",
        "1-x",
        "^1x$",
        "odd:lists",
    ];
    world.fill(stale.into_iter().chain(neighbours));
    world.execute("truncate odd").await;
    world.gone(stale).await;
    daemon.settles().await;
    assert_eq!(world.left(neighbours), neighbours);
    assert_eq!(world.count((0..20_000).map(|n| format!("other:{n}"))), 20_000);
}

#[tokio::test]
async fn a_key_longer_than_a_payload_is_deleted_through_the_log() {
    let mut world = World::new().await;
    world.execute("create table docs (name text, body text, updated_at timestamptz)").await;
    world.execute("select unstale.watch('docs', array['doc:{name}'])").await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    // Bytes count, not characters: 2,700 of the second are 8,100 bytes.
    let (long, wide) = ("x".repeat(8_000), "\u{20ac}".repeat(2_700));
    let key = |name: &str| format!("doc:{name}");
    for sql in [
        format!("insert into docs values ('{long}', '', clock_timestamp())"),
        format!("insert into docs values ('{wide}', '', clock_timestamp())"),
        "update docs set body = 'new', updated_at = clock_timestamp()".to_owned(),
        "delete from docs".to_owned(),
    ] {
        let expected = if sql.starts_with("insert") {
            vec![key(if sql.contains(&long) { &long } else { &wide })]
        } else {
            vec![key(&long), key(&wide)]
        };
        world.fill(expected.clone());
        world.fill(["doc:x"]);
        world.execute(&sql).await;
        world.gone(expected).await;
        daemon.settles().await;
        assert_eq!(world.left(["doc:x"]), ["doc:x"]);
    }
}

#[tokio::test]
async fn a_long_key_among_200_000_logged_changes_of_a_transaction_costs_little_memory() {
    let mut world = World::new().await;
    world.execute("create table docs (name text, body text)").await;
    world.execute("insert into docs select 'd' || n from generate_series(1, 200000) n").await;
    world.execute("select unstale.watch('docs', array['doc:{name}'])").await;
    let mut daemon = world.daemon().start();
    daemon.ready().await;
    let long = "x".repeat(8_000);
    let keys = || (1..=200_000).map(|n| format!("doc:d{n}")).chain([format!("doc:{long}")]);
    world.fill(keys());
    world.fill(["neighbour"]);
    // Without a stamp, all of it goes to the log, and there is one announcement of the
    // transaction's log.
    world
        .execute(&format!(
            "begin; insert into docs values ('{long}', ''); update docs set body = 'new'; commit;"
        ))
        .await;
    until_within("all keys are gone", Duration::from_secs(100), async || world.cached() <= 1).await;
    daemon.settles().await;
    assert_eq!(world.left(["neighbour"]), ["neighbour"]);
    let peak = daemon.peak_rss_bytes();
    assert!(peak < MEMORY_BYTES, "{} MB", peak >> 20);
}

#[tokio::test]
async fn watches_are_noticed_as_they_are_made_changed_and_removed() {
    let mut world = World::new().await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    world.users(10).await;
    world.fill_users();
    world.change_users().await;
    world.users_are_fresh(&daemon).await;

    // What nobody deletes any more had better not be there.
    world.fill(["email:7@old"]);
    world.execute("select unstale.watch('users', array['person:{id}', 'people'])").await;
    world.gone(["email:7@old"]).await;
    world.fill(["person:7", "person:8", "people", "email:7@old"]);
    world.execute("update users set name = 'eve' where id = 7").await;
    world.gone(["person:7", "people"]).await;
    daemon.settles().await;
    assert_eq!(world.left(["person:8", "email:7@old"]), ["person:8", "email:7@old"]);

    world.execute("select unstale.unwatch('users')").await;
    world.gone(["person:8"]).await;
    daemon.settles().await;
    world.fill(["person:8"]);
    world.execute("update users set name = 'eve' where id = 8").await;
    daemon.settles().await;
    assert_eq!(world.left(["person:8"]), ["person:8"]);
    daemon.ready().await;
}

#[tokio::test]
async fn the_keys_of_a_dropped_table_are_deleted() {
    let mut world = World::new().await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    world.fill(["user:1", "email:7@old", "users"]);
    world.execute("drop table users cascade").await; // and nobody says so
    world.gone(["user:1", "email:7@old"]).await;
    daemon.settles().await;
    assert_eq!(world.left(["users"]), ["users"]);
}

/// `watch()` forgets the tables that were dropped, possibly before the listener has seen that they
/// were.
#[tokio::test]
async fn the_keys_of_a_dropped_table_are_deleted_although_its_watch_is_forgotten_first() {
    let mut world = World::new().await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    world.fill(["user:1", "email:7@old", "users", "other:1"]);
    world.execute("drop table users cascade").await;
    world
        .execute(
            "create table others (id int); select unstale.watch('others', array['other:{id}'])",
        )
        .await;
    world.gone(["user:1", "email:7@old"]).await;
    daemon.settles().await;
    assert_eq!(world.left(["users", "other:1"]), ["users", "other:1"]);
}

#[tokio::test]
async fn two_instances_with_a_redis_each_do_not_disturb_each_other() {
    let mut world = World::new().await;
    world.users(10).await;
    let other_redis = own_redis();
    let mut other_cache = other_redis.client().expect("it has just started");
    let other_settings = Daemon::settings(&world.database_url(), &other_redis.url())
        .impatient()
        .with("UNSTALE_INSTANCE", "other");
    let (mut daemon, mut other) =
        (world.daemon().impatient().start(), other_settings.clone().start());
    daemon.ready().await;
    other.ready().await;
    world.fill(["user:1"]);
    other_cache.put("user:1", "cached").expect("it takes it");
    world.execute("delete from users where id = 1").await;
    world.gone(["user:1"]).await;
    until("it is gone from the other Redis, too", async || {
        !other_cache.has("user:1").expect("it answers")
    })
    .await;

    // While one is away, the other does not prune what the first has still to read.
    until("both have a checkpoint", async || {
        world.number("select count(*) from unstale.instance where log is not null").await == 2
    })
    .await;
    other.kill9();
    world.fill(["user:2", "user:3"]);
    for key in ["user:2", "user:3", "user:4"] {
        other_cache.put(key, "cached").expect("it takes it");
    }
    world
        .execute("delete from users where id = 2; update users set name = 'bob' where id = 3;")
        .await;
    world.gone(["user:2", "user:3"]).await;
    for _ in 0..8 {
        daemon.settles().await; // 4 heartbeats each, and every tenth prunes
    }
    let mut other = other_settings.start();
    other.ready().await;
    let left = |key| other_cache.has(key).expect("it answers");
    assert_eq!(["user:2", "user:3", "user:4"].map(left), [false, false, true]);
}

#[tokio::test]
async fn a_wrong_password_of_redis_is_named_and_never_shown_and_recovered_from() {
    let mut world = World::new().await;
    world.users(10).await;
    world.cache.ask(&["config", "set", "requirepass", "another"]).expect("Redis answers");
    let port = world.redis.port().expect("by TCP");
    let redis_url = format!("redis://default:hunter2-redis@127.0.0.1:{port}");
    let database_url = world.database_url().replace("postgres@", "postgres:hunter2-postgres@");
    let settings = Daemon::settings(&database_url, &redis_url)
        .impatient()
        .with("UNSTALE_LOG__FILTER", "debug");
    let mut daemon = settings.start();
    let reason = until("the reason names the password", async || {
        Some(daemon.not_ready().await).filter(|reason| reason.contains("WRONGPASS"))
    });
    let reason = reason.await;
    assert!(reason.contains("REDIS_URL"), "no remedy: {reason}");
    world.fill_users();
    world.change_users().await;
    world.cache.ask(&["config", "set", "requirepass", "hunter2-redis"]).expect("Redis answers");
    daemon.ready().await;
    world.users_are_fresh(&daemon).await;
    assert_eq!(daemon.terminate().code(), Some(0));
    let said = daemon.lines().into_iter().chain(daemon.notifications()).chain([reason]);
    let leaked: Vec<String> = said.filter(|line| line.contains("hunter2")).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}

#[tokio::test]
async fn an_update_of_200_000_rows_deletes_each_key_and_no_other_in_little_memory() {
    const ROWS: u32 = 200_000;
    let mut world = World::new().await;
    world.users(ROWS).await;
    let mut daemon = world.daemon().start();
    daemon.ready().await;
    let keys = |of: &'static str| (1..=ROWS).map(move |n| format!("{of}:{n}"));
    world.fill(keys("user"));
    world.fill(keys("neighbour"));
    world.execute("update users set name = 'bob', updated_at = clock_timestamp()").await;
    until_within("all keys are gone", Duration::from_secs(100), async || {
        world.cached() == u64::from(ROWS)
    })
    .await;
    daemon.settles().await;
    assert_eq!(world.count(keys("neighbour")), u64::from(ROWS));
    let peak = daemon.peak_rss_bytes();
    assert!(peak < MEMORY_BYTES, "{} MB", peak >> 20);
}
