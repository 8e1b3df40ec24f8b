//! What becomes of a watch when its table changes: it works on, or the change is refused by a
//! message that names unstale.

use std::process::Command;

use super::Ear;
use crate::support::daemon;

const TABLE: &str = "create table t (gone int, id int primary key, k text, extra text, free int, updated_at timestamptz default now());
    alter table t drop column gone;
    select unstale.watch('t', array['t:{id}:{k}'], only_columns => '{extra}')";

const AGAIN: &str = "select unstale.watch('t', array['t:{id}:{k}'], only_columns => '{extra}')";

#[tokio::test]
async fn what_would_break_the_triggers_is_refused_by_name() {
    let mut ear = Ear::after(TABLE).await;
    for sql in [
        "drop table t",
        "alter table t drop column k",
        "alter table t drop column extra",
        "alter table t drop column updated_at",
        "alter table t alter k type varchar",
        "alter table t alter extra type varchar",
        "alter table t alter updated_at type timestamp",
        "drop function unstale.insert_1()",
    ] {
        let refusal = ear.refuses(sql).await;
        assert!(refusal.contains("unstale"), "{sql}: {refusal}");
    }
    assert_eq!(ear.hears("insert into t values (1, 'a')").await.len(), 1);
}

/// In a session that has planned its triggers before.
#[tokio::test]
async fn what_does_not_concern_the_keys_works_on() {
    let mut ear = Ear::after(TABLE).await;
    let mut session = ear.session().await;
    session.execute("insert into t (id, k) values (1, 'a')").await;
    ear.hears("select 1").await;
    for (sql, name) in [
        ("alter table t rename k to kk", "public.t"),
        ("alter table t rename updated_at to stamp", "public.t"),
        ("alter table t add more int default 7", "public.t"),
        ("alter table t alter free type bigint", "public.t"),
        ("alter table t drop column free", "public.t"),
        ("alter table t rename to \"T 2\"", "public.\"T 2\""),
        ("create schema s; alter table \"T 2\" set schema s", "s.\"T 2\""),
        ("alter table s.\"T 2\" set schema public; alter table \"T 2\" rename to t", "public.t"),
        (
            "alter table t rename constraint t_pkey to p; create index on t (kk); cluster t using p",
            "public.t",
        ),
    ] {
        ear.hears(sql).await;
        session.execute(&format!("update {name} set extra = md5(random()::text)")).await;
        session.execute(&format!("update {name} set id = id + 1")).await;
        assert_eq!(ear.hears("select 1").await.len(), 2, "{sql}");
        assert_eq!(ear.rows("select table_name from unstale.watches").await, [name]);
    }
}

/// DROP ... CASCADE takes our triggers along; writers go on, and another watch() makes good what
/// was missed.
#[tokio::test]
async fn a_column_dropped_with_cascade_fails_no_write_and_watching_again_takes_all_for_stale() {
    for (column, definition) in
        [("k", "text"), ("extra", "text"), ("updated_at", "timestamptz default now()")]
    {
        let mut ear = Ear::after(TABLE).await;
        let mut session = ear.session().await;
        session.execute("insert into t (id) values (1)").await;
        ear.hears(&format!("alter table t drop column {column} cascade")).await;
        session
            .execute(
                "insert into t (id) values (2); update t set free = 1; delete from t where id = 2",
            )
            .await;
        ear.hears(&format!("alter table t add column {column} {definition}")).await;
        let rev = if column == "k" { 2 } else { 1 };
        assert_eq!(ear.hears(AGAIN).await, [format!(r#"{rev} "all":true"#)], "{column}");
        for sql in [
            "insert into t (id) values (3)",
            "update t set extra = 'o' where id = 3",
            "delete from t where id = 3",
        ] {
            session.execute(sql).await;
        }
        assert_eq!(ear.hears("select 1").await.len(), 3, "{column}");
        assert_eq!(ear.rows(AGAIN).await, ["unchanged"]);
    }
}

/// When each trigger of the watch fires.
const ENABLED: &str = "select string_agg(substr(tgname, 11) || ' ' || tgenabled::text, ', ' order by tgname) from pg_trigger where tgname like 'unstale\\_1\\_%'";

#[tokio::test]
async fn triggers_that_were_disabled_are_mended_and_all_is_taken_for_stale() {
    let mut ear = Ear::after(TABLE).await;
    for sql in [
        "alter table t disable trigger all",
        "alter table t enable trigger all",
        "drop trigger unstale_1_delete on t",
    ] {
        ear.hears(sql).await;
        assert_eq!(ear.hears(AGAIN).await, [r#"1 "all":true"#], "{sql}");
        assert_eq!(ear.rows(AGAIN).await, ["unchanged"]);
    }
    assert_eq!(
        ear.rows(ENABLED).await,
        ["delete R, deletes O, insert R, inserts O, truncate A, update A"]
    );
}

#[tokio::test]
async fn a_dropped_table_is_listed_until_it_is_noticed_and_a_new_one_of_its_name_takes_all_for_stale()
 {
    let mut ear = Ear::after(TABLE).await;
    ear.hears("drop table t cascade").await;
    assert_eq!(ear.rows("select table_name from unstale.watches").await, ["public.t (dropped)"]);
    ear.hears("create table t (id int, k text, extra text)").await;
    assert_eq!(
        ear.hears(AGAIN).await,
        [r#"1 "all":true"#; 2],
        "the old watch, for whoever listens, and the new one"
    );
    assert_eq!(ear.rows("select id::text from unstale.watches").await, ["2"]);
    assert_eq!(
        ear.rows("select proname::text from pg_proc where proname ~ '_1$' and pronamespace = 'unstale'::regnamespace").await,
        [""; 0]
    );
    assert_eq!(ear.hears("insert into t values (1)").await.len(), 1);
}

#[tokio::test]
async fn row_level_security_that_comes_later_does_not_stop_the_triggers() {
    let mut ear = Ear::after(TABLE).await;
    ear.hears("alter table t enable row level security; alter table t force row level security")
        .await;
    assert_eq!(ear.hears("insert into t values (1)").await.len(), 1);
    assert_eq!(
        ear.hears(AGAIN).await,
        [r#"1 "all":true"#],
        "what was left to the sweep is hidden from it"
    );
    assert_eq!(ear.rows("select logs_everything::text from unstale.watches").await, ["true"]);
}

/// With columns numbered anew, because the dump has no dropped ones.
#[tokio::test]
async fn a_restored_dump_announces_logs_and_sweeps_as_before() {
    let ear = Ear::after(TABLE).await;
    ear.world
        .execute(
            "create table p (id int, updated_at timestamptz) partition by list (id); create table p1 partition of p for values in (1);
        select unstale.watch('p', array['p:{id}']); insert into t values (1, 'a')",
        )
        .await;
    let programs = ear.world.postgres().programs();
    let url = ear.world.postgres().socket_url(ear.world.database());
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(programs.join(program))
            .args(arguments)
            .output()
            .expect("it is beside the server");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let file = tempfile::NamedTempFile::new().expect("a file");
    let dump = file.path().to_str().expect("plain").to_owned();
    run("pg_dump", &["-Fc", "-f", &dump, "-d", &url]);
    let restored = crate::support::world::World::bare().await;
    run(
        "pg_restore",
        &["--exit-on-error", "-d", &restored.postgres().socket_url(restored.database()), &dump],
    );
    let migrated = daemon::command("migrate", &[("DATABASE_URL", &restored.database_url())]);
    assert!(migrated.status.success(), "{migrated:?}");

    let mut ear = Ear::in_world(restored, "").await;
    ear.logged().await;
    assert_eq!(ear.hears("insert into t values (2, 'b')").await, [r#"1 "new":{"id":"2","k":"b"}"#]);
    assert_eq!(ear.logged().await, [""; 0]);
    assert_eq!(ear.hears("insert into p1 values (1)").await, [r#"1 "new":{"id":"1"}"#]);
    assert_eq!(ear.hears("truncate p1").await, [r#"1 "all":true"#]);
    let column = "select a.attname::text from unstale.watch w join pg_attribute a on a.attrelid = w.relation and a.attnum = unstale.sweep_column(w)";
    assert_eq!(ear.rows(column).await, ["updated_at"; 2]);
    assert_eq!(
        ear.rows(ENABLED).await,
        ["delete R, deletes O, insert R, inserts O, truncate A, update A"]
    );
    ear.hears(AGAIN).await;
    assert_eq!(ear.rows(AGAIN).await, ["unchanged"]);
}

/// An upgrade by `pg_dump -s` and logical replication, or a `structure.sql`: functions and
/// triggers, and no row of `unstale.watch`.
#[tokio::test]
async fn after_a_dump_of_the_schema_alone_writes_succeed_and_tables_are_watched_in_any_order() {
    let ear = Ear::after(TABLE).await;
    ear.world.execute("create table u (id int primary key); select unstale.watch('u', array['u:{id}'], delivery => 'statement')").await;
    let programs = ear.world.postgres().programs();
    let url = ear.world.postgres().socket_url(ear.world.database());
    let restored = crate::support::world::World::bare().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    let dump = file.path().to_str().expect("plain").to_owned();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(programs.join(program))
            .args(arguments)
            .output()
            .expect("it is beside the server");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("pg_dump", &["-s", "-f", &dump, "-d", &url]);
    run(
        "psql",
        &[
            "-qX",
            "-v",
            "ON_ERROR_STOP=1",
            "-f",
            &dump,
            "-d",
            &restored.postgres().socket_url(restored.database()),
        ],
    );
    restored
        .execute("insert into t values (1, 'a'); insert into u values (1); update u set id = 2")
        .await;
    let migrated = daemon::command("migrate", &[("DATABASE_URL", &restored.database_url())]);
    assert!(migrated.status.success(), "{migrated:?}");

    let mut ear = Ear::in_world(restored, "").await;
    let orphans = "select about from unstale.findings() where finding like '%was made for another table%' order by 1";
    assert!(
        ear.rows(orphans).await.contains(&"public.t".to_owned()),
        "{:?}",
        ear.rows("select f::text from unstale.findings() f").await
    );
    ear.hears("select unstale.watch('u', array['u:{id}'], delivery => 'statement')").await;
    ear.hears(AGAIN).await;
    assert_eq!(ear.rows("select finding from unstale.findings()").await, [""; 0]);
    assert_eq!(ear.hears("insert into t values (2, 'b')").await, [r#"1 "new":{"id":"2","k":"b"}"#]);
    assert_eq!(ear.hears("insert into u values (3)").await, [r#"1 "new":{"id":"3"}"#]);
}

#[tokio::test]
async fn an_inheritance_child_has_row_triggers_in_every_delivery_that_it_can_have() {
    let mut ear = Ear::after(
        "create table parent (id int primary key, updated_at timestamptz default now());
         select unstale.watch('parent', array['parent:{id}'], delivery => 'statement');
         create table child (primary key (id)) inherits (parent)",
    )
    .await;
    let refusal = ear
        .refuses("select unstale.watch('child', array['child:{id}'], delivery => 'statement')")
        .await;
    assert!(
        refusal.contains("public.child") || refusal.contains("child is an inheritance child"),
        "{refusal}"
    );
    assert!(refusal.contains("delivery => 'row'"), "{refusal}");
    let remedies = ear
        .rows("select remedy from unstale.findings() where finding like 'it inherits from%'")
        .await;
    assert_eq!(remedies.len(), 1);
    ear.hears(&remedies[0]).await;
    assert_eq!(ear.rows("select finding from unstale.findings()").await, [""; 0]);
    assert_eq!(ear.hears("insert into child values (1)").await, [r#"1 "new":{"id":"1"}"#]);
    ear.hears("select unstale.watch('child', array['child:{id}'], delivery => 'log')").await;
    ear.logged().await;
    ear.hears("insert into child values (2); update child set id = 3 where id = 2; delete from child where id = 3").await;
    assert_eq!(ear.logged().await.len(), 3);
}
