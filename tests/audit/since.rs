//! `unstale audit --since`: the rows that changed since then, all of them and no others.

use std::collections::HashMap;

use secrecy::SecretString;
use tokio::sync::mpsc;
use unstale::messages::Swept;
use unstale::pg::Postgres;
use unstale::pg::sweep::{self, ByHand};

use super::{audit, cache, counts, tables};
use crate::support::daemon::{BINARY, command};
use crate::support::world::World;

/// 2,000 users of long ago and what is cached of each. Twelve are stamped now, six of them without
/// a delete.
async fn world() -> World {
    let mut world = World::new().await;
    tables(&world, 2_000).await;
    cache(&mut world, &format!("{}true", super::USERS)).await;
    world
        .execute(
            "alter table users disable trigger all;
             update users set updated_at = clock_timestamp() - interval '5 minutes' where id between 1 and 6;
             update users set updated_at = clock_timestamp() where id between 7 and 12;
             alter table users enable trigger all",
        )
        .await;
    cache(&mut world, &format!("{}id between 7 and 12", super::USERS)).await;
    world
}

#[tokio::test]
async fn the_rows_that_changed_since_then_are_looked_at_all_of_them_and_no_others() {
    let world = world().await;
    let (stale, _, table) = counts(&world, "--since 10m --sample 1 --table users");
    // Two keys of each row, and one key of each template that is found in Redis.
    let keys = table["keys"].as_u64().expect("a number");
    assert!(
        stale == 6 && (24..=26).contains(&keys) && table["limited"] == true,
        "{stale} stale: {table}"
    );
    let (stale, _, table) = counts(&world, "--since 1m --sample 1 --table users");
    let keys = table["keys"].as_u64().expect("a number");
    assert!(stale <= 1 && (12..=14).contains(&keys), "{stale} stale: {table}");
    let (code, text, complaint) =
        audit(&world, "--since 2026-01-01T00:00:00Z --heal --sample 1 --table users");
    assert!(code == Some(1) && text.contains("6 stale\n6 keys deleted"), "{text}{complaint}");
    assert!(counts(&world, "--all --table users").0 == 0, "what was stale is not healed");
}

#[tokio::test]
async fn a_row_that_was_deleted_is_found_as_long_as_the_log_holds_it() {
    let world = world().await;
    world.execute("delete from users where id in (1500, 1501)").await;
    let (stale, ..) = counts(&world, "--since 1s --sample 1 --table users");
    assert!(
        (2..=3).contains(&stale),
        "{stale}: two of deleted rows, and the one that a sample may find"
    );
}

#[tokio::test]
async fn a_watch_without_stamps_is_named_and_a_sample_of_its_rows_is_looked_at() {
    let mut world = world().await;
    cache(&mut world, &format!("{}true", super::ITEMS)).await;
    world.execute("alter table items disable trigger all; update items set rev = rev + 1").await;
    let (code, text, complaint) = audit(&world, "--since 10m --sample 30");
    assert!(
        code == Some(1) && text.contains("public.items: ") && text.contains("public.users: "),
        "{text}{complaint}"
    );
    let named = "public.items has no column that says when a row changed, so that --since does not limit its rows: a sample of them is looked at";
    assert!(complaint.contains(named) && !complaint.contains("public.users has no"), "{complaint}");
    let (stale, _, items) = counts(&world, "--since 10m --sample 30 --table items");
    assert!(stale >= 30 && items["limited"] == false, "{items}");
}

#[tokio::test]
async fn a_table_whose_rows_cannot_be_read_is_not_passed_over() {
    let world = world().await;
    world.execute("alter function unstale.page_1 security invoker").await;
    let (code, _, complaint) = audit(&world, "--since 10m");
    assert!(
        code == Some(1)
            && complaint
                .contains("not all is audited: public.users: function unstale.page_1 does not run"),
        "{complaint}"
    );
}

#[tokio::test]
async fn a_program_is_asked_about_the_keys_of_the_rows_that_changed_and_what_is_no_time_is_refused()
{
    let mut world = World::new().await;
    world
        .execute(
            "create table t (id int primary key, updated_at timestamptz);
             insert into t select n, timestamptz '2026-01-01' from generate_series(1, 500) n; insert into t values (501, clock_timestamp());
             select unstale.watch('t', array['t:{id}']);
             create table u (id int primary key); select unstale.watch('u', array['u:{id}'])",
        )
        .await;
    world.cache.put_all((1..=501).map(|n| format!("t:{n}")), "old").expect("Redis takes it");
    let settings = [
        ("DATABASE_URL", world.database_url()),
        ("REDIS_URL", world.redis_url()),
        ("UNSTALE_REPEAT__AFTER", String::new()),
    ];
    let mut audit = std::process::Command::new(BINARY);
    audit.args([
        "audit",
        "--since",
        "1h",
        "--sample",
        "1",
        "--command",
        "while read -r key; do echo new; done",
    ]);
    let path = std::env::vars().filter(|(name, _)| name == "PATH");
    let output = audit.env_clear().envs(path).envs(settings).output().expect("it runs");
    let (text, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // That of the row, and one that is found in Redis.
    assert!(
        text.contains("public.t: 2 keys") && text.contains("2 stale")
            || text.contains("public.t: 1 keys"),
        "{text}{complaint}"
    );
    assert!(
        complaint.contains("public.u has no column that says when a row changed")
            && complaint.contains("none of them is looked at"),
        "{complaint}"
    );

    for wrong in ["audit --since yesterday", "audit --since 2h --all"] {
        assert_eq!(command(wrong, &[]).status.code(), Some(2), "{wrong}");
    }
}

/// Each page is followed by as many new changes as it has rows.
#[tokio::test]
async fn a_table_that_changes_faster_than_it_is_read_has_an_end() {
    let world = World::new().await;
    world
        .execute(
            "create table t (id int primary key, updated_at timestamptz);
             insert into t select n, clock_timestamp() from generate_series(1, 100) n; select unstale.watch('t', array['t:{id}'])",
        )
        .await;
    let mut connection = world.sql.acquire().await.expect("a connection");
    let now = unstale::pg::clock(&mut connection).await.expect("a time");
    let (out, mut swept) = mpsc::channel(1);
    let by_hand = Some(ByHand { watches: vec![1], until: Some(now) });
    let from = sweep::From {
        checkpoint: None,
        done: HashMap::new(),
        log: None,
        by_hand,
        page_timeout: sweep::PAGE_TIMEOUT,
    };
    let postgres = Postgres::new(SecretString::from(world.database_url())).expect("a URL");
    let sweeper = tokio::spawn(sweep::run(postgres, from, 10, out));
    let mut rows_read = 0;
    while let Some(swept) = swept.recv().await {
        match swept {
            Swept::Rows(_, rows) => {
                rows_read += rows.len();
                assert!(rows_read < 1_000, "it follows the changes for ever");
                world
                    .execute("update t set updated_at = clock_timestamp() where id in (select id from t order by random() limit 20)")
                    .await;
            }
            Swept::Failed(reason) => panic!("{reason}"),
            _ => {}
        }
    }
    sweeper.await.expect("it does not panic");
    assert!(rows_read >= 40, "{rows_read}");
}
