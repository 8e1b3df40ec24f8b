//! `unstale.watch()` and `unstale.unwatch()` themselves.

use super::{Ear, USERS};
use crate::support::wait::until;

const SAME: &str = "select unstale.watch('users', array['user:{id}', 'by-email:{email}'])";
const OTHER: &str = "select unstale.watch('users', array['user:{id}', 'name:{name}'])";

/// What a call could have touched.
const CATALOG: &str = "select string_agg(format('%s %s', oid, xmin), ' ' order by oid) from (
    select oid, xmin from pg_trigger union all select oid, xmin from pg_proc where pronamespace = 'unstale'::regnamespace
    union all select id, xmin from unstale.watch) all_of_it";

#[tokio::test]
async fn the_same_call_touches_nothing_and_locks_nothing() {
    let ear = Ear::after(USERS).await;
    let before = ear.rows(CATALOG).await;
    let mut session = ear.session().await;
    session.execute("begin").await;
    assert_eq!(session.value(SAME).await, "unchanged");
    let locks = session
        .value(
            "select count(*)::text from pg_locks where pid = pg_backend_pid() and mode not in ('AccessShareLock', 'ExclusiveLock')
                or pid = pg_backend_pid() and relation = 'users'::regclass and mode <> 'AccessShareLock'",
        )
        .await;
    assert_eq!(locks, "0");
    session.execute("commit").await;
    assert_eq!(ear.rows(CATALOG).await, before);
}

#[tokio::test]
async fn other_keys_are_another_revision_and_other_columns_only_another_trigger() {
    let mut ear = Ear::after(USERS).await;
    let mut session = ear.session().await;
    session.execute("insert into users values (1, 'a', 'n')").await;
    assert_eq!(ear.hears("select 1").await.len(), 1);
    assert_eq!(ear.rows(OTHER).await, ["changed"]);
    // A session that had planned the functions of before.
    session.execute("update users set email = 'b'").await;
    assert_eq!(
        ear.hears("select 1").await,
        [r#"1 "all":true"#, r#"2 "new":{"id":"1","name":"n"}"#],
        "of the template that is gone"
    );
    assert_eq!(ear.rows("select unstale.watch('users', array['user:{id}', 'name:{name}'], only_columns => '{name}')").await, ["changed"]);
    assert_eq!(ear.rows("select rev::text from unstale.watches").await, ["2"]);
    assert_eq!(
        ear.hears("update users set email = 'c', updated_at = clock_timestamp()").await,
        [""; 0]
    );
}

/// It says something of the values, and nothing that a trigger does.
#[tokio::test]
async fn another_policy_touches_no_trigger_and_needs_no_lock_of_the_table() {
    let mut ear = Ear::after(USERS).await;
    let triggers = "select string_agg(format('%s %s %s', oid, xmin, tgname), ' ' order by oid) from pg_trigger where not tgisinternal";
    let before = ear.rows(triggers).await;
    let mut writer = ear.session().await;
    writer.execute("begin; insert into users values (7)").await;
    let policy = "guarantee => 'lease', reason => 'read on every page', version => 'updated_at', version_path => '$.user[\"last change\"]'";
    let call = format!(
        "select unstale.watch('users', array['user:{{id}}', 'by-email:{{email}}'], {policy})"
    );
    assert_eq!(ear.rows(&call).await, ["changed"]);
    assert_eq!(ear.rows(&call).await, ["unchanged"]);
    assert_eq!(ear.rows(triggers).await, before);
    assert_eq!(ear.rows("select rev::text from unstale.watches").await, ["1"]);
    let shown = "select format('%s|%s|%s|%s', guarantee, reason, version, version_path) from";
    let expected = "lease|read on every page|updated_at|$.user[\"last change\"]";
    assert_eq!(ear.rows(&format!("{shown} unstale.watches")).await, [expected]);
    assert_eq!(ear.rows(&format!("{shown} unstale.list_watches()")).await, [expected]);
    let call_again = "select unstale.watch_call(w, w.relation) from unstale.watch w";
    let remedy = ear.rows(call_again).await.remove(0);
    assert_eq!(ear.rows(remedy.trim_end_matches(';')).await, ["unchanged"], "{remedy}");
    assert_eq!(
        ear.rows(&format!(
            "select unstale.preview('users', array['user:{{id}}', 'by-email:{{email}}'], {policy})"
        ))
        .await,
        [""; 0]
    );
    writer.execute("commit").await;
    assert_eq!(ear.hears("select 1").await.len(), 1, "the writer's row alone");
}

#[tokio::test]
async fn it_lists_what_is_watched_and_how() {
    let ear = Ear::after(USERS).await;
    let row = "select to_jsonb(w) - 'since' #>> '{}' from (select * from unstale.watches) w";
    let expected = r#"{"id": 1, "rev": 1, "keys": ["user:{id}", "by-email:{email}"], "reason": null, "max_ttl": null, "version": null, "delivery": "row", "guarantee": null, "table_name": "public.users", "updated_at": "updated_at", "only_columns": null, "version_path": null, "logs_everything": false}"#;
    assert_eq!(ear.rows(row).await, [expected]);
    assert_eq!(ear.rows("select (since between now() - interval '1 minute' and now())::text from unstale.watches").await, ["true"]);
}

#[tokio::test]
async fn in_a_transaction_it_holds_from_there_on_and_goes_when_that_is_rolled_back() {
    let mut ear = Ear::after("create table t (id int)").await;
    let watch = "select unstale.watch('t', array['t:{id}'])";
    assert_eq!(
        ear.hears(&format!("begin; insert into t values (1); {watch}; insert into t values (2); rollback; insert into t values (3)")).await,
        [""; 0]
    );
    assert_eq!(ear.rows("select table_name from unstale.watches").await, [""; 0]);
    assert_eq!(
        ear.hears(&format!("begin; insert into t values (4); {watch}; insert into t values (5); commit; insert into t values (6)")).await,
        [r#"1 "new":{"id":"5"}"#, r#"1 "new":{"id":"6"}"#]
    );
}

#[tokio::test]
async fn twenty_at_once_make_one_watch() {
    let ear = Ear::after("create table t (id int)").await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let mut session = ear.session().await;
        calls.spawn(
            async move { session.value("select unstale.watch('t', array['t:{id}'])").await },
        );
    }
    let mut said = calls.join_all().await;
    said.sort();
    assert_eq!(said[..2], ["added", "unchanged"]);
    assert_eq!(said[19], "unchanged");
}

#[tokio::test]
async fn a_table_in_use_is_not_waited_for_and_the_message_says_by_whom() {
    let ear = Ear::after(USERS).await;
    let (mut writer, mut caller) = (ear.session().await, ear.session().await);
    let pid = writer.value("select pg_backend_pid()::text").await;
    writer.execute("begin; insert into users values (1)").await;
    caller.execute("set lock_timeout = '20ms'").await;
    let another = "select unstale.watch('users', array['user:{id}'], only_columns => '{name}')";
    for sql in [another, "select unstale.unwatch('users')"] {
        let refusal = caller.refuses(sql).await;
        assert!(
            refusal.contains("public.users within 20ms") && refusal.contains(&format!("pid {pid}")),
            "{refusal}"
        );
        assert_eq!(caller.value("show lock_timeout").await, "20ms");
    }
    assert_eq!(caller.value(SAME).await, "unchanged", "which needs no lock");
    writer.execute("commit").await;
    assert_eq!(caller.value(another).await, "changed");
}

#[tokio::test]
async fn the_callers_lock_timeout_is_its_own_again() {
    let ear = Ear::after(USERS).await;
    let mut session = ear.session().await;
    session.execute("begin; set local lock_timeout = '0'").await;
    session.value(OTHER).await;
    assert_eq!(session.value("show lock_timeout").await, "0");
    session.value(SAME).await;
    session.execute("set local lock_timeout = '7s'").await;
    session.execute("do $$ begin perform unstale.watch('users', '{\"{id}\"}'); exception when others then null; end $$").await;
    assert_eq!(session.value("show lock_timeout").await, "7s");
    session.value("select unstale.unwatch('users')::text").await;
    assert_eq!(session.value("show lock_timeout").await, "7s");
    session.execute("rollback").await;
}

#[tokio::test]
async fn unwatch_leaves_nothing_and_says_whether_there_was_something() {
    let mut ear = Ear::after(USERS).await;
    let unwatch = "select unstale.unwatch('users')::text";
    assert_eq!(ear.rows(unwatch).await, ["true"]);
    assert_eq!(ear.rows(unwatch).await, ["false"]);
    assert_eq!(
        ear.rows("select tgname::text from pg_trigger where tgname like 'unstale%'").await,
        [""; 0]
    );
    assert_eq!(
        ear.rows("select proname::text from pg_proc where pronamespace = 'unstale'::regnamespace and proname ~ '_[0-9]+$'").await,
        [""; 0]
    );
    assert_eq!(ear.hears("select 1").await, [r#"1 "all":true"#]);
    assert_eq!(
        ear.hears("insert into users values (1); truncate users; drop table users").await,
        [""; 0]
    );
    assert_eq!(
        ear.rows("select table_name from unstale.watch where ended is not null").await,
        ["public.users"]
    );
    ear.hears("insert into unstale.instance (name, log, replay_log, timeline, forget_after) values ('a', '3:3:', pg_current_snapshot(), '', '1 day')").await;
    ear.hears("select unstale.notice_ddl()").await;
    assert_eq!(
        ear.rows("select table_name from unstale.watch").await,
        [""; 0],
        "everybody has deleted its keys"
    );
}

#[tokio::test]
async fn unwatch_leaves_nothing_of_any_delivery_nor_of_one_before() {
    let mut ear = Ear::after("create table a (id int primary key, updated_at timestamptz); create table b (id int primary key)").await;
    for table in ["a", "b"] {
        for deliveries in
            [&["row"][..], &["statement"], &["log"], &["log", "row"], &["row", "statement", "log"]]
        {
            for delivery in deliveries {
                ear.hears(&format!(
                    "select unstale.watch('{table}', array['k:{{id}}'], '{delivery}')"
                ))
                .await;
            }
            assert_eq!(
                ear.rows(&format!("select unstale.unwatch('{table}')::text")).await,
                ["true"],
                "{table} {deliveries:?}"
            );
            assert_eq!(
                ear.rows("select tgname::text from pg_trigger where tgname like 'unstale%'").await,
                [""; 0]
            );
            assert_eq!(
                ear.rows("select proname::text from pg_proc where pronamespace = 'unstale'::regnamespace and proname ~ '_[0-9]+$'").await,
                [""; 0]
            );
        }
    }
}

#[tokio::test]
async fn what_cannot_be_watched_is_refused_with_a_remedy() {
    let ear = Ear::after(
        "create table t (id int primary key, v int, f float8); create view a_view as select 1 as id; create materialized view matview as select 1 as id;
         create unlogged table unlogged (id int); create table parent (id int); create table child () inherits (parent); create sequence a_sequence",
    )
    .await;
    for (arguments, part) in [
        ("null, '{a}'", "no such table"),
        ("'a_view', '{a}'", "view"),
        ("'matview', '{a}'", "materialized view"),
        ("'a_sequence', '{a}'", "kind S"),
        ("'t_pkey', '{a}'", "kind i"),
        ("'unlogged', '{a}'", "set logged"),
        ("'parent', '{a}'", "public.child"),
        ("'unstale.watch', '{a}'", "unstale itself"),
        ("'pg_class', '{a}'", "pg_catalog itself"),
        ("'t', null", "at least one key"),
        ("'t', '{}'", "at least one key"),
        ("'t', '{a,null}'", "at least one key"),
        ("'t', '{\"{id}\"}'", "has no literal part"),
        ("'t', '{\"t:{nope}\"}'", "no column 'nope'\nIts columns are id, v, f."),
        ("'t', '{\"t:{ctid}\"}'", "no column 'ctid'"),
        (
            "'t', '{t}', only_columns => '{nope}'",
            "only_columns: table public.t has no column 'nope'",
        ),
        ("'t', '{t}', updated_at => 'nope'", "updated_at: table public.t has no column 'nope'"),
        ("'t', '{t}', delivery => 'fax'", "'fax'"),
        ("'t', '{t}', delivery => null", "null"),
        ("'t', '{t}', max_ttl => '0'", "max_ttl 00:00:00"),
        ("'t', '{t}', max_ttl => '300000 years'", "no time to live"),
        ("'t', '{\"{id}:{v}\"}'", "any_prefix => true"),
        ("'t', '{\"u{id}\"}'", "any_prefix => true"),
        ("'t', '{t}', guarantee => 'maybe'", "guarantee 'maybe' is unknown"),
        ("'t', '{t}', reason => E' \\n'", "reason is empty"),
        ("'t', '{t}', version => 'id'", "belong together"),
        ("'t', '{t}', version_path => 'v'", "belong together"),
        (
            "'t', '{t}', version => 'nope', version_path => 'v'",
            "version: table public.t has no column 'nope'",
        ),
        ("'t', '{t}', version => 'f', version_path => 'v'", "neither a number"),
        (
            "'t', '{t}', version => 'id', version_path => '$.*'",
            "'$.*' is not the place of one value",
        ),
        ("'t', '{t}', version => 'id', version_path => '$'", "'$' is not the place of one value"),
        ("'t', '{t}', version => 'id', version_path => ''", "version_path is empty"),
    ] {
        let refusal = ear.refuses(&format!("select unstale.watch({arguments})")).await;
        assert!(refusal.contains(part) && refusal.contains('\n'), "{arguments}: {refusal}");
    }
    assert_eq!(ear.rows("select table_name from unstale.watches").await, [""; 0]);
}

/// Triggers run as the schema's owner: nobody else may put code into them.
#[tokio::test]
async fn a_caller_who_is_no_member_of_the_schemas_owner_is_refused() {
    let mut ear = Ear::after("").await;
    ear.world
        .execute(
            "do $$ begin create role migrator; exception when duplicate_object or unique_violation then null; end $$;
             create schema app authorization migrator; grant usage, create on schema unstale to migrator;
             grant execute on all functions in schema unstale to migrator; grant usage on unstale.change_log_id to migrator;
             grant select, insert, update, delete on unstale.watch to migrator",
        )
        .await;
    let mut migrator = ear.session().await;
    migrator.execute("set role migrator").await;
    migrator.execute("create table app.t (id int)").await;
    let watch = "select unstale.watch('app.t', array['t:{id}'])";
    let refusal = migrator.refuses(watch).await;
    assert!(
        refusal.contains("migrator is no member of it") && refusal.contains("set role postgres;"),
        "{refusal}"
    );
    migrator.execute("reset role").await;
    let refusal = migrator.refuses(watch).await;
    assert!(
        refusal.contains("others may create in the schema unstale")
            && refusal.contains("revoke create on schema unstale from migrator;"),
        "{refusal}"
    );
    ear.world.execute("revoke create on schema unstale from migrator").await;
    assert_eq!(migrator.value(watch).await, "added");
    ear.world.execute("set role migrator; insert into app.t values (1); reset role").await;
    assert_eq!(ear.hears("select 1").await, [r#"1 "new":{"id":"1"}"#]);
}

/// The writer waits for a table that the migration has, and has the one that it wants next.
#[tokio::test]
async fn a_migration_that_watches_two_tables_ends_no_writer() {
    let ear = Ear::after("create table a (id int); create table b (id int)").await;
    let (mut writer, mut migration) = (ear.session().await, ear.session().await);
    let pid = writer.value("select pg_backend_pid()::text").await;
    writer.execute("set deadlock_timeout = '500ms'; begin; insert into b values (1)").await;
    migration.execute("begin; select unstale.watch('a', array['a:{id}'])").await;
    let writing =
        tokio::spawn(async move { writer.execute("insert into a values (1); commit").await });
    let waits = format!("select count(*) from pg_locks where pid = {pid} and not granted");
    until("the writer waits", async || ear.world.number(&waits).await > 0).await;
    let refusal = migration.refuses("select unstale.watch('b', array['b:{id}'])").await;
    assert!(refusal.contains("in a transaction of its own"), "{refusal}");
    migration.execute("rollback").await;
    writing.await.expect("the writer was not ended");
}
