//! A primary behind Sentinel: fail-overs, a primary that comes back, sentinels that are down or
//! wrong, and what a promoted replica lacks.

use std::time::Duration;

use unstale::scratch::redis::{Guarded, Options};

use crate::support::daemon::{Daemon, Settings};
use crate::support::liar::Liar;
use crate::support::wait::{until, until_within};
use crate::support::world::World;

/// How long a fail-over may take until the deletions go to the new primary.
const FAIL_OVER: Duration = Duration::from_secs(20);

const ROWS: u32 = 30;

async fn guarded(settings: impl FnOnce(Settings) -> Settings) -> (World, Guarded, Daemon) {
    let world = World::new().await;
    world.users(ROWS).await;
    let guarded = Guarded::start(500, &Options::default()).expect("sentinels");
    let mut daemon =
        settings(Daemon::settings(&world.database_url(), &guarded.url()).impatient()).start();
    daemon.ready().await;
    (world, guarded, daemon)
}

fn keys(rows: impl Iterator<Item = u32>) -> Vec<String> {
    rows.map(|n| format!("user:{n}")).collect()
}

fn fill(guarded: &Guarded, server: usize) {
    guarded.servers[server]
        .client()
        .and_then(|mut client| client.put_all(keys(1..=ROWS), "cached"))
        .expect("it is up");
}

fn count(guarded: &Guarded, server: usize, keys: Vec<String>) -> u64 {
    guarded.servers[server].client().and_then(|mut client| client.count_of(keys)).expect("it is up")
}

async fn change(world: &World, condition: &str) {
    world
        .execute(&format!(
            "update users set name = name || 'x', updated_at = clock_timestamp() where {condition}"
        ))
        .await;
}

/// Cached again, changed, and gone.
async fn all_is_well(world: &World, guarded: &Guarded, daemon: &mut Daemon) {
    daemon.ready().await;
    let primary = guarded.primary().expect("a primary");
    fill(guarded, primary);
    change(world, "true").await;
    until("the keys are gone", async || count(guarded, primary, keys(1..=ROWS)) == 0).await;
    daemon.ready().await;
}

#[tokio::test]
async fn a_fail_over_is_followed_within_seconds_and_the_old_primary_comes_back() {
    let (world, mut guarded, mut daemon) = guarded(|settings| settings).await;
    all_is_well(&world, &guarded, &mut daemon).await;
    fill(&guarded, 0);
    until("the replica is in step", async || count(&guarded, 1, keys(1..=ROWS)) == u64::from(ROWS))
        .await;
    guarded.servers[0].kill9();
    change(&world, "true").await;
    until_within("the keys are gone at the new primary", FAIL_OVER, async || {
        count(&guarded, 1, keys(1..=ROWS)) == 0
    })
    .await;
    // As a primary, until a sentinel sees it.
    guarded.servers[0].start_again().expect("it starts");
    all_is_well(&world, &guarded, &mut daemon).await;
    assert_eq!(guarded.primary().expect("a primary"), 1);
}

#[tokio::test]
async fn a_primary_that_hangs_is_left_and_nothing_is_deleted_on_a_replica() {
    let (world, mut guarded, mut daemon) = guarded(|settings| settings).await;
    fill(&guarded, 0);
    guarded.servers[0].pause();
    change(&world, "true").await;
    until_within("the replica is the primary", FAIL_OVER, async || {
        guarded.primary().is_ok_and(|primary| primary == 1)
    })
    .await;
    all_is_well(&world, &guarded, &mut daemon).await;
    guarded.servers[0].resume();
    all_is_well(&world, &guarded, &mut daemon).await;
}

#[tokio::test]
async fn a_fail_over_that_somebody_asked_for_is_followed_though_the_old_primary_is_well() {
    let (world, guarded, mut daemon) = guarded(|settings| settings).await;
    for _ in 0..2 {
        guarded.fail_over().expect("another primary");
        all_is_well(&world, &guarded, &mut daemon).await;
    }
}

#[tokio::test]
async fn a_primary_that_the_sentinels_have_left_is_left_though_it_answers() {
    let (world, mut guarded, mut daemon) = guarded(|settings| settings).await;
    // As if it could not be reached by them: they forget to tell it, because it does not listen,
    // and it comes back as a primary.
    guarded.servers[0].pause();
    until_within("the replica is the primary", FAIL_OVER, async || {
        guarded.primary().is_ok_and(|primary| primary == 1)
    })
    .await;
    for sentinel in &mut guarded.sentinels {
        sentinel.pause();
    }
    guarded.servers[0].resume();
    for sentinel in &mut guarded.sentinels {
        sentinel.resume();
    }
    all_is_well(&world, &guarded, &mut daemon).await;
}

#[tokio::test]
async fn a_sentinel_that_is_down_or_wrong_is_outvoted() {
    let world = World::new().await;
    world.users(ROWS).await;
    let mut guarded = Guarded::start(500, &Options::default()).expect("sentinels");
    let replica = guarded.servers[1].port().expect("by TCP").to_string();
    let port = replica.clone();
    let liar = Liar::new(move |command| {
        if command.starts_with("SENTINEL") {
            let words = ["ip", "127.0.0.1", "port", &port, "config-epoch", "99"];
            let bulk = |word: &str| format!("${}\r\n{word}\r\n", word.len());
            format!("*{}\r\n{}", words.len(), words.map(bulk).concat()).into_bytes()
        } else {
            b"+PONG\r\n".to_vec()
        }
    })
    .await;
    let dead = unstale::scratch::free_port().expect("a free port");
    let ports = [dead, liar.port(), guarded.sentinels[0].port().expect("TCP")];
    let mut daemon =
        Daemon::settings(&world.database_url(), &guarded.url_of(&ports)).impatient().start();
    all_is_well(&world, &guarded, &mut daemon).await;
    assert_eq!(guarded.primary().expect("a primary"), 0);
    drop(daemon);
    guarded.sentinels[0].pause();
    let ports: Vec<u16> = guarded
        .sentinels
        .iter()
        .filter_map(unstale::scratch::Redis::port)
        .chain([liar.port()])
        .collect();
    let mut daemon =
        Daemon::settings(&world.database_url(), &guarded.url_of(&ports)).impatient().start();
    all_is_well(&world, &guarded, &mut daemon).await;
}

#[tokio::test]
async fn a_promoted_replica_is_told_exactly_what_it_lacks() {
    let settings =
        |settings: Settings| settings.in_one_session().with("UNSTALE_HEARTBEAT__INTERVAL", "1s");
    let (world, mut guarded, mut daemon) = guarded(settings).await;
    change(&world, "id <= 10").await;
    daemon.settles().await;
    fill(&guarded, 0);
    until("the replica is in step", async || count(&guarded, 1, keys(1..=ROWS)) == u64::from(ROWS))
        .await;
    let mut primary = guarded.servers[0].client().expect("it is up");
    primary.ask(&["wait", "1", "1000"]).expect("it answers");
    guarded.servers[1].pause();
    // Else the socket would keep it for the replica.
    primary.ask(&["client", "kill", "type", "replica"]).expect("it answers");
    change(&world, "id between 11 and 13").await;
    until("they are gone", async || count(&guarded, 0, keys(11..=13)) == 0).await;
    guarded.servers[0].kill9();
    guarded.servers[1].resume();
    until_within("the replica is the primary", FAIL_OVER, async || {
        guarded.primary().is_ok_and(|primary| primary == 1)
    })
    .await;
    daemon.says("has lost its last deletes").await;
    until("what was lost is repeated", async || count(&guarded, 1, keys(11..=13)) == 0).await;
    daemon.ready().await;
    assert_eq!(
        count(&guarded, 1, keys(1..=ROWS)),
        u64::from(ROWS) - 3,
        "more was deleted than had been lost"
    );
}

#[tokio::test]
async fn the_status_page_shows_the_primary_that_the_sentinels_name() {
    let (_world, guarded, daemon) = guarded(|settings| settings).await;
    let primary = format!(
        "127.0.0.1:{}",
        guarded.servers[guarded.primary().expect("a primary")].port().expect("it listens")
    );
    until("it is shown", async || {
        let document = daemon.get("/status.json").expect("it answers").1;
        let redis =
            serde_json::from_str::<serde_json::Value>(&document).expect("JSON")["redis"].clone();
        redis["kind"] == "sentinel"
            && redis["servers"][0]["address"] == primary.as_str()
            && redis["servers"][0]["answers"] == true
    })
    .await;
}
