//! What writers and readers share: who holds which row, what they did, and how to reach the
//! servers.
//!
//! Must hold: a value is never on its way into the cache while its row is being written. Whoever
//! writes or reads a row holds its *claim*, in this process and as an advisory lock in the
//! database, until the commit or the cache has answered, or is dead. The first outlives the server;
//! the second keeps others away from a row whose commit a kill left undecided until the server has
//! recovered. (A fill that lands after an invalidation is not what is tested here: leases are for
//! that.)

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};
use tokio_util::sync::CancellationToken;

use super::cache::Routes;
use crate::support::wait::pace;

/// What is remembered of a key.
const REMEMBERED: usize = 14;

/// See the module.
pub(super) struct Shared {
    /// The database, by its socket.
    pub(super) options: PgConnectOptions,
    /// Where the cache is.
    pub(super) cache: Routes,
    /// Rows and emails that somebody holds.
    claims: Mutex<HashSet<i64>>,
    /// What happened to each key, the last of it.
    journal: Mutex<HashMap<String, VecDeque<Arc<str>>>>,
    /// Errors that no fault explains.
    complaints: Mutex<Vec<String>>,
    /// The last version that was given out.
    version: AtomicI64,
    /// What was done.
    pub(super) tally: Tally,
}

/// Counts.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) committed: AtomicU64,
    pub(super) rolled_back: AtomicU64,
    /// Transactions that a fault ended.
    pub(super) lost: AtomicU64,
    /// Those of them whose COMMIT was not answered.
    pub(super) undecided: AtomicU64,
    /// Rows that committed transactions wrote.
    pub(super) changes: AtomicU64,
    /// Keys that were cached.
    pub(super) fills: AtomicU64,
}

impl Shared {
    pub(super) fn new(options: PgConnectOptions, cache: Routes) -> Self {
        Self {
            options,
            cache,
            claims: Mutex::default(),
            journal: Mutex::default(),
            complaints: Mutex::default(),
            version: AtomicI64::new(0),
            tally: Tally::default(),
        }
    }

    /// A connection, as soon as there is a server; `None` if it is time to stop.
    pub(super) async fn connect(&self, stop: &CancellationToken) -> Option<PgConnection> {
        while !stop.is_cancelled() {
            match self.options.connect().await {
                Ok(connection) => return Some(connection),
                Err(error) => self.excuse(&error),
            }
            pace(Duration::from_millis(20)).await;
        }
        None
    }

    /// A version that nobody has used.
    pub(super) fn version(&self) -> i64 {
        self.version.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// An error is excused if a server went away. Any other would be ours: triggers must not fail a
    /// writer (P5).
    pub(super) fn excuse(&self, error: &sqlx::Error) {
        if let sqlx::Error::Database(refusal) = error
            && !refusal.code().is_some_and(|code| code.starts_with("57P"))
        {
            self.complain(format!("{}: {refusal}", refusal.code().unwrap_or_default()));
        }
    }

    pub(super) fn complain(&self, complaint: String) {
        self.complaints.lock().expect("nobody panics with it").push(complaint);
    }

    pub(super) fn complaints(&self) -> Vec<String> {
        self.complaints.lock().expect("nobody panics with it").clone()
    }

    /// Writes into the journals of keys.
    pub(super) fn note(&self, what: &str, notes: impl IntoIterator<Item = (String, String)>) {
        let now = now();
        let mut texts: BTreeMap<String, Arc<str>> = BTreeMap::new(); // a bulk statement has one for a thousand keys
        let mut journal = self.journal.lock().expect("nobody panics with it");
        for (key, text) in notes {
            let entry = match texts.get(&text) {
                Some(entry) => entry.clone(),
                None => {
                    let entry: Arc<str> = format!("{now} {text}{what}").into();
                    texts.insert(text, entry.clone());
                    entry
                }
            };
            let entries = journal.entry(key).or_default();
            if entries.len() == REMEMBERED {
                entries.pop_front();
            }
            entries.push_back(entry);
        }
    }

    /// What is remembered of a key.
    pub(super) fn history(&self, key: &str) -> Vec<Arc<str>> {
        let journal = self.journal.lock().expect("nobody panics with it");
        journal.get(key).into_iter().flatten().cloned().collect()
    }
}

/// The time as the listener's log has it.
pub(super) fn now() -> impl std::fmt::Display {
    humantime::format_rfc3339_millis(SystemTime::now())
}

/// Claims of one transaction, or of one filling; they end with it.
pub(super) struct Held<'a> {
    shared: &'a Shared,
    held: HashSet<i64>,
    /// Not locked in the database yet.
    fresh: Vec<i64>,
}

impl<'a> Held<'a> {
    pub(super) fn new(shared: &'a Shared) -> Self {
        Self { shared, held: HashSet::new(), fresh: Vec::new() }
    }

    /// Takes a claim, unless somebody else has it. Nobody waits, so nobody waits in a circle.
    pub(super) fn take(&mut self, claim: i64) -> bool {
        if self.held.contains(&claim) {
            return true;
        }
        let free = self.shared.claims.lock().expect("nobody panics with it").insert(claim);
        if free {
            self.held.insert(claim);
            self.fresh.push(claim);
        }
        free
    }

    /// Takes the same in the database. It is free there, or held by the ghost of a killed backend
    /// until the restart.
    pub(super) async fn lock(&mut self, connection: &mut PgConnection) -> sqlx::Result<()> {
        let claims = std::mem::take(&mut self.fresh);
        if !claims.is_empty() {
            sqlx::query("select pg_advisory_xact_lock(claim) from unnest($1::bigint[]) claim")
                .bind(claims)
                .execute(connection)
                .await?;
        }
        Ok(())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut claims = self.shared.claims.lock().expect("nobody panics with it");
        for claim in &self.held {
            claims.remove(claim);
        }
    }
}
