//! Each delivery through the whole program: what it deletes, what may be prepared or replicated,
//! and switching under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::task::JoinSet;

use crate::support::servers::own_postgres_with;
use crate::support::wait::until;
use crate::support::world::World;

const DELIVERIES: [&str; 3] = ["row", "statement", "log"];

/// Watches `users` once more.
async fn deliver(world: &World, delivery: &str) {
    let watch = format!(
        "select unstale.watch('users', array['user:{{id}}', 'email:{{email}}'], delivery => '{delivery}')"
    );
    world.execute(&watch).await;
}

#[tokio::test]
async fn every_kind_of_change_deletes_its_keys_in_each_delivery() {
    for delivery in DELIVERIES {
        let mut world = World::new().await;
        world.users(10).await;
        deliver(&world, delivery).await;
        let mut daemon = world.daemon().impatient().in_one_session().start();
        daemon.ready().await;
        world.fill_users();
        world.change_users().await;
        world.users_are_fresh(&daemon).await;

        world.fill((1..=20_000).map(|n| format!("user:{n}")));
        world.execute("insert into users select n from generate_series(2001, 20000) n").await;
        world.gone((2_001..=20_000).map(|n| format!("user:{n}"))).await;
        assert_eq!(world.left(["user:2000"]), ["user:2000"], "{delivery}");
        world.execute("update users set name = 'z' where id > 2000").await;
        world.execute("truncate users").await;
        world.gone((1..=20_000).map(|n| format!("user:{n}"))).await;
    }
}

/// Each row has one writer. Before every change, the key that it will make stale is cached: none
/// may be left.
#[tokio::test]
async fn switching_a_table_under_load_loses_nothing() {
    const WRITERS: u32 = 4;
    const SWITCHES: usize = 30;
    let mut world = World::new().await;
    world.users(WRITERS).await;
    world.execute("update users set email = id || '@0'").await;
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    let gaps = daemon.gaps();
    let enough = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for id in 1..=WRITERS {
        let (sql, mut cache, enough) =
            (world.sql.clone(), world.redis.client().expect("Redis is up"), enough.clone());
        writers.spawn(async move {
            let mut changes = 0;
            while !enough.load(Ordering::Relaxed) {
                changes += 1;
                let (keys, update) = World::change_of_email(id, changes);
                cache.put_all(keys, "a cached value").expect("Redis takes it");
                sqlx::query(AssertSqlSafe(update))
                    .execute(&sql)
                    .await
                    .expect("P5: no writer fails");
            }
            (id, changes)
        });
    }
    for delivery in
        ["statement", "log", "row", "log", "statement", "row"].into_iter().cycle().take(SWITCHES)
    {
        deliver(&world, delivery).await;
    }
    enough.store(true, Ordering::Relaxed);
    let mut keys = Vec::new();
    for (id, changes) in writers.join_all().await {
        assert!(changes > 10, "only {changes} changes while it was switched");
        keys.extend(World::keys_of_emails(id, changes));
    }
    world.gone(keys).await;
    assert_eq!(daemon.gaps(), gaps, "a sweep may have hidden a loss");
}

#[tokio::test]
async fn a_prepared_change_of_a_logged_table_deletes_its_keys_once_it_is_committed() {
    let postgres = own_postgres_with([("max_prepared_transactions", "5")]);
    let mut world = World::on(postgres).await;
    world.users(10).await;
    deliver(&world, "log").await;
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    world.fill_users();
    world
        .execute("begin; update users set email = 'new' where id = 1; prepare transaction 'x'")
        .await;
    daemon.settles().await;
    assert_eq!(world.left(["user:1", "email:1@old", "email:new"]), ["user:1", "email:1@old"]);
    world.execute("commit prepared 'x'").await;
    world.gone(["user:1", "email:1@old"]).await;
    assert_eq!(world.left(World::NEIGHBOURS), World::NEIGHBOURS);
}

/// What logical replication applies, and copies in the beginning, fires no statement trigger.
#[tokio::test]
async fn what_logical_replication_applies_is_announced_in_each_delivery() {
    let mut world = World::on(own_postgres_with([("wal_level", "logical")])).await;
    world.execute("create database publisher").await;
    let url = world.postgres().url("publisher");
    let mut publisher = PgConnection::connect(&url).await.expect("the cluster is up");
    let create = "create table users (id int primary key, email text, name text, updated_at timestamptz); alter table users replica identity full;";
    let publish =
        "insert into users values (1, '1@old'); create publication everything for all tables;";
    sqlx::raw_sql(AssertSqlSafe(format!("{create}{publish}")))
        .execute(&mut publisher)
        .await
        .expect("wal_level is logical");
    world.execute(create).await;
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    for delivery in DELIVERIES {
        deliver(&world, delivery).await;
        daemon.settles().await;
        world.fill(["user:1", "email:1@old"]);
        // In one cluster, the subscription cannot create the slot: each would wait for the other.
        let slot = format!("select pg_create_logical_replication_slot('{delivery}', 'pgoutput')");
        sqlx::raw_sql(AssertSqlSafe(slot)).execute(&mut publisher).await.expect("a slot");
        let subscribe = format!(
            "create subscription s connection '{url}' publication everything with (create_slot = false, slot_name = '{delivery}')"
        );
        world.execute(&subscribe).await;
        world.gone(["user:1", "email:1@old"]).await;

        world.fill(["user:1", "user:2", "email:1@old", "email:1@new", "email:2@new"]);
        let change = "update users set email = '1@new'; insert into users values (2, '2@new'); delete from users where id = 1";
        sqlx::raw_sql(change).execute(&mut publisher).await.expect("the publisher is up");
        world.gone(["user:1", "user:2", "email:1@old", "email:1@new", "email:2@new"]).await;
        until("all is applied", async || world.number("select count(*) from users").await == 1)
            .await;
        world.execute("alter subscription s disable").await;
        let worker = "select count(*) from pg_stat_replication";
        until("its worker has ended", async || world.number(worker).await == 0).await;
        world
            .execute(
                "alter subscription s set (slot_name = none); drop subscription s; truncate users",
            )
            .await;
        let again = format!(
            "select pg_drop_replication_slot('{delivery}'); truncate users; insert into users values (1, '1@old')"
        );
        sqlx::raw_sql(AssertSqlSafe(again)).execute(&mut publisher).await.expect("nobody uses it");
    }
}
