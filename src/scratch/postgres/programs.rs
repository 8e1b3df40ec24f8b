//! Where PostgreSQL's programs are, who may run them, and which processes they have started.
//!
//! Owns: what this machine says about those three; nothing is started and nothing is changed,
//! except for an owner.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, geteuid};

use crate::scratch::{Error, doing, on_path, variable};

/// Where packages put the programs: Debian; the PostgreSQL project's RPMs; Homebrew on Apple and
/// Intel chips; Postgres.app. A `*` stands for the version.
const PLACES: [&str; 5] = [
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
];

/// A directory that has both initdb and postgres.
#[derive(Debug, Clone)]
pub(super) struct Programs {
    pub(super) directory: PathBuf,
}

impl Programs {
    /// `$PG_BIN_DIR`, which must be right if it is set; then the newest of [`PLACES`]; then PATH.
    pub(super) fn find() -> Result<Self, Error> {
        if let Some(directory) = variable("PG_BIN_DIR") {
            let looked = format!("PG_BIN_DIR={}", directory.display());
            return Self::in_directory(Path::new(&directory)).ok_or(Error::NoPostgres { looked });
        }
        let mut installed: Vec<PathBuf> = PLACES.into_iter().flat_map(expand).collect();
        installed.sort_by_key(|directory| version_in(directory));
        let path = || {
            on_path("initdb").and_then(|file| Some(file.canonicalize().ok()?.parent()?.to_owned()))
        };
        let newest = installed.iter().rev().find_map(|directory| Self::in_directory(directory));
        newest
            .or_else(|| Self::in_directory(&path()?))
            .ok_or_else(|| Error::NoPostgres { looked: format!("{}, PATH", PLACES.join(", ")) })
    }

    fn in_directory(directory: &Path) -> Option<Self> {
        let has = |program| directory.join(program).is_file();
        let directory = std::path::absolute(directory).ok()?;
        (has("initdb") && has("postgres")).then_some(Self { directory })
    }

    /// The version as the server tells it: `postgres (PostgreSQL) 15.18 (Debian ...)`.
    pub(super) fn version(&self) -> Result<String, Error> {
        let output = Command::new(self.directory.join("postgres")).arg("--version").output();
        let output = output.map_err(doing("ask postgres for its version"))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

/// The directories that match a path with one `*`.
fn expand(pattern: &str) -> Vec<PathBuf> {
    let (before, after) = pattern.split_once('*').expect("every place has a star");
    let (parent, prefix) = before.rsplit_once('/').expect("every place is absolute");
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    named
        .map(|entry| entry.path().join(after.trim_start_matches('/')))
        .filter(|path| path.is_dir())
        .collect()
}

/// The version in a path of [`PLACES`], so that 9.6 sorts before 15; "latest" counts as none.
fn version_in(directory: &Path) -> Vec<u32> {
    let component =
        directory.parent().and_then(Path::file_name).and_then(OsStr::to_str).unwrap_or_default();
    let digits = component.rsplit(['@', '-']).next().unwrap_or_default();
    digits.split('.').filter_map(|part| part.parse().ok()).collect()
}

/// Who runs the server.
#[derive(Debug, Clone, Copy)]
pub(super) enum User {
    /// Whoever we are.
    Ourselves,
    /// We are root, and PostgreSQL refuses that: somebody else's numbers.
    Other { uid: u32, gid: u32 },
}

impl User {
    /// Ourselves; for root `postgres`, else `nobody`.
    pub(super) fn for_servers() -> Result<Self, Error> {
        if !geteuid().is_root() {
            return Ok(Self::Ourselves);
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| numbers_of(&passwd, name))
            .ok_or(Error::NoUser)
    }

    /// The user's number, for the name of what is cached per user.
    pub(super) fn uid(self) -> u32 {
        match self {
            Self::Ourselves => geteuid().as_raw(),
            Self::Other { uid, .. } => uid,
        }
    }

    /// Makes this user own `path`.
    pub(super) fn give(self, path: &Path) -> Result<(), Error> {
        match self {
            Self::Ourselves => Ok(()),
            Self::Other { uid, gid } => chown(path, Some(uid), Some(gid))
                .map_err(doing(format!("give away {}", path.display()))),
        }
    }
}

/// `name:password:uid:gid:...` in the text of /etc/passwd.
fn numbers_of(passwd: &str, name: &str) -> Option<User> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut fields = line.split(':').skip(2);
    let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    // A `nobody` that is root in disguise (containers have been seen with it) helps nobody.
    (uid != 0).then_some(User::Other { uid, gid })
}

/// The processes that `parent` has started and not reaped.
///
/// Backends have sessions of their own, so no process group holds them together.
pub(super) fn children(parent: u32) -> Vec<Pid> {
    if !Path::new("/proc/self/stat").exists() {
        // macOS.
        let output = Command::new("pgrep").args(["-P", &parent.to_string()]).output();
        let text = output
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default();
        return text.lines().filter_map(|line| Pid::from_raw(line.trim().parse().ok()?)).collect();
    }
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(|&pid| stat(pid).is_some_and(|(_, ppid)| ppid == parent))
        .filter_map(Pid::from_raw)
        .collect()
}

/// Whether a process is there and not a zombie.
pub(super) fn runs(pid: Pid) -> bool {
    match stat(pid.as_raw_nonzero().get()) {
        Some((state, _)) => !matches!(state, 'Z' | 'X'),
        None if Path::new("/proc/self/stat").exists() => false,
        None => rustix::process::test_kill_process(pid).is_ok(),
    }
}

/// State and parent of a process, from /proc/PID/stat; the name before them may hold anything, also
/// parentheses.
fn stat(pid: i32) -> Option<(char, u32)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Copies a directory with everything in it, private, and makes `user` own it.
pub(super) fn copy(from: &Path, to: &Path, user: User) -> Result<(), Error> {
    let failed = |source| Error::Io {
        doing: format!("copy {} to {}", from.display(), to.display()),
        source,
    };
    fs::create_dir(to).map_err(failed)?;
    fs::set_permissions(to, fs::metadata(from).map_err(failed)?.permissions()).map_err(failed)?;
    user.give(to)?;
    for entry in fs::read_dir(from).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let target = to.join(entry.file_name());
        let kind = entry.metadata().map_err(failed)?;
        if kind.is_dir() {
            copy(&entry.path(), &target, user)?;
        } else {
            debug_assert!(kind.nlink() == 1, "a fresh data directory has plain files only");
            fs::copy(entry.path(), &target).map_err(failed)?;
            user.give(&target)?;
        }
    }
    Ok(())
}
