//! `unstale uninstall`: nothing is left, and nothing stale.

use crate::support::daemon::command;
use crate::support::wait::until;
use crate::support::world::World;

/// Whatever a database has of it, and of nobody else.
const TRACES: &str = "select count(*) from (
    select from pg_namespace where nspname = 'unstale' union all select from pg_trigger where tgname like 'unstale%' union all
    select from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'unstale') t";

fn says(world: &World, arguments: &str) -> (Option<i32>, String) {
    let output = command(
        arguments,
        &[("DATABASE_URL", &world.database_url()), ("REDIS_URL", &world.redis_url())],
    );
    (
        output.status.code(),
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(),
    )
}

async fn traces(world: &World) -> i64 {
    sqlx::query_scalar(TRACES).fetch_one(&world.sql).await.expect("a count")
}

#[tokio::test]
async fn it_leaves_no_trace_and_no_stale_key() {
    let mut world = World::new().await;
    world.users(3).await;
    world
        .execute(
            "create table events (id int, updated_at timestamptz) partition by range (id);
             create table visits (id int primary key, updated_at timestamptz); create table jobs (id int primary key);
             select unstale.watch('visits', array['visit:{id}'], 'statement'), unstale.watch('jobs', array['job:{id}'], 'log');
             create table events_1 partition of events for values from (0) to (100);
             select unstale.watch('events', array['event:{id}', 'events'], 'log')",
        )
        .await;
    world.fill(["user:1", "event:7", "events", "others"]);

    let (code, said) = says(&world, "uninstall --dry-run");
    assert_eq!(code, Some(0), "{said}");
    for step in [
        "select unstale.unwatch('public.events');",
        "-- delete event:* from Redis",
        "drop schema unstale cascade;",
        "nothing was changed",
    ] {
        assert!(said.contains(step), "{step}: {said}");
    }
    assert_eq!(world.left(["user:1", "event:7", "events", "others"]).len(), 4);

    let (code, said) = says(&world, "uninstall");
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(traces(&world).await, 0);
    assert_eq!(world.left(["user:1", "event:7", "events", "others"]), ["others"]);
    world.execute("insert into events values (7, now()); update users set name = 'still writable'; truncate users").await;

    let (code, said) = says(&world, "uninstall");
    assert_eq!((code, said.as_str()), (Some(0), "there is no schema unstale in this database\n"));
}

#[tokio::test]
async fn it_refuses_while_a_listener_runs_and_can_be_repeated_where_a_lock_was_not_to_be_had() {
    let world = World::new().await;
    world.users(3).await;
    let mut daemon = world.daemon().start();
    daemon.ready().await;
    let (code, said) = says(&world, "uninstall");
    assert!(
        code == Some(1)
            && said.contains("other sessions of unstale are in this database; end them first"),
        "{said}"
    );
    assert!(daemon.terminate().success());
    let sessions = "select count(*) from pg_stat_activity where application_name = 'unstale' and datname = current_database()";
    until("its sessions have ended", async || world.number(sessions).await == 0).await;

    let mut writer = world.sql.begin().await.expect("a transaction");
    sqlx::query("update users set name = 'held'").execute(&mut *writer).await.expect("rows");
    let (code, said) = says(&world, "uninstall");
    assert!(code == Some(1) && said.contains("public.users"), "{said}");
    writer.commit().await.expect("it is ours");
    assert_eq!(says(&world, "uninstall").0, Some(0));
    assert_eq!(traces(&world).await, 0);
}
