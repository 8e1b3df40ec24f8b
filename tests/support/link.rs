//! A TCP proxy before a server, with faults on demand.
//!
//! Owns: one listening port and the connections through it. Must hold: a fault is in force when the
//! call that asks for it returns; what was held back arrives after `heal`, in order, as on a real
//! network. The proxy lives on a thread of its own, so that a test may block.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::wait;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(1)
        .thread_name("link")
        .enable_all()
        .build()
        .expect("a runtime needs one thread")
});

/// What is wrong with the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Refuses new connections.
    Cut,
    /// Takes everything, delivers nothing.
    BlackHole,
    /// Delivers what the client sends, and nothing of what the server answers.
    HoldReplies,
    /// Delivers each chunk late.
    Slow(Duration),
}

/// How the connections of an epoch end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    NotYet,
    Close,
    Reset,
}

#[derive(Clone, Copy)]
enum Direction {
    ToServer,
    ToClient,
}

/// The connections since the last time that all were ended.
struct Epoch {
    end: watch::Sender<End>,
    connections: TaskTracker,
}

impl Epoch {
    fn new() -> Self {
        Self { end: watch::Sender::new(End::NotYet), connections: TaskTracker::new() }
    }
}

/// What the acceptor and the test share.
struct Shared {
    own: SocketAddr,
    server: SocketAddr,
    fault: watch::Sender<Fault>,
    listening: watch::Sender<bool>,
    epoch: Mutex<Epoch>,
}

/// A link to a server; healthy at first, closed when dropped.
pub(crate) struct Link {
    shared: &'static Shared,
    _acceptor: AbortOnDropHandle<()>,
}

impl Link {
    /// Opens a link to `server`, which need not be there yet.
    pub(crate) async fn to(server: SocketAddr) -> Self {
        let port = unstale::scratch::free_port().expect("a free port");
        Self::between((Ipv4Addr::LOCALHOST, port).into(), server).await
    }

    /// The same, where clients connect to `own`.
    pub(crate) async fn between(own: SocketAddr, server: SocketAddr) -> Self {
        // A few hundred bytes a link, leaked, in a process that ends with the tests.
        let shared: &Shared = Box::leak(Box::new(Shared {
            own,
            server,
            fault: watch::Sender::new(Fault::None),
            listening: watch::Sender::new(false),
            epoch: Mutex::new(Epoch::new()),
        }));
        let link =
            Self { shared, _acceptor: AbortOnDropHandle::new(RUNTIME.spawn(accept(shared))) };
        link.heal().await;
        link
    }

    /// A link to a port of 127.0.0.1.
    pub(crate) async fn to_port(port: u16) -> Self {
        Self::to((Ipv4Addr::LOCALHOST, port).into()).await
    }

    /// Where clients connect.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.shared.own
    }

    /// The port where clients connect.
    pub(crate) fn port(&self) -> u16 {
        self.shared.own.port()
    }

    /// Connections through it now.
    pub(crate) fn connections(&self) -> usize {
        self.shared.epoch.lock().expect("nobody panics with it").connections.len()
    }

    /// Closes all connections and refuses new ones.
    pub(crate) async fn cut(&self) {
        self.shared.fault.send_replace(Fault::Cut);
        self.listens(false).await;
        // A process that another test is just starting holds the socket for a moment, until its
        // exec.
        wait::until("a cut link refuses", async || TcpStream::connect(self.addr()).await.is_err())
            .await;
        self.end_all(End::Close).await;
    }

    /// Resets all connections (RST, as from a rebooted host); new ones are welcome.
    pub(crate) async fn reset(&self) {
        self.end_all(End::Reset).await;
    }

    /// Keeps all connections, takes new ones, and delivers nothing, not even their end.
    pub(crate) fn black_hole(&self) {
        self.shared.fault.send_replace(Fault::BlackHole);
    }

    /// Delivers what clients send and holds what the server answers: the command ran, the reply
    /// never comes.
    pub(crate) fn hold_replies(&self) {
        self.shared.fault.send_replace(Fault::HoldReplies);
    }

    /// Delivers every chunk this much later.
    pub(crate) fn slow(&self, delay: Duration) {
        self.shared.fault.send_replace(Fault::Slow(delay));
    }

    /// Ends whatever fault there is and delivers what was held.
    pub(crate) async fn heal(&self) {
        self.shared.fault.send_replace(Fault::None);
        self.listens(true).await;
    }

    async fn listens(&self, wanted: bool) {
        let mut listening = self.shared.listening.subscribe();
        listening.wait_for(|&listens| listens == wanted).await.expect("the sender is static");
    }

    async fn end_all(&self, end: End) {
        let old = std::mem::replace(
            &mut *self.shared.epoch.lock().expect("nobody panics with it"),
            Epoch::new(),
        );
        old.end.send_replace(end);
        old.connections.close();
        old.connections.wait().await;
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.epoch.lock().expect("nobody panics with it").end.send_replace(End::Close);
    }
}

/// Listens while the link is not cut.
async fn accept(shared: &'static Shared) {
    let mut fault = shared.fault.subscribe();
    loop {
        fault.wait_for(|fault| *fault != Fault::Cut).await.expect("the sender is static");
        // As in `cut`, somebody may still hold the old socket.
        let listener = loop {
            match TcpListener::bind(shared.own).await {
                Ok(listener) => break listener,
                Err(_) => wait::delay(Duration::from_millis(1)).await,
            }
        };
        shared.listening.send_replace(true);
        loop {
            tokio::select! {
                accepted = listener.accept() => if let Ok((client, _)) = accepted {
                    let epoch = shared.epoch.lock().expect("nobody panics with it");
                    let connection = connect(shared, client, epoch.end.subscribe());
                    epoch.connections.spawn(connection);
                },
                _ = fault.wait_for(|fault| *fault == Fault::Cut) => break,
            }
        }
        drop(listener);
        shared.listening.send_replace(false);
    }
}

/// One connection, from accept to its end.
async fn connect(shared: &'static Shared, mut client: TcpStream, mut end: watch::Receiver<End>) {
    let fault = || shared.fault.subscribe();
    let through = async {
        passes(&mut fault(), Direction::ToServer).await;
        // A server that is away looks like one that closes at once.
        let Ok(mut server) = TcpStream::connect(shared.server).await else { return };
        // Small chunks, sent at once: what a test sees late must be late for a reason.
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) = (client.split(), server.split());
        tokio::join!(
            pump(fault(), Direction::ToServer, from_client, to_server),
            pump(fault(), Direction::ToClient, from_server, to_client),
        );
    };
    let how = tokio::select! {
        () = through => End::Close,
        how = end.wait_for(|end| *end != End::NotYet) => how.map_or(End::Close, |how| *how),
    };
    if how == End::Reset {
        client.set_zero_linger().expect("the socket is open");
    }
}

/// Carries chunks one way until their sender ends, and then its end.
async fn pump(
    mut fault: watch::Receiver<Fault>,
    direction: Direction,
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
) {
    let mut chunk = vec![0; 16 << 10];
    loop {
        let length = from.read(&mut chunk).await.unwrap_or(0);
        // Looked at after reading: a chunk, or an end, that arrives during a fault is the fault's.
        passes(&mut fault, direction).await;
        let written = to.write_all(&chunk[..length]).await;
        if length == 0 || written.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}

/// Returns when the link lets something through in this direction, after its delay.
async fn passes(fault: &mut watch::Receiver<Fault>, direction: Direction) {
    let open = |fault: &Fault| match fault {
        Fault::None | Fault::Slow(_) => true,
        Fault::HoldReplies => matches!(direction, Direction::ToServer),
        Fault::BlackHole | Fault::Cut => false,
    };
    let now = *fault.wait_for(open).await.expect("the sender is static");
    if let Fault::Slow(delay) = now {
        wait::delay(delay).await;
    }
}
