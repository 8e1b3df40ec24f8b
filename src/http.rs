//! `/live`, `/ready` and `/metrics`, for probes and for Prometheus; `/` and `/status.json`, for
//! people (pages.rs).
//!
//! Must never be in the listener's way: it reads a watch channel and renders what is counted
//! already. A client must not be able to exhaust anything, nor to keep others out: a connection is
//! good for one request and a few seconds, and their number is bounded. A new one always gets a
//! place, which is that of the oldest connection of whoever has the most of them: a probe needs its
//! own for a millisecond. It takes no input but the path, and refuses everything else with 404.

mod pages;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::messages::Readiness;
use crate::observe::{Observation, observe};
use crate::visible;

pub use pages::Shown;

/// A probe sends its request in one packet, or in a few over a bad link.
const REQUEST_PATIENCE: Duration = Duration::from_secs(2);
/// A probe and a scrape take milliseconds; whoever needs longer is stuck, or means harm.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(10);
/// At most so many connections at once, each with its lifetime: far more than probes and scrapers
/// need.
const CONNECTIONS: usize = 256;
/// How long open connections may hold up the shutdown.
const GRACE: Duration = Duration::from_secs(1);
/// After accept(2) failed for want of a resource (files, memory), which takes time to come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Histograms keep every sample until somebody folds them; without a scraper that is for us to do.
const UPKEEP: Duration = Duration::from_secs(5);

/// The port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("http.listen: cannot listen on {address}")]
pub struct BindError {
    /// What `http.listen` says.
    pub address: SocketAddr,
    /// What the operating system said.
    pub source: io::Error,
}

/// Opens the port of `http.listen`, so that a port in use fails the start and not a probe.
///
/// # Errors
///
/// If the address is not this host's, is in use, or needs a privilege.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).await.map_err(|source| BindError { address, source })
}

/// Answers on `listener` until `shutdown`, then lets open requests finish for up to a second.
///
/// # Errors
///
/// None today; the signature leaves room for a listener that cannot go on.
pub async fn serve(
    listener: TcpListener,
    readiness: watch::Receiver<Readiness>,
    metrics: PrometheusHandle,
    shown: Shown,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let upkeep = keep_up(metrics.clone());
    let router = router(readiness, metrics, shown);
    let connections = TaskTracker::new();
    tokio::select! {
        () = shutdown.cancelled() => {}
        never = accept(listener, router, &connections, &shutdown) => match never {},
        never = upkeep => match never {},
    }
    connections.close();
    // Whoever is not done in time is cut off by the end of the process.
    let _ = timeout(GRACE, connections.wait()).await;
    Ok(())
}

fn router(
    readiness: watch::Receiver<Readiness>,
    metrics: PrometheusHandle,
    shown: Shown,
) -> Router {
    Router::new()
        .route("/live", get(async || "live\n"))
        .route("/ready", get(ready).with_state(readiness))
        .route("/metrics", get(render).with_state(metrics))
        .merge(pages::router(shown))
}

async fn ready(State(readiness): State<watch::Receiver<Readiness>>) -> (StatusCode, String) {
    match said(&readiness) {
        Readiness::Ready => (StatusCode::OK, "ready\n".to_owned()),
        Readiness::NotReady(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", visible::line(&reason)))
        }
    }
}

/// Is it ready?
#[must_use]
pub fn said(readiness: &watch::Receiver<Readiness>) -> Readiness {
    // The sender is gone: whatever it said last, nobody stands for it now.
    match readiness.has_changed() {
        Ok(_) => readiness.borrow().clone(),
        Err(_) => Readiness::NotReady("the listener has ended".to_owned()),
    }
}

async fn render(State(metrics): State<PrometheusHandle>) -> impl IntoResponse {
    metrics_process::Collector::default().collect();
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, metrics.render())
}

async fn keep_up(metrics: PrometheusHandle) -> Infallible {
    let mut ticks = interval(UPKEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        metrics.run_upkeep();
    }
}

async fn accept(
    listener: TcpListener,
    router: Router,
    connections: &TaskTracker,
    shutdown: &CancellationToken,
) -> Infallible {
    let mut places = Places::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                observe(&Observation::Failed {
                    event: "a probe's connection was not accepted",
                    reason: error.to_string(),
                });
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let router = router.clone();
        let shutdown = shutdown.clone();
        places.make_room();
        let task = connections.spawn(answer(stream, router, shutdown));
        places.0.push((origin(peer.ip()), task.abort_handle()));
    }
}

/// The open connections, oldest first, each with where it came from.
#[derive(Default)]
struct Places(Vec<(IpAddr, AbortHandle)>);

impl Places {
    /// Makes sure that there is a place.
    fn make_room(&mut self) {
        self.0.retain(|(_, task)| !task.is_finished());
        if self.0.len() < CONNECTIONS {
            return;
        }
        let mut counts: HashMap<IpAddr, usize> = HashMap::new();
        for (origin, _) in &self.0 {
            *counts.entry(*origin).or_default() += 1;
        }
        let most = counts.values().max().copied();
        if let Some(at) = self.0.iter().position(|(origin, _)| counts.get(origin).copied() == most)
        {
            self.0.remove(at).1.abort();
        }
    }
}

/// Who has one address of IPv6 has a network of them.
fn origin(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into()
        }
        address => address,
    }
}

/// One request; broken ones are the client's business, so errors end here.
async fn answer(stream: TcpStream, router: Router, shutdown: CancellationToken) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let served = timeout(CONNECTION_LIFETIME, async {
        tokio::select! {
            served = connection.as_mut() => served,
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    });
    let _ = served.await;
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinHandle;

    use super::*;

    struct Server {
        address: SocketAddr,
        readiness: watch::Sender<Readiness>,
        shutdown: CancellationToken,
        served: JoinHandle<io::Result<()>>,
    }

    async fn server() -> Server {
        let listener = bind(([127, 0, 0, 1], 0).into()).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (readiness, receiver) = watch::channel(Readiness::NotReady("catching up".to_owned()));
        let recorder = PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("unstale_tests_total").increment(3)
        });
        let shutdown = CancellationToken::new();
        let shown: Shown = std::sync::Arc::new(|| panic!("nobody asks for it"));
        let served = serve(listener, receiver, recorder.handle(), shown, shutdown.clone());
        Server { address, readiness, shutdown, served: tokio::spawn(served) }
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        // Ends because the server closes after one request.
        stream.read_to_string(&mut answer).await.expect("an answer");
        answer
    }

    #[tokio::test]
    async fn ready_follows_the_listener_and_says_why_not() {
        let server = server().await;
        let answer = get(server.address, "/ready").await;
        assert!(
            answer.starts_with("HTTP/1.1 503 ") && answer.ends_with("\r\n\r\ncatching up\n"),
            "{answer}"
        );
        server.readiness.send_replace(Readiness::Ready);
        let answer = get(server.address, "/ready").await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nready\n"),
            "{answer}"
        );
        drop(server.readiness);
        let answer = get(server.address, "/ready").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }

    #[tokio::test]
    async fn metrics_are_prometheus_text() {
        let answer = get(server().await.address, "/metrics").await;
        assert!(answer.contains("content-type: text/plain; version=0.0.4\r\n"), "{answer}");
        assert!(answer.contains("\nunstale_tests_total 3\n"), "{answer}");
    }

    #[tokio::test]
    async fn live_is_live_and_anything_else_is_not_found() {
        let address = server().await.address;
        assert!(get(address, "/live").await.starts_with("HTTP/1.1 200 "));
        assert!(get(address, "/favicon.ico").await.starts_with("HTTP/1.1 404 "));
        assert!(get(address, "/metrics/x").await.starts_with("HTTP/1.1 404 "));
    }

    #[tokio::test]
    async fn a_silent_client_is_cut_off_and_a_shutdown_does_not_wait_for_it() {
        let server = server().await;
        let mut silent = TcpStream::connect(server.address).await.expect("a connection");
        silent.write_all(b"GET /live HT").await.expect("sent");
        assert!(get(server.address, "/live").await.starts_with("HTTP/1.1 200 "));

        tokio::time::pause(); // the clock jumps to the next timer
        assert_eq!(silent.read(&mut [0; 64]).await.expect("the end"), 0);

        let _silent = TcpStream::connect(server.address).await.expect("a connection");
        server.shutdown.cancel();
        server.served.await.expect("no panic").expect("served");
    }

    #[tokio::test]
    async fn more_idle_clients_than_places_shut_nobody_out() {
        let address = server().await.address;
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS + 50 {
            let mut stream = TcpStream::connect(address).await.expect("a connection");
            stream.write_all(b"GET /live HT").await.expect("sent");
            idle.push(stream);
        }
        // On the clock of before they would have held their places for ten seconds.
        for _ in 0..16 {
            let answer =
                timeout(REQUEST_PATIENCE / 4, get(address, "/live")).await.expect("at once");
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_place_is_taken_from_who_has_the_most_and_there_from_the_oldest() {
        let (mine, theirs) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let place = |origin| (origin, tokio::spawn(std::future::pending::<()>()).abort_handle());
        let mut places = Places(
            [mine, theirs]
                .into_iter()
                .chain(std::iter::repeat_n(theirs, CONNECTIONS - 2))
                .map(place)
                .collect(),
        );
        let (kept, evicted) = (places.0[0].1.clone(), places.0[1].1.clone());
        places.make_room();
        tokio::task::yield_now().await;
        assert_eq!(
            (places.0.len(), kept.is_finished(), evicted.is_finished()),
            (CONNECTIONS - 1, false, true)
        );
        let network = |text: &str| origin(text.parse().expect("an address"));
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff"));
        assert_ne!(network("2001:db8:0:1::1"), network("2001:db8::1"));
        assert_eq!(network("::ffff:10.0.0.1"), mine);
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_its_key() {
        let server = server().await;
        let error = bind(server.address).await.expect_err("in use");
        assert_eq!(error.to_string(), format!("http.listen: cannot listen on {}", server.address));
    }
}
