//! A new data directory: by initdb, or as a copy of one that an earlier start has kept.
//!
//! Owns: the cache of prepared data directories, one for each server version and user. Must hold: a
//! cached directory is whole. It is published by a rename, so that any number of processes may
//! start at once; the first wins, and the others' work is thrown away. Refuses: to cache anything
//! unless told where.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::programs::{Programs, User, copy};
use crate::scratch::guard::{Guard, Process};
use crate::scratch::{Error, PATIENCE, doing, log_tail};

/// Puts a fresh cluster into the guard's directory, under `data`.
pub(super) fn install(
    programs: &Programs,
    user: User,
    guard: &Guard,
    cache: Option<&Path>,
) -> Result<(), Error> {
    let data = guard.directory().join("data");
    let Some(cache) = cache else { return initdb(programs, user, guard) };
    let kept = cached(cache, programs, user)?;
    if kept.is_dir() {
        return copy(&kept, &data, user);
    }
    initdb(programs, user, guard)?;
    publish(&data, cache, &kept)
}

/// `CACHE/postgres-15.18-Debian-15.18-0-deb12u1-uid105`
fn cached(cache: &Path, programs: &Programs, user: User) -> Result<PathBuf, Error> {
    let version = programs.version()?;
    let words = version
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '.')
        .filter(|word| !word.is_empty());
    let name = words.collect::<Vec<_>>().join("-");
    Ok(cache.join(format!("{name}-uid{}", user.uid())))
}

fn initdb(programs: &Programs, user: User, guard: &Guard) -> Result<(), Error> {
    let log = guard.directory().join("initdb.log");
    let file = File::create(&log).map_err(doing("create initdb's log"))?;
    let mut command = guard.command("TERM", programs.directory.join("initdb"))?;
    // The locale C is the only one that is everywhere; it orders by byte, which suits tests, too.
    command
        .args([
            "--pgdata=data",
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
        ])
        .stderr(file.try_clone().map_err(doing("share initdb's log"))?)
        .stdout(file);
    user.run(&mut command);
    let mut process = Process::start(command)?;
    let how = match process.wait(PATIENCE) {
        Some(status) if status.success() => return Ok(()),
        Some(status) => format!("ended with {status}"),
        None => {
            let _ = process.kill();
            format!("was not done within {} s", PATIENCE.as_secs())
        }
    };
    Err(Error::Start { what: "initdb", how, log: log_tail(&log) })
}

fn publish(data: &Path, cache: &Path, kept: &Path) -> Result<(), Error> {
    fs::create_dir_all(cache).map_err(doing(format!("create {}", cache.display())))?;
    let draft = tempfile::Builder::new().prefix("draft-").tempdir_in(cache);
    let draft = draft.map_err(doing(format!("make a directory in {}", cache.display())))?;
    copy(data, &draft.path().join("data"), User::Ourselves)?;
    match fs::rename(draft.path().join("data"), kept) {
        // Somebody was faster, and theirs is as good.
        Err(_) if kept.is_dir() => Ok(()),
        other => other.map_err(doing(format!("publish {}", kept.display()))),
    }
}
