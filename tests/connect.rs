//! Where people's PostgreSQL is, and what stands before it: every form of a URL, several hosts,
//! settings that were meant for other programs, rights that were revoked, files that rotate, and a
//! full disk.

pub(crate) mod hosts;

use std::os::unix::fs::PermissionsExt as _;

use sqlx::AssertSqlSafe;
use unstale::scratch::{Postgres, free_port};

use crate::support::daemon::{BINARY, Daemon, command, with_hosts};
use crate::support::link::Link;
use crate::support::servers::own_postgres;
use crate::support::wait::until;
use crate::support::world::World;

/// What a command says when it fails, and its exit code.
fn refused(arguments: &str, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = command(arguments, environment);
    assert!(!output.status.success(), "{arguments} {environment:?}");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// It is ready, and what changes is deleted.
async fn works(world: &mut World, daemon: &mut Daemon) {
    daemon.ready().await;
    world.fill_users();
    world.change_users().await;
    world.users_are_fresh(daemon).await;
}

#[tokio::test]
async fn every_form_of_a_url_that_libpq_takes_leads_there() {
    let mut world = World::new().await;
    world.users(10).await;
    let (directory, port, database) = (
        world.postgres().directory().display().to_string(),
        world.postgres().port(),
        world.database().to_owned(),
    );
    let encoded = directory.replace('/', "%2F");
    for url in [
        format!("postgres://postgres@/{database}?host={directory}&port={port}"),
        format!("postgresql://postgres@{encoded}:{port}/{database}?sslmode=verify-full"),
        format!(
            "postgresql:///?user=postgres&dbname={database}&hostaddr=127.0.0.1&port={port}&sslmode=allow"
        ),
        format!(
            "postgres://postgres@localhost:{port}/{database}?connect_timeout=5&application_name=cache&options=-c%20geqo%3Doff"
        ),
        format!(
            "postgres://postgres@127.0.0.1:1,127.0.0.1:{port}/{database}?target_session_attrs=read-write"
        ),
    ] {
        world.execute("truncate users; insert into users select n, n || '@old', 'ann', clock_timestamp() - interval '1 hour' from generate_series(1, 10) n").await;
        let mut daemon = Daemon::settings(&url, &world.redis_url()).in_one_session().start();
        works(&mut world, &mut daemon).await;
        assert!(daemon.terminate().success(), "{url}");
    }
    // The variables of libpq where the URL is silent.
    let port = port.to_string();
    let variables = [
        ("DATABASE_URL", "postgres://"),
        ("PGHOST", directory.as_str()),
        ("PGPORT", &port),
        ("PGUSER", "postgres"),
        ("PGDATABASE", &database),
    ];
    assert!(command("migrate", &variables).status.success());
}

#[tokio::test]
async fn a_password_may_stand_in_a_passfile_that_nobody_else_can_read() {
    let mut world = World::on(own_postgres()).await;
    world
        .execute("drop schema unstale cascade; create role guarded superuser login password 'p:w'")
        .await;
    let data = world.postgres().directory().join("data/pg_hba.conf");
    let hba = std::fs::read_to_string(&data).expect("pg_hba.conf");
    std::fs::write(&data, format!("host all guarded 127.0.0.1/32 scram-sha-256\n{hba}"))
        .expect("it is ours");
    world.own_postgres().restart().expect("it starts");
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("pgpass");
    std::fs::write(&file, format!("127.0.0.1:{}:app:guarded:p\\:w\n", world.postgres().port()))
        .expect("a file of ours");
    let url = world.database_url().replace("postgres@", "guarded@");
    let name = file.display().to_string();
    let environment = [("DATABASE_URL", url.as_str()), ("PGPASSFILE", &name)];
    let mode = |mode| {
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("our file")
    };
    mode(0o644);
    let (code, said) = refused("migrate", &environment);
    assert!(code == Some(2) && said.contains("chmod 600"), "{said}");
    mode(0o600);
    assert!(command("migrate", &environment).status.success());
}

#[test]
fn a_url_that_cannot_be_meant_is_exit_code_2_and_named_by_its_part() {
    let good = ("REDIS_URL", "redis://127.0.0.1:1");
    for (url, says) in [
        (
            "postgres://h/d?sslMode=verify-full",
            "DATABASE_URL: there is no part sslMode; did you mean sslmode?",
        ),
        ("postgres://h/d?sslmode=verify_full", "DATABASE_URL: sslmode must be one of"),
        ("postgres://h/d?pool=5", "DATABASE_URL: there is no part pool in libpq's URLs"),
        ("postgres://h/d?target_session_attrs=standby", "LISTEN does not work on a standby"),
        ("postgres://h/d?sslrootcert=system&sslmode=require", "sslmode=verify-full"),
        (
            "postgres://h/d?sslrootcert=/no/where.crt&sslmode=verify-full",
            "DATABASE_URL: sslrootcert /no/where.crt cannot be read",
        ),
        ("mysql://h/d", "is not a PostgreSQL URL"),
    ] {
        for arguments in ["run", "check", "migrate"] {
            let (code, said) = refused(arguments, &[("DATABASE_URL", url), good]);
            assert!(code == Some(2) && said.contains(says), "{arguments} {url}: {code:?} {said}");
        }
    }
    for (url, says) in [
        (
            "redis://h?db=2",
            "REDIS_URL: the database's number comes after the host, as in redis://host:6379/2",
        ),
        ("redis-cluster://h:1?nodes=h:2", "did you mean node?"),
        ("unix:///run/redis.sock", "redis+unix:///run/redis.sock"),
    ] {
        for arguments in ["run", "check", "sweep --all"] {
            let (code, said) = refused(
                arguments,
                &[("DATABASE_URL", "postgres://127.0.0.1:1/d"), ("REDIS_URL", url)],
            );
            assert!(code == Some(2) && said.contains(says), "{arguments} {url}: {code:?} {said}");
        }
    }
}

#[tokio::test]
async fn a_database_of_redis_is_emptied_only_if_the_url_names_it() {
    let mut world = World::new().await;
    world.users(3).await;
    let socket = world.redis.socket_url();
    let database_url = world.database_url();
    let sweep = |url: &str| {
        command("sweep --all", &[("DATABASE_URL", database_url.as_str()), ("REDIS_URL", url)])
    };
    for database in ["0", "2", "5"] {
        world.cache.ask(&["select", database]).expect("a database");
        world.cache.ask(&["set", "user:1", "x"]).expect("Redis takes it");
    }
    assert_eq!(sweep(&format!("{}?db=2", world.redis_url())).status.code(), Some(2));
    assert!(sweep(&format!("{socket}?db=2")).status.success());
    assert!(
        sweep(&format!("{}/5", world.redis_url().replace("redis://", "valkey://")))
            .status
            .success()
    );
    let mut left = Vec::new();
    for database in ["0", "2", "5"] {
        world.cache.ask(&["select", database]).expect("a database");
        left.push(world.cache.has("user:1").expect("Redis answers"));
    }
    assert_eq!(left, [true, false, false]);
}

/// A role that may do all that a listener must, as its URL.
async fn listener_role(world: &World) -> (String, String) {
    let role = format!("listener_of_{}", world.database());
    world
        .execute(&format!("create role {role} login; select unstale.grant_listener('{role}')"))
        .await;
    let url = world.database_url().replace("postgres@", &format!("{role}@"));
    (role, url)
}

async fn drop_role(world: &World, role: &str) {
    world.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn settings_that_a_database_or_a_role_has_for_others_do_not_rule_us() {
    let mut world = World::new().await;
    world.users(10).await;
    let (role, url) = listener_role(&world).await;
    let others = format!("others_of_{}", world.database());
    for (setting, value) in [
        ("idle_session_timeout", "200"),
        ("idle_in_transaction_session_timeout", "1"),
        ("default_transaction_read_only", "on"),
        ("statement_timeout", "1"),
        ("lock_timeout", "1"),
        ("search_path", "nowhere"),
        ("row_security", "off"),
        ("default_transaction_isolation", "serializable"),
        ("bytea_output", "escape"),
    ] {
        world
            .execute(&format!(
                "alter role {role} in database {} set {setting} = '{value}'",
                world.database()
            ))
            .await;
    }
    // For everybody in this database who may. By one connection of before: every other that begins
    // meanwhile would be another role's.
    world.execute(&format!("create role {others}; grant {others} to {role}")).await;
    let mut ours = world.sql.acquire().await.expect("a connection");
    let database = format!("alter database {}", world.database());
    sqlx::raw_sql(AssertSqlSafe(format!("{database} set role = {others}")))
        .execute(&mut *ours)
        .await
        .expect("it is ours");
    let mut daemon = Daemon::settings(&url, &world.redis_url()).in_one_session().start();
    daemon.ready().await;
    sqlx::raw_sql(AssertSqlSafe(format!("{database} reset role")))
        .execute(&mut *ours)
        .await
        .expect("it is ours");
    drop(ours);
    let gaps = daemon.gaps();
    for _ in 0..3 {
        daemon.settles().await;
    }
    works(&mut world, &mut daemon).await;
    assert_eq!(daemon.gaps(), gaps, "nothing has ended the session");
    assert_eq!(daemon.metric("unstale_bookkeeping_failures_total", &[]), 0.0);
    drop(daemon);
    world.execute(&format!("drop role {others}")).await;
    drop_role(&world, &role).await;
}

#[tokio::test]
async fn a_disk_that_is_full_or_a_read_only_moment_keeps_nobody_from_deleting() {
    let mut world = World::new().await;
    world.users(10).await;
    let mut daemon = world.daemon().in_one_session().start();
    daemon.ready().await;
    let checkpoint = "select coalesce(max(pg_snapshot_xmax(log)::text::bigint), 0) from unstale.instance where name = 'test'";
    until("there is a checkpoint", async || world.number(checkpoint).await > 0).await;
    let full = |table: &str| {
        format!(
            "create trigger full_disk before insert or update on unstale.{table} for each statement execute function full_disk()"
        )
    };
    world
        .execute(&format!(
            "create function full_disk() returns trigger language plpgsql as $$ begin
                 raise exception using errcode = '53100', message = 'could not extend file: No space left on device'; end $$;
             {}; {}",
            full("instance"),
            full("gap")
        ))
        .await;
    let line = daemon.says("progress cannot be noted").await;
    assert!(line.contains("No space left on device"), "{line}");
    let before = world.number(checkpoint).await;
    works(&mut world, &mut daemon).await;
    assert!(daemon.metric("unstale_bookkeeping_failures_total", &[]) >= 1.0);
    assert_eq!(world.number(checkpoint).await, before, "it is as it was");

    // One that starts now is ready, and finds what was missed.
    daemon.kill9();
    world.execute("truncate users; insert into users select n, n || '@old', 'ann', clock_timestamp() from generate_series(1, 10) n").await;
    world.fill_users();
    world.change_users().await;
    let mut daemon = world.daemon().in_one_session().start();
    daemon.ready().await;
    until("all stale keys are gone", async || world.left(World::STALE).is_empty()).await;

    world
        .execute(
            "drop trigger full_disk on unstale.instance; drop trigger full_disk on unstale.gap",
        )
        .await;
    until("the checkpoint moves again", async || world.number(checkpoint).await > before).await;
}

/// The log would not be kept for it: what it had not read could be gone.
#[tokio::test]
async fn an_instance_that_cannot_be_noted_for_the_first_time_says_so_and_waits() {
    let mut world = World::new().await;
    world.users(10).await;
    world
        .execute(
            "create function full_disk() returns trigger language plpgsql as $$ begin
                 raise exception using errcode = '53100', message = 'could not extend file: No space left on device'; end $$;
             create trigger full_disk before insert or update on unstale.instance for each statement execute function full_disk()",
        )
        .await;
    let mut daemon = world.daemon().in_one_session().start();
    until("it says why it is not ready", async || {
        daemon.not_ready().await.contains("No space left on device")
    })
    .await;
    world.execute("drop trigger full_disk on unstale.instance").await;
    daemon.ready().await;
    works(&mut world, &mut daemon).await;
}

#[tokio::test]
async fn a_server_that_does_not_tell_who_it_is_is_listened_to() {
    let mut world = World::new().await;
    world.users(10).await;
    let (role, url) = listener_role(&world).await;
    world
        .execute(
            "revoke execute on function pg_current_wal_lsn(), pg_walfile_name(pg_lsn), pg_control_system(), pg_control_checkpoint() from public",
        )
        .await;
    let mut daemon = Daemon::settings(&url, &world.redis_url())
        .with("UNSTALE_INSTANCE", "default")
        .in_one_session()
        .start();
    works(&mut world, &mut daemon).await;
    let line = daemon.says("does not say all of who it is").await;
    assert!(
        line.contains("a fail-over") && line.contains("permission denied for function"),
        "{line}"
    );
    let output = command("check", &[("DATABASE_URL", &url), ("REDIS_URL", &world.redis_url())]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "less is known, and nothing is wrong: {said}");
    assert!(
        said.contains("warning") && said.contains("a fail-over can be told only by the time"),
        "{said}"
    );
    assert!(
        said.contains(&format!("grant execute on function pg_control_system() to {role}")),
        "{said}"
    );
    drop(daemon);
    drop_role(&world, &role).await;
}

#[tokio::test]
async fn a_rotated_url_is_read_for_the_next_connection_by_itself() {
    let mut world = World::new().await;
    world.users(10).await;
    let role = format!("rotating_{}", world.database());
    world.execute(&format!("create role {role} superuser login")).await;
    let directory = tempfile::tempdir().expect("a directory");
    let (database, cache) =
        (directory.path().join("database_url"), directory.path().join("redis_url"));
    let (database_url, cache_url) = (world.database_url(), world.redis_url());
    let url = |role: &str| database_url.replace("postgres@", &format!("{role}@"));
    let redis_url = |user: &str| cache_url.replace("redis://", &format!("redis://{user}:any@"));
    let write =
        |path: &std::path::Path, text: String| std::fs::write(path, text).expect("a file of ours");
    world.cache.ask(&["acl", "setuser", "first", "on", "nopass", "~*", "+@all"]).expect("an ACL");
    write(&database, url(&role));
    write(&cache, redis_url("first"));
    let settings = world.daemon().without("DATABASE_URL").without("REDIS_URL").impatient();
    let settings = settings
        .with("DATABASE_URL_FILE", &database.display().to_string())
        .with("REDIS_URL_FILE", &cache.display().to_string());
    let mut daemon = settings.start();
    daemon.ready().await;

    // New credentials come, and the old ones end. Nobody sends SIGHUP.
    write(&database, url(&format!("{role}_2")));
    write(&cache, redis_url("second"));
    let gaps = daemon.gaps();
    world.cache.ask(&["acl", "setuser", "second", "on", "nopass", "~*", "+@all"]).expect("an ACL");
    world.cache.ask(&["acl", "deluser", "first"]).expect("an ACL");
    world
        .execute(&format!(
            "alter role {role} rename to {role}_2; select pg_terminate_backend(pid) from pg_stat_activity where usename in ('{role}', '{role}_2')"
        ))
        .await;
    daemon.opens_gap(gaps).await;
    works(&mut world, &mut daemon).await;

    // A file that is away for a moment is no reason to stop: what it held last is tried, and named
    // if that fails.
    std::fs::remove_file(&database).expect("it is there");
    let gaps = daemon.gaps();
    let end = "select pg_terminate_backend(pid) from pg_stat_activity where usename like";
    world.execute(&format!("{end} '{role}%'")).await;
    daemon.opens_gap(gaps).await;
    daemon.ready().await;
    world.execute(&format!("alter role {role}_2 rename to {role}_3; {end} '{role}%'")).await;
    let reason = until("the reason names the file", async || {
        Some(daemon.not_ready().await).filter(|reason| reason.contains("DATABASE_URL_FILE"))
    })
    .await;
    assert!(reason.contains("cannot be read") || reason.contains("cannot read"), "{reason}");
    write(&database, url(&format!("{role}_3")));
    daemon.ready().await;
    drop(daemon);
    world.execute(&format!("drop role {role}_3")).await;
}

#[tokio::test]
async fn a_role_whose_sweep_finds_no_connection_left_is_told_so_and_goes_on_with_three() {
    let mut world = World::new().await;
    world.users(10).await;
    let (role, url) = listener_role(&world).await;
    world.execute(&format!("alter role {role} connection limit 2")).await;
    let mut daemon = Daemon::settings(&url, &world.redis_url()).impatient().start();
    let reason = until("the reason names the limit", async || {
        Some(daemon.not_ready().await).filter(|reason| {
            reason.contains("its sweep") && reason.contains("too many connections")
        })
    });
    assert!(reason.await.contains("three connections"));
    world.fill(["user:7"]);
    world
        .execute("update users set name = 'bob', updated_at = clock_timestamp() where id = 7")
        .await;
    world.gone(["user:7"]).await;
    world.execute(&format!("alter role {role} connection limit 3")).await;
    works(&mut world, &mut daemon).await;
    drop(daemon);
    drop_role(&world, &role).await;
}

#[tokio::test]
async fn a_watch_that_has_ended_is_not_explained() {
    let world = World::new().await;
    world.users(3).await;
    world.execute("select unstale.unwatch('users')").await;
    let output =
        command("explain public.users id=1 email=a", &[("DATABASE_URL", &world.database_url())]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(1) && said.contains("public.users is not watched"),
        "{said}"
    );
}

/// Aurora's words: its WAL functions are there, and raise.
#[tokio::test]
async fn a_server_that_answers_as_aurora_does_is_listened_to() {
    let mut world = World::new().await;
    world.users(10).await;
    // The server runs its own functions by number, whatever stands in their place: so ours take
    // their names.
    for (function, result, code, message) in [
        ("pg_current_wal_lsn", "pg_lsn", "55000", "wal_level must be set to ''logical''"),
        (
            "pg_control_checkpoint",
            "table (timeline_id int)",
            "55000",
            "wal_level must be set to ''logical''",
        ),
        (
            "pg_control_system",
            "table (system_identifier bigint)",
            "0A000",
            "Function is currently not supported for Aurora",
        ),
    ] {
        let body =
            format!("begin raise exception using errcode = '{code}', message = '{message}'; end");
        world
            .execute(&format!(
                "alter function pg_catalog.{function} rename to {function}_2;
                 create function pg_catalog.{function}() returns {result} language plpgsql as $aurora${body}$aurora$"
            ))
            .await;
    }
    let mut daemon = world.daemon().with("UNSTALE_INSTANCE", "default").in_one_session().start();
    works(&mut world, &mut daemon).await;
    let line = daemon.says("does not say all of who it is").await;
    assert!(
        line.contains("another server and a fail-over")
            && line.contains("not supported for Aurora"),
        "{line}"
    );
    let output = command(
        "check",
        &[("DATABASE_URL", &world.database_url()), ("REDIS_URL", &world.redis_url())],
    );
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("nothing can be done where the server refuses it"),
        "{said}"
    );
}
