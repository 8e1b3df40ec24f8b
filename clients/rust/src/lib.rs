//! Reads through Redis that cannot put stale data back: the readers' half of `unstale`, for redis-rs and tokio.
//!
//! A miss takes a lease in the key itself, new for every fill; what was loaded is stored only if the key still holds that lease. So
//! whatever deletes the key in between refuses the fill. The protocol and its proof: `docs/readers.md` of the repository.
//! A failure of Redis never fails a read: it goes to the database, and [`Counters::errors`] says so.

mod protocol;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::ConnectionLike;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use protocol::{Found, Lease, Link};

/// How a cache behaves. `..Settings::default()` for the rest.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a value lives, shortened by up to `jitter` of it. An hour.
    pub ttl: Duration,
    /// How long a load may take before another reader loads, too. Five seconds.
    pub lease: Duration,
    /// How long a reader waits for another's load before it asks the database and stores nothing. A second.
    pub wait: Duration,
    /// A tenth.
    pub jitter: f64,
    /// The `ttl` of a JSON `null`, as `None` is written: of a row that does not exist. As long as any.
    pub negative_ttl: Option<Duration>,
    /// XFetch's beta: how eagerly a value is loaded before it expires. 0 turns it off. 1.
    pub early: f64,
}

impl Default for Settings {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { ttl: seconds(3600), lease: seconds(5), wait: seconds(1), jitter: 0.1, negative_ttl: None, early: 1.0 }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// What the reads of a cache came to.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct Counters { $($(#[$doc])* pub $name: u64),+ }

        #[derive(Debug, Default)]
        struct Counting { $($name: AtomicU64),+ }

        impl Counting {
            fn read(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed)),+ }
            }
        }
    };
}

counters! {
    /// Read from Redis.
    hits,
    /// Nothing was there, and this reader took the lease.
    misses,
    /// Another reader was loading ...
    waits,
    /// ... and did not finish within `wait`: this reader asked the database and stored nothing.
    timeouts,
    /// Loads that began before the value expired.
    early,
    /// Loaded and stored.
    fills,
    /// Loaded, but the key was deleted meanwhile, or the lease ran out: nothing was stored.
    refused,
    /// Of Redis, or of decoding: the read went to the database.
    errors,
}

fn one_more(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

type Payload = Option<Arc<Vec<u8>>>;

struct Shared<C> {
    link: Link<C>,
    settings: Settings,
    counting: Counting,
    /// This process' loads: its other readers wait for them without asking Redis again and again.
    loading: Mutex<HashMap<Vec<u8>, watch::Receiver<Payload>>>,
}

/// A cache over any cloneable connection of redis-rs: `MultiplexedConnection`, `ConnectionManager`, `ClusterConnection`. Clones share
/// everything. One for each kind of value.
pub struct Cache<C>(Arc<Shared<C>>);

impl<C> Clone for Cache<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C> std::fmt::Debug for Cache<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("settings", &self.0.settings).field("counters", &self.0.counting.read()).finish_non_exhaustive()
    }
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Cache<C> {
    /// With `Settings::default()` for the usual.
    pub fn new(connection: C, settings: Settings) -> Self {
        let link = Link::new(connection);
        Self(Arc::new(Shared { link, settings, counting: Counting::default(), loading: Mutex::default() }))
    }

    /// Since the cache was made.
    pub fn counters(&self) -> Counters {
        self.0.counting.read()
    }

    /// The cached value, or what `load` gives. `load` must read the database after it is called.
    pub async fn get_or_set<T, E>(&self, key: &str, load: impl AsyncFnOnce() -> Result<T, E>) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
    {
        self.get_or_set_for(key, None, load).await
    }

    /// The same with a `ttl` of its own.
    pub async fn get_or_set_for<T, E>(&self, key: &str, ttl: Option<Duration>, load: impl AsyncFnOnce() -> Result<T, E>) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
    {
        match self.find(key).await {
            Ok(Found::Lease(lease)) => return self.load_and_fill(key, &lease, ttl, load).await,
            Ok(Found::Value(payload)) => match serde_json::from_slice(&payload) {
                Ok(value) => return Ok(value),
                Err(_) => one_more(&self.0.counting.errors),
            },
            Ok(Found::Nothing) => {}
            Err(_) => one_more(&self.0.counting.errors),
        }
        load().await
    }

    /// A lease to fill under, or a value, or neither after waiting for too long.
    async fn find(&self, key: &str) -> redis::RedisResult<Found> {
        let Shared { link, settings, counting, .. } = &*self.0;
        let (mut reply, early) = link.look(key, settings.early, settings.ttl).await?;
        if let Some(lease) = early {
            one_more(&counting.early);
            return Ok(Found::Lease(lease));
        }
        let mut deadline = None;
        let mut pause = Duration::from_millis(2);
        loop {
            let there = match reply {
                Some(there) => there,
                None => {
                    let lease = Lease::new(false);
                    match link.take(key, &lease, settings.lease).await? {
                        Some(there) => there,
                        None => {
                            one_more(&counting.misses);
                            return Ok(Found::Lease(lease));
                        }
                    }
                }
            };
            let lease = match protocol::value(there) {
                Ok(value) => {
                    one_more(&counting.hits);
                    return Ok(Found::Value(value));
                }
                Err(lease) => lease,
            };
            let deadline = *deadline.get_or_insert_with(|| {
                one_more(&counting.waits);
                Instant::now() + settings.wait
            });
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                one_more(&counting.timeouts);
                return Ok(Found::Nothing);
            }
            let ours = self.loading().get(&lease).cloned();
            if let Some(mut load) = ours {
                if let Ok(Ok(payload)) = tokio::time::timeout(left, load.wait_for(Option::is_some)).await {
                    return Ok(Found::Value(payload.as_deref().cloned().unwrap_or_default()));
                }
            } else {
                tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>()).min(left)).await;
                pause = pause.mul_f64(1.5).min(Duration::from_millis(50));
            }
            reply = link.get(key).await?;
        }
    }

    async fn load_and_fill<T, E>(
        &self,
        key: &str,
        lease: &Lease,
        ttl: Option<Duration>,
        load: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<T, E>
    where
        T: Serialize,
    {
        let Shared { link, settings, counting, .. } = &*self.0;
        let (finished, waiting) = watch::channel(None);
        self.loading().insert(lease.token.clone(), waiting);
        let mut held = Held { cache: self, key, lease, given_up: true };
        let begun = Instant::now();
        let value = load().await;
        link.took(begun.elapsed());
        // JSON never begins as a lease does.
        let Some(payload) = value.as_ref().ok().and_then(|value| serde_json::to_vec(value).ok()) else {
            held.given_up = false;
            let given_up = link.give_up(key, &lease.token).await;
            if given_up.is_err() || value.is_ok() {
                one_more(&counting.errors);
            }
            return value;
        };
        let negative = settings.negative_ttl.filter(|_| payload == b"null");
        let ttl = ttl.or(negative).unwrap_or(settings.ttl).mul_f64(1.0 - settings.jitter * rand::random::<f64>());
        held.given_up = false;
        match link.fill(key, lease, &payload, ttl).await {
            Ok(true) => {
                one_more(&counting.fills);
                finished.send_replace(Some(Arc::new(payload)));
            }
            Ok(false) => one_more(&counting.refused),
            Err(_) => one_more(&counting.errors),
        }
        value
    }

    fn loading(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<u8>, watch::Receiver<Payload>>> {
        self.0.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A lease that is being filled. A caller that drops its future gives the lease up.
struct Held<'a, C: ConnectionLike + Clone + Send + Sync + 'static> {
    cache: &'a Cache<C>,
    key: &'a str,
    lease: &'a Lease,
    given_up: bool,
}

impl<C: ConnectionLike + Clone + Send + Sync + 'static> Drop for Held<'_, C> {
    fn drop(&mut self) {
        self.cache.loading().remove(&self.lease.token);
        if let (true, Ok(runtime)) = (self.given_up, tokio::runtime::Handle::try_current()) {
            let (cache, key, token) = (self.cache.clone(), self.key.to_owned(), self.lease.token.clone());
            // If this fails, the lease expires by itself.
            runtime.spawn(async move {
                if cache.0.link.give_up(&key, &token).await.is_err() {
                    one_more(&cache.0.counting.errors);
                }
            });
        }
    }
}
