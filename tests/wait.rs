//! `unstale wait`: when it returns, everything that was committed before is gone, whatever fails
//! meanwhile.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::time::Instant;
use unstale::command::wait;

use crate::support::daemon::{Daemon, command};
use crate::support::link::Link;
use crate::support::wait::until as eventually;
use crate::support::world::World;

/// One table in each delivery.
const TABLES: &str = "
    create table by_row (id int primary key, n int, updated_at timestamptz not null default clock_timestamp());
    create table by_statement (like by_row including all);
    create table by_log (like by_row including all);
    insert into by_row select n, 0 from generate_series(1, 50) n; insert into by_statement select * from by_row; insert into by_log select * from by_row;
    select unstale.watch('by_row', array['by_row:{id}']);
    select unstale.watch('by_statement', array['by_statement:{id}'], delivery => 'statement');
    select unstale.watch('by_log', array['by_log:{id}'], delivery => 'log')";

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `unstale wait`: its exit code and what it complained of.
fn run(world: &World, arguments: &str, role: Option<&str>) -> (Option<i32>, String) {
    let url = role.map_or(world.database_url(), |role| {
        world.database_url().replace("postgres@", &format!("{role}@"))
    });
    let output = command(
        &format!("wait {arguments}"),
        &[("DATABASE_URL", &url), ("UNSTALE_INSTANCE", "test")],
    );
    (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
}

async fn link_to_redis(world: &World) -> Link {
    Link::to_port(world.redis.port().expect("it listens on TCP")).await
}

/// Cached, changed, waited for, gone: until so many tries are enough. How long each wait took.
async fn never_early(world: &mut World, are_enough: impl Fn(u32) -> bool) -> Vec<Duration> {
    let mut sql = PgConnection::connect(&world.database_url()).await.expect("the cluster is up");
    let mut asker = PgConnection::connect(&world.database_url()).await.expect("the cluster is up");
    let mut took = Vec::new();
    for n in (1..).take_while(|n| !are_enough(n - 1)) {
        let (table, id) = (["by_row", "by_statement", "by_log"][n as usize % 3], 1 + n / 3 % 50);
        let key = format!("{table}:{id}");
        world.fill([&key]);
        let stamp = if n % 2 == 0 { ", updated_at = clock_timestamp()" } else { "" }; // else to be found in the log alone
        let change = format!("update {table} set n = {n}{stamp} where id = {id}");
        sqlx::raw_sql(AssertSqlSafe(change)).execute(&mut sql).await.expect("a write never fails");
        let began = Instant::now();
        while let Some(reason) = wait::until(&mut asker, "test", Instant::now() + PATIENCE)
            .await
            .expect("PostgreSQL answers")
        {
            println!("try {n}, after {:?}: {reason}", began.elapsed()); // not in time is not early
        }
        took.push(began.elapsed());
        assert!(world.left([key.as_str()]).is_empty(), "try {n}: {key} is still there");
    }
    took
}

/// Cuts sessions, ends backends and takes Redis away until it is stopped, and says which it was;
/// `done` counts them.
async fn break_things(
    mut sql: PgConnection,
    to_postgres: &Link,
    to_redis: &Link,
    stop: &AtomicBool,
    done: &AtomicUsize,
) -> [u32; 4] {
    let mut count = [0; 4];
    for round in (0_usize..).take_while(|_| !stop.load(Ordering::Relaxed)) {
        count[round % 4] += 1;
        match round % 4 {
            0 => to_postgres.reset().await,
            1 => to_redis.reset().await,
            2 => {
                to_redis.cut().await;
                healthy_for(30).await;
                to_redis.heal().await;
            }
            _ => {
                let terminate = "select pg_terminate_backend(pid) from pg_stat_activity
                                  where datname = current_database() and application_name = 'unstale'";
                sqlx::raw_sql(terminate).execute(&mut sql).await.expect("an administrator may");
            }
        }
        done.store(round + 1, Ordering::Relaxed);
        healthy_for(300 * (1 + round as u64 % 5)).await;
    }
    count
}

/// The time between faults, which is no wait for anything.
async fn healthy_for(milliseconds: u64) {
    tokio::time::timeout(Duration::from_millis(milliseconds), std::future::pending::<()>())
        .await
        .unwrap_or_default();
}

async fn never_early_among_faults(tries: u32) {
    let mut world = World::new().await;
    world.execute(TABLES).await;
    let (to_postgres, to_redis) =
        (Link::to_port(world.postgres().port()).await, link_to_redis(&world).await);
    let redis_url = format!("redis://{}", to_redis.addr());
    let mut daemon = Daemon::settings(&world.database_url_at(to_postgres.port()), &redis_url)
        .impatient()
        .start();
    daemon.ready().await;
    let (stop, broken) = (AtomicBool::new(false), AtomicUsize::new(0));
    let sql = PgConnection::connect(&world.database_url()).await.expect("the cluster is up");
    let trying = async {
        let took =
            never_early(&mut world, |n| n >= tries && broken.load(Ordering::Relaxed) >= 4).await;
        stop.store(true, Ordering::Relaxed);
        took
    };
    let (took, faults) =
        tokio::join!(trying, break_things(sql, &to_postgres, &to_redis, &stop, &broken));
    println!(
        "{} tries, the longest {:?}; resets, resets of Redis, cuts of Redis, terminations: {faults:?}",
        took.len(),
        took.iter().max()
    );
    assert!(faults.iter().all(|count| *count > 0), "{faults:?}");
}

#[tokio::test]
async fn it_never_returns_early_whatever_fails() {
    never_early_among_faults(150).await;
}

#[tokio::test]
#[ignore = "minutes: 10,000 tries"]
async fn it_never_returns_early_in_ten_thousand_tries() {
    never_early_among_faults(10_000).await;
}

#[tokio::test]
#[ignore = "a measurement"]
async fn it_returns_within_twenty_milliseconds_in_quiet_times() {
    let mut world = World::new().await;
    world.execute(TABLES).await;
    let mut daemon = world.daemon().start();
    daemon.ready().await;
    let mut took = never_early(&mut world, |n| n >= 2_000).await;
    took.sort();
    println!("p50 {:?}, p99 {:?}, longest {:?}", took[1_000], took[1_980], took[1_999]);
    assert!(took[1_980] <= Duration::from_millis(20));
}

#[tokio::test]
async fn it_is_a_command_for_a_role_that_may_read_nothing() {
    let mut world = World::new().await;
    world.execute(TABLES).await;
    let mut daemon = world.daemon().start();
    daemon.ready().await;
    let role = format!("waiter_{}", world.database());
    world.execute(&format!("create role {role} login")).await;
    let (code, complaint) = run(&world, "", Some(&role));
    assert!(code == Some(1) && complaint.contains("permission denied"), "{complaint}");
    world.execute(&format!("select unstale.grant_wait('{role}')")).await;
    world.fill(["by_log:1"]);
    world.execute("update by_log set n = 1 where id = 1").await;
    assert_eq!(run(&world, "", Some(&role)), (Some(0), String::new()));
    assert!(world.left(["by_log:1"]).is_empty());
    let readable = format!(
        "select count(*) from pg_class c where has_table_privilege('{role}', c.oid, 'select') and relnamespace <> 'pg_catalog'::regnamespace and relnamespace <> 'information_schema'::regnamespace"
    );
    assert_eq!(world.number(&readable).await, 0);
    world.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn it_says_what_it_waits_for() {
    let world = World::new().await;
    world.execute(TABLES).await;
    let (code, complaint) = run(&world, "--timeout 2s --instance nobody", None);
    assert!(
        code == Some(1) && complaint.contains("no listener of the name 'nobody' was ever here"),
        "{complaint}"
    );

    let link = link_to_redis(&world).await;
    let mut daemon = Daemon::settings(&world.database_url(), &format!("redis://{}", link.addr()))
        .impatient()
        .start();
    daemon.ready().await;
    assert_eq!(run(&world, "", None).0, Some(0));
    link.cut().await;
    world.execute("update by_row set n = 2 where id = 1").await;
    let (code, complaint) = run(&world, "--timeout 2s", None);
    assert!(
        code == Some(1) && complaint.contains("not within 2s: ") && complaint.contains("'test'"),
        "{complaint}"
    );
    link.heal().await;
    assert_eq!(run(&world, "", None).0, Some(0));

    daemon.kill9();
    assert_eq!(
        run(&world, "--timeout 2s", None).0,
        Some(1),
        "nobody is there, although nothing was committed since"
    );
    world.execute("update unstale.instance set saved_at = saved_at - interval '1 hour'").await;
    let (_, complaint) = run(&world, "--timeout 2s", None);
    assert!(complaint.contains("the listener 'test' was last here at "), "{complaint}");
}

/// Each instance is a Redis of its own.
#[tokio::test]
async fn one_instance_does_not_speak_for_another() {
    let world = World::new().await;
    world.execute(TABLES).await;
    let mut here = world.daemon().start();
    let mut there = world.daemon().with("UNSTALE_INSTANCE", "there").start();
    here.ready().await;
    there.ready().await;
    assert_eq!(run(&world, "--instance there", None).0, Some(0));
    there.kill9();
    assert_eq!(run(&world, "", None).0, Some(0));
    let (code, complaint) = run(&world, "--instance there --timeout 2s", None);
    assert!(code == Some(1) && complaint.contains("'there'"), "{complaint}");
}

/// As a restore brings it: progress of another history, from what would be the future here.
#[tokio::test]
async fn a_snapshot_of_another_history_proves_nothing() {
    let world = World::new().await;
    world.execute(TABLES).await;
    let mut daemon = world.daemon().start();
    daemon.ready().await;
    eventually("its progress is stored", async || {
        world.number("select count(*) from unstale.instance where log is not null").await == 1
    })
    .await;
    daemon.kill9();
    world.execute("update unstale.instance set log = '900000000:900000000:', saved_at = clock_timestamp()").await;
    assert_eq!(run(&world, "--timeout 2s", None).0, Some(1));
}
