//! `unstale run`: the listener. The only place that wires everything.

mod findings;
mod reload;
mod sample;

use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::Config;
use crate::exposure::{self, Exposure};
use crate::listener::board::Board;
use crate::listener::driver::{self, Dependencies};
use crate::listener::machine::Settings;
use crate::listener::sampler::Sampling;
use crate::logs::Filter;
use crate::messages::Readiness;
use crate::observe::{Observation, metrics, observe};
use crate::pg::checkpoint::Instance;
use crate::pg::{self, Postgres};
use crate::sink::{Marks, Sink};
use crate::{http, shutdown};

/// Listens until SIGTERM or SIGINT. SIGHUP reads the configuration again, from `file` if it was
/// named.
///
/// # Errors
/// At the start: a URL is missing or unreadable, the port is taken, or the schema is missing or
/// newer than this program. After that every failure is waited out.
pub async fn run(config: Config, file: Option<PathBuf>, filter: Filter) -> anyhow::Result<()> {
    let (parts, parts_now) =
        watch::channel(parts(&config, Arc::new(Marks::new(&config.instance)))?);
    let hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
    let shutdown = shutdown::on_signals()?;
    let metrics = metrics::install()?;
    let (readiness, readiness_seen) = watch::channel(Readiness::NotReady("starting".into()));
    exposures(&config, &parts_now.borrow())
        .for_each(|exposure| observe(&Observation::Exposed(exposure)));
    let board = Arc::new(Board::new(config.instance.clone(), Instant::now()));
    let probes = match config.http.listen {
        Some(address) => {
            let listener = http::bind(address).await?;
            let shown = shown(board.clone(), parts_now.clone(), readiness_seen.clone());
            Some(tokio::spawn(http::serve(
                listener,
                readiness_seen.clone(),
                metrics,
                shown,
                shutdown.clone(),
            )))
        }
        None => None,
    };
    // A server that does not even refuse must hold up neither the listener nor a SIGTERM.
    let postgres = parts_now.borrow().postgres.clone();
    let checked = tokio::time::timeout(config.heartbeat.timeout, refuse_wrong_schema(&postgres));
    if let Some(Ok(result)) = shutdown.run_until_cancelled(checked).await {
        result?;
    }

    let sampler = sample::begin(parts_now.clone(), board.clone(), shutdown.clone());
    let reloading = tokio::spawn(reload::on_hangup(hangup, file, config, filter, parts));
    let counting = tokio::spawn(findings::look_after(
        parts_now.clone(),
        readiness_seen,
        board.clone(),
        shutdown.clone(),
    ));
    driver::run(parts_now, readiness, (board, sampler), shutdown).await;
    reloading.abort();
    counting.abort();
    if let Some(probes) = probes {
        probes.await??;
    }
    Ok(())
}

/// The document of the status page, whenever somebody asks for it.
fn shown(
    board: Arc<Board>,
    parts: watch::Receiver<Dependencies>,
    readiness: watch::Receiver<Readiness>,
) -> http::Shown {
    Arc::new(move || {
        let (postgres, redis) = {
            let parts = parts.borrow();
            (parts.postgres.place(), parts.sink.standing())
        };
        let readiness = http::said(&readiness);
        board.status(Instant::now(), SystemTime::now(), &readiness, postgres, redis)
    })
}

/// What the listener is made of, by this configuration.
fn parts(config: &Config, marks: Arc<Marks>) -> anyhow::Result<Dependencies> {
    let sink =
        Sink::marking(config.redis_source()?, &config.redis.tls, config.redis.timeout, marks)?;
    Ok(Dependencies {
        postgres: Postgres::new(config.database_source()?)?,
        replicas: replicas(config)?,
        audited: Sink::new(config.redis_source()?, &config.redis.tls, config.redis.timeout)?,
        instance: Instance {
            name: config.instance.clone(),
            forget_after: config.checkpoint.forget_after,
        },
        page_rows: config.sweep.page_rows,
        settings: settings(config, &sink),
        sampling: Sampling { share: config.audit.sample, after: config.audit.after.clone() },
        sink,
    })
}

fn replicas(config: &Config) -> anyhow::Result<Vec<Postgres>> {
    let opened = config.replica_sources().into_iter().enumerate().map(|(number, source)| {
        match Postgres::new(source) {
            Ok(replica) if replica.is_one_server() => Ok(replica.replica()),
            Ok(_) => bail!(
                "replicas.urls, number {}: it names several hosts; write one URL for each replica",
                number + 1
            ),
            Err(pg::Error::Url(fault)) => bail!("replicas.urls, number {}: {fault}", number + 1),
            Err(error) => Err(error.into()),
        }
    });
    opened.collect()
}

/// What is open to the network.
fn exposures(config: &Config, parts: &Dependencies) -> impl Iterator<Item = Exposure> {
    let port = config.http.listen.and_then(exposure::of_port);
    let replicas = parts.replicas.iter().filter_map(Postgres::exposure);
    [parts.postgres.exposure(), parts.sink.exposure(), port].into_iter().flatten().chain(replicas)
}

/// A schema that is missing or newer needs a person, now. A server that is not there yet, or is
/// silent, is waited for later.
async fn refuse_wrong_schema(postgres: &Postgres) -> Result<(), pg::Error> {
    let Ok(mut connection) = postgres.connect().await else { return Ok(()) };
    match pg::migrate::check(&mut connection).await {
        Err(error @ (pg::Error::NotMigrated | pg::Error::SchemaNewer { .. })) => Err(error),
        _ => Ok(()),
    }
}

fn settings(config: &Config, sink: &Sink) -> Settings {
    Settings {
        canary: config.canary(),
        interval: config.heartbeat.interval,
        timeout: config.heartbeat.timeout,
        backoff_min: config.backoff.min,
        backoff_max: config.backoff.max,
        seed: RandomState::new().hash_one(()), // another one in each process
        limits: super::limits(config, sink),
        stall: config.batch.stall,
        window: config.replay.window,
        repeat: config.repeat.after.clone(),
        replicas: config.replicas.urls.len(),
        max_wait: config.replicas.max_wait,
        shutdown: config.shutdown.timeout,
    }
}
