//! A publication for all tables, where both databases have the schema `unstale`: neither stops, and
//! the publisher's bookkeeping is not taken for the subscriber's.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::support::daemon::command;
use crate::support::servers::own_postgres_with;
use crate::support::wait::until;
use crate::support::world::World;

const USERS: &str = "create table users (id int primary key, name text, updated_at timestamptz default clock_timestamp())";

/// A subscriber's world, and a connection to its publisher, which has watches and an instance of
/// its own.
async fn subscribed() -> (World, PgConnection) {
    let world = World::on(own_postgres_with([("wal_level", "logical")])).await;
    world.execute("create database publisher").await;
    let url = world.postgres().url("publisher");
    let migrated = command("migrate", &[("DATABASE_URL", &url)]);
    assert!(migrated.status.success(), "{migrated:?}");
    let mut publisher = PgConnection::connect(&url).await.expect("the cluster is up");
    let publish = format!(
        "{USERS}; create table orders (id int primary key); insert into users select n from generate_series(1, 5) n;
         select unstale.watch('orders', array['order:{{id}}']); select unstale.watch('users', array['user:{{id}}', 'users:count']);
         select unstale.register('default', interval '7 days');
         update unstale.instance set watermark = now() + interval '1 year';
         create publication everything for all tables"
    );
    run(&mut publisher, &publish).await;
    run(&mut publisher, "select pg_create_logical_replication_slot('s', 'pgoutput')").await;
    world.execute(&format!("{USERS}; create table orders (id int primary key); select unstale.watch('users', array['u:{{id}}'])")).await;
    let subscribe = format!(
        "create subscription s connection '{url}' publication everything with (create_slot = false, slot_name = 's')"
    );
    world.execute(&subscribe).await;
    until("the tables are copied", async || {
        world.number("select count(*) from pg_subscription_rel where srsubstate <> 'r'").await == 0
    })
    .await;
    (world, publisher)
}

async fn run(publisher: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql))
        .execute(publisher)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

/// Until the subscriber has applied everything so far.
async fn applied(world: &World, publisher: &mut PgConnection, marker: i64) {
    run(publisher, &format!("insert into orders values ({marker})")).await;
    until("the marker has come", async || {
        world.number(&format!("select count(*) from orders where id = {marker}")).await == 1
    })
    .await;
}

#[tokio::test]
async fn a_subscriber_keeps_its_own_watches_ledgers_and_progress() {
    let (world, mut publisher) = subscribed().await;
    run(&mut publisher, "update unstale.instance set forgotten = true; delete from unstale.repeatable; select unstale.unwatch('orders')")
        .await;
    run(&mut publisher, "insert into unstale.gap (instance, cause) values ('default', 'theirs')")
        .await;
    applied(&world, &mut publisher, 1).await;
    assert_eq!(world.number("select count(*) from unstale.watch").await, 1);
    assert_eq!(world.number("select count(*) from unstale.watch where keys = array['u:{id}'] and table_name = 'public.users'").await, 1);
    assert_eq!(world.number("select count(*) from unstale.instance").await, 0);
    assert_eq!(world.number("select count(*) from unstale.gap").await, 0);
    assert!(world.number("select count(*) from unstale.repeatable").await > 10);
    let url = world.database_url();
    assert!(command("migrate", &[("DATABASE_URL", &url)]).status.success());
    // Its own may write them, in any session: a restore, for instance.
    world.execute("begin; set local session_replication_role = replica; insert into unstale.gap (instance, cause) values ('default', 'ours'); commit").await;
    assert_eq!(world.number("select count(*) from unstale.gap").await, 1);
    end(&world).await;
}

/// The publisher's listener empties a part of its log, and with it the subscriber's.
#[tokio::test]
async fn what_a_replicated_truncate_takes_from_the_log_is_deleted_nevertheless() {
    let (mut world, mut publisher) = subscribed().await;
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    world.fill(["u:1", "u:2"]);
    daemon.kill9();
    world.execute("delete from users where id = 1").await; // only the log knows it
    assert!(world.number("select count(*) from unstale.change_log").await > 0);
    run(
        &mut publisher,
        "truncate unstale.change_log_1, unstale.change_log_2, unstale.change_log_3",
    )
    .await;
    applied(&world, &mut publisher, 1).await;
    let mut daemon = world.daemon().impatient().in_one_session().start();
    world.gone(["u:1"]).await;
    daemon.ready().await;
    end(&world).await;
}

/// So that the publisher's database can be dropped, and its walsender ends.
async fn end(world: &World) {
    world.execute("alter subscription s disable").await;
    until("its worker has ended", async || {
        world.number("select count(*) from pg_stat_replication").await == 0
    })
    .await;
    world.execute("alter subscription s set (slot_name = none); drop subscription s").await;
}
