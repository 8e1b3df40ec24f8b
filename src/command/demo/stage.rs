//! The demo's servers and its listener, all private and throw-away.
//!
//! Owns: a PostgreSQL, a Redis, and `unstale run` as a process of its own, which is what runs in
//! production, too. Must hold: all of it is gone when this is dropped, and when the demo is killed.
//! Everything is reached through sockets in private directories, except for the listener's /ready,
//! which gives nothing away. Refuses: any server, URL or setting of the person who runs the demo.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;
use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};

use crate::scratch::{Guard, Postgres, Process, Redis, free_port, http, postgres, redis};

/// The application's database.
pub(super) const DATABASE: &str = "app";

/// How long anything may take before the demo calls it a failure.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(2);

/// Everything that runs.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) postgres: Postgres,
    pub(super) redis: Redis,
    /// `None` while it is dead.
    listener: Option<Process>,
    port: u16,
    program: PathBuf,
    guard: Guard,
}

impl Stage {
    /// Starts the servers; no listener yet.
    pub(super) fn build() -> anyhow::Result<Self> {
        Ok(Self {
            postgres: Postgres::start(&postgres::Options::default())?,
            redis: Redis::start(&redis::Options::default())?,
            listener: None,
            port: free_port().context("no free port for the listener's /ready")?,
            program: std::env::current_exe().context("this program cannot find itself")?,
            guard: Guard::new()?,
        })
    }

    /// A connection of the application.
    pub(super) async fn connect(&self, database: &str) -> anyhow::Result<PgConnection> {
        let options = PgConnectOptions::new_without_pgpass()
            .socket(self.postgres.directory())
            .port(self.postgres.port())
            .username("postgres")
            .database(database)
            .ssl_mode(PgSslMode::Disable);
        PgConnection::connect_with(&options)
            .await
            .context("the demo's own PostgreSQL takes no connection")
    }

    /// `unstale migrate`, as a deployment runs it.
    pub(super) fn migrate(&self) -> anyhow::Result<()> {
        let mut process = Process::start(self.command("migrate", "migrate.log")?)?;
        match process.wait(PATIENCE) {
            Some(status) if status.success() => Ok(()),
            Some(status) => {
                bail!("`unstale migrate` ended with {status}:\n{}", self.log_tail("migrate.log"))
            }
            None => bail!("`unstale migrate` took more than {} s", PATIENCE.as_secs()),
        }
    }

    /// `unstale run`, as a service manager runs it. Not ready yet when this returns.
    pub(super) fn start_listener(&mut self) -> anyhow::Result<()> {
        self.listener = Some(Process::start(self.command("run", "listener.log")?)?);
        Ok(())
    }

    /// Waits until the listener's /ready says yes.
    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut reason = String::from("it does not answer");
        loop {
            match http::get(self.port, "/ready") {
                Ok((200, _)) => return Ok(()),
                Ok((_, body)) => body.trim().clone_into(&mut reason),
                Err(_) => {}
            }
            let ended = self.listener.as_mut().is_none_or(|listener| listener.ended().is_some());
            ensure!(!ended, "the listener ended:\n{}", self.log_tail("listener.log"));
            let late = Instant::now() >= deadline;
            ensure!(!late, "the listener is not ready after {} s: {reason}", PATIENCE.as_secs());
            tokio::time::sleep(POLL).await;
        }
    }

    /// SIGKILL, as the out-of-memory killer does it: no goodbye, nothing flushed.
    pub(super) fn kill_listener(&mut self) -> anyhow::Result<()> {
        let mut listener = self.listener.take().context("the listener is not running")?;
        listener.kill().context("the listener could not be killed")?;
        Ok(())
    }

    /// How to look around, in commands to paste.
    pub(super) fn addresses(&self) -> Vec<String> {
        let psql = self.postgres.programs().join("psql");
        let (directory, port) = (self.postgres.directory().display(), self.postgres.port());
        vec![
            format!("{} -h {directory} -p {port} -U postgres {DATABASE}", psql.display()),
            format!("redis-cli -s {}", self.redis.socket().display()),
            format!("curl http://127.0.0.1:{}/metrics", self.port),
            format!("tail -f {}", self.guard.directory().join("listener.log").display()),
        ]
    }

    /// This program, with nothing in its environment but what it needs.
    fn command(&self, subcommand: &str, log: &str) -> anyhow::Result<Command> {
        let log =
            File::options().create(true).append(true).open(self.guard.directory().join(log))?;
        let mut command = self.guard.command("TERM", &self.program)?;
        command
            .arg(subcommand)
            .env("DATABASE_URL", self.postgres.socket_url(DATABASE))
            .env("REDIS_URL", self.redis.socket_url())
            .env("UNSTALE_HTTP__LISTEN", format!("127.0.0.1:{}", self.port))
            .env("UNSTALE_LOG__FORMAT", "text")
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(command)
    }

    fn log_tail(&self, log: &str) -> String {
        let text = fs::read_to_string(self.guard.directory().join(log)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(mut listener) = self.listener.take() {
            // Best effort: its guard does the same once more.
            let _ = listener.stop(Signal::TERM, Duration::from_secs(5));
        }
    }
}
