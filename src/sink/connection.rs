//! A connection to one server, by fred, behind the fence.
//!
//! A client that failed is replaced, not repaired. fred 10.1.0 may hang for ever on a connection
//! that it believes in (its unresponsiveness check is reset by every write; after its task has
//! ended later commands wait for nobody; a full command buffer never drains), so its own
//! reconnecting is off, every command has a timeout, and the end of its task ends the commands. It
//! reads only what the fence lets pass (fence.rs, wire.rs). The same for a server of a cluster, or
//! behind Sentinel: fred's own clients for these keep connecting to a server that hangs
//! (<https://github.com/aembke/fred.rs/issues/363>), and have no place for a fence.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex as SyncMutex};
use std::time::Duration;

use fred::clients::Client;
use fred::interfaces::ClientLike;
use fred::types::config::{Config, ConnectionConfig, PerformanceConfig, ServerConfig, TcpConfig};
use fred::types::{ClusterHash, CustomCommand, FromValue};
use secrecy::ExposeSecret;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::error::{self, Error};
use super::url::Url;
use super::wire::{self, Address, Verdict};
use crate::config::{Source, Tls};
use crate::mark::Found;

/// What every connection needs.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) secret: Source,
    pub(super) tls: Tls, // of a URL with TLS
    pub(super) timeout: Duration,
}

impl Settings {
    /// As it was when the configuration was read.
    pub(super) fn url(&self) -> Result<Url, Error> {
        Url::parse(self.secret.known().expose_secret()).map_err(Error::Url)
    }

    /// Read anew for each connection: a password that was rotated in its file needs no restart.
    async fn url_now(&self) -> Result<Url, Error> {
        Url::parse(self.secret.read().await.0.expose_secret()).map_err(Error::Url)
    }
}

#[derive(Clone)]
pub(super) struct Connection {
    pub(super) address: Address,
    pub(super) client: Client,
    pub(super) number: u64,
    pub(super) found: Found,
    pub(super) state: Arc<State>,
    pub(super) verdict: Verdict,
    pub(super) ended: CancellationToken,
    pub(super) timeout: Duration,
}

/// What a connection has learned.
pub(super) struct State {
    pub(super) order: Mutex<()>, // held while a deletion is handed over, so that marks are sent in the order of their numbers
    pub(super) acknowledged: SyncMutex<Found>, // the last mark
    pub(super) may_mark: AtomicBool,
    pub(super) unlinks: AtomicBool, // else DEL
}

impl Connection {
    /// Connects. With `presents` it says user and password, and chooses the database.
    pub(super) async fn open(
        settings: &Settings,
        server: &Address,
        presents: bool,
    ) -> Result<Self, Error> {
        let timeout = settings.timeout;
        let performance =
            PerformanceConfig { default_command_timeout: timeout, ..PerformanceConfig::default() };
        let connection = ConnectionConfig {
            connection_timeout: timeout,
            internal_command_timeout: timeout,
            max_command_attempts: 1,
            reconnect_errors: Vec::new(),
            tcp: TcpConfig { nodelay: Some(true), ..Default::default() },
            ..ConnectionConfig::default()
        };
        let ended = CancellationToken::new();
        let end = ended.clone().drop_guard();
        let url = settings.url_now().await?;
        let (path, verdict) =
            wire::open(server, url.tls.then_some(&settings.tls), timeout, ended.clone()).await?;
        let mut config = Config { server: ServerConfig::Unix { path }, ..Config::default() };
        if presents {
            // SELECT 0 changes nothing, and may be forbidden.
            (config.username, config.password, config.database) =
                (url.user, url.password, url.database.filter(|&database| database > 0));
        }
        let client = Client::new(config, Some(performance), Some(connection), None);
        let task = client.connect();
        let connected = tokio::time::timeout(timeout, client.wait_for_connect()).await;
        let failed = |error| verdict.get().map_or(error, |end| end.clone().into_error());
        match connected {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(connect_error(&error, timeout))),
            Err(_) => {
                task.abort();
                return Err(failed(no_answer(timeout)));
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
        Ok(Self {
            address: server.clone(),
            client,
            number: 0,
            found: Found::Nothing,
            state: Arc::new(state),
            verdict,
            ended,
            timeout,
        })
    }

    /// Does the server not know UNLINK, or not let this user run it? It may know DEL, which is
    /// tried from here on.
    pub(super) fn needs_del(&self, words: &str) -> bool {
        let lowered = words.to_ascii_lowercase();
        let lacks = lowered.contains("unlink")
            && (lowered.starts_with("noperm") || lowered.contains("unknown command"));
        lacks && self.state.unlinks.swap(false, Relaxed)
    }

    /// Waits for the answer, no longer than the timeout and the connection last.
    pub(super) async fn ask<T>(
        &self,
        command: impl Future<Output = Result<T, fred::error::Error>>,
    ) -> Result<T, Error> {
        tokio::select! {
            answer = tokio::time::timeout(self.timeout, command) => match answer {
                Ok(answer) => answer.map_err(|error| command_error(&error, self.timeout)),
                Err(_) => Err(Error::Timeout(self.timeout)),
            },
            () = self.ended.cancelled() => Err(Error::Ended),
        }
    }

    /// A command that fred has no name for.
    pub(super) async fn say<T: FromValue>(
        &self,
        command: &'static str,
        arguments: Vec<String>,
    ) -> Result<T, Error> {
        self.ask(self.client.custom(custom(command), arguments)).await
    }

    /// Nobody waits for a farewell over a connection that does not answer.
    pub(super) fn close(&self) {
        self.ended.cancel();
        let (client, timeout) = (self.client.clone(), self.timeout);
        tokio::spawn(async move {
            let _ = tokio::time::timeout(timeout, client.quit()).await;
        });
    }
}

pub(super) fn custom(command: &'static str) -> CustomCommand {
    CustomCommand::new_static(command, ClusterHash::FirstKey, false)
}

pub(super) fn no_answer(timeout: Duration) -> Error {
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

pub(super) fn command_error(error: &fred::error::Error, timeout: Duration) -> Error {
    use fred::error::ErrorKind;
    match error.kind() {
        ErrorKind::Timeout => Error::Timeout(timeout),
        ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Routing => Error::Ended,
        // READONLY, LOADING, OOM, NOPERM and the like come as Unknown; their first word tells them
        // apart.
        _ => Error::Refused(error.details().to_owned()),
    }
}
