//! The application's readers: what is not cached comes from PostgreSQL, a row or its absence. What
//! is cached is believed, so that a stale value stays.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;
use unstale::scratch::redis::Reply;

use super::cache::Cache;
use super::random::Random;
use super::shared::{Held, Shared};
use super::tables::{self, TABLES, Table};
use crate::support::wait::pace;

/// Keys of each kind that are read at once.
const AT_ONCE: usize = 24;

/// Fills the cache until `stop`.
pub(super) async fn fill(shared: Arc<Shared>, mut random: Random, stop: CancellationToken) {
    let (mut connection, mut cache) = (None, None);
    while !stop.is_cancelled() {
        if connection.is_none() {
            connection = shared.connect(&stop).await;
        }
        if cache.is_none() {
            cache = Cache::connect(&shared.cache).ok();
        }
        if let (Some(sql), Some(redis)) = (&mut connection, &mut cache) {
            match fill_some(&shared, &mut random, sql, redis).await {
                Ok(true) => {}
                Ok(false) => cache = None,
                Err(error) => {
                    shared.excuse(&error);
                    connection = None;
                }
            }
        }
        pace(random.millis(1..8)).await;
    }
}

/// Whether the connection to Redis is still of use.
async fn fill_some(
    shared: &Shared,
    random: &mut Random,
    sql: &mut PgConnection,
    redis: &mut Cache,
) -> sqlx::Result<bool> {
    let table = &TABLES[random.below(TABLES.len())];
    let mut held = Held::new(shared);
    let numbers = |random: &mut Random| {
        (0..=random.below(AT_ONCE)).map(|_| random.number(table.ids)).collect::<Vec<_>>()
    };
    let ids: Vec<i32> =
        numbers(random).into_iter().filter(|id| held.take(table.row_claim(*id))).collect();
    let emails = numbers(random).into_iter().filter(|number| held.take(table.email_claim(*number)));
    let emails: Vec<String> = emails.map(tables::email).collect();
    if ids.is_empty() && emails.is_empty() {
        return Ok(true);
    }
    sqlx::query("begin").execute(&mut *sql).await?;
    held.lock(&mut *sql).await?;
    let values = values(sql, table, &ids, &emails).await?;
    // It blocks for as long as Redis is paused, with the claims held: when this returns, Redis has
    // done it or is dead.
    let kept = tokio::task::block_in_place(|| put(shared, redis, values));
    sqlx::query("rollback").execute(&mut *sql).await?;
    Ok(kept)
}

async fn values(
    sql: &mut PgConnection,
    table: &Table,
    ids: &[i32],
    emails: &[String],
) -> sqlx::Result<Vec<(String, String)>> {
    let rows = if table.whole {
        tables::read_all(sql, table).await?
    } else {
        tables::read(sql, table, ids, emails).await?
    };
    let of_ids = ids.iter().map(|id| (table.row_key(*id), tables::row_value(&rows, *id)));
    let of_emails =
        emails.iter().map(|email| (table.email_key(email), tables::email_value(&rows, email)));
    let of_all = table.whole_key().map(|key| (key, tables::whole_value(&rows)));
    Ok(of_ids.chain(of_emails).chain(of_all).collect())
}

/// Caches what is missing. Nobody but the listener, which only deletes, touches these keys
/// meanwhile.
fn put(shared: &Shared, redis: &mut Cache, mut values: Vec<(String, String)>) -> bool {
    let keys: Vec<String> = values.iter().map(|(key, _)| key.clone()).collect();
    let cached = match redis.values(&keys) {
        Ok(cached) => cached,
        other => return is_loading(shared, other.map(Reply::List)),
    };
    if let Some(refusal) = cached.iter().find(|reply| matches!(reply, Reply::Error(_))) {
        return is_loading(shared, Ok(refusal.clone()));
    }
    let mut cached = cached.into_iter();
    values.retain(|_| cached.next() == Some(Reply::Value(None)));
    if values.is_empty() {
        return true;
    }
    let reply = redis.put(&values);
    let done = matches!(&reply, Ok(Reply::Status(ok)) if ok == "OK");
    if done {
        shared.tally.fills.fetch_add(values.len() as u64, Ordering::Relaxed);
    }
    let outcome = if done { "" } else { ", perhaps" };
    shared.note(
        outcome,
        values.into_iter().map(|(key, value)| (key, format!("filled with {value}"))),
    );
    done || is_loading(shared, reply)
}

/// What a server refuses with during a fail-over. Then another one is looked for.
const ELSEWHERE: [&str; 5] = ["READONLY", "CLUSTERDOWN", "MASTERDOWN", "MOVED", "TRYAGAIN"];

/// Whether the connection is of use in spite of this answer. A server that has just started reads
/// its file first.
fn is_loading(shared: &Shared, reply: io::Result<Reply>) -> bool {
    match reply {
        Ok(Reply::Error(refusal)) if ELSEWHERE.iter().any(|code| refusal.starts_with(code)) => {
            false
        }
        Ok(Reply::Error(refusal)) if refusal.starts_with("LOADING") => true,
        Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
        other => {
            shared.complain(format!("filling: {other:?}"));
            false
        }
    }
}
