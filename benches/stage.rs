//! What the benches share: private servers with the schema in them, and the listener.

pub(crate) mod peers;
pub(crate) mod report;

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
    /// Starts the servers, PostgreSQL on a disk as in production, and migrates.
    pub(crate) fn build() -> anyhow::Result<Self> {
        let settings = [
            ("shared_buffers", "512MB"),
            ("max_wal_size", "4GB"),
            ("full_page_writes", "on"),
            ("max_connections", "200"),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let postgres = Postgres::start(&postgres::Options {
            tcp: true,
            fsync: true,
            on_disk: true,
            settings,
            ..Default::default()
        })?;
        let redis = Redis::start(&redis::Options { tcp: true, ..Default::default() })?;
        let stage = Self { postgres, redis, guard: Guard::new()? };
        ensure!(
            stage.command("migrate").stdout(Stdio::null()).status()?.success(),
            "unstale migrate failed"
        );
        Ok(stage)
    }

    /// A command of the program.
    pub(crate) fn command(&self, name: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unstale"));
        command.arg(name).env_clear().envs(self.environment());
        command
    }

    fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("DATABASE_URL", self.postgres.url("postgres")),
            ("REDIS_URL", self.redis.url()),
            ("UNSTALE_LOG__FILTER", "warn".to_owned()),
        ]
    }

    /// Starts the listener.
    pub(crate) fn start(&self) -> anyhow::Result<Listener> {
        self.start_for(&self.redis.url())
    }

    fn start_for(&self, redis_url: &str) -> anyhow::Result<Listener> {
        let port = free_port()?;
        let mut command = self.guard.command("TERM", env!("CARGO_BIN_EXE_unstale"))?;
        command
            .arg("run")
            .env_clear()
            .envs(self.environment())
            .env("REDIS_URL", redis_url)
            .env("UNSTALE_HTTP__LISTEN", format!("127.0.0.1:{port}"));
        Ok(Listener { process: Process::start(command)?, port })
    }

    /// Starts the listener, and waits until it is ready and has stored where it is.
    pub(crate) fn listen(&self) -> anyhow::Result<Listener> {
        self.listen_to(&self.redis.url())
    }

    /// The same with another Redis.
    pub(crate) fn listen_to(&self, redis_url: &str) -> anyhow::Result<Listener> {
        let listener = self.start_for(redis_url)?;
        let deadline = Instant::now() + PATIENCE;
        while listener.readiness().is_err() || listener.repeats()? > 0 {
            ensure!(Instant::now() < deadline, "the listener was not ready within {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
        std::thread::sleep(Duration::from_millis(2_500)); // two heartbeats
        Ok(listener)
    }
}

impl Listener {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Is it ready, or else why not?
    pub(crate) fn readiness(&self) -> Result<(), String> {
        match http::get(self.port, "/ready") {
            Ok((200, _)) => Ok(()),
            Ok((_, reason)) => Err(reason),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Keys that it will delete once more: not before that may others be put into the cache.
    fn repeats(&self) -> anyhow::Result<u64> {
        let (_, document) = http::get(self.port, "/status.json")?;
        let document: serde_json::Value = serde_json::from_str(&document)?;
        document["waiting"]["repeats"]
            .as_u64()
            .context("the document says how many keys wait to be repeated")
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = self.process.kill();
    }
}

/// How often each thing is measured: 5 times, or as `UNSTALE_ROUNDS` says.
pub(crate) fn rounds() -> anyhow::Result<usize> {
    std::env::var("UNSTALE_ROUNDS")
        .map_or(Ok(5), |rounds| rounds.parse().context("UNSTALE_ROUNDS is not a number"))
}

/// The most memory that a process ever used, in MB.
pub(crate) fn peak_megabytes(pid: u32) -> anyhow::Result<f64> {
    megabytes(pid, "VmHWM:")
}

/// A line of what the kernel reports of a process, in MB.
pub(crate) fn megabytes(pid: u32, name: &str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line =
        status.lines().find_map(|line| line.strip_prefix(name)).context("the kernel reports it")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
