//! The sink over fred.
//!
//! A client that failed is replaced, not repaired. fred 10.1.0 may hang for ever on a connection that it believes in (its
//! unresponsiveness check is reset by every write; after its task has ended later commands wait for nobody; a full command
//! buffer never drains), so its own reconnecting is off, every command has a timeout, and the end of its task ends the commands.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fred::bytes::BytesMut;
use fred::clients::Client;
use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::Key;
use fred::types::config::{Config, ConnectionConfig, PerformanceConfig, ServerConfig};
use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::tls;
use crate::batch::Work;
use crate::config::Tls;
use crate::glob::Globs;

/// Keys that Redis looks at in one step of SCAN: well under a millisecond, so that others are not held up.
const SCAN_COUNT: u32 = 1_000;

/// Bytes of keys in one UNLINK of a walk, unless a single key is longer.
const STEP_BYTES: usize = 1 << 20;

/// PTTL of a key that is not there.
const GONE: i64 = -2;

/// Why Redis did not do it. None holds the URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL cannot be read.
    #[error("REDIS_URL is not a Redis URL; write redis://:password@host:6379/0, rediss:// for TLS, or redis+unix:///run/redis.sock")]
    Url,
    /// Several servers, of which this version would ask only one.
    #[error("REDIS_URL: Redis Cluster and Sentinel are not supported yet; name one server")]
    Several,
    /// No connection.
    #[error("cannot connect to Redis: {0}")]
    Connect(String),
    /// Connected, and no answer in time. It may have been done all the same.
    #[error("Redis did not answer within {0:?} (redis.timeout)")]
    Timeout(Duration),
    /// The connection ended. It may have been done all the same.
    #[error("the connection to Redis ended")]
    Ended,
    /// A file that TLS needs is not as it must be.
    #[error("{key}: {} {fault}", file.display())]
    File {
        /// The key that names it.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong with it, as the sentence goes on, and what to do.
        fault: String,
    },
    /// Redis said no.
    #[error("Redis refused: {0}{remedy}", remedy = remedy(.0))]
    Refused(String),
}

fn remedy(refusal: &str) -> &'static str {
    match refusal.split_whitespace().next() {
        Some("NOPERM") => " (let the user run UNLINK, SCAN, SELECT and PING on the keys of the watches and on unstale:*)",
        Some("WRONGPASS" | "NOAUTH") => " (correct user and password in REDIS_URL)",
        Some("READONLY") => " (this is a replica; let REDIS_URL lead to the primary)",
        _ => "",
    }
}

/// See the module.
pub struct Sink {
    config: Config,
    tls: Option<Tls>, // `None` for a URL without TLS
    timeout: Duration,
    connection: Mutex<Option<Connection>>,
}

/// What a command brought.
#[derive(Debug)]
pub struct Done {
    /// How many of the keys existed.
    pub existed: u64,
    /// The run id of the server that did it, if it tells. Another one than before may have undone what that one did.
    pub server: Option<Arc<str>>,
}

#[derive(Clone)]
struct Connection {
    client: Client,
    server: Option<Arc<str>>,
    ended: CancellationToken,
}

impl Sink {
    /// Reads the URL and tries the files of `tls`; connects when first asked for something. `timeout` bounds each command.
    ///
    /// # Errors
    /// [`Error::Url`], [`Error::Several`], [`Error::File`].
    pub fn new(url: &SecretString, tls: &Tls, timeout: Duration) -> Result<Arc<Self>, Error> {
        let url = url.expose_secret();
        let plain = without_tls(url);
        let config = Config::from_url(plain.as_deref().unwrap_or(url)).map_err(|_| Error::Url)?;
        if !matches!(config.server, ServerConfig::Centralized { .. } | ServerConfig::Unix { .. }) {
            return Err(Error::Several);
        }
        let tls = plain.map(|_| tls.clone());
        if let Some(tls) = &tls {
            tls::client_config(tls)?;
        }
        Ok(Arc::new(Self { config, tls, timeout, connection: Mutex::new(None) }))
    }

    /// Deletes. Twice is as good as once.
    ///
    /// # Errors
    /// Then some of it may have been done, and all of it is to be repeated.
    pub async fn perform(&self, work: &Work) -> Result<Done, Error> {
        let connection = self.connection().await?;
        let result = match work {
            work if work.targets() == 0 => Ok(0),
            Work::Keys(keys) => connection.ask(self.timeout, connection.client.unlink(shared(keys))).await,
            Work::Patterns(patterns) => self.walk(&connection, patterns).await,
        };
        if let Err(Error::Timeout(_) | Error::Ended) | Err(Error::Refused(_)) = &result {
            self.replace(&connection).await;
        }
        Ok(Done { existed: result?, server: connection.server })
    }

    /// What the server says of itself.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn info(&self) -> Result<String, Error> {
        let connection = self.connection().await?;
        connection.ask(self.timeout, connection.client.info(None)).await
    }

    /// Is it allowed to delete? Deletes nothing that is anybody's.
    ///
    /// # Errors
    /// [`Error`], as a deletion would have it.
    pub async fn rehearse(&self) -> Result<(), Error> {
        let connection = self.connection().await?;
        let step = connection.client.scan_page::<(String, Vec<Key>), _, _>("0", "unstale:check:*", Some(1), None);
        connection.ask(self.timeout, step).await?;
        connection.ask(self.timeout, connection.client.unlink::<u64, _>("unstale:check:")).await?;
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

    /// The user of the URL, for people.
    #[must_use]
    pub fn user(&self) -> &str {
        self.config.username.as_deref().unwrap_or("default")
    }

    /// One walk through Redis for all patterns, in bounded steps; a key that is there from the beginning to the end is found
    /// (<https://redis.io/commands/scan>).
    async fn walk(&self, connection: &Connection, patterns: &[String]) -> Result<u64, Error> {
        let globs = Globs::parse(patterns).map_err(|error| Error::Refused(error.to_string()))?;
        let sent = if let [pattern] = patterns { Some(pattern.clone()) } else { globs.common() }.unwrap_or_else(|| "*".into());
        let mut existed = 0;
        let mut cursor = "0".to_owned();
        loop {
            let step = connection.client.scan_page(cursor, sent.as_str(), Some(SCAN_COUNT), None);
            let (next, mut keys): (String, Vec<Key>) = connection.ask(self.timeout, step).await?;
            keys.retain(|key| globs.matches(key.as_bytes()));
            while !keys.is_empty() {
                let mut bytes = 0;
                let fits = keys.iter().take_while(|key| {
                    bytes += key.as_bytes().len();
                    bytes <= STEP_BYTES
                });
                let rest = keys.split_off(fits.count().max(1));
                existed += connection.ask::<u64>(self.timeout, connection.client.unlink(keys)).await?;
                keys = rest;
            }
            if next == "0" {
                return Ok(existed);
            }
            cursor = next;
        }
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
        let mut config = self.config.clone();
        if let Some(tls) = &self.tls {
            config.tls = Some(tls::client_config(tls)?.into());
        }
        let client = Client::new(config, Some(performance), Some(connection), None);
        let task = client.connect();
        let connected = tokio::time::timeout(self.timeout, client.wait_for_connect()).await;
        match connected {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(connect_error(&error, self.timeout)),
            Err(_) => {
                task.abort();
                return Err(no_answer(self.timeout));
            }
        }
        let server = self.run_id(&client).await;
        let ended = CancellationToken::new();
        let end = ended.clone().drop_guard();
        tokio::spawn(async move {
            let _ = task.await;
            drop(end);
        });
        Ok(Connection { client, server, ended })
    }

    /// `None` if the user may not ask, or the answer is cut: then a fail-over goes unnoticed, as without this.
    async fn run_id(&self, client: &Client) -> Option<Arc<str>> {
        let info = tokio::time::timeout(self.timeout, client.info::<String>(Some(fred::types::InfoKind::Server))).await;
        let info = info.ok()?.ok()?;
        info.lines().find_map(|line| line.strip_prefix("run_id:")).map(|id| id.trim().into())
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

/// The URL without its TLS, which is our business; `None` if it has none.
fn without_tls(url: &str) -> Option<String> {
    let schemes = [("rediss://", "redis://"), ("valkeys://", "valkey://")];
    schemes.into_iter().find_map(|(tls, plain)| url.strip_prefix(tls).map(|rest| format!("{plain}{rest}")))
}

/// The same keys for fred, in one buffer: it wants to own them, and so does who may have to repeat them.
fn shared(keys: &[String]) -> Vec<Key> {
    let mut all = BytesMut::with_capacity(keys.iter().map(String::len).sum());
    keys.iter().for_each(|key| all.extend_from_slice(key.as_bytes()));
    let mut all = all.freeze();
    keys.iter().map(|key| all.split_to(key.len()).into()).collect()
}

fn no_answer(timeout: Duration) -> Error {
    Error::Connect(format!("no answer within {timeout:?} (redis.timeout)"))
}

fn connect_error(error: &fred::error::Error, timeout: Duration) -> Error {
    let details = error.details();
    // fred shows the system's errors as `Os { code: 111, kind: ..., message: "Connection refused" }`.
    let plain = details.split_once("message: \"").and_then(|(_, rest)| rest.split_once('"')).map_or(details, |(words, _)| words);
    match error.kind() {
        fred::error::ErrorKind::Timeout => no_answer(timeout), // whichever clock was first
        fred::error::ErrorKind::Auth => Error::Refused(details.to_owned()),
        _ => Error::Connect(match tls::remedy(details) {
            Some(remedy) => format!("{remedy} ({details})"),
            None => format!("{plain}; is REDIS_URL right?"),
        }),
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
