//! The configuration as typed: one struct a section, one field a key.
//!
//! A section owns its keys' names, types and defaults; nothing else in the program repeats them. To add a key, add a
//! field with its sentence and a line to the section's `Default`: the environment variable, the "did you mean", the
//! coercion of texts and [`super::keys`] all follow from the serialized defaults. (A test then asks for it in
//! `config/unstale.toml`.)
//!
//! What a type cannot say (limits, one key against another) is [`super::Config`]'s.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::text;

/// PostgreSQL.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// Where PostgreSQL is, `postgres://user:password@host:5432/database`; no default, read it with [`super::Config::database_url`].
    #[serde(with = "text::secret")]
    pub url: Option<SecretString>,
}

/// Redis or Valkey.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// Where Redis is, `redis://host:6379/0` or another of its schemes; no default, read it with [`super::Config::redis_url`].
    #[serde(with = "text::secret")]
    pub url: Option<SecretString>,
    /// How long one command may take before it counts as failed.
    #[serde(with = "text::span")]
    pub timeout: Duration,
    /// What `rediss://` trusts and shows.
    pub tls: Tls,
}

impl Default for Redis {
    fn default() -> Self {
        Self { url: None, timeout: Duration::from_secs(2), tls: Tls::default() }
    }
}

/// What `rediss://` trusts and shows: names of files in PEM, which are read for each connection.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// The only authorities that may have signed the server's certificate; `None` (written `""`): those that the system trusts.
    #[serde(with = "text::path")]
    pub ca_file: Option<PathBuf>,
    /// Our own certificate, then those between it and its authority, for a server that asks for one; `None` (written `""`) shows none.
    #[serde(with = "text::path")]
    pub cert_file: Option<PathBuf>,
    /// The private key of that certificate, without a passphrase; given if and only if the certificate is.
    #[serde(with = "text::path")]
    pub key_file: Option<PathBuf>,
}

/// `/live`, `/ready` and `/metrics`, and the status page.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Http {
    /// The address to answer on, as in `127.0.0.1:9464`; `None` (written `""`) opens no port.
    #[serde(with = "text::address")]
    pub listen: Option<SocketAddr>,
}

/// What the program writes to stderr.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// How a line looks.
    pub format: LogFormat,
    /// Which lines are written: tracing's directives, as in `info` or `warn,unstale=debug`; `RUST_LOG` is not read.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Auto, filter: "info".to_owned() }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text on a terminal, entries in systemd's journal if stderr goes there, JSON everywhere else.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// An entry in systemd's journal, with a priority and a field for each value.
    Journald,
}

/// The proof that a change would arrive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Heartbeat {
    /// Time between two heartbeats.
    #[serde(with = "text::span")]
    pub interval: Duration,
    /// How long a heartbeat may be away before the session counts as dead; at least two intervals.
    #[serde(with = "text::span")]
    pub timeout: Duration,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), timeout: Duration::from_secs(5) }
    }
}

/// The pause before connecting again, which doubles with jitter from `min` to `max`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Backoff {
    /// The first pause.
    #[serde(with = "text::span")]
    pub min: Duration,
    /// The longest pause.
    #[serde(with = "text::span")]
    pub max: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { min: Duration::from_millis(100), max: Duration::from_secs(10) }
    }
}

/// The keys on their way to Redis.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Batch {
    /// Keys in one UNLINK.
    pub keys_per_command: usize,
    /// Commands that wait for Redis' answer at the same time.
    pub in_flight: usize,
    /// Distinct keys that may wait; one more, and the set gives way to a sweep.
    pub max_pending: usize,
    /// How long a full set may wait for Redis to shorten it before it gives way to a sweep.
    #[serde(with = "text::span")]
    pub stall: Duration,
}

impl Default for Batch {
    fn default() -> Self {
        Self { keys_per_command: 500, in_flight: 8, max_pending: 50_000, stall: Duration::from_secs(2) }
    }
}

/// Reading back what changed during a gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sweep {
    /// Rows read in one query.
    pub page_rows: u32,
}

impl Default for Sweep {
    fn default() -> Self {
        Self { page_rows: 100_000 }
    }
}

/// What Redis may undo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Replay {
    /// How far back a fail-over or a restart of a server may undo what it has acknowledged.
    #[serde(with = "text::span")]
    pub window: Duration,
}

impl Default for Replay {
    fn default() -> Self {
        Self { window: Duration::from_secs(60) }
    }
}

/// The second delete, for readers that hold no lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Repeat {
    /// A key is deleted once more so long after it was, for each of these; none: it is deleted once.
    #[serde(with = "text::spans")]
    pub after: Vec<Duration>,
}

impl Default for Repeat {
    fn default() -> Self {
        Self { after: vec![Duration::from_secs(1)] }
    }
}

/// The listener's sample of what it has deleted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// The share of the deleted keys that are looked at again, 0 to 1; 0: none.
    pub sample: f64,
    /// So long after they were deleted, for each of these.
    #[serde(with = "text::spans")]
    pub after: Vec<Duration>,
}

impl Default for Audit {
    fn default() -> Self {
        Self { sample: 0.0, after: [1, 10, 300].map(Duration::from_secs).into() }
    }
}

/// Standbys that readers read.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Replicas {
    /// Where they are, each as in `database.url` with one host; as a variable with blanks between them; none: nobody reads replicas.
    #[serde(with = "text::secrets")]
    pub urls: Vec<SecretString>,
    /// A key that was deleted is deleted once more after so long, however far they are.
    #[serde(with = "text::span")]
    pub max_wait: Duration,
}

impl Default for Replicas {
    fn default() -> Self {
        Self { urls: Vec::new(), max_wait: Duration::from_secs(30) }
    }
}

/// The progress that is kept in the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Checkpoint {
    /// How long the log is kept for an instance that is away.
    #[serde(with = "text::span")]
    pub forget_after: Duration,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { forget_after: Duration::from_secs(7 * 24 * 60 * 60) }
    }
}

/// Leaving.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shutdown {
    /// How long SIGTERM waits for what was received to reach Redis.
    #[serde(with = "text::span")]
    pub timeout: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(10) }
    }
}

/// One `[[watch]]`, for `unstale apply`: a table and the cache keys that its changes delete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Watch {
    /// The table with its schema, as in `public.users`; required.
    pub table: String,
    /// Key templates, as in `user:{id}:profile`; at least one.
    pub keys: Vec<String>,
    /// How changes travel.
    pub delivery: Delivery,
    /// The column that the sweep reads; `None` (written `""`) says that there is no such column.
    #[serde(with = "text::column")]
    pub updated_at: Option<String>,
    /// If given, an UPDATE counts only if one of these columns, or a column of a key, changed.
    pub only_columns: Option<Vec<String>>,
    /// How long a cached value may live; `unstale check --keys` holds the keys against it.
    #[serde(with = "text::span_if_any")]
    pub max_ttl: Option<Duration>,
    /// What readers were promised: `lease`, `bounded` or `eventual`; the database refuses another word.
    #[serde(with = "text::column")]
    pub guarantee: Option<String>,
    /// Why it is cached, and for so long, in a sentence for `unstale policy`.
    #[serde(with = "text::column")]
    pub reason: Option<String>,
    /// The column whose value each cached copy carries, for `unstale policy`.
    #[serde(with = "text::column")]
    pub version: Option<String>,
    /// Where a cached copy carries it: a JSONPath in a string, or a field of a hash.
    #[serde(with = "text::column")]
    pub version_path: Option<String>,
    /// The templates may begin with a column, although the pattern of all their keys may then match the keys of others.
    pub any_prefix: bool,
}

impl Default for Watch {
    fn default() -> Self {
        Self {
            table: String::new(),
            keys: Vec::new(),
            delivery: Delivery::Row,
            updated_at: Some("updated_at".to_owned()),
            only_columns: None,
            max_ttl: None,
            guarantee: None,
            reason: None,
            version: None,
            version_path: None,
            any_prefix: false,
        }
    }
}

/// How a table's changes travel; the design's section on deliveries has their prices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Delivery {
    /// One notification a row.
    #[default]
    Row,
    /// One notification for many rows of a statement.
    Statement,
    /// Rows in a log table and a bell.
    Log,
}

impl Delivery {
    /// The word that `unstale.watch` takes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Row => "row",
            Self::Statement => "statement",
            Self::Log => "log",
        }
    }
}

/// Everything that a configuration file can say.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    pub(super) database: Database,
    pub(super) redis: Redis,
    pub(super) instance: String,
    pub(super) http: Http,
    pub(super) log: Log,
    pub(super) heartbeat: Heartbeat,
    pub(super) backoff: Backoff,
    pub(super) batch: Batch,
    pub(super) sweep: Sweep,
    pub(super) replay: Replay,
    pub(super) repeat: Repeat,
    pub(super) audit: Audit,
    pub(super) replicas: Replicas,
    pub(super) checkpoint: Checkpoint,
    pub(super) shutdown: Shutdown,
    pub(super) watch: Vec<Watch>,
}

impl Default for File {
    fn default() -> Self {
        Self {
            database: Database::default(),
            redis: Redis::default(),
            instance: "default".to_owned(),
            http: Http::default(),
            log: Log::default(),
            heartbeat: Heartbeat::default(),
            backoff: Backoff::default(),
            batch: Batch::default(),
            sweep: Sweep::default(),
            replay: Replay::default(),
            repeat: Repeat::default(),
            audit: Audit::default(),
            replicas: Replicas::default(),
            checkpoint: Checkpoint::default(),
            shutdown: Shutdown::default(),
            watch: Vec::new(),
        }
    }
}
