//! What a value's type cannot say: ranges, one key against another, the shape of names and URLs.
//!
//! Finds all problems at once. A secret's value is looked at here, and must not get into a
//! sentence.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use figment::{Figment, Profile};
use secrecy::{ExposeSecret as _, SecretString};

use super::error::Problem;
use super::{Audit, Backoff, Config, Heartbeat, Tls, Watch, filter};

/// No duration may be longer: all of them are waits, and sums with the clock must not overflow.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// Each has a connection, and is asked twenty times a second.
const MOST_REPLICAS: usize = 32;

/// Each of them is another look at each key of the sample.
const MOST_LOOKS: usize = 8;

/// Each of them is another UNLINK of every key.
const MOST_REPEATS: usize = 4;

/// What is wrong with `config`, which was extracted from `figment`.
pub(super) fn problems(config: &Config, figment: &Figment) -> Vec<Problem> {
    let mut limits = Limits { figment, problems: Vec::new() };
    limits.check(config);
    limits.problems
}

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
        self.span("replay.window", config.replay.window, millis(1));
        self.repeats(&config.repeat.after);
        self.sample(&config.audit);
        self.span("replicas.max_wait", config.replicas.max_wait, millis(1));
        self.span("shutdown.timeout", config.shutdown.timeout, millis(1));

        self.number("batch.keys_per_command", config.batch.keys_per_command, 1..=10_000);
        self.number("batch.in_flight", config.batch.in_flight, 1..=64);
        // Up to 10 million keys of 100 bytes are a gigabyte; beyond, a sweep is the better memory.
        self.number("batch.max_pending", config.batch.max_pending, 1_000..=10_000_000);
        let forget_after = config.checkpoint.forget_after;
        if !(LONGEST / 24..=LONGEST * 365).contains(&forget_after) {
            self.problem(
                "checkpoint.forget_after",
                format!("{} is not between 1h and 1y", written(forget_after)),
            );
        }
        self.number("sweep.page_rows", config.sweep.page_rows, 100..=1_000_000);

        self.relations(config);
        self.texts(config);
        self.urls(config);
        self.tls(config);
        self.watches(&config.watches);
    }

    /// What waits is bounded in bytes; the number of delays is how often each key goes to Redis.
    fn repeats(&mut self, after: &[Duration]) {
        if after.len() > MOST_REPEATS {
            self.problem(
                "repeat.after",
                format!("lists {} durations; write {MOST_REPEATS} at the most", after.len()),
            );
        }
        for delay in after {
            self.span("repeat.after", *delay, Duration::from_millis(1));
        }
    }

    fn sample(&mut self, audit: &Audit) {
        self.number("audit.sample", audit.sample, 0.0..=1.0);
        if audit.after.len() > MOST_LOOKS {
            self.problem(
                "audit.after",
                format!("lists {} durations; write {MOST_LOOKS} at the most", audit.after.len()),
            );
        }
        for delay in &audit.after {
            self.span("audit.after", *delay, Duration::from_millis(1));
        }
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
            let fault = format!("{} is more than {max_place} ({})", written(min), written(max));
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
        let written = &config.log.filter;
        if let Err(error) = filter::targets(written) {
            let fault = format!(
                "\"{written}\" is not a filter ({error}); write it as in info or warn,unstale=debug"
            );
            self.problem("log.filter", fault);
        }
    }

    fn urls(&mut self, config: &Config) {
        for (key, url) in [("database.url", &config.database.url), ("redis.url", &config.redis.url)]
        {
            if let Some(fault) = url.as_ref().and_then(|url| fault_of_url(key, url)) {
                self.problem(key, fault);
            }
        }
        let urls = &config.replicas.urls;
        if urls.len() > MOST_REPLICAS {
            self.problem(
                "replicas.urls",
                format!("lists {} replicas; {MOST_REPLICAS} can be followed", urls.len()),
            );
        }
        for (number, fault) in urls
            .iter()
            .enumerate()
            .filter_map(|(n, url)| Some((n + 1, fault_of_url("replicas.urls", url)?)))
        {
            self.problem("replicas.urls", format!("number {number} {fault}"));
        }
    }

    /// Only the names: a command that needs no Redis must not fail for the files.
    fn tls(&mut self, config: &Config) {
        let Tls { ca_file, cert_file, key_file } = &config.redis.tls;
        let names = [
            ("redis.tls.ca_file", ca_file),
            ("redis.tls.cert_file", cert_file),
            ("redis.tls.key_file", key_file),
        ];
        if let Some(url) = &config.redis.url
            && !has_tls(scheme(url))
        {
            for (key, _) in names.into_iter().filter(|(_, file)| file.is_some()) {
                let url_place = self.place("redis.url");
                self.problem(key, format!("is for TLS, which {url_place} does not ask for; begin that with rediss://, or leave this out"));
            }
        }
        match (cert_file, key_file) {
            (Some(_), None) => self.problem(
                "redis.tls.cert_file",
                "needs its private key; name that file in redis.tls.key_file",
            ),
            (None, Some(_)) => self.problem(
                "redis.tls.key_file",
                "is for a certificate; name that file in redis.tls.cert_file",
            ),
            _ => {}
        }
    }

    fn watches(&mut self, watches: &[Watch]) {
        for (index, watch) in watches.iter().enumerate() {
            let key = |name| format!("watch.{index}.{name}");
            if watch.table.is_empty() {
                self.problem(&key("table"), "is missing; name the table as in public.users");
            }
            if watches[..index].iter().any(|earlier| earlier.table == watch.table) {
                let fault =
                    format!("\"{}\" is listed twice; put its keys in one [[watch]]", watch.table);
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
            if let Some(ttl) = watch.max_ttl
                && !(Duration::from_secs(1)..=LONGEST * 365).contains(&ttl)
            {
                let fault = format!(
                    "{} is out of range; write 1s to 365days, or leave it out if any will do",
                    written(ttl)
                );
                self.problem(&key("max_ttl"), fault);
            }
        }
    }

    fn span(&mut self, key: &str, value: Duration, least: Duration) {
        if !(least..=LONGEST).contains(&value) {
            let (least, most) = (written(least), written(LONGEST));
            let fault = format!("{} is out of range; write {least} to {most}", written(value));
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
        let watches = || self.figment.find_metadata("watch").filter(|_| key.starts_with("watch."));
        let parts: Vec<&str> = key.split('.').collect();
        match self.figment.find_metadata(key).or_else(watches) {
            Some(metadata) => metadata.interpolate(&Profile::Default, &parts),
            None => key.to_owned(),
        }
    }
}

/// What is wrong with the URL of a key, as far as can be said without its parser: what the
/// libraries say may show the URL.
pub(super) fn fault_of_url(key: &str, url: &SecretString) -> Option<&'static str> {
    // A parser of URLs leaves out line breaks without a word; and a NUL ends a text of PostgreSQL's
    // protocol.
    let text = url.expose_secret();
    if text.contains(char::is_control) || text.contains("%00") {
        return Some(
            "holds a line break, a NUL or another control character; write the URL on one line, and nothing else",
        );
    }
    match key {
        "database.url" | "replicas.urls" if !matches!(scheme(url), "postgres" | "postgresql") => {
            Some(
                "is not a PostgreSQL URL; write it as in postgres://user:password@host:5432/database",
            )
        }
        "redis.url" if !is_redis_scheme(scheme(url)) => Some(
            "is not a Redis URL; write it as in redis://:password@host:6379/0, rediss:// (TLS) \
             or redis+unix:///run/redis.sock",
        ),
        _ => None,
    }
}

fn written(span: Duration) -> String {
    humantime::format_duration(span).to_string()
}

fn scheme(url: &SecretString) -> &str {
    url.expose_secret().split_once("://").map_or("", |(scheme, _)| scheme)
}

/// fred's schemes.
fn is_redis_scheme(scheme: &str) -> bool {
    let (name, suffix) = scheme.split_once(['-', '+']).unwrap_or((scheme, ""));
    matches!(name, "redis" | "rediss" | "valkey" | "valkeys")
        && matches!(suffix, "" | "cluster" | "sentinel" | "unix")
}

/// Whether a scheme of Redis means TLS.
fn has_tls(scheme: &str) -> bool {
    matches!(scheme, "rediss" | "valkeys")
}
