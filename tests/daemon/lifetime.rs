//! Ready, and not before; how it leaves, is killed, and comes back.

use super::*;
use crate::support::link::Link;

#[tokio::test]
async fn it_is_not_ready_before_it_has_caught_up() {
    let mut world = World::new().await;
    world.users(10).await;
    let mut first = world.daemon().impatient().start();
    first.ready().await;
    first.settles().await;
    first.kill9();
    world.fill_users();
    world.change_users().await;

    let link = Link::to_port(world.redis.port().expect("by TCP")).await;
    link.black_hole();
    let redis_url = format!("redis://127.0.0.1:{}", link.port());
    let mut daemon = Daemon::settings(&world.database_url(), &redis_url).impatient().start();
    until("it says why it is not ready", async || {
        let reason = daemon.not_ready().await;
        reason.contains("Redis").then_some(())
    })
    .await;
    assert!(!daemon.notifications().iter().any(|line| line == "READY=1"));
    link.heal().await;
    // Not a moment later: ready means that nothing stale is left.
    daemon.ready().await;
    assert_eq!(world.left(World::STALE), [""; 0]);
    world.users_are_fresh(&daemon).await;
}

/// What a process knows of Redis is stored at once, not with the next heartbeat: whoever comes
/// after a kill would take Redis for another one, and read a whole `replay.window` again.
#[tokio::test]
async fn one_that_is_killed_before_its_first_heartbeat_of_routine_leaves_its_mark() {
    let world = World::new().await;
    world.users(1).await;
    let settings = world
        .daemon()
        .with("UNSTALE_HEARTBEAT__INTERVAL", "60s")
        .with("UNSTALE_HEARTBEAT__TIMEOUT", "3m");
    let life = "select split_part(redis, ':', 1) from unstale.instance where name = 'test' and redis <> ''";
    let mut before: Option<String> = None;
    for _ in 0..3 {
        let mut daemon = settings.clone().start();
        daemon.ready().await;
        until("its mark is stored", async || {
            let now = sqlx::query_scalar(life).fetch_optional(&world.sql).await.expect("its row");
            (now != before).then(|| before = now)
        })
        .await;
        daemon.kill9();
        let lines = daemon.lines();
        assert!(!lines.iter().any(|line| line.contains("another Redis")), "{lines:#?}");
    }
}

/// It may have noticed a loss of Redis, and nothing says which. Its successor's first deletes are
/// on their way together, after a mark of another life: that is no loss.
#[tokio::test]
async fn one_that_is_killed_before_it_has_caught_up_is_followed_by_one_that_deletes_everything() {
    let mut world = World::new().await;
    world.users(10).await;
    let mut lock = world.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("lock table users in access exclusive mode")
        .execute(&mut *lock)
        .await
        .expect("it is free");
    let mut daemon = world.daemon().impatient().start();
    until("it has marked Redis", async || world.left([World::MARK]) == [World::MARK]).await;
    assert!(!daemon.is_ready());
    daemon.kill9();
    lock.rollback().await.expect("the lock is free");

    world.fill_users();
    world.fill(["other:1"]);
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    assert_eq!(world.left(["user:1", "user:7", "email:7@old", "other:1"]), ["other:1"]);
    let lines = daemon.lines();
    assert!(
        lines.iter().any(|line| line.contains("ended before it had ever caught up")),
        "{lines:#?}"
    );
    assert!(!lines.iter().any(|line| line.contains(r#""level":"ERROR""#)), "{lines:#?}");
}

#[tokio::test]
async fn sigterm_deletes_what_was_received_stores_the_checkpoint_and_exits_with_0() {
    let mut world = World::new().await;
    world.users(3_000).await;
    let link = Link::to_port(world.redis.port().expect("by TCP")).await;
    let redis_url = format!("redis://127.0.0.1:{}", link.port());
    // Heartbeats at the start, and then no other.
    let settings = Daemon::settings(&world.database_url(), &redis_url)
        .with("UNSTALE_HEARTBEAT__INTERVAL", "20s")
        .with("UNSTALE_HEARTBEAT__TIMEOUT", "60s")
        .with("UNSTALE_BATCH__KEYS_PER_COMMAND", "10")
        .with("UNSTALE_SHUTDOWN__TIMEOUT", "25s");
    let mut daemon = settings.start();
    daemon.ready().await;
    let checkpoints =
        "select count(*) from unstale.instance where name = 'test' and log is not null";
    until("it has stored what it caught up with", async || world.number(checkpoints).await == 1)
        .await;
    // The next one can only come from the farewell.
    world.execute("update unstale.instance set log = null").await;
    let keys = || (1..=3_000).map(|n| format!("user:{n}"));
    world.fill(keys());
    link.slow(Duration::from_millis(10));
    world.change_each_user(1..=3_000).await;
    until("all is received", async || daemon.metric("unstale_changes_total", &[]) >= 3_000.0).await;
    assert!(world.count(keys()) > 0, "the link is not slow enough for this test");
    let status = daemon.terminate();
    assert_eq!(status.code(), Some(0));
    assert_eq!(world.count(keys()), 0, "not drained");
    assert_eq!(world.number(checkpoints).await, 1);
    until("it says STOPPING=1", async || {
        daemon.notifications().iter().any(|line| line == "STOPPING=1")
    })
    .await;
}

#[tokio::test]
async fn sigterm_while_redis_is_away_ends_within_the_timeout_and_the_next_start_catches_up() {
    let mut world = World::new().await;
    world.users(10).await;
    let settings =
        world.daemon().impatient().in_one_session().with("UNSTALE_SHUTDOWN__TIMEOUT", "500ms");
    let mut daemon = settings.clone().start();
    daemon.ready().await;
    world.fill_users();
    world.redis.pause();
    world.change_users().await;
    until("all is received", async || daemon.metric("unstale_changes_total", &[]) >= 6.0).await;
    assert_eq!(daemon.terminate().code(), Some(0));
    world.redis.resume();
    let mut daemon = settings.start();
    daemon.ready().await;
    world.users_are_fresh(&daemon).await;
}

#[tokio::test]
async fn the_service_manager_hears_of_everything() {
    let world = World::new().await;
    let link = Link::to_port(world.redis.port().expect("by TCP")).await;
    link.cut().await;
    let redis_url = format!("redis://127.0.0.1:{}", link.port());
    let settings = Daemon::settings(&world.database_url(), &redis_url)
        .impatient()
        .with("WATCHDOG_USEC", "200000");
    let mut daemon = settings.start();
    until("STATUS says what is wrong", async || {
        daemon.status().is_some_and(|status| status.contains("Redis"))
    })
    .await;
    let watchdogs = |daemon: &Daemon| {
        daemon.notifications().iter().filter(|line| *line == "WATCHDOG=1").count()
    };
    until("it lives although it is not ready", async || watchdogs(&daemon) >= 3).await;
    assert!(
        daemon.notifications().iter().any(|line| line == "EXTEND_TIMEOUT_USEC=60000000"),
        "the start goes on"
    );
    assert!(!daemon.notifications().iter().any(|line| line == "READY=1"));
    link.heal().await;
    daemon.notifies_ready().await;
    until("STATUS says ready", async || daemon.status().as_deref() == Some("ready")).await;
    let before = watchdogs(&daemon);
    until("it lives", async || watchdogs(&daemon) >= before + 3).await;
    assert_eq!(daemon.terminate().code(), Some(0));
    until("it says goodbye", async || daemon.status().as_deref() == Some("shutting down")).await;
    assert!(daemon.notifications().iter().any(|line| line == "STOPPING=1"));
}

#[tokio::test]
async fn what_changes_while_it_is_killed_is_found_at_the_next_start() {
    let mut world = World::new().await;
    world.users(10).await;
    world
        .execute("create table posts (id int); select unstale.watch('posts', array['post:{id}'])")
        .await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    until("a watermark is stored", async || {
        world.number("select count(*) from unstale.instance where watermark is not null").await == 1
    })
    .await;
    daemon.kill9();
    world.fill_users();
    world.fill(["post:1", "post:2", "posts"]);
    world.change_users().await;
    world.execute("truncate posts").await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    assert_eq!(world.left(World::STALE), [""; 0], "ready means that nothing stale is left");
    world.users_are_fresh(&daemon).await;
    assert_eq!(world.left(["post:1", "post:2", "posts"]), ["posts"]);

    let found = "select count(*) from unstale.gap where cause = 'start' and complete and swept >= 2 and logged >= 5 and keys >= 14";
    until("the ledger has it", async || world.number(found).await == 1).await;
    assert_eq!(world.number("select count(*) from unstale.gap where not complete").await, 0);
}

#[tokio::test]
async fn what_a_transaction_did_before_a_gap_and_committed_in_it_is_found() {
    let mut world = World::new().await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    let mut long = world.sql.begin().await.expect("a transaction");
    for sql in [
        "update users set name = 'bob' where id = 2",
        "delete from users where id = 3",
        "update users set email = '4@new', updated_at = now() where id = 4",
    ] {
        sqlx::raw_sql(sql).execute(&mut *long).await.expect("it works");
    }
    // Later transactions, and heartbeats that have passed them: whoever goes by the newest xid or
    // the newest time is wrong now.
    for _ in 0..10 {
        world
            .execute("update users set name = 'eve', updated_at = clock_timestamp() where id = 9")
            .await;
        daemon.settles().await;
    }
    daemon.kill9();
    world.fill([
        "user:2",
        "email:2@old",
        "user:3",
        "email:3@old",
        "user:4",
        "email:4@old",
        "email:4@new",
        "user:7",
    ]);
    long.commit().await.expect("it commits");
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    assert_eq!(
        world.left([
            "user:2",
            "email:2@old",
            "user:3",
            "email:3@old",
            "user:4",
            "email:4@old",
            "email:4@new",
            "user:7"
        ]),
        ["user:7"]
    );
}
