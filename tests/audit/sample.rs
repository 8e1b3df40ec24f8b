//! The listener's sample, in a race: rows change while readers fill what they miss.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use unstale::scratch::redis::Reply;

use super::counts;
use crate::support::wait::{pace, until};
use crate::support::world::World;

/// Rows, each changed once.
const ROWS: u32 = 600;

/// How a reader fills what it misses.
#[derive(Clone, Copy, PartialEq)]
enum Readers {
    /// SET, whatever has happened since.
    Plain,
    /// As docs/readers.md says.
    Leased,
}

/// The keys that are stale once the race is over, of how many, by the sample and by an audit of
/// all.
struct Found {
    sampled: (f64, f64),
    audited: (u64, u64),
}

async fn race(readers: Readers) -> Found {
    let world = World::new().await;
    world
        .execute(&format!(
            "create table t (id int primary key, v int, updated_at timestamptz not null default clock_timestamp());
             insert into t select n, 0, clock_timestamp() - interval '1 hour' from generate_series(1, {ROWS}) n;
             select unstale.watch('t', array['t:{{id}}'], version => 'v', version_path => '$.v')"
        ))
        .await;
    let world = Arc::new(world);
    let mut daemon = world
        .daemon()
        .in_one_session()
        .with("UNSTALE_AUDIT__SAMPLE", "0.5")
        .with("UNSTALE_AUDIT__AFTER", "200ms")
        .start();
    daemon.ready().await;
    daemon.settles().await;
    let (at, stop) =
        (Arc::new(std::sync::atomic::AtomicU32::new(1)), Arc::new(AtomicBool::new(false)));
    let mut fillers = tokio::task::JoinSet::new();
    for reader in 0..8_u32 {
        let (world, at, stop) = (world.clone(), at.clone(), stop.clone());
        fillers.spawn(async move {
            let mut cache = world.redis.client().expect("Redis is there");
            let mut n = reader;
            while !stop.load(Relaxed) {
                n = n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // What is about to change is what is read.
                let id = (at.load(Relaxed) + n % 3).min(ROWS);
                read(&world, &mut cache, id, n, readers).await;
            }
        });
    }
    for id in 1..=ROWS {
        at.store(id, Relaxed);
        world
            .execute(&format!(
                "update t set v = v + 1, updated_at = clock_timestamp() where id = {id}"
            ))
            .await;
        pace(Duration::from_millis(2)).await;
    }
    stop.store(true, Relaxed);
    while fillers.join_next().await.transpose().expect("no reader panics").is_some() {}
    daemon.settles().await;
    // All that was sampled is looked at: twice as long as a second look takes, nothing comes any
    // more.
    let audited =
        || daemon.metric("unstale_audited_total", &[("table", "public.t"), ("after", "200ms")]);
    let mut last = (0.0, 0);
    until("the sample is looked at", async || {
        pace(Duration::from_millis(100)).await;
        let now = audited();
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        now > 0.0 && last.1 > 20
    })
    .await;
    let sampled = (daemon.metric("unstale_stale_total", &[("table", "public.t")]), audited());
    let (stale, _, table) = counts(&world, "--all");
    Found { sampled, audited: (stale, table["keys"].as_u64().expect("a number")) }
}

/// A cache-aside read, which takes its time between the database and the cache now and then.
async fn read(
    world: &World,
    cache: &mut unstale::scratch::redis::Client,
    id: u32,
    n: u32,
    readers: Readers,
) {
    let key = format!("t:{id}");
    let lease = format!("unstale:lease:{n:032x}");
    let taken = match readers {
        Readers::Plain => cache.ask(&["get", &key]).expect("Redis answers") == Reply::Value(None),
        Readers::Leased => matches!(
            cache.ask(&["set", &key, &lease, "nx", "px", "5000"]).expect("Redis answers"),
            Reply::Status(_)
        ),
    };
    if !taken {
        return pace(Duration::from_micros(200)).await;
    }
    let version: i32 = sqlx::query_scalar("select v from t where id = $1")
        .bind(id.cast_signed())
        .fetch_one(&world.sql)
        .await
        .expect("a row");
    pace(Duration::from_millis(u64::from(n >> 8) % 12)).await;
    let value = format!("{{\"v\":{version}}}");
    match readers {
        Readers::Plain => cache.put(&key, &value).expect("Redis takes it"),
        Readers::Leased => {
            let fill = "if redis.call('getrange', KEYS[1], 0, 45) == ARGV[1] then return redis.call('set', KEYS[1], ARGV[2], 'px', ARGV[3]) end";
            cache.ask(&["eval", fill, "1", &key, &lease, &value, "60000"]).expect("Redis answers");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_race_that_plain_readers_win_is_seen_by_the_sample_as_by_an_audit_and_leases_end_it() {
    let Found { sampled: (stale, looked), audited: (all_stale, _) } = race(Readers::Plain).await;
    println!(
        "plain readers: {stale} of {looked} in the sample, {all_stale} of {ROWS} in the audit"
    );
    assert!(stale > 0.0 && all_stale > 0, "the readers have won no race");
    let (share, real) = (stale / looked, all_stale as f64 / f64::from(ROWS));
    // Four standard deviations of a share of so many, and one key.
    let interval = 4.0 * (real * (1.0 - real) / looked).sqrt() + 1.0 / looked;
    assert!((share - real).abs() <= interval, "{share} is not {real} within {interval}");

    let Found { sampled, audited } = race(Readers::Leased).await;
    println!(
        "leases: {} of {} in the sample, {} of {} in the audit",
        sampled.0, sampled.1, audited.0, audited.1
    );
    assert!(sampled.0 == 0.0 && audited.0 == 0 && sampled.1 > 100.0, "{sampled:?} {audited:?}");
}
