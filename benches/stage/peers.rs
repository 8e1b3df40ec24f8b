//! What people write or install instead, from real packages: `benches/peers`.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};

use super::Stage;

/// A listener of somebody else's; killed when dropped.
pub(crate) struct Peer(Child);

impl Peer {
    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// pg-listen and ioredis.
    Node,
    /// asyncpg and redis-py.
    Python,
}

/// Installs the packages of both, below Cargo's target directory. Says so if one cannot be had.
pub(crate) fn install() -> anyhow::Result<()> {
    let (from, to) = (source(), target());
    if to.join("done").exists() {
        return Ok(());
    }
    eprintln!("installing what unstale is compared with into {}", to.display());
    std::fs::create_dir_all(&to)?;
    for file in ["package.json", "requirements.txt", "listen.cjs", "listen.py"] {
        std::fs::copy(from.join(file), to.join(file))?;
    }
    run(Command::new("npm")
        .args(["install", "--no-audit", "--no-fund", "--loglevel=error"])
        .current_dir(&to))?;
    run(Command::new("python3").args(["-m", "venv", "venv"]).current_dir(&to))?;
    run(Command::new(to.join("venv/bin/pip"))
        .args(["install", "--quiet", "-r", "requirements.txt"])
        .current_dir(&to))?;
    std::fs::write(to.join("done"), "")?;
    Ok(())
}

/// Starts one, and waits until it listens.
pub(crate) fn start(kind: Kind, stage: &Stage) -> anyhow::Result<Peer> {
    let mut command = match kind {
        Kind::Node => Command::new("node"),
        Kind::Python => Command::new(target().join("venv/bin/python")),
    };
    command.arg(source().join(if kind == Kind::Node { "listen.cjs" } else { "listen.py" }));
    command
        .env("NODE_PATH", target().join("node_modules"))
        .env("DATABASE_URL", stage.postgres.url("postgres"))
        .env("REDIS_SOCKET", stage.redis.socket())
        .stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("{kind:?}"))?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("it is piped")?).read_line(&mut line)?;
    let peer = Peer(child);
    ensure!(line.trim() == "ready", "{kind:?} said {line:?}");
    Ok(peer)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers")
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("peers")
}
