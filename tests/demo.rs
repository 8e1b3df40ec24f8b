//! `unstale demo` from outside: what is left of it when it does not come to its end. (That the
//! story comes out is the demo's own business: it fails if not, and `./dev test` runs it.)

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::support::daemon::BINARY;
use crate::support::wait::until;

/// A demo in full swing, and everything that it has started.
struct Demo {
    child: Child,
    processes: Vec<u32>,
    directories: Vec<PathBuf>,
}

impl Demo {
    /// Starts one, in a process group of its own as a shell would, and waits until its listener is
    /// ready.
    fn start() -> Self {
        let mut child = Command::new(BINARY)
            .arg("demo")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary is built before the tests");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let ready = output.lines().map_while(Result::ok).find(|line| line.contains("unstale run"));
        ready.expect("the demo starts its servers");
        let started = children(child.id());
        // The guards hold the directories' names.
        let guards = started
            .iter()
            .filter_map(|&pid| arguments(pid))
            .filter(|words| words.contains(&"unstale-guard".to_owned()));
        let directories: Vec<PathBuf> =
            guards.filter_map(|words| words.last().map(PathBuf::from)).collect();
        assert_eq!(directories.len(), 3, "one for PostgreSQL, one for Redis, one for the listener");
        assert!(directories.iter().all(|directory| directory.is_dir()));
        let processes =
            started.iter().flat_map(|&pid| [vec![pid], children(pid)].concat()).collect();
        Self { child, processes, directories }
    }

    fn signal(&self, signal: Signal) {
        kill_process_group(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// What is left of it.
    fn remains(&self) -> Vec<String> {
        let directories = self
            .directories
            .iter()
            .filter(|directory| directory.exists())
            .map(|directory| directory.display().to_string());
        let processes = self
            .processes
            .iter()
            .filter(|&&pid| stat(pid).is_some())
            .map(|pid| format!("process {pid}"));
        directories.chain(processes).collect()
    }
}

/// State and parent of a process, if it is there and not a zombie.
fn stat(pid: u32) -> Option<(String, u32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned);
    let (state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
    (!["Z", "X"].contains(&state.as_str())).then_some((state, parent))
}

fn children(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("Linux").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| stat(pid).is_some_and(|(_, its_parent)| its_parent == parent)).collect()
}

fn arguments(pid: u32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    Some(text.trim_end_matches('\0').split('\0').map(str::to_owned).collect())
}

#[test]
fn an_interrupted_demo_has_cleaned_up_when_it_ends() {
    for signal in [Signal::INT, Signal::TERM] {
        let mut demo = Demo::start();
        demo.signal(signal);
        let status = demo.child.wait().expect("it is our child");
        assert_eq!(status.code(), Some(1), "{signal:?}");
        assert_eq!(demo.remains(), Vec::<String>::new(), "{signal:?}");
    }
}

#[tokio::test]
async fn a_killed_demo_leaves_nothing_behind() {
    let mut demo = Demo::start();
    demo.signal(Signal::KILL);
    demo.child.wait().expect("it is our child");
    until("nothing is left of the demo", async || demo.remains().is_empty()).await;
}
