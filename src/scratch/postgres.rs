//! A private PostgreSQL cluster.
//!
//! Owns: one postmaster, its data directory, its Unix socket and, if asked, a port of 127.0.0.1.
//! Must hold: it comes back at the same address after `kill9`, with everything that it had
//! committed. Refuses: passwords. Whoever reaches it is superuser, so it listens on TCP only for
//! those who ask, which is for tests that put a proxy before it.
//!
//! PostgreSQL will not run as root: then it runs as `postgres`, else as `nobody`.

mod programs;
mod template;

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use super::guard::{Guard, Process};
use super::{Error, PATIENCE, POLL, doing, free_port, log_tail};
use programs::{Programs, User};

/// In the socket's name, for a cluster without TCP. Its directory is private, so it can clash with
/// nobody.
const SOCKET_PORT: u16 = 5432;

/// What every throw-away cluster runs with.
const SETTINGS: [(&str, &str); 7] = [
    ("max_connections", "200"),
    // A page torn by a power failure matters only where fsync is on.
    ("full_page_writes", "off"),
    // In the data directory, and gone with it. The default, POSIX shared memory, outlives a
    // SIGKILL.
    ("dynamic_shared_memory_type", "mmap"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("log_checkpoints", "off"),
    ("log_line_prefix", "%m [%p] "),
];

/// What may differ from a plain cluster on a Unix socket.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Listen on a free port of 127.0.0.1 as well.
    pub tcp: bool,
    /// Sync to disk as in production. On tmpfs, and over `kill9`, it makes no difference.
    pub fsync: bool,
    /// Keep the cluster on a disk, not in memory: for benchmarks.
    pub on_disk: bool,
    /// Where to keep a prepared data directory for the next start (saves half a second); `None`
    /// leaves nothing behind.
    pub template_cache: Option<PathBuf>,
    /// More settings, which win over ours: `("wal_level", "logical")`.
    pub settings: Vec<(String, String)>,
}

/// A running cluster; gone with its directory when dropped.
#[derive(Debug)]
pub struct Postgres {
    programs: Programs,
    user: User,
    options: Options,
    port: u16,
    /// `None` while it is stopped.
    process: Option<Process>,
    // Last: it removes the directory after the process has gone.
    guard: Guard,
}

impl Postgres {
    /// Starts a cluster that takes connections once this returns.
    ///
    /// # Errors
    /// When no server programs are found, or initdb or the server fails.
    pub fn start(options: &Options) -> Result<Self, Error> {
        let guard = if options.on_disk { Guard::on_disk()? } else { Guard::new()? };
        let mut postgres = Self {
            programs: Programs::find()?,
            user: User::for_servers()?,
            options: options.clone(),
            port: SOCKET_PORT,
            process: None,
            guard,
        };
        postgres.user.give(postgres.directory())?;
        template::install(
            &postgres.programs,
            postgres.user,
            &postgres.guard,
            options.template_cache.as_deref(),
        )?;
        let mut tries = 5;
        loop {
            if options.tcp {
                postgres.port = free_port().map_err(doing("find a free port"))?;
            }
            tries -= 1;
            match postgres.start_again() {
                // Somebody took the port between our look and the server's.
                Err(Error::Start { log, .. }) if tries > 0 && log.contains("in use") => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(postgres),
            }
        }
    }

    /// `postgres://postgres@127.0.0.1:PORT/DATABASE`; the socket's URL for a cluster without TCP.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        if self.options.tcp {
            format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
        } else {
            self.socket_url(database)
        }
    }

    /// `postgres://postgres@localhost/DATABASE?host=DIRECTORY&port=PORT`, which psql understands,
    /// too.
    #[must_use]
    pub fn socket_url(&self, database: &str) -> String {
        let (directory, port) = (self.directory().display(), self.port);
        format!("postgres://postgres@localhost/{database}?host={directory}&port={port}")
    }

    /// Its port: of 127.0.0.1 if it was asked for TCP, and in any case the one in its socket's
    /// name.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its directory: socket, log, and the cluster under `data`.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.guard.directory()
    }

    /// The postmaster's process number, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// The directory of the server's programs (psql, pg_dump, pgbench), where they are.
    #[must_use]
    pub fn programs(&self) -> &Path {
        &self.programs.directory
    }

    /// Ends it at once, without a checkpoint (SIGQUIT): clients are told, and the next start
    /// recovers.
    pub fn stop_immediately(&mut self) {
        self.stop(Signal::QUIT);
    }

    /// Ends it as a service manager does (SIGINT, "fast") and starts it again.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.stop(Signal::INT);
        self.start_again()
    }

    /// Kills it as a power failure would: postmaster and backends, in one blow, with nobody told.
    pub fn kill9(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        // Stopped, the postmaster starts no new backend, and reaps none whose number could then be
        // somebody else's.
        process.signal(Signal::STOP);
        let backends = programs::children(process.pid());
        for &backend in &backends {
            let _ = kill_process(backend, Signal::KILL);
        }
        let _ = process.kill();
        // Until the last is gone, the shared memory is in use and a new postmaster refuses to
        // start.
        let deadline = Instant::now() + PATIENCE;
        while backends.iter().any(|&backend| programs::runs(backend)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Starts it again after `kill9` or `stop_immediately`, with the same directory and port.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<(), Error> {
        self.stop_immediately();
        let mut process = Process::start(self.command()?)?;
        let deadline = Instant::now() + PATIENCE;
        let how = loop {
            if self.says_ready(process.pid()) {
                self.process = Some(process);
                return Ok(());
            }
            if let Some(status) = process.ended() {
                break format!("ended with {status} instead of starting");
            }
            if Instant::now() >= deadline {
                let _ = process.stop(Signal::QUIT, PATIENCE);
                break format!("was not ready within {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(POLL);
        };
        Err(Error::Start { what: "postgres", how, log: log_tail(&self.log()) })
    }

    fn stop(&mut self, signal: Signal) {
        if let Some(mut process) = self.process.take() {
            // Cannot fail for a child that has not been waited for.
            let _ = process.stop(signal, PATIENCE);
        }
    }

    fn log(&self) -> PathBuf {
        self.directory().join("postgres.log")
    }

    fn command(&self) -> Result<Command, Error> {
        let log = File::options().create(true).append(true).open(self.log());
        let mut command = self.guard.command("QUIT", self.programs.directory.join("postgres"))?;
        command
            .args(["-D", "data", "-p", &self.port.to_string()])
            .arg("-k")
            .arg(self.directory())
            .args(["-h", if self.options.tcp { "127.0.0.1" } else { "" }])
            .args(["-c", if self.options.fsync { "fsync=on" } else { "fsync=off" }]);
        let more =
            self.options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in SETTINGS.into_iter().chain(more) {
            command.args(["-c", &format!("{name}={value}")]);
        }
        self.user.run(&mut command).stderr(log.map_err(doing("open the PostgreSQL log"))?);
        Ok(command)
    }

    /// Whether line 8 of postmaster.pid says that it takes connections, as a standby does, too;
    /// line 1 tells this postmaster's file from one that was killed.
    fn says_ready(&self, pid: u32) -> bool {
        let file =
            fs::read_to_string(self.directory().join("data/postmaster.pid")).unwrap_or_default();
        let mut lines = file.lines();
        lines.next() == Some(&pid.to_string())
            && lines.nth(6).is_some_and(|status| matches!(status.trim(), "ready" | "standby"))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop_immediately();
    }
}

impl User {
    /// Lets `command` run as this user.
    fn run(self, command: &mut Command) -> &mut Command {
        if let Self::Other { uid, gid } = self {
            command.uid(uid).gid(gid);
        }
        command
    }
}
