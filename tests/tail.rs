//! `unstale tail`: what is committed is shown as it is committed, in every delivery.

use serde_json::{Value, json};

use crate::support::daemon::Daemon;
use crate::support::wait::until;
use crate::support::world::World;

async fn tables() -> World {
    let world = World::new().await;
    world
        .execute(
            "create table users (id int primary key, email text, updated_at timestamptz default now());
             create table jobs (like users including all); create table visits (like users including all);
             select unstale.watch('users', array['user:{id}', 'by:{email}']), unstale.watch('jobs', array['job:{id}'], 'log'),
                    unstale.watch('visits', array['visit:{id}'], 'statement')",
        )
        .await;
    world
}

async fn tail(world: &World, arguments: &str) -> Daemon {
    let tail = world.daemon().running(arguments).start();
    tail.says("listening at").await;
    tail
}

/// What it shows of the next change of the table: how it was announced, rows, keys and patterns.
async fn shown(tail: &Daemon, table: &str) -> Value {
    let text = format!(r#""table":"{table}""#);
    let line: Value = serde_json::from_str(&tail.says(&text).await).expect("JSON");
    assert!(
        line["time"].as_str().is_some_and(|time| time.ends_with('Z') && time.len() == 24),
        "{line}"
    );
    json!([line["by"], line["rows"], line["keys"], line["patterns"]])
}

#[tokio::test]
async fn it_shows_the_keys_of_every_delivery_and_leaves_no_trace() {
    let world = tables().await;
    let mut tail = tail(&world, "tail --json").await;
    world.execute("insert into users values (1, 'a')").await;
    world.execute("insert into jobs values (2)").await;
    world.execute("insert into visits select n from generate_series(3, 5) n").await;
    assert_eq!(shown(&tail, "public.users").await, json!(["notify", 1, ["user:1", "by:a"], []]));
    assert_eq!(shown(&tail, "public.jobs").await, json!(["log", 1, ["job:2"], []]));
    assert_eq!(
        shown(&tail, "public.visits").await,
        json!(["notify", 3, ["visit:3", "visit:4", "visit:5"], []])
    );

    world.execute("create table later (id int); select unstale.watch('later', array['later:{id}', 'laters']); truncate later").await;
    assert_eq!(
        shown(&tail, "public.later").await,
        json!(["notify", null, ["laters"], ["later:*"]])
    );
    let listeners: i64 = sqlx::query_scalar("select count(*) from unstale.instance")
        .fetch_one(&world.sql)
        .await
        .expect("a count");
    assert_eq!(listeners, 0);
    assert!(tail.terminate().success());
}

#[tokio::test]
async fn people_read_a_line_for_each_change_of_the_tables_that_they_asked_for() {
    let world = tables().await;
    let tail = tail(&world, "tail --table visits --table public.users").await;
    world.execute("insert into jobs values (1); insert into users values (1, 'it''s')").await;
    world
        .execute("insert into visits select n from generate_series(1, 12) n; truncate users")
        .await;
    let shown = until("three lines", async || {
        let lines: Vec<String> =
            tail.lines().iter().filter(|line| line.contains("public.")).cloned().collect();
        (lines.len() == 3).then_some(lines)
    })
    .await;
    let mut shown: Vec<&str> = shown.iter().map(|line| &line["12:34:56.789  ".len()..]).collect();
    shown.sort_unstable();
    let eight: Vec<String> = (1..=8).map(|n| format!("visit:{n}")).collect();
    let expected = [
        "notify  public.users  all rows  user:*  by:*".to_owned(),
        "notify  public.users  user:1  by:it's".to_owned(),
        format!("notify  public.visits  {}  and 4 others", eight.join("  ")),
    ];
    assert_eq!(shown, expected);
}

#[tokio::test]
async fn it_ends_with_a_sentence_where_it_would_miss_something_or_show_nothing() {
    let world = tables().await;
    let mut unknown = world.daemon().running("tail --table nothing").start();
    assert_eq!(unknown.ends().code(), Some(1));
    unknown.says("nothing is not watched; `select * from unstale.watches` lists what is").await;

    let mut cut = tail(&world, "tail").await;
    world
        .execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and query like '%unstale.listen()%' and pid <> pg_backend_pid()")
        .await;
    assert_eq!(cut.ends().code(), Some(1));
    cut.says("what was committed from now on is not shown; start it again").await;
}
