//! The configuration as meant: read from its sources, put together, checked.
//!
//! Defaults, then the file, then systemd's credentials, then the environment; the later one wins. What comes out of
//! [`Config::load`] is within its limits, so nobody downstream checks again. It must never show a secret, neither in
//! `Debug` nor in an error, and it refuses whatever it does not know rather than run with half of what was meant.
//!
//! Every problem that can be found at once is reported at once. A missing URL is no problem until somebody asks for it:
//! `migrate` needs no Redis.

mod environment;
mod error;
mod file;
mod section;
mod text;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use figment::{Figment, Profile};
use secrecy::{ExposeSecret as _, SecretString};
use tracing_subscriber::EnvFilter;

use environment::Environment;
use section::File;

pub use error::{Error, Problem};
pub use file::{Key, keys};
pub use section::{
    Backoff, Batch, Database, Delivery, Heartbeat, Http, Log, LogFormat, Redis, Shutdown, Sweep,
    Watch,
};

/// Read if no file is named, and if it is there.
pub const DEFAULT_FILE: &str = "/etc/unstale/unstale.toml";

/// No duration may be longer: all of them are waits, and sums with the clock must not overflow.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Everything that can be set, within its limits. `Debug` shows no secrets.
#[derive(Debug, Clone)]
pub struct Config {
    /// PostgreSQL.
    pub database: Database,
    /// Redis or Valkey.
    pub redis: Redis,
    /// This listener's name: its checkpoint and its gaps are kept under it. 1 to 63 of `A-Z a-z 0-9 _ . -`.
    pub instance: String,
    /// `/live`, `/ready` and `/metrics`.
    pub http: Http,
    /// What the program writes to stderr.
    pub log: Log,
    /// The proof that a change would arrive.
    pub heartbeat: Heartbeat,
    /// The pause before connecting again.
    pub backoff: Backoff,
    /// The keys on their way to Redis.
    pub batch: Batch,
    /// Reading back what changed during a gap.
    pub sweep: Sweep,
    /// Leaving.
    pub shutdown: Shutdown,
    /// The `[[watch]]` list of the file, each table once; only `apply` and `explain` read it.
    pub watches: Vec<Watch>,
}

impl Default for Config {
    fn default() -> Self {
        Self::from(File::default())
    }
}

impl From<File> for Config {
    fn from(file: File) -> Self {
        Self {
            database: file.database,
            redis: file.redis,
            instance: file.instance,
            http: file.http,
            log: file.log,
            heartbeat: file.heartbeat,
            backoff: file.backoff,
            batch: file.batch,
            sweep: file.sweep,
            shutdown: file.shutdown,
            watches: file.watch,
        }
    }
}

impl Config {
    /// The configuration of this process: `path` (`--config`), else `UNSTALE_CONFIG`, else [`DEFAULT_FILE`] if it is
    /// there, and the process's environment.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn from_process(path: Option<&Path>) -> Result<Self, Error> {
        let mut problems = Vec::new();
        let mut variables = BTreeMap::new();
        // `std::env::vars` panics at a value that is not UTF-8, even if it is not ours.
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else {
                continue;
            };
            match value.into_string() {
                Ok(value) => drop(variables.insert(name, value)),
                Err(_) if environment::is_ours(&name) => {
                    problems.push(Problem::new(name, "the value is not UTF-8"));
                }
                Err(_) => {}
            }
        }
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        Self::read(path, Some(Path::new(DEFAULT_FILE)), variables)
    }

    /// The configuration of a file and of an environment, neither of which need be the process's own. Without `path`,
    /// `UNSTALE_CONFIG` of this environment names the file, and else there is none.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        Self::read(path, None, environment.into_iter().collect())
    }

    /// Where PostgreSQL is.
    ///
    /// # Errors
    ///
    /// [`Error::NoDatabaseUrl`] if nobody said.
    pub fn database_url(&self) -> Result<&SecretString, Error> {
        self.database.url.as_ref().ok_or(Error::NoDatabaseUrl)
    }

    /// Where Redis is.
    ///
    /// # Errors
    ///
    /// [`Error::NoRedisUrl`] if nobody said.
    pub fn redis_url(&self) -> Result<&SecretString, Error> {
        self.redis.url.as_ref().ok_or(Error::NoRedisUrl)
    }

    fn read(
        path: Option<&Path>,
        fallback: Option<&Path>,
        variables: BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        let set = |name| variables.get(name).filter(|value| !value.is_empty());
        let named = path
            .map(Path::to_owned)
            .or_else(|| set(environment::CONFIG_FILE).map(PathBuf::from));

        let mut problems = Vec::new();
        let mut figment = Figment::new();
        if let Some((path, text)) = read_file(named.as_deref(), fallback)? {
            figment = figment.merge(file::Source::parse(&path, &text, &mut problems)?);
        }
        if let Some(directory) = set(environment::CREDENTIALS) {
            let directory = Path::new(directory);
            figment = figment.merge(Environment::from_credentials(directory, &mut problems));
        }
        figment = figment.merge(Environment::from_variables(&variables, &mut problems));
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }

        let file: File = figment
            .extract()
            .map_err(|error| Error::Invalid(error.into_iter().map(Problem::from).collect()))?;
        let config = Self::from(file);
        let mut limits = Limits {
            figment: &figment,
            problems,
        };
        limits.check(&config);
        if limits.problems.is_empty() {
            Ok(config)
        } else {
            Err(Error::Invalid(limits.problems))
        }
    }
}

/// A file that was named must be there; the fallback need not.
fn read_file(
    named: Option<&Path>,
    fallback: Option<&Path>,
) -> Result<Option<(PathBuf, String)>, Error> {
    let Some(path) = named.or(fallback) else {
        return Ok(None);
    };
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some((path.to_owned(), text))),
        Err(error) if named.is_none() && error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

/// What a value's type cannot say.
struct Limits<'a> {
    figment: &'a Figment,
    problems: Vec<Problem>,
}

impl Limits<'_> {
    fn check(&mut self, config: &Config) {
        let millis = Duration::from_millis;
        // Every wait is at least a millisecond: nought would spin.
        self.span("redis.timeout", config.redis.timeout, millis(1));
        self.span("heartbeat.interval", config.heartbeat.interval, millis(50));
        self.span("heartbeat.timeout", config.heartbeat.timeout, millis(1));
        self.span("backoff.min", config.backoff.min, millis(1));
        self.span("backoff.max", config.backoff.max, millis(1));
        self.span("batch.stall", config.batch.stall, millis(1));
        self.span("shutdown.timeout", config.shutdown.timeout, millis(1));

        self.number(
            "batch.keys_per_command",
            config.batch.keys_per_command,
            1..=10_000,
        );
        self.number("batch.in_flight", config.batch.in_flight, 1..=64);
        // Up to 10 million keys of 100 bytes are a gigabyte; beyond, a sweep is the better memory.
        self.number(
            "batch.max_pending",
            config.batch.max_pending,
            1_000..=10_000_000,
        );
        self.number("sweep.page_rows", config.sweep.page_rows, 100..=1_000_000);

        self.relations(config);
        self.texts(config);
        self.urls(config);
        self.watches(&config.watches);
    }

    fn relations(&mut self, config: &Config) {
        let Heartbeat { interval, timeout } = config.heartbeat;
        let twice = interval.saturating_mul(2);
        if timeout < twice {
            let interval_place = self.place("heartbeat.interval");
            self.problem(
                "heartbeat.timeout",
                format!(
                    "{} is less than two intervals, so that one late heartbeat ends the session; \
                     write at least {} or lower {interval_place} ({})",
                    written(timeout),
                    written(twice),
                    written(interval),
                ),
            );
        }
        let Backoff { min, max } = config.backoff;
        if min > max {
            let max_place = self.place("backoff.max");
            let fault = format!(
                "{} is more than {max_place} ({})",
                written(min),
                written(max)
            );
            self.problem("backoff.min", fault);
        }
    }

    fn texts(&mut self, config: &Config) {
        let instance = &config.instance;
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if !(1..=63).contains(&instance.len()) || !instance.bytes().all(is_allowed) {
            let fault =
                format!("\"{instance}\" is not 1 to 63 of A-Z a-z 0-9 _ . -, as in eu-west-1");
            self.problem("instance", fault);
        }
        let filter = &config.log.filter;
        if let Err(error) = EnvFilter::builder().parse(filter) {
            let fault = format!(
                "\"{filter}\" is not a filter ({error}); write it as in info or warn,unstale=debug"
            );
            self.problem("log.filter", fault);
        }
    }

    /// Only the scheme: the libraries know the rest, but what they say when they do not may show the URL.
    fn urls(&mut self, config: &Config) {
        if let Some(url) = &config.database.url
            && !matches!(scheme(url), "postgres" | "postgresql")
        {
            let fault = "is not a PostgreSQL URL; write it as in postgres://user:password@host:5432/database";
            self.problem("database.url", fault);
        }
        if let Some(url) = &config.redis.url
            && !is_redis_scheme(scheme(url))
        {
            let fault = "is not a Redis URL; write it as in redis://:password@host:6379/0, rediss:// (TLS), \
                         redis-cluster://, redis-sentinel:// or redis+unix:///run/redis.sock";
            self.problem("redis.url", fault);
        }
    }

    fn watches(&mut self, watches: &[Watch]) {
        for (index, watch) in watches.iter().enumerate() {
            let key = |name| format!("watch.{index}.{name}");
            if watch.table.is_empty() {
                self.problem(
                    &key("table"),
                    "is missing; name the table as in public.users",
                );
            }
            if watches[..index]
                .iter()
                .any(|earlier| earlier.table == watch.table)
            {
                let fault = format!(
                    "\"{}\" is listed twice; put its keys in one [[watch]]",
                    watch.table
                );
                self.problem(&key("table"), fault);
            }
            if watch.keys.is_empty() {
                self.problem(
                    &key("keys"),
                    "names no key; write at least one, as in [\"user:{id}\"]",
                );
            }
            if watch.only_columns.as_ref().is_some_and(Vec::is_empty) {
                let fault =
                    "is empty, so that no UPDATE would count; leave it out if all columns do";
                self.problem(&key("only_columns"), fault);
            }
        }
    }

    fn span(&mut self, key: &str, value: Duration, least: Duration) {
        if !(least..=LONGEST).contains(&value) {
            let (least, most) = (written(least), written(LONGEST));
            let fault = format!(
                "{} is out of range; write {least} to {most}",
                written(value)
            );
            self.problem(key, fault);
        }
    }

    fn number<T: PartialOrd + Display>(&mut self, key: &str, value: T, range: RangeInclusive<T>) {
        if !range.contains(&value) {
            let (least, most) = (range.start(), range.end());
            let fault = format!("{value} is out of range; write {least} to {most}");
            self.problem(key, fault);
        }
    }

    fn problem(&mut self, key: &str, fault: impl Into<String>) {
        let place = self.place(key);
        self.problems.push(Problem::new(place, fault));
    }

    /// The key as whoever set it wrote it; the key itself if it is a default.
    fn place(&self, key: &str) -> String {
        // A key that is missing from a [[watch]] has its place by the list.
        let watches = || {
            self.figment
                .find_metadata("watch")
                .filter(|_| key.starts_with("watch."))
        };
        let parts: Vec<&str> = key.split('.').collect();
        match self.figment.find_metadata(key).or_else(watches) {
            Some(metadata) => metadata.interpolate(&Profile::Default, &parts),
            None => key.to_owned(),
        }
    }
}

fn written(span: Duration) -> String {
    humantime::format_duration(span).to_string()
}

fn scheme(url: &SecretString) -> &str {
    url.expose_secret()
        .split_once("://")
        .map_or("", |(scheme, _)| scheme)
}

/// fred's schemes.
fn is_redis_scheme(scheme: &str) -> bool {
    let (name, suffix) = scheme.split_once(['-', '+']).unwrap_or((scheme, ""));
    matches!(name, "redis" | "rediss" | "valkey" | "valkeys")
        && matches!(suffix, "" | "cluster" | "sentinel" | "unix")
}
