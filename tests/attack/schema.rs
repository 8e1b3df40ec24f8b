//! Whoever may create a schema, or in ours, before us: nothing that exists is adopted.

use super::{attempt, role, run, session, unstale};
use crate::support::world::World;

/// A schema `unstale` of a role that may create on the database, with functions that make it
/// superuser when one calls them.
async fn schema_of_another(world: &World) -> String {
    let evil = role(world, "evil").await;
    world.execute(&format!("grant create on database {} to {evil}", world.database())).await;
    let mut session = session(world, &evil).await;
    let trap = format!("alter role {evil} superuser");
    run(
        &mut session,
        &format!(
            "create schema unstale; grant all on schema unstale to public;
             create table unstale.change_log (); create table unstale.watch (); create table unstale.migrations (version int, success boolean);
             create function unstale.trap() returns int language plpgsql as $$ begin execute '{trap}'; return 6; exception when others then return 6; end $$;
             create function unstale.version() returns int language sql as 'select unstale.trap()';
             create function unstale.regenerate() returns int language sql as 'select unstale.trap()';
             create function unstale.owner() returns regrole language plpgsql as $$ begin perform unstale.trap(); return 'postgres'; end $$;"
        ),
    )
    .await;
    evil
}

#[tokio::test]
async fn a_schema_of_somebody_else_is_refused_before_any_of_its_functions_is_called() {
    let world = World::bare().await;
    let evil = schema_of_another(&world).await;
    for command in ["migrate", "check", "apply", "sweep --all"] {
        let (done, said) = unstale(&world, "postgres", command);
        assert!(!done, "{command}: {said}");
        assert!(said.contains(&evil), "{command} does not name the schema's owner: {said}");
    }
    // These try again, until somebody has dropped it.
    for command in ["run", "tail"] {
        world.daemon().running(command).start().says(&evil).await;
    }
    assert_eq!(
        world
            .number(&format!("select count(*) from pg_roles where rolname = '{evil}' and rolsuper"))
            .await,
        0
    );
}

#[tokio::test]
async fn an_owner_of_the_schema_who_has_made_us_a_member_is_refused() {
    let world = World::bare().await;
    let (evil, migrator) = (schema_of_another(&world).await, role(&world, "migrator").await);
    world.execute(&format!("grant create on database {} to {migrator}", world.database())).await;
    let mut session = session(&world, &evil).await;
    // PostgreSQL 15 refuses it.
    let _ = attempt(&mut session, &format!("grant {evil} to {migrator}")).await;
    let (done, said) = unstale(&world, &migrator, "migrate");
    assert!(!done && said.contains(&format!("belongs to {evil}")), "{said}");
}

#[tokio::test]
async fn whoever_may_create_in_the_schema_keeps_migrate_and_watch_from_working_until_it_is_taken_back()
 {
    let world = World::new().await;
    let evil = role(&world, "evil").await;
    world.execute("create table t (id int primary key)").await;
    world.execute(&format!("grant usage, create on schema unstale to {evil}")).await;
    let mut stranger = session(&world, &evil).await;
    let watch = "select unstale.watch('t', array['t:{id}'])";
    let refused =
        sqlx::raw_sql(watch).execute(&world.sql).await.expect_err("others may create").to_string();
    assert!(refused.contains(&evil), "{refused}");
    let (done, said) = unstale(&world, "postgres", "migrate");
    assert!(
        !done && said.contains(&format!("revoke create on schema unstale from {evil}")),
        "{said}"
    );

    // What it left there is not adopted.
    run(&mut stranger, "create function unstale.row_1(t public.t) returns text language sql as $$ select 'mine' $$").await;
    world.execute(&format!("revoke create on schema unstale from {evil}")).await;
    let (done, said) = unstale(&world, "postgres", "migrate");
    assert!(!done && said.contains("row_1"), "{said}");
    world.execute(watch).await;
    assert_eq!(
        world.number("select count(*) from pg_trigger where tgname like 'unstale_1_%'").await,
        0,
        "the number 1 was taken"
    );
}

#[tokio::test]
async fn what_everybody_gets_by_default_is_taken_back_here() {
    let world = World::bare().await;
    let app = role(&world, "app").await;
    for kind in ["tables", "sequences", "functions", "schemas", "types"] {
        world.execute(&format!("alter default privileges grant all on {kind} to {app}")).await;
    }
    let (done, said) = unstale(&world, "postgres", "migrate");
    assert!(done, "{said}");
    world.execute("create table t (id int primary key, updated_at timestamptz); revoke all on t from public").await;
    world
        .execute(&format!(
            "revoke all on t from {app}; select unstale.watch('t', array['t:{{id}}'])"
        ))
        .await;
    assert!(unstale(&world, "postgres", "migrate").0);
    let mut app = session(&world, &app).await;
    run(&mut app, "create function pg_temp.evil() returns trigger language plpgsql as $$ begin return new; end $$").await;
    for sql in [
        "create trigger evil before update on unstale.instance for each row execute function pg_temp.evil()",
        "update unstale.watch set keys = '{}'",
        "select last_value from unstale.channel_id",
        "select 1 / (pg_sequence_last_value('unstale.channel_id') is not null)::int", // refused, or null since PostgreSQL 17
        "select unstale.channel()",
        "create function unstale.mine() returns int language sql as 'select 1'",
        "select * from unstale.page_1('-infinity', '-infinity', 10)",
        "select unstale.row_1(null)",
        "select unstale.save('mine', 0, '1:1:', null, null, null, 'x', '1 hour')",
        "select unstale.listen()",
    ] {
        attempt(&mut app, sql).await.expect_err(sql);
    }
}

#[tokio::test]
async fn nobody_but_those_it_was_granted_to_may_call_a_function_here() {
    let world = World::new().await;
    world.users(1).await;
    let public = "select count(*) from pg_proc p where p.pronamespace = 'unstale'::regnamespace and has_function_privilege('public', p.oid, 'execute')";
    assert_eq!(world.number(public).await, 0);
    for template in ["{a}:{b}", "x{a}"] {
        let watch = format!(
            "create table if not exists ab (a int, b int); select unstale.watch('ab', array['{template}'], updated_at => null"
        );
        let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(format!("{watch})")))
            .execute(&world.sql)
            .await
            .expect_err(template)
            .to_string();
        assert!(refused.contains("literal"), "{refused}");
        world.execute(&format!("{watch}, any_prefix => true)")).await;
    }
    // A brace that is written twice is one letter of the prefix, wherever it stands.
    for (template, short) in [
        ("{{{a}", true),
        ("{a}}}x", true),
        ("{{{a}}}", false),
        ("x{a}}}", false),
        ("{{x{a}", false),
    ] {
        let refused = world
            .number(&format!("select unstale.has_short_prefix('{template}')::int::bigint"))
            .await;
        assert_eq!(refused, i64::from(short), "{template}");
    }
}

#[tokio::test]
async fn only_the_very_name_of_a_tables_page_may_belong_to_the_tables_owner() {
    let world = World::new().await;
    world.users(1).await;
    let owner = role(&world, "owner").await;
    world.execute(&format!("alter table users owner to {owner}; select unstale.watch('users', array['user:{{id}}'])")).await;
    let misowned = "select count(*) from unstale.misowned()";
    assert_eq!(world.number(misowned).await, 0, "its pages run as its owner");
    for name in ["page_01", "page_1x", "audit_01", "page_2147483648", "row_01"] {
        let create = format!(
            "create function unstale.{name}() returns int language sql return 1; alter function unstale.{name}() owner to {owner}"
        );
        world.execute(&create).await;
        assert_eq!(world.number(misowned).await, 1, "{name}");
        world.execute(&format!("drop function unstale.{name}()")).await;
    }
}
