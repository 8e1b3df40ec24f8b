//! `unstale audit`: what is stale is found, and nothing else.

mod places;
mod sample;
mod since;
mod sql;

use std::time::Instant;

use serde_json::Value;

use crate::support::daemon::command;
use crate::support::world::World;

/// Its exit code, what it says, and the complaint.
fn audit(world: &World, arguments: &str) -> (Option<i32>, String, String) {
    audit_at(world, &world.redis_url(), arguments)
}

fn audit_at(world: &World, redis_url: &str, arguments: &str) -> (Option<i32>, String, String) {
    let settings = [
        ("DATABASE_URL", world.database_url()),
        ("REDIS_URL", redis_url.to_owned()),
        ("UNSTALE_REPEAT__AFTER", String::new()),
    ];
    let settings: Vec<(&str, &str)> =
        settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let output = command(&format!("audit {arguments}"), &settings);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// The same with `--json`: stale, healed, and the first table.
fn counts(world: &World, arguments: &str) -> (u64, u64, Value) {
    let (_, text, complaint) = audit(world, &format!("--json {arguments}"));
    let document: Value =
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}{complaint}"));
    let number =
        |name: &str| document[name].as_u64().unwrap_or_else(|| panic!("{name} in {document}"));
    assert_eq!(document["complete"], true, "{document}{complaint}");
    (number("stale"), number("healed"), document["tables"][0].clone())
}

/// `rows` users whose e-mail stands in a key, and items whose values are hashes.
async fn tables(world: &World, rows: u32) {
    world
        .execute(&format!(
            "create table users (id int primary key, email text unique, updated_at timestamptz not null default clock_timestamp());
             create table items (id uuid primary key, rev bigint not null);
             insert into users select n, n || '@x', timestamptz '2026-01-01' + n * interval '1.000001 s' from generate_series(1, {rows}) n;
             insert into items select md5(n::text)::uuid, n from generate_series(1, {rows}) n;
             select unstale.watch('users', array['user:{{id}}', 'email:{{email}}'], version => 'updated_at', version_path => '$.user.updated_at');
             select unstale.watch('items', array['item:{{id}}'], version => 'rev', version_path => 'rev')"
        ))
        .await;
}

/// Caches each row as an application would, by commands that PostgreSQL writes.
async fn cache(world: &mut World, sql: &str) {
    let commands: Vec<Vec<String>> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_all(&world.sql).await.expect("commands");
    for chunk in commands.chunks(500) {
        let script = "for i = 1, #ARGV do redis.call(unpack(cjson.decode(ARGV[i]))) end";
        let encoded: Vec<String> =
            chunk.iter().map(|command| serde_json::to_string(command).expect("JSON")).collect();
        let mut words = vec!["eval", script, "0"];
        words.extend(encoded.iter().map(String::as_str));
        world.cache.ask(&words).expect("Redis answers");
    }
}

/// As the three languages of the clients spell a time.
const USERS: &str = "select array['set', 'user:' || id, json_build_object('user', json_build_object('updated_at', case id % 3
        when 0 then to_char(updated_at at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')
        when 1 then to_char(updated_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00:00')
        else to_char(updated_at at time zone 'UTC' + interval '2 hours', 'YYYY-MM-DD\"T\"HH24:MI:SS.US+02') end))::text] from users where ";
const EMAILS: &str = "select array['set', 'email:' || email, json_build_object('user', json_build_object('updated_at', (extract(epoch from updated_at) * 1000)::bigint))::text]
      from users where ";
const ITEMS: &str =
    "select array['hset', 'item:' || id, 'rev', rev::text, 'name', 'x'] from items where ";

#[tokio::test]
async fn a_thousand_stale_values_among_a_hundred_thousand_are_found_and_healed_and_no_others() {
    let mut world = World::new().await;
    tables(&world, 40_000).await;
    for (sql, rows) in [(USERS, "true"), (EMAILS, "id <= 20000"), (ITEMS, "true")] {
        cache(&mut world, &format!("{sql}{rows}")).await;
    }
    assert_eq!(world.cached(), 100_000);
    // Changed with triggers off, in strings and in hashes; deleted rows; and one second later in
    // the same millisecond of the day.
    let changes = "set session_replication_role = replica; alter table users disable trigger all; alter table items disable trigger all;
        update users set updated_at = updated_at + interval '1 second' where id between 1 and 200;
        delete from users where id between 1001 and 1100;
        delete from items where rev between 1 and 200;
        update items set rev = rev + 100000 where rev between 1001 and 1200";
    world.execute(changes).await;
    // A race that a slow reader won: announced and deleted, and then put back.
    let before: Vec<Vec<String>> =
        sqlx::query_scalar(sqlx::AssertSqlSafe(format!("{USERS}id between 30001 and 30100")))
            .fetch_all(&world.sql)
            .await
            .expect("rows");
    world
        .execute("alter table users enable trigger all; update users set updated_at = clock_timestamp() where id between 30001 and 30100")
        .await;
    for command in &before {
        world
            .cache
            .ask(&command.iter().map(String::as_str).collect::<Vec<_>>())
            .expect("Redis answers");
    }
    // 200 * 2 users by id and e-mail, 100 * 2 of deleted ones, 200 + 200 items, 100 put back, less
    // 100 healed below by their delete.
    let stale = 400 + 200 + 400 + 100;
    // What is no more than absent, a lease, nothing, or of others.
    let lease = format!("unstale:lease:{}", "0".repeat(32));
    for (key, value) in [
        ("user:40001", lease.as_str()),
        ("email:nobody", "null"),
        ("item:x", "?"),
        ("other:1", "{}"),
        ("user:007", "{\"user\":1}"),
    ] {
        world.cache.put(key, value).expect("Redis takes it");
    }

    let began = Instant::now();
    let (code, text, complaint) = audit(&world, "--all");
    let took = began.elapsed();
    println!("100,000 values audited in {took:?}");
    assert_eq!(code, Some(1), "{text}{complaint}");
    assert!(complaint.contains(&format!("{stale} cached values are stale")), "{text}{complaint}");
    assert!(!text.contains('@') && !complaint.contains('@'), "a key is in {text}{complaint}");
    assert_eq!(world.cached(), 100_005, "nothing is deleted unless it is asked for");

    let (found, healed, _) = counts(&world, "--all --heal");
    assert_eq!((found, healed), (stale, stale));
    assert_eq!(world.cached(), 100_005 - stale);
    let left = world.left([
        "user:1",
        "email:200@x",
        "user:1100",
        "email:1001@x",
        "user:30001",
        "user:201",
        "user:1101",
        "email:30001@x",
    ]);
    assert_eq!(left, ["user:201", "user:1101"], "email:30001@x was never cached");
    assert_eq!(counts(&world, "--all").0, 0);
}

#[tokio::test]
async fn a_sample_looks_at_what_changed_last_and_at_what_is_cached() {
    let mut world = World::new().await;
    tables(&world, 2_000).await;
    cache(&mut world, &format!("{USERS}true")).await;
    world.execute("alter table users disable trigger all; update users set updated_at = clock_timestamp() where id = 1").await;
    let (code, text, _) = audit(&world, "--sample 10 --table users");
    assert!(code == Some(1) && text.contains("1 stale"), "the newest is in every sample: {text}");
    world.execute("delete from users where id < 1900").await;
    let (stale, ..) = counts(&world, "--sample 50 --table users");
    assert!((10..=60).contains(&stale), "{stale} of some 50");
}

#[tokio::test]
async fn a_change_between_two_looks_is_not_stale() {
    let world = World::new().await;
    tables(&world, 10).await;
    let mut daemon = world.daemon().start();
    daemon.ready().await;
    // Fills and changes as fast as can be, and the listener deletes.
    let writer = async {
        for n in 0.. {
            let id = n % 10 + 1;
            world
                .execute(&format!(
                    "update users set updated_at = clock_timestamp() where id = {id}"
                ))
                .await;
            let mut filler = world.redis.client().expect("Redis is there");
            daemon.settles().await;
            let value: String = sqlx::query_scalar(
                "select json_build_object('user', json_build_object('updated_at', updated_at))::text from users where id = $1",
            )
            .bind(id)
            .fetch_one(&world.sql)
            .await
            .expect("a row");
            filler.put(&format!("user:{id}"), &value).expect("Redis takes it");
        }
    };
    let url = (world.database_url(), world.redis_url());
    let audits = tokio::task::spawn_blocking(move || {
        let settings = [("DATABASE_URL", url.0.as_str()), ("REDIS_URL", url.1.as_str())];
        (0..3).map(|_| command("audit --all", &settings)).collect::<Vec<_>>()
    });
    let audits = tokio::select! {
        () = writer => unreachable!("it writes for ever"),
        audits = audits => audits.expect("it does not panic"),
    };
    for output in audits {
        assert!(output.status.success(), "{output:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_audited_is_named_with_its_remedy() {
    let mut world = World::new().await;
    world
        .execute(
            "create table plain (id int); select unstale.watch('plain', array['plain:{id}']);
             create table seats (r int, place int, v int); insert into seats values (1, 23, 5), (12, 3, 6);
             select unstale.watch('seats', array['seat:{r}{place}', 'seats'], version => 'v', version_path => '$.v')",
        )
        .await;
    world.cache.put("seat:123", r#"{"v":4}"#).expect("Redis takes it");
    let (code, text, complaint) = audit(&world, "--all");
    assert!(
        complaint.contains("public.plain is not audited: it has no version; pass version and version_path to unstale.watch()"),
        "{complaint}"
    );
    assert!(
        complaint.contains(
            "keys of 'seat:{r}{place}' are not looked for in Redis: its columns stand side by side"
        ),
        "{complaint}"
    );
    // Forward it is found all the same. Two rows make the key, and neither is of that version.
    assert!(
        code == Some(1) && text.contains("public.seats: 1 keys, 1 cached values compared, 1 stale"),
        "{text}{complaint}"
    );
    let (code, _, complaint) = audit(&world, "--table nowhere");
    assert!(code == Some(1) && complaint.contains("there is no table nowhere"), "{complaint}");
}
