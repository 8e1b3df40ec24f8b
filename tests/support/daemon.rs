//! The real binary, as a service manager would run it.
//!
//! Owns: one process with an environment of its own, what it says, and its address for /ready and
//! /metrics. Must hold: it is gone when this is dropped, or when the tests are killed.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use unstale::scratch::guard::{Guard, Process};
use unstale::scratch::{free_port, http};

use super::wait::{PATIENCE, until, until_within};

/// The program under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_unstale");

/// Where it tells a service manager how it is, in its guard's directory.
const NOTIFY_SOCKET: &str = "notify.sock";

/// Lines that a thread collects.
type Lines = Arc<Mutex<Vec<String>>>;

/// Runs a subcommand to its end, with nothing in its environment but this. One that goes on is
/// ended after two minutes, with code 124.
pub(crate) fn command(arguments: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["120", BINARY]);
    command
        .args(arguments.split_whitespace())
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::null());
    command.output().expect("the binary is built before the tests")
}

/// Words before a program that give it an /etc/hosts of its own, in which each address has the name
/// `db.test`. `None`, after saying so, where nobody may mount, as without being root.
pub(crate) fn with_hosts(file: &Path, addresses: &[&str]) -> Option<Vec<String>> {
    if !Command::new("unshare")
        .args(["--mount", "true"])
        .status()
        .is_ok_and(|status| status.success())
    {
        eprintln!("skipped: nobody here may mount");
        return None;
    }
    let hosts: String = addresses.iter().map(|address| format!("{address} db.test\n")).collect();
    std::fs::write(file, hosts).expect("a file of ours");
    let script = r#"mount --bind "$0" /etc/hosts && exec "$@""#;
    Some(
        [
            ["unshare", "--mount", "sh", "-c", script].map(str::to_owned).as_slice(),
            &[file.display().to_string()],
        ]
        .concat(),
    )
}

/// A daemon to be.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    under: Vec<String>,
    arguments: String,
    environment: BTreeMap<String, String>,
    port: u16,
}

impl Settings {
    /// Sets a variable of its environment: `("UNSTALE_HEARTBEAT__INTERVAL", "200ms")`.
    #[must_use]
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Takes a variable away.
    #[must_use]
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// Another subcommand that runs until it is ended.
    #[must_use]
    pub(crate) fn running(mut self, arguments: &str) -> Self {
        self.arguments = arguments.to_owned();
        self
    }

    /// Started by another program, which takes its name and arguments.
    #[must_use]
    pub(crate) fn under(mut self, words: Vec<String>) -> Self {
        self.under = words;
        self
    }

    /// Its environment as systemd reads it from a file.
    pub(crate) fn environment_file(&self) -> String {
        self.environment.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
    }

    /// Starts it; it need not be ready when this returns.
    pub(crate) fn start(self) -> Daemon {
        Daemon::start(self)
    }
}

/// A running `unstale run`.
pub(crate) struct Daemon {
    process: Process,
    port: u16,
    lines: Lines,
    collectors: Vec<JoinHandle<()>>,
    notifications: Lines,
    guard: Guard,
}

impl Daemon {
    /// The settings of one that logs JSON, answers HTTP, and tells a service manager how it is.
    pub(crate) fn settings(database_url: &str, redis_url: &str) -> Settings {
        let port = free_port().expect("a free port");
        let environment = [
            ("DATABASE_URL", database_url.to_owned()),
            ("REDIS_URL", redis_url.to_owned()),
            ("UNSTALE_HTTP__LISTEN", format!("127.0.0.1:{port}")),
            ("UNSTALE_LOG__FORMAT", "json".to_owned()),
            ("UNSTALE_INSTANCE", "test".to_owned()),
            // A second delete would hide that a first one was lost.
            ("UNSTALE_REPEAT__AFTER", String::new()),
        ];
        Settings {
            under: Vec::new(),
            arguments: "run".to_owned(),
            environment: environment.map(|(name, value)| (name.to_owned(), value)).into(),
            port,
        }
    }

    fn start(settings: Settings) -> Self {
        let guard = Guard::new().expect("a directory for the daemon");
        let socket = guard.directory().join(NOTIFY_SOCKET);
        let notifications =
            collect_datagrams(UnixDatagram::bind(&socket).expect("a fresh directory"));
        let mut words = settings.under.iter().map(String::as_str).chain([BINARY]);
        let mut command =
            guard.command("TERM", words.next().expect("the binary")).expect("a pipe to share");
        command
            .args(words)
            .args(settings.arguments.split_whitespace())
            .env("NOTIFY_SOCKET", &socket)
            .envs(&settings.environment);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Process::start(command).expect("sh starts");
        let lines = Lines::default();
        let child = process.child();
        let output = collect_lines(child.stdout.take().expect("it is piped"), &lines);
        let errors = collect_lines(child.stderr.take().expect("it is piped"), &lines);
        Self {
            process,
            port: settings.port,
            lines,
            collectors: vec![output, errors],
            notifications,
            guard,
        }
    }

    /// Where it answers HTTP.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Everything that it has said so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.lines.lock().expect("nobody panics with it").clone()
    }

    /// Waits for a line that contains `text`, and returns it.
    pub(crate) async fn says(&self, text: &str) -> String {
        let found = || self.lines().into_iter().find(|line| line.contains(text));
        until(&format!("the daemon says {text:?}"), async || found()).await
    }

    /// What it has told the service manager: `READY=1`, `STATUS=...`, `WATCHDOG=1`, one line each.
    pub(crate) fn notifications(&self) -> Vec<String> {
        self.notifications.lock().expect("nobody panics with it").clone()
    }

    /// The last STATUS that it told the service manager.
    pub(crate) fn status(&self) -> Option<String> {
        let all = self.notifications();
        all.iter().rev().find_map(|line| line.strip_prefix("STATUS=").map(str::to_owned))
    }

    /// Waits until it tells the service manager that it is ready.
    pub(crate) async fn notifies_ready(&self) {
        until("the daemon notifies READY=1", async || {
            self.notifications().iter().any(|line| line == "READY=1")
        })
        .await;
    }

    /// `GET path`: status and body; `None` while nobody answers.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, String)> {
        http::get(self.port, path).ok()
    }

    /// Whether /ready says yes now.
    pub(crate) fn is_ready(&self) -> bool {
        self.get("/ready").is_some_and(|(status, _)| status == 200)
    }

    /// Waits until /ready says yes. A daemon that ends instead fails the test with its last words.
    pub(crate) async fn ready(&mut self) {
        self.ready_within(PATIENCE).await;
    }

    /// The same, for one that has much to catch up with.
    pub(crate) async fn ready_within(&mut self, patience: Duration) {
        until_within("the daemon is ready", patience, async || {
            let ended = self.process.ended();
            assert!(
                ended.is_none(),
                "the daemon ended with {ended:?}:\n{}",
                self.lines().join("\n")
            );
            self.is_ready()
        })
        .await;
    }

    /// Waits until /ready says no, and returns its reason.
    pub(crate) async fn not_ready(&self) -> String {
        let unready = || self.get("/ready").filter(|(status, _)| *status == 503);
        until("the daemon is not ready", async || unready()).await.1
    }

    /// The text of /metrics.
    pub(crate) fn metrics(&self) -> String {
        self.get("/metrics").expect("the daemon answers").1
    }

    /// The sum of a metric's series that carry all of these labels; 0 where there is none.
    pub(crate) fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let metrics = self.metrics();
        let series =
            metrics.lines().filter_map(|line| line.rsplit_once(' ')).filter(|(series, _)| {
                let mut parts = series.splitn(2, '{');
                let (its_name, its_labels) = (parts.next(), parts.next().unwrap_or_default());
                its_name == Some(name) && labels.iter().all(|label| its_labels.contains(label))
            });
        series.map(|(_, value)| value.parse::<f64>().expect("a number ends each line")).sum()
    }

    /// Asks it to end (SIGTERM) and waits.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.process.signal(Signal::TERM);
        self.ends()
    }

    /// Asks it to read its configuration again (SIGHUP).
    pub(crate) fn hang_up(&mut self) {
        self.process.signal(Signal::HUP);
    }

    /// Waits for it to end, and for its last line.
    pub(crate) fn ends(&mut self) -> ExitStatus {
        let ended = self.process.wait(PATIENCE);
        if ended.is_some() {
            for collector in self.collectors.drain(..) {
                collector.join().expect("it only reads");
            }
        }
        ended.unwrap_or_else(|| panic!("the daemon did not end:\n{}", self.lines().join("\n")))
    }

    /// Kills it without a word.
    pub(crate) fn kill9(&mut self) {
        self.process.kill().expect("it is our child");
    }

    /// Stops it in its tracks (SIGSTOP).
    pub(crate) fn pause(&mut self) {
        self.process.signal(Signal::STOP);
    }

    /// Lets it run on.
    pub(crate) fn resume(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// Memory in use now.
    pub(crate) fn rss_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    /// The most memory that was ever in use.
    pub(crate) fn peak_rss_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()))
            .expect("the daemon runs, on Linux");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field))
            .expect("the kernel reports it");
        let kilobytes =
            line.trim().trim_end_matches(" kB").parse::<u64>().expect("it counts in kB");
        kilobytes * 1024
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A destructor has nobody to tell.
        let _ = self.process.kill();
        let _ = UnixDatagram::unbound()
            .and_then(|farewell| farewell.send_to(&[], self.guard.directory().join(NOTIFY_SOCKET)));
        if std::thread::panicking() {
            eprintln!("the daemon's last words:\n{}", self.lines().join("\n"));
        }
    }
}

/// Reads lines until the other end closes.
fn collect_lines(from: impl Read + Send + 'static, into: &Lines) -> JoinHandle<()> {
    let into = into.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            into.lock().expect("nobody panics with it").push(line);
        }
    })
}

/// Reads datagrams; each may hold several lines. An empty one ends the thread.
fn collect_datagrams(socket: UnixDatagram) -> Lines {
    let lines = Lines::default();
    let into = lines.clone();
    std::thread::spawn(move || {
        let mut datagram = [0; 4096];
        while let Ok(length @ 1..) = socket.recv(&mut datagram) {
            let text = String::from_utf8_lossy(&datagram[..length]).into_owned();
            into.lock().expect("nobody panics with it").extend(text.lines().map(str::to_owned));
        }
    });
    lines
}
