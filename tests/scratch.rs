//! The throw-away servers and the failing link themselves: what the other tests take for granted.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use unstale::scratch::{Guard, Process, Redis, redis};

use crate::support::link::Link;
use crate::support::servers::{own_lasting_redis, own_postgres, own_redis};
use crate::support::wait::until;
use crate::support::world::World;

/// Set for the process that is to be killed with its servers running.
const VICTIM: &str = "UNSTALE_TEST_VICTIM";

fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie that nobody reaps, in a container without an init, does not run.
    stat.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
}

/// The System V segment that a postmaster names on line 7 of its file. It outlives a SIGKILL.
fn shared_memory_is_there(segment: &str) -> bool {
    let all = std::fs::read_to_string("/proc/sysvipc/shm").expect("Linux");
    all.lines().any(|line| line.split_whitespace().nth(1) == Some(segment))
}

#[test]
fn a_dropped_server_leaves_neither_process_nor_directory() {
    let (postgres, redis) = (own_postgres(), own_redis());
    let directories = [postgres.directory().to_owned(), redis.directory().to_owned()];
    let pids = [postgres.pid(), redis.pid()].map(|pid| pid.expect("it runs"));
    assert!(directories.iter().all(|directory| directory.is_dir()) && pids.into_iter().all(runs));
    drop((postgres, redis));
    assert!(!directories.iter().any(|directory| directory.exists()) && !pids.into_iter().any(runs));
}

#[test]
fn the_directory_is_private() {
    let redis = own_redis();
    let mode = std::fs::metadata(redis.directory()).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

/// Not a test: what `a_killed_owner_leaves_nothing_behind` starts and kills.
#[test]
fn a_victim_waits_to_be_killed() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let (postgres, mut redis) = (own_postgres(), own_redis());
    let pids = [postgres.pid(), redis.pid()].map(|pid| pid.expect("it runs"));
    // The hardest case: one that hears no signal but SIGKILL.
    redis.pause();
    println!();
    println!(
        "victim {} {} {} {}",
        postgres.directory().display(),
        redis.directory().display(),
        pids[0],
        pids[1]
    );
    let _ = std::io::stdin().read(&mut [0]);
}

#[tokio::test]
async fn a_killed_owner_leaves_nothing_behind() {
    let mut victim = Command::new(std::env::current_exe().expect("we run"))
        .args(["--exact", "scratch::a_victim_waits_to_be_killed", "--nocapture"])
        .env(VICTIM, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test binary starts");
    let output = BufReader::new(victim.stdout.take().expect("it is piped"));
    let said = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("victim ").map(str::to_owned));
    let said = said.expect("the victim says what it has started");
    let words: Vec<&str> = said.split(' ').collect();
    let directories: Vec<&Path> = words[..2].iter().map(Path::new).collect();
    let pids: Vec<u32> = words[2..].iter().map(|pid| pid.parse().expect("a number")).collect();
    assert!(
        directories.iter().all(|directory| directory.is_dir()) && pids.iter().all(|&pid| runs(pid)),
        "{said}"
    );
    victim.kill().expect("SIGKILL");
    victim.wait().expect("it is our child");
    until("directories and processes are gone", async || {
        !directories.iter().any(|directory| directory.exists())
            && !pids.iter().any(|&pid| runs(pid))
    })
    .await;
}

#[test]
fn a_guard_leaves_strangers_with_the_same_number_alone() {
    let guard = Guard::new().expect("a directory");
    let mut stranger = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat starts");
    // As if the stranger had got the number of a process of ours that ended: the number is right,
    // the start time wrong.
    let forged = format!("KILL 1\n{} KILL 1\n1 KILL", stranger.id());
    let mut process = Process::start(guard.command(&forged, "true").expect("a pipe to share"))
        .expect("sh starts");
    assert!(process.wait(Duration::from_secs(10)).is_some_and(|status| status.success()));
    let directory = guard.directory().to_owned();
    drop(guard);
    assert!(!directory.exists());
    assert!(stranger.try_wait().expect("it is our child").is_none(), "the stranger was killed");
    drop(stranger.stdin.take());
    stranger.wait().expect("it is our child");
}

#[tokio::test]
async fn postgres_keeps_what_was_committed_over_kill_9_and_its_address() {
    let mut postgres = own_postgres();
    let url = postgres.url("postgres");
    let mut connection = PgConnection::connect(&url).await.expect("it is up");
    sqlx::raw_sql("create table kept (); insert into kept default values")
        .execute(&mut connection)
        .await
        .expect("it works");
    for _ in 0..3 {
        postgres.kill9();
        sqlx::raw_sql("select 1").execute(&mut connection).await.expect_err("the server is gone");
        postgres.start_again().expect("it recovers");
        connection = PgConnection::connect(&url).await.expect("it is up again, in the same place");
        let rows: i64 = sqlx::query_scalar("select count(*) from kept")
            .fetch_one(&mut connection)
            .await
            .expect("it works");
        assert_eq!(rows, 1);
    }
    postgres.restart().expect("it restarts");
    PgConnection::connect(&url).await.expect("it is up again");
    let file =
        std::fs::read_to_string(postgres.directory().join("data/postmaster.pid")).expect("it runs");
    let segment = file
        .lines()
        .nth(6)
        .and_then(|line| line.split_whitespace().nth(1))
        .expect("line 7 is key and id");
    assert!(shared_memory_is_there(segment));
    postgres.kill9();
    drop(postgres);
    assert!(!shared_memory_is_there(segment));
}

#[test]
fn redis_forgets_on_kill_9_unless_asked_to_keep() {
    for (mut redis, kept) in [(own_redis(), 0), (own_lasting_redis(), 1)] {
        let url = redis.url();
        redis.client().expect("it is up").put("key", "value").expect("it works");
        redis.kill9();
        redis.client().expect_err("it is gone");
        redis.start_again().expect("it starts");
        assert_eq!(
            (redis.client().expect("it is up").size().expect("it works"), redis.url()),
            (kept, url)
        );
    }
}

#[test]
fn a_paused_redis_answers_when_it_is_resumed() {
    let mut redis = own_redis();
    let mut client = redis.client().expect("it is up");
    redis.pause();
    let asked = std::thread::spawn(move || client.size());
    assert!(!asked.is_finished());
    redis.resume();
    assert_eq!(asked.join().expect("no panic").expect("it answers"), 0);
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let options = redis::Options {
        arguments: ["--no-such-option", "1"].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let error = Redis::start(&options).expect_err("there is no such option").to_string();
    assert!(error.contains("no-such-option"), "{error}");
}

#[test]
fn the_plain_client_carries_many_keys() {
    let redis = own_redis();
    let mut client = redis.client().expect("it is up");
    client.put_all((0..2_345).map(|n| format!("key:{n}")), "value").expect("it works");
    assert_eq!(client.size().expect("it works"), 2_345);
    assert_eq!(client.count_of((2_000..3_000).map(|n| format!("key:{n}"))).expect("it works"), 345);
    assert!(client.has("key:0").expect("it works") && !client.has("key:x").expect("it works"));
}

#[tokio::test]
async fn worlds_share_nothing() {
    let (mut one, mut two) = (World::new().await, World::new().await);
    one.execute("create table only_here ()").await;
    two.execute("create table only_here ()").await;
    one.cache.put("key", "value").expect("it works");
    assert_ne!(one.database_url(), two.database_url());
    assert_eq!((one.cache.size().expect("it works"), two.cache.size().expect("it works")), (1, 0));
}

#[tokio::test]
async fn the_real_binary_is_started_watched_and_ended() {
    let mut world = World::new().await;
    world.execute("create table public.users (id bigint primary key, updated_at timestamptz not null default now())").await;
    world.execute("select unstale.watch('public.users', array['user:{id}'])").await;
    let mut daemon = world.daemon().start();
    daemon.ready().await;
    daemon.notifies_ready().await;
    world.cache.put("user:1", "not found").expect("it works");
    world.execute("insert into public.users values (1)").await;
    until("the key is gone", async || !world.cache.has("user:1").expect("it works")).await;
    until("the change is counted", async || {
        daemon.metric("unstale_changes_total", &[("table", "public.users")]) == 1.0
    })
    .await;
    assert!(daemon.peak_rss_bytes() >= daemon.rss_bytes() && daemon.rss_bytes() > 1 << 20);
    assert!(daemon.lines().iter().all(|line| line.starts_with('{')), "JSON: {:?}", daemon.lines());
    assert!(daemon.terminate().success());
    assert!(daemon.get("/ready").is_none());
}

/// A server that echoes, and a connection to it through a link.
async fn echo_through_link() -> (Link, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let link = Link::to(listener.local_addr().expect("it listens")).await;
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    let client = connect(&link).expect("the link listens");
    (link, client)
}

fn connect(link: &Link) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(link.addr())?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(stream)
}

/// Sends a word and reads what comes back.
fn echo(mut stream: &TcpStream, word: &str) -> std::io::Result<String> {
    stream.write_all(word.as_bytes())?;
    let mut answer = vec![0; word.len()];
    stream.read_exact(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Whether a read finds nothing in a tenth of a second. No marker can follow through a link that
/// delivers nothing, so time it is; a machine that is too slow lets a broken link pass, never a
/// good one fail.
fn silent(stream: &TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_millis(100))).expect("not zero");
    let read = (&*stream).read(&mut [0; 16]);
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("not zero");
    matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[tokio::test]
async fn a_cut_link_closes_and_refuses_until_healed() {
    let (link, client) = echo_through_link().await;
    assert_eq!(echo(&client, "one").expect("healthy"), "one");
    link.cut().await;
    assert!(echo(&client, "two").is_err());
    assert_eq!(connect(&link).expect_err("refused").kind(), std::io::ErrorKind::ConnectionRefused);
    link.heal().await;
    assert_eq!(echo(&connect(&link).expect("healed"), "three").expect("healed"), "three");
}

#[tokio::test]
async fn a_reset_link_resets_what_is_open_and_takes_new_connections() {
    let (link, client) = echo_through_link().await;
    assert_eq!(echo(&client, "one").expect("healthy"), "one");
    link.reset().await;
    let error = (&client).read(&mut [0]).expect_err("not a polite end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(echo(&connect(&link).expect("welcome"), "two").expect("healthy"), "two");
}

#[tokio::test]
async fn a_black_holed_link_delivers_nothing_until_healed() {
    let (link, mut client) = echo_through_link().await;
    assert_eq!(echo(&client, "one").expect("healthy"), "one");
    link.black_hole();
    client.write_all(b"two").expect("it is taken");
    let mut late = connect(&link).expect("it is accepted");
    late.write_all(b"late").expect("it is taken");
    assert!(silent(&client) && silent(&late));
    link.heal().await;
    let mut answer = [0; 3];
    client.read_exact(&mut answer).expect("delivered after all");
    assert_eq!(&answer, b"two");
    let mut answer = [0; 4];
    late.read_exact(&mut answer).expect("delivered after all");
    assert_eq!(&answer, b"late");
}

#[tokio::test]
async fn a_black_holed_link_hides_the_end_of_the_server() {
    let mut redis = own_redis();
    let link = Link::to_port(redis.port().expect("it has TCP")).await;
    let client = connect(&link).expect("the link listens");
    (&client).write_all(b"PING\r\n").expect("healthy");
    (&client).read_exact(&mut [0; 7]).expect("+PONG and the line's end");
    link.black_hole();
    redis.kill9();
    assert!(silent(&client));
    link.heal().await;
    (&client).read_to_end(&mut Vec::new()).expect("now the end arrives");
}

#[tokio::test]
async fn a_link_that_holds_replies_has_delivered_the_command() {
    let redis = own_redis();
    let mut direct = redis.client().expect("it is up");
    let link = Link::to_port(redis.port().expect("it has TCP")).await;
    let mut client = connect(&link).expect("the link listens");
    direct.put("key", "value").expect("it works");
    link.hold_replies();
    client.write_all(b"UNLINK key\r\n").expect("it is taken");
    until("the command has run", async || !direct.has("key").expect("it works")).await;
    assert!(silent(&client));
    link.heal().await;
    let mut answer = [0; 4];
    client.read_exact(&mut answer).expect("the reply comes after all");
    assert_eq!(&answer, b":1\r\n");
}

#[tokio::test]
async fn a_slow_link_delivers_late() {
    let (link, client) = echo_through_link().await;
    assert_eq!(echo(&client, "one").expect("healthy"), "one");
    link.slow(Duration::from_millis(50));
    let start = Instant::now();
    assert_eq!(echo(&client, "two").expect("slow"), "two");
    assert!(start.elapsed() >= Duration::from_millis(100), "50 ms there and 50 ms back");
}

#[tokio::test]
async fn a_link_carries_a_half_close() {
    let (_link, mut client) = echo_through_link().await;
    client.write_all(b"all of it").expect("healthy");
    client.shutdown(Shutdown::Write).expect("healthy");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("healthy");
    assert_eq!(answer, "all of it");
}
