//! Values of a writer: long ones, and dates at the end of time.

use std::time::Duration;

use crate::support::wait::until;
use crate::support::world::World;

/// What the listener may have in use beyond what it had before.
const MEMORY: u64 = 64 << 20;

#[tokio::test]
async fn a_long_value_in_a_key_never_fails_a_write_nor_fills_the_listener_and_its_key_is_deleted_by_pattern()
 {
    let mut world = World::new().await;
    world
        .execute(
            "create table long (id int primary key, t text, v varchar, b bytea, n numeric, a text[], bits varbit,
                                updated_at timestamptz default clock_timestamp());
             alter table long alter t set storage external;",
        )
        .await;
    let watch = "select unstale.watch('long', array['lt:{t}', 'lv:{v}', 'lb:{b}', 'ln:{n}', 'la:{a}', 'lx:{bits}', 'long:{id}']";
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    let memory = daemon.rss_bytes();
    for delivery in ["row", "statement", "log"] {
        world.execute(&format!("{watch}, delivery => '{delivery}')")).await;
        for (column, value, key) in [
            ("t", "repeat('x', 10000)", "lt:x"),
            ("t", "repeat(chr(1), 2000000)", "lt:x"),
            ("t", "repeat(chr(1), 185000000)", "lt:x"),
            ("v", "repeat('é', 2000000)", "lv:x"),
            ("b", "decode(repeat('00', 2000000), 'hex')", "lb:x"),
            ("n", "repeat('9', 100000)::numeric", "ln:x"),
            ("a", "array_fill(repeat('x', 100), array[100000])", "la:x"),
            ("bits", "repeat('1', 1000000)::varbit", "lx:x"),
        ] {
            world.fill([key, "long:1", "other:x"]);
            world.execute(&format!("insert into long (id, {column}) values (1, {value})")).await;
            world.gone([key, "long:1"]).await;
            world.fill([key]);
            world.execute("update long set t = 'short', v = null, b = null, n = null, a = null, bits = null").await;
            world.gone([key]).await;
            world.execute(&format!("update long set {column} = {value}; delete from long")).await;
            daemon.settles().await;
            assert_eq!(world.left(["other:x"]), ["other:x"], "{column}");
        }
    }
    let peak = daemon.peak_rss_bytes();
    assert!(peak < memory + MEMORY, "from {memory} to {peak} bytes");
    assert!(
        world.number("select max(length(change))::bigint from unstale.change_log").await < 100_000
    );
}

#[tokio::test]
async fn long_keys_that_wait_for_redis_are_bounded_in_bytes() {
    const ROWS: u32 = 20_000; // 140 MB of keys
    let mut world = World::new().await;
    world.execute("create table long (id int primary key, t text, updated_at timestamptz)").await;
    world.execute("select unstale.watch('long', array['lt:{t}', 'long:{id}'])").await;
    let mut daemon = world
        .daemon()
        .with("UNSTALE_REDIS__TIMEOUT", "2s")
        .with("UNSTALE_BATCH__STALL", "300ms")
        .start();
    daemon.ready().await;
    let all: Vec<String> = (1..=ROWS).map(|n| format!("long:{n}")).collect();
    world.fill(all.iter().cloned());
    world.redis.pause();
    let insert = "insert into long select n, repeat('x', 7000) || n, clock_timestamp() from generate_series(%, % + 499) n";
    for first in (1..=ROWS).step_by(500) {
        world.execute(&insert.replace('%', &first.to_string())).await;
    }
    until("what waits is left to a sweep", async || {
        daemon.metric("unstale_gaps_total", &[("cause", "overflow")]) >= 1.0
    })
    .await;
    world.redis.resume();
    daemon.ready_within(Duration::from_mins(2)).await;
    daemon.settles().await;
    assert_eq!(world.count(all), 0);
    let peak = daemon.peak_rss_bytes();
    assert!(peak < 2 * MEMORY, "{} MB", peak >> 20);
}

#[tokio::test]
async fn dates_at_the_end_of_time_delete_no_more_than_their_own_rows() {
    let mut world = World::new().await;
    world
        .execute("create table t (id int primary key, d timestamptz, updated_at timestamptz)")
        .await;
    world.execute("create table u (id int primary key, updated_at timestamp)").await;
    world.execute("select unstale.watch('t', array['t:{id}', 'd:{d}']), unstale.watch('u', array['u:{id}'])").await;
    let dates = [
        "294276-12-31 23:59:59",
        "infinity",
        "-infinity",
        "0044-03-15 BC",
        "4713-11-24 12:00:00 BC",
        "0001-01-01",
    ];
    let ids =
        |table: &str| (1..=dates.len() + 1).map(|id| format!("{table}:{id}")).collect::<Vec<_>>();
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    world.fill(ids("t").into_iter().chain(ids("u")));
    for (n, date) in dates.iter().enumerate() {
        world
            .execute(
                &format!("insert into t values ({}, '{date}+00', '{date}+00'); insert into u values ({0}, '{date}')", n + 1)
                    .replace("infinity+00", "infinity"),
            )
            .await;
    }
    world.gone((1..=dates.len()).flat_map(|id| [format!("t:{id}"), format!("u:{id}")])).await;
    assert_eq!(world.count(["t:7", "u:7"]), 2);
    // Ready, with all of it done: the next catch-up has nothing to do but what is stamped after it.
    daemon.settles().await;
    daemon.kill9();
    world.fill(ids("t").into_iter().chain(ids("u")));
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    assert_eq!(
        world.count(["t:7", "u:7", "t:3", "u:3", "t:4", "u:4", "t:5", "t:6", "u:6"]),
        9,
        "more was deleted than must be"
    );
    until("no table was widened", async || {
        !daemon.lines().iter().any(|line| line.contains("cannot be read"))
    })
    .await;
}
