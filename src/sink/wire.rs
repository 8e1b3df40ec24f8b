//! The way to Redis: TCP, TLS or a Unix socket, with a fence before fred.
//!
//! fred has no place where its bytes could be looked at. So it is given a socket of this process,
//! behind which a task carries what it says to Redis, and what Redis says, once it has passed the
//! fence, to it. That is two copies in memory. Must hold: only this process can connect to that
//! socket, and it takes one connection.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf,
};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::error::{Error, shown};
use super::fence::{Breach, Fence};
use super::tls;
use super::url::Node;
use crate::config::Tls;

/// Bytes carried at once.
const CHUNK: usize = 32 << 10;

/// Why the way ended, if Redis or TLS had a reason.
pub(super) type Verdict = Arc<OnceLock<End>>;

/// See [`Verdict`].
#[derive(Debug, Clone)]
pub(super) enum End {
    /// The fence did not let it pass.
    Breach(Breach),
    /// Reading failed.
    Failed(String),
}

impl End {
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Breach(breach) => Error::Broken(breach.to_string()),
            Self::Failed(reason) => Error::Connect(reason),
        }
    }
}

/// Where a server is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    Host(Node),
    Socket(PathBuf),
}

/// For people.
impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host((host, port)) => write!(formatter, "{host}:{port}"),
            Self::Socket(path) => write!(formatter, "{}", path.display()),
        }
    }
}

/// A socket towards the server.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Connects to the server. Returns where fred finds it, and what will be said of the end.
/// `ended` ends it, whatever it waits for.
pub(super) async fn open(
    server: &Address,
    tls: Option<&Tls>,
    timeout: Duration,
    ended: CancellationToken,
) -> Result<(PathBuf, Verdict), Error> {
    let stream = match tokio::time::timeout(timeout, dial(server, tls)).await {
        Ok(stream) => stream?,
        Err(_) => {
            return Err(Error::Connect(format!("no answer within {timeout:?} (redis.timeout)")));
        }
    };
    let verdict = Verdict::default();
    let (path, guard) = private_path()?;
    let listener = UnixListener::bind(&path).map_err(|error| Error::Connect(in_words(&error)))?;
    let end = verdict.clone();
    tokio::spawn(async move {
        let ours = tokio::time::timeout(timeout, accept(&listener)).await;
        drop((listener, guard));
        if let Ok(Some(ours)) = ours {
            ended.run_until_cancelled(carry(ours, stream, end)).await;
        }
    });
    Ok((path, verdict))
}

async fn dial(server: &Address, tls: Option<&Tls>) -> Result<Box<dyn Stream>, Error> {
    let failed = |error: std::io::Error| Error::Connect(in_words(&error));
    let server = match server {
        Address::Socket(path) => {
            return Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?));
        }
        Address::Host(server) => server,
    };
    let host = server.0.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((host, server.1)).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| Error::Url(format!("{host} is no name that a certificate could be for")))?;
    let connector = TlsConnector::from(Arc::new(tls::client_config(tls)?));
    Ok(Box::new(connector.connect(name, stream).await.map_err(failed)?))
}

/// Where only this process connects: a name without a file where there are such, else a file in a
/// directory of our own.
#[cfg(target_os = "linux")]
fn private_path() -> Result<(PathBuf, ()), Error> {
    use std::hash::{BuildHasher as _, RandomState};
    let random = || RandomState::new().hash_one(());
    Ok((
        PathBuf::from(format!(
            "\0unstale-{}-{:016x}{:016x}",
            std::process::id(),
            random(),
            random()
        )),
        (),
    ))
}

#[cfg(not(target_os = "linux"))]
fn private_path() -> Result<(PathBuf, tempfile::TempDir), Error> {
    let directory = tempfile::tempdir().map_err(|error| Error::Connect(in_words(&error)))?;
    Ok((directory.path().join("redis.sock"), directory))
}

/// The connection of this process, which is not said of others.
async fn accept(listener: &UnixListener) -> Option<UnixStream> {
    loop {
        let (stream, _) = listener.accept().await.ok()?;
        let peer = stream.peer_cred().ok()?;
        if peer.pid().is_none_or(|pid| u32::try_from(pid) == Ok(std::process::id())) {
            return Some(stream);
        }
    }
}

/// Until either side ends.
async fn carry(ours: UnixStream, theirs: Box<dyn Stream>, verdict: Verdict) {
    let (from_us, to_us) = tokio::io::split(ours);
    let (from_them, to_them) = tokio::io::split(theirs);
    let end = tokio::select! {
        () = ask(from_us, to_them) => None,
        end = answer(from_them, to_us) => end,
    };
    if let Some(end) = end {
        let _ = verdict.set(end);
    }
}

async fn ask(mut from: ReadHalf<UnixStream>, mut to: WriteHalf<Box<dyn Stream>>) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut chunk).await {
        if to.write_all(&chunk[..length]).await.is_err() || to.flush().await.is_err() {
            // What it still has to say tells why.
            std::future::pending::<()>().await;
        }
    }
}

async fn answer(mut from: ReadHalf<Box<dyn Stream>>, mut to: WriteHalf<UnixStream>) -> Option<End> {
    let mut fence = Fence::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = match from.read(&mut chunk).await {
            Ok(0) => return None,
            Ok(length) => length,
            Err(error) => {
                return tls::remedy(&details(&error)).map(|_| End::Failed(in_words(&error)));
            }
        };
        if let Err(breach) = fence.pass(&chunk[..length]) {
            return Some(End::Breach(breach));
        }
        to.write_all(&chunk[..length]).await.ok()?;
    }
}

/// Of what rustls says, the names of its errors.
fn details(error: &std::io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(inner) => format!("{inner:?}"),
        None => error.to_string(),
    }
}

fn in_words(error: &std::io::Error) -> String {
    let details = details(error);
    match tls::remedy(&details) {
        Some(remedy) => format!("{remedy} ({})", shown(&details)),
        None => format!(
            "{}; is REDIS_URL right?",
            details.split(" (os error").next().unwrap_or_default()
        ),
    }
}
