//! Names that break out of quotes where quotes are forgotten: of roles, schemas, tables and
//! columns.

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::{run, unstale};
use crate::support::world::World;

/// An identifier of SQL, quoted.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A name that ends an identifier, a literal, a dollar quote and a line, and goes on with a
/// statement of its own. Roles are the whole cluster's, so it carries the database's name; 63 bytes
/// are left of it.
fn nasty(world: &World, kind: &str) -> String {
    format!("{kind}{}\"'%s\\ $$; do\n--", world.database())
}

#[tokio::test]
async fn names_of_roles_and_tables_that_break_quotes_do_their_work_and_nothing_else() {
    let mut world = World::bare().await;
    let [owner, keeper, listener] = ["owner", "keeper", "listener"].map(|kind| nasty(&world, kind));
    let table = format!("{}.{}", quoted("sch\"e'm%I a"), quoted("ta\"b'l%s e\\$$;\n--"));
    for role in [&owner, &keeper, &listener] {
        world.execute(&format!("create role {} login", quoted(role))).await;
    }
    let (q_owner, q_keeper) = (quoted(&owner), quoted(&keeper));
    world
        .execute(&format!(
            "grant create on database {} to {q_owner}, {q_keeper}; grant {q_keeper} to {q_owner}",
            world.database()
        ))
        .await;

    let (migrated, said) = unstale(&world, &owner, "migrate");
    assert!(migrated, "{said}");
    let mut keeper_session =
        PgConnection::connect(&super::url(&world, &keeper)).await.expect("the role may connect");
    run(&mut keeper_session, &format!("create schema {}", quoted("sch\"e'm%I a"))).await;
    let create = format!(
        "create table {table} (id int primary key, {} text, updated_at timestamptz not null default clock_timestamp())",
        quoted("co\"l'u%s $$ m"),
    );
    run(&mut keeper_session, &create).await;
    let mut owner_session =
        PgConnection::connect(&super::url(&world, &owner)).await.expect("the role may connect");
    for delivery in ["row", "statement", "log", "row"] {
        let watch = format!(
            "select unstale.watch({}::regclass, array['n:{{id}}', 'c:{{co\"l''u%s $$ m}}'], delivery => '{delivery}', version => 'updated_at', version_path => 'updated_at')",
            sql_literal(&table)
        );
        run(&mut owner_session, &watch).await;
    }
    run(
        &mut owner_session,
        &format!("select unstale.grant_listener({}::regrole)", sql_literal(&quoted(&listener))),
    )
    .await;

    // What changed while nobody listened, and what changes then.
    let write = |id: u32| format!("insert into {table} values ({id}, 'value {id}')");
    run(&mut keeper_session, &write(1)).await;
    world.fill(["n:1", "c:value 1", "n:2", "c:value 2"]);
    let mut daemon = super::daemon_as(&world, &listener).start();
    daemon.ready().await;
    world.gone(["n:1", "c:value 1"]).await;
    run(&mut keeper_session, &write(2)).await;
    world.gone(["n:2", "c:value 2"]).await;

    let (audited, said) = unstale(&world, &listener, "audit");
    assert!(audited, "{said}");
    for command in ["check", "check --keys"] {
        let (_, said) = unstale(&world, &owner, command);
        assert!(
            !said.lines().any(|line| line.starts_with("--") || line.starts_with("do")),
            "a name makes a line of its own: {said}"
        );
    }
    drop(daemon);
    drop((keeper_session, owner_session));
    let (uninstalled, said) = unstale(&world, &owner, "uninstall");
    assert!(uninstalled, "{said}");
    let drops = [&owner, &keeper, &listener]
        .map(|role| format!("drop owned by {0} cascade; drop role {0};", quoted(role)));
    let done = sqlx::raw_sql(AssertSqlSafe(drops.concat())).execute(&world.sql).await;
    done.expect("nothing of the roles is left elsewhere");
}

/// A literal of SQL, which must survive backslashes.
fn sql_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
