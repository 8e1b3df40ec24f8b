//! The owner of a watched table: what the listener reads runs their code.

use super::{attempt, daemon_as, listener, role, run, session};
use crate::support::world::World;

/// A table `a` of `owner`, with an index whose expression runs `code` (plpgsql statements) whenever
/// the table is read, and a log `ran` of the roles that code ran as. Watched, like the table `b` of
/// somebody else.
pub(super) async fn trapped_table(world: &World, owner: &str, code: &str) {
    world
        .execute(&format!(
            "create schema evil authorization {owner};
             grant usage, create on schema evil to public;
             create table evil.ran (who text default current_user, how text); grant insert on evil.ran to public;
             create table b (id int primary key, updated_at timestamptz default clock_timestamp());
             select unstale.watch('b', array['b:{{id}}']);"
        ))
        .await;
    let mut session = session(world, owner).await;
    run(&mut session, "create table evil.a (id int primary key, name text, updated_at timestamptz default clock_timestamp())").await;
    world.execute("select unstale.watch('evil.a', array['a:{id}:{name}'])").await;
    run(
        &mut session,
        &format!(
            "create table evil.bait (x int);
             create function evil.deferred() returns trigger language plpgsql as $$ begin insert into evil.ran (how) values ('deferred'); return null; end $$;
             create constraint trigger t after insert on evil.bait deferrable initially deferred for each row execute function evil.deferred();
             create function evil.held() returns int language plpgsql as $$ begin insert into evil.ran (how) values ('held'); return 1; end $$;
             create function evil.act() returns int language plpgsql as $$ begin {code} return 1; end $$;
             create function evil.expression(t timestamptz) returns int language plpgsql immutable as $$
             begin if session_user <> '{owner}' and session_user <> 'postgres' then perform evil.act(); end if; return 1; end $$;
             create index on evil.a (evil.expression('2026-01-01'::timestamptz));
             create statistics evil.s on (evil.expression('2026-01-01'::timestamptz) + id), name from evil.a;"
        ),
    )
    .await;
    world.execute("insert into evil.a values (1, 'é'); insert into b values (1)").await;
}

#[tokio::test]
async fn what_the_code_of_a_tables_owner_leaves_for_the_end_of_the_transaction_never_runs_as_the_listener()
 {
    let mut world = World::new().await;
    let (owner, listener) = (role(&world, "owner").await, listener(&world).await);
    let tries = [
        "insert into evil.ran (how) values ('direct')",
        "insert into evil.bait values (1)",
        "execute 'declare stolen cursor with hold for select evil.held()'",
        "create temp table pg_class (x int)",
    ];
    let code: String = tries
        .iter()
        .map(|sql| format!("begin {sql}; exception when others then null; end; "))
        .collect();
    trapped_table(&world, &owner, &code).await;
    world.fill(["a:1:é", "b:1"]);
    let mut daemon = daemon_as(&world, &listener).start();
    daemon.ready().await;
    assert_eq!(world.left(["a:1:é", "b:1"]), Vec::<&str>::new());
    let sql = format!("select count(*) from evil.ran where who <> '{owner}'");
    assert_eq!(world.number(&sql).await, 0, "code of the table's owner ran as another role");
}

#[tokio::test]
async fn the_listeners_role_reads_no_row_moves_no_other_instance_and_fires_no_trigger_of_ours() {
    let world = World::new().await;
    world.users(5).await;
    let (listener, other) = (listener(&world).await, role(&world, "other").await);
    world.execute(&format!("select unstale.grant_listener('{other}')")).await;
    let mut theirs = session(&world, &other).await;
    run(&mut theirs, "select unstale.register('theirs', '1 hour')").await;
    let mut ours = session(&world, &listener).await;
    let relations: Vec<String> = sqlx::query_scalar(
        "select c.oid::regclass::text from pg_class c where c.relkind in ('r', 'p', 'v', 'm', 'S') and c.relnamespace in ('unstale'::regnamespace, 'public'::regnamespace)",
    )
    .fetch_all(&world.sql)
    .await
    .expect("the catalogue is there");
    assert!(relations.len() > 10, "{relations:?}");
    for relation in relations {
        attempt(&mut ours, &format!("select * from {relation} limit 1"))
            .await
            .expect_err(&relation);
    }
    for sql in [
        "select unstale.register('theirs', '1 hour')",
        "select unstale.touch('theirs')",
        "select unstale.save('theirs', 0, '1:1:', null, null, null, 'x', '1 hour')",
        "select unstale.open_gap('theirs', 'start', '0')",
        "create temp table t (id int); create trigger t after truncate on t execute function unstale.truncate_1()",
        "select unstale.channel()",
        "select unstale.tell(1, '{}', false, true)",
        "create function unstale.mine() returns int language sql as 'select 1'",
    ] {
        attempt(&mut ours, sql).await.expect_err(sql);
    }
}

#[tokio::test]
async fn a_partition_that_is_locked_keeps_neither_a_sweep_nor_the_check_waiting() {
    let mut world = World::new().await;
    world
        .execute(
            "create table parted (id int, updated_at timestamptz default clock_timestamp()) partition by range (id);
             create table parted_1 partition of parted for values from (0) to (10);
             select unstale.watch('parted', array['parted:{id}'], updated_at => null);
             create table b (id int primary key, updated_at timestamptz default clock_timestamp());
             select unstale.watch('b', array['b:{id}']); insert into b values (1);",
        )
        .await;
    world.fill(["b:1"]);
    let mut locker = world.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("lock table parted_1 in access exclusive mode")
        .execute(&mut *locker)
        .await
        .expect("it is free");
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    assert_eq!(world.left(["b:1"]), Vec::<&str>::new());
    let mut check = world.sql.acquire().await.expect("a connection");
    sqlx::raw_sql("set statement_timeout = '5s'; select count(*) from unstale.findings()")
        .execute(&mut *check)
        .await
        .expect("it waits for nobody");
}
