//! What a gap demands beyond a sweep from the checkpoint: servers that undo what they acknowledged,
//! instances that were forgotten, tables that cannot be swept, sweeps that are cut off.

use std::time::Duration;

use unstale::scratch::redis::Reply;

use crate::support::servers::{own_lasting_redis, own_postgres};
use crate::support::wait::{until, until_within};
use crate::support::world::World;

#[tokio::test]
async fn what_a_restarted_redis_brings_back_is_deleted_again() {
    let mut world = World::new().await;
    world.redis = own_lasting_redis();
    world.cache = world.redis.client().expect("it has just started");
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    let Reply::Value(Some(mark)) = world.cache.ask(&["get", World::MARK]).expect("it answers")
    else {
        panic!("no mark")
    };
    world.execute("update users set name = 'bob', updated_at = clock_timestamp() where id = 1; delete from users where id = 2").await;
    daemon.settles().await;
    // As if the fail-over had undone the deletes, and never heard of them: keys and mark are as
    // they were.
    world.fill(["user:1", "email:1@old", "user:2", "email:2@old", "user:7"]);
    world.cache.ask(&["set", World::MARK, &String::from_utf8_lossy(&mark)]).expect("it answers");
    world.redis.kill9();
    world.redis.start_again().expect("it starts again");
    world.cache = world.redis.client().expect("it has just started");
    until("the other Redis is noticed", async || {
        daemon.metric("unstale_gaps_total", &[("cause", "redis")]) > 0.0
    })
    .await;
    world.gone(["user:1", "email:1@old", "user:2", "email:2@old"]).await;
    daemon.ready().await;
    assert_eq!(world.left(["user:7"]), ["user:7"], "it did not change");
}

#[tokio::test]
async fn keys_deleted_just_before_a_restart_of_postgres_are_deleted_again() {
    let mut world = World::on(own_postgres()).await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    world
        .execute("update users set email = '1@new', updated_at = clock_timestamp() where id = 1")
        .await;
    daemon.settles().await;
    // As if the commit were lost with the server (synchronous_commit = off), after its value had
    // been cached again.
    world.fill(["user:1", "email:1@old", "email:1@new", "user:7"]);
    world.own_postgres().restart().expect("it starts again");
    world.gone(["user:1", "email:1@old", "email:1@new"]).await;
    daemon.says("restarted").await;
    daemon.ready().await;
    assert_eq!(world.left(["user:7"]), ["user:7"], "it was not deleted before");
}

/// Stops a daemon with a checkpoint, lets `sql` happen to that, and starts it again: every watched
/// key must go.
async fn flushes_after(sql: &str, reason: &str) {
    let mut world = World::new().await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    daemon.settles().await;
    assert!(daemon.terminate().success());
    world.fill_users();
    world.fill(["other:1"]);
    world.execute(sql).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    daemon.says(reason).await;
    assert_eq!(
        world.left(["user:1", "email:1@old", "user:7", "email:7@old", "other:1"]),
        ["other:1"]
    );
}

#[tokio::test]
async fn an_instance_that_was_forgotten_deletes_everything() {
    flushes_after(
        "update unstale.instance set saved_at = now() - interval '8 days'",
        "forget_after",
    )
    .await;
}

#[tokio::test]
async fn a_fail_over_while_nobody_listened_deletes_everything() {
    flushes_after(
        "update unstale.instance set timeline = '1/00000001'",
        "failed over or was restored",
    )
    .await;
}

#[tokio::test]
async fn an_instance_that_is_away_for_too_long_is_named_and_the_log_is_not_kept_for_it() {
    let world = World::new().await;
    world.users(10).await;
    world
        .execute(
            "insert into unstale.instance (name, log, replay_log, timeline, forget_after, saved_at)
                 values ('gone', '3:3:', '3:3:', '', '1 day', now() - interval '2 days'), ('away', '3:3:', '3:3:', '', '1 day', now());
             delete from users where id = 1",
        )
        .await;
    let mut daemon = world.daemon().impatient().with("UNSTALE_REPLAY__WINDOW", "100ms").start();
    daemon.ready().await;
    assert!(daemon.says("is away for longer").await.contains("gone"));
    daemon.settles().await;
    world.execute("select unstale.rotate_log(0)").await; // another part is written from now on
    daemon.settles().await;
    assert_eq!(
        world.number("select count(*) from unstale.change_log").await,
        1,
        "it is kept for the one that is away"
    );
    world
        .execute(
            "update unstale.instance set saved_at = now() - interval '2 days' where name = 'away'",
        )
        .await;
    until("the log is emptied", async || {
        world.number("select count(*) from unstale.change_log").await == 0
    })
    .await;
}

/// The owner that the sweep reads it as is no more its owner: as that role, the new one's code must
/// not run.
#[tokio::test]
async fn a_table_that_has_another_owner_is_deleted_as_a_whole_with_the_remedy() {
    let mut world = World::new().await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    daemon.settles().await;
    daemon.kill9();
    world.fill_users();
    world.fill(["other:1"]);
    let role = format!("owner_of_{}", world.database());
    world.execute(&format!("alter table users rename to people; create role {role}; alter table people owner to {role}")).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    let line = daemon.says("cannot be swept").await;
    assert!(
        line.contains("people")
            && line.contains("does not run as the table's owner; call unstale.watch() again"),
        "{line}"
    );
    assert_eq!(world.left(["user:1", "email:1@old", "user:7", "other:1"]), ["other:1"]);

    // The remedy makes it swept again, as its new owner.
    world.execute("select unstale.watch('people', array['user:{id}', 'email:{email}'])").await;
    daemon.settles().await;
    daemon.kill9();
    world.fill_users();
    world
        .execute("update people set name = 'bob', updated_at = clock_timestamp() where id = 1")
        .await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    assert_eq!(world.left(["user:1", "email:1@old", "user:7", "other:1"]), ["user:7", "other:1"]);
    drop(daemon);
    world
        .execute(&format!(
            "alter table people owner to postgres; drop owned by {role}; drop role {role}"
        ))
        .await;
}

/// Stops a daemon, changes users 1 to 3 in the gap and lets `sql` end their watch, and starts it
/// again: their keys must go, although no watch in force knows them.
async fn deletes_the_keys_of_a_watch_that_ended_in_the_gap(sql: &str) {
    let mut world = World::new().await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    daemon.settles().await;
    daemon.kill9();
    world.fill(["user:1", "user:2", "user:3", "email:3@old", "other:1"]);
    world
        .execute(
            "update users set name = 'bob', updated_at = clock_timestamp() where id = 1; update users set name = 'bob' where id = 2;
             delete from users where id = 3",
        )
        .await;
    world.execute(sql).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    assert_eq!(
        world.left(["user:1", "user:2", "user:3", "email:3@old", "other:1"]),
        ["other:1"],
        "{sql}"
    );
}

#[tokio::test]
async fn keys_of_a_watch_that_was_made_anew_in_the_gap_are_deleted() {
    let sql =
        "select unstale.unwatch('users'); select unstale.watch('users', array['person:{id}'])";
    deletes_the_keys_of_a_watch_that_ended_in_the_gap(sql).await;
}

#[tokio::test]
async fn keys_of_templates_that_were_replaced_in_the_gap_are_deleted() {
    deletes_the_keys_of_a_watch_that_ended_in_the_gap(
        "select unstale.watch('users', array['person:{id}'])",
    )
    .await;
}

#[tokio::test]
async fn keys_of_a_table_that_was_dropped_in_the_gap_are_deleted() {
    deletes_the_keys_of_a_watch_that_ended_in_the_gap("drop table users cascade").await;
}

#[tokio::test]
async fn keys_of_a_table_that_was_dropped_and_noticed_in_the_gap_are_deleted() {
    let sql = "drop table users cascade; create table more (id int); select unstale.watch('more', array['more:{id}'])";
    deletes_the_keys_of_a_watch_that_ended_in_the_gap(sql).await;
}

#[tokio::test]
async fn a_transaction_of_before_the_gap_that_commits_in_it_after_20_seconds_is_found() {
    let mut world = World::new().await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    // Stamped by its beginning, long before any watermark of the clock; and with every other kind
    // of change.
    let mut old = world.sql.begin().await.expect("a transaction");
    for sql in [
        "update users set name = 'bob', updated_at = now() where id = 1",
        "update users set name = 'bob' where id = 2",
        "delete from users where id = 3",
    ] {
        sqlx::query(sql).execute(&mut *old).await.expect("it is written");
    }
    let began = std::time::Instant::now();
    until_within("20 seconds have passed", Duration::from_secs(60), async || {
        began.elapsed() > Duration::from_secs(20)
    })
    .await;
    daemon.settles().await;
    assert!(
        daemon.metric("unstale_watermark_age_seconds", &[]) > 20.0,
        "the watermark waits for it"
    );
    daemon.kill9();
    old.commit().await.expect("it commits");
    world.fill([
        "user:1",
        "email:1@old",
        "user:2",
        "email:2@old",
        "user:3",
        "email:3@old",
        "user:7",
    ]);
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    assert_eq!(
        world.left([
            "user:1",
            "email:1@old",
            "user:2",
            "email:2@old",
            "user:3",
            "email:3@old",
            "user:7"
        ]),
        ["user:7"]
    );
}

#[tokio::test]
async fn a_sweep_that_is_cut_off_goes_on_from_where_it_was() {
    const ROWS: i64 = 100_000;
    // Its own, because a transaction that another test leaves open would hold the proof back.
    let mut world = World::on(own_postgres()).await;
    world.users(1).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    daemon.settles().await;
    assert!(daemon.terminate().success());
    // A gap of two hours, with changes that only a sweep finds: rows that appear without a trigger
    // are stamped as of it.
    world
        .execute(&format!(
            "alter table users disable trigger user;
             insert into users select n, n || '@old', 'ann', now() - interval '1 hour' + n * interval '10 ms' from generate_series(2, {ROWS}) n;
             create index on users (updated_at);
             update unstale.watch set since = now() - interval '2 hours';
             update unstale.instance set watermark = now() - interval '2 hours', replay_watermark = now() - interval '2 hours'"
        ))
        .await;
    world.fill((2..=ROWS).map(|n| format!("user:{n}")));
    let mut daemon = world
        .daemon()
        .impatient()
        .with("UNSTALE_SWEEP__PAGE_ROWS", "2000")
        .with("UNSTALE_BATCH__MAX_PENDING", "2000")
        .start();
    let swept = |daemon: &crate::support::daemon::Daemon| {
        let metrics = daemon.get("/metrics").map(|(_, text)| text).unwrap_or_default();
        metrics
            .lines()
            .find_map(|line| {
                line.strip_prefix("unstale_sweep_rows_total{table=\"public.users\"} ")?
                    .parse::<i64>()
                    .ok()
            })
            .unwrap_or(0)
    };
    // Cut when it is half done, and a heartbeat of its session has been through.
    until("half is swept", async || {
        swept(&daemon) > ROWS / 2 && daemon.metric("unstale_freshness_seconds_count", &[]) >= 2.0
    })
    .await;
    world
        .execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'unstale' and datname = current_database()",
        )
        .await;
    daemon.ready().await;
    world.gone((2..=ROWS).map(|n| format!("user:{n}"))).await;
    let all = swept(&daemon);
    assert!((ROWS - 1..ROWS + ROWS / 4).contains(&all), "{all} rows were swept for {ROWS}");
}

/// It was never here: what it cannot delete yet must not be taken from the log by those who have
/// done it.
#[tokio::test]
async fn the_log_is_kept_for_an_instance_that_has_not_caught_up_yet_however_long_that_takes() {
    let mut world = World::new().await;
    world.users(10).await;
    world.redis.pause();
    let mut daemon = world.daemon().impatient().start();
    let here = "select count(*) from unstale.instance where name = 'test' and log is null";
    until("it is known", async || world.number(here).await == 1).await;
    world
        .execute(
            "insert into unstale.instance (name, log, replay_log, timeline, forget_after)
                 values ('other', pg_current_snapshot(), pg_current_snapshot(), '', '1 day');
             delete from users where id = 1; select unstale.rotate_log(0)",
        )
        .await;
    world
        .execute("update unstale.instance set replay_log = pg_current_snapshot() where name = 'other'; select unstale.rotate_log(0)")
        .await;
    assert_eq!(world.number("select count(*) from unstale.change_log").await, 1);
    world
        .execute(
            "update unstale.instance set saved_at = now() - interval '6 days' where name = 'test'",
        )
        .await;
    let alive = "select count(*) from unstale.instance where name = 'test' and saved_at > now() - interval '1 minute'";
    until("it says that it is still there", async || world.number(alive).await == 1).await;
    assert!(!daemon.is_ready());
    world.redis.resume();
    daemon.ready().await;
}
