//! A schema that is missing, newer, or changes under a running listener.

use super::*;

#[tokio::test]
async fn without_the_schema_it_exits_with_1_and_says_unstale_migrate() {
    let world = World::bare().await;
    let mut daemon = world.daemon().start();
    assert_eq!(daemon.ends().code(), Some(1));
    daemon.says("unstale migrate").await;
}

#[tokio::test]
async fn a_schema_newer_than_the_program_makes_it_exit_with_3() {
    let world = World::new().await;
    world
        .execute(
            "insert into unstale.migrations (version, description, success, checksum, execution_time)
             values (9999, 'from the future', true, '', 0)",
        )
        .await;
    let mut daemon = world.daemon().start();
    assert_eq!(daemon.ends().code(), Some(3));
    daemon.says("9999").await;
}

/// The order of an upgrade: `unstale migrate` of the new version, and then the restart.
#[tokio::test]
async fn while_the_schema_is_newer_already_the_old_listener_goes_on_and_nothing_is_lost() {
    let mut world = World::new().await;
    world.users(10).await;
    let settings = world.daemon().in_one_session();
    let mut old = settings.clone().start();
    old.ready().await;
    let newer = "insert into unstale.migrations (version, description, success, checksum, execution_time) values (9999, 'newer', true, '', 0)";
    world.execute(newer).await;
    world.fill(["user:1"]);
    world.execute("update users set name = 'after the migration', updated_at = clock_timestamp() where id = 1").await;
    world.gone(["user:1"]).await;

    // It loses its session before it is replaced, and must not work with what it does not know.
    world
        .execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query like '%unstale.listen()%' and pid <> pg_backend_pid()")
        .await;
    let reason = until("it says why", async || {
        Some(old.not_ready().await).filter(|reason| reason.contains("9999"))
    })
    .await;
    assert!(reason.contains("install the newer unstale"), "{reason}");
    world.fill(["user:2", "user:3"]);
    world
        .execute("update users set name = 'in the gap', updated_at = clock_timestamp() where id = 2; delete from users where id = 3")
        .await;
    assert!(old.terminate().success());

    world.execute("delete from unstale.migrations where version = 9999").await; // as the new version sees it
    let mut new = settings.start();
    new.ready().await;
    world.gone(["user:2", "user:3"]).await;
}
