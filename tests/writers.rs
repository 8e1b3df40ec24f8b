//! Writers of every kind at once, while the listener is killed and frozen and somebody else fills
//! the notification queue: none fails, and nothing stale is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use tokio::task::JoinSet;

use crate::support::servers::own_postgres_with;
use crate::support::wait::{pace, until};
use crate::support::world::World;

/// Of each kind.
const WRITERS: [(&str, u32); 3] = [("patient", 4), ("hurried", 16), ("preparing", 4)];

/// One row and its keys belong to each writer: nobody waits for another's row.
async fn write(
    url: String,
    mut cache: unstale::scratch::redis::Client,
    kind: &'static str,
    id: u32,
    enough: Arc<AtomicBool>,
) -> (u32, u32) {
    let mut sql = PgConnection::connect(&url).await.expect("the cluster is up");
    let settings = match kind {
        "hurried" => "set lock_timeout = '1ms'",
        "patient" => "set unstale.bell = on", // which is needed where transactions may be prepared
        _ => "select 1",
    };
    sql.execute(settings).await.expect("a setting");
    let mut changes = 0;
    while !enough.load(Ordering::Relaxed) {
        changes += 1;
        let (keys, update) = World::change_of_email(id, changes);
        cache.put_all(keys, "a cached value").expect("Redis takes it");
        let statements = match kind {
            "preparing" => {
                vec![
                    "begin".to_owned(),
                    update,
                    format!("prepare transaction 'w{id}'"),
                    format!("commit prepared 'w{id}'"),
                ]
            }
            _ => vec![update],
        };
        for statement in statements {
            let result = sql.execute(AssertSqlSafe(statement.clone())).await;
            result.unwrap_or_else(|error| {
                panic!("P5: a {kind} writer fails at {statement}: {error:#?}")
            });
        }
        pace(Duration::from_millis(2)).await; // for the listener, which is killed before it has caught up otherwise
    }
    (id, changes)
}

/// Another application in the same database, which notifies a thousand times a second, and another
/// session that listens to it.
async fn notify(url: String, enough: Arc<AtomicBool>) -> u32 {
    let mut sql = PgConnection::connect(&url).await.expect("the cluster is up");
    let (mut every_millisecond, mut sent) = (tokio::time::interval(Duration::from_millis(1)), 0);
    while !enough.load(Ordering::Relaxed) {
        every_millisecond.tick().await;
        sql.execute(AssertSqlSafe(format!("select pg_notify('theirs', '{sent}')")))
            .await
            .expect("nobody keeps it from notifying");
        sent += 1;
    }
    sent
}

/// Writes for so long at least, and until the listener was killed and frozen `times` times.
async fn no_writer_fails(length: Duration, times: u32) {
    let mut world = World::on(own_postgres_with([
        ("max_prepared_transactions", "20"),
        ("max_connections", "60"),
    ]))
    .await;
    let count = WRITERS.iter().map(|(_, count)| count).sum();
    world.users(count).await;
    world.execute("update users set email = id || '@0'").await;
    // With room: a table that grows is locked for it, watched or not, and a lock_timeout of a
    // millisecond may be too short for that.
    world
        .execute("insert into users select n, 'filler', 'ann' from generate_series(1000, 10000) n; delete from users where id >= 1000")
        .await;
    world.execute("vacuum (truncate false) users").await;
    // No process lives for a minute here, so that what a fail-over of Redis would want again would
    // grow for an hour.
    let settings = world.daemon().impatient().in_one_session().with("UNSTALE_REPLAY__WINDOW", "1s");
    let mut daemon = settings.clone().start();
    daemon.ready().await;
    let enough = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    let kinds =
        WRITERS.iter().flat_map(|(kind, count)| std::iter::repeat_n(*kind, *count as usize));
    for (id, kind) in (1..).zip(kinds) {
        let cache = world.redis.client().expect("Redis is up");
        writers.spawn(write(world.database_url(), cache, kind, id, enough.clone()));
    }
    let other = tokio::spawn(notify(world.database_url(), enough.clone()));

    let began = Instant::now();
    let mut broken = 0;
    while broken < times || began.elapsed() < length {
        daemon.pause();
        daemon_is_missed(&world).await;
        daemon.resume();
        daemon.ready().await;
        daemon.kill9();
        daemon = settings.clone().start();
        daemon.ready().await;
        broken += 1;
        assert_eq!(writers.try_join_next().map(|writer| writer.expect("no writer fails")), None);
    }
    enough.store(true, Ordering::Relaxed);
    let mut keys = Vec::new();
    let mut written = 0;
    while let Some(writer) = writers.join_next().await {
        let (id, changes) = writer.expect("no writer fails");
        assert!(changes > 10, "only {changes} changes of writer {id}");
        written += changes;
        keys.extend(World::keys_of_emails(id, changes));
    }
    let sent = other.await.expect("nobody keeps it from notifying");
    eprintln!(
        "{written} changes, {sent} notifications of others, the listener frozen and killed {broken} times each"
    );
    world.gone(keys).await;
}

/// Waits until writers have committed some hundred changes that the frozen listener has not read.
async fn daemon_is_missed(world: &World) {
    let xid = || async {
        world.number("select pg_snapshot_xmax(pg_current_snapshot())::text::bigint").await
    };
    let then = xid().await;
    until("writers go on", async || xid().await > then + 300).await;
}

#[tokio::test]
async fn no_writer_fails_whatever_it_sets_and_whatever_befalls_the_listener() {
    Box::pin(no_writer_fails(Duration::ZERO, 2)).await;
}

#[tokio::test]
#[ignore = "takes an hour, or UNSTALE_SECONDS"]
async fn no_writer_fails_in_an_hour() {
    let seconds = std::env::var("UNSTALE_SECONDS")
        .map_or(3_600, |seconds| seconds.parse().expect("UNSTALE_SECONDS is a number"));
    Box::pin(no_writer_fails(Duration::from_secs(seconds), 1)).await;
}
