//! Whoever can connect can NOTIFY: nothing that they say stops the listener or deletes what it
//! should not.

use std::time::Duration;

use unstale::scratch::redis::Reply;

use crate::support::wait::{until, until_within};
use crate::support::world::World;

/// What a role without any grant may send, {} being a number that makes it unlike the others.
fn hostile_payloads(watch: i64, rev: i64) -> Vec<String> {
    let mut payloads = Vec::new();
    let text = |length: usize| "x".repeat(length);
    for n in 0.. {
        let some = [
            format!("not json {n}"),
            format!("{n}"),
            format!("[{n}]"),
            format!("\"{n}\""),
            format!("{{{n}"),
            format!("{}{n}", text(7_900)),
            format!(r#"{{"watch":{watch},"rev":{rev},"new":{{"id":"{}{n}"}}}}"#, text(7_900)),
            format!(r#"{{"watch":"{watch}","rev":{rev},"new":{{"id":"1","email":"{n}"}}}}"#),
            format!(r#"{{"watch":{watch},"rev":{rev},"new":{{"id":{n},"email":"1@old"}}}}"#),
            format!(r#"{{"watch":{watch},"rev":{rev},"new":{{"id":"1"}},"more":{n}}}"#),
            format!(r#"{{"watch":{watch},"rev":{rev},"new":{{"id":"1","other":"{n}"}}}}"#),
            format!(r#"{{"watch":{watch},"rev":{rev},"new":{{"id":"1","email":"a","id":"{n}"}}}}"#),
            format!(
                r#"{{"watch":{watch},"watch":{watch},"rev":{rev},"new":{{"id":"1","email":"{n}"}}}}"#
            ),
            format!(r#"{{"watch":{watch},"rev":{rev},"all":"{n}"}}"#),
            format!(r#"{{"watch":{watch},"rev":{rev},"all":false,"log":"{n}"}}"#),
            format!(r#"{{"watch":{watch},"log":"x{n}"}}"#),
            format!(r#"{{"watch":{watch},"log":"-{n}"}}"#),
            format!(r#"{{"watch":{},"rev":1,"all":true}}"#, 1_000_000 + n),
            format!(r#"{{"watch":{},"rev":1,"new":{{"id":"1","email":"1@old"}}}}"#, -1 - n),
            format!(r#"{{"watch":{},"log":"1"}}"#, 1_000_000 + n),
            format!(r#"{{"heartbeat":"{n}"}}"#),
            format!(r#"{{"heartbeat":-{n}1}}"#),
            format!(r#"{{"heartbeat":{n}.5}}"#),
            format!(r#"{{"watches":false,"heartbeat":{n}}}"#),
            format!("{}{n}", "[".repeat(3_000)),
            format!("{}{n}", r#"{"new":"#.repeat(1_000)),
            format!(
                r#"{{"watch":{watch},"rev":{rev},"new":{{"id":{}{n}{},"email":"1"}}}}"#,
                "[".repeat(100),
                "]".repeat(100)
            ),
            format!("\u{1f4a3}\u{202e}\r\n\u{1}{n}"),
            format!(r#"{{"watch":{watch},"rev":{rev},"new":{{"id":"\ud800{n}","email":"1"}}}}"#),
        ];
        payloads.extend(some);
        if payloads.len() >= 1_000 {
            return payloads;
        }
    }
    payloads
}

/// Well-formed, and yet to no effect: heartbeats of others, a bell for nothing, watches that have
/// not changed.
fn forged_payloads() -> Vec<String> {
    let of = |n: u64| {
        [
            format!(r#"{{"heartbeat":{}}}"#, u64::MAX - n),
            format!(r#"{{"heartbeat":{n}}}"#),
            format!(r#"{{"bell":true{}}}"#, " ".repeat(usize::try_from(n).unwrap_or(0))),
            format!(r#"{{"watches":true{}}}"#, " ".repeat(usize::try_from(n).unwrap_or(0))),
        ]
    };
    (0..100).flat_map(of).collect()
}

#[tokio::test]
async fn whoever_notifies_without_any_grant_deletes_nothing_and_stops_nothing() {
    let mut world = World::new().await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    let gaps = daemon.gaps();
    let (watch, rev) = (
        world.number("select id::bigint from unstale.watch").await,
        world.number("select rev::bigint from unstale.watch").await,
    );
    world.fill_users();
    world.fill(["user:*", "user:x", "user:?"]);

    let role = format!("stranger_{}", world.database());
    world.execute(&format!("create role {role}")).await;
    let mut stranger = world.sql.acquire().await.expect("a connection");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("set role {role}")))
        .execute(&mut *stranger)
        .await
        .expect("a role");
    sqlx::raw_sql("select count(*) from unstale.watch")
        .execute(&mut *stranger)
        .await
        .expect_err("it has no grant");
    let hostile = hostile_payloads(watch, rev);
    for payload in hostile.iter().chain(&forged_payloads()) {
        let sent = sqlx::query("select pg_notify(unstale.channel(), $1)")
            .bind(payload)
            .execute(&world.sql)
            .await;
        sent.unwrap_or_else(|error| panic!("{payload}: {error}"));
    }
    #[expect(clippy::cast_precision_loss, reason = "a thousand")]
    let expected = hostile.len() as f64;
    until("each is counted", async || {
        daemon.metric("unstale_payloads_skipped_total", &[]) >= expected
    })
    .await;
    daemon.settles().await;
    daemon.ready().await;
    assert_eq!(
        daemon.metric("unstale_payloads_skipped_total", &[]),
        expected,
        "one that is well-formed was counted, too"
    );
    assert_eq!(daemon.gaps(), gaps, "it lost its session");
    assert_eq!(world.left(World::STALE), World::STALE);
    assert_eq!(world.left(World::NEIGHBOURS), World::NEIGHBOURS);
    assert_eq!(world.left(["user:*", "user:x", "user:?"]), ["user:*", "user:x", "user:?"]);
    let long: Vec<String> =
        daemon.lines().into_iter().filter(|line| line.contains("xxxxxxxx")).collect();
    assert!(long.is_empty(), "a payload was logged: {long:?}");

    world.change_users().await;
    world.users_are_fresh(&daemon).await;
    world.execute(&format!("drop role {role}")).await;
}

/// `count` messages of one transaction, no two alike, because PostgreSQL folds those that are.
async fn volley(world: &World, head: &str, tail: &str, count: u32) {
    let payload = format!("'{head}' || repeat(' ', n % 400) || '{tail}' || repeat(' ', n / 400)");
    world.execute(&format!("select count(pg_notify(unstale.channel(), {payload})) from generate_series(1, {count}) n")).await;
}

#[tokio::test]
async fn a_hundred_thousand_messages_of_one_transaction_hold_up_no_change_and_it_stays_ready() {
    let mut world = World::new().await;
    world.users(10).await;
    let mut daemon =
        world.daemon().in_one_session().with("UNSTALE_HEARTBEAT__INTERVAL", "5s").start();
    daemon.ready().await;
    let watch = world.number("select id::bigint from unstale.watch").await;
    for (head, tail) in [
        (r#"{"watches":"#, "true}"),
        (r#"{"bell":"#, "true}"),
        (&format!(r#"{{"watch":{watch},"rev":9,"all":"#), "true}"),
    ] {
        world.fill(["user:1", "email:1@old"]);
        volley(&world, head, tail, 100_000).await;
        world.execute("update users set name = name || 'x' where id = 1").await;
        let gone = async || world.left(["user:1", "email:1@old"]).is_empty();
        until_within("the keys of the real change are gone", Duration::from_secs(10), gone).await;
        assert!(daemon.is_ready(), "{head}: {}", daemon.not_ready().await);
    }
    let Reply::Value(Some(stats)) = world.cache.ask(&["info", "commandstats"]).expect("it answers")
    else {
        panic!("no INFO")
    };
    let stats = String::from_utf8(stats).expect("a text");
    let calls = stats
        .split("cmdstat_scan:calls=")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .and_then(|calls| calls.parse::<u32>().ok());
    assert!(
        calls.is_some_and(|calls| calls < 1_500),
        "a hundred thousand messages made {calls:?} steps of SCAN"
    );
}

#[tokio::test]
async fn a_forged_change_of_a_watch_deletes_the_literal_key_alone() {
    let mut world = World::new().await;
    world.users(10).await;
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    let (watch, rev) = (
        world.number("select id::bigint from unstale.watch").await,
        world.number("select rev::bigint from unstale.watch").await,
    );
    world.fill_users();
    let values = ["*", "?", "[0-9]", "{id}", "1\r\nDEL user:7\r\n", "\\*", "1 user:7"];
    for value in values {
        world.fill([format!("user:{value}")]);
        let payload = format!(
            r#"{{"watch":{watch},"rev":{rev},"new":{{"id":{},"email":null}}}}"#,
            serde_json::Value::from(value)
        );
        sqlx::query("select pg_notify(unstale.channel(), $1)")
            .bind(payload)
            .execute(&world.sql)
            .await
            .expect("it is sent");
    }
    world.gone(values.map(|value| format!("user:{value}"))).await;
    daemon.settles().await;
    assert_eq!(world.left(World::STALE), World::STALE);
    assert_eq!(world.left(World::NEIGHBOURS), World::NEIGHBOURS);
}

#[tokio::test]
async fn values_that_look_like_globs_commands_or_templates_delete_exactly_their_own_keys() {
    let values = [
        "*",
        "**",
        "?",
        "[a-z]",
        "[^a]",
        r"\",
        r"\\*",
        "'",
        "''",
        "\"",
        "$1",
        "{id}",
        "{{",
        "}}",
        "a b",
        " ",
        "",
        "\r\n",
        "x\r\nDEL tag:y\r\n",
        "\t\u{1}",
        "\u{e4}\u{20ac}\u{1f600}",
        "e\u{301}",
        "%",
        "null",
        "\\u0000",
        "a:b",
        "\u{7f}",
        "',unstale.unwatch('tags'),'",
    ];
    let mut world = World::new().await;
    world.execute("create table tags (name text, n int, updated_at timestamptz not null default clock_timestamp())").await;
    world.execute("select unstale.watch('tags', array['tag:{name}', '{{{name}}}:tag'])").await;
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    let neighbours = ["tag:y", "tag:abc", "tag:z", "{z}:tag", "tag:\\", "tag", "y"];
    let keys = |value: &str| [format!("tag:{value}"), format!("{{{value}}}:tag")];
    // One at a time, with the keys of all others there.
    for (n, value) in values.iter().enumerate() {
        world.fill(values.iter().flat_map(|value| keys(value)));
        world.fill(neighbours);
        let insert = sqlx::query("insert into tags (name, n) values ($1, $2)")
            .bind(*value)
            .bind(i32::try_from(n).unwrap_or(0));
        insert.execute(&world.sql).await.expect("it is inserted");
        world.gone(keys(value)).await;
        daemon.settles().await;
        let others = || {
            values
                .iter()
                .filter(|other| *other != value)
                .flat_map(|other| keys(other))
                .filter(|key| !keys(value).contains(key))
        };
        assert_eq!(world.count(others()), others().count() as u64, "{value:?} deleted another's");
        let neighbours: Vec<&str> = neighbours
            .into_iter()
            .filter(|key| !keys(value).iter().any(|own| own == key))
            .collect();
        assert_eq!(world.left(neighbours.clone()), neighbours, "{value:?}");
    }
    // All at once, through a sweep and the log: the listener is killed.
    daemon.kill9();
    world.fill(values.iter().flat_map(|value| keys(value)));
    world.fill(["tag:y", "tag:abc"]);
    world.execute("update tags set n = -n, updated_at = clock_timestamp() where n % 2 = 0; delete from tags where n % 2 = 1").await;
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    assert_eq!(world.count(values.iter().flat_map(|value| keys(value))), 0);
    assert_eq!(world.left(["tag:y", "tag:abc"]), ["tag:y", "tag:abc"]);
}
