//! `unstale check`: each planted fault is named, and its remedy, pasted, mends it.

mod faults;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Row};
use unstale::scratch::redis::{Client, Reply};

use crate::support::daemon::{Daemon, command};
use crate::support::servers::{own_postgres_with, own_redis};
use crate::support::world::World;
use crate::tidy::read;
use faults::{FAULTS, Fault, OF_A_LISTENER, OF_AN_OWNER, REVOKED_FROM_THE_OWNER};

async fn tables() -> World {
    let world = World::new().await;
    world
        .execute(
            "create table users (id int primary key, email text, updated_at timestamptz default now());
             create table events (id int, updated_at timestamptz default now()) partition by range (id);
             create table events_1 partition of events for values from (0) to (100);
             create table gone (id int primary key);
             select unstale.watch('users', array['user:{id}', 'by:{email}']), unstale.watch('events', array['event:{id}']),
                    unstale.watch('gone', array['gone:{id}'])",
        )
        .await;
    world
}

/// What `unstale check` finds that is not well.
fn check(database_url: &str, redis_url: &str) -> Vec<Value> {
    check_with("check --json", database_url, redis_url)
}

fn check_with(arguments: &str, database_url: &str, redis_url: &str) -> Vec<Value> {
    let output = command(arguments, &[("DATABASE_URL", database_url), ("REDIS_URL", redis_url)]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let findings = found["findings"].as_array().expect("a list").clone();
    let has_error = findings.iter().any(|finding| finding["severity"] == "error");
    assert_eq!(output.status.code(), Some(i32::from(has_error)), "{output:?}");
    findings.into_iter().filter(|finding| finding["severity"] != "ok").collect()
}

/// The remedies of what is about this and says that.
fn remedies(findings: &[Value], about: &str, says: &str) -> Vec<String> {
    let of_it = |finding: &&Value| {
        finding["about"].as_str() == Some(about)
            && finding["finding"].as_str().is_some_and(|finding| finding.contains(says))
    };
    findings
        .iter()
        .filter(of_it)
        .map(|finding| finding["remedy"].as_str().expect("a remedy").to_owned())
        .collect()
}

/// The same of the database alone, for a schema whose owner may not even look: the program calls no
/// function of another as superuser.
async fn look(world: &World) -> Vec<Value> {
    let sql = "select jsonb_build_object('about', about, 'finding', finding, 'remedy', remedy)::text from unstale.findings()";
    let rows: Vec<String> = sqlx::query_scalar(sql).fetch_all(&world.sql).await.expect("findings");
    rows.iter().map(|row| serde_json::from_str(row).expect("PostgreSQL writes JSON")).collect()
}

/// Plants one fault after the other, and pastes what is said of it. Without a URL, the database
/// alone is asked.
async fn are_named_and_mended(
    world: &World,
    database_url: Option<&str>,
    faults: &[Fault],
    role: &str,
) {
    let check = async || match database_url {
        Some(url) => check(url, &world.redis_url()),
        None => look(world).await,
    };
    let mut before = check().await;
    for (plant, about, says) in faults {
        let (plant, about) = (plant.replace("ROLE", role), about.replace("ROLE", role));
        let says = &says.replace("ROLE", role);
        assert_eq!(remedies(&before, &about, says), [""; 0], "before {plant}");
        world.execute(&plant).await;
        let found = check().await;
        let pasted = remedies(&found, &about, says);
        assert!(!pasted.is_empty(), "{plant}: {found:#?}");
        for remedy in pasted {
            world.execute(&remedy).await;
        }
        before = check().await;
        assert_eq!(remedies(&before, &about, says), [""; 0], "after {plant} was mended");
    }
    let errors: Vec<_> =
        before.iter().filter(|finding| finding["about"] != "listener \"default\"").collect();
    assert_eq!(errors, [&Value::Null; 0], "at the end all is well");
}

#[tokio::test]
async fn each_fault_in_the_database_is_named_and_mended_by_its_remedy() {
    let world = tables().await;
    are_named_and_mended(&world, Some(&world.database_url()), FAULTS, "").await;
}

#[tokio::test]
async fn each_privilege_that_the_listener_lacks_or_has_no_need_of_is_named_and_mended_by_its_remedy()
 {
    let world = tables().await;
    let role = format!("listener_of_{}", world.database());
    world.execute(&format!("create role {role} login")).await;
    let url = world.database_url().replace("postgres@", &format!("{role}@"));
    // The remedies alone make it a listener.
    for _ in 0..3 {
        for finding in check(&url, &world.redis_url()) {
            if finding["about"] == format!("role {role}").as_str() {
                world.execute(finding["remedy"].as_str().expect("a remedy")).await;
            }
        }
    }
    are_named_and_mended(&world, Some(&url), OF_A_LISTENER, &role).await;
    world.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn each_fault_of_a_table_with_another_owner_is_named_and_mended_by_its_remedy() {
    let world = tables().await;
    let role = format!("owner_of_{}", world.database());
    world.execute(&format!("create role {role}")).await;
    are_named_and_mended(&world, Some(&world.database_url()), OF_AN_OWNER, &role).await;
    world
        .execute(&format!("drop table users cascade; drop owned by {role}; drop role {role}"))
        .await;
}

#[tokio::test]
async fn each_privilege_that_the_owner_lost_is_named_and_mended_by_its_remedy() {
    let world = World::bare().await;
    let role = format!("schema_of_{}", world.database());
    world
        .execute(&format!("create role {role} login; create schema app authorization {role}"))
        .await;
    world.execute(&format!("grant create on database {} to {role}", world.database())).await;
    let url = world.database_url().replace("postgres@", &format!("{role}@"));
    let migrated = command("migrate", &[("DATABASE_URL", &url)]);
    assert!(migrated.status.success(), "{migrated:?}");
    world
        .execute(&format!(
            "set role {role}; create table app.users (id int primary key, updated_at timestamptz);
             select unstale.watch('app.users', array['user:{{id}}']); reset role"
        ))
        .await;
    are_named_and_mended(&world, None, REVOKED_FROM_THE_OWNER, &role).await;
    world
        .execute(&format!(
            "drop schema app, unstale cascade; drop owned by {role}; drop role {role}"
        ))
        .await;
}

#[tokio::test]
async fn the_program_and_the_schema_know_the_same_functions_of_a_listener() {
    let world = World::new().await;
    let sql = "select array(select distinct p.proname::text from unstale.listener_functions() f join pg_proc p on p.oid = f order by 1)";
    let in_sql: Vec<String> = sqlx::query_scalar(sql).fetch_one(&world.sql).await.expect("a list");
    let mut in_rust = unstale::pg::check::LISTENER_FUNCTIONS.to_vec();
    in_rust.sort_unstable();
    assert_eq!(in_sql, in_rust);
}

#[tokio::test]
async fn transactions_that_hold_the_watermark_are_named_and_ended_by_their_remedies() {
    let world = World::on(own_postgres_with([("max_prepared_transactions", "5")])).await;
    world.execute("create table users (id int primary key); select unstale.watch('users', array['user:{id}'])").await;
    world.execute("begin; insert into users values (1); prepare transaction 'it''s old'").await;
    let mut writer = world.sql.begin().await.expect("a transaction");
    sqlx::query("insert into users values (2)").execute(&mut *writer).await.expect("a row");
    // `unstale check` takes ten minutes for old; this asks for all.
    let old = "select about, finding, remedy from unstale.findings('0')";
    let rows = sqlx::query(AssertSqlSafe(old)).fetch_all(&world.sql).await.expect("findings");
    assert_eq!(rows.len(), 2, "one prepared, one open");
    for row in rows {
        assert!(row.get::<&str, _>(1).contains("no watermark passes it"));
        world.execute(row.get(2)).await;
    }
    assert!(
        sqlx::query(AssertSqlSafe(old)).fetch_all(&world.sql).await.expect("findings").is_empty()
    );
}

#[tokio::test]
async fn a_missing_schema_and_a_database_that_is_not_there_are_named() {
    let world = World::bare().await;
    let found = check(&world.database_url(), &world.redis_url());
    assert_eq!(remedies(&found, "schema unstale", "missing or older"), ["unstale migrate"]);
    assert!(command("migrate", &[("DATABASE_URL", &world.database_url())]).status.success());
    assert_eq!(
        remedies(&check(&world.database_url(), &world.redis_url()), "schema unstale", ""),
        [""; 0]
    );
    let found = check("postgres://postgres@127.0.0.1:1/nowhere", &world.redis_url());
    assert_eq!(
        remedies(&found, "PostgreSQL at 127.0.0.1:1/nowhere", "cannot connect").len(),
        1,
        "{found:#?}"
    );
}

/// Pastes `redis-cli ...`.
fn paste(cache: &mut Client, remedy: &str) {
    let words: Vec<&str> = remedy
        .strip_prefix("redis-cli ")
        .expect("for redis-cli")
        .split(' ')
        .map(|word| word.trim_matches('\''))
        .collect();
    cache.ask(&words).expect("Redis takes it");
}

#[tokio::test]
async fn each_fault_of_redis_is_named_and_mended_by_its_remedy() {
    let mut world = tables().await;
    let (database_url, redis_url) = (world.database_url(), world.redis_url());
    let version = server_name(&mut world.cache);

    world
        .cache
        .ask(&[
            "acl", "setuser", "unstale", "on", "nopass", "~*", "+ping", "+select", "+info",
            "+client",
        ])
        .expect("an ACL");
    let url = redis_url.replace("redis://", "redis://unstale:any@");
    let found = check(&database_url, &url);
    paste(&mut world.cache, &remedies(&found, "Redis", "cannot delete")[0]);
    assert_eq!(remedies(&check(&database_url, &url), "Redis", ""), [""; 0]);

    world.cache.ask(&["config", "set", "maxmemory", "1mb"]).expect("a small server");
    let found = check(&database_url, &redis_url);
    paste(&mut world.cache, &remedies(&found, &version, "nothing is evicted")[0]);
    assert_eq!(remedies(&check(&database_url, &redis_url), &version, ""), [""; 0]);

    let primary = own_redis();
    world
        .cache
        .ask(&["replicaof", "127.0.0.1", &primary.port().expect("TCP").to_string()])
        .expect("a replica");
    let found = check(&database_url, &redis_url);
    let remedy = remedies(&found, &version, "this is a replica").remove(0);
    let named = remedy.strip_prefix("export REDIS_URL=").expect("another URL");
    assert_eq!(remedies(&check(&database_url, named), &version, ""), [""; 0]);
}

/// As findings name the server.
fn server_name(cache: &mut Client) -> String {
    let Ok(Reply::Value(Some(info))) = cache.ask(&["info", "server"]) else {
        panic!("no answer to INFO")
    };
    let info = String::from_utf8(info).expect("UTF-8");
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    match (field("valkey_version:"), field("redis_version:")) {
        (Some(version), _) => format!("Valkey {version}"),
        (None, version) => format!("Redis {}", version.expect("a version")),
    }
}

#[tokio::test]
async fn a_key_goes_the_whole_way_through_the_listener_of_this_redis_alone() {
    let world = World::new().await;
    world.users(3).await;
    let found = check(&world.database_url(), &world.redis_url());
    assert_eq!(
        remedies(&found, "listener \"default\"", "no listener of this name was ever here"),
        ["systemctl start unstale   # or, to try it: unstale run"]
    );

    let mut daemon = world.daemon().with("UNSTALE_INSTANCE", "default").in_one_session().start();
    daemon.ready().await;
    assert_eq!(check(&world.database_url(), &world.redis_url()), Vec::<Value>::new());
    let output = command(
        "check",
        &[("DATABASE_URL", &world.database_url()), ("REDIS_URL", &world.redis_url())],
    );
    assert!(
        String::from_utf8_lossy(&output.stdout)
            .contains("ok       listener \"default\": a key went the whole way"),
        "{output:?}"
    );

    let another = own_redis();
    let environment = [
        ("DATABASE_URL", world.database_url()),
        ("REDIS_URL", another.url()),
        ("UNSTALE_HEARTBEAT__TIMEOUT", "2s".to_owned()),
    ];
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let output = command("check", &environment);
    assert!(String::from_utf8_lossy(&output.stdout).contains("has another Redis"), "{output:?}");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "unstale: 1 error, 0 warnings\n");
}

#[tokio::test]
async fn another_program_s_listener_is_not_taken_for_ours() {
    let (world, neighbour) = (World::new().await, World::new().await);
    let settings = |database_url: String, redis_url: String| {
        Daemon::settings(&database_url, &redis_url)
            .with("UNSTALE_INSTANCE", "default")
            .in_one_session()
    };
    // Two programs that share a Redis, and nobody gave either a name of its own.
    let mut ours = settings(world.database_url(), world.redis_url()).start();
    let mut theirs = settings(neighbour.database_url(), world.redis_url()).start();
    ours.ready().await;
    theirs.ready().await;
    assert_eq!(errors(&world.database_url(), &world.redis_url()), [""; 0]);
    ours.kill9();
    let found = errors(&world.database_url(), &world.redis_url());
    assert!(
        found.len() == 1 && found[0].contains("a key that it was asked to delete is still there"),
        "{found:?}"
    );

    // A listener that runs, and this Redis is another program's.
    let mut ours = settings(world.database_url(), neighbour.redis_url()).start();
    ours.ready().await;
    let found = errors(&world.database_url(), &world.redis_url());
    assert!(found.len() == 1 && found[0].contains("has another Redis"), "{found:?}");
    assert_eq!(errors(&world.database_url(), &neighbour.redis_url()), [""; 0]);
}

/// The sentences of what is wrong.
fn errors(database_url: &str, redis_url: &str) -> Vec<String> {
    let environment = [
        ("DATABASE_URL", database_url),
        ("REDIS_URL", redis_url),
        ("UNSTALE_HEARTBEAT__TIMEOUT", "2s"),
    ];
    let output = command("check --json", &environment);
    let found: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let findings = found["findings"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|finding| finding["severity"] == "error");
    findings.map(|finding| finding["finding"].as_str().expect("a sentence").to_owned()).collect()
}

#[tokio::test]
async fn what_a_listener_would_stumble_over_at_its_start_is_found_by_doing_it() {
    let world = tables().await;
    let before = world.number("select count(*) from unstale.instance").await;
    world
        .execute(
            "create function full_disk() returns trigger language plpgsql as $$ begin
                 raise exception using errcode = '53100', message = 'could not extend file: No space left on device'; end $$;
             create trigger full_disk before insert or update on unstale.gap for each statement execute function full_disk()",
        )
        .await;
    let found = check(&world.database_url(), &world.redis_url());
    assert_eq!(
        remedies(&found, "start", "No space left on device"),
        ["# make room on the server's disk"],
        "{found:#?}"
    );
    world.execute("drop trigger full_disk on unstale.gap").await;
    assert_eq!(remedies(&check(&world.database_url(), &world.redis_url()), "start", ""), [""; 0]);
    assert_eq!(
        world.number("select count(*) from unstale.instance").await,
        before,
        "nothing of it stays"
    );
    assert_eq!(world.number("select count(*) from unstale.gap").await, 0, "nothing of it stays");
}

#[tokio::test]
async fn limits_of_connections_are_named_before_anything_runs_into_them() {
    let world = tables().await;
    let role = format!("narrow_{}", world.database());
    world
        .execute(&format!("create role {role} login; select unstale.grant_listener('{role}')"))
        .await;
    let url = world.database_url().replace("postgres@", &format!("{role}@"));
    world.execute(&format!("alter role {role} connection limit 4")).await;
    are_named_and_mended(
        &world,
        Some(&url),
        &[("alter role ROLE connection limit 2", "role ROLE", "its connection limit is 2")],
        &role,
    )
    .await;
    // Where there is not even one left, the remedy is another than a URL.
    world.execute(&format!("alter role {role} connection limit 0")).await;
    let found = check(&url, &world.redis_url());
    let remedy = found[0]["remedy"].as_str().expect("a remedy");
    assert!(
        found[0]["finding"]
            .as_str()
            .is_some_and(|finding| finding.contains("too many connections")),
        "{found:#?}"
    );
    assert!(remedy.contains("connection limit 5") && !remedy.contains("DATABASE_URL"), "{remedy}");
    world.execute(&format!("drop owned by {role}; drop role {role}")).await;
}

#[tokio::test]
async fn keys_that_live_too_long_are_named_by_their_template_and_get_a_shorter_life() {
    let mut world = tables().await;
    world.execute("select unstale.watch('users', array['user:{id}', 'by:{email}', 'count'], max_ttl => '1 hour')").await;
    let lives = [
        ("user:1", Some("3600")),
        ("user:2", Some("3700")),
        ("user:it's \"3\"", None),
        ("count", None),
        ("event:1", None),
    ];
    for (key, seconds) in lives.into_iter().chain([("gone:1", Some("999999")), ("others:1", None)])
    {
        let seconds = seconds.map(|seconds| ["ex", seconds]);
        let command: Vec<&str> =
            ["set", key, "x"].into_iter().chain(seconds.into_iter().flatten()).collect();
        world.cache.ask(&command).expect("Redis takes it");
    }
    let found = check_with("check --json --keys", &world.database_url(), &world.redis_url());
    let about_keys = |finding: &&Value| {
        finding["about"].as_str().is_some_and(|about| about.starts_with("keys "))
    };
    let named: Vec<_> = found
        .iter()
        .filter(about_keys)
        .map(|finding| (finding["severity"].as_str(), finding["about"].as_str()))
        .collect();
    let expected = [("warning", "keys event:*"), ("error", "keys user:*"), ("error", "keys count")];
    assert_eq!(
        named,
        expected.map(|(severity, about)| (Some(severity), Some(about))),
        "{found:#?}"
    );

    for finding in found.iter().filter(about_keys) {
        paste_in_shell(&world, finding["remedy"].as_str().expect("a remedy"));
    }
    let found = check_with("check --json --keys", &world.database_url(), &world.redis_url());
    assert_eq!(found.iter().filter(about_keys).count(), 0, "{found:#?}");
    assert!(world.cache.count(&["ttl", "user:it's \"3\""]).expect("an answer") > 3_000);
    assert!(matches!(world.cache.ask(&["ttl", "others:1"]), Ok(Reply::Integer(-1))));
}

fn paste_in_shell(world: &World, remedy: &str) {
    let status = std::process::Command::new("sh")
        .args(["-c", remedy])
        .env("REDIS_URL", world.redis_url())
        .status()
        .expect("a shell");
    assert!(status.success(), "{remedy}");
}

#[tokio::test]
async fn the_role_of_roles_sql_can_do_all_that_a_listener_must() {
    let mut world = tables().await;
    let role = format!("least_of_{}", world.database());
    let roles = read("config/roles.sql");
    world.execute(&format!("create role {role} login")).await;
    world.execute(&roles.replace("unstale_listener", &role)).await;
    world
        .execute(
            "create table later (id int primary key, updated_at timestamptz default now());
             select unstale.watch('later', array['later:{id}'], delivery => 'log');
             insert into users select n, 'e' || n, now() - interval '1 hour' from generate_series(1, 9) n",
        )
        .await;
    let url = world.database_url().replace("postgres@", &format!("{role}@"));
    let settings = world
        .daemon()
        .with("DATABASE_URL", &url)
        .with("UNSTALE_INSTANCE", "default")
        .in_one_session();
    let mut daemon = settings.clone().start();
    daemon.ready().await;
    assert_eq!(check(&url, &world.redis_url()), Vec::<Value>::new());
    world.fill(["user:1", "later:1", "event:1"]);
    world.execute("update users set email = 'new' where id = 1; insert into later values (1); insert into events values (1)").await;
    world.gone(["user:1", "later:1", "event:1"]).await;

    // While it is away: a row to be swept, and changes that only the log has.
    assert!(daemon.terminate().success());
    world.fill(["user:2", "user:3", "later:2"]);
    world.execute("update users set email = 'new', updated_at = clock_timestamp() where id = 2; delete from users where id = 3").await;
    world.execute("insert into later values (2)").await;
    let _daemon = settings.start();
    world.gone(["user:2", "user:3", "later:2"]).await;
}
