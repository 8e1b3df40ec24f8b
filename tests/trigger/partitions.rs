//! Partitioned tables: whichever table a statement names.

use super::Ear;

/// A partition with another column order, and one that is partitioned itself.
const PARTS: &str = "create table parts (id int, k text, at int, updated_at timestamptz default now()) partition by range (at);
    create table p1 partition of parts for values from (0) to (10);
    create table p2 (junk int, updated_at timestamptz, at int, k text, id int);
    alter table p2 drop column junk;
    alter table parts attach partition p2 for values from (10) to (20);
    create table p3 partition of parts for values from (20) to (40) partition by range (at);
    create table p31 partition of p3 for values from (20) to (30);
    select unstale.watch('parts', array['part:{id}:{k}'])";

const ATTACH: &str = "create table p4 (at int, junk text, k text, id int, updated_at timestamptz);
    alter table p4 drop column junk;
    alter table parts attach partition p4 for values from (40) to (50);
    create table p32 partition of p3 for values from (30) to (40)";

fn new(id: i32) -> String {
    format!(r#"1 "new":{{"id":"{id}","k":"k{id}"}}"#)
}

#[tokio::test]
async fn a_row_is_heard_through_the_parent_and_through_each_partition() {
    let mut ear = Ear::after(PARTS).await;
    ear.hears(ATTACH).await;
    let through_parent =
        "insert into parts select i, 'k' || i, i * 10 - 5 from generate_series(1, 5) i";
    assert_eq!(ear.hears(through_parent).await, [new(1), new(2), new(3), new(4), new(5)]);
    for (id, partition, at) in [
        (11, "p1", 5),
        (12, "p2", 15),
        (13, "p31", 25),
        (14, "p32", 35),
        (15, "p4", 45),
        (16, "p3", 25),
    ] {
        let sql = format!(
            "insert into {partition} (id, k, at, updated_at) values ({id}, 'k{id}', {at}, now())"
        );
        assert_eq!(ear.hears(&sql).await, [new(id)], "{partition}");
    }
    assert_eq!(ear.logged().await, [""; 0]);
    let both = r#"1 "new":{"id":"2","k":"x"},"old":{"id":"2","k":"k2"}"#;
    assert_eq!(ear.hears("update p2 set k = 'x' where id = 2").await, [both]);
    assert_eq!(ear.hears("delete from p4 where id = 5").await, [r#"1 "old":{"id":"5","k":"k5"}"#]);
}

#[tokio::test]
async fn a_row_that_moves_to_another_partition_is_heard_as_old_and_as_new() {
    let mut ear = Ear::after(PARTS).await;
    ear.hears("insert into parts values (1, 'k1', 5)").await;
    let moved = [r#"1 "old":{"id":"1","k":"k1"}"#.to_owned(), new(1)];
    assert_eq!(ear.hears("update parts set at = 15").await, moved);
    assert_eq!(ear.hears("update p2 set id = id").await, [new(1)]);
}

#[tokio::test]
async fn truncate_is_heard_for_the_parent_and_for_each_partition() {
    let mut ear = Ear::after(PARTS).await;
    for table in ["parts", "p1", "p2", "p3", "p31"] {
        assert_eq!(ear.hears(&format!("truncate {table}")).await, [r#"1 "all":true"#], "{table}");
    }
}

/// A later partition gets its row triggers from PostgreSQL, and the one for TRUNCATE when the watch
/// is made again.
#[tokio::test]
async fn watching_again_completes_a_later_partition_and_takes_what_came_before_for_stale() {
    let mut ear = Ear::after(PARTS).await;
    ear.hears(ATTACH).await;
    let again = "select unstale.watch('parts', array['part:{id}:{k}'])";
    assert_eq!(ear.hears("truncate p4").await, [""; 0]);
    assert_eq!(ear.hears(again).await, [r#"1 "all":true"#]);
    assert_eq!(ear.rows(again).await, ["unchanged"]);
    assert_eq!(ear.hears("truncate p4").await, [r#"1 "all":true"#]);
}

#[tokio::test]
async fn what_no_trigger_tells_of_partitions_is_noticed() {
    let mut ear = Ear::after(PARTS).await;
    let notice = "select unstale.notice_ddl()";
    assert_eq!(ear.hears(notice).await, [""; 0]);
    ear.hears("truncate p1").await; // which has a trigger
    ear.hears("vacuum full p1").await;
    assert_eq!(ear.hears(notice).await, [""; 0]);
    ear.hears(ATTACH).await;
    assert_eq!(ear.hears(notice).await, [""; 0], "they are empty, and ever were");
    for sql in [
        "truncate p4",
        "truncate parts",
        "alter table parts detach partition p4",
        "drop table p32 cascade",
    ] {
        ear.hears(sql).await;
        assert_eq!(ear.hears(notice).await, [r#"1 "all":true"#], "{sql}");
        assert_eq!(ear.hears(notice).await, [""; 0], "{sql}");
    }
    let all = ear.logged().await.iter().filter(|change| *change == r#"1 "all":true"#).count();
    let by_triggers = ["p1", "parts", "p1", "p2", "p3", "p31"].len();
    assert_eq!(all, 4 + by_triggers, "for whoever is away");
}

/// As pg_partman does it: a table like the parent, attached. What was in it before is announced by
/// no trigger.
#[tokio::test]
async fn a_new_partition_costs_the_whole_cache_only_if_it_may_have_had_rows() {
    let mut ear = Ear::after(PARTS).await;
    let notice = "select unstale.notice_ddl()";
    let all = [r#"1 "all":true"#];
    ear.hears("create table q1 (like parts including all); alter table parts attach partition q1 for values from (100) to (110)").await;
    ear.hears("create table q2 partition of parts for values from (110) to (120)").await;
    assert_eq!(ear.hears(notice).await, [""; 0]);
    assert_eq!(
        ear.rows("select finding from unstale.findings()").await,
        [""; 0],
        "after somebody's maintenance"
    );
    assert_eq!(ear.hears("insert into parts values (1, 'k1', 105)").await, [new(1)]);
    assert_eq!(ear.hears(notice).await, [""; 0], "it was known before it had a row");

    let full = "create table q3 (like parts); insert into q3 values (2, 'k2', 125); \
                alter table parts attach partition q3 for values from (120) to (130)";
    ear.hears(full).await;
    assert_eq!(ear.hears(notice).await, all);
    // Its rows were announced as inserted, and are cached: the TRUNCATE is not announced.
    ear.hears("create table q4 partition of parts for values from (130) to (140)").await;
    assert_eq!(ear.hears("insert into parts values (3, 'k3', 135)").await, [new(3)]);
    ear.hears("truncate q4").await;
    assert_eq!(ear.hears(notice).await, all);
    assert_eq!(
        ear.hears("drop table q2; select unstale.notice_ddl()").await,
        all,
        "a partition that goes takes rows along"
    );
}

#[tokio::test]
async fn a_layout_of_the_release_before_is_taken_for_what_it_is() {
    let mut ear = Ear::after(PARTS).await;
    ear.hears("update unstale.watch set layout = md5(layout)").await;
    assert_eq!(ear.hears("select unstale.notice_ddl()").await, [""; 0]);
    ear.hears(ATTACH).await;
    assert_eq!(
        ear.hears("select unstale.notice_ddl()").await,
        [r#"1 "all":true"#],
        "which partitions are new is not known"
    );
    assert_eq!(ear.hears("select unstale.notice_ddl()").await, [""; 0]);
}

/// The real thing (`postgresql-NN-partman`), in each of the versions that Debian has.
#[tokio::test]
async fn the_maintenance_of_pg_partman_costs_nothing_and_leaves_check_content() {
    let mut ear = Ear::after(
        "create schema partman; create extension pg_partman schema partman;
         create table measured (id bigint not null, at timestamptz not null, updated_at timestamptz default now()) partition by range (at);
         do $$ begin
             if exists (select from pg_extension where extname = 'pg_partman' and extversion < '5') then
                 perform partman.create_parent('public.measured', 'at', 'native', 'daily');
             else
                 perform partman.create_parent(p_parent_table => 'public.measured', p_control => 'at', p_interval => '1 day');
             end if;
         end $$;
         select unstale.watch('measured', array['measured:{id}'])",
    )
    .await;
    ear.hears("insert into measured select 0, now()").await; // it goes on from the newest row
    let count = "select count(*)::text from pg_inherits where inhparent = 'measured'::regclass";
    let before: i64 = ear.rows(count).await[0].parse().expect("a number");
    let maintain = "update partman.part_config set premake = 9; select partman.run_maintenance('public.measured')";
    assert_eq!(ear.hears(maintain).await, [""; 0]);
    let after: i64 = ear.rows(count).await[0].parse().expect("a number");
    assert!(after >= before + 5, "{before} partitions, then {after}");
    assert_eq!(ear.hears("select unstale.notice_ddl()").await, [""; 0]);
    assert_eq!(ear.rows("select finding from unstale.findings()").await, [""; 0]);
    let inserted = [r#"1 "new":{"id":"1"}"#];
    assert_eq!(
        ear.hears("insert into measured select 1, now() + interval '8 days'").await,
        inserted,
        "into one of the new ones"
    );
    let again = "select unstale.watch('measured', array['measured:{id}'])";
    assert_eq!(ear.hears(again).await, [""; 0]);
    assert_eq!(ear.rows(again).await, ["unchanged"]);
}

#[tokio::test]
async fn noticing_waits_for_nobody() {
    let mut ear = Ear::after(PARTS).await;
    let mut other = ear.session().await;
    other
        .execute("begin; lock table p31; lock table unstale.watch in share row exclusive mode")
        .await;
    ear.hears("set lock_timeout = '1s'; alter table parts detach partition p1; select unstale.notice_ddl()").await;
    other.execute("rollback").await;
    assert_eq!(ear.hears("select unstale.notice_ddl()").await, [r#"1 "all":true"#]);
}

#[tokio::test]
async fn another_watch_reaches_every_partition_and_still_fires_always() {
    let mut ear = Ear::after(PARTS).await;
    ear.hears(ATTACH).await;
    let other = "select unstale.watch('parts', array['part:{id}:{at}'], only_columns => '{at}')";
    assert_eq!(ear.rows(other).await, ["changed"]);
    assert_eq!(ear.rows(other).await, ["unchanged"]);
    let mut session = ear.session().await;
    session
        .execute("set session_replication_role = replica; insert into p4 (id, at) values (9, 41)")
        .await;
    session.execute("update p4 set k = 'unsaid', updated_at = now(); update p4 set at = 42").await;
    let inserted = r#"2 "new":{"id":"9","at":"41"}"#;
    // All, because of the templates of before; and a stamp that is gained counts whatever
    // only_columns says.
    let all = r#"1 "all":true"#;
    let expected =
        [all, inserted, inserted, r#"2 "new":{"id":"9","at":"42"},"old":{"id":"9","at":"41"}"#];
    assert_eq!(ear.hears("select 1").await, expected);
    assert_eq!(
        ear.hears("update p4 set k = 'unsaid', updated_at = clock_timestamp()").await,
        [""; 0]
    );
    assert_eq!(
        ear.hears("update p4 set at = 43").await,
        [r#"2 "new":{"id":"9","at":"43"},"old":{"id":"9","at":"42"}"#]
    );
}

#[tokio::test]
async fn a_detached_partition_is_an_ordinary_table_and_unwatch_leaves_nothing_on_it() {
    let mut ear = Ear::after(PARTS).await;
    assert_eq!(ear.hears("alter table parts detach partition p2; insert into p2 (id) values (1); update p2 set id = 2").await, [""; 0]);
    assert_eq!(ear.rows("select unstale.unwatch('parts')::text").await, ["true"]);
    assert_eq!(
        ear.rows("select tgname::text from pg_trigger where tgname like 'unstale%'").await,
        [""; 0]
    );
    assert_eq!(
        ear.rows("select proname::text from pg_proc where pronamespace = 'unstale'::regnamespace and proname ~ '_[0-9]+$'").await,
        [""; 0]
    );
}

/// The tables' owner need not be the schema's. PostgreSQL asks whether he may execute what the
/// triggers of a new partition call.
#[tokio::test]
async fn an_owner_who_does_not_own_our_schema_can_make_and_attach_partitions() {
    let mut ear = Ear::after("").await;
    let database: String = ear.rows("select current_database()").await.remove(0);
    let (one, other) = (format!("one_{database}"), format!("other_{database}"));
    let make = "create table p1 partition of theirs for values from (0) to (10);
        create table p2 partition of theirs for values from (10) to (30) partition by range (id);
        create table p21 partition of p2 for values from (10) to (20);
        create table p3 (id int primary key); alter table theirs attach partition p3 for values from (30) to (40)";
    ear.world
        .execute(&format!(
            "create role {one}; create role {other}; grant create, usage on schema public to {one}, {other};
             set role {one}; create table theirs (id int primary key) partition by range (id); reset role;
             select unstale.watch('theirs', array['theirs:{{id}}'])"
        ))
        .await;
    let mut session = ear.session().await;
    session.execute(&format!("set role {one}; {make}")).await;
    let new = |id| format!(r#"1 "new":{{"id":"{id}"}}"#);
    assert_eq!(
        ear.hears("insert into theirs values (5), (15), (35)").await,
        [new(5), new(15), new(35)]
    );

    // Another owner is given the right by the same call; without it PostgreSQL refuses his
    // partition, and no write.
    ear.world.execute(&format!("alter table theirs owner to {other}")).await;
    session.execute(&format!("reset role; set role {other}")).await;
    let fourth = "create table p4 partition of theirs for values from (40) to (50)";
    assert!(session.refuses(fourth).await.contains("permission denied"));
    ear.hears("select unstale.watch('theirs', array['theirs:{id}'])").await;
    session.execute(fourth).await;
    assert_eq!(ear.hears("insert into theirs values (45)").await, [new(45)]);
    session.execute("reset role").await;
    ear.world
        .execute(&format!(
            "drop table theirs cascade; drop owned by {one}, {other}; drop role {one}, {other}"
        ))
        .await;
}
