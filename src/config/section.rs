//! The table of keys: one struct a section, one field a key.
//!
//! Everything about a key stands here once: its name, type and default, how a change of it is
//! taken, and its description. Its first paragraph is for docs/reference.md, all of it for
//! config/unstale.toml. A new key is a new field; `UNSTALE_BLESS=1 cargo test --test integration --
//! documents` writes both files anew. What a type cannot say (limits, one key against another) is
//! in `limits.rs`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use figment::value::Value;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::key::{self, Key, Taken, table};
use super::source::SecretFile;
use super::text;

/// A text, or `""` for none.
type OrNone = serde_with::As<serde_with::NoneAsEmptyString>;

table! {
    Config:

    /// Everything that can be set, within its limits. `Debug` shows no secrets.
    struct Config at [] {
        /// This listener's name, under which its progress is kept in the database: one for each
        /// Redis.
        ///
        /// Two listeners (one a region, each with its own Redis) need two names. 1 to 63 of A-Z a-z
        /// 0-9 _ . -
        pub instance: String = "default".to_owned(), Restart;
        /// PostgreSQL.
        pub database: Database;
        /// Redis or Valkey.
        pub redis: Redis;
        /// `/live`, `/ready` and `/metrics`.
        pub http: Http;
        /// What the program writes to stderr.
        pub log: Log;
        /// The proof that a change would arrive.
        pub heartbeat: Heartbeat;
        /// The pause before connecting again.
        pub backoff: Backoff;
        /// The keys on their way to Redis.
        pub batch: Batch;
        /// Reading back what changed during a gap.
        pub sweep: Sweep;
        /// What Redis may undo.
        pub replay: Replay;
        /// The second delete.
        pub repeat: Repeat;
        /// The listener's sample of what it has deleted.
        pub audit: Audit;
        /// Standbys that readers read.
        pub replicas: Replicas;
        /// The progress that is kept in the database.
        pub checkpoint: Checkpoint;
        /// Leaving.
        pub shutdown: Shutdown;
        /// The `[[watch]]` list of the file, each table once; only `apply` and `explain` read it.
        #[serde(rename = "watch")]
        pub watches: Vec<Watch>;
        /// Where secrets can be read again, by key.
        #[serde(skip)]
        pub(super) secret_files: BTreeMap<String, SecretFile>;
    }

    /// PostgreSQL.
    struct Database at [database] {
        /// Where PostgreSQL is, as libpq has it: one or several hosts, of which the primary is
        /// looked for; usually `DATABASE_URL`.
        ///
        /// Not through a pooler in transaction mode, which loses notifications. To keep the
        /// password out of files that many can read: DATABASE_URL_FILE names a regular file that
        /// holds the URL, and systemd's LoadCredential=database_url:/path works, too.
        /// UNSTALE_DATABASE__URL wins over DATABASE_URL.
        #[serde(with = "text::secret")]
        pub url: Option<SecretString> = None, Reload, secret "postgres://unstale_listener:password@localhost:5432/app";
    }

    /// Redis or Valkey.
    struct Redis at [redis] {
        /// Where Redis is: `redis://`, `rediss://` (TLS), `redis+unix://`, `redis-cluster://` or
        /// `redis-sentinel://`, `valkey` likewise; the forms are in docs/operating.md#urls; usually
        /// `REDIS_URL`.
        ///
        /// As in redis+unix:///run/redis.sock, redis-cluster://host:6379?node=host:6379, or
        /// redis-sentinel://host:26379?node=host:26379&sentinelServiceName=mymaster; the latter two
        /// also as rediss-. Or REDIS_URL_FILE, or the credential redis_url.
        #[serde(with = "text::secret")]
        pub url: Option<SecretString> = None, Reload, secret "redis://localhost:6379/0";
        /// How long one command may take before it counts as failed.
        #[serde(with = "humantime_serde")]
        pub timeout: Duration = Duration::from_secs(2), Reload;
        /// What `rediss://` trusts and shows.
        pub tls: Tls;
    }

    /// What `rediss://` trusts and shows: names of files in PEM, which are read for each
    /// connection.
    struct Tls at [redis.tls] {
        /// For `rediss://`: the only authorities that may have signed the server's certificate, in
        /// PEM; empty: those of the system.
        ///
        /// Refused for any other URL. The files are named from the root (/), and each new
        /// connection reads them again, so certificates may be renewed while it runs. SSL_CERT_FILE
        /// names those of the system.
        #[serde(deserialize_with = "OrNone::deserialize")]
        pub ca_file: Option<PathBuf> = None, Reload;
        /// Our own certificate, then those between it and its authority, for a server that asks for
        /// one (tls-auth-clients).
        ///
        /// PostgreSQL's are named in its URL:
        /// ?sslmode=verify-full&sslrootcert=FILE&sslcert=FILE&sslkey=FILE
        #[serde(deserialize_with = "OrNone::deserialize")]
        pub cert_file: Option<PathBuf> = None, Reload;
        /// The private key of that certificate, without a passphrase; given if and only if the
        /// certificate is.
        #[serde(deserialize_with = "OrNone::deserialize")]
        pub key_file: Option<PathBuf> = None, Reload;
    }

    /// `/live`, `/ready` and `/metrics`, and the status page.
    struct Http at [http] {
        /// Where `/live`, `/ready` and `/metrics` answer, and the status page at `/`, as in
        /// `127.0.0.1:9464`; empty: no port is opened.
        ///
        /// There is neither TLS nor a password, so on other addresses than this host's own let a
        /// firewall keep strangers away.
        #[serde(deserialize_with = "text::address")]
        pub listen: Option<SocketAddr> = None, Restart;
    }

    /// What the program writes to stderr.
    struct Log at [log] {
        /// How a line looks: `auto` (text on a terminal, journald under systemd, else JSON),
        /// `text`, `json` or `journald`.
        ///
        /// journald: entries with a priority and with fields, as in `journalctl -u unstale -p
        /// warning`. The others go to stderr.
        pub format: LogFormat = LogFormat::Auto, Restart;
        /// Which lines are written: trace, debug, info, warn or error, for all or by module, as in
        /// `warn,unstale=debug`.
        ///
        /// RUST_LOG is not read.
        pub filter: String = "info".to_owned(), Reload;
    }

    /// The proof that a change would arrive.
    struct Heartbeat at [heartbeat] {
        /// Time between two heartbeats, each through PostgreSQL and back, and through Redis; at
        /// least 50ms.
        ///
        /// They prove that a change would arrive; /ready follows them.
        #[serde(with = "humantime_serde")]
        pub interval: Duration = Duration::from_secs(1), Reload;
        /// How long a heartbeat may be away before the session counts as dead; at least two
        /// intervals.
        ///
        /// Then it connects again, and sweeps what was missed.
        #[serde(with = "humantime_serde")]
        pub timeout: Duration = Duration::from_secs(5), Reload;
    }

    /// The pause before connecting again, which doubles with jitter from `min` to `max`.
    struct Backoff at [backoff] {
        /// The first pause before connecting again; it doubles from there, with jitter.
        #[serde(with = "humantime_serde")]
        pub min: Duration = Duration::from_millis(100), Reload;
        /// The longest pause before connecting again; it never gives up.
        #[serde(with = "humantime_serde")]
        pub max: Duration = Duration::from_secs(10), Reload;
    }

    /// The keys on their way to Redis.
    struct Batch at [batch] {
        /// Keys in one UNLINK, 1 to 10000.
        ///
        /// More is fewer round trips, and longer ones.
        pub keys_per_command: usize = 500, Reload;
        /// Commands that wait for Redis' answer at the same time, 1 to 64.
        pub in_flight: usize = 8, Reload;
        /// Distinct keys that may wait while Redis is slow or away, 1000 to 10000000; one more, and
        /// a sweep replaces them.
        ///
        /// They are held in memory. The sweep reads them from the database later: slower, never
        /// wrong. In a cluster only their bytes are bounded, 384 for each of this number: the more
        /// keys wait, the more of them have a slot in common, and go in one UNLINK.
        pub max_pending: usize = 50_000, Reload;
        /// How long a full set may wait for Redis to shorten it before a sweep replaces it.
        #[serde(with = "humantime_serde")]
        pub stall: Duration = Duration::from_secs(2), Reload;
    }

    /// Reading back what changed during a gap.
    struct Sweep at [sweep] {
        /// Rows read in one query while catching up, 100 to 1000000.
        pub page_rows: u32 = 100_000, Reload;
    }

    /// What Redis may undo.
    struct Replay at [replay] {
        /// How far back a fail-over or a restart of a server may undo what it has acknowledged.
        ///
        /// Redis: a fail-over, or a restart without its last writes; PostgreSQL: a crash with
        /// synchronous_commit off, or a fail-over. What was deleted meanwhile is deleted again.
        #[serde(with = "humantime_serde")]
        pub window: Duration = Duration::from_secs(60), Reload;
    }

    /// The second delete, for readers that hold no lease.
    struct Repeat at [repeat] {
        /// So long after a key was deleted it is deleted once more, for readers without leases:
        /// each of these, 4 at most; none: never.
        ///
        /// A reader that fetched the old row before its change was committed may have stored it
        /// after the first delete. This makes that rarer, not impossible; leases do
        /// (docs/readers.md). Not for watches with guarantee => 'lease'. As a variable: "1s, 10s".
        #[serde(with = "text::spans")]
        pub after: Vec<Duration> = vec![Duration::from_secs(1)], Reload;
    }

    /// The listener's sample of what it has deleted.
    struct Audit at [audit] {
        /// The share of the deleted keys that the listener looks at again, 0 to 1 (docs/audit.md);
        /// 0: none.
        ///
        /// As `unstale audit` does: is what is cached what the row says? For watches with
        /// `version`; on connections of its own, which need +get +hget +type +scan.
        /// unstale_audited_total and unstale_stale_total count.
        pub sample: f64 = 0.0, Reload;
        /// So long after a key of the sample was deleted it is looked at, for each of these, 8 at
        /// the most.
        ///
        /// As a variable: "1s, 10s, 5m".
        #[serde(with = "text::spans")]
        pub after: Vec<Duration> = [1, 10, 300].map(Duration::from_secs).into(), Reload;
    }

    /// Standbys that readers read.
    struct Replicas at [replicas] {
        /// Standbys on which readers look after a miss, each a URL as `database.url` with one host;
        /// as a variable with blanks between them.
        ///
        /// A key is deleted at once, and once more when all of them have replayed past its change.
        /// The role needs nothing but CONNECT. They can stand in a file
        /// (UNSTALE_REPLICAS__URLS_FILE, or the credential replicas_urls), blanks or line ends
        /// between them.
        #[serde(with = "text::secrets")]
        pub urls: Vec<SecretString> = Vec::new(), Reload, secret [
            "postgres://unstale_listener:password@replica-1:5432/app",
            "postgres://unstale_listener:password@replica-2:5432/app",
        ];
        /// How long a replica that is away, or far behind, is waited for before a key is deleted
        /// once more.
        #[serde(with = "humantime_serde")]
        pub max_wait: Duration = Duration::from_secs(30), Reload;
    }

    /// The progress that is kept in the database.
    struct Checkpoint at [checkpoint] {
        /// How long the log of changes is kept for an instance that is away, 1h to 1y.
        ///
        /// One that stays away longer deletes all keys of the watched tables when it comes back.
        #[serde(with = "humantime_serde")]
        pub forget_after: Duration = Duration::from_secs(7 * 24 * 60 * 60), Reload;
    }

    /// Leaving.
    struct Shutdown at [shutdown] {
        /// How long SIGTERM waits for what was received to reach Redis.
        ///
        /// What does not is swept at the next start.
        #[serde(with = "humantime_serde")]
        pub timeout: Duration = Duration::from_secs(10), Reload;
    }
}

table! {
    Watch:

    /// One `[[watch]]`, for `unstale apply`: a table and the cache keys that its changes delete.
    struct Watch at [] {
        /// The table with its schema; required.
        pub table: String = String::new(), Apply, example "public.users";
        /// The cache keys that a change of a row deletes, at least one.
        ///
        /// {column} is the row's value, before and after the change; {{ and }} are literal braces;
        /// a key without a column is deleted at any change.
        pub keys: Vec<String> = Vec::new(), Apply, example ["user:{id}:profile", "user:by-email:{email}", "users:count"];
        /// row: announced, unless another writer is announcing. statement: the same, refused where
        /// rows must be said one by one. log: never announced.
        pub delivery: Delivery = Delivery::Row, Apply, example "row";
        /// The column that says when a row was last written; empty if there is none: then every
        /// change is logged.
        #[serde(deserialize_with = "OrNone::deserialize")]
        pub updated_at: Option<String> = Some("updated_at".to_owned()), Apply, example "updated_at";
        /// If given, an UPDATE counts only if one of these columns, or a column of a key, changed.
        pub only_columns: Option<Vec<String>> = None, Apply, example ["name", "email"];
        /// How long a cached value may live, the last line of defence; empty: as it likes.
        ///
        /// `unstale check --keys` names keys that live longer.
        #[serde(deserialize_with = "text::span_if_any")]
        pub max_ttl: Option<Duration> = None, Apply, example "1h";
        /// What readers were promised: lease (they hold one, so that nothing old is put back),
        /// bounded (nothing older than max_ttl) or eventual; the database refuses another word.
        #[serde(deserialize_with = "OrNone::deserialize")]
        pub guarantee: Option<String> = None, Apply, example "lease";
        /// Why it is cached, and for so long, in a sentence for `unstale policy`.
        #[serde(deserialize_with = "OrNone::deserialize")]
        pub reason: Option<String> = None, Apply, example "read on every page, changed some times a month";
        /// The column whose value each cached copy carries, for `unstale audit` and `unstale
        /// policy`.
        #[serde(deserialize_with = "OrNone::deserialize")]
        pub version: Option<String> = None, Apply, example "updated_at";
        /// Where a cached copy carries it: a JSONPath in a string, or the name of a field of a
        /// hash.
        #[serde(deserialize_with = "OrNone::deserialize")]
        pub version_path: Option<String> = None, Apply, example "$.updated_at";
        /// The templates may begin with a column, although the pattern of all their keys may then
        /// match the keys of others.
        pub any_prefix: bool = false, Apply, example false;
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
