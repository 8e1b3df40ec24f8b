//! The servers of a test process.
//!
//! Owns: one PostgreSQL cluster that all tests share, with a database for each; it is a static,
//! never dropped, and its guard ends it when the process is gone. Whoever kills a server takes one
//! of their own.

use std::path::PathBuf;
use std::sync::OnceLock;

use unstale::scratch::{Error, Postgres, Redis, postgres, redis};

/// The cluster of everybody who does not kill it.
pub(crate) fn shared_postgres() -> &'static Postgres {
    static SHARED: OnceLock<Postgres> = OnceLock::new();
    SHARED.get_or_init(own_postgres)
}

/// A cluster to kill, fill or pause.
pub(crate) fn own_postgres() -> Postgres {
    own_postgres_with([])
}

/// A cluster with settings of its own: `[("wal_level", "logical")]`.
pub(crate) fn own_postgres_with<const N: usize>(settings: [(&str, &str); N]) -> Postgres {
    let options = postgres::Options {
        tcp: true,
        // Cargo's place for what tests keep; `cargo clean` removes it.
        template_cache: Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR"))),
        settings: settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        ..postgres::Options::default()
    };
    needed(Postgres::start(&options))
}

/// A Redis that forgets when it is killed.
pub(crate) fn own_redis() -> Redis {
    needed(Redis::start(&redis::Options { tcp: true, ..redis::Options::default() }))
}

/// A Redis that remembers over `kill9` and `start_again`.
pub(crate) fn own_lasting_redis() -> Redis {
    needed(Redis::start(&redis::Options {
        tcp: true,
        append_only: true,
        ..redis::Options::default()
    }))
}

fn needed<T>(server: Result<T, Error>) -> T {
    server.unwrap_or_else(|error| panic!("this test needs a real server: {error}"))
}
