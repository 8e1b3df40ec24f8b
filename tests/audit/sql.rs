//! The audit's functions in the database: whose code they run, what survives DDL, and how versions
//! compare.

use unstale::audit::invert::{Inverter, Obscure};
use unstale::pg::Postgres;
use unstale::pg::audit::{Reader, Rows, TIMEOUT};
use unstale::rule::Template;

use crate::support::world::World;

async fn reader(world: &World) -> Reader {
    Reader::open(
        Postgres::new(secrecy::SecretString::from(world.database_url())).expect("a URL"),
        TIMEOUT,
    )
    .await
    .expect("it connects")
}

fn found(rows: &[(&str, &str)]) -> Vec<(String, Option<String>)> {
    rows.iter().map(|(image, version)| ((*image).to_owned(), Some((*version).to_owned()))).collect()
}

#[tokio::test]
async fn rows_are_found_by_place_by_stamp_and_by_the_columns_of_each_template() {
    let world = World::new().await;
    world
        .execute(
            "create extension citext; create domain number as int;
             create table t (id number primary key, name citext, code char(3), day date, v numeric, updated_at timestamptz) partition by range (id);
             create table t1 partition of t for values from (0) to (10); create table t2 partition of t for values from (10) to (99);
             insert into t select n, 'N' || n, 'c' || n, date '2026-01-01' + n, n / 10.0, clock_timestamp() + n * interval '1s' from generate_series(1, 20) n;
             select unstale.watch('t', array['a:{id}', 'b:{name}:{code}', 'c', 'd:{day}'], version => 'v', version_path => '$.v')",
        )
        .await;
    let mut reader = reader(&world).await;
    let tables = reader.tables().await.expect("tables");
    let [table] = &tables[..] else { panic!("{tables:?}") };
    assert_eq!(table.column_types, ["int4", "citext", "bpchar", "date"]);
    assert_eq!(
        (table.version_type.as_deref(), table.has_stamp, table.blocks, &table.unauditable),
        (Some("numeric"), true, 1, &None)
    );
    assert_eq!(reader.rows(table.watch, &Rows::Blocks(0, 1), 0).await.expect("rows").len(), 20);
    let newest = reader.rows(table.watch, &Rows::Recent(2), 0).await.expect("rows");
    assert!(newest.len() == 2 && newest[0].0.contains(r#""id":"20""#), "{newest:?}");
    let image = r#"{"id":"7","name":"N7","code":"c7 ","day":"2026-01-08"}"#;
    for (template, wanted) in
        [(0, r#"{"id":"7"}"#), (1, r#"{"name":"N7","code":"c7 "}"#), (3, r#"{"day":"2026-01-08"}"#)]
    {
        let rows = reader
            .rows(table.watch, &Rows::Like(template, &[wanted.to_owned()]), 100)
            .await
            .expect("rows");
        assert_eq!(rows, found(&[(image, "0.70000000000000000000")]), "{wanted}");
    }
    let none = reader
        .rows(table.watch, &Rows::Like(0, &[r#"{"id":"77"}"#.to_owned()]), 100)
        .await
        .expect("rows");
    assert_eq!(none, []);
}

#[tokio::test]
async fn a_column_that_is_renamed_stays_the_version_and_one_that_is_dropped_is_refused() {
    let world = World::new().await;
    world
        .execute(
            "create table t (id int, v int); insert into t values (1, 5);
             select unstale.watch('t', array['t:{id}'], version => 'v', version_path => '$.v');
             alter table t rename column v to w; alter table t rename column id to number;",
        )
        .await;
    let mut reader = reader(&world).await;
    let watch = reader.tables().await.expect("tables")[0].watch;
    let wanted = [r#"{"id":"1"}"#.to_owned()];
    let rows = reader.rows(watch, &Rows::Like(0, &wanted), 10).await.expect("rows");
    assert_eq!(rows, found(&[(r#"{"id":"1"}"#, "5")]));
    // What an upgrade does.
    world.execute("update unstale.watch set code = 0; select unstale.regenerate()").await;
    assert_eq!(reader.rows(watch, &Rows::Like(0, &wanted), 10).await.expect("rows").len(), 1);
    let dropped = sqlx::query("alter table t drop column w")
        .execute(&world.sql)
        .await
        .expect_err("it is used")
        .to_string();
    assert!(dropped.contains("depend"), "{dropped}");
    world.execute("alter table t drop column w cascade; insert into t values (2)").await; // writes go on
    let reason = reader.tables().await.expect("tables")[0].unauditable.clone();
    assert!(
        reason.as_ref().is_some_and(|reason| reason.contains("call unstale.watch() again")),
        "{reason:?}"
    );
    let warning =
        world.number("select count(*) from unstale.findings() f where f.severity = 'warning' and f.finding like '%unstale audit%'").await;
    assert_eq!(warning, 1);
}

#[tokio::test]
async fn a_watch_that_has_no_version_any_more_holds_on_to_no_column() {
    let world = World::new().await;
    world
        .execute(
            "create table t (id int, v int, updated_at timestamptz); select unstale.watch('t', array['t:{id}'], version => 'v', version_path => '$.v');
             select unstale.watch('t', array['t:{id}'], updated_at => null); alter table t drop column v",
        )
        .await;
    assert_eq!(
        world.number("select count(*) from unstale.findings() f where f.severity = 'error'").await,
        0
    );
}

#[tokio::test]
async fn versions_compare_as_their_type_does() {
    let world = World::new().await;
    let mut reader = reader(&world).await;
    let stamp = "2026-01-02T03:04:05.678901Z";
    for (kind, cached, stored, expected) in [
        ("int8", "1", "1", Some(true)),
        ("int4", "1.0", "1", Some(true)),
        ("int4", "2", "1", Some(false)),
        ("int4", "one", "1", None),
        ("numeric", "1e2", "100.00", Some(true)),
        ("text", "a", "A", Some(false)),
        ("bpchar", "a", "a  ", Some(true)),
        (
            "uuid",
            "{A0EEBC99-9C0B4EF8-BB6D6BB9-BD380A11}",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            Some(true),
        ),
        ("uuid", "x", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", None),
        ("date", "2026-01-02T00:00:00.000Z", "2026-01-02", Some(true)),
        ("date", "2026-01-03", "2026-01-02", Some(false)),
        ("timestamptz", "2026-01-02 03:04:05.678901+00", stamp, Some(true)),
        ("timestamptz", "2026-01-02T04:04:05.678901+01:00", stamp, Some(true)),
        ("timestamptz", "2026-01-02T03:04:05.678Z", stamp, Some(true)),
        ("timestamptz", "2026-01-02T03:04:05.679Z", stamp, Some(true)), // rounded
        ("timestamptz", "2026-01-02T03:04:05.677Z", stamp, Some(false)),
        ("timestamptz", "2026-01-02T03:04:05.678902Z", stamp, Some(false)),
        ("timestamptz", "2026-01-02 03:04:05 UTC", stamp, Some(true)),
        ("timestamptz", "Fri, 02 Jan 2026 03:04:05 GMT", stamp, Some(true)),
        ("timestamptz", "2026-01-02T03:04:04Z", stamp, Some(false)),
        ("timestamptz", "1767323045", stamp, Some(true)),
        ("timestamptz", "1767323045.678901", stamp, Some(true)),
        ("timestamptz", "1767323045.678902", stamp, Some(false)),
        ("timestamptz", "1767323045678", stamp, Some(true)),
        ("timestamptz", "1767323045680", stamp, Some(false)),
        ("timestamptz", "1767323045678901", stamp, Some(true)),
        ("timestamptz", "1767323045678902", stamp, Some(false)),
        ("timestamptz", "infinity", stamp, Some(false)),
        ("timestamptz", "99999999999999999999999999999999999999", stamp, Some(false)),
        ("timestamptz", "soon", stamp, None),
        ("timestamp", "2026-01-02T03:04:05.678Z", "2026-01-02T03:04:05.678901", Some(true)),
    ] {
        let same = reader.same(kind, &[cached], &[stored]).await.expect("an answer");
        assert_eq!(same, [expected], "{kind}: {cached} and {stored}");
    }
}

/// The templates that migrations/repeatable/audit.sql finds ambiguous are those that
/// src/audit/invert.rs refuses.
#[tokio::test]
async fn sql_and_rust_find_the_same_templates_ambiguous() {
    let world = World::new().await;
    for template in [
        "a:{b}",
        "{a}{b}:",
        ":{a}{b}",
        "{a}:{b}",
        "{{a}}{b}",
        "{a}}}{b}",
        "{a}{{{b}",
        "{a}{{{{{b}{c}",
        "x",
        "{a}-{b}{c}",
        "{{{a}{b}}}",
    ] {
        let inverter = Inverter::new(&Template::parse(template).expect(template), &[]);
        let ambiguous =
            world.number(&format!("select unstale.is_ambiguous('{template}')::int::bigint")).await;
        assert_eq!(ambiguous == 1, matches!(inverter, Err(Obscure::Adjacent)), "{template}");
    }
}

#[tokio::test]
async fn columns_with_other_numbers_as_after_a_restore_are_noticed_and_watching_again_mends_it() {
    let world = World::new().await;
    world
        .execute(
            "create table t (gone int, id int, v int, w int); alter table t drop column gone;
             select unstale.watch('t', array['t:{id}'], version => 'v', version_path => '$.v'); update unstale.watch set version_attnum = 4",
        )
        .await;
    let mut reader = reader(&world).await;
    let reason = reader.tables().await.expect("tables")[0].unauditable.clone();
    assert!(reason.as_ref().is_some_and(|reason| reason.contains("other numbers")), "{reason:?}");
    world
        .execute(
            "select unstale.watch('t', array['t:{id}'], version => 'v', version_path => '$.v')",
        )
        .await;
    assert_eq!(reader.tables().await.expect("tables")[0].unauditable, None);
}
