//! What comes from outside and is neither PostgreSQL's protocol nor Redis': files that are none,
//! texts that act, clients that stay.

mod files;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::time::{Duration, Instant};

use secrecy::ExposeSecret as _;
use serde_json::Value;
use tempfile::TempDir;
use unstale::scratch::redis::Reply;

use crate::support::daemon::{Daemon, command};
use crate::support::wait::until;
use crate::support::world::World;

/// A table's name that prints a line of its own, colours the rest, and reads from right to left.
const NAME: &str = "a\nalter role m superuser;\u{1b}[31m\u{202e}";

/// How it is shown.
const SHOWN: &str = r"a\nalter role m superuser;\u{1b}";

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

/// A world with a table of that name, watched.
async fn oddly_named() -> World {
    let world = World::new().await;
    world
        .execute(&format!(
            "create table \"{NAME}\" (id int primary key, updated_at timestamptz default now());
             create table plain (id int primary key, updated_at timestamptz default now());
             select unstale.watch('\"{NAME}\"', array['k{NAME}:{{id}}', 'all{NAME}']), unstale.watch('plain', array['plain:{{id}}'])"
        ))
        .await;
    world
}

/// No line begins with, and nothing in it is, what the name holds; the name is there.
fn is_harmless(text: &str) {
    assert!(text.contains(SHOWN), "{text}");
    assert!(!text.lines().any(|line| line.trim_start().starts_with("alter role")), "{text}");
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
}

#[tokio::test]
async fn a_table_s_name_prints_no_line_of_its_own_in_any_command() {
    let world = oddly_named().await;
    let urls = [("DATABASE_URL", world.database_url()), ("REDIS_URL", world.redis_url())];
    let urls = urls.each_ref().map(|(name, value)| (*name, value.as_str()));
    world.execute(&format!("alter table \"{NAME}\" disable trigger user")).await;

    let output = command("check", &urls);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    is_harmless(&text);
    assert!(
        text.contains("# the remedy holds a name that cannot be shown and pasted safely"),
        "{text}"
    );
    let output = command("check --json", &urls);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let found: Value = serde_json::from_str(&text).expect("JSON");
    let about =
        |finding: &&Value| finding["about"].as_str().is_some_and(|about| about.contains(NAME));
    let finding = found["findings"]
        .as_array()
        .expect("a list")
        .iter()
        .find(about)
        .expect("the table, exactly");
    world.execute(finding["remedy"].as_str().expect("a remedy")).await; // and this exact remedy works
    assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
    is_harmless(&String::from_utf8_lossy(&command("check --keys", &urls).stdout));

    for arguments in ["sweep --all --dry-run", "sweep --since 1h --dry-run", "uninstall --dry-run"]
    {
        let output = command(arguments, &urls);
        assert!(output.status.success(), "{arguments}: {output:?}");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
        if arguments.contains("all") || arguments.contains("uninstall") {
            is_harmless(&text);
        }
        assert!(
            !text.contains('\u{1b}') && !text.lines().any(|line| line.starts_with("alter role")),
            "{text}"
        );
    }
    let directory = directory();
    let list = directory.path().join("unstale.toml");
    std::fs::write(&list, "[[watch]]\ntable = 'plain'\nkeys = ['other:{id}']").expect("a file");
    let output = command(&format!("apply --dry-run --config {}", list.display()), &urls[..1]);
    is_harmless(&String::from_utf8_lossy(&output.stdout));
    let output = std::process::Command::new(crate::support::daemon::BINARY)
        .args(["explain", &format!("\"{NAME}\""), "id=1\u{1b}[2J"])
        .env_clear()
        .envs(urls)
        .output()
        .expect("the binary");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    is_harmless(&text);
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[tokio::test]
async fn tail_shows_a_value_that_acts_and_its_json_is_exact() {
    let world = oddly_named().await;
    world
        .execute("create table texts (id text); select unstale.watch('texts', array['text:{id}'])")
        .await;
    for (arguments, is_json) in [("tail", false), ("tail --json", true)] {
        let tail = world.daemon().running(arguments).start();
        tail.says("listening at").await;
        world
            .execute(&format!(
                "insert into texts values (E'{NAME}'); insert into \"{NAME}\" values ({})",
                i32::from(is_json)
            ))
            .await;
        let line = tail.says("text:a").await;
        let named = tail.says(if is_json { r#"public.\"a"# } else { r#"public."a"# }).await;
        if is_json {
            let keys = serde_json::from_str::<Value>(&line).expect("JSON")["keys"].clone();
            assert_eq!(keys, serde_json::json!([format!("text:{NAME}")]));
            assert!(!line.contains(['\u{1b}', '\u{202e}']), "{line}");
        } else {
            is_harmless(&line);
            is_harmless(&named);
        }
    }
}

/// A server that says no to everything, with words that act.
fn rude_redis() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                while client.read(&mut [0; 4096]).is_ok_and(|length| length > 0) {
                    let _ = client.write_all(
                        "-ERR rude \u{1b}]0;title\u{7} \u{202e} \u{9b}2J\r\n".as_bytes(),
                    );
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn the_words_of_a_server_act_neither_on_a_page_nor_in_a_log_nor_in_systemd() {
    let world = World::new().await;
    world.users(3).await;
    let redis_url = format!("redis://127.0.0.1:{}", rude_redis());
    for format in ["text", "json", "journald"] {
        let mut daemon = world
            .daemon()
            .impatient()
            .with("REDIS_URL", &redis_url)
            .with("UNSTALE_LOG__FORMAT", format)
            .start();
        let line = until("the log has the words", async || {
            daemon.lines().into_iter().find(|line| line.contains("rude"))
        })
        .await;
        let page = until("the page has the words", async || {
            daemon.get("/ready").map(|(_, body)| body).filter(|body| body.contains("rude"))
        })
        .await;
        let status = until("systemd has the words", async || {
            daemon.status().filter(|status| status.contains("rude"))
        })
        .await;
        for text in [&line, &page, &status] {
            assert!(
                !text.contains(['\u{1b}', '\u{7}', '\u{202e}', '\u{9b}']),
                "{format}: {text:?}"
            );
        }
        assert!(page.contains(r"\u{1b}]0;title\u{7} \u{202e} \u{9b}2J"), "{page}");
        if format == "json" {
            let exact: Value = serde_json::from_str(&line).expect("JSON");
            assert!(
                exact["reason"]
                    .as_str()
                    .is_some_and(|reason| reason.contains("\u{1b}]0;title\u{7} \u{202e} \u{9b}2J")),
                "{line}"
            );
        }
        daemon.kill9();
    }
}

#[tokio::test]
async fn the_primary_that_a_replica_names_is_no_command() {
    let mut world = World::new().await;
    let directory = directory();
    let touched = directory.path().join("touched");
    let host = format!("$(touch\t{})", touched.display());
    world.cache.ask(&["replicaof", &host, "6379"]).expect("Redis takes any text for a host");
    let Ok(Reply::Value(Some(info))) = world.cache.ask(&["info", "replication"]) else {
        panic!("no answer to INFO")
    };
    assert!(String::from_utf8_lossy(&info).contains(&host), "it says so in INFO");
    let output = command(
        "check",
        &[("DATABASE_URL", &world.database_url()), ("REDIS_URL", &world.redis_url())],
    );
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("this is a replica of $(touch\\t"), "{text}");
    assert!(
        text.contains("# let REDIS_URL name the primary") && !text.contains("export REDIS_URL"),
        "{text}"
    );
    assert!(!touched.exists());
}

#[tokio::test]
async fn three_hundred_slow_clients_keep_no_probe_out() {
    let world = World::new().await;
    let mut daemon = world.daemon().impatient().start();
    daemon.ready().await;
    let address = format!("127.0.0.1:{}", daemon.port());
    let slow = |n: usize| {
        let mut client = TcpStream::connect(&address).expect("the kernel takes it");
        // Some say nothing, some begin, some ask and do not read.
        let said: &[u8] =
            [&b""[..], b"GET /live HTTP/1.1\r\nHost:", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"]
                [n % 3];
        let _ = client.write_all(said);
        client
    };
    let mut clients: Vec<TcpStream> = (0..300).map(slow).collect();
    for n in 0..16 {
        let began = Instant::now();
        let answer = daemon.get("/live");
        assert!(matches!(answer, Some((200, _))), "probe {n}: {answer:?}");
        assert!(began.elapsed() < Duration::from_secs(1), "probe {n} took {:?}", began.elapsed());
        clients.extend((0..20).map(slow)); // they come back
    }
    daemon.ready().await;
}

#[tokio::test]
async fn a_password_on_the_network_and_an_open_port_are_said_by_run_and_by_check() {
    let world = World::new().await;
    world.users(3).await;
    let role = format!("exposed_{}", world.database());
    world.execute(&format!("create role {role} superuser login password 'hunter2'")).await;
    // 0.0.0.0 is this host for Linux, and not one that is known to be.
    let database =
        world.database_url().replace("postgres@127.0.0.1", &format!("{role}:hunter2@0.0.0.0"));
    assert!(database.contains("hunter2"), "{database}");
    let redis = world.redis_url().replace("redis://127.0.0.1", "redis://default:hunter2@0.0.0.0");

    let port = unstale::scratch::free_port().expect("a free port");
    let listen = format!("0.0.0.0:{port}");
    let settings = Daemon::settings(&database, &redis).with("UNSTALE_HTTP__LISTEN", &listen);
    let mut daemon = settings.start();
    for (about, says) in [
        ("PostgreSQL at 0.0.0.0", "sslmode=prefer"),
        ("Redis at 0.0.0.0", "clear text"),
        ("http.listen", listen.as_str()),
    ] {
        let line = until("it says so", async || {
            daemon
                .lines()
                .into_iter()
                .find(|line| line.contains("exposed to the network") && line.contains(about))
        })
        .await;
        assert!(
            line.contains(says) && line.contains(r#""level":"WARN""#) && !line.contains("hunter2"),
            "{line}"
        );
    }
    daemon.kill9();

    let output = command(
        "check --json",
        &[("DATABASE_URL", &database), ("REDIS_URL", &redis), ("UNSTALE_HTTP__LISTEN", &listen)],
    );
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let warnings: Vec<&str> = found["findings"]
        .as_array()
        .expect("a list")
        .iter()
        .filter(|finding| {
            finding["severity"] == "warning"
                && finding["remedy"].as_str().is_some_and(|remedy| remedy.starts_with("# "))
        })
        .filter_map(|finding| finding["about"].as_str())
        .collect();
    for about in ["PostgreSQL at 0.0.0.0", "Redis at 0.0.0.0", "http.listen"] {
        assert!(warnings.contains(&about), "{found:#}");
    }
    // On this host's own addresses nothing is said.
    let output = command(
        "check --json",
        &[
            ("DATABASE_URL", &database.replace("0.0.0.0", "127.0.0.1")),
            ("REDIS_URL", &world.redis_url()),
        ],
    );
    assert!(!String::from_utf8_lossy(&output.stdout).contains("crosses the network"), "{output:?}");
    world.execute(&format!("drop role {role}")).await;
}
