//! A Redis that refuses, lacks memory, loads its keys, or means harm: named for what it is, and
//! nothing is lost.

use super::*;

#[tokio::test]
async fn a_redis_that_refuses_writes_is_named_for_it_and_ready_waits_for_all_that_was_received() {
    let (mut world, _link, mut daemon) = linked().await;
    let config = |world: &mut World, name: &str, value: &str| {
        drop(world.cache.ask(&["config", "set", name, value]).expect("it answers"))
    };
    config(&mut world, "min-replicas-to-write", "1");
    world.change_users().await;
    not_ready_because(&daemon, "too few replicas are in step: NOREPLICAS").await;
    config(&mut world, "min-replicas-to-write", "0");
    daemon.ready().await;
    assert!(world.left(World::STALE).is_empty(), "it was ready before all was deleted");
    world.users_are_fresh(&daemon).await;
}

#[tokio::test]
async fn a_redis_whose_snapshot_failed_is_named_for_it_and_ready_waits_for_all_that_was_received() {
    let (mut world, _link, mut daemon) = linked().await;
    // A snapshot cannot take the place of a directory.
    let in_the_way = world.redis.directory().join("dump.rdb");
    let _ = std::fs::remove_file(&in_the_way);
    std::fs::create_dir(&in_the_way).expect("a directory");
    world.cache.ask(&["config", "set", "save", "3600 1000000"]).expect("it answers");
    world.cache.ask(&["bgsave"]).expect("it answers");
    until("the snapshot failed", async || matches!(world.cache.put("other", "x"), Err(error) if error.to_string().contains("MISCONF")))
        .await;
    world.change_users().await;
    not_ready_because(&daemon, "refuses writes because its last snapshot failed").await;
    std::fs::remove_dir(&in_the_way).expect("it is empty");
    world.cache.ask(&["bgsave"]).expect("it answers");
    daemon.ready().await;
    assert!(world.left(World::STALE).is_empty(), "it was ready before all was deleted");
    world.users_are_fresh(&daemon).await;
}

#[tokio::test]
async fn a_user_that_may_not_touch_one_of_the_keys_is_named_for_it_and_deletes_the_others() {
    let mut world = World::new().await;
    world.users(10).await;
    let rule = |keys: &'static str| {
        ["acl", "setuser", "narrow", "on", ">secret", "~user:*", "~unstale:*", keys, "+@all"]
    };
    world.cache.ask(&rule("~session:*")).expect("it answers");
    let url = format!("redis://narrow:secret@127.0.0.1:{}", world.redis.port().expect("by TCP"));
    let mut daemon = daemon_at(&world, &url);
    daemon.ready().await;
    world.fill_users();
    world.change_users().await;
    not_ready_because(&daemon, "touch a key").await;
    world.gone(World::STALE.into_iter().filter(|key| key.starts_with("user:"))).await;
    assert!(world.left(World::STALE).iter().all(|key| key.starts_with("email:")));
    world.cache.ask(&rule("~email:*")).expect("it answers");
    world.users_are_fresh(&daemon).await;
    daemon.ready().await;
}

#[tokio::test]
async fn a_user_that_may_only_delete_scan_ping_and_touch_its_own_keys_is_enough() {
    let mut world = World::new().await;
    world.users(10).await;
    let rule = [
        "acl",
        "setuser",
        "modest",
        "on",
        ">secret",
        "~user:*",
        "~email:*",
        "~unstale:*",
        "+del",
        "+scan",
        "+ping",
        "+get",
        "+set",
    ];
    world.cache.ask(&rule).expect("it answers");
    let url = format!("redis://modest:secret@127.0.0.1:{}", world.redis.port().expect("by TCP"));
    let mut daemon = daemon_at(&world, &url);
    daemon.ready().await;
    world.fill_users();
    world.change_users().await;
    world.users_are_fresh(&daemon).await;
    assert_eq!(world.left([World::MARK]), [World::MARK]);
    world.execute("truncate users").await;
    world.gone(["user:7", "email:7@old"]).await;
}

#[tokio::test]
async fn a_redis_that_means_harm_is_named_and_the_listener_lives() {
    let world = World::new().await;
    world.users(10).await;
    let liar = Liar::new(honest).await;
    let mut daemon = daemon_at(&world, &liar.url());
    daemon.ready().await;
    type Harm = fn(&str) -> Vec<u8>;
    let harms: [(&str, Harm); 6] = [
        ("nested more than", |_| "*1\r\n".repeat(1_000_000).into()),
        ("more than 16 MB", |_| "$2000000000\r\n".into()),
        ("more than 200000 parts", |_| "*2000000000\r\n".into()),
        ("an error has more than", |_| format!("-ERR \u{1b}[2J{}\r\n", "x".repeat(100_000)).into()),
        ("not in Redis' protocol", |_| "HTTP/1.1 400 Bad Request\r\n\r\n".into()),
        (r"Redis refuses: ERR \u{1b}[2J", |command| {
            if command.starts_with("UNLINK") {
                b"-ERR \x1b[2J\r\n".to_vec()
            } else {
                honest(command)
            }
        }),
    ];
    for (expected, harm) in harms {
        liar.answers(harm);
        world.execute("update users set name = name || 'x' where id = 1").await;
        let reason = not_ready_because(&daemon, expected).await;
        assert!(reason.len() < 500 && !reason.contains('\u{1b}'), "{reason}");
        liar.answers(honest);
        daemon.ready().await;
    }
    // A SCAN that never ends, in circles.
    liar.answers(|command| {
        if command.starts_with("SCAN") {
            b"*2\r\n$1\r\n7\r\n*0\r\n".to_vec()
        } else {
            honest(command)
        }
    });
    world.execute("truncate users").await;
    not_ready_because(&daemon, "goes round in circles").await;
    liar.answers(honest);
    daemon.ready().await;
    let peak = daemon.peak_rss_bytes();
    assert!(peak < 2 * MEMORY_BYTES, "{} MB", peak >> 20);
}

/// Or is another one each time.
#[tokio::test]
async fn a_redis_that_takes_marks_and_keeps_none_is_named_once_and_not_swept_for_without_end() {
    let world = World::new().await;
    world.users(10).await;
    let forgets = |command: &str| {
        if command.starts_with("GET") || command.starts_with("SET") {
            b"$-1\r\n".to_vec()
        } else {
            honest(command)
        }
    };
    let liar = Liar::new(forgets).await;
    let mut daemon = daemon_at(&world, &liar.url());
    daemon.says("another Redis answers").await;
    not_ready_because(&daemon, "catching up after a gap").await;
    liar.answers(honest);
    daemon.ready().await;
    let said = daemon.lines().iter().filter(|line| line.contains("another Redis answers")).count();
    assert!(said <= 3, "it said so {said} times");
}

#[tokio::test]
async fn a_redis_without_memory_still_deletes() {
    let (mut world, _link, mut daemon) = linked().await;
    world.cache.ask(&["config", "set", "maxmemory-policy", "noeviction"]).expect("it answers");
    world.cache.ask(&["config", "set", "maxmemory", "1"]).expect("it answers");
    world.cache.put("more", "x").expect_err("it has no memory left");
    world.change_users().await;
    world.users_are_fresh(&daemon).await;
    daemon.ready().await;
}

#[tokio::test]
async fn a_redis_that_loads_its_keys_is_waited_for() {
    let mut world = World::new().await;
    world.users(10).await;
    // 0.3 ms a key; it looks up from its loading, to say so, after each thousand.
    let slow = ["--key-load-delay", "300"].map(str::to_owned).to_vec();
    world.redis = Redis::start(&redis::Options {
        tcp: true,
        append_only: true,
        arguments: slow,
        ..redis::Options::default()
    })
    .expect("Redis starts");
    world.cache = world.redis.client().expect("it is up");
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    world.fill((0..8_000).map(|n| format!("other:{n}")));
    world.fill_users();
    world.redis.kill9();
    world.change_users().await;
    world.redis.start_again().expect("it starts");
    world.cache = world.redis.client().expect("it is up");
    daemon.ready().await;
    world.users_are_fresh(&daemon).await;
    assert!(
        daemon.notifications().iter().any(|line| line.contains("LOADING")),
        "{:?}",
        daemon.notifications()
    );
}
