//! `delivery => 'statement'` and `'log'`: what they say, what they log, and what cannot have them.

use super::{BELL, Ear};
use crate::support::servers::own_postgres_with;
use crate::support::wait::until;
use crate::support::world::World;

const TABLE: &str =
    "create table users (id bigint primary key, junk int, email text, name text, updated_at timestamptz default clock_timestamp());
    alter table users drop column junk;";

fn watched(delivery: &str) -> String {
    format!(
        "{TABLE} select unstale.watch('users', array['user:{{id}}', 'by-email:{{email}}'], delivery => '{delivery}')"
    )
}

fn row(id: i32, email: &str) -> String {
    format!(r#"{{"id":"{id}","email":"{email}"}}"#)
}

fn rows(rows: &[String]) -> String {
    match rows {
        [one] => format!(r#"1 "new":{one}"#),
        rows => format!(r#"1 "rows":[{}]"#, rows.join(",")),
    }
}

/// Statements, each with what it says of which rows.
fn statements() -> Vec<(&'static str, Vec<String>)> {
    let rekeyed = format!(r#"1 "new":{},"old":{}"#, row(2, "z"), row(2, "b"));
    vec![
        (
            "insert into users values (1, 'a', 'n'), (2, 'b', 'n'), (3, null, 'n')",
            vec![r#"1 "rows":[{"id":"1","email":"a"},{"id":"2","email":"b"},{"id":"3","email":null}]"#.into()],
        ),
        ("update users set name = 'm', updated_at = clock_timestamp() where id < 3", vec![rows(&[row(1, "a"), row(2, "b")])]),
        ("update users set email = 'z', updated_at = clock_timestamp() where id = 2", vec![rekeyed]),
        ("update users set name = 'm' where false", vec![]),
        ("delete from users where id = 1", vec![format!(r#"1 "old":{}"#, row(1, "a"))]),
        ("truncate users", vec![r#"1 "all":true"#.into()]),
    ]
}

#[tokio::test]
async fn a_statement_says_all_its_rows_at_once_and_logs_what_a_sweep_would_not_find() {
    let mut ear = Ear::after(&watched("statement")).await;
    let logged = [0, 0, 1, 0, 1, 1]; // keys that are gone, a row that is gone
    for ((sql, expected), logged) in statements().into_iter().zip(logged) {
        assert_eq!(ear.hears(sql).await, expected, "{sql}");
        assert_eq!(ear.logged().await.len(), logged, "{sql}");
    }
    ear.hears(
        "insert into users values (1, 'a', 'n', now() - interval '1 minute'), (2, 'b', 'n', now())",
    )
    .await;
    assert_eq!(
        ear.logged().await,
        [rows(&[row(1, "a"), row(2, "b")])],
        "one of them has an old stamp"
    );
}

#[tokio::test]
async fn a_log_says_nothing_but_that_there_is_something() {
    let mut ear = Ear::after(&watched("log")).await;
    for (sql, said) in statements() {
        let heard = ear.hears(sql).await;
        assert_eq!(heard, if said.is_empty() { vec![] } else { vec![BELL] }, "{sql}");
        let logged = ear.logged().await;
        let rows = |of: &[String]| {
            of.iter().map(|change| change.matches(r#""id""#).count()).sum::<usize>()
        };
        assert_eq!(rows(&logged), rows(&said), "{sql}: {logged:?}");
    }
    ear.hears("insert into users values (1, 'a'); update users set email = 'b'; delete from users")
        .await;
    let expected = [
        format!(r#"1 "new":{}"#, row(1, "a")),
        format!(r#"1 "new":{},"old":{}"#, row(1, "b"), row(1, "a")),
        format!(r#"1 "old":{}"#, row(1, "b")),
    ];
    assert_eq!(ear.logged().await, expected);
}

#[tokio::test]
async fn a_writer_announces_only_if_nobody_else_is_announcing_and_is_logged_otherwise() {
    for (delivery, first_said) in [
        ("row", r#"1 "new":{"id":"1","email":null}"#),
        ("statement", r#"1 "new":{"id":"1","email":null}"#),
        ("log", BELL),
    ] {
        let mut ear = Ear::after(&watched(delivery)).await;
        let mut first = ear.session().await;
        first.execute("begin; insert into users values (1)").await;
        assert_eq!(
            ear.hears("insert into users values (2)").await,
            [""; 0],
            "{delivery}: the other one is announcing"
        );
        assert_eq!(ear.logged().await.len(), 1, "{delivery}");
        first.execute("commit").await;
        assert_eq!(ear.hears("select 1").await, [first_said], "{delivery}");
        ear.logged().await;
        assert_eq!(ear.hears("insert into users values (3)").await.len(), 1, "{delivery}");
    }
}

/// A lock_timeout counts for the lock that a notifying commit takes: the writer would fail because
/// another commits.
#[tokio::test]
async fn a_writer_with_a_lock_timeout_announces_nothing_and_is_logged() {
    for delivery in ["row", "statement", "log"] {
        let mut ear = Ear::after(&watched(delivery)).await;
        assert_eq!(
            ear.hears("set lock_timeout = '1ms'; insert into users values (1, 'a')").await,
            [""; 0],
            "{delivery}"
        );
        assert_eq!(ear.logged().await.len(), 1, "{delivery}");
        assert_eq!(
            ear.hears(
                "set lock_timeout = 0; set unstale.bell = off; insert into users values (2, 'b')"
            )
            .await,
            [""; 0],
            "{delivery}"
        );
        assert_eq!(ear.logged().await.len(), 1, "{delivery}");
    }
}

#[tokio::test]
async fn a_bulk_statement_is_packed_and_beyond_a_bound_only_logged() {
    let mut ear = Ear::after(&watched("statement")).await;
    let heard =
        ear.hears("insert into users select g, 'mail' || g from generate_series(1, 5000) g").await;
    assert!((20..=60).contains(&heard.len()), "{} payloads", heard.len());
    let told: usize = heard.iter().map(|payload| payload.matches(r#""id""#).count()).sum();
    assert_eq!(told, 5000);
    assert_eq!(ear.logged().await, [""; 0]);
    let heard = ear.hears("update users set name = 'x', updated_at = clock_timestamp() from generate_series(1, 1); insert into users select g, 'mail' || g from generate_series(10001, 60000) g").await;
    let logged = ear.logged().await;
    let told: usize =
        heard.iter().chain(&logged).map(|payload| payload.matches(r#""id""#).count()).sum();
    assert_eq!(told, 55_000);
    assert!(
        heard.len() < 100 && logged.len() > 100,
        "{} payloads, {} logged",
        heard.len(),
        logged.len()
    );
    assert!(heard.contains(&BELL.to_owned()), "what is only logged is rung for");
}

/// More rows than are put into one text, and images that are too long for that.
#[tokio::test]
async fn nothing_is_lost_between_two_ways_of_packing() {
    let mut ear = Ear::after(&watched("log")).await;
    let logged = "with gone as (delete from unstale.change_log returning change)
                  select sum(case when r is null then 1 else jsonb_array_length(r) end)::text
                    from gone, lateral (select change::jsonb -> 'rows') as rows(r)";
    for (rows, of, expected) in [
        (500_032, "g, null", "500032"),
        (500_100, "g, null", "500100"),
        (1_000, "g, repeat('é', case g when 900 then 200 else 20 end)", "1000"),
    ] {
        ear.hears(&format!(
            "truncate users; delete from unstale.change_log; insert into users select {of} from generate_series(1, {rows}) g"
        ))
        .await;
        assert_eq!(ear.rows(logged).await, [expected], "{rows} rows");
    }
}

#[tokio::test]
async fn what_is_cut_is_whole_again_when_it_is_joined() {
    let ear = Ear::after(TABLE).await;
    let wrong = "with joined as (
                     select length, count, string_agg(repeat('é', 1 + (random() * length)::int), E',\n') as images
                       from unnest(array[1, 60, 128, 700, 3250, 3251, 9000]) length, unnest(array[0, 1, 2, 3, 60, 500]) count,
                            lateral generate_series(1, count) n, generate_series(1, 5) again
                      group by length, count, again),
                 cut as (
                     select j.*, (select string_agg(c, E',\n') from unstale.cut(j.images) c) as together,
                            (select max(octet_length(c)) from unstale.cut(j.images) c) as longest
                       from joined j)
                 select format('%s of up to %s: %s bytes', count, length, longest) from cut
                  where images is distinct from together or length <= 128 and longest >= 7900";
    assert_eq!(ear.rows(wrong).await, [""; 0]);
    assert_eq!(ear.rows("select count(*)::text from unstale.cut(null)").await, ["0"]);
}

#[tokio::test]
async fn rows_of_any_length_are_told_or_logged_and_no_write_fails() {
    let mut ear = Ear::after(&watched("statement")).await;
    let heard = ear
        .hears("insert into users select g, repeat('é', g * 100) from generate_series(1, 100) g")
        .await;
    let logged = ear.logged().await;
    let told: usize =
        heard.iter().chain(&logged).map(|payload| payload.matches(r#""id""#).count()).sum();
    assert_eq!(told, 100);
    // As JSON six times as long, and more than NOTIFY takes.
    assert_eq!(ear.hears("insert into users values (0, repeat(chr(1), 2000))").await, [BELL]);
}

#[tokio::test]
async fn only_columns_holds_in_every_delivery() {
    for delivery in ["statement", "log"] {
        let watch = format!(
            "{TABLE} select unstale.watch('users', array['user:{{id}}'], '{delivery}', only_columns => '{{name,email}}')"
        );
        let mut ear = Ear::after(&watch).await;
        let mut said = async |sql: &str| {
            let heard = ear.hears(sql).await;
            heard.len() + ear.logged().await.len() > 0
        };
        assert!(said("insert into users values (1, 'a', 'n')").await);
        assert!(!said("update users set updated_at = clock_timestamp()").await);
        assert!(said("update users set name = 'm', updated_at = clock_timestamp()").await);
        assert!(said("update users set id = 2").await);
        assert!(said("delete from users").await);
    }
}

#[tokio::test]
async fn replica_sessions_fire_the_row_triggers_instead() {
    for (delivery, expected) in [("statement", r#"1 "new":{"id":"1","email":"a"}"#), ("log", BELL)]
    {
        let mut ear = Ear::after(&watched(delivery)).await;
        let mut replica = ear.session().await;
        replica.execute("set session_replication_role = replica").await;
        for sql in [
            "insert into users values (1, 'a')",
            "update users set name = 'm', updated_at = clock_timestamp()",
        ] {
            replica.execute(sql).await;
            assert_eq!(ear.hears("select 1").await, [expected], "{delivery}: {sql}");
        }
        assert_eq!(ear.logged().await.len(), if delivery == "log" { 2 } else { 0 }, "{delivery}");
    }
}

#[tokio::test]
async fn a_transaction_can_be_prepared_in_every_delivery() {
    let world = World::on(own_postgres_with([("max_prepared_transactions", "5")])).await;
    let mut ear = Ear::in_world(world, TABLE).await;
    for delivery in ["row", "statement", "log"] {
        ear.hears(&format!("truncate users; select unstale.watch('users', array['user:{{id}}', 'by-email:{{email}}'], '{delivery}')"))
            .await;
        ear.logged().await;
        assert_eq!(
            ear.hears("begin; insert into users values (1, 'a'); prepare transaction 'x'").await,
            [""; 0],
            "{delivery}"
        );
        assert_eq!(ear.logged().await, [""; 0], "{delivery}");
        assert_eq!(
            ear.hears("commit prepared 'x'").await,
            [""; 0],
            "{delivery}: nobody may announce"
        );
        let logged = ear.logged().await;
        assert!(logged == [rows(&[row(1, "a")])], "{delivery}: {logged:?}");
        // Whoever prepares nothing may say so, and is heard at once.
        assert_eq!(
            ear.hears(
                "begin; set local unstale.bell = on; insert into users values (2, 'b'); commit"
            )
            .await
            .len(),
            1,
            "{delivery}"
        );
    }
}

#[tokio::test]
async fn a_partitioned_table_is_refused_by_statement_and_logged_row_by_row() {
    let parts = "create table users (id int, email text, updated_at timestamptz default now()) partition by range (id);
        create table p1 partition of users for values from (0) to (10);";
    let mut ear = Ear::after(parts).await;
    for table in ["users", "p1"] {
        let refusal = ear
            .refuses(&format!("select unstale.watch('{table}', array['u:{{id}}'], 'statement')"))
            .await;
        assert!(
            refusal.contains("partition")
                && refusal.contains("'row' or ''log''".replace("''", "'").as_str()),
            "{refusal}"
        );
    }
    ear.hears("select unstale.watch('users', array['u:{id}'], 'log')").await;
    assert_eq!(
        ear.hears("insert into users values (1), (2); update p1 set id = 3 where id = 2").await,
        [BELL]
    );
    assert_eq!(
        ear.logged().await,
        [
            r#"1 "new":{"id":"1"}"#,
            r#"1 "new":{"id":"2"}"#,
            r#"1 "new":{"id":"3"},"old":{"id":"2"}"#
        ]
    );
}

/// As a partition it would be written through its parent, which fires no statement trigger of it.
#[tokio::test]
async fn a_table_with_statement_triggers_cannot_become_a_partition_unnoticed() {
    let mut ear = Ear::after(&watched("statement")).await;
    let attach = "create table parent (like users) partition by range (id); alter table parent attach partition users for values from (0) to (9)";
    let refusal = ear.refuses(attach).await;
    assert!(refusal.contains("unstale_1_insert"), "{refusal}");
    ear.rows("select unstale.watch('users', array['user:{id}'])").await; // by row: the same for INSERT and DELETE
    assert!(ear.refuses(attach).await.contains("unstale_1_insert"));
    ear.hears("select unstale.unwatch('users')").await;
    ear.world.execute(attach).await;
    ear.rows("select unstale.watch('users', array['user:{id}'])").await;
    let heard = ear.hears("delete from parent; insert into parent values (5)").await;
    assert_eq!(heard.last().map(String::as_str), Some(r#"1 "new":{"id":"5"}"#), "{heard:?}");
}

#[tokio::test]
async fn after_a_column_was_dropped_with_cascade_writes_succeed_and_the_silence_is_named() {
    for delivery in ["row", "statement", "log"] {
        for column in ["email", "updated_at"] {
            let mut ear = Ear::after(&watched(delivery)).await;
            let refusal = ear.refuses(&format!("alter table users drop column {column}")).await;
            assert!(refusal.contains("function unstale."), "{refusal}");
            ear.world.execute("alter table users rename column email to mail").await;
            assert_eq!(ear.hears("insert into users values (1, 'a')").await.len(), 1, "{delivery}");
            let column = if column == "email" { "mail" } else { column };
            ear.hears(&format!("alter table users drop column {column} cascade")).await;
            ear.world.execute("insert into users (id) values (2); update users set name = 'x'; delete from users").await;
            let named = "select count(*) from unstale.findings() where severity = 'error' and about = 'public.users'";
            assert!(ear.world.number(named).await > 0, "{delivery} {column}");
        }
    }
}

#[tokio::test]
async fn switching_leaves_the_triggers_of_the_new_delivery_alone() {
    let mut ear = Ear::after(&watched("row")).await;
    let triggers = "select string_agg(tgname || ' ' || tgenabled::text, ', ' order by tgname) from pg_trigger where tgname like 'unstale%'";
    let by_statement = "unstale_1_delete R, unstale_1_deletes O, unstale_1_insert R, unstale_1_inserts O, unstale_1_truncate A, \
                        unstale_1_update R, unstale_1_updates O";
    let mut switch = async |delivery: &str| {
        let watch = format!(
            "select unstale.watch('users', array['user:{{id}}', 'by-email:{{email}}'], delivery => '{delivery}')"
        );
        let said = ear.rows(&watch).await;
        assert_eq!(ear.rows(&watch).await, ["unchanged"]);
        ear.hears(
            "insert into users values (1, 'a'); update users set name = 'x'; delete from users",
        )
        .await;
        (said, ear.rows(triggers).await)
    };
    for delivery in ["statement", "log", "row", "log", "statement", "row"] {
        assert_eq!(
            switch(delivery).await,
            (vec!["changed".to_owned()], vec![by_statement.to_owned()]),
            "{delivery}"
        );
    }
}

/// A bare name is a column before it is a table's alias or a variable.
#[tokio::test]
async fn columns_may_have_any_name_that_the_generated_functions_use() {
    let columns = [
        "r", "s", "t", "c", "few", "chunk", "told", "done", "images", "fresh", "part", "rows",
        "old_rows", "new_rows", "new", "old", "same", "change",
    ];
    for delivery in ["row", "statement", "log"] {
        let list = columns.map(|column| format!("\"{column}\" text default 'x'")).join(", ");
        let table = format!(
            "create table t (id int primary key, {list}, updated_at timestamptz default now())"
        );
        let keys = columns.map(|column| format!("'{column}:{{{column}}}'")).join(", ");
        let mut ear = Ear::after(&format!(
            "{table}; select unstale.watch('t', array['t:{{id}}', {keys}], '{delivery}')"
        ))
        .await;
        for sql in [
            "insert into t values (1)",
            "update t set r = 'y'",
            "insert into t select generate_series(2, 500)",
            "update t set id = -id",
            "delete from t",
        ] {
            assert!(!ear.hears(sql).await.is_empty(), "{delivery}: {sql}");
        }
        ear.hears("alter table t rename column r to q; alter table t add column r int; insert into t (id) values (1)").await;
    }
}

/// A value that no reader has in a key is said to be there, and no more: neither payload nor log
/// grows with it.
#[tokio::test]
async fn a_huge_value_is_not_said_in_any_delivery() {
    for delivery in ["row", "statement", "log"] {
        let mut ear = Ear::after(&watched(delivery)).await;
        let mut said = ear
            .hears("insert into users select g, repeat('x', 1000000) from generate_series(1, 20) g")
            .await;
        said.extend(ear.logged().await);
        assert_eq!(
            said.iter().map(|change| change.matches(r#""email":true"#).count()).sum::<usize>(),
            20,
            "{delivery}"
        );
        assert!(said.iter().all(|change| change.len() < 1_000), "{delivery}");
    }
}

/// Dropping triggers takes a stronger lock than making them: taken in two steps, it ended a writer
/// that had read before.
#[tokio::test]
async fn switching_ends_no_writer_that_has_read_the_table_before() {
    let ear = Ear::after(&watched("log")).await;
    let (mut writer, mut caller) = (ear.session().await, ear.session().await);
    writer.execute("begin; select count(*) from users").await;
    let pid = caller.value("select pg_backend_pid()::text").await;
    let switching = tokio::spawn(async move {
        caller.execute("set lock_timeout = '20s'").await;
        caller.value("select unstale.watch('users', array['user:{id}', 'by-email:{email}'], 'log', only_columns => array['email'])").await
    });
    let waits = format!("select count(*) from pg_locks where pid = {pid} and not granted");
    until("it waits for the table", async || ear.world.number(&waits).await > 0).await;
    writer.execute("insert into users values (1); commit").await;
    assert_eq!(switching.await.expect("no panic"), "changed");
}
