//! A cluster of three primaries: each key where it lives, slots that move, primaries that hang or
//! are gone, and what a promoted replica lacks.

use std::time::Duration;

use unstale::scratch::redis::{Client, Cluster, Options, Reply};

use crate::support::daemon::{Daemon, Settings};
use crate::support::wait::{until, until_within};
use crate::support::world::World;

/// How long a fail-over may take until the deletions go to the new primary.
const FAIL_OVER: Duration = Duration::from_secs(15);

const ROWS: u32 = 60;

/// A world, a cluster, and a daemon between them that is ready.
async fn clustered(
    replicas_each: usize,
    settings: impl FnOnce(Settings) -> Settings,
) -> (World, Cluster, Daemon) {
    let world = World::new().await;
    world.users(ROWS).await;
    let cluster = Cluster::start(3, replicas_each, 500, &Options::default()).expect("a cluster");
    let mut daemon =
        settings(Daemon::settings(&world.database_url(), &cluster.url()).impatient()).start();
    daemon.ready().await;
    (world, cluster, daemon)
}

fn keys() -> Vec<String> {
    (1..=ROWS).map(|n| format!("user:{n}")).collect()
}

/// Those of the keys that are still cached.
fn left(cluster: &Cluster, keys: &[String]) -> Vec<String> {
    let is_there = |key: &&String| {
        cluster.client_for(key).and_then(|mut client| client.has(key)).expect("its primary is up")
    };
    keys.iter().filter(is_there).cloned().collect()
}

async fn change(world: &World, condition: &str) {
    world
        .execute(&format!(
            "update users set name = name || 'x', updated_at = clock_timestamp() where {condition}"
        ))
        .await;
}

/// The rows whose keys live on a node.
fn rows_at(cluster: &Cluster, node: usize) -> Vec<u32> {
    (1..=ROWS)
        .filter(|n| cluster.primary_of(&format!("user:{n}")).expect("it has a primary") == node)
        .collect()
}

fn all_of(rows: &[u32]) -> Vec<String> {
    rows.iter().map(|n| format!("user:{n}")).collect()
}

/// Cached again, changed, and gone.
async fn all_is_well(world: &World, cluster: &Cluster, daemon: &mut Daemon) {
    daemon.ready().await;
    cluster.put_all(keys(), "cached").expect("all primaries are up");
    change(world, "true").await;
    until("the keys are gone", async || left(cluster, &keys()).is_empty()).await;
    daemon.ready().await;
}

/// From here on the replica lacks what its primary does.
fn cut_off(cluster: &mut Cluster, primary: usize, replica: usize) {
    cluster.nodes[replica].pause();
    // Else the socket would keep it for the replica.
    cluster.ask(primary, &["client", "kill", "type", "replica"]).expect("the primary is up");
}

/// How often a node was asked for this since it started.
fn calls(cluster: &Cluster, node: usize, command: &str) -> u64 {
    let stats = cluster.text(node, &["info", "commandstats"]).expect("it is up");
    let line = stats.split(&format!("cmdstat_{command}:calls=")).nth(1);
    line.and_then(|rest| rest.split(',').next()).map_or(0, |calls| calls.parse().expect("a number"))
}

#[tokio::test]
async fn keys_and_patterns_are_deleted_wherever_they_live() {
    let (world, cluster, mut daemon) = clustered(0, |settings| settings).await;
    all_is_well(&world, &cluster, &mut daemon).await;
    cluster.put_all(keys(), "cached").expect("it is up");
    let others: Vec<String> = (1..=9).map(|n| format!("other:{n}")).collect();
    cluster.put_all(others.clone(), "cached").expect("it is up");
    world.execute("truncate users").await;
    until("the keys are gone", async || left(&cluster, &keys()).is_empty()).await;
    daemon.settles().await;
    assert_eq!(left(&cluster, &others), others);
    for node in 0..3 {
        let marks = cluster.ask(node, &["keys", "unstale:mark:test:{*}"]).expect("it is up");
        assert!(
            matches!(&marks, Reply::List(marks) if marks.len() == 1),
            "each primary has a mark of its own: {marks:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_on_its_way_to_another_primary_is_deleted_before_during_and_after() {
    let (world, cluster, mut daemon) = clustered(0, |settings| settings.in_one_session()).await;
    let from = cluster.primary_of("user:1").expect("a primary");
    let to = (from + 1) % 3;
    let slot = cluster.nodes[from]
        .client()
        .expect("up")
        .count(&["cluster", "keyslot", "user:1"])
        .expect("a slot");
    let slot = u16::try_from(slot).expect("a slot");
    let there = |client: &mut Client| {
        client.ask(&["asking"]).expect("it answers");
        client.has("user:1").expect("it answers")
    };
    let (runtime, world_there) = (tokio::runtime::Handle::current(), &world);
    let during = || {
        let port = cluster.port(to).to_string();
        let mut target = cluster.nodes[to].client().expect("up");
        let on = |future: std::pin::Pin<Box<dyn Future<Output = ()> + '_>>| {
            tokio::task::block_in_place(|| runtime.block_on(future))
        };
        // The slot is on its way, the key not yet.
        on(Box::pin(change(world_there, "id = 1")));
        let mut source = cluster.nodes[from].client().expect("up");
        on(Box::pin(async move {
            until("it is gone where it was", async || {
                source.ask(&["exists", "user:1"]).expect("it answers") != Reply::Integer(1)
            })
            .await;
        }));
        // Gone ahead: its primary says ASK.
        target.ask(&["asking"]).expect("it answers");
        target.put("user:1", "cached").expect("it takes it in");
        assert!(there(&mut target), "{port}");
        on(Box::pin(change(world_there, "id = 1")));
        on(Box::pin(async move {
            until("it is gone where it went", async || !there(&mut target)).await
        }));
    };
    cluster.put_all(["user:1".to_owned()], "cached").expect("it is up");
    cluster.move_slot(slot, from, to, during).expect("it is moved");
    assert_eq!(cluster.primary_of("user:1").expect("a primary"), to);
    all_is_well(&world, &cluster, &mut daemon).await;
}

#[tokio::test]
async fn a_primary_that_fails_over_is_followed_and_nothing_is_lost() {
    let (world, mut cluster, mut daemon) = clustered(1, |settings| settings).await;
    let victim = cluster.primary_of("user:1").expect("a primary");
    let here = rows_at(&cluster, victim);
    cluster.put_all(keys(), "cached").expect("it is up");
    cluster.nodes[victim].kill9();
    change(&world, "true").await;
    until_within("the replica is the primary", FAIL_OVER, async || {
        cluster.primary_of("user:1").is_ok_and(|node| node != victim)
    })
    .await;
    until_within("the keys are gone", FAIL_OVER, async || {
        left(&cluster, &all_of(&here)).is_empty()
    })
    .await;
    daemon.ready().await;
    assert!(left(&cluster, &keys()).is_empty());
    // It comes back, for a moment as a primary, as it was.
    cluster.nodes[victim].start_again().expect("it starts");
    all_is_well(&world, &cluster, &mut daemon).await;
}

#[tokio::test]
async fn a_primary_that_hangs_holds_up_only_what_lives_there_and_ready_says_so() {
    let (world, mut cluster, mut daemon) = clustered(0, |settings| settings.in_one_session()).await;
    let victim = cluster.primary_of("user:1").expect("a primary");
    let here = rows_at(&cluster, victim);
    let elsewhere: Vec<u32> = (1..=ROWS).filter(|n| !here.contains(n)).collect();
    cluster.put_all(keys(), "cached").expect("it is up");
    cluster.nodes[victim].pause();
    let name = format!("Redis: 127.0.0.1:{}", cluster.port(victim));
    until("it is not ready for its sake", async || daemon.not_ready().await.contains(&name)).await;
    // Many commands, each with something for the one that hangs.
    for _ in 0..40 {
        change(&world, "true").await;
    }
    until("what lives elsewhere is gone", async || {
        let mut clients: Vec<_> = (0..3)
            .filter(|&node| node != victim)
            .map(|node| cluster.nodes[node].client().expect("up"))
            .collect();
        let is_there = |n: &u32| {
            clients.iter_mut().any(|client| {
                client.ask(&["exists", &format!("user:{n}")]).ok() == Some(Reply::Integer(1))
            })
        };
        !elsewhere.iter().any(is_there)
    })
    .await;
    daemon.not_ready().await;
    cluster.nodes[victim].resume();
    until("what lives there is gone", async || left(&cluster, &keys()).is_empty()).await;
    all_is_well(&world, &cluster, &mut daemon).await;
}

#[tokio::test]
async fn a_primary_that_is_gone_for_a_while_loses_nothing() {
    let (world, mut cluster, mut daemon) = clustered(0, |settings| settings.in_one_session()).await;
    let victim = cluster.primary_of("user:1").expect("a primary");
    cluster.nodes[victim].kill9();
    daemon.not_ready().await;
    change(&world, "true").await;
    world.execute("truncate users").await;
    cluster.nodes[victim].start_again().expect("it starts");
    cluster
        .put_all(
            ["user:1".to_owned(), "user:2".to_owned(), "user:3".to_owned()],
            "cached before it was reached",
        )
        .ok();
    daemon.ready().await;
    world.execute("insert into users select n, n || '@new', 'eve', clock_timestamp() from generate_series(1, 60) n").await;
    all_is_well(&world, &cluster, &mut daemon).await;
}

#[tokio::test]
async fn a_promoted_replica_is_told_exactly_what_it_lacks_and_the_other_primaries_nothing() {
    let (world, mut cluster, mut daemon) = clustered(1, |settings| {
        settings.in_one_session().with("UNSTALE_HEARTBEAT__INTERVAL", "1s")
    })
    .await;
    let victim = cluster.primary_of("user:1").expect("a primary");
    let heir = victim + 3;
    let here = rows_at(&cluster, victim);
    let (kept, lost) = here.split_at(here.len() / 2);
    change(&world, &format!("id = any(array{kept:?})")).await;
    daemon.settles().await;
    // Cached again after the change: whoever repeats more than was lost deletes it.
    cluster.put_all(keys(), "cached").expect("it is up");
    cluster.ask(victim, &["wait", "1", "1000"]).expect("the replica is in step");
    cut_off(&mut cluster, victim, heir);
    change(&world, &format!("id = any(array{lost:?})")).await;
    until("they are gone", async || left(&cluster, &all_of(lost)).is_empty()).await;
    daemon.settles().await;
    let others: Vec<usize> = (0..3).filter(|&node| node != victim).collect();
    let scans =
        |cluster: &Cluster| others.iter().map(|&node| calls(cluster, node, "scan")).sum::<u64>();
    let before = scans(&cluster);
    cluster.nodes[victim].kill9();
    cluster.nodes[heir].resume();
    until_within("the replica is the primary", FAIL_OVER, async || {
        cluster.primary_of("user:1").is_ok_and(|node| node == heir)
    })
    .await;
    daemon.says("has lost its last deletes").await;
    until("what was lost is repeated", async || left(&cluster, &all_of(lost)).is_empty()).await;
    daemon.ready().await;
    let still: Vec<String> =
        (1..=ROWS).filter(|n| !lost.contains(n)).map(|n| format!("user:{n}")).collect();
    assert_eq!(left(&cluster, &still), still, "more was deleted than had been lost");
    assert_eq!(scans(&cluster), before);
}

#[tokio::test]
async fn a_key_that_the_user_may_not_touch_holds_up_no_other() {
    let (world, cluster, daemon) = clustered(0, |settings| settings).await;
    drop(daemon);
    let allow = |keys: &str| {
        for node in 0..3 {
            cluster
                .ask(
                    node,
                    &[
                        "acl",
                        "setuser",
                        "narrow",
                        "on",
                        ">secret",
                        "~user:*",
                        "~unstale:*",
                        keys,
                        "+@all",
                    ],
                )
                .expect("it answers");
        }
    };
    allow("~session:*");
    let url = cluster.url().replace("://", "://narrow:secret@");
    let mut daemon = Daemon::settings(&world.database_url(), &url).impatient().start();
    daemon.ready().await;
    // In one slot, so that one command names what may be deleted and what may not.
    world.execute("select unstale.watch('users', array['user:{{{id}}}', 'email:{{{id}}}'])").await;
    let of = |kind: &str| (1..=ROWS).map(|n| format!("{kind}:{{{n}}}")).collect::<Vec<_>>();
    cluster.put_all(of("user").into_iter().chain(of("email")), "cached").expect("it is up");
    change(&world, "true").await;
    until("what may be deleted is", async || left(&cluster, &of("user")).is_empty()).await;
    until("the reason is said", async || daemon.not_ready().await.contains("touch a key")).await;
    assert_eq!(left(&cluster, &of("email")), of("email"));
    allow("~email:*");
    daemon.ready().await;
    assert!(left(&cluster, &of("email")).is_empty());
}

/// One of them that hangs is named, and the others are not.
#[tokio::test]
async fn the_status_page_shows_each_primary_with_its_state() {
    let (world, mut cluster, daemon) = clustered(0, Settings::in_one_session).await;
    let redis = || {
        let document = daemon.get("/status.json").expect("it answers").1;
        serde_json::from_str::<serde_json::Value>(&document).expect("JSON")["redis"].clone()
    };
    let answering = |redis: &serde_json::Value| {
        let servers = redis["servers"].as_array().expect("a list").iter();
        servers.filter(|server| server["answers"] == true).count()
    };
    until("three answer", async || answering(&redis()) == 3).await;
    assert_eq!(redis()["kind"], "cluster");
    let hung = format!("127.0.0.1:{}", cluster.port(1));
    cluster.nodes[1].pause();
    change(&world, "true").await;
    let shown =
        until("one does not", async || Some(redis()).filter(|redis| answering(redis) < 3)).await;
    let server = shown["servers"]
        .as_array()
        .and_then(|servers| servers.iter().find(|server| server["address"] == hung.as_str()));
    let server = server.unwrap_or_else(|| panic!("{hung} is not in {shown:#}"));
    assert!(server["answers"] == false && server["why_not"].is_string(), "{shown:#}");
    cluster.nodes[1].resume();
    until("all answer again", async || answering(&redis()) == 3).await;
}
