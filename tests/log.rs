//! Reading `unstale.change_log` on a real server.

use sqlx::Connection as _;
use unstale::pg::log::{Reader, page};
use unstale::watermark::Snapshot;

use crate::support::world::World;

#[tokio::test]
async fn pages_of_the_log_follow_each_other_also_where_xids_get_one_more_digit() {
    let world = World::new().await;
    world
        .execute(
            "insert into unstale.change_log_2 (xid, watch, announced, change)
             select (995 + n)::text::xid8, 1, n % 2 = 0, n from generate_series(1, 9) n",
        )
        .await;
    let mut sql = world.sql.acquire().await.expect("the cluster is up");
    let done: Snapshot = "997:1002:999".parse().expect("a snapshot");
    let (mut read, mut after) = (Vec::new(), None);
    loop {
        let (changes, last) = page(&mut sql, &done, after, 2).await.expect("the table is there");
        if last.is_none() {
            break;
        }
        read.extend(changes);
        after = last;
    }
    assert_eq!(read, ["4", "7", "8", "9"], "one that was open, and those that came later");
}

/// The only instance has done everything until now.
const DONE: &str = "insert into unstale.instance (name, log, replay_log, timeline, forget_after)
    values ('one', pg_current_snapshot(), pg_current_snapshot(), '', '1 day')
    on conflict (name) do update set replay_log = pg_current_snapshot()";

/// All pages of a reading.
async fn reading(reader: &mut Reader, world: &World) -> Vec<String> {
    let mut sql = world.sql.acquire().await.expect("the cluster is up");
    let mut read = Vec::new();
    loop {
        let page = reader.page(&mut sql).await.expect("the table is there");
        read.extend(page.changes);
        if !page.more {
            return read;
        }
    }
}

#[tokio::test]
async fn each_change_is_read_once_in_whatever_order_transactions_end() {
    let world = World::new().await;
    let log = |change: &str| {
        format!(
            "insert into unstale.change_log_1 (watch, announced, change) values (1, false, '{change}')"
        )
    };
    let mut reader = Reader::new(&mut world.sql.acquire().await.expect("a connection"))
        .await
        .expect("the server is up");
    let (mut first, mut second) = (
        world.sql.acquire().await.expect("a connection"),
        world.sql.acquire().await.expect("a connection"),
    );
    let mut early = first.begin().await.expect("begins");
    sqlx::query(sqlx::AssertSqlSafe(log("early"))).execute(&mut *early).await.expect("written");
    let mut aborted = second.begin().await.expect("begins");
    sqlx::query(sqlx::AssertSqlSafe(log("aborted"))).execute(&mut *aborted).await.expect("written");
    world.execute(&log("quick")).await;
    assert_eq!(reading(&mut reader, &world).await, ["quick"]);
    assert_eq!(reading(&mut reader, &world).await, [""; 0]);
    world.execute("insert into unstale.change_log_3 (watch, announced, change) select 1, n = 7, n from generate_series(1, 100) n").await;
    let hundred = reading(&mut reader, &world).await;
    assert_eq!(hundred.len(), 99, "in several pages, and one was announced");
    early.commit().await.expect("commits");
    aborted.rollback().await.expect("rolls back");
    world.execute(&log("late")).await;
    assert_eq!(reading(&mut reader, &world).await, ["early", "late"]);
    assert_eq!(reading(&mut reader, &world).await, [""; 0]);
}

#[tokio::test]
async fn a_page_is_bounded_in_bytes_though_long_changes_come_after_short_ones() {
    let world = World::new().await;
    let mut sql = world.sql.acquire().await.expect("the cluster is up");
    let mut reader = Reader::new(&mut sql).await.expect("the server is up");
    // Ten long ones have one place each, and a character of two bytes.
    world
        .execute(
            "insert into unstale.change_log_1 (id, watch, announced, change)
             select n, 1, false, n::text from generate_series(1, 6000) n
             union all
             select 6000 + n / 10, 1, false, n || repeat('é', 3500) from generate_series(10, 999) n",
        )
        .await;
    let (mut read, mut largest, mut pages) = (Vec::new(), 0, 0);
    loop {
        let page = reader.page(&mut sql).await.expect("the table is there");
        largest = largest.max(page.changes.iter().map(String::len).sum::<usize>());
        read.extend(page.changes);
        pages += 1;
        if !page.more {
            break;
        }
    }
    assert!(largest <= (256 << 10) + 10 * 7_100, "{largest} bytes in a page");
    assert!(pages < 60, "{pages} pages");
    let long = |n| format!("{n}{}", "é".repeat(3_500));
    let mut all: Vec<String> =
        (1..=6_000).map(|n| n.to_string()).chain((10..=999).map(long)).collect();
    all.sort();
    read.sort();
    assert!(read == all, "{} of {} changes were read", read.len(), all.len());
}

#[tokio::test]
async fn a_part_of_the_log_is_emptied_when_every_instance_has_done_it() {
    let world = World::new().await;
    let rows = "select count(*) from unstale.change_log";
    let write = |n: u32| {
        format!(
            "do 'begin for n in 1..{n} loop perform unstale.tell(1, n::text, false, true); end loop; end'"
        )
    };
    world.execute(&write(500)).await;
    world.execute("select unstale.rotate_log(0)").await; // the next part is written now
    assert_eq!(world.number(rows).await, 500, "nobody has done it");
    let mut open = world.sql.begin().await.expect("begins");
    sqlx::query("select unstale.tell(1, 'open', false, true)")
        .execute(&mut *open)
        .await
        .expect("written");
    world.execute(DONE).await;
    world.execute(&write(100)).await;
    world.execute("select unstale.rotate_log(0)").await;
    assert_eq!(world.number(rows).await, 100, "a transaction in the other part keeps only that");
    world.execute(DONE).await;
    world.execute("select unstale.rotate_log(0)").await;
    assert_eq!(world.number(rows).await, 100, "the open transaction has written to it");
    open.commit().await.expect("commits");
    world.execute("select unstale.rotate_log(0)").await;
    assert_eq!(world.number(rows).await, 101, "which was not done when it ended");
    world.execute(DONE).await;
    world.execute("select unstale.rotate_log(0)").await;
    assert_eq!(world.number(rows).await, 0);
    assert_eq!(
        world.number("select count(distinct oid) from pg_proc where proname = 'part' and pronamespace = 'unstale'::regnamespace").await,
        1
    );
}

/// As of a dump that was restored into a younger cluster.
#[tokio::test]
async fn changes_of_transactions_that_are_still_to_come_are_left_alone() {
    let world = World::new().await;
    let mut reader = Reader::new(&mut world.sql.acquire().await.expect("a connection"))
        .await
        .expect("the server is up");
    world.execute("insert into unstale.change_log_2 (xid, watch, announced, change) values ('99999999999', 1, false, 'foreign')").await;
    world.execute(DONE).await;
    assert_eq!(reading(&mut reader, &world).await, [""; 0]);
    world.execute("select unstale.rotate_log(0)").await;
    assert_eq!(world.number("select count(*) from unstale.change_log").await, 0);
}

/// Its snapshot would be older than its lock.
#[tokio::test]
async fn the_log_is_not_emptied_by_a_snapshot_of_before() {
    let world = World::new().await;
    world.execute(DONE).await;
    let mut old = world.sql.begin().await.expect("begins");
    for sql in ["set transaction isolation level repeatable read", "select 1"] {
        sqlx::query(sql).execute(&mut *old).await.expect("the server is up");
    }
    world
        .execute(
            "insert into unstale.change_log_2 (watch, announced, change) values (1, false, 'new')",
        )
        .await;
    sqlx::query("select unstale.rotate_log(0)").execute(&mut *old).await.expect("it does nothing");
    old.commit().await.expect("commits");
    assert_eq!(world.number("select count(*) from unstale.change_log").await, 1);
}

#[tokio::test]
async fn the_log_is_read_by_its_index_also_if_it_was_vacuumed_while_it_was_empty() {
    let world = World::new().await;
    world.execute("vacuum").await;
    let mut sql = world.sql.acquire().await.expect("a connection");
    let mut reader = Reader::new(&mut sql).await.expect("the server is up");
    reader.page(&mut sql).await.expect("the table is there"); // the plan is made
    let row = "insert into unstale.change_log_1 (watch, announced, change) select 1, false, n from generate_series(1, 100) n";
    world.execute(row).await;

    let mut transaction = sql.begin().await.expect("begins");
    let count = "select seq_scan, idx_scan from pg_stat_xact_user_tables where relid = 'unstale.change_log_1'::regclass";
    let before: (i64, i64) =
        sqlx::query_as(count).fetch_one(&mut *transaction).await.expect("counted");
    assert_eq!(reader.page(&mut transaction).await.expect("the table is there").changes.len(), 32);
    let after: (i64, i64) =
        sqlx::query_as(count).fetch_one(&mut *transaction).await.expect("counted");
    assert_eq!(after.0, before.0, "it was read from its beginning");
    assert!(after.1 > before.1);
}
