//! What comes from outside and is neither PostgreSQL's protocol nor Redis': files that are none,
//! texts that act, clients that stay.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, mkfifoat};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use tempfile::TempDir;
use unstale::config::Config;
use unstale::scratch::redis::Reply;

use crate::support::daemon::{Daemon, command};
use crate::support::wait::until;
use crate::support::world::World;

/// A table's name that prints a line of its own, colours the rest, and reads from right to left.
const NAME: &str = "a\nalter role m superuser;\u{1b}[31m\u{202e}";

/// How it is shown.
const SHOWN: &str = r"a\nalter role m superuser;\u{1b}";

/// Files that nobody should wait for, or read to their end, and what is said of each.
fn traps(directory: &Path) -> Vec<(PathBuf, &'static str)> {
    let path = |name: &str| directory.join(name);
    mkfifoat(CWD, path("fifo"), Mode::RUSR).expect("a FIFO");
    File::create(path("huge")).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
    drop(UnixListener::bind(path("socket")).expect("a socket"));
    std::fs::write(path("utf-16"), b"\xff\xfep\0o\0").expect("a file");
    std::fs::write(path("latin-1"), b"postgres://m\xfcller@h/db").expect("a file");
    vec![
        (
            path("fifo"),
            "is a pipe (FIFO), which could keep its reader waiting; let it name a regular file",
        ),
        (path("huge"), "bytes; let it name another file"),
        (path("socket"), "is a socket; let it name a regular file"),
        (path("utf-16"), "is not UTF-8 but UTF-16"),
        (path("latin-1"), "is not UTF-8 text; save it as UTF-8"),
        (directory.to_owned(), "is a directory; let it name a regular file"),
        ("/dev/zero".into(), "is a device; let it name a regular file"),
        ("/dev/stdin".into(), "is a device; let it name a regular file"), // of a command of the tests it is /dev/null
    ]
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

#[test]
fn a_name_of_no_regular_file_is_refused_at_once_wherever_a_file_is_named() {
    let directory = directory();
    let traps = traps(directory.path());
    let began = Instant::now();
    for (file, says) in &traps {
        let name = file.display().to_string();
        for variable in [
            "DATABASE_URL_FILE",
            "REDIS_URL_FILE",
            "UNSTALE_DATABASE__URL_FILE",
            "UNSTALE_CONFIG",
            "SSL_CERT_FILE",
        ] {
            if variable == "SSL_CERT_FILE" && says.contains("UTF-8") {
                continue; // the libraries of TLS say what they think of it
            }
            let output = command("migrate", &[(variable, &name)]);
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{variable} {name}: {text}");
            assert!(text.contains(&name) && text.contains(says), "{variable} {name}: {text}");
            assert!(variable == "UNSTALE_CONFIG" || text.contains(variable), "{text}");
        }
        if !says.contains("UTF-8") {
            for part in ["sslrootcert={}", "sslcert={}&sslkey=/x", "passfile={}"] {
                let url =
                    format!("postgres://h/d?sslmode=verify-full&{}", part.replace("{}", &name));
                let output = command("migrate", &[("DATABASE_URL", &url)]);
                let text = stderr(&output);
                assert_eq!(output.status.code(), Some(2), "{url}: {text}");
                assert!(
                    text.contains(&name) && (text.contains(says) || text.contains("chmod 600")),
                    "{url}: {text}"
                );
            }
        }
        if !file.starts_with(directory.path()) || file == directory.path() {
            continue;
        }
        let credentials = directory.path().join("credentials");
        std::fs::create_dir_all(&credentials).expect("a directory");
        std::fs::rename(file, credentials.join("database_url")).expect("it is moved");
        let output =
            command("migrate", &[("CREDENTIALS_DIRECTORY", &credentials.display().to_string())]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(stderr(&output).contains(says), "{output:?}");
        std::fs::rename(credentials.join("database_url"), file).expect("it is moved back");
    }
    for (file, says) in traps.iter().filter(|(_, says)| !says.contains("UTF-8")) {
        let name = file.display().to_string();
        for keys in [&["CA"][..], &["CERT", "KEY"]] {
            let mut environment = vec![
                ("DATABASE_URL", "postgres://localhost/none"),
                ("REDIS_URL", "rediss://localhost:1"),
            ];
            let variables: Vec<String> =
                keys.iter().map(|key| format!("UNSTALE_REDIS__TLS__{key}_FILE")).collect();
            environment.extend(variables.iter().map(|variable| (variable.as_str(), name.as_str())));
            let output = command("check", &environment);
            assert_eq!(output.status.code(), Some(2), "{output:?}");
            assert!(stderr(&output).contains(says), "{output:?}");
        }
    }
    assert!(began.elapsed() < Duration::from_secs(60), "something was waited for");
}

#[test]
fn a_byte_order_mark_is_no_part_of_a_secret_nor_of_the_configuration() {
    let directory = directory();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    };
    let url = write("url", "\u{feff}postgres://db/app\r\n");
    let file = write("unstale.toml", "\u{feff}instance = \"eu\"\r\n[http]\r\nlisten = \"\"\r\n");
    let config = Config::load(Some(Path::new(&file)), [("DATABASE_URL_FILE".to_owned(), url)])
        .expect("a configuration");
    assert_eq!(
        (config.instance.as_str(), config.database_url().expect("a URL").expose_secret()),
        ("eu", "postgres://db/app")
    );

    for text in [
        "postgres://db/app\n# the old one: postgres://u:hunter2@h\n",
        "postgres://u:hunter2@h/\0",
        "postgres://u%00options:hunter2@h/d",
    ] {
        let error = Config::load(None, [("DATABASE_URL_FILE".to_owned(), write("url", text))])
            .expect_err("an error")
            .to_string();
        assert!(
            error.starts_with("DATABASE_URL_FILE: holds a line break, a NUL")
                && !error.contains("hunter2"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_secret_is_read_anew_each_time_and_a_file_that_became_a_trap_holds_up_nobody() {
    let directory = directory();
    let (first, second) = (directory.path().join("url"), directory.path().join("database_url"));
    std::fs::write(&first, "postgres://one/app\n").expect("a file");
    std::fs::write(&second, "postgres://credential/app\n").expect("a file");
    let credentials = ("CREDENTIALS_DIRECTORY".to_owned(), directory.path().display().to_string());

    let config = Config::load(None, [credentials.clone()]).expect("a configuration");
    std::fs::write(&second, "postgres://renewed/app\n").expect("a file");
    let (read, problem) = config.database_source().expect("a URL").read().await;
    assert_eq!((read.expose_secret(), problem), ("postgres://renewed/app", None));

    let file = ("DATABASE_URL_FILE".to_owned(), first.display().to_string());
    let source = Config::load(None, [credentials.clone(), file])
        .expect("a configuration")
        .database_source()
        .expect("a URL");
    assert_eq!(source.known().expose_secret(), "postgres://one/app");
    std::fs::write(&first, "postgres://two/app\n").expect("a file");
    assert_eq!(source.clone().read().await.0.expose_secret(), "postgres://two/app");
    let problem_of = async |says: &str| {
        let (read, problem) = source.read().await;
        let problem = problem.expect("a problem").to_string();
        assert!(
            problem.starts_with("DATABASE_URL_FILE: ")
                && problem.contains(says)
                && !problem.contains("hunter2"),
            "{problem}"
        );
        assert_eq!(read.expose_secret(), "postgres://two/app", "what it held last");
    };
    std::fs::write(&first, "hunter2\n").expect("a file");
    problem_of("is not a PostgreSQL URL").await;
    std::fs::remove_file(&first).expect("it was there");
    problem_of("cannot be read").await;
    mkfifoat(CWD, &first, Mode::RUSR).expect("a FIFO");
    problem_of("FIFO").await;

    // A text in the environment wins over a credential, and then there is no file to read.
    let written = ("DATABASE_URL".to_owned(), "postgres://written/app".to_owned());
    let source = Config::load(None, [credentials, written])
        .expect("a configuration")
        .database_source()
        .expect("a URL");
    let (read, problem) = source.read().await;
    assert_eq!((read.expose_secret(), problem), ("postgres://written/app", None));
}

#[test]
fn a_filter_that_is_none_is_named_and_ends_nothing_else() {
    for filter in [
        " é=info",
        "wärn",
        "ä=debug,info",
        "info,unstale=dëbug",
        "a[b{c=(x*)*}]=info",
        "[{é",
        "info,é",
    ] {
        let output = command("migrate", &[("UNSTALE_LOG__FILTER", filter)]);
        assert_eq!(output.status.code(), Some(2), "{filter}: {output:?}");
        assert!(stderr(&output).starts_with("unstale: UNSTALE_LOG__FILTER: "), "{output:?}");
    }
}

#[tokio::test]
async fn at_sighup_neither_a_filter_nor_a_trap_in_the_place_of_a_file_stops_the_listener() {
    let mut world = World::new().await;
    world.users(3).await;
    let directory = directory();
    let (file, url) = (directory.path().join("unstale.toml"), directory.path().join("url"));
    std::fs::write(&file, "").expect("a file");
    std::fs::write(&url, world.redis_url()).expect("a file");
    let settings = world
        .daemon()
        .impatient()
        .without("REDIS_URL")
        .with("UNSTALE_CONFIG", &file.display().to_string());
    let mut daemon = settings.with("REDIS_URL_FILE", &url.display().to_string()).start();
    daemon.ready().await;

    std::fs::write(&file, "log.filter = ' é=info'").expect("a file");
    daemon.hang_up();
    assert!(daemon.says("the old one stays").await.contains("log.filter"));
    std::fs::write(&file, "").expect("a file");
    std::fs::remove_file(&url).expect("it was there");
    mkfifoat(CWD, &url, Mode::RUSR | Mode::WUSR).expect("a FIFO");
    daemon.hang_up();
    daemon.says("is a pipe (FIFO)").await;
    std::fs::remove_file(&file).expect("it was there");
    std::os::unix::fs::symlink("/dev/zero", &file).expect("a link");
    daemon.hang_up();
    daemon.says("is a device").await;

    world.fill(["user:1"]);
    world
        .execute("update users set name = 'bob', updated_at = clock_timestamp() where id = 1")
        .await;
    world.gone(["user:1"]).await;
    assert!(daemon.is_ready());
    assert!(daemon.terminate().success());
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
