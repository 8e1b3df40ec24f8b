//! The sweep on a real server, while the table does not stand still; and the one by hand.

use std::collections::{BTreeSet, HashMap};
use std::process::{Output, Stdio};

use secrecy::SecretString;
use tokio::sync::mpsc;
use unstale::messages::Swept;
use unstale::pg::Postgres;
use unstale::pg::sweep;

use crate::support::daemon::{BINARY, command};
use crate::support::wait::until;
use crate::support::world::World;

/// Sweeps a table of 100 rows, 101 to 200, that one transaction has stamped, in pages of 10.
/// `meanwhile` runs between two pages. Returns the ids that were not read.
async fn sweep_with(meanwhile: &str) -> BTreeSet<u32> {
    let world = World::new().await;
    world
        .execute(
            "create table t (id int primary key, note int default 0, updated_at timestamptz);
             insert into t select n, 0, now() from generate_series(1, 100) n;
             select unstale.watch('t', array['t:{id}'], only_columns => array['id']);",
        )
        .await;
    world.execute("insert into t select n, 0, now() from generate_series(101, 200) n").await;
    world.execute("delete from t where id <= 100").await;
    world.execute("vacuum t").await;

    let postgres = Postgres::new(SecretString::from(world.database_url())).expect("a URL");
    let (out, mut swept) = mpsc::channel(1);
    let from = sweep::From {
        checkpoint: None,
        done: HashMap::new(),
        log: None,
        by_hand: None,
        page_timeout: sweep::PAGE_TIMEOUT,
    };
    let sweeper = tokio::spawn(sweep::run(postgres, from, 10, out));
    let mut missing: BTreeSet<u32> = (101..=200).collect();
    let mut pages = 0;
    while let Some(swept) = swept.recv().await {
        match swept {
            Swept::Rows(_, rows) => {
                for row in rows {
                    let id: String = row.chars().filter(char::is_ascii_digit).collect();
                    missing.remove(&id.parse().expect("an id"));
                }
                pages += 1;
                if pages == 2 {
                    world.execute(meanwhile).await;
                }
            }
            Swept::Failed(reason) => panic!("{reason}"),
            _ => {}
        }
    }
    sweeper.await.expect("it does not panic");
    missing
}

#[tokio::test]
async fn a_sweep_reads_every_row_of_a_table_that_is_rewritten_meanwhile() {
    assert_eq!(sweep_with("vacuum full t").await, BTreeSet::new());
}

#[tokio::test]
async fn a_sweep_reads_a_row_that_an_update_moves_without_counting() {
    assert_eq!(sweep_with("update t set note = 1 where id = 150").await, BTreeSet::new());
}

/// Tables with and without a column to sweep by, and cached keys of both.
async fn two_tables() -> World {
    let mut world = World::new().await;
    world.users(50).await;
    world.execute("create table plain (id int primary key); select unstale.watch('plain', array['plain:{id}'])").await;
    world.fill(keys_of_users(1..=50).chain((1..=20).map(|n| format!("plain:{n}"))));
    world
}

fn keys_of_users(rows: std::ops::RangeInclusive<u32>) -> impl Iterator<Item = String> {
    rows.map(|n| format!("user:{n}"))
}

/// `unstale sweep`, which prints a line of JSON at its end.
fn by_hand(world: &World, arguments: &str) -> Output {
    command(
        &format!("sweep {arguments}"),
        &[("DATABASE_URL", &world.database_url()), ("REDIS_URL", &world.redis_url())],
    )
}

fn last_line(output: &Output) -> serde_json::Value {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text
        .lines()
        .last()
        .unwrap_or_else(|| panic!("no line: {}", String::from_utf8_lossy(&output.stderr)));
    serde_json::from_str(line).expect("a line of JSON")
}

/// An import with the triggers off.
const IMPORT: &str = "alter table users disable trigger user;
                      update users set name = 'new', updated_at = clock_timestamp() where id <= 3;
                      alter table users enable trigger user";

#[tokio::test]
async fn by_hand_the_rows_stamped_since_then_lose_their_keys_and_a_table_without_stamps_all() {
    let mut world = two_tables().await;
    world.execute(IMPORT).await;
    let output = by_hand(&world, "--since 10m");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(world.count(keys_of_users(1..=3)), 0);
    assert_eq!(world.count(keys_of_users(4..=50)), 47, "an hour old");
    assert_eq!(world.count((1..=20).map(|n| format!("plain:{n}"))), 0);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("public.plain has no column"),
        "{output:?}"
    );
    let done = last_line(&output);
    assert_eq!(
        (&done["event"], &done["deleted"], &done["dry_run"]),
        (&"done".into(), &23.into(), &false.into()),
        "{done}"
    );
}

/// A name in an SQL function is a column first, and a parameter if there is no such column.
#[tokio::test]
async fn by_hand_a_table_is_swept_whatever_its_columns_are_called() {
    let mut world = World::new().await;
    world
        .execute(
            "create table odd (id int primary key, from_stamp timestamptz default 'infinity', after_stamp timestamptz default 'infinity',
                               page_rows bigint default 0, image text, stamp timestamptz, t int, w int, xid int, change text,
                               old text, new text, \"row\" text, watch_id int, updated_at timestamptz);
             select unstale.watch('odd', array['odd:{id}:{t}', 'row:{row}']);
             alter table odd disable trigger user;
             insert into odd (id, t, \"row\", updated_at) select n, n, n, clock_timestamp() from generate_series(1, 9) n;
             alter table odd enable trigger user",
        )
        .await;
    let keys = || (1..=9).flat_map(|n| [format!("odd:{n}:{n}"), format!("row:{n}")]);
    world.fill(keys());
    let output = by_hand(&world, "--since 10m --table odd");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(world.count(keys()), 0);
}

#[tokio::test]
async fn by_hand_only_the_named_table_is_swept_also_from_a_time() {
    let mut world = two_tables().await;
    world.execute(IMPORT).await;
    let output = by_hand(&world, "--since 2001-01-31T10:00:00Z --table users");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(world.count(keys_of_users(1..=50)), 0);
    assert_eq!(world.count((1..=20).map(|n| format!("plain:{n}"))), 20);
}

#[tokio::test]
async fn by_hand_a_change_that_only_the_log_knows_is_found() {
    let mut world = two_tables().await;
    world.execute("delete from users where id = 7").await; // logged, because no sweep finds it
    let output = by_hand(&world, "--since 10m --table users");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(world.count(keys_of_users(1..=50)), 49);
}

#[tokio::test]
async fn by_hand_a_dry_run_says_what_it_would_do_and_deletes_nothing() {
    let mut world = two_tables().await;
    for arguments in ["--all --dry-run", "--since 2h --dry-run"] {
        let output = by_hand(&world, arguments);
        assert!(output.status.success(), "{output:?}");
        let done = last_line(&output);
        assert!(
            done["keys"].as_u64() > Some(2) && done["deleted"] == 0 && done["dry_run"] == true,
            "{done}"
        );
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("would delete plain:*"),
            "{output:?}"
        );
    }
    assert_eq!(world.count(keys_of_users(1..=50)), 50);
}

#[tokio::test]
async fn by_hand_a_signal_stops_it_and_the_same_command_does_the_rest() {
    let mut world = two_tables().await;
    let mut child = std::process::Command::new(BINARY)
        .args(["sweep", "--since", "2h", "--table", "users", "--rate", "1"])
        .env_clear()
        .envs([
            ("DATABASE_URL", world.database_url()),
            ("REDIS_URL", world.redis_url()),
            ("UNSTALE_BATCH__KEYS_PER_COMMAND", "1".into()),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary is built before the tests");
    until("it has begun", async || world.count(keys_of_users(1..=50)) < 50).await;
    assert!(child.try_wait().expect("it runs").is_none());
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::INT,
    )
    .expect("it runs");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("the same command does the rest"),
        "{output:?}"
    );
    assert!(last_line(&output)["deleted"].as_u64() >= Some(1), "{output:?}");
    assert!(by_hand(&world, "--since 2h").status.success());
    assert_eq!(world.count(keys_of_users(1..=50)), 0);
}

#[tokio::test]
async fn by_hand_what_cannot_be_swept_is_said_with_the_remedy() {
    let world = two_tables().await;
    world.execute("create table unwatched (id int)").await;
    for (arguments, code, words) in [
        ("--all --table nowhere", 1, "name it with its schema"),
        ("--all --table unwatched", 1, "public.unwatched is not watched"),
        ("--since yesterday", 2, "2026-01-31T10:00:00Z"),
        ("--since 1h --all", 2, "cannot be used with"),
        ("", 2, "--since"),
    ] {
        let output = by_hand(&world, arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(words), "{arguments}: {output:?}");
    }
}

/// A `timestamp` has no zone: it may hold the local time of wherever it was written.
#[tokio::test]
async fn by_hand_a_stamp_of_local_time_is_found_wherever_that_is() {
    for zone in ["America/Los_Angeles", "UTC", "Asia/Tokyo"] {
        let mut world = World::new().await;
        let sql = format!(
            "create table visits (id int primary key, updated_at timestamp);
             insert into visits select n, clock_timestamp() - interval '3 days' from generate_series(1, 9) n;
             select unstale.watch('visits', array['visit:{{id}}']);
             alter table visits disable trigger user;
             begin; set local timezone = '{zone}'; update visits set updated_at = localtimestamp where id <= 3; commit;
             alter table visits enable trigger user"
        );
        world.execute(&sql).await;
        world.fill((1..=9).map(|n| format!("visit:{n}")));
        let output = by_hand(&world, "--since 2h --table visits");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(world.count((1..=3).map(|n| format!("visit:{n}"))), 0, "{zone}");
        assert_eq!(world.count((4..=9).map(|n| format!("visit:{n}"))), 6, "{zone}");
    }
}
