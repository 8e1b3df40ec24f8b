//! What the configuration accepts, what it refuses, and with which words.

use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::ExposeSecret as _;
use tempfile::TempDir;
use unstale::config::{Config, Delivery, Error, LogFormat, keys};

const EXAMPLE: &str = include_str!("../config/unstale.toml");

/// Loads a file and an environment of this test's own.
struct Given {
    directory: TempDir,
    file: Option<PathBuf>,
    variables: Vec<(String, String)>,
}

fn given() -> Given {
    Given {
        directory: tempfile::tempdir().expect("a directory"),
        file: None,
        variables: Vec::new(),
    }
}

impl Given {
    fn file(mut self, text: &str) -> Self {
        let path = self.write("unstale.toml", text);
        self.file = Some(path);
        self
    }

    fn variable(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// A variable whose value is the path of a new file.
    fn variable_file(self, name: &str, text: &str) -> Self {
        let path = self.write(name, text).display().to_string();
        self.variable(name, path)
    }

    fn credential(self, name: &str, text: &str) -> Self {
        self.write(name, text);
        let directory = self.directory.path().display().to_string();
        self.variable("CREDENTIALS_DIRECTORY", directory)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    }

    fn load(&self) -> Result<Config, Error> {
        Config::load(self.file.as_deref(), self.variables.clone())
    }

    fn loaded(&self) -> Config {
        self.load().expect("a configuration")
    }

    /// The error, with the directory's name cut out of it.
    fn refused(&self) -> String {
        let error = self.load().expect_err("an error").to_string();
        error.replace(&format!("{}/", self.directory.path().display()), "")
    }
}

fn database(config: &Config) -> &str {
    config.database_url().expect("a URL").expose_secret()
}

#[test]
fn the_example_file_says_what_the_program_does_without_one() {
    let example = given().file(EXAMPLE).loaded();
    // Debug, because secrets cannot be compared; both have none.
    assert_eq!(format!("{example:?}"), format!("{:?}", Config::default()));
}

#[test]
fn the_example_file_shows_every_key_and_its_comments_are_valid_settings() {
    let everything: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let config = given().file(&everything).loaded();
    assert_eq!(database(&config), "postgres://unstale_listener:password@localhost:5432/app");
    assert_eq!(config.watches[0].only_columns.as_deref().map(<[_]>::len), Some(2));
    assert_eq!(config.watches[0].max_ttl, Some(Duration::from_secs(3600)));

    let mut section = String::new();
    let mut shown = Vec::new();
    for line in everything.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            section = format!("{}.", name.trim_matches(['[', ']']));
        } else if let Some((key, _)) = line.split_once(" = ") {
            shown.push(format!("{section}{key}"));
        }
    }
    for key in keys() {
        assert!(shown.contains(&key.path), "config/unstale.toml lacks {}", key.path);
    }
}

#[test]
fn the_two_urls_alone_are_enough() {
    let config = given()
        .variable("DATABASE_URL", "postgres://db/app")
        .variable("REDIS_URL", "redis://cache")
        .loaded();
    assert_eq!(database(&config), "postgres://db/app");
    assert_eq!(config.redis_url().expect("a URL").expose_secret(), "redis://cache");
    assert_eq!(config.heartbeat.interval, Duration::from_secs(1));
    assert_eq!(config.log.format, LogFormat::Auto);
    assert_eq!(config.http.listen, None);
}

#[test]
fn the_environment_wins_over_credentials_and_those_over_the_file() {
    let file = "[database]\nurl = 'postgres://file'\n[redis]\nurl = 'redis://file'\ntimeout = '3s'";
    let config = given()
        .file(file)
        .credential("database_url", "postgres://credential\n")
        .credential("redis_url", "redis://credential\n")
        .variable("REDIS_URL", "redis://environment")
        .loaded();
    assert_eq!(database(&config), "postgres://credential");
    assert_eq!(config.redis_url().expect("a URL").expose_secret(), "redis://environment");
    assert_eq!(config.redis.timeout, Duration::from_secs(3));
}

#[test]
fn a_url_for_unstale_alone_wins_over_the_application_s() {
    let config = given()
        .variable("DATABASE_URL", "postgres://pooler")
        .variable("UNSTALE_DATABASE__URL", "postgres://direct")
        .loaded();
    assert_eq!(database(&config), "postgres://direct");
}

#[test]
fn a_secret_may_come_from_a_file_and_loses_its_newline() {
    let config = given().variable_file("DATABASE_URL_FILE", "postgres://db\r\n").loaded();
    assert_eq!(database(&config), "postgres://db");
    let config = given().variable_file("UNSTALE_REDIS__URL_FILE", "redis://r\n").loaded();
    assert_eq!(config.redis_url().expect("a URL").expose_secret(), "redis://r");
}

#[test]
fn a_secret_s_file_that_is_not_there_is_named_with_its_variable() {
    let error = given().variable("REDIS_URL_FILE", "/nowhere/redis").refused();
    assert!(error.starts_with("REDIS_URL_FILE: /nowhere/redis cannot be read ("), "{error}");
}

#[test]
fn an_empty_secret_counts_as_not_set() {
    let config = given().variable("DATABASE_URL", "").file("redis.url = ''").loaded();
    let error = config.database_url().expect_err("none").to_string();
    assert!(
        error.starts_with("DATABASE_URL is not set") && error.contains("postgres://"),
        "{error}"
    );
    let error = config.redis_url().expect_err("none").to_string();
    assert!(error.starts_with("REDIS_URL is not set") && error.contains("redis://"), "{error}");
}

#[test]
fn digits_are_a_text_where_a_text_belongs() {
    assert_eq!(given().variable("UNSTALE_INSTANCE", "42").loaded().instance, "42");
    assert_eq!(given().variable("UNSTALE_INSTANCE", "true").loaded().instance, "true");
    assert_eq!(given().file("instance = 42").loaded().instance, "42");
}

#[test]
fn a_number_may_come_from_the_environment() {
    assert_eq!(given().variable("UNSTALE_BATCH__IN_FLIGHT", "16").loaded().batch.in_flight, 16);
    let error = given().variable("UNSTALE_BATCH__IN_FLIGHT", "many").refused();
    assert_eq!(error, "UNSTALE_BATCH__IN_FLIGHT: \"many\" is not a whole number");
    let error = given().file("batch.in_flight = -1").refused();
    assert!(error.starts_with("batch.in_flight in unstale.toml: -1 is not a whole"), "{error}");
}

#[test]
fn a_duration_without_a_unit_is_shown_one() {
    let fault = "\"30\" is not a duration; write a unit, as in 30s or 2m";
    let error = given().variable("UNSTALE_HEARTBEAT__INTERVAL", "30").refused();
    assert_eq!(error, format!("UNSTALE_HEARTBEAT__INTERVAL: {fault}"));
    let error = given().file("heartbeat.interval = 30").refused();
    assert_eq!(error, format!("heartbeat.interval in unstale.toml: {fault}"));
}

#[test]
fn an_entry_of_a_list_is_named_with_its_variable_and_never_shown_if_it_is_secret() {
    let fault = "\"10\" is not a duration; write a unit, as in 30s or 2m";
    let error = given().variable("UNSTALE_REPEAT__AFTER", "1s, 10").refused();
    assert_eq!(error, format!("UNSTALE_REPEAT__AFTER: {fault}"));
    for written in ["'1s, 10'", "['1s', '10']", "['1s', 10]"] {
        let error = given().file(&format!("repeat.after = {written}")).refused();
        assert_eq!(error, format!("repeat.after in unstale.toml: {fault}"));
    }
    let error =
        given().variable("UNSTALE_REPLICAS__URLS", "postgres://a  mysql://u:hunter2@b").refused();
    assert!(
        error.starts_with("UNSTALE_REPLICAS__URLS: number 2 is not") && !error.contains("hunter2"),
        "{error}"
    );
    let error = given().file("replicas.urls = [2.5]").refused();
    assert!(error.contains("replicas.urls in unstale.toml: the value is not a text"), "{error}");
    let error = given().file("audit.sample = 'x'").refused();
    assert_eq!(
        error,
        "audit.sample in unstale.toml: \"x\" is not a number (written without quotes)"
    );
}

#[test]
fn all_unknown_keys_are_named_with_their_place_and_the_nearest_key() {
    let error = given()
        .file("[http]\nlistn = ''\n[htp]\nlisten = ''\n[[watch]]\ntabel = 'x'")
        .variable("UNSTALE_LOG__FROMAT", "json")
        .refused();
    assert_eq!(
        error.lines().map(str::trim).collect::<Vec<_>>(),
        [
            "htp.listen in unstale.toml: unknown key; did you mean http.listen?",
            "http.listn in unstale.toml: unknown key; did you mean http.listen?",
            "tabel of [[watch]] number 1 in unstale.toml: unknown key; did you mean table?",
            "UNSTALE_LOG__FROMAT: unknown key; did you mean UNSTALE_LOG__FORMAT?",
        ]
    );
}

#[test]
fn other_programs_variables_are_none_of_our_business() {
    given()
        .variable("RUST_LOG", "nonsense=nonsense")
        .variable("PGPASSWORD", "x")
        .variable("UNSTALE_PORT", "tcp://10.0.0.1:80")
        .loaded();
}

#[test]
fn a_value_beyond_its_limit_is_named_with_the_limit() {
    let cases = [
        ("UNSTALE_HEARTBEAT__INTERVAL", "10ms", "10ms is out of range; write 50ms to 1day"),
        ("UNSTALE_BATCH__KEYS_PER_COMMAND", "0", "0 is out of range; write 1 to 10000"),
        ("UNSTALE_BATCH__MAX_PENDING", "999", "999 is out of range; write 1000 to 10000000"),
        ("UNSTALE_SWEEP__PAGE_ROWS", "99", "99 is out of range; write 100 to 1000000"),
        ("UNSTALE_REDIS__TIMEOUT", "0s", "0s is out of range; write 1ms to 1day"),
        ("UNSTALE_INSTANCE", "a b", "\"a b\" is not 1 to 63 of A-Z a-z 0-9 _ . -, as in eu-west-1"),
        ("UNSTALE_LOG__FORMAT", "xml", "\"xml\" is not one of auto, text, json, journald"),
        ("UNSTALE_BACKOFF__MIN", "11s", "11s is more than backoff.max (10s)"),
    ];
    for (variable, value, fault) in cases {
        let error = given().variable(variable, value).refused();
        assert_eq!(error, format!("{variable}: {fault}"));
    }
    let error = given().variable("UNSTALE_HTTP__LISTEN", "9464").refused();
    assert!(error.contains("\"9464\"") && error.contains("127.0.0.1:9464"), "{error}");
    let error = given().variable("UNSTALE_LOG__FILTER", "a=b=c").refused();
    assert!(error.starts_with("UNSTALE_LOG__FILTER: \"a=b=c\" is not a filter"), "{error}");
}

#[test]
fn a_timeout_below_two_intervals_names_both_keys() {
    let error = given().variable("UNSTALE_HEARTBEAT__INTERVAL", "3s").refused();
    assert!(error.starts_with("heartbeat.timeout: 5s is less than two intervals"), "{error}");
    assert!(
        error.ends_with("write at least 6s or lower UNSTALE_HEARTBEAT__INTERVAL (3s)"),
        "{error}"
    );
}

#[test]
fn a_file_that_was_named_must_be_there() {
    let missing = Path::new("/nowhere/unstale.toml");
    let error = Config::load(Some(missing), []).expect_err("no such file");
    assert!(matches!(&error, Error::Read { path, .. } if path == missing), "{error}");
    let error = given().variable("UNSTALE_CONFIG", "/nowhere/2.toml").refused();
    assert!(error.contains("/nowhere/2.toml"), "{error}");
}

#[test]
fn the_environment_can_name_the_file_and_the_command_line_wins() {
    let named = given().variable_file("UNSTALE_CONFIG", "instance = 'environment'");
    assert_eq!(named.loaded().instance, "environment");
    assert_eq!(named.file("instance = 'argument'").loaded().instance, "argument");
}

#[test]
fn watches_are_read_with_their_defaults() {
    let file = "[[watch]]\ntable = 'public.users'\nkeys = ['user:{id}']\n\
                [[watch]]\ntable = 'public.orders'\nkeys = ['o:{id}']\ndelivery = 'log'\nupdated_at = ''";
    let watches = given().file(file).loaded().watches;
    assert_eq!(watches[0].delivery, Delivery::Row);
    assert_eq!(watches[0].updated_at.as_deref(), Some("updated_at"));
    assert_eq!(watches[0].only_columns, None);
    assert_eq!(watches[1].delivery, Delivery::Log);
    assert_eq!(watches[1].updated_at, None);
}

#[test]
fn a_watch_that_cannot_be_meant_is_refused_by_its_number() {
    let file = "[[watch]]\ntable = 'a'\nkeys = ['k']\n[[watch]]\ntable = 'a'\nonly_columns = []\n[[watch]]\nkeys = ['x']";
    let error = given().file(file).refused();
    let lines: Vec<&str> = error.lines().map(str::trim).collect();
    assert_eq!(lines.len(), 4, "{error}");
    assert!(
        lines[0].starts_with("table of [[watch]] number 2 in unstale.toml: \"a\" is listed twice")
    );
    assert!(lines[1].starts_with("keys of [[watch]] number 2 in unstale.toml: names no key"));
    assert!(lines[2].starts_with("only_columns of [[watch]] number 2 in unstale.toml: is empty"));
    assert!(lines[3].starts_with("table of [[watch]] number 3 in unstale.toml: is missing"));

    let error = given().file("[[watch]]\ntable = 'a'\nkeys = 'k'").refused();
    assert_eq!(
        error,
        "keys of [[watch]] number 1 in unstale.toml: \"k\" is not a list, as in [\"a\", \"b\"]"
    );
}

#[test]
fn broken_toml_is_named_by_its_position_and_never_by_its_text() {
    let error = given().file("[database]\nurl = \"postgres://u:hunter2@h\" x").refused();
    assert!(error.starts_with("unstale.toml, line 2, column "), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn a_section_that_is_written_as_a_value_is_shown_the_section() {
    let error = given().file("http = '127.0.0.1:9464'").refused();
    assert_eq!(
        error,
        "http in unstale.toml: is a section; write [http] and its keys on lines below"
    );
}

#[test]
fn secrets_are_shown_neither_by_debug_nor_by_errors() {
    let config = given()
        .variable("DATABASE_URL", "postgres://u:hunter2@db")
        .variable("REDIS_URL", "redis://:hunter2@r")
        .loaded();
    assert!(!format!("{config:?}").contains("hunter2"));

    let refused = [
        given().variable("DATABASE_URL", "mysql://u:hunter2@db"),
        given().variable("REDIS_URL", "hunter2@r:6379"),
        given().file("database.url = ['hunter2']"),
        given().file("redis.url = { hunter2 = 'x' }"),
        given().file("database.url = 2.5"),
    ];
    for given in refused {
        let error = given.load().expect_err("an error");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("2.5"), "{shown}");
    }
}

#[test]
fn files_of_tls_without_tls_and_a_certificate_without_its_key_are_refused() {
    let named = |name: &str| format!("UNSTALE_REDIS__TLS__{name}_FILE");
    let config = given()
        .file("[redis.tls]\nca_file = '/ca'\ncert_file = '/cert'")
        .variable(&named("KEY"), "/key")
        .variable(&named("CA"), "/other")
        .variable("REDIS_URL", "rediss://:hunter2@cache")
        .loaded();
    let tls = [config.redis.tls.ca_file, config.redis.tls.cert_file, config.redis.tls.key_file];
    assert_eq!(tls, ["/other", "/cert", "/key"].map(|name| Some(PathBuf::from(name))));

    let error = given()
        .variable(&named("CA"), "/ca")
        .variable("REDIS_URL", "redis://:hunter2@cache")
        .refused();
    assert_eq!(
        error,
        "UNSTALE_REDIS__TLS__CA_FILE: is for TLS, which REDIS_URL does not ask for; begin that with rediss://, or leave this out"
    );
    let error = given().file("redis.tls.cert_file = '/cert'").refused();
    assert_eq!(
        error,
        "redis.tls.cert_file in unstale.toml: needs its private key; name that file in redis.tls.key_file"
    );
    let error =
        given().variable(&named("KEY"), "/key").variable("REDIS_URL", "rediss://cache").refused();
    assert_eq!(
        error,
        "UNSTALE_REDIS__TLS__KEY_FILE: is for a certificate; name that file in redis.tls.cert_file"
    );
    let error = given().variable("UNSTALE_REDIS__TLS__CAFILE", "/ca").refused();
    assert_eq!(
        error,
        "UNSTALE_REDIS__TLS__CAFILE: unknown key; did you mean UNSTALE_REDIS__TLS__CA_FILE?"
    );
}

#[test]
fn every_scheme_of_redis_is_accepted_and_a_bare_socket_is_shown_its_own() {
    for scheme in ["redis", "rediss", "valkeys", "redis-cluster", "rediss-sentinel", "redis+unix"] {
        given().variable("REDIS_URL", format!("{scheme}://x")).loaded();
    }
    let error = given().variable("REDIS_URL", "unix:///run/redis.sock").refused();
    assert!(error.contains("redis+unix://"), "{error}");
}
