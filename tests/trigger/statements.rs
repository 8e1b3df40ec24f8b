//! The statements that write, and who may write them.

use super::{BELL, Ear, Session, USERS};
use crate::support::servers::own_postgres_with;
use crate::support::world::World;

const ALL: &str = r#"1 "all":true"#;

#[tokio::test]
async fn insert_update_and_delete_announce_the_row() {
    let mut ear = Ear::after(USERS).await;
    let row = r#"{"id":"1","email":"a"}"#;
    assert_eq!(
        ear.hears("insert into users values (1, 'a', 'n')").await,
        [format!(r#"1 "new":{row}"#)]
    );
    assert_eq!(ear.hears("update users set name = 'm'").await, [format!(r#"1 "new":{row}"#)]);
    assert_eq!(ear.hears("delete from users").await, [format!(r#"1 "old":{row}"#)]);
}

#[tokio::test]
async fn an_update_of_a_key_column_announces_both_rows() {
    let mut ear = Ear::after(USERS).await;
    ear.hears("insert into users values (1, 'a')").await;
    let both = r#"1 "new":{"id":"1","email":null},"old":{"id":"1","email":"a"}"#;
    assert_eq!(ear.hears("update users set email = null").await, [both]);
    let both = r#"1 "new":{"id":"2","email":null},"old":{"id":"1","email":null}"#;
    assert_eq!(ear.hears("update users set id = 2").await, [both]);
}

#[tokio::test]
async fn truncate_announces_every_row_of_every_table_that_it_empties() {
    let mut ear = Ear::after(USERS).await;
    ear.hears("create table posts (id int primary key, author bigint references users); select unstale.watch('posts', array['post:{id}'])")
        .await;
    assert_eq!(ear.hears("truncate posts").await, [ALL]);
    assert_eq!(ear.hears("truncate users cascade").await, [ALL, ALL]);
    assert_eq!(ear.logged().await, [ALL, ALL, ALL]);
}

#[tokio::test]
async fn every_kind_of_write_is_heard() {
    let mut ear = Ear::after(USERS).await;
    ear.hears(
        "create table posts (id int primary key, author bigint references users on delete cascade on update set null deferrable initially deferred);
         select unstale.watch('posts', array['post:{id}:{author}'])",
    )
    .await;
    let conflict = "insert into users values (1, 'a'), (2, 'b') on conflict (id) do update set email = excluded.email";
    assert_eq!(
        ear.hears(conflict).await,
        [r#"1 "rows":[{"id":"1","email":"a"},{"id":"2","email":"b"}]"#]
    );
    let heard = ear.hears(&conflict.replace("'a'", "'c'")).await;
    let both = r#"{"id":"1","email":"c"},{"id":"2","email":"b"},{"id":"1","email":"a"},{"id":"2","email":"b"}"#;
    assert_eq!(heard, [format!(r#"1 "rows":[{both}]"#)], "as they are, and as they were");
    assert_eq!(ear.hears("insert into users values (1) on conflict do nothing").await, [""; 0]);

    ear.hears("insert into posts values (1, 1), (2, 2)").await;
    let cascaded = [r#"1 "old":{"id":"1","email":"c"}"#, r#"1 "old":{"id":"1","author":"1"}"#];
    assert_eq!(ear.hears("delete from users where id = 1").await, cascaded);
    let cascaded = [
        r#"1 "new":{"id":"3","email":"b"},"old":{"id":"2","email":"b"}"#,
        r#"1 "new":{"id":"2","author":null},"old":{"id":"2","author":"2"}"#,
    ];
    assert_eq!(ear.hears("update users set id = 3 where id = 2").await, cascaded);

    let function = "create function add(i int) returns void language plpgsql as
        'begin insert into users values (i); exception when unique_violation then null; end'; select add(7), add(7)";
    assert_eq!(ear.hears(function).await, [r#"1 "new":{"id":"7","email":null}"#]);
    let rule = "create rule twice as on insert to posts do also insert into users values (new.id + 100); insert into posts values (5)";
    assert_eq!(
        ear.hears(rule).await,
        [r#"1 "new":{"id":"5","author":null}"#, r#"1 "new":{"id":"105","email":null}"#]
    );
    let merge = "merge into users u using (values (7, 'm'), (8, 'n')) v(id, email) on u.id = v.id
        when matched then update set email = v.email when not matched then insert values (v.id, v.email)";
    if ear.rows("select current_setting('server_version_num')").await[0].as_str() >= "150000" {
        assert_eq!(ear.hears(merge).await.len(), 2);
    }
    let mut session = ear.session().await;
    let mut copy = session.0.copy_in_raw("copy users (id, email) from stdin").await.expect("COPY");
    copy.send("20\tx\n21\ty\n".as_bytes()).await.expect("two rows");
    copy.finish().await.expect("they are taken");
    assert_eq!(
        ear.hears("select 1").await,
        [r#"1 "rows":[{"id":"20","email":"x"},{"id":"21","email":"y"}]"#]
    );
}

#[tokio::test]
async fn what_is_rolled_back_is_not_heard() {
    let mut ear = Ear::after(USERS).await;
    let sql = "begin; insert into users values (1); savepoint s; insert into users values (2); rollback to s; commit;
               begin; insert into users values (3); rollback";
    assert_eq!(ear.hears(sql).await, [r#"1 "new":{"id":"1","email":null}"#]);
    // A constraint that fails at commit takes its announcement along.
    ear.hears("create table posts (author bigint references users deferrable initially deferred); select unstale.watch('posts', array['p:{author}'])")
        .await;
    ear.refuses("insert into posts values (99)").await;
    assert_eq!(ear.hears("select 1").await, [""; 0]);
}

#[tokio::test]
async fn replication_and_imports_do_not_bypass_the_triggers() {
    let mut ear = Ear::after(USERS).await;
    let mut session = ear.session().await;
    session.execute("set session_replication_role = replica").await;
    session.execute("insert into users values (1)").await;
    session.execute("truncate users").await;
    assert_eq!(ear.hears("select 1").await, [r#"1 "new":{"id":"1","email":null}"#, ALL]);
}

/// A role that has no right but to the application's table, and a search_path full of traps.
async fn trapped_writer(ear: &mut Ear) -> Session {
    ear.hears(
        "create schema trap; do $$ begin create role writer; exception when duplicate_object or unique_violation then null; end $$;
         grant usage on schema trap to writer; grant all on users to writer; revoke all on schema unstale from public;
         create domain trap.text as int check (false); create domain trap.bool as int check (false);
         create domain trap.int8 as int check (false); create type trap.record as (a int);
         create function trap.fails(text, text) returns text language plpgsql as 'begin raise ''trapped''; end';
         create operator trap.|| (leftarg = pg_catalog.text, rightarg = pg_catalog.text, function = trap.fails);
         create function trap.fails(bigint, int) returns bigint language plpgsql as 'begin raise ''trapped''; end';
         create operator trap./ (leftarg = bigint, rightarg = int, function = trap.fails);
         create function trap.fails_too(bigint, int) returns boolean language plpgsql as 'begin raise ''trapped''; end';
         create operator trap.= (leftarg = bigint, rightarg = int, function = trap.fails_too);
         create operator trap.> (leftarg = bigint, rightarg = int, function = trap.fails_too);
         create function trap.fails(int, int) returns int language plpgsql as 'begin raise ''trapped''; end';
         create operator trap.+ (leftarg = int, rightarg = int, function = trap.fails);
         create function trap.fails_too(int, int) returns boolean language plpgsql as 'begin raise ''trapped''; end';
         create operator trap.= (leftarg = int, rightarg = int, function = trap.fails_too);
         create function trap.fails(text, text, text) returns text language plpgsql as 'begin raise ''trapped''; end';
         create aggregate trap.string_agg(pg_catalog.text, pg_catalog.text) (sfunc = trap.fails, stype = pg_catalog.text);
         create aggregate trap.sum(int) (sfunc = trap.fails, stype = int);
         create function trap.concat(text, text) returns text language plpgsql as 'begin raise ''trapped''; end';
         create function trap.to_regproc(text) returns regproc language plpgsql as 'begin raise ''trapped''; end';
         create function trap.pg_notify(text, text) returns void language plpgsql as 'begin raise ''trapped''; end';
         create function trap.announce(int, text) returns bool language plpgsql as 'begin raise ''trapped''; end';
         create function trap.octet_length(text) returns int language plpgsql as 'begin raise ''trapped''; end'",
    )
    .await;
    let mut session = ear.session().await;
    session.execute("set role writer; set search_path = trap, pg_temp, pg_catalog, public").await;
    session
        .execute(
            "set standard_conforming_strings = off; set quote_all_identifiers = on; set plpgsql.extra_errors = 'all';
             set plpgsql.variable_conflict = use_column; set check_function_bodies = off; set row_security = off",
        )
        .await;
    session
}

#[tokio::test]
async fn a_writer_needs_no_grant_and_no_setting_of_its_misleads_the_triggers() {
    let mut ear = Ear::after(USERS).await;
    let mut session = trapped_writer(&mut ear).await;
    for sql in [
        "insert into users values (1, 'a')",
        "update users set email = 'b'",
        "update users set name = 'n'",
        "delete from users",
        "truncate users",
    ] {
        session.execute(sql).await;
    }
    let heard = ear.hears("select 1").await;
    let expected = [
        r#"1 "new":{"id":"1","email":"a"}"#,
        r#"1 "new":{"id":"1","email":"b"},"old":{"id":"1","email":"a"}"#,
        r#"1 "new":{"id":"1","email":"b"}"#,
        r#"1 "old":{"id":"1","email":"b"}"#,
        ALL,
    ];
    assert_eq!(heard, expected);
    assert!(
        session
            .refuses("insert into unstale.change_log_1 (watch, announced, change) values (1, false, 'mine')")
            .await
            .contains("permission denied")
    );
}

#[tokio::test]
async fn nor_those_of_the_other_deliveries() {
    for delivery in ["statement", "log"] {
        let mut ear = Ear::after(USERS).await;
        ear.rows(&format!("select unstale.watch('users', array['user:{{id}}', 'by-email:{{email}}'], delivery => '{delivery}')")).await;
        let mut session = trapped_writer(&mut ear).await;
        for (sql, rows) in [
            ("insert into users values (1, 'a')", 1),
            ("update users set name = 'n'", 1),
            ("update users set email = 'b'", 2),
            ("insert into users select generate_series(2, 2000)", 1_999),
            ("update users set name = 'm'", 2_000),
            ("update users set id = id + 10000", 4_000),
            ("update users set email = repeat('b', 300)", 4_000),
            ("update users set name = 'l'", 2_000),
            ("delete from users", 2_000),
        ] {
            session.execute(sql).await;
            let logged = ear.logged().await;
            let mut said = ear.hears("select 1").await;
            // What a sweep would not find is both announced and logged.
            said.retain(|payload| payload != BELL && !logged.contains(payload));
            said.extend(logged);
            assert_eq!(
                said.iter().map(|payload| payload.matches(r#""id""#).count()).sum::<usize>(),
                rows,
                "{delivery}, {sql}: {said:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_payload_that_notify_cannot_take_is_in_the_log_and_the_write_succeeds() {
    let mut ear = Ear::after(USERS).await;
    let around = r#"{"watch":1,"rev":1,"new":{"id":"1","email":""}}"#.len();
    // Six bytes for a character that JSON escapes, two for one that is not ASCII.
    for (escaped, bytes, fits) in [
        (1200, 7999 - around - 7200, true),
        (1200, 8000 - around - 7200, false),
        (1500, 500, false),
    ] {
        let (text, json) =
            ("é".repeat(bytes / 2) + &"x".repeat(bytes % 2), "\\u0001".repeat(escaped));
        let heard = ear
            .hears(&format!("insert into users values (1, repeat(chr(1), {escaped}) || '{text}')"))
            .await;
        let logged = ear.logged().await;
        let change = format!(r#"1 "new":{{"id":"1","email":"{json}{text}"}}"#);
        if fits {
            assert_eq!((heard, logged), (vec![change], vec![]));
        } else {
            assert_eq!((heard, logged), (vec![BELL.to_owned()], vec![change]));
        }
        ear.hears("delete from users").await;
        ear.logged().await;
    }
}

/// A limit of PostgreSQL's, which docs/watching.md names: NOTIFY and PREPARE TRANSACTION exclude
/// each other.
#[tokio::test]
async fn two_phase_commit_of_whoever_asked_for_the_bell_is_refused_by_the_server() {
    let world = World::on(own_postgres_with([("max_prepared_transactions", "5")])).await;
    let ear = Ear::in_world(world, USERS).await;
    let refusal = ear
        .refuses(
            "set unstale.bell = on; begin; insert into users values (1); prepare transaction 'x'",
        )
        .await;
    assert!(refusal.contains("NOTIFY"), "{refusal}");
}

#[tokio::test]
async fn only_columns_leaves_other_updates_unsaid_and_nothing_else() {
    let mut ear = Ear::after(
        "create table users (id int primary key, email text, name text, seen int, updated_at timestamptz default now());
        select unstale.watch('users', array['user:{id}'], only_columns => '{name,email}')",
    )
    .await;
    assert_eq!(ear.hears("insert into users values (1, 'a', 'n', 0)").await.len(), 1);
    assert_eq!(
        ear.hears("update users set seen = seen + 1, updated_at = clock_timestamp()").await,
        [""; 0]
    );
    assert_eq!(ear.hears("update users set name = 'm'").await.len(), 1);
    assert_eq!(ear.hears("update users set name = name").await, [""; 0]);
    assert_eq!(ear.hears("update users set id = 2").await.len(), 1);
    assert_eq!(ear.hears("delete from users").await.len(), 1);
}

#[tokio::test]
async fn a_template_without_columns_is_announced_at_any_change() {
    let mut ear =
        Ear::after("create table t (id int); select unstale.watch('t', '{ts:count}')").await;
    assert_eq!(ear.hears("insert into t values (1)").await, [r#"1 "new":{}"#]);
    assert_eq!(ear.hears("update t set id = 2").await, [r#"1 "new":{}"#]);
    assert_eq!(ear.hears("delete from t").await, [r#"1 "old":{}"#]);
}

/// PDO's `lastInsertId()` and others ask by `lastval()` which row was inserted.
#[tokio::test]
async fn what_a_writer_asks_of_its_own_sequences_is_of_its_own() {
    for delivery in ["row", "statement", "log"] {
        let ear = Ear::after(&format!(
            "create table orders (id int generated always as identity (start 42) primary key, note text);
             select unstale.watch('orders', array['order:{{id}}'], '{delivery}')"
        ))
        .await;
        let mut session = ear.session().await;
        session.execute("insert into orders (note) values ('a'), ('b')").await;
        assert_eq!(session.value("select lastval()::text").await, "43", "{delivery}");
        session
            .execute("begin; set local unstale.bell = off; insert into orders (note) values ('c')")
            .await;
        assert_eq!(session.value("select lastval()::text").await, "44", "{delivery}");
        session.execute("commit").await;
        assert!(!ear.logged().await.is_empty(), "{delivery}");
    }
}

/// Places are times, and a clock may step back.
#[tokio::test]
async fn changes_of_one_place_are_read_together() {
    let ear = Ear::after(
        "create table t (id int primary key); select unstale.watch('t', array['t:{id}'], 'log')",
    )
    .await;
    ear.world.execute("insert into t select generate_series(1, 5)").await;
    ear.world.execute("insert into t values (6); insert into t values (7); update unstale.change_log set id = 1, xid = '3'").await;
    let page =
        |rows| format!("select count(*)::text from unstale.log_since('4:4:', '0', 0, {rows})");
    assert_eq!(ear.rows(&page(1)).await, ear.rows(&page(100)).await);
    assert_eq!(ear.rows(&page(1).replace("4:4:", "2:2:")).await, ["3"]);
}
