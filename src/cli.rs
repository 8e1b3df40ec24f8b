//! The command line: clap types and their help, nothing that runs.
//!
//! There are no flags for URLs: every user of a host can read every process's arguments. What is
//! configured is configured in the file or the environment; the only global flag says which file.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

const ENVIRONMENT: &str = "\
Environment:
  DATABASE_URL    where PostgreSQL is, as in postgres://unstale@localhost:5432/app
  REDIS_URL       where Redis is, as in redis://localhost:6379/0
  DATABASE_URL_FILE, REDIS_URL_FILE
                  files that hold the URLs instead, which keeps passwords out of the environment
  UNSTALE_CONFIG  the configuration file, as --config
  UNSTALE_...     any other key: its path in upper case with __ between the parts, as in
                  UNSTALE_HTTP__LISTEN=127.0.0.1:9464 or UNSTALE_LOG__FORMAT=json

  The environment wins over systemd's credentials (database_url, redis_url), those over the
  file, and that over the defaults. A key that does not exist is refused.

Exit codes:
  0  done
  1  failed, or unhealthy
  2  wrong usage or configuration
  3  the schema in the database is newer than this binary

Examples:
  unstale demo                                   see it work; needs no servers of yours
  unstale migrate                                once, and after every upgrade
  unstale apply --dry-run --sql                  what the [[watch]] list would change, with the SQL
  UNSTALE_HTTP__LISTEN=127.0.0.1:9464 unstale run
  unstale check                                  before the roll-out, and at three in the morning
  unstale sweep --since 2h                       after an import with triggers off
  unstale status                                 how the running listener is
  unstale tail --table public.users              what is announced, as it is committed
  unstale explain public.users id=42 email=a@b.c";

/// Keeps Redis in step with PostgreSQL
///
/// Triggers announce every committed change of a watched table; the listener turns each change into
/// cache keys and deletes them. Whatever path a write took, the cached copy is gone a millisecond
/// later, and after a failure of a connection, a server or the listener itself, what was missed is
/// swept.
#[derive(Debug, Parser)]
#[command(version, after_help = ENVIRONMENT, arg_required_else_help = true, max_term_width = 100)]
pub struct Cli {
    /// The configuration file; without it UNSTALE_CONFIG, else /etc/unstale/unstale.toml if it is
    /// there
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands, in the order in which one meets them.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Install or upgrade the schema `unstale` in the database
    ///
    /// Applies the migrations that are embedded in this binary, each once. Several processes may do
    /// so at the same time. Older listeners keep working while and after it runs. Needs
    /// DATABASE_URL, of a role that may create a schema and triggers.
    Migrate,
    /// Make the database's watches equal the `[[watch]]` list of the configuration file
    ///
    /// Prints what it does: watches that are added, changed or removed. A watch that is as listed
    /// is not touched and no lock is taken for it. A running listener notices by itself. Not needed
    /// where an application's own migrations call unstale.watch. Needs DATABASE_URL.
    #[command(
        after_help = "Examples:\n  unstale apply --dry-run\n  unstale apply --dry-run --sql > review.sql\n\nThe SQL is for people to read: apply or unstale.watch() runs it, and keeps the books."
    )]
    Apply(Apply),
    /// Listen for changes and delete their cache keys, until SIGTERM
    ///
    /// Connects again for ever if PostgreSQL or Redis is away, and sweeps what was missed. SIGTERM
    /// or SIGINT lets what was received reach Redis (shutdown.timeout), a second one exits at once.
    /// With http.listen set, /live, /ready and /metrics answer, and / is a page that shows how it
    /// is. Under systemd use Type=notify. Needs DATABASE_URL and REDIS_URL.
    Run,
    /// Look for everything that would make a promise untrue
    ///
    /// Both servers and their versions, whether notifications arrive, triggers, functions and
    /// grants of each watch, rows that a sweep would not see, old transactions, instances that are
    /// away, and a key that goes the whole way through the running listener. One line for each
    /// finding, below it a command or SQL that mends it. Exit code 0 if there are at most warnings.
    /// Changes nothing but that key. Needs DATABASE_URL and REDIS_URL, best those of the listener.
    Check(Check),
    /// Show how the running listener is
    ///
    /// What its page at http.listen shows: whether it is ready, or why not; how long changes take;
    /// the watermark; what waits for Redis; watches, gaps and findings. From its /status.json,
    /// which docs/status.md explains. Exit code 1 if no listener answers; whether it is ready is
    /// for the document to say. Needs http.listen, or --url.
    #[command(
        after_help = "Examples:\n  unstale status\n  unstale status --url http://10.0.0.5:9464/\n  unstale status --json | jq .ready"
    )]
    Status(Status),
    /// Delete the keys of what no trigger announced
    ///
    /// For after an import with triggers off, a restore, or a bug of somebody's. --since finds rows
    /// by the column that the watch sweeps by, and what the log still holds; a table without such a
    /// column loses all its keys. It does not find rows that were deleted, nor those whose column
    /// was not set: --all does, by patterns. A running listener is not disturbed. Stopped in the
    /// middle, the same command does the rest. Needs DATABASE_URL and REDIS_URL.
    #[command(
        after_help = "Examples:\n  unstale sweep --since 2h --dry-run\n  unstale sweep --since 2026-01-31T10:00:00Z --table public.users\n  unstale sweep --all --rate 5000\n\nOn a terminal it shows how far it is; elsewhere it prints a line of JSON every five seconds and at the end."
    )]
    Sweep(Sweep),
    /// Wait until everything that was committed before this call is gone from Redis
    ///
    /// The last step of a bulk job, and of a test: write, wait, and the keys are gone. Milliseconds
    /// while all is well; during a gap until that is closed. Exit code 1, with what it waits for,
    /// if that takes longer than --timeout. Needs DATABASE_URL, of a role of unstale.grant_wait()
    /// or of a listener, and a running listener.
    #[command(
        after_help = "Examples:\n  unstale wait\n  unstale wait --timeout 5m --instance eu1 && start-the-next-step"
    )]
    Wait(Wait),
    /// Compare what is cached with the database
    ///
    /// For each watch with `version`: rows that changed last and random ones against what is cached
    /// of them, and keys found in Redis against their rows. A key whose row is gone is stale. What
    /// differs is looked at again, on both sides, before it counts. Exit code 1 if anything is
    /// stale. A running listener is neither needed nor disturbed. Needs DATABASE_URL and REDIS_URL,
    /// of roles of a listener that may also read: +get +hget +type +scan.
    #[command(
        after_help = "Examples:\n  unstale audit\n  unstale audit --since 2h\n  unstale audit --all --table public.users --rate 5000\n  unstale audit --all --heal --json\n  unstale audit --command './render'\n\nProgress goes to standard error, the result to standard output. Neither holds a key or a value."
    )]
    Audit(Audit),
    /// Print the caching policy of the database as a document
    ///
    /// Markdown, or JSON: for each watch its keys, what readers were promised, how long a value may
    /// live and why, and how it is deleted, and what the last audit has found. --check also says
    /// what is missing, and then exits with 1: a watch without guarantee, max_ttl and reason, and
    /// keys in Redis that begin as those of a watch and that no watch deletes. Needs DATABASE_URL,
    /// and REDIS_URL with --check.
    #[command(
        after_help = "Examples:\n  unstale policy > CACHING.md\n  unstale policy --check --json | jq -r '.missing[]'"
    )]
    Policy(Policy),
    /// Show changes as they are committed, and the keys that they make stale
    ///
    /// A line for each: the time, how it was announced (notify or log), the table, the keys.
    /// Deletes nothing, needs no Redis, and a running listener does not notice it. Ends with
    /// Ctrl-C. Needs DATABASE_URL.
    #[command(
        after_help = "Examples:\n  unstale tail --table users\n  unstale tail --json | jq -r '.keys[]'"
    )]
    Tail(Tail),
    /// Show the cache keys that a change of a row deletes
    ///
    /// Reads the watches from the database and fills their key templates with the values given
    /// here; deletes nothing, and the row need not exist. Needs DATABASE_URL.
    #[command(
        after_help = "Example:\n  unstale explain public.users id=42 email=a@b.c\n\nQuote what the shell would change: 'name=Ann Lee'"
    )]
    Explain(Explain),
    /// Take away all that unstale put into the database, and the keys of what was watched
    ///
    /// Ends every watch, deletes the keys of each from Redis, because nobody would from then on,
    /// and drops the schema. Refuses while a listener is running. --dry-run prints the steps. Needs
    /// DATABASE_URL and REDIS_URL.
    Uninstall(Uninstall),
    /// Watch the whole story on throw-away servers
    ///
    /// Starts a PostgreSQL and a Redis of its own in a temporary directory, changes rows, breaks
    /// connections, and shows what happens to the cache. Touches no server of yours. Needs the
    /// programs postgres and redis-server (or valkey-server) on this host.
    Demo(Demo),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  unstale completions bash > /usr/share/bash-completion/completions/unstale"
    )]
    Completions(Completions),
    /// Write the manual pages, one for each command, into a directory
    #[command(after_help = "Example:\n  unstale man /usr/share/man/man1")]
    Man(Man),
}

/// `unstale apply`.
#[derive(Debug, Args)]
pub struct Apply {
    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run: also print the functions and triggers that each watch would create, as SQL
    ///
    /// The plan then stands in SQL comments. A new watch is shown under the number that is next; it
    /// gets a later one if another watch is made first. No lock is taken.
    #[arg(long, requires = "dry_run")]
    pub sql: bool,
}

/// `unstale check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Also sample the keys of the watches: do they expire, and no later than the watch's max_ttl?
    ///
    /// Up to 1,000 keys of each template, found by SCAN in small steps with rests between them.
    /// Keys without a time to live are warnings; where the watch has a max_ttl, they and longer
    /// ones are errors.
    #[arg(long)]
    pub keys: bool,
    /// Print JSON: {"findings": [{"severity": ..., "about": ..., "finding": ..., "remedy": ...}]}
    #[arg(long)]
    pub json: bool,
}

/// `unstale status`.
#[derive(Debug, Args)]
pub struct Status {
    /// The listener's address, instead of the configured http.listen
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Print the document as JSON
    #[arg(long)]
    pub json: bool,
}

/// `unstale sweep`.
#[derive(Debug, Args)]
pub struct Sweep {
    /// Rows changed since then: a duration before now (2h, 3days) or a time in UTC
    /// (2026-01-31T10:00:00Z)
    #[arg(long, value_name = "TIME", value_parser = since, required_unless_present = "all", conflicts_with = "all")]
    pub since: Option<Since>,
    /// All keys of the tables, whether or not their rows changed
    #[arg(long)]
    pub all: bool,
    /// Only this watched table, with its schema; may be repeated
    #[arg(long = "table", value_name = "TABLE")]
    pub tables: Vec<String>,
    /// Read and count, and delete nothing
    #[arg(long)]
    pub dry_run: bool,
    /// At most so many keys a second
    #[arg(long, value_name = "KEYS", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
}

/// Where a sweep begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// So long before the database's clock.
    Ago(Duration),
    /// At this time.
    At(SystemTime),
}

/// `unstale wait`.
#[derive(Debug, Args)]
pub struct Wait {
    /// How long at the most
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub timeout: Duration,
    /// The listener whose Redis it is about; without it the configured `instance`
    #[arg(long, value_name = "NAME")]
    pub instance: Option<String>,
}

/// `unstale audit`.
#[derive(Debug, Args)]
pub struct Audit {
    /// Only this watched table, with its schema; may be repeated
    #[arg(long = "table", value_name = "TABLE")]
    pub tables: Vec<String>,
    /// Rows changed since then, all of them, instead of a sample of rows: a duration before now
    /// (2h, 3days) or a time in UTC (2026-01-31T10:00:00Z)
    ///
    /// By the column that the watch sweeps by, and what the log still holds. A watch without such a
    /// column is named, and a sample of its rows is looked at. Of the keys found in Redis it is a
    /// sample, as without this.
    #[arg(long, value_name = "TIME", value_parser = since, conflicts_with = "all")]
    pub since: Option<Since>,
    /// So many rows that changed last, random rows, and keys of each template
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000), conflicts_with = "all")]
    pub sample: u32,
    /// Every key
    #[arg(long)]
    pub all: bool,
    /// Delete what is stale
    #[arg(long)]
    pub heal: bool,
    /// At most so many keys a second
    #[arg(long, value_name = "KEYS", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// A program that says what the application would cache, instead of versions: for each key on a
    /// line of its standard input a line on its standard output
    ///
    /// The line is the value, or empty if nothing would be cached; a value with a line break, or
    /// that is no text, is hex: and its bytes in hexadecimal. JSON is compared by what it says. Run
    /// by `sh -c`, once.
    #[arg(long, value_name = "COMMAND")]
    pub command: Option<String>,
    /// Print JSON: {"tables": [{"table": ..., "keys": ..., "compared": ..., "stale": ...,
    /// "unreadable": ..., ...}], "stale": ..., "healed": ...}
    #[arg(long)]
    pub json: bool,
}

/// `unstale policy`.
#[derive(Debug, Args)]
pub struct Policy {
    /// Also look for what is missing; exit code 1 if anything is
    #[arg(long)]
    pub check: bool,
    /// Print JSON: {"watches": [{"table": ..., "keys": [...], "guarantee": ..., "max_ttl_seconds":
    /// ..., "reason": ..., "audited": ..., ...}], "missing": [...]}
    #[arg(long)]
    pub json: bool,
}

/// `unstale tail`.
#[derive(Debug, Args)]
pub struct Tail {
    /// Only this watched table; may be repeated
    #[arg(long = "table", value_name = "TABLE")]
    pub tables: Vec<String>,
    /// Print JSON, a line for each: {"time": ..., "table": ..., "by": "notify" or "log", "rows":
    /// ..., "keys": [...], "patterns": [...]}
    #[arg(long)]
    pub json: bool,
}

/// `unstale explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// The watched table with its schema, as in public.users
    pub table: String,
    /// The row's values, one column each, as in id=42
    #[arg(value_name = "COLUMN=VALUE", value_parser = column)]
    pub columns: Vec<(String, String)>,
}

/// `unstale uninstall`.
#[derive(Debug, Args)]
pub struct Uninstall {
    /// Print the steps, and do nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `unstale demo`.
#[derive(Debug, Args)]
pub struct Demo {
    /// Leave the servers running at the end, and say how to reach them
    #[arg(long)]
    pub keep: bool,
}

/// `unstale man`.
#[derive(Debug, Args)]
pub struct Man {
    /// An existing directory, as in /usr/share/man/man1
    pub directory: PathBuf,
}

/// `unstale completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// Which shell
    pub shell: Shell,
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(time) = humantime::parse_duration(text) {
        return Ok(Since::Ago(time));
    }
    let time = humantime::parse_rfc3339_weak(text.trim_end_matches('Z'))
        .ok()
        .filter(|time| *time >= SystemTime::UNIX_EPOCH);
    time.map(Since::At).ok_or_else(|| {
        "write a duration, as in 2h, or a time in UTC, as in 2026-01-31T10:00:00Z".to_owned()
    })
}

fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "write a duration with its unit, as in 10s or 2m".to_owned())
}

fn column(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((column, value)) if !column.is_empty() => Ok((column.to_owned(), value.to_owned())),
        _ => Err("write a column and its value, as in id=42".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_sweep_begins_before_now_or_at_a_time() {
        assert_eq!(since("2h"), Ok(Since::Ago(Duration::from_secs(7_200))));
        assert_eq!(
            since("1970-01-01T00:01:00Z"),
            Ok(Since::At(SystemTime::UNIX_EPOCH + Duration::from_secs(60)))
        );
        assert_eq!(
            since("1970-01-01 00:01:00"),
            Ok(Since::At(SystemTime::UNIX_EPOCH + Duration::from_secs(60)))
        );
        assert!(since("yesterday").is_err() && since("1969-01-01T00:00:00Z").is_err());
    }

    #[test]
    fn a_value_may_hold_what_parts_it_from_its_column() {
        assert_eq!(column("q=a=b"), Ok(("q".to_owned(), "a=b".to_owned())));
        assert_eq!(column("q="), Ok(("q".to_owned(), String::new())));
        assert!(column("=x").is_err() && column("42").is_err());
    }
}
