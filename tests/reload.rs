//! SIGHUP: what can change does, without a gap; what cannot is named; what is wrong changes
//! nothing.

use std::path::Path;

use crate::support::daemon::Daemon;
use crate::support::servers::own_redis;
use crate::support::wait::until;
use crate::support::world::World;

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).expect("a file of ours");
}

/// A daemon whose configuration is in files of this directory: its settings, and the URL of
/// PostgreSQL.
async fn reloadable(world: &World, directory: &Path, database_url: &str) -> Daemon {
    let (settings, url) = (directory.join("unstale.toml"), directory.join("database_url"));
    write(&settings, &format!("[redis]\nurl = \"{}\"\n", world.redis_url()));
    write(&url, database_url);
    let environment = ["DATABASE_URL", "REDIS_URL", "UNSTALE_INSTANCE"];
    let from_files =
        environment.into_iter().fold(world.daemon(), |daemon, name| daemon.without(name));
    let from_files = from_files
        .with("UNSTALE_CONFIG", &settings.display().to_string())
        .with("UNSTALE_REPEAT__AFTER", "");
    let mut daemon =
        from_files.with("DATABASE_URL_FILE", &url.display().to_string()).in_one_session().start();
    daemon.ready().await;
    daemon
}

#[tokio::test]
async fn it_changes_what_can_change_without_a_gap_and_names_the_rest() {
    let world = World::new().await;
    world.users(3).await;
    let directory = tempfile::tempdir().expect("a directory");
    let mut daemon = reloadable(&world, directory.path(), &world.database_url()).await;
    let file = directory.path().join("unstale.toml");

    write(
        &file,
        &format!(
            "instance = \"other\"\n[redis]\nurl = \"{}\"\n[log]\nfilter = \"debug\"\n[batch]\nin_flight = 2\n",
            world.redis_url()
        ),
    );
    daemon.hang_up();
    let line = daemon.says("the configuration was read again").await;
    assert!(line.contains(r#""changed":"log.filter, batch.in_flight""#), "{line}");
    daemon.says("a heartbeat went through").await; // which is said to debuggers alone
    let line = daemon.says("need a restart").await;
    assert!(line.contains(r#""keys":"instance""#), "{line}");

    write(&file, &format!("[redis]\nurl = \"{}\"\n[batch]\nin_flight = 0\n", world.redis_url()));
    daemon.hang_up();
    let line = daemon.says("the old one stays").await;
    assert!(line.contains("in_flight"), "{line}");

    assert!(daemon.is_ready());
    assert_eq!(daemon.metric("unstale_gaps_total", &[]), 1.0, "that of the start");
    assert!(daemon.terminate().success());
}

#[tokio::test]
async fn a_new_password_is_taken_for_the_next_connection() {
    let world = World::new().await;
    world.users(3).await;
    let role = format!("rotated_{}", world.database());
    world.execute(&format!("create role {role} superuser login password 'old'")).await;
    let url =
        |password: &str| world.database_url().replace("postgres@", &format!("{role}:{password}@"));
    let directory = tempfile::tempdir().expect("a directory");
    let mut daemon = reloadable(&world, directory.path(), &url("old")).await;

    world.execute(&format!("alter role {role} rename to {role}_2")).await;
    write(&directory.path().join("database_url"), &url("new").replace(&role, &format!("{role}_2")));
    daemon.hang_up();
    let line = daemon.says("the configuration was read again").await;
    assert!(line.contains(r#""changed":"database.url""#) && !line.contains("new"), "{line}");
    world
        .execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query like '%unstale.listen()%' and pid <> pg_backend_pid()")
        .await;
    until("it is there under its new name", async || {
        let sql = format!("select count(*) from pg_stat_activity where usename = '{role}_2' and query like '%unstale.listen()%'");
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&world.sql).await.expect("a count");
        count == 1
    })
    .await;
    drop(daemon);
    world.execute(&format!("drop role {role}_2")).await;
}

#[tokio::test]
async fn another_redis_gets_what_waits_for_the_one_that_is_gone() {
    let mut world = World::new().await;
    world.users(3).await;
    let gone = own_redis();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("unstale.toml");
    write(&file, &format!("[redis]\nurl = \"{}\"\n", gone.url()));
    let settings =
        world.daemon().without("REDIS_URL").with("UNSTALE_CONFIG", &file.display().to_string());
    let mut daemon = settings.in_one_session().start();
    daemon.ready().await;
    drop(gone);
    world.fill(["user:1"]);
    world.execute("update users set updated_at = clock_timestamp() where id = 1").await;
    daemon.says("Redis does not delete").await;

    write(&file, &format!("[redis]\nurl = \"{}\"\n", world.redis_url()));
    daemon.hang_up();
    world.gone(["user:1"]).await;
    daemon.ready().await;
}

#[tokio::test]
async fn the_sample_and_its_delays_change_at_once_and_what_is_off_holds_no_connection() {
    let world = World::new().await;
    world
        .execute(
            "create table t (id int primary key, updated_at timestamptz not null default clock_timestamp());
             select unstale.watch('t', array['t:{id}'], version => 'updated_at', version_path => '$.v')",
        )
        .await;
    let directory = tempfile::tempdir().expect("a directory");
    let mut daemon = reloadable(&world, directory.path(), &world.database_url()).await;
    let file = directory.path().join("unstale.toml");
    let connections = async || {
        world.number("select count(*) from pg_stat_activity where datname = current_database() and application_name = 'unstale'").await
    };
    let without = connections().await;
    let write_audit = |keys: &str| {
        write(&file, &format!("[redis]\nurl = \"{}\"\n[audit]\n{keys}\n", world.redis_url()))
    };
    let reloaded = async |daemon: &mut Daemon, times: usize| {
        daemon.hang_up();
        let lines = || {
            daemon
                .lines()
                .into_iter()
                .filter(|line| line.contains("the configuration was read again"))
                .collect::<Vec<_>>()
        };
        let lines =
            until("it is read again", async || Some(lines()).filter(|lines| lines.len() == times))
                .await;
        assert!(lines[times - 1].contains(r#""changed":"audit."#), "{lines:?}");
    };
    let mut rows = 0;
    for (keys, after) in [
        ("sample = 1.0\nafter = [\"50ms\", \"1h\"]", "50ms"),
        ("sample = 1.0\nafter = [\"60ms\"]", "60ms"),
    ] {
        write_audit(keys);
        rows += 1;
        reloaded(&mut daemon, rows).await;
        world.execute(&format!("insert into t values ({rows})")).await;
        let labels = [("table", "public.t"), ("after", after)];
        until("the key is looked at again", async || {
            daemon.metric("unstale_audited_total", &labels) == 1.0
        })
        .await;
    }
    assert_eq!(
        daemon.metric("unstale_audited_total", &[("after", "50ms")]),
        1.0,
        "after a delay that is gone"
    );
    assert!(connections().await > without, "it has no connections of its own");

    write_audit("sample = 0.0");
    reloaded(&mut daemon, 3).await;
    until("its connections are closed", async || connections().await == without).await;
    world.execute("insert into t values (99)").await;
    daemon.settles().await;
    write_audit("sample = 1.0\nafter = [\"70ms\"]");
    reloaded(&mut daemon, 4).await;
    world.execute("insert into t values (100)").await;
    until("it is on again", async || {
        daemon.metric("unstale_audited_total", &[("after", "70ms")]) > 0.0
    })
    .await;
    let audited = daemon.metric("unstale_audited_total", &[("table", "public.t")]);
    assert_eq!(audited, 3.0, "what was deleted while it was off was looked at");
    assert_eq!(daemon.metric("unstale_gaps_total", &[]), 1.0, "that of the start");
}
