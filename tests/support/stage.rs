//! A watched table, keys cached for its rows, and what becomes of them.
//!
//! Owns: the table `users` that most tests change, the settings of an impatient daemon, and the
//! marker behind which silence is proven.

use std::ops::RangeInclusive;

use super::daemon::{Daemon, Settings};
use super::wait::until;
use super::world::World;

impl Settings {
    /// Finds faults within a second or so. A busy machine may make it see one that is not there; it
    /// recovers from that, too.
    #[must_use]
    pub(crate) fn impatient(self) -> Self {
        self.with("UNSTALE_HEARTBEAT__INTERVAL", "100ms")
            .with("UNSTALE_HEARTBEAT__TIMEOUT", "1s")
            .with("UNSTALE_BACKOFF__MAX", "500ms")
            .with("UNSTALE_REDIS__TIMEOUT", "300ms")
            .with("UNSTALE_BATCH__STALL", "300ms")
    }

    /// Takes no busy machine for a lost session: for tests that count what comes through one, or
    /// that cache the keys of rows that a sweep would find.
    #[must_use]
    pub(crate) fn in_one_session(self) -> Self {
        self.with("UNSTALE_HEARTBEAT__TIMEOUT", "25s")
    }
}

impl World {
    /// The table `users`, watched: row n of 1 to `rows` has the keys `user:n` and `email:n@old`.
    /// The rows are an hour old, so that no sweep of these minutes has to do with a row that did
    /// not change.
    pub(crate) async fn users(&self, rows: u32) {
        self.execute(&format!(
            "create table users (id int primary key, email text, name text, updated_at timestamptz not null default clock_timestamp());
             insert into users select n, n || '@old', 'ann', clock_timestamp() - interval '1 hour' from generate_series(1, {rows}) n;
             select unstale.watch('users', array['user:{{id}}', 'email:{{email}}']);"
        ))
        .await;
    }

    /// Puts a value under each key.
    pub(crate) fn fill(&mut self, keys: impl IntoIterator<Item = impl Into<String>>) {
        self.cache
            .put_all(keys.into_iter().map(Into::into), "a cached value")
            .expect("Redis takes it");
    }

    /// Waits until none of the keys is there.
    pub(crate) async fn gone<K: Into<String>>(
        &mut self,
        keys: impl IntoIterator<Item = K, IntoIter: Clone>,
    ) {
        let keys = keys.into_iter();
        until("the keys are gone", async || self.count(keys.clone()) == 0).await;
    }

    /// How many of the keys are there.
    pub(crate) fn count(&mut self, keys: impl IntoIterator<Item = impl Into<String>>) -> u64 {
        self.cache.count_of(keys.into_iter().map(Into::into)).expect("Redis answers")
    }

    /// How many keys are there, but for the mark that the listener `test` leaves.
    pub(crate) fn cached(&mut self) -> u64 {
        let (all, mark) = (self.cache.size().expect("Redis answers"), self.count([Self::MARK]));
        all - mark
    }

    /// Where the listener `test` marks how far it has come.
    pub(crate) const MARK: &str = "unstale:mark:test";

    /// Which of the keys are there.
    pub(crate) fn left<'a>(&mut self, keys: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
        keys.into_iter().filter(|key| self.cache.has(key).expect("Redis answers")).collect()
    }

    /// The `n`th change of a user's e-mail: the keys that may be cached until then, and the SQL.
    /// Every other one forgets to stamp the row.
    pub(crate) fn change_of_email(id: u32, n: u32) -> ([String; 3], String) {
        let keys =
            [format!("email:{id}@{n}"), format!("email:{id}@{}", n - 1), format!("user:{id}")];
        let stamp = if n.is_multiple_of(2) { ", updated_at = clock_timestamp()" } else { "" };
        (keys, format!("update users set email = '{id}@{n}'{stamp} where id = {id}"))
    }

    /// All keys of so many such changes.
    pub(crate) fn keys_of_emails(id: u32, changes: u32) -> impl Iterator<Item = String> {
        (0..=changes).map(move |n| format!("email:{id}@{n}")).chain([format!("user:{id}")])
    }

    /// A number that SQL makes.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let number = sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&self.sql).await;
        number.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Changes users 1 to 6 in every way there is. [`STALE`](Self::STALE) are the keys of that.
    pub(crate) async fn change_users(&self) {
        for sql in [
            "update users set name = 'bob', updated_at = clock_timestamp() where id = 1",
            "update users set name = 'bob' where id = 2", // forgets to stamp the row
            "delete from users where id = 3",
            "update users set email = '4@new', updated_at = clock_timestamp() where id = 4",
            "update users set id = 1005, updated_at = clock_timestamp() where id = 5",
            "insert into users (id, email) values (1006, '6@new')",
        ] {
            self.execute(sql).await;
        }
    }

    /// Changes a range of users, each in a statement of its own: as many notifications, in one
    /// transaction.
    pub(crate) async fn change_each_user(&self, ids: RangeInclusive<u32>) {
        let (first, last) = (ids.start(), ids.end());
        let update = "update users set name = 'bob', updated_at = clock_timestamp() where id = n";
        self.execute(&format!(
            "do $$ begin for n in {first} .. {last} loop {update}; end loop; end $$"
        ))
        .await;
    }

    /// What [`change_users`](Self::change_users) makes stale, with the "not found" of rows to come.
    pub(crate) const STALE: [&str; 14] = [
        "user:1",
        "email:1@old",
        "user:2",
        "email:2@old",
        "user:3",
        "email:3@old",
        "user:4",
        "email:4@old",
        "email:4@new",
        "user:5",
        "email:5@old",
        "user:1005",
        "user:1006",
        "email:6@new",
    ];

    /// What it has nothing to do with.
    pub(crate) const NEIGHBOURS: [&str; 7] =
        ["user:7", "email:7@old", "user:8", "user:10", "user:", "user:1:x", "x:user:1"];

    /// Caches [`STALE`](Self::STALE) and [`NEIGHBOURS`](Self::NEIGHBOURS).
    pub(crate) fn fill_users(&mut self) {
        self.fill(Self::STALE.into_iter().chain(Self::NEIGHBOURS));
    }

    /// Waits until everything stale is gone and `daemon` has nothing left to do; then the
    /// neighbours must still be there.
    pub(crate) async fn users_are_fresh(&mut self, daemon: &Daemon) {
        let left = until("all stale keys are gone", async || {
            let left = self.left(Self::STALE);
            left.is_empty().then_some(left)
        });
        left.await;
        daemon.settles().await;
        assert_eq!(self.left(Self::NEIGHBOURS), Self::NEIGHBOURS, "a neighbour was deleted");
    }

    /// Gaps in the ledger of the instance `test` that were caught up with.
    pub(crate) async fn complete_gaps(&self) -> i64 {
        self.number("select count(*) from unstale.gap where instance = 'test' and complete and closed_at >= opened_at").await
    }
}

impl Daemon {
    /// Waits until what was committed before this call is done: heartbeats sent after it have gone
    /// through PostgreSQL and Redis.
    pub(crate) async fn settles(&self) {
        let beats = || self.metric("unstale_freshness_seconds_count", &[]);
        // Some may be on their way already.
        let enough = beats() + 4.0;
        until("heartbeats go through", async || beats() >= enough).await;
    }

    /// How many gaps were opened since the start.
    pub(crate) fn gaps(&self) -> f64 {
        self.metric("unstale_gaps_total", &[])
    }

    /// Waits until there are more than `known` gaps. Their cause, a lost session or a missed
    /// heartbeat, is that of the two clocks that was first.
    pub(crate) async fn opens_gap(&self, known: f64) {
        until("a gap is opened", async || self.gaps() > known).await;
    }
}
