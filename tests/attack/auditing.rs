//! The code of a table's owner against the audit: it may fail its own table, and nothing else.

use std::time::Duration;

use secrecy::SecretString;
use unstale::pg::Postgres;
use unstale::pg::audit::{Reader, Rows};

use super::owners::trapped_table;
use super::{attempt, listener, role, run, session, unstale, url};
use crate::support::world::World;

/// What a row of the audit's questions may take here.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A table of `owner` that runs `code` whenever the listener reads it, and one of somebody else,
/// both with versions.
async fn trapped(world: &World, owner: &str, code: &str) {
    trapped_table(world, owner, code).await;
    world
        .execute(
            "select unstale.watch('evil.a', array['a:{id}:{name}'], version => 'updated_at', version_path => '$.v');
             select unstale.watch('b', array['b:{id}'], version => 'updated_at', version_path => '$.v')",
        )
        .await;
}

async fn open(world: &World, role: &str) -> Reader {
    Reader::open(Postgres::new(SecretString::from(url(world, role))).expect("a URL"), TIMEOUT)
        .await
        .expect("it connects")
}

async fn number_of(world: &World, table: &str) -> i32 {
    let number = world
        .number(&format!(
            "select id::bigint from unstale.watch where relation = '{table}'::regclass"
        ))
        .await;
    i32::try_from(number).expect("a number of a watch")
}

/// Asks every question about both tables, turn by turn, as the listener's role. Whether the rows of
/// the trapped one were ever read.
async fn audit_beside(code: &str) -> bool {
    let world = World::new().await;
    let (owner, listener) = (role(&world, "owner").await, listener(&world).await);
    trapped(&world, &owner, code).await;
    let (a, b) = (number_of(&world, "evil.a").await, number_of(&world, "b").await);
    let mut reader = open(&world, &listener).await;
    let (a_row, b_row) = ([r#"{"id":"1","name":"é"}"#.to_owned()], [r#"{"id":"1"}"#.to_owned()]);
    let questions = |row| [Rows::Blocks(0, 1), Rows::Recent(10), Rows::Like(0, row)];
    let mut read = false;
    for (of_a, of_b) in questions(&a_row).into_iter().zip(questions(&b_row)) {
        if let Ok(rows) = reader.rows(a, &of_a, 10).await {
            assert!(
                rows.iter().all(|(image, version)| image.contains('é') && version.is_some()),
                "{code}: {rows:?}"
            );
            read |= rows.len() == 1;
        }
        let rows = reader
            .rows(b, &of_b, 10)
            .await
            .unwrap_or_else(|error| panic!("{code}: {of_b:?}: {error}"));
        assert!(
            rows.len() == 1 && rows[0].0 == b_row[0] && rows[0].1.is_some(),
            "{code}: {of_b:?}: {rows:?}"
        );
        let same = reader
            .same(
                "timestamptz",
                &["2026-01-02", "1"],
                &["2026-01-02T00:00:00Z", "2026-01-02T00:00:00Z"],
            )
            .await;
        assert_eq!(same.expect("an answer"), [Some(true), None], "{code}");
    }
    read
}

#[tokio::test]
async fn what_the_code_of_a_tables_owner_does_in_an_audit_never_runs_as_the_listener() {
    let mut world = World::new().await;
    let (owner, listener) = (role(&world, "owner").await, listener(&world).await);
    let tries = [
        "insert into evil.ran (how) values ('direct')",
        "insert into evil.bait values (1)",
        "execute 'declare stolen cursor with hold for select evil.held()'",
        "execute 'set role postgres'",
        "execute 'set session authorization postgres'",
        "execute 'reset role'",
        "execute 'create temp table pg_class (x int)'",
        "execute 'set transaction read write'",
    ];
    let code: String = tries
        .iter()
        .map(|sql| format!("begin {sql}; exception when others then null; end; "))
        .collect();
    // A transaction that is read-only holds no table of who it was.
    trapped(&world, &owner, &format!("{code} if current_user <> '{owner}' then raise exception 'ran as %', current_user; end if;")).await;
    world.cache.put("a:1:é", r#"{"v":1}"#).expect("Redis takes it");
    world.cache.put("b:1", r#"{"v":1}"#).expect("Redis takes it");
    for arguments in ["audit", "audit --all", "audit --since 1h", "audit --all --heal"] {
        let (_, said) = unstale(&world, &listener, arguments);
        assert!(!said.contains("not all is audited"), "{arguments}: {said}");
    }
    let sql = format!("select count(*) from evil.ran where who <> '{owner}'");
    assert_eq!(world.number(&sql).await, 0, "code of the table's owner ran as another role");
}

/// Runs as its owner, code of theirs may not reset the role; otherwise it has the caller's rights,
/// or may take them.
const AS_ITS_CALLER: &str = "begin perform set_config('role', 'none', true); exception when insufficient_privilege then return 1; end;
    raise exception 'ran as %', current_user;";

/// The owner owns what reads their table, too, and may alter how it runs after it was found to be
/// right, if they may use the schema.
#[tokio::test]
async fn a_reader_that_its_owner_lets_run_as_its_caller_runs_none_of_their_code() {
    for (reader, altered) in [
        ("audit", "security invoker"),
        ("audit", "security invoker set role = OWNER"),
        ("audit", "security invoker reset all"),
        ("page", "security invoker"),
        ("page", "security invoker set role = OWNER"),
    ] {
        let world = World::new().await;
        let (owner, listener) = (role(&world, "owner").await, listener(&world).await);
        world
            .execute(&format!("grant {owner} to {listener}; select unstale.grant_wait('{owner}')"))
            .await;
        trapped(&world, &owner, AS_ITS_CALLER).await;
        let (a, b) = (number_of(&world, "evil.a").await, number_of(&world, "b").await);
        let inputs = if reader == "audit" {
            "integer, bigint, bigint, json[]"
        } else {
            "timestamptz, timestamptz, bigint"
        };
        let mut theirs = session(&world, &owner).await;
        run(&mut theirs, "grant usage on schema evil to public; grant select on evil.a to public")
            .await;
        let mut ours = open(&world, &listener).await;
        let (mut caller, all) = (session(&world, &listener).await, Rows::Blocks(0, 1));
        let page = format!(
            "begin read only; select * from unstale.page_{a}('-infinity', '-infinity', 10); rollback"
        );
        assert_eq!(ours.rows(a, &all, 10).await.expect("it runs as its owner").len(), 1);
        run(&mut caller, &page).await;
        run(
            &mut theirs,
            &format!(
                "alter function unstale.{reader}_{a}({inputs}) {}",
                altered.replace("OWNER", &owner)
            ),
        )
        .await;
        let error = match reader {
            "audit" => ours.rows(a, &all, 10).await.expect_err("it runs as its caller").in_full(),
            _ => attempt(&mut caller, &page).await.expect_err("it runs as its caller"),
        };
        let is_refused = error.contains("does not run as its owner")
            || error.contains("permission denied for function row_");
        assert!(is_refused && !error.contains("ran as"), "{reader} {altered}: {error}");
        assert_eq!(ours.rows(b, &all, 10).await.expect("the other table").len(), 1);
    }
}

#[tokio::test]
async fn whatever_error_it_raises_fails_its_own_audit_alone() {
    for state in
        ["08006", "40001", "40P01", "53200", "55P03", "57P01", "58000", "XX000", "P0001", "22012"]
    {
        assert!(
            !audit_beside(&format!("raise exception 'no' using errcode = '{state}';")).await,
            "{state}"
        );
    }
}

#[tokio::test]
async fn what_it_sets_locks_or_prepares_is_in_nobody_elses_way() {
    for code in [
        "perform set_config('idle_in_transaction_session_timeout', '1', false);",
        "perform set_config('client_encoding', 'LATIN1', false);",
        "perform set_config('search_path', 'evil', false);",
        "perform set_config('statement_timeout', '1', false);",
        "perform set_config('DateStyle', 'SQL, DMY', false); perform set_config('TimeZone', 'Asia/Tokyo', false);",
        "perform set_config('transform_null_equals', 'on', false); perform set_config('row_security', 'on', false);",
        "perform pg_advisory_lock(7599390160);",
        "perform pg_terminate_backend(pg_backend_pid());",
        "for n in 1 .. 50 loop begin execute format('prepare sqlx_s_%s as select 1', n); exception when others then null; end; end loop;",
        "execute 'deallocate all';",
    ] {
        audit_beside(code).await;
    }
}

#[tokio::test]
async fn code_that_does_not_let_itself_be_cancelled_is_ended_and_the_other_tables_are_audited() {
    let code = "loop begin perform pg_sleep(1000); exception when query_canceled then null; end; end loop;";
    assert!(!audit_beside(code).await);
}

/// A policy, a view in the way of a name, and types with casts and operators of the owner's.
#[tokio::test]
async fn policies_types_casts_and_operators_of_the_owners_neither_hide_a_stale_value_nor_run_as_another()
 {
    let mut world = World::new().await;
    let (owner, listener) = (role(&world, "owner").await, listener(&world).await);
    world
        .execute(&format!(
            "create schema evil authorization {owner}; grant usage on schema evil to public"
        ))
        .await;
    let mut session = session(&world, &owner).await;
    run(
        &mut session,
        &format!(
            "create function evil.boom() returns int language plpgsql as $$ begin raise exception 'ran as %', current_user; end $$;
             create type evil.kind as enum ('x', 'y'); create domain evil.number as int check (value < 1000 or evil.boom() > 0);
             create function evil.as_json(evil.kind) returns json language sql as $$ select to_json(evil.boom()) $$;
             create cast (evil.kind as json) with function evil.as_json(evil.kind) as implicit;
             create function evil.as_text(evil.kind) returns text language sql as $$ select evil.boom()::text $$;
             create cast (evil.kind as text) with function evil.as_text(evil.kind) as implicit;
             create function evil.never(evil.number, int) returns boolean language sql as $$ select evil.boom() = 0 $$;
             create operator evil.= (leftarg = evil.number, rightarg = int, function = evil.never);
             create table evil.t (id evil.number primary key, kind evil.kind, v evil.number);
             insert into evil.t values (1, 'x', 7), (2, 'y', 8);
             create view evil.row_1 as select 1 as id; alter role {owner} set search_path = evil, pg_catalog"
        ),
    )
    .await;
    let watch = "select unstale.watch('evil.t', array['t:{id}', 'k:{kind}:{id}'], version => 'v', version_path => '$.v')";
    world.execute(watch).await;
    run(&mut session, "alter table evil.t enable row level security; create policy none on evil.t using (evil.boom() = 0)").await;
    let all = [("t:1", 7), ("t:2", 1), ("k:x:1", 1), ("k:y:2", 8), ("t:3", 1)];
    for (key, version) in all {
        world.cache.put(key, &format!("{{\"v\":{version}}}")).expect("Redis takes it");
    }
    let (healed, said) = unstale(&world, &listener, "audit --all --heal");
    assert!(!healed && said.contains("3 cached values were stale, and are deleted"), "{said}");
    assert_eq!(world.left(["t:1", "t:2", "k:x:1", "k:y:2", "t:3"]), ["t:1", "k:y:2"]);
    // Forced upon them, it hides rows: then it is said, and nothing is taken for stale.
    run(&mut session, "alter table evil.t force row level security").await;
    let (complete, said) = unstale(&world, &listener, "audit --all");
    assert!(
        said.contains("evil.t is not audited: row-level security is forced upon its owner")
            && complete,
        "{said}"
    );
}
