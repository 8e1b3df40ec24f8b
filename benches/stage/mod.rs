//! What the benches share: private servers with the schema in them, and the listener.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use unstale::scratch::guard::{Guard, Process};
use unstale::scratch::{Postgres, Redis, free_port, http, postgres, redis};

const PATIENCE: Duration = Duration::from_secs(120);

/// Servers, and the program that is measured.
pub(crate) struct Stage {
    pub(crate) postgres: Postgres,
    pub(crate) redis: Redis,
    guard: Guard,
}

/// A running `unstale run`; killed when dropped.
pub(crate) struct Listener {
    process: Process,
    port: u16,
}

impl Stage {
    /// Starts the servers and migrates.
    pub(crate) fn build() -> anyhow::Result<Self> {
        let postgres = Postgres::start(&postgres::Options { tcp: true, ..Default::default() })?;
        let redis = Redis::start(&redis::Options { tcp: true, ..Default::default() })?;
        let stage = Self { postgres, redis, guard: Guard::new()? };
        let mut migrate = Command::new(env!("CARGO_BIN_EXE_unstale"));
        migrate.arg("migrate").env_clear().envs(stage.environment()).stdout(Stdio::null());
        ensure!(migrate.status()?.success(), "unstale migrate failed");
        Ok(stage)
    }

    fn environment(&self) -> [(&'static str, String); 3] {
        [("DATABASE_URL", self.postgres.url("postgres")), ("REDIS_URL", self.redis.url()), ("UNSTALE_LOG__FILTER", "warn".to_owned())]
    }

    /// Starts the listener.
    pub(crate) fn start(&self) -> anyhow::Result<Listener> {
        let port = free_port()?;
        let mut command = self.guard.command("TERM", env!("CARGO_BIN_EXE_unstale"))?;
        command.arg("run").env_clear().envs(self.environment()).env("UNSTALE_HTTP__LISTEN", format!("127.0.0.1:{port}"));
        Ok(Listener { process: Process::start(command)?, port })
    }

    /// Starts the listener, and waits until it is ready and has stored where it is.
    pub(crate) fn listen(&self) -> anyhow::Result<Listener> {
        let listener = self.start()?;
        let deadline = Instant::now() + PATIENCE;
        while listener.readiness().is_err() {
            ensure!(Instant::now() < deadline, "the listener was not ready within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(2_500)); // two heartbeats
        Ok(listener)
    }
}

impl Listener {
    /// Is it ready, or else why not?
    pub(crate) fn readiness(&self) -> Result<(), String> {
        match http::get(self.port, "/ready") {
            Ok((200, _)) => Ok(()),
            Ok((_, reason)) => Err(reason),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The most memory that was ever in use, as the kernel words it.
    pub(crate) fn peak_memory(&self) -> anyhow::Result<String> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("the kernel reports it")?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.process.kill();
    }
}

/// The sample that `share` of all are not above.
pub(crate) fn percentile(samples: &mut [Duration], share: f64) -> Duration {
    samples.sort();
    samples.get(((samples.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or_default()
}
