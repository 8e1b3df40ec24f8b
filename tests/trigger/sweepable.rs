//! What a sweep by `updated_at` would find is not logged; everything else is.

use super::Ear;

const TABLE: &str = "create table t (id int primary key, k text, n int, stamp timestamptz);
    select unstale.watch('t', array['t:{id}:{k}'], updated_at => 'stamp')";

fn new(k: &str) -> String {
    format!(r#"1 "new":{{"id":"1","k":"{k}"}}"#)
}

#[tokio::test]
async fn a_fresh_stamp_is_left_to_the_sweep() {
    let ear = Ear::after(TABLE).await;
    for sql in [
        "insert into t values (1, 'a', 0, clock_timestamp())",
        "update t set n = 1, stamp = clock_timestamp()",
        "update t set n = 2, stamp = clock_timestamp() - unstale.margin() + interval '4 seconds'",
        "update t set n = 3, stamp = clock_timestamp() + interval '1 hour'",
        "update t set n = 4, stamp = 'infinity'",
    ] {
        ear.world.execute(sql).await;
        assert_eq!(ear.logged().await, [""; 0], "{sql}");
    }
}

#[tokio::test]
async fn whatever_a_sweep_could_not_find_is_logged() {
    let ear = Ear::after(TABLE).await;
    for (sql, change) in [
        ("insert into t values (1, 'a', 0)", new("a")),
        ("update t set stamp = clock_timestamp() - unstale.margin()", new("a")),
        ("update t set stamp = '-infinity'", new("a")),
        ("update t set n = 1", new("a")),
        (
            "update t set stamp = clock_timestamp(), k = 'b'",
            format!(r#"{},"old":{{"id":"1","k":"a"}}"#, new("b")),
        ),
        ("update t set stamp = null", new("b")),
        ("delete from t", r#"1 "old":{"id":"1","k":"b"}"#.to_owned()),
        ("truncate t", r#"1 "all":true"#.to_owned()),
    ] {
        ear.world.execute(sql).await;
        assert_eq!(ear.logged().await, [change], "{sql}");
    }
}

#[tokio::test]
async fn without_a_column_to_trust_everything_is_logged() {
    let ear = Ear::after(
        "create table bare (id int); select unstale.watch('bare', array['t:{id}']);
         create table epoch (id int, updated_at bigint); select unstale.watch('epoch', array['t:{id}']);
         create table day (id int, updated_at date); select unstale.watch('day', array['t:{id}']);
         create table none (id int, updated_at timestamptz default now()); select unstale.watch('none', array['t:{id}'], updated_at => null);
         create table hidden (id int, updated_at timestamptz default now()); alter table hidden enable row level security; alter table hidden force row level security;
         select unstale.watch('hidden', array['t:{id}'])",
    )
    .await;
    for table in ["bare", "epoch", "day", "none", "hidden"] {
        ear.world.execute(&format!("insert into {table} (id) values (1)")).await;
        assert_eq!(ear.logged().await, [r#"1 "new":{"id":"1"}"#], "{table}");
    }
    assert_eq!(
        ear.rows("select distinct logs_everything::text from unstale.watches").await,
        ["true"]
    );
}

/// Whatever the zone of the session, in the trigger as in the sweep.
#[tokio::test]
async fn a_stamp_without_a_zone_is_read_as_utc() {
    let ear = Ear::after(
        "create table t (id int, updated_at timestamp); select unstale.watch('t', array['t:{id}'])",
    )
    .await;
    let mut session = ear.session().await;
    for zone in ["UTC", "Asia/Kolkata", "America/Los_Angeles"] {
        session.execute(&format!("set timezone = '{zone}'")).await;
        session.execute("insert into t values (1, timezone('UTC', clock_timestamp()))").await;
        assert_eq!(ear.logged().await, [""; 0], "{zone}");
    }
    session.execute("insert into t values (2, localtimestamp)").await; // Los Angeles is behind UTC
    assert_eq!(ear.logged().await.len(), 1);
}

/// An UPDATE that does not count must not hide one that did from the sweep.
#[tokio::test]
async fn a_stamp_that_is_set_back_counts_whatever_only_columns_says() {
    let mut ear = Ear::after(
        "create table t (id int, n int, stamp timestamptz default clock_timestamp());
         select unstale.watch('t', array['t:{id}'], updated_at => 'stamp', only_columns => '{n}'); insert into t values (1, 1)",
    )
    .await;
    assert_eq!(ear.hears("update t set stamp = clock_timestamp()").await, [""; 0]);
    assert_eq!(ear.hears("update t set stamp = stamp - interval '1 day'").await.len(), 1);
    assert_eq!(ear.hears("update t set stamp = null").await.len(), 1);
    assert_eq!(ear.logged().await.len(), 2);
}

/// What was left to a sweep by the old column is found by no sweep from now on.
#[tokio::test]
async fn another_column_to_sweep_by_takes_all_keys_for_stale() {
    let mut ear = Ear::after(TABLE).await;
    ear.world.execute("alter table t add other timestamptz").await;
    let all = [r#"1 "all":true"#];
    assert_eq!(
        ear.hears("select unstale.watch('t', array['t:{id}:{k}'], updated_at => 'other')").await,
        all
    );
    assert_eq!(ear.logged().await, all);
    assert_eq!(
        ear.hears("select unstale.watch('t', array['t:{id}:{k}'], updated_at => null)").await,
        all
    );
    // Nothing of ours needs either column any more.
    ear.world.execute("alter table t drop column stamp, drop column other").await;
    assert_eq!(ear.hears("insert into t (id) values (77)").await.len(), 1);
}

#[tokio::test]
async fn the_margin_is_the_one_of_the_watermark() {
    let ear = Ear::after("").await;
    let micros =
        ear.rows("select (extract(epoch from unstale.margin()) * 1000000)::bigint::text").await;
    assert_eq!(micros, [unstale::watermark::MARGIN.as_micros().to_string()]);
}
