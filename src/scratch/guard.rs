//! Clean-up that survives us: a small shell on a pipe that ends our processes and removes our
//! directory.
//!
//! Owns: one directory, and every process started through [`Guard::command`]. Must hold: when the
//! pipe closes - we dropped the guard, we exited, or somebody killed us with SIGKILL - the
//! processes end and the directory goes. There is no moment in which a process runs that the guard
//! does not know: it writes itself into the pipe before it becomes the server, and until then it
//! holds the pipe open. Refuses: to signal a process by its number alone. Number and start time
//! must both be those of the one that we started; numbers are used again.
//!
//! The shell and the processes have process groups of their own, so that Ctrl-C in a terminal
//! reaches us only, and the clean-up is orderly.
//!
//! Not `PR_SET_PDEATHSIG`: it fires when the *thread* that started the process ends, and needs
//! unsafe code.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, PipeWriter};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Error, POLL, doing, new_directory, server_environment};

/// `born PID` prints when a process started: field 22 of /proc/PID/stat, counted after the name,
/// which may hold spaces. Nothing for one that is gone or a zombie (in a container without an init,
/// zombies stay). macOS has no /proc.
macro_rules! born {
    () => {
        r#"
born() {
    if [ -r /proc/self/stat ]; then
        read -r stat < "/proc/$1/stat" || return 0
        set -- ${stat##*) }
        case $1 in Z|X) ;; *) echo "${20}" ;; esac
    else
        ps -o lstart= -p "$1" | tr -d ' '
    fi
}
"#
    };
}

/// What the guard runs; `$1` is the directory. The pipe is its standard input.
///
/// A server that is paused (SIGSTOP) sees no other signal before SIGCONT. PostgreSQL gets SIGQUIT
/// and time, because after a SIGKILL its shared memory stays; the segment of one that was killed is
/// named in postmaster.pid.
const WATCH: &str = concat!(
    born!(),
    r#"
trap '' HUP INT TERM QUIT
while read -r pid signal start; do list="$list $pid:$signal:$start"; done
each() {
    for entry in $list; do
        pid=${entry%%:*}; rest=${entry#*:}; signal=${rest%%:*}; start=${rest#*:}
        if [ "$(born "$pid")" = "$start" ]; then "$@"; fi
    done
}
polite() { kill -s "$signal" "$pid"; kill -s CONT "$pid"; }
rude() { kill -s KILL "$pid"; }
count() { alive=1; }
each polite
rounds=0
while alive=; each count; [ "$alive" ]; do
    rounds=$((rounds + 1))
    if [ $rounds -gt 250 ]; then each rude; fi
    if [ $rounds -gt 500 ]; then break; fi
    sleep 0.02
done
for file in "$1"/data/postmaster.pid; do
    if [ -r "$file" ]; then
        set -- "$1" $(sed -n 7p "$file")
        if [ "$3" ]; then ipcrm -m "$3"; fi
    fi
done
rm -rf "$1"
"#
);

/// What a process runs before it becomes the server: it tells the guard of itself. `$1` is the
/// signal that ends it, the rest its command line. Its standard input is the guard's pipe until
/// then.
const ENLIST: &str = concat!(
    born!(),
    r#"
signal=$1; shift
echo "$$ $signal $(born $$)" >&0
exec "$@" < /dev/null
"#
);

/// Owns a directory and the processes in it; both are gone once this is, however it goes.
#[derive(Debug)]
pub struct Guard {
    /// The directory that goes.
    directory: PathBuf,
    /// Our end of the pipe; `None` only while dropping.
    pipe: Option<PipeWriter>,
    /// The shell at the other end.
    shell: Child,
}

impl Guard {
    /// Makes a private directory, in memory where there is room, and its guard.
    ///
    /// # Errors
    /// When there is no place for the directory, or no `sh`.
    pub fn new() -> Result<Self, Error> {
        Self::in_memory_or_not(false)
    }

    /// The same on a disk.
    ///
    /// # Errors
    /// As [`Guard::new`].
    pub fn on_disk() -> Result<Self, Error> {
        Self::in_memory_or_not(true)
    }

    fn in_memory_or_not(on_disk: bool) -> Result<Self, Error> {
        let directory = new_directory(on_disk)?;
        Self::over(directory.clone()).inspect_err(|_| {
            // Nothing lives in it yet, and the error is already on its way.
            let _ = fs::remove_dir(&directory);
        })
    }

    fn over(directory: PathBuf) -> Result<Self, Error> {
        let (reader, writer) = io::pipe().map_err(doing("make a pipe"))?;
        let shell = Command::new("sh")
            .args(["-c", WATCH, "unstale-guard"])
            .arg(&directory)
            .env_clear()
            .envs(server_environment())
            .current_dir("/")
            .process_group(0)
            .stdin(reader)
            // Not ours: whoever reads our output would wait for the guard to end.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(doing("start the guard (sh)"))?;
        Ok(Self { directory, pipe: Some(writer), shell })
    }

    /// The directory, short and private.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The guard's own process number, for tests that look whether it is gone.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.shell.id()
    }

    /// A command whose process the guard knows; `signal` (`"QUIT"`, `"TERM"`) is what ends it.
    ///
    /// It starts in the guard's directory, in a process group of its own, with a bare environment,
    /// its output discarded. Set arguments, environment, output and user as usual, but leave its
    /// standard input alone.
    ///
    /// # Errors
    /// When the pipe cannot be shared (no file descriptor left).
    pub fn command(&self, signal: &str, program: impl AsRef<OsStr>) -> Result<Command, Error> {
        let pipe = self.pipe.as_ref().expect("only a guard that is being dropped has no pipe");
        let pipe = pipe.try_clone().map_err(doing("share the guard's pipe"))?;
        let mut command = Command::new("sh");
        command
            .args(["-c", ENLIST, "unstale-enlist", signal])
            .arg(program)
            .env_clear()
            .envs(server_environment())
            .current_dir(&self.directory)
            .process_group(0)
            .stdin(pipe)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(command)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.pipe = None;
        // Best effort from here on: a drop has nobody to tell. If the guard was killed, its work is
        // ours.
        let _ = self.shell.wait();
        if self.directory.exists() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

/// A process that we started and have not seen the end of; its number is its own as long as this
/// lives.
///
/// Dropping it does not end it; its guard or its owner does.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a command of [`Guard::command`].
    ///
    /// The command keeps the guard's pipe open until it is dropped, so drop it soon: a guard that
    /// is dropped first would wait for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command) -> Result<Self, Error> {
        let child = command.spawn().map_err(doing("start a process (sh)"))?;
        Ok(Self { child })
    }

    /// Its number.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The standard library's handle, for its pipes.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal; one that has ended needs none.
    pub fn signal(&mut self, signal: Signal) {
        if let Ok(None) = self.child.try_wait() {
            // It was there, unreaped, a moment ago, and only we reap it: its number is still its
            // own.
            let _ = kill_process(Pid::from_child(&self.child), signal);
        }
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        // An error can only mean that there is no such child any more.
        self.child.try_wait().unwrap_or(Some(ExitStatus::from_raw(0)))
    }

    /// Waits for its end, at most `patience`.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(POLL);
        }
    }

    /// Asks it with `signal` to end, waits `patience`, then kills it; says how it ended.
    pub fn stop(&mut self, signal: Signal, patience: Duration) -> io::Result<ExitStatus> {
        self.signal(signal);
        // One that is paused sees the signal only now.
        self.signal(Signal::CONT);
        match self.wait(patience) {
            Some(status) => Ok(status),
            None => self.kill(),
        }
    }

    /// Kills it with SIGKILL and waits until it is gone.
    pub fn kill(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        self.child.wait()
    }
}
