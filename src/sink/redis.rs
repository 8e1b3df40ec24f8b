//! The sink over fred.
//!
//! A client that failed is replaced, not repaired. fred 10.1.0 may hang for ever on a connection that it believes in (its
//! unresponsiveness check is reset by every write; after its task has ended later commands wait for nobody; a full command
//! buffer never drains), so its own reconnecting is off, every command has a timeout, and the end of its task ends the commands. It reads
//! only what the fence lets pass (fence.rs, wire.rs).

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use fred::bytes::BytesMut;
use fred::clients::Client;
use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::config::{Config, ConnectionConfig, PerformanceConfig, ServerConfig};
use fred::types::{Key, Value};
use secrecy::ExposeSecret;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::error::{self, Error};
use super::fence::Breach;
use super::marks::{self, Marks};
use super::tls;
use super::url::{Place, Url};
use super::wire::{self, End, Verdict};
use crate::batch::Work;
use crate::config::{Source, Tls};
use crate::exposure::{self, Exposure};
use crate::glob::Globs;
use crate::mark::{Answer, Found, RedisMark};

/// Keys that Redis looks at in one step of SCAN: well under a millisecond, so that others are not held up.
const SCAN_COUNT: u32 = 1_000;

/// Bytes of keys in one UNLINK of a walk, unless a single key is longer.
const STEP_BYTES: usize = 1 << 20;

/// Steps of a walk, of a thousand keys or ten thousand empty places each: more than any Redis has.
const MAX_STEPS: u64 = 10_000_000;

/// PTTL of a key that is not there.
const GONE: i64 = -2;

/// See the module.
pub struct Sink {
    secret: Source,
    tls: Tls, // of a URL with TLS
    timeout: Duration,
    scan_count: AtomicU32,
    marks: Option<Arc<Marks>>,
    connection: Mutex<Option<Connection>>,
    untold: SyncMutex<Option<Found>>, // what a connection found, until one of its answers told it
}

/// What a command brought.
#[derive(Debug)]
pub struct Done {
    /// How many of the keys existed.
    pub existed: u64,
    /// Who did it, and what of before it has kept.
    pub answer: Answer,
}

#[derive(Clone)]
struct Connection {
    client: Client,
    number: u64,
    found: Found,
    state: Arc<State>,
    verdict: Verdict,
    ended: CancellationToken,
}

/// What a connection has learned.
struct State {
    order: Mutex<()>,               // held while a deletion is handed over, so that marks are sent in the order of their numbers
    acknowledged: SyncMutex<Found>, // the last mark
    may_mark: AtomicBool,
    unlinks: AtomicBool, // else DEL
}

impl Sink {
    /// Reads the URL and tries the files of `tls`; connects when first asked for something. `timeout` bounds each command.
    ///
    /// # Errors
    /// [`Error::Url`], [`Error::Several`], [`Error::File`].
    pub fn new(secret: impl Into<Source>, tls: &Tls, timeout: Duration) -> Result<Arc<Self>, Error> {
        Self::of(secret.into(), tls, timeout, None)
    }

    /// The same, which also marks how far it has come.
    ///
    /// # Errors
    /// Likewise.
    pub fn marking(secret: impl Into<Source>, tls: &Tls, timeout: Duration, marks: Arc<Marks>) -> Result<Arc<Self>, Error> {
        Self::of(secret.into(), tls, timeout, Some(marks))
    }

    fn of(secret: Source, tls: &Tls, timeout: Duration, marks: Option<Arc<Marks>>) -> Result<Arc<Self>, Error> {
        let scan_count = AtomicU32::new(SCAN_COUNT);
        let (connection, untold) = (Mutex::new(None), SyncMutex::new(None));
        let sink = Self { secret, tls: tls.clone(), timeout, scan_count, marks, connection, untold };
        let url = sink.url()?;
        sink.config(&url)?;
        if url.tls {
            tls::client_config(tls)?; // its files are there
        }
        Ok(Arc::new(sink))
    }

    /// Its marks, for another one that takes its place.
    #[must_use]
    pub fn marks(&self) -> Option<Arc<Marks>> {
        self.marks.clone()
    }

    fn config(&self, url: &Url) -> Result<Config, Error> {
        let url = url.clone();
        let server = match url.place {
            Place::Server((host, port)) => ServerConfig::new_centralized(host, port),
            Place::Socket(path) => ServerConfig::new_unix_socket(path),
            Place::Cluster(nodes) => ServerConfig::new_clustered(nodes),
            Place::Sentinel { nodes, service } => ServerConfig::new_sentinel(nodes, service),
        };
        if !matches!(server, ServerConfig::Centralized { .. } | ServerConfig::Unix { .. }) {
            return Err(Error::Several);
        }
        let database = url.database.filter(|&database| database > 0); // SELECT 0 changes nothing, and may be forbidden
        Ok(Config { server, username: url.user, password: url.password, database, ..Config::default() })
    }

    /// As it was when the configuration was read.
    fn url(&self) -> Result<Url, Error> {
        Url::parse(self.secret.known().expose_secret()).map_err(Error::Url)
    }

    /// Deletes. Twice is as good as once.
    ///
    /// # Errors
    /// Then some of it may have been done, and all of it is to be repeated.
    pub async fn perform(&self, work: &Work) -> Result<Done, Error> {
        let connection = self.connection().await?;
        let result = match work {
            work if work.targets() == 0 => self.delete_and_mark(&connection, Vec::new()).await,
            Work::Keys(keys) => match self.delete_and_mark(&connection, shared(keys)).await {
                Err(Error::Refused(words)) if connection.needs_del(&words) => self.delete_and_mark(&connection, shared(keys)).await,
                result => result,
            },
            Work::Patterns(patterns) => self.walk(&connection, patterns).await,
        };
        match result {
            Ok(done) => {
                drop(lock(&self.untold).take_if(|untold| *untold == connection.found));
                Ok(done)
            }
            Err(error) => {
                self.replace(&connection).await;
                if let Some(End::Breach(Breach::Bytes | Breach::Parts)) = connection.verdict.get() {
                    // Perhaps of a thousand very long keys: the next walk asks for fewer at once.
                    let _ = self.scan_count.fetch_update(Relaxed, Relaxed, |count| Some((count / 10).max(1)));
                }
                Err(connection.verdict.get().map_or(error, |end| end.clone().into_error()))
            }
        }
    }

    /// UNLINK and the mark behind it, in this order on the same connection. Nothing is deleted without keys.
    async fn delete_and_mark(&self, connection: &Connection, keys: Vec<Key>) -> Result<Done, Error> {
        let Connection { client, number, found, state, .. } = connection;
        let mut answer =
            Answer { found: found.clone(), mark: RedisMark { life: "".into(), connection: *number, number: 0 }, is_marked: false };
        let (deletes, unlinks) = (!keys.is_empty(), state.unlinks.load(Relaxed));
        let in_words = |error: fred::error::Error| command_error(&error, self.timeout);

        let order = state.order.lock().await;
        let pipeline = client.pipeline();
        match (deletes, unlinks) {
            (true, true) => pipeline.unlink::<(), _>(keys).await.map_err(in_words)?,
            (true, false) => pipeline.del::<(), _>(keys).await.map_err(in_words)?,
            (false, _) => {}
        }
        let least = lock(&state.acknowledged).clone();
        if let Some(marks) = &self.marks {
            answer.mark = marks.next(*number);
            if state.may_mark.load(Relaxed) {
                pipeline.set::<(), _, _>(marks.key(), answer.mark.to_string(), None, None, true).await.map_err(in_words)?;
                answer.is_marked = true;
            }
        }
        let mut replies = pin!(pipeline.try_all::<Value>());
        // The first poll hands it over.
        let first = std::future::poll_fn(|context| Poll::Ready(replies.as_mut().poll(context))).await;
        drop(order);
        let replies = match first {
            Poll::Ready(replies) => replies,
            Poll::Pending => connection.ask(self.timeout, async { Ok(replies.await) }).await?,
        };

        let mut replies = replies.into_iter();
        let existed = match deletes.then(|| replies.next().unwrap_or(Ok(Value::Null))) {
            None => 0,
            Some(reply) => reply.and_then(Value::convert::<u64>).map_err(|error| command_error(&error, self.timeout))?,
        };
        if answer.is_marked {
            answer.is_marked = self.marked(connection, &answer.mark, &least, replies.next())?;
        }
        Ok(Done { existed, answer })
    }

    /// What SET said to the mark: was it written? It also brings the mark before it, which tells a server that was set back behind a
    /// proxy, so that the connection did not end.
    fn marked(
        &self,
        connection: &Connection,
        mark: &RedisMark,
        least: &Found,
        reply: Option<Result<Value, fred::error::Error>>,
    ) -> Result<bool, Error> {
        let before = match reply {
            Some(Ok(before)) => marks::found(before.as_str().as_deref()),
            Some(Err(error)) => {
                let error = command_error(&error, self.timeout);
                let Error::Refused(words) = &error else { return Err(error) };
                // A full server refuses it now and then; one that does not know the command, or whose user may not, always.
                if error::code(words) != Some("OOM") {
                    connection.state.may_mark.store(false, Relaxed);
                }
                return Ok(false);
            }
            None => return Err(Error::Ended),
        };
        if marks::is_set_back(&before, least) {
            let mut untold = lock(&self.untold);
            *untold = Some(before.after(untold.take(), &mark.life));
            return Err(Error::SetBack);
        }
        *lock(&connection.state.acknowledged) = Found::Mark(mark.clone());
        Ok(true)
    }

    /// What the server says of itself.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn info(&self) -> Result<String, Error> {
        let connection = self.connection().await?;
        connection.ask(self.timeout, connection.client.info(None)).await
    }

    /// Is it allowed to delete what these patterns match? Deletes nothing but keys that are called as the patterns are.
    ///
    /// # Errors
    /// [`Error`], as a deletion would have it.
    pub async fn rehearse(&self, patterns: &BTreeSet<String>) -> Result<(), Error> {
        let connection = self.connection().await?;
        let step = connection.client.scan_page::<(String, Vec<Key>), _, _>("0", "unstale:check:*", Some(1), None);
        connection.ask(self.timeout, step).await?;
        for key in patterns.iter().map(String::as_str).filter(|pattern| pattern.contains('*')).chain(["unstale:check:"]) {
            self.delete(&connection, vec![key.into()]).await?;
        }
        Ok(())
    }

    /// May it read and write a mark? Leaves nothing there.
    ///
    /// # Errors
    /// [`Error`], as a mark would have it.
    pub async fn can_mark(&self) -> Result<(), Error> {
        let connection = self.connection().await?;
        connection.ask(self.timeout, connection.client.get::<Option<String>, _>("unstale:check:")).await?;
        let soon = Some(fred::types::Expiration::PX(1));
        connection.ask(self.timeout, connection.client.set::<Option<String>, _, _>("unstale:check:", "", soon, None, true)).await?;
        Ok(())
    }

    /// Puts a key there, for a while.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn put(&self, key: &str, time: Duration) -> Result<(), Error> {
        let connection = self.connection().await?;
        let expires = fred::types::Expiration::PX(i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
        connection.ask(self.timeout, connection.client.set(key, "put here by `unstale check`", Some(expires), None, false)).await
    }

    /// Is the key there?
    ///
    /// # Errors
    /// [`Error`].
    pub async fn has(&self, key: &str) -> Result<bool, Error> {
        let connection = self.connection().await?;
        connection.ask(self.timeout, connection.client.exists(key)).await
    }

    /// One step through all of Redis: the keys among the next thousand that match the glob, and how long each will live (`None`: for
    /// ever). Returns the cursor of the next step; the first is `0`, and after the last comes `0` again.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn lives_of_matching(&self, pattern: &str, cursor: String) -> Result<(String, Vec<(String, Option<Duration>)>), Error> {
        let connection = self.connection().await?;
        let step = connection.client.scan_page(cursor, pattern, Some(SCAN_COUNT), None);
        let (next, keys): (String, Vec<Key>) = connection.ask(self.timeout, step).await?;
        Ok((next, self.lives(&connection, keys).await?))
    }

    /// How long the key will live, if it is there.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn life_of(&self, key: &str) -> Result<Vec<(String, Option<Duration>)>, Error> {
        self.lives(&self.connection().await?, vec![key.into()]).await
    }

    async fn lives(&self, connection: &Connection, keys: Vec<Key>) -> Result<Vec<(String, Option<Duration>)>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let pipeline = connection.client.pipeline();
        for key in &keys {
            let _: () = pipeline.pttl(key.clone()).await.map_err(|error| command_error(&error, self.timeout))?;
        }
        let lives: Vec<i64> = connection.ask(self.timeout, pipeline.all()).await?;
        let name = |key: &Key| key.as_str_lossy().into_owned();
        let there = keys.iter().zip(lives).filter(|(_, life)| *life != GONE);
        Ok(there.map(|(key, life)| (name(key), u64::try_from(life).ok().map(Duration::from_millis))).collect())
    }

    /// Could somebody in between read the password?
    #[must_use]
    pub fn exposure(&self) -> Option<Exposure> {
        let url = self.url().ok()?;
        let host = match &url.place {
            Place::Server((host, _)) => Some(host.as_str()),
            _ => None, // a socket; what has several servers is refused
        };
        exposure::of_redis(host, url.tls, url.password.is_some())
    }

    /// The user of the URL, for people.
    #[must_use]
    pub fn user(&self) -> String {
        self.url().ok().and_then(|url| url.user).unwrap_or_else(|| "default".into())
    }

    /// One walk through Redis for all patterns, in bounded steps; a key that is there from the beginning to the end is found
    /// (<https://redis.io/commands/scan>).
    async fn walk(&self, connection: &Connection, patterns: &[String]) -> Result<Done, Error> {
        let globs = Globs::parse(patterns).map_err(|error| Error::Refused(error.to_string()))?;
        let sent = if let [pattern] = patterns { Some(pattern.clone()) } else { globs.common() }.unwrap_or_else(|| "*".into());
        let mut existed = 0;
        let mut cursor = "0".to_owned();
        let mut turtle = cursor.clone(); // Brent's: a cursor that comes again is met
        for step in 1..=MAX_STEPS {
            let page = connection.client.scan_page(cursor, sent.as_str(), Some(self.scan_count.load(Relaxed)), None);
            let (next, mut keys): (String, Vec<Key>) = connection.ask(self.timeout, page).await?;
            keys.retain(|key| globs.matches(key.as_bytes()));
            while !keys.is_empty() {
                let mut bytes = 0;
                let fits = keys.iter().take_while(|key| {
                    bytes += key.as_bytes().len();
                    bytes <= STEP_BYTES
                });
                let rest = keys.split_off(fits.count().max(1));
                existed += self.delete(connection, keys).await?;
                keys = rest;
            }
            if next == "0" {
                return Ok(Done { existed, ..self.delete_and_mark(connection, Vec::new()).await? });
            }
            if next == turtle {
                return Err(Error::Broken("its SCAN goes round in circles".into()));
            }
            if step.is_power_of_two() {
                turtle.clone_from(&next);
            }
            cursor = next;
        }
        Err(Error::Broken(format!("its SCAN has not ended after {MAX_STEPS} steps")))
    }

    /// Deletes without a mark, in the middle of a walk.
    async fn delete(&self, connection: &Connection, keys: Vec<Key>) -> Result<u64, Error> {
        if connection.state.unlinks.load(Relaxed) {
            match connection.ask(self.timeout, connection.client.unlink(keys.clone())).await {
                Err(Error::Refused(words)) if connection.needs_del(&words) => {}
                result => return result,
            }
        }
        connection.ask(self.timeout, connection.client.del(keys)).await
    }

    async fn connection(&self) -> Result<Connection, Error> {
        let mut place = self.connection.lock().await;
        if let Some(connection) = place.as_ref().filter(|connection| !connection.ended.is_cancelled()) {
            return Ok(connection.clone());
        }
        let connection = self.connect().await?;
        *place = Some(connection.clone());
        Ok(connection)
    }

    async fn connect(&self) -> Result<Connection, Error> {
        let performance = PerformanceConfig { default_command_timeout: self.timeout, ..PerformanceConfig::default() };
        let connection = ConnectionConfig {
            connection_timeout: self.timeout,
            internal_command_timeout: self.timeout,
            max_command_attempts: 1,
            reconnect_errors: Vec::new(),
            tcp: fred::types::config::TcpConfig { nodelay: Some(true), ..Default::default() },
            ..ConnectionConfig::default()
        };
        let ended = CancellationToken::new();
        let end = ended.clone().drop_guard();
        // Read anew for each connection: a password that was rotated in its file needs no restart.
        let url = Url::parse(self.secret.read().await.0.expose_secret()).map_err(Error::Url)?;
        let config = self.config(&url)?;
        let (path, verdict) = wire::open(&config.server, url.tls.then_some(&self.tls), self.timeout, ended.clone()).await?;
        let config = Config { server: ServerConfig::Unix { path }, ..config };
        let client = Client::new(config, Some(performance), Some(connection), None);
        let task = client.connect();
        let connected = tokio::time::timeout(self.timeout, client.wait_for_connect()).await;
        let failed = |error| verdict.get().map_or(error, |end| end.clone().into_error());
        match connected {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(connect_error(&error, self.timeout))),
            Err(_) => {
                task.abort();
                return Err(failed(no_answer(self.timeout)));
            }
        }
        tokio::spawn(async move {
            let _ = task.await;
            drop(end);
        });
        let state = State {
            order: Mutex::new(()),
            acknowledged: SyncMutex::new(Found::Nothing),
            may_mark: AtomicBool::new(true),
            unlinks: AtomicBool::new(true),
        };
        let mut connection = Connection { client, number: 0, found: Found::Nothing, state: Arc::new(state), verdict, ended };
        if let Some(marks) = &self.marks {
            connection.number = marks.next_connection();
            let read = self.read_mark(&connection, marks).await?;
            *lock(&connection.state.acknowledged) = read.clone();
            let mut untold = lock(&self.untold);
            connection.found = read.after(untold.take(), marks.life());
            *untold = Some(connection.found.clone());
        }
        Ok(connection)
    }

    async fn read_mark(&self, connection: &Connection, marks: &Marks) -> Result<Found, Error> {
        match connection.ask(self.timeout, connection.client.get::<Option<String>, _>(marks.key())).await {
            Ok(value) => Ok(marks::found(value.as_deref())),
            Err(Error::Refused(words)) if matches!(error::code(&words), Some("NOPERM" | "ERR")) => Ok(Found::Refused),
            Err(error) => Err(error),
        }
    }

    /// The next command connects anew, unless somebody has already done so.
    async fn replace(&self, failed: &Connection) {
        failed.ended.cancel();
        let mut place = self.connection.lock().await;
        if place.as_ref().is_some_and(|current| current.client.id() == failed.client.id()) {
            *place = None;
        }
        drop(place);
        // Ends its task; nobody waits for a farewell over a connection that does not answer.
        let client = failed.client.clone();
        let timeout = self.timeout;
        tokio::spawn(async move {
            let _ = tokio::time::timeout(timeout, client.quit()).await;
        });
    }
}

impl Connection {
    /// Does the server not know UNLINK, or not let this user run it? It may know DEL, which is tried from here on.
    fn needs_del(&self, words: &str) -> bool {
        let lowered = words.to_ascii_lowercase();
        let lacks = lowered.contains("unlink") && (lowered.starts_with("noperm") || lowered.contains("unknown command"));
        lacks && self.state.unlinks.swap(false, Relaxed)
    }

    async fn ask<T>(&self, timeout: Duration, command: impl Future<Output = Result<T, fred::error::Error>>) -> Result<T, Error> {
        tokio::select! {
            answer = tokio::time::timeout(timeout, command) => match answer {
                Ok(answer) => answer.map_err(|error| command_error(&error, timeout)),
                Err(_) => Err(Error::Timeout(timeout)),
            },
            () = self.ended.cancelled() => Err(Error::Ended),
        }
    }
}

/// The same keys for fred, in one buffer: it wants to own them, and so does who may have to repeat them.
fn shared(keys: &[String]) -> Vec<Key> {
    let mut all = BytesMut::with_capacity(keys.iter().map(String::len).sum());
    keys.iter().for_each(|key| all.extend_from_slice(key.as_bytes()));
    let mut all = all.freeze();
    keys.iter().map(|key| all.split_to(key.len()).into()).collect()
}

fn lock<T>(mutex: &SyncMutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // nobody panics with it
}

fn no_answer(timeout: Duration) -> Error {
    Error::Connect(format!("no answer within {timeout:?} (redis.timeout)"))
}

fn connect_error(error: &fred::error::Error, timeout: Duration) -> Error {
    let details = error.details();
    match error.kind() {
        fred::error::ErrorKind::Timeout => no_answer(timeout), // whichever clock was first
        fred::error::ErrorKind::Auth => Error::Refused(details.to_owned()),
        _ if error::code(details).is_some() => Error::Refused(details.to_owned()), // LOADING, MISCONF: to our PING
        _ => Error::Connect(format!("{}; is REDIS_URL right?", error::shown(details))),
    }
}

fn command_error(error: &fred::error::Error, timeout: Duration) -> Error {
    use fred::error::ErrorKind;
    match error.kind() {
        ErrorKind::Timeout => Error::Timeout(timeout),
        ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Routing => Error::Ended,
        // READONLY, LOADING, OOM, NOPERM and the like come as Unknown; their first word tells them apart.
        _ => Error::Refused(error.details().to_owned()),
    }
}
