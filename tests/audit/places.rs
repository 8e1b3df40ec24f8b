//! The audit with every kind of Redis, with a listener's own roles, and with a program of the
//! application's.

use unstale::scratch::redis::{Cluster, Guarded, Options};

use super::{audit, audit_at, counts};
use crate::support::wait::until;
use crate::support::world::World;

/// Rows 1 to 50, of which 1 to 10 are deleted and 11 to 20 changed after they were cached.
async fn world() -> World {
    let world = World::new().await;
    world
        .execute(
            "create table t (id int primary key, v int); insert into t select n, 1 from generate_series(11, 50) n;
             select unstale.watch('t', array['t:{id}'], version => 'v', version_path => '$.v');
             alter table t disable trigger all; update t set v = 2 where id <= 20",
        )
        .await;
    world
}

fn keys() -> Vec<String> {
    (1..=50).map(|n| format!("t:{n}")).collect()
}

const CACHED: &str = r#"{"v":"1"}"#;

#[tokio::test]
async fn a_cluster_is_audited_and_healed_primary_by_primary() {
    let world = world().await;
    let cluster = Cluster::start(3, 0, 500, &Options::default()).expect("a cluster");
    cluster.put_all(keys(), CACHED).expect("all primaries are up");
    let (code, text, complaint) = audit_at(&world, &cluster.url(), "--all --heal");
    assert!(
        code == Some(1)
            && text.contains(
                "public.t: 50 keys, 50 cached values compared, 20 stale\n20 keys deleted"
            ),
        "{text}{complaint}"
    );
    let (code, text, complaint) = audit_at(&world, &cluster.url(), "--all");
    assert!(
        code == Some(0) && text.contains("30 keys, 30 cached values compared, 0 stale"),
        "{text}{complaint}"
    );
}

#[tokio::test]
async fn the_primary_behind_sentinel_is_audited() {
    let world = world().await;
    let guarded = Guarded::start(500, &Options::default()).expect("sentinels");
    let primary = guarded.primary().expect("there is one");
    guarded.servers[primary]
        .client()
        .and_then(|mut client| client.put_all(keys(), CACHED))
        .expect("it is up");
    let (code, text, complaint) = audit_at(&world, &guarded.url(), "--all --heal");
    assert!(code == Some(1) && text.contains("20 stale\n20 keys deleted"), "{text}{complaint}");
}

#[tokio::test]
async fn a_listener_s_role_and_a_user_with_the_rights_that_are_named_are_enough() {
    let mut world = world().await;
    world.fill(keys());
    world.cache.put_all(keys(), CACHED).expect("Redis takes it");
    world.execute("drop role if exists auditor; create role auditor login; select unstale.grant_listener('auditor')").await;
    let database_url = world.database_url().replace("//postgres@", "//auditor@");
    assert!(database_url.contains("auditor"), "{database_url}");
    let listener = [
        "acl",
        "setuser",
        "auditor",
        "on",
        ">secret",
        "~t:*",
        "~unstale:*",
        "+unlink",
        "+scan",
        "+ping",
        "+set",
    ];
    world.cache.ask(&listener).expect("an ACL");
    let redis_url = world.redis_url().replacen("//", "//auditor:secret@", 1);
    let run = |arguments: &str| {
        let settings = [
            ("DATABASE_URL", database_url.as_str()),
            ("REDIS_URL", redis_url.as_str()),
            ("UNSTALE_REPEAT__AFTER", ""),
        ];
        crate::support::daemon::command(&format!("audit {arguments}"), &settings)
    };
    let refused = run("--all");
    let complaint = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(1) && complaint.contains("+get +hget +type +scan"),
        "{complaint}"
    );
    world
        .cache
        .ask(&["acl", "setuser", "auditor", "+get", "+hget", "+type", "+scan"])
        .expect("an ACL");
    let healed = run("--all --heal");
    assert!(
        String::from_utf8_lossy(&healed.stdout).contains("20 stale\n20 keys deleted"),
        "{healed:?}"
    );
    // Noted, too, by that role.
    until("it is noted", async || {
        world.number("select count(*) from unstale.audit where stale = 20 and complete").await == 1
    })
    .await;
    world.execute("drop owned by auditor; drop role auditor").await;
}

#[tokio::test]
async fn a_program_says_what_would_be_cached_where_no_version_does() {
    let mut world = World::new().await;
    world.execute("create table t (id int primary key); select unstale.watch('t', array['t:{id}', 'all'])").await;
    for (key, value) in [
        ("t:1", r#"{"a": 1, "b": 2}"#),
        ("t:2", "old"),
        ("t:3", "two\nlines"),
        ("t:4", "null"),
        ("t:5", "gone"),
        ("all", "x"),
    ] {
        world.cache.put(key, value).expect("Redis takes it");
    }
    let program = world.redis.directory().join("render.sh");
    let script = "#!/bin/sh\nwhile IFS= read -r key; do case $key in t:1) echo '{\"b\":2,\"a\":1}';; t:2) echo new;; \
                  t:3) echo hex:74776f0a6c696e6573;; all) echo x;; *) echo;; esac; done\n";
    std::fs::write(&program, script).expect("a program");
    let settings = [
        ("DATABASE_URL", world.database_url()),
        ("REDIS_URL", world.redis_url()),
        ("UNSTALE_REPEAT__AFTER", String::new()),
    ];
    let mut audit = std::process::Command::new(crate::support::daemon::BINARY);
    audit
        .args(["audit", "--all", "--heal", "--command", &format!("sh {}", program.display())])
        .env_clear();
    let output = audit
        .envs(std::env::vars().filter(|(name, _)| name == "PATH"))
        .envs(settings)
        .output()
        .expect("it runs");
    let (text, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        text.contains("public.t: 6 keys, 6 cached values compared, 2 stale\n2 keys deleted"),
        "{text}{complaint}"
    );
    assert_eq!(
        world.left(["t:1", "t:2", "t:3", "t:4", "t:5", "all"]),
        ["t:1", "t:3", "t:4", "all"]
    );
}

#[tokio::test]
async fn a_rate_is_kept_and_a_table_can_be_chosen() {
    let mut world = world().await;
    world.cache.put_all(keys(), CACHED).expect("Redis takes it");
    world
        .execute(
            "create table other (id int, v int); select unstale.watch('other', array['o:{id}'], version => 'v', version_path => '$.v')",
        )
        .await;
    let began = std::time::Instant::now();
    let (stale, _, table) = counts(&world, "--all --table t --rate 25");
    assert!(began.elapsed() >= std::time::Duration::from_secs(2), "50 keys, 25 a second");
    assert!(stale == 20 && table["table"] == "public.t", "{table}");
    let (code, text, _) = audit(&world, "--all --table other");
    assert!(code == Some(0) && text.contains("public.other: 0 keys"), "{text}");
}

#[tokio::test]
async fn the_code_of_a_table_s_owner_fails_its_own_table_and_no_other() {
    let mut world = world().await;
    world.cache.put_all(keys(), CACHED).expect("Redis takes it");
    world
        .execute(
            "create table failing (id int primary key, v int);
             select unstale.watch('failing', array['x:{id}'], version => 'v', version_path => '$.v');
             create function boom(int) returns bool language plpgsql as $b$ begin raise exception 'boom'; end $b$;
             do $$ begin execute format($f$create or replace function unstale.audit_%s(how integer, place bigint, size bigint, wanted json[])
                 returns table (image text, version text) language sql stable security definer set row_security = off
                 begin atomic select t.id::text, t.v::text from failing t where boom(t.id) or boom(1); end$f$,
                 (select max(id) from unstale.watch)); end $$;
             insert into failing values (1, 1)",
        )
        .await;
    world.cache.put("x:1", CACHED).expect("Redis takes it");
    let (code, text, complaint) = audit(&world, "--all");
    assert!(
        code == Some(1) && text.contains("public.t: 50 keys, 50 cached values compared, 20 stale"),
        "{text}{complaint}"
    );
    assert!(
        complaint.contains("not all is audited: public.failing: its rows cannot be read")
            && complaint.contains("boom"),
        "{complaint}"
    );
    assert_eq!(
        world.number("select count(*) from unstale.audit").await,
        1,
        "of the other table alone"
    );
}
