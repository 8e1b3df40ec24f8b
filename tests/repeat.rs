//! Keys that are deleted once more: after a time, and when the replicas have caught up.

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};
use unstale::scratch::Postgres;

use crate::connect::hosts::standby_of;
use crate::support::daemon::Daemon;
use crate::support::servers::own_postgres;
use crate::support::wait::until;
use crate::support::world::World;

const CHANGE: &str = "update users set name = 'carol', updated_at = clock_timestamp() where id = 1";

/// What a reader does that has read the old row before the commit.
fn put_back(world: &mut World) {
    world.fill(["user:1"]);
}

async fn again(daemon: &Daemon, cause: &str, keys: f64) {
    let repeated = || daemon.metric("unstale_repeated_keys_total", &[("cause", cause)]);
    until(&format!("{keys} keys are deleted again for {cause}"), async || repeated() >= keys).await;
}

#[tokio::test]
async fn a_value_that_is_put_back_is_deleted_by_each_of_the_repeats() {
    let mut world = World::new().await;
    world.users(3).await;
    let mut daemon = world.daemon().with("UNSTALE_REPEAT__AFTER", "500ms, 3s").start();
    daemon.ready().await;
    world.fill(["user:1", "user:2"]);
    world.execute(CHANGE).await;
    world.gone(["user:1"]).await;
    put_back(&mut world);
    world.gone(["user:1"]).await;
    put_back(&mut world);
    world.gone(["user:1"]).await;
    again(&daemon, "time", 2.0).await;
    assert_eq!(world.left(["user:2"]), ["user:2"], "no other key is");
}

#[tokio::test]
async fn without_repeats_a_value_that_is_put_back_stays() {
    let mut world = World::new().await;
    world.users(3).await;
    let mut daemon = world
        .daemon()
        .with("UNSTALE_REPEAT__AFTER", "")
        .with("UNSTALE_HEARTBEAT__INTERVAL", "100ms")
        .start();
    daemon.ready().await;
    world.fill(["user:1"]);
    world.execute(CHANGE).await;
    world.gone(["user:1"]).await;
    put_back(&mut world);
    let beats = || daemon.metric("unstale_freshness_seconds_count", &[]);
    let begun = beats();
    until("more than a second has passed for the listener", async || beats() >= begun + 15.0).await;
    assert_eq!(world.left(["user:1"]), ["user:1"]);
    assert!(daemon.metric("unstale_repeated_keys_total", &[]) < 1.0);
}

#[tokio::test]
async fn a_watch_whose_readers_hold_leases_has_no_second_delete_and_the_others_do() {
    let mut world = World::new().await;
    world.users(3).await;
    world.execute("select unstale.watch('public.users', keys => array['user:{id}', 'all'], guarantee => 'lease')").await;
    world.execute("create table pages (id int primary key, updated_at timestamptz not null default now())").await;
    world.execute("select unstale.watch('public.pages', keys => array['page:{id}', 'all'])").await;
    let mut daemon = world.daemon().with("UNSTALE_REPEAT__AFTER", "300ms").start();
    daemon.ready().await;
    world.fill(["user:1", "all"]);
    world.execute(CHANGE).await;
    world.gone(["user:1", "all"]).await;
    daemon.settles().await;
    world.fill(["user:1"]);
    // What is deleted later is repeated later.
    world.fill(["page:7"]);
    world.execute("insert into pages (id) values (7)").await;
    world.gone(["page:7"]).await;
    world.fill(["page:7"]);
    world.gone(["page:7"]).await;
    again(&daemon, "time", 2.0).await;
    assert_eq!(world.left(["user:1"]), ["user:1"]);
    assert!(
        daemon.metric("unstale_repeated_keys_total", &[]) < 3.0,
        "page:7 and all, which is of both"
    );
}

#[tokio::test]
async fn neither_readiness_nor_the_end_waits_for_a_repeat() {
    let mut world = World::new().await;
    world.users(3).await;
    let mut daemon = world.daemon().with("UNSTALE_REPEAT__AFTER", "1h").start();
    daemon.ready().await;
    world.fill(["user:1"]);
    world.execute(CHANGE).await;
    world.gone(["user:1"]).await;
    daemon.settles().await;
    assert!(daemon.is_ready());
    assert_eq!(daemon.terminate().code(), Some(0));
    assert!(
        daemon.lines().iter().any(|line| line.contains("everything received is deleted")),
        "{:?}",
        daemon.lines()
    );
}

/// Does this standby show the change?
async fn shows_change(standby: &Postgres) -> bool {
    let mut connection =
        PgConnection::connect(&standby.url("app")).await.expect("a standby answers");
    let row = sqlx::query("select name from users where id = 1")
        .fetch_one(&mut connection)
        .await
        .expect("a row");
    row.get::<String, _>(0) == "carol"
}

#[tokio::test]
async fn a_key_goes_again_when_a_standby_two_seconds_behind_has_replayed_its_change() {
    let mut world = World::on(own_postgres()).await;
    world.users(3).await;
    let standby = standby_of(&world);
    let mut connection =
        PgConnection::connect(&standby.url("app")).await.expect("a standby answers");
    for sql in ["alter system set recovery_min_apply_delay = '2s'", "select pg_reload_conf()"] {
        sqlx::raw_sql(sql).execute(&mut connection).await.expect("it takes settings");
    }
    until("it is held back", async || {
        let row = sqlx::query("show recovery_min_apply_delay")
            .fetch_one(&mut connection)
            .await
            .expect("it answers");
        row.get::<String, _>(0) == "2s"
    })
    .await;
    let daemon = world
        .daemon()
        .with("UNSTALE_REPEAT__AFTER", "")
        .with("UNSTALE_REPLICAS__URLS", &standby.url("app"));
    let mut daemon = daemon.start();
    daemon.ready().await;
    world.fill(["user:1"]);
    world.execute(CHANGE).await;
    world.gone(["user:1"]).await;
    assert!(!shows_change(&standby).await, "it is two seconds behind");
    put_back(&mut world);
    until("the lag is seen", async || {
        daemon.metric("unstale_replica_lag_bytes", &[("replica", "1")]) > 0.0
    })
    .await;
    world.gone(["user:1"]).await;
    assert!(shows_change(&standby).await, "not before it can be read there");
    again(&daemon, "replicas", 1.0).await;
    assert!(daemon.metric("unstale_repeated_keys_total", &[("cause", "max_wait")]) < 1.0);
}

#[tokio::test]
async fn a_standby_that_is_away_is_given_up_after_max_wait_and_holds_up_nothing() {
    let mut world = World::new().await;
    world.users(3).await;
    let nobody = "postgres://reader:s3cret@127.0.0.1:1/app";
    let daemon =
        world.daemon().with("UNSTALE_REPEAT__AFTER", "").with("UNSTALE_REPLICAS__MAX_WAIT", "1s");
    let mut daemon = daemon
        .with("UNSTALE_REPLICAS__URLS", &format!("{} {nobody}", world.database_url()))
        .start();
    daemon.ready().await;
    world.fill(["user:1"]);
    world.execute(CHANGE).await;
    world.gone(["user:1"]).await;
    put_back(&mut world);
    world.gone(["user:1"]).await;
    again(&daemon, "max_wait", 1.0).await;
    assert!(daemon.is_ready());
    daemon.says("a replica does not say how far it is").await;
    assert!(!daemon.lines().iter().any(|line| line.contains("s3cret")), "{:?}", daemon.lines());
}
