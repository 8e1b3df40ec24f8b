//! Files that are none, or that never end.

use std::fs::File;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, mkfifoat};
use unstale::config::Config;

use super::*;

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
