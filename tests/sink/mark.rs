//! What the mark says after a restart: exactly what was lost is deleted again, and what is not
//! known is not believed.

use super::*;

/// How often a command was called since the last start.
fn calls(world: &mut World, command: &str) -> u32 {
    let redis::Reply::Value(Some(stats)) =
        world.cache.ask(&["info", "commandstats"]).expect("it answers")
    else {
        panic!("no INFO")
    };
    let stats = String::from_utf8(stats).expect("a text");
    let line = stats.split(&format!("cmdstat_{command}:calls=")).nth(1);
    line.and_then(|rest| rest.split(',').next()).map_or(0, |calls| calls.parse().expect("a number"))
}

#[tokio::test]
async fn a_redis_that_comes_back_as_it_was_is_told_exactly_what_it_has_lost() {
    let mut world = World::new().await;
    world.users(20).await;
    let settings =
        world.daemon().impatient().in_one_session().with("UNSTALE_HEARTBEAT__INTERVAL", "1s");
    let mut daemon = settings.start();
    daemon.ready().await;
    world
        .execute("update users set name = 'before', updated_at = clock_timestamp() where id <= 10")
        .await;
    daemon.settles().await;
    // Cached again after its change: whoever replays the window deletes it.
    world.fill((1..=20).map(|n| format!("user:{n}")));
    world.cache.ask(&["save"]).expect("it answers");
    for id in 11..=13 {
        world
            .execute(&format!(
                "update users set name = 'after', updated_at = clock_timestamp() where id = {id}"
            ))
            .await;
        world.gone([format!("user:{id}")]).await;
    }
    daemon.settles().await;
    world.redis.kill9();
    world.redis.start_again().expect("it starts");
    world.cache = world.redis.client().expect("it is up");
    assert_eq!(
        world.left(["user:1", "user:11", "user:12", "user:13", "user:14"]),
        ["user:1", "user:11", "user:12", "user:13", "user:14"]
    );
    daemon.says("has lost its last deletes").await;
    world.gone((11..=13).map(|n| format!("user:{n}"))).await;
    daemon.ready().await;
    daemon.settles().await;
    assert_eq!(
        world.count((1..=20).map(|n| format!("user:{n}"))),
        17,
        "more was deleted than had been lost"
    );
    assert_eq!(calls(&mut world, "scan"), 0);
}

#[tokio::test]
async fn a_mark_that_is_gone_or_of_somebody_else_replays_the_window() {
    let mut world = World::new().await;
    world.users(20).await;
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    for damage in [
        vec!["del", World::MARK],
        vec!["set", World::MARK, "0123456789abcdef:1:99999"],
        vec!["flushall"],
    ] {
        world
            .execute(
                "update users set name = name || 'x', updated_at = clock_timestamp() where id = 1",
            )
            .await;
        daemon.settles().await;
        let gaps = daemon.gaps();
        world.fill(["user:1"]);
        world.cache.ask(&damage).expect("it answers");
        daemon.opens_gap(gaps).await;
        world.gone(["user:1"]).await;
        daemon.ready().await;
    }
}
