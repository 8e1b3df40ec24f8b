//! The status page, its document, and `unstale status`.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::Value;
use unstale::scratch::free_port;

use crate::support::daemon::{Daemon, command};
use crate::support::wait::until;
use crate::support::world::World;

mod browser;

/// What would act, if it were taken for more than a name.
const HOSTILE: &str = "<script>document.title='owned'</script>\"&'";

/// The document.
fn document(daemon: &Daemon) -> Value {
    let (status, text) = daemon.get("/status.json").expect("it answers");
    assert_eq!(status, 200);
    serde_json::from_str(&text).expect("JSON")
}

fn page(daemon: &Daemon) -> String {
    daemon.get("/").expect("it answers").1
}

/// `unstale status`: exit code, what it prints, and what it complains of.
fn status(arguments: &str, environment: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let output = command(&format!("status {arguments}"), environment);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn it_shows_what_happens() {
    let world = World::new().await;
    world.users(3).await;
    world
        .execute(
            "create table visits (id int); select unstale.watch('visits', array['visits:{id}'], delivery => 'log', guarantee => 'bounded')",
        )
        .await;
    let mut daemon = world.daemon().impatient().in_one_session().start();
    daemon.ready().await;
    world.change_each_user(1..=2).await;
    let shown = until("everything is shown", async || {
        let shown = document(&daemon);
        let is_there = shown["watches"]["list"][0]["changes"] == 2
            && shown["delivery"]["p99_seconds"].is_number()
            && shown["watermark"]["age_seconds"].is_number()
            && shown["gaps"][0]["lasted_seconds"].is_number()
            && shown["findings"]["list"].is_array();
        is_there.then_some(shown)
    })
    .await;
    assert_eq!(
        (&shown["ready"], &shown["state"], &shown["instance"]),
        (&true.into(), &"listening".into(), &"test".into()),
        "{shown:#}"
    );
    assert!(
        shown["freshness"]["samples"].as_array().is_some_and(|samples| !samples.is_empty()),
        "{shown:#}"
    );
    assert_eq!(
        (&shown["gaps"][0]["cause"], shown.get("gap"), shown.get("why_not")),
        (&"start".into(), None, None),
        "{shown:#}"
    );
    let [users, visits] = &shown["watches"]["list"].as_array().expect("a list")[..] else {
        panic!("{shown:#}")
    };
    assert_eq!(
        (&users["table"], &users["deleted"], users.get("nines")),
        (&"public.users".into(), &4.into(), None)
    );
    assert_eq!(
        (&visits["delivery"], &visits["guarantee"], &visits["sweepable"]),
        (&"log".into(), &"bounded".into(), &false.into())
    );
    assert!(users["changes_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{users}");
    let address = format!("127.0.0.1:{}", world.redis.port().expect("it listens"));
    assert_eq!(
        (&shown["redis"]["kind"], &shown["redis"]["servers"][0]["address"]),
        (&"server".into(), &address.as_str().into())
    );

    let page = page(&daemon);
    for part in [
        "<b>ready</b>",
        "<b>public.users</b>",
        "user:{id}",
        "<td><time>20",
        "start",
        &address,
        "id=\"dots\" d=\"M2",
        "None: the database",
    ] {
        assert!(page.contains(part), "{part} is not in\n{page}");
    }
    let (code, text, complaint) =
        status("", &[("UNSTALE_HTTP__LISTEN", &format!("0.0.0.0:{}", daemon.port()))]);
    assert_eq!((code, complaint.as_str()), (Some(0), ""));
    for part in [
        "instance         test, unstale ",
        "state            ready (listening)",
        "public.users (row)\n    2 changes, ",
        &address,
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let (code, json, _) = status(&format!("--json --url http://127.0.0.1:{}/", daemon.port()), &[]);
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (code, &json["schema"], &json["watches"]["list"][0]["changes"]),
        (Some(0), &1.into(), &2.into())
    );
}

#[tokio::test]
async fn it_says_why_it_is_not_ready_and_what_waits() {
    let mut world = World::new().await;
    world.users(3).await;
    let mut daemon =
        world.daemon().impatient().in_one_session().with("UNSTALE_BATCH__STALL", "1m").start();
    daemon.ready().await;
    world.redis.kill9();
    world.execute("update users set name = 'x', updated_at = clock_timestamp()").await;
    let shown = until("it is shown that Redis is away", async || {
        let shown = document(&daemon);
        (shown["ready"] == false && shown["waiting"]["retries"].as_u64() > Some(0)).then_some(shown)
    })
    .await;
    assert!(
        shown["why_not"].as_str().is_some_and(|why_not| why_not.starts_with("Redis: ")),
        "{shown:#}"
    );
    assert!(shown["waiting"]["commands"].as_u64() > Some(0), "{shown:#}");
    let server = &shown["redis"]["servers"][0];
    assert!(server["answers"] == false && server["why_not"].is_string(), "{shown:#}");
    let page = page(&daemon);
    assert!(
        page.contains("<b>not ready</b>: Redis: ") && page.contains("does not answer"),
        "{page}"
    );
    let (code, text, _) = status(&format!("--url http://127.0.0.1:{}", daemon.port()), &[]);
    assert!(code == Some(0) && text.contains("state            not ready: Redis: "), "{text}");

    world.redis.start_again().expect("it starts again");
    daemon.ready().await;
    until("it answers again", async || document(&daemon)["redis"]["servers"][0]["answers"] == true)
        .await;
}

/// Not only the metric that counts them.
#[tokio::test]
async fn a_trigger_that_does_not_fire_is_shown_with_its_remedy() {
    let world = World::new().await;
    world.users(3).await;
    world.execute("alter table users disable trigger all").await;
    let mut daemon = world.daemon().start();
    daemon.ready().await;
    let finding = until("it is found", async || {
        let found = document(&daemon)["findings"]["list"][0].clone();
        found.is_object().then_some(found)
    })
    .await;
    assert_eq!(
        (&finding["severity"], &finding["about"]),
        (&"error".into(), &"public.users".into()),
        "{finding}"
    );
    let remedy = finding["remedy"].as_str().expect("there is one");
    let escaped = remedy.replace('&', "&amp;").replace('\'', "&#39;").replace('>', "&gt;");
    assert!(
        page(&daemon).contains(&format!("<pre><code>{escaped}</code></pre>")),
        "{remedy}\n{}",
        page(&daemon)
    );
}

#[tokio::test]
async fn a_gap_is_in_the_ledger_that_is_shown_as_soon_as_it_is_closed() {
    let world = World::new().await;
    world.users(3).await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    until("the first is shown", async || {
        document(&daemon)["gaps"][0]["lasted_seconds"].is_number()
    })
    .await;
    let known = daemon.gaps();
    world
        .execute("select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()")
        .await;
    daemon.opens_gap(known).await;
    let gaps = until("the second is shown", async || {
        let gaps = document(&daemon)["gaps"].clone();
        (gaps.as_array().is_some_and(|gaps| gaps.len() > 1)
            && gaps[0]["lasted_seconds"].is_number())
        .then_some(gaps)
    })
    .await;
    assert!(
        gaps[0]["opened_at"].as_str() > gaps[1]["opened_at"].as_str()
            && gaps[0]["cause"] != "start",
        "{gaps:#}"
    );
}

#[tokio::test]
async fn nothing_on_it_is_markup_of_others_or_a_value_or_a_secret() {
    let world = World::new().await;
    let quoted = HOSTILE.replace('\'', "''");
    world.execute(&format!("create table \"{}\" (id text)", HOSTILE.replace('"', "\"\""))).await;
    world
        .execute(&format!(
            "do $$ begin perform unstale.watch(c.oid::regclass, array['{quoted}:{{id}}'])
         from pg_class c where relname like '<script>%'; end $$"
        ))
        .await;
    let url = world.database_url().replace("postgres://postgres@", "postgres://postgres:hunter2@");
    assert!(url.contains("hunter2"), "{url}");
    let mut daemon =
        world.daemon().with("DATABASE_URL", &url).with("UNSTALE_INSTANCE", "test").start();
    daemon.ready().await;
    world
        .execute(
            "do $$ begin execute (select format('insert into %s values (''s3cret-value'')', c.oid::regclass)
         from pg_class c where relname like '<script>%'); end $$",
        )
        .await;
    until("it is counted", async || document(&daemon)["watches"]["list"][0]["changes"] == 1).await;
    let json = daemon.get("/status.json").expect("it answers").1;
    let page = until("it is written anew", async || {
        Some(page(&daemon)).filter(|page| page.contains("data-of=\"changes\">1<"))
    })
    .await;
    let (_, text, _) = status(&format!("--url http://127.0.0.1:{}", daemon.port()), &[]);
    for shown in [&json, &page, &text] {
        assert!(
            shown.contains("document.title=")
                && !shown.contains("hunter2")
                && !shown.contains("s3cret"),
            "{shown}"
        );
    }
    assert!(page.contains("&lt;script&gt;document.title=&#39;owned&#39;&lt;/script&gt;"), "{page}");
    assert_eq!(page.matches("<script>").count(), 1, "our own:\n{page}");
}

#[tokio::test]
async fn the_page_may_do_nothing_but_what_is_its_own() {
    let world = World::new().await;
    let daemon = world.daemon().start();
    until("it answers", async || daemon.get("/live").is_some()).await;
    let head = |path: &str| {
        let mut stream = TcpStream::connect(("127.0.0.1", daemon.port())).expect("a connection");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        answer.split("\r\n\r\n").next().expect("a head").to_owned()
    };
    for (path, kind) in [("/", "text/html; charset=utf-8"), ("/status.json", "application/json")] {
        let head = head(path);
        for line in [
            "HTTP/1.1 200 OK",
            &format!("content-type: {kind}"),
            "cache-control: no-store",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cross-origin-resource-policy: same-origin",
        ] {
            assert!(head.lines().any(|had| had == line), "{path}: {line} is not in\n{head}");
        }
        assert!(!head.contains("access-control-allow"), "{head}");
    }
    let policy = head("/");
    let policy = policy
        .lines()
        .find_map(|line| line.strip_prefix("content-security-policy: "))
        .expect("there is one");
    assert!(
        policy.starts_with("default-src 'none'; style-src 'sha256-") && !policy.contains("unsafe"),
        "{policy}"
    );
}

#[tokio::test]
async fn without_a_listener_it_says_what_to_do() {
    let port = free_port().expect("a free port");
    let (code, said, complaint) =
        status("", &[("UNSTALE_HTTP__LISTEN", &format!("127.0.0.1:{port}"))]);
    assert_eq!((code, said.as_str()), (Some(1), ""));
    let sentence = format!(
        "no listener answers at 127.0.0.1:{port}; start it (`unstale run`) with http.listen = \"127.0.0.1:{port}\", or name another"
    );
    assert!(complaint.contains(&sentence), "{complaint}");
    let (code, _, complaint) = status("", &[]);
    assert!(
        code == Some(1)
            && complaint.contains("http.listen is not set")
            && complaint.contains("--url"),
        "{complaint}"
    );
    let (code, _, complaint) = status("--url https://u:hunter2@h/", &[]);
    assert!(
        code == Some(1)
            && complaint.contains("http://127.0.0.1:9464/")
            && !complaint.contains("hunter2"),
        "{complaint}"
    );
    // Something else that answers.
    let world = World::new().await;
    let (code, _, complaint) = status(
        &format!("--url http://127.0.0.1:{}/", world.redis.port().expect("it listens")),
        &[],
    );
    assert!(code == Some(1) && complaint.contains("no listener answers at"), "{complaint}");
}
