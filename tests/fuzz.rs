//! Arbitrary texts into everything that reads what others wrote. None may panic, because the
//! released program ends at a panic; and no error may show a secret.
//!
//! Some seconds of it in each run of the tests, and as long as one likes with `./dev fuzz`.

use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config as Runs, TestRunner};
use secrecy::SecretString;
use unstale::change::{self, Announcement, Row};
use unstale::config::{Config, Tls, keys};
use unstale::pg::{self, Postgres};
use unstale::rule::{Rule, Template};
use unstale::sink::{self, Sink};
use unstale::visible;
use unstale::watched::Watched;
use unstale::watermark::Snapshot;

/// In a text where a secret could be, and in nothing else.
const SECRET: &str = "hunter2";

/// Something that reads a text.
struct Deletion {
    name: &'static str,
    seeds: &'static [&'static str],
    read: fn(&str),
}

/// Texts that are right, from which others are made.
const TARGETS: &[Deletion] = &[
    Deletion {
        name: "change",
        seeds: &[
            r#"{"watch":7,"rev":2,"new":{"id":"42","email":"b@c.d"},"old":{"id":"42","email":null}}"#,
            r#"{"watch":7,"rev":2,"rows":[{"id":"42","email":"\ud83d\ude00"},{"id":"43","email":null}]}"#,
            r#"{"watch":7,"rev":2,"all":true}"#,
            r#"{"heartbeat":18446744073709551615}"#,
        ],
        read: read_change,
    },
    Deletion {
        name: "template",
        seeds: &["user:{id}:profile", "{{user:{id}}}:é*?[", "{a}-{b}"],
        read: read_template,
    },
    Deletion {
        name: "snapshot",
        seeds: &["10:20:10,14,15", "1:1:", "18446744073709551615:0:1"],
        read: read_snapshot,
    },
    Deletion {
        name: "configuration file",
        seeds: &[
            include_str!("../config/unstale.toml"),
            "instance = 42\n[redis]\nurl = 'redis://:hunter2@h'\ntimeout = '3s'\n[redis.tls]\nca_file = '/ca'",
            "[[watch]]\ntable = 'public.users'\nkeys = ['user:{id}']\nmax_ttl = '1h'\n[[watch]]\ntable = 1\nkeys = [[[]]]",
            "log.filter = 'warn,unstale=debug'\nbatch.in_flight = 9223372036854775807\nheartbeat = { interval = '99999999999y' }",
        ],
        read: read_configuration,
    },
    Deletion {
        name: "variable",
        seeds: &[
            "info",
            "warn,unstale::pg=debug",
            "a[b{c=\"(x)*\"}]=info",
            "30s",
            "127.0.0.1:9464",
            "[::1]:1",
            "eu-west-1",
            "/run/x",
            "15",
        ],
        read: read_variables,
    },
    Deletion {
        name: "URL",
        seeds: &[
            "postgres://user:hunter2@host:5432/app?sslmode=verify-full&sslrootcert=/ca&options[a]=b",
            "postgresql://u%40:hunter2@%2Frun%2Fpostgresql/db?host=a,b&port=1,2&password=hunter2&user=x",
            "postgres://[::1]:5432/?application_name=%00&connect_timeout=10",
            "redis://u:hunter2@host:6379/0?timeout=1",
            "rediss-sentinel://u:hunter2@h:1?node=a:2&sentinelServiceName=m&sentinelPassword=hunter2",
            "redis+unix:///run/redis.sock",
            "redis-cluster://h:1?node=h:2",
        ],
        read: read_urls,
    },
    Deletion {
        name: "INFO of Redis",
        seeds: &[
            "redis_version:7.0.15\r\nrole:slave\r\nmaster_host:$(x)\r\nmaster_port:6379\r\nused_memory:95\r\nmaxmemory:100\r\n",
        ],
        read: read_info,
    },
    Deletion {
        name: "text to show",
        seeds: &["public.users", "a\nb\u{1b}[2K\u{202e}", "it's \\"],
        read: show,
    },
];

fn read_change(text: &str) {
    let rule =
        Rule::of(&Watched::of(7, 2, "public.users", &["u:{id}", "e:{email}"])).expect("a rule");
    if let Ok(Announcement::Change(change)) = change::parse(text) {
        let _ = rule.stale(&change, |_| {});
    }
    if let Ok(row) = Row::parse(text) {
        rule.row(&row).for_each(drop);
    }
}

fn read_template(text: &str) {
    let Ok(template) = Template::parse(text) else { return };
    let columns: Vec<String> = template.columns().map(str::to_owned).collect();
    let row = Row(columns
        .iter()
        .map(|column| (column.as_str().into(), Some(Some(text.into()))))
        .collect());
    assert!(template.render(&row).is_some() && template.render(&Row::default()).is_some());
}

fn read_snapshot(text: &str) {
    if let Ok(snapshot) = text.parse::<Snapshot>() {
        assert_eq!(snapshot.to_string().parse::<Snapshot>().expect("its own text"), snapshot);
        let _ = (snapshot.sees(0), snapshot.sees(u64::MAX));
    }
    let _ = pg::log::parse_snapshot(text);
}

fn read_configuration(text: &str) {
    let directory =
        tempfile::tempdir_in(if Path::new("/dev/shm").is_dir() { "/dev/shm" } else { "/tmp" })
            .expect("a directory");
    let file = directory.path().join("file");
    std::fs::write(&file, text).expect("a file");
    // As a file of settings its own lines may be named; never those of secrets, which are beside
    // `url`.
    let _ = Config::load(Some(&file), []);
    let name = file.display().to_string();
    for variable in ["DATABASE_URL_FILE", "REDIS_URL_FILE"] {
        keeps_secrets(Config::load(None, [(variable.to_owned(), name.clone())]).err());
    }
}

fn read_variables(text: &str) {
    for key in keys() {
        let loaded = Config::load(None, [(key.variable, text.to_owned())]);
        if key.is_secret {
            keeps_secrets(loaded.err());
        }
    }
    let _ = Config::load(
        None,
        [(text.to_owned(), text.to_owned()), (format!("UNSTALE_{text}"), text.to_owned())],
    );
}

fn read_urls(text: &str) {
    for variable in ["DATABASE_URL", "REDIS_URL"] {
        let Ok(config) = Config::load(None, [(variable.to_owned(), text.to_owned())]) else {
            continue;
        };
        if let Ok(url) = config.database_url() {
            keeps_secrets_of(
                text,
                Postgres::new(url.clone())
                    .map(|postgres| (postgres.place(), postgres.exposure()))
                    .err(),
            );
        }
        if let Ok(url) = config.redis_url() {
            let sink = Sink::new(url.clone(), &Tls::default(), Duration::from_secs(1));
            keeps_secrets(sink.map(|sink| (sink.user().to_owned(), sink.exposure())).err());
        }
    }
    // Also past the configuration, which refuses the worst.
    let secret = SecretString::from(text.to_owned());
    keeps_secrets_of(text, Postgres::new(secret.clone()).err());
    keeps_secrets(Sink::new(secret.clone(), &Tls::default(), Duration::from_secs(1)).err());
}

/// Of a URL of PostgreSQL's. Whoever writes it into another parameter, such as the name of a file,
/// has no secret there.
fn keeps_secrets_of<E: std::fmt::Display + std::fmt::Debug>(url: &str, error: Option<E>) {
    let is_elsewhere =
        |parameter: &str| !parameter.starts_with("password") && parameter.contains(SECRET);
    if !url.split(['?', '&']).skip(1).any(is_elsewhere) {
        keeps_secrets(error);
    }
}

fn keeps_secrets<E: std::fmt::Display + std::fmt::Debug>(error: Option<E>) {
    if let Some(error) = error {
        assert!(!format!("{error} {error:?}").contains(SECRET), "{error}");
    }
}

fn read_info(text: &str) {
    for finding in sink::check::findings(text, false) {
        let remedy = finding.remedy.unwrap_or_default();
        assert!(!remedy.contains(['$', '`', ';', '\n', '|', '&']), "{remedy}");
    }
}

fn show(text: &str) {
    assert!(visible::line(text).lines().count() <= 1);
    let _ = (visible::json(text), visible::in_sql(text), visible::in_shell(text));
}

/// What parsers stumble over.
const ODD: &[&str] = &[
    "\0",
    "%00",
    "\r\n",
    "\n",
    "\t",
    "\u{feff}",
    "ä",
    "\u{202e}",
    "👍",
    "%",
    "%ff",
    "%F0%9F",
    "{",
    "}",
    "{{",
    "[",
    "]",
    "[{",
    "\"",
    "'",
    "\\",
    "\\u",
    ":",
    "//",
    "@",
    "?",
    "&",
    "=",
    ",",
    "#",
    "-",
    ".",
    "99999999999999999999",
    "-1",
    "1e999",
    "null",
    "$(x)",
    SECRET,
];

/// A right text with some places changed, pieces that mean something to a parser, or anything.
fn texts(seeds: &'static [&'static str]) -> impl Strategy<Value = String> {
    let edit = (
        any::<Index>(),
        any::<Index>(),
        prop_oneof![
            select(ODD).prop_map(str::to_owned),
            any::<char>().prop_map(String::from),
            Just(String::new())
        ],
    );
    let edited = (select(seeds), prop::collection::vec(edit, 0..6)).prop_map(|(seed, edits)| {
        edits.into_iter().fold(seed.to_owned(), |text, (from, length, new)| {
            let chars: Vec<char> = text.chars().collect();
            let from = from.index(chars.len() + 1);
            let to = from + length.index((chars.len() - from).min(8) + 1);
            chars[..from]
                .iter()
                .copied()
                .chain(new.chars())
                .chain(chars[to..].iter().copied())
                .collect()
        })
    });
    let pieces = prop::collection::vec(
        prop_oneof![
            select(ODD).prop_map(str::to_owned),
            select(seeds).prop_map(str::to_owned),
            any::<String>()
        ],
        0..8,
    );
    prop_oneof![4 => edited, 2 => pieces.prop_map(|pieces| pieces.concat()), 1 => any::<String>()]
}

/// Reads so many texts. A failure names the shortest that does it.
fn feed(deletion: &Deletion, cases: u32) {
    let mut runner = TestRunner::new(Runs { cases, failure_persistence: None, ..Runs::default() });
    let fed = runner.run(&texts(deletion.seeds), |text| {
        (deletion.read)(&text);
        Ok(())
    });
    fed.unwrap_or_else(|error| panic!("{}: {error}", deletion.name));
}

#[test]
fn no_text_makes_what_reads_it_panic_or_tell_a_secret() {
    for deletion in TARGETS {
        for seed in deletion.seeds {
            (deletion.read)(seed);
        }
        feed(deletion, 200);
    }
}

#[test]
#[ignore = "minutes; ./dev fuzz runs it"]
fn no_text_is_too_odd_for_as_long_as_one_cares_to_look() {
    let asked = std::env::var("UNSTALE_FUZZ").unwrap_or_else(|_| "5m".to_owned());
    let length =
        humantime::parse_duration(&asked).expect("UNSTALE_FUZZ is a duration, as in 90s or 1h");
    let (began, mut told, mut fed) = (Instant::now(), Instant::now(), 0_u64);
    while began.elapsed() < length {
        for deletion in TARGETS {
            feed(deletion, 100);
            fed += 100;
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                eprintln!(
                    "fuzz: {:.0?} of {length:.0?}, {fed} texts, now: {}",
                    began.elapsed(),
                    deletion.name
                );
            }
        }
    }
    eprintln!(
        "fuzz: {fed} texts into {} readers, and none of them panicked or told a secret",
        TARGETS.len()
    );
}
