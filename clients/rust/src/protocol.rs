//! What is asked of Redis, and what its answers mean.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Cmd, RedisResult, cmd, pipe};

const PREFIX: &[u8] = b"unstale:lease:";

/// A lease is this long; one that carries the previous value goes on with `=` and the value.
const LENGTH: usize = PREFIX.len() + 32;

const TAKE_EARLY: &str = "local v = redis.call('get', KEYS[1])
if v and string.sub(v, 1, 14) ~= 'unstale:lease:' then
  return redis.call('set', KEYS[1], ARGV[1] .. '=' .. v, 'keepttl')
end";

const FILL: &str = "if redis.call('getrange', KEYS[1], 0, 45) == ARGV[1] then
  return redis.call('set', KEYS[1], ARGV[2], 'px', ARGV[3])
end";

const GIVE_UP: &str = "local v = redis.call('get', KEYS[1])
if v and string.sub(v, 1, 46) == ARGV[1] then
  if #v == 46 then return redis.call('del', KEYS[1]) end
  return redis.call('set', KEYS[1], string.sub(v, 48), 'keepttl')
end";

/// One hit in so many asks for the key's remaining time along with its value: a hot key has hits enough.
const SAMPLE: f64 = 16.0;

/// How long a load is believed to take before this process has seen one.
const FIRST_GUESS_MICROS: u64 = 50_000;

/// What a read found.
pub(crate) enum Found {
    Value(Vec<u8>),
    /// This reader loads.
    Lease(Lease),
    /// Another reader loads, and takes too long.
    Nothing,
}

/// Never one for two fills: the first could store what it loaded before a delete under the second's lease.
pub(crate) struct Lease {
    pub(crate) token: Vec<u8>,
    early: bool,
}

impl Lease {
    pub(crate) fn new(early: bool) -> Self {
        Self { token: format!("unstale:lease:{:032x}", rand::random::<u128>()).into_bytes(), early }
    }
}

pub(crate) fn is_lease(reply: &[u8]) -> bool {
    reply.starts_with(PREFIX)
}

/// The value in a reply, also if a lease carries it, or the lease.
pub(crate) fn value(mut reply: Vec<u8>) -> Result<Vec<u8>, Vec<u8>> {
    match (is_lease(&reply), reply.len() > LENGTH) {
        (false, _) => Ok(reply),
        (true, true) => Ok(reply.split_off(LENGTH + 1)),
        (true, false) => Err(reply),
    }
}

fn is_unknown(error: &redis::RedisError) -> bool {
    error.to_string().to_lowercase().contains("syntax")
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// A connection, and what is known of its server.
pub(crate) struct Link<C> {
    connection: C,
    /// Until the server says that it knows no such thing.
    set_nx_get: AtomicBool,
    set_ifeq: AtomicBool,
    load_micros: AtomicU64,
}

impl<C: ConnectionLike + Clone> Link<C> {
    pub(crate) fn new(connection: C) -> Self {
        let (set_nx_get, set_ifeq) = (AtomicBool::new(true), AtomicBool::new(true));
        Self { connection, set_nx_get, set_ifeq, load_micros: AtomicU64::new(FIRST_GUESS_MICROS) }
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        command.query_async(&mut self.connection.clone()).await
    }

    pub(crate) async fn get(&self, key: &str) -> RedisResult<Option<Vec<u8>>> {
        self.ask(cmd("GET").arg(key)).await
    }

    /// Nothing if the lease is ours now, else what is there. A retry by the connection finds our own.
    pub(crate) async fn take(&self, key: &str, lease: &Lease, lasts: Duration) -> RedisResult<Option<Vec<u8>>> {
        let token = &lease.token;
        if self.set_nx_get.load(Ordering::Relaxed) {
            let command = cmd("SET").arg(key).arg(token).arg("NX").arg("GET").arg("PX").arg(millis(lasts)).clone();
            match self.ask::<Option<Vec<u8>>>(&command).await {
                Err(error) if is_unknown(&error) => self.set_nx_get.store(false, Ordering::Relaxed), // Redis 6.2
                reply => return Ok(reply?.filter(|there| there != token)),
            }
        }
        loop {
            let mut pipeline = pipe();
            pipeline.cmd("SET").arg(key).arg(token).arg("NX").arg("PX").arg(millis(lasts)).cmd("GET").arg(key);
            let (taken, there): (Option<String>, Option<Vec<u8>>) = pipeline.query_async(&mut self.connection.clone()).await?;
            if taken.is_some() || there.as_ref() == Some(token) {
                return Ok(None);
            }
            // Else it was deleted between the two.
            if there.is_some() {
                return Ok(there);
            }
        }
    }

    /// Whether it was stored: only if the key has held this lease all the time.
    pub(crate) async fn fill(&self, key: &str, lease: &Lease, payload: &[u8], ttl: Duration) -> RedisResult<bool> {
        let token = &lease.token;
        if !lease.early && self.set_ifeq.load(Ordering::Relaxed) {
            let command = cmd("SET").arg(key).arg(payload).arg("IFEQ").arg(token).arg("PX").arg(millis(ttl)).clone();
            match self.ask::<Option<String>>(&command).await {
                Err(error) if is_unknown(&error) => self.set_ifeq.store(false, Ordering::Relaxed), // before Redis 8.4, Valkey 8.1
                reply => return Ok(reply?.is_some()),
            }
        }
        let command = cmd("EVAL").arg(FILL).arg(1).arg(key).arg(token).arg(payload).arg(millis(ttl)).clone();
        Ok(self.ask::<Option<String>>(&command).await?.is_some())
    }

    pub(crate) async fn give_up(&self, key: &str, token: &[u8]) -> RedisResult<()> {
        self.ask(cmd("EVAL").arg(GIVE_UP).arg(1).arg(key).arg(token)).await
    }

    /// The value or lease, and the lease of a load that should begin before the value expires.
    pub(crate) async fn look(&self, key: &str, early: f64, ttl: Duration) -> RedisResult<(Option<Vec<u8>>, Option<Lease>)> {
        if early == 0.0 || rand::random::<f64>() * SAMPLE >= 1.0 {
            return Ok((self.get(key).await?, None));
        }
        let mut pipeline = pipe();
        pipeline.cmd("GET").arg(key).cmd("PTTL").arg(key);
        let (reply, left_ms): (Option<Vec<u8>>, i64) = pipeline.query_async(&mut self.connection.clone()).await?;
        // XFetch (Vattani et al. 2015), for a reader of which one hit in SAMPLE draws.
        let draw = SAMPLE.ln() - (1.0 - rand::random::<f64>()).ln();
        let ahead = Duration::from_micros(self.load_micros.load(Ordering::Relaxed)).mul_f64(early * draw);
        // A load as slow as the ttl is long would never end.
        let ahead = ahead.min(ttl / 10);
        let soon = u64::try_from(left_ms).is_ok_and(|left| Duration::from_millis(left) <= ahead);
        if !soon || reply.as_ref().is_none_or(|there| is_lease(there)) {
            return Ok((reply, None));
        }
        let lease = Lease::new(true);
        let taken: Option<String> = self.ask(cmd("EVAL").arg(TAKE_EARLY).arg(1).arg(key).arg(&lease.token)).await?;
        Ok((reply, taken.map(|_| lease)))
    }

    pub(crate) fn took(&self, load: Duration) {
        let (before, now) = (self.load_micros.load(Ordering::Relaxed), u64::try_from(load.as_micros()).unwrap_or(u64::MAX));
        self.load_micros.store((before / 5).saturating_mul(4).saturating_add(now / 5), Ordering::Relaxed);
    }
}
