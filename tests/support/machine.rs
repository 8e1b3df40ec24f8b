//! A small machine with a real systemd, on which the unit file of `config/` is installed with the
//! binary under test; or one on which everything may be installed, because it is a copy of this
//! host.
//!
//! Owns: a container of systemd-nspawn, its directory and its cgroup. It has the host's programs,
//! an /etc of its own, and the host's network, so that the test's servers are on its loopback. What
//! a copy writes is in memory. Must hold: no service of the host is started in it, because its /etc
//! enables none and it boots no further than `basic.target`; and it is gone when this is dropped,
//! or when the tests are killed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;
use unstale::scratch::guard::{Guard, Process};

use super::daemon::BINARY;
use super::wait::{PATIENCE, until};

/// Where systemd-nspawn says which process is the machine's first.
const NOTIFY_SOCKET: &str = "notify.sock";

/// Where a copy has the package to install.
pub(crate) const PACKAGE: &str = "/run/unstale.deb";

/// Where a copy shows what was written on it.
const UPPER: &str = "/run/upper";

/// Runs a command, systemd-nspawn, in a cgroup of its own, whose name is `$1`: two systemds in one
/// cgroup would take each other's processes for theirs. The shell stays to remove it. SIGTERM ends
/// the machine at once, by nspawn's --kill-signal.
const BOOT: &str = r#"
name=$1; shift
trees="/sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified"
(
    for tree in $trees; do
        if [ -w "$tree/cgroup.procs" ]; then
            mkdir "$tree/$name"
            echo 0 > "$tree/$name/cgroup.procs"
        fi
    done
    exec "$@"
) &
machine=$!
trap 'kill "$machine"' TERM
wait "$machine" || wait "$machine"
for tree in $trees; do
    if [ -d "$tree/$name" ]; then find "$tree/$name" -depth -type d -exec rmdir {} \; ; fi
done
"#;

/// Runs a command beside `$1/root`, which is the host's file system with a layer above it: what is
/// written goes to `$1/upper`, in memory, and away with the last process. No service of the host is
/// enabled there, nothing is mounted, and no policy of the host keeps a package from stopping its
/// own service.
const COPY: &str = r#"
set -e
base=$1; shift
mount -t tmpfs -o mode=755 tmpfs "$base"
mkdir "$base/upper" "$base/work" "$base/root"
mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" overlay "$base/root"
(
    cd "$base/root"
    rm -rf etc/systemd/system etc/rc?.d etc/fstab usr/sbin/policy-rc.d
    mkdir etc/systemd/system
)
exec "$@"
"#;

/// A running machine.
pub(crate) struct Machine {
    process: Process,
    leader: String, // the process number of its systemd
    guard: Guard,
}

/// What this host lacks to run a machine, if anything.
pub(crate) fn lacking() -> Option<&'static str> {
    let works = |command: &str| {
        let mut words = command.split(' ');
        let mut command = Command::new(words.next().expect("a program"));
        command
            .args(words)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if !works("systemd-nspawn --version") {
        Some("systemd-nspawn, of Debian's package systemd-container")
    } else if !works("unshare --mount --pid --fork true") {
        Some("root, who may mount")
    } else {
        None
    }
}

impl Machine {
    /// Boots a machine with the unit file, these drop-ins and this environment for it. The unit is
    /// neither enabled nor started.
    pub(crate) async fn boot(drop_in: &str, environment: &str) -> Self {
        let guard = Guard::new().expect("a directory for the machine");
        let (root, programs) = (guard.directory().join("root"), guard.directory().join("programs"));
        furnish(&root, drop_in, environment).expect("a fresh directory");
        // The host's programs, and ours among them.
        write(&programs.join("unstale"), "").expect("a fresh directory");
        let places = [
            format!("--directory={}", root.display()),
            "--bind-ro=/usr".to_owned(),
            format!("--overlay-ro=/usr/bin:{}:/usr/bin", programs.display()),
            format!("--bind-ro={BINARY}:/usr/bin/unstale"),
        ];
        Self::start(guard, &[], &places).await
    }

    /// Boots a copy of this host, on which `package` is [`PACKAGE`]. It is not installed.
    pub(crate) async fn copy(package: &Path) -> Self {
        let guard = Guard::new().expect("a directory for the machine");
        let base = guard.directory().join("copy");
        fs::create_dir(&base).expect("a fresh directory");
        let base = base.display();
        let places = [
            format!("--directory={base}/root"),
            format!("--bind-ro={base}/upper:{UPPER}"),
            format!("--bind-ro={}:{PACKAGE}", package.display()),
            "--resolv-conf=off".to_owned(),
            "--timezone=off".to_owned(),
            "--link-journal=no".to_owned(),
        ];
        Self::start(
            guard,
            &["unshare", "--mount", "sh", "-c", COPY, "unstale-copy", &base.to_string()],
            &places,
        )
        .await
    }

    /// Boots systemd-nspawn with `places`, under other words.
    async fn start(guard: Guard, under: &[&str], places: &[String]) -> Self {
        let log = File::create(log(&guard)).expect("a fresh directory");
        let socket =
            UnixDatagram::bind(guard.directory().join(NOTIFY_SOCKET)).expect("a fresh directory");
        socket.set_nonblocking(true).expect("no waiting");

        let name = format!("unstale-{}", guard.pid());
        let mut command = guard.command("TERM", "sh").expect("a pipe to share");
        command.args(["-c", BOOT, "unstale-machine", &name]).args(under);
        command.args([
            "systemd-nspawn",
            "--quiet",
            "--register=no",
            "--keep-unit",
            "--kill-signal=SIGKILL",
        ]);
        command
            .arg(format!("--machine={name}"))
            .args(places)
            .args(["--boot", "systemd.unit=basic.target"]);
        if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            // It would look for systemd's version below the directory, where /usr is not mounted
            // yet.
            command.env("SYSTEMD_NSPAWN_UNIFIED_HIERARCHY", "1");
        }
        command.env("NOTIFY_SOCKET", guard.directory().join(NOTIFY_SOCKET));
        command.stdout(log.try_clone().expect("a file more")).stderr(log);
        let mut process = Process::start(command).expect("sh starts");

        let leader = until("the machine runs", async || {
            let said = || fs::read_to_string(self::log(&guard)).unwrap_or_default();
            assert!(
                process.ended().is_none(),
                "systemd-nspawn could not boot a machine:\n{}",
                said()
            );
            leader_in(&socket)
        });
        let leader = leader.await;
        let machine = Self { process, leader, guard };
        until("its systemd takes commands", async || {
            machine.run("systemctl is-active basic.target").status.success()
        })
        .await;
        machine
    }

    /// Runs `systemctl` in it, which must succeed; returns what it prints.
    pub(crate) fn systemctl(&self, arguments: &str) -> String {
        let output = self.run(&format!("systemctl {arguments}"));
        assert!(output.status.success(), "systemctl {arguments}: {output:?}");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// A property of the unit, as `systemctl show` prints it.
    pub(crate) fn property(&self, name: &str) -> String {
        self.systemctl(&format!("show unstale --value --property={name}"))
    }

    /// Everything that the unit's processes, and systemd about the unit, have said.
    pub(crate) fn journal(&self) -> String {
        self.entries("--output=cat")
    }

    /// The unit's entries in the journal, chosen and shown as these arguments of journalctl say.
    pub(crate) fn entries(&self, arguments: &str) -> String {
        let output = self.run(&format!("journalctl --no-pager --unit=unstale {arguments}"));
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Runs a script of the shell in it, which must succeed; returns what it prints.
    pub(crate) fn shell(&self, script: &str) -> String {
        let output = self.enter(&["sh", "-euc", script]);
        assert!(
            output.status.success(),
            "{script}: {}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout).trim_end().to_owned()
    }

    /// What was written since it was [copied](Self::copy) and is still there, but for what another
    /// program notes: the package manager, the logs, and the index of manual pages.
    pub(crate) fn written(&self) -> BTreeSet<String> {
        let notes = ["/var/lib/dpkg/", "/var/log/", "/var/cache/man/"];
        let found = self.shell(&format!("find {UPPER} -mindepth 1 -printf '%y /%P\\n'"));
        let entries = found.lines().filter_map(|line| line.split_once(' '));
        let kept = entries.filter(|(kind, path)| {
            let is_of_the_host = *kind == "d" && Path::new(path).is_dir();
            !is_of_the_host && !notes.iter().any(|note| path.starts_with(note))
        });
        kept.map(|(_, path)| path.to_owned()).collect()
    }

    fn run(&self, words: &str) -> Output {
        self.enter(&words.split_whitespace().collect::<Vec<_>>())
    }

    fn enter(&self, words: &[&str]) -> Output {
        let mut command = Command::new("nsenter");
        command.args([
            "--target",
            &self.leader,
            "--mount",
            "--uts",
            "--ipc",
            "--pid",
            "--cgroup",
            "--root",
            "--wd",
        ]);
        command.args(words).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).output().expect("nsenter, of util-linux")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A destructor has nobody to tell.
        if std::thread::panicking() {
            eprintln!("the unit's last words:\n{}", self.journal());
            eprintln!(
                "the machine's:\n{}",
                fs::read_to_string(log(&self.guard)).unwrap_or_default()
            );
        }
        let _ = self.process.stop(Signal::TERM, PATIENCE);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn log(guard: &Guard) -> PathBuf {
    guard.directory().join("machine.log")
}

/// The number that systemd-nspawn tells, once it has.
fn leader_in(socket: &UnixDatagram) -> Option<String> {
    let mut datagram = [0; 4096];
    let length = socket.recv(&mut datagram).ok()?;
    let text = String::from_utf8_lossy(&datagram[..length]);
    text.lines().find_map(|line| line.strip_prefix("X_NSPAWN_LEADER_PID=")).map(str::to_owned)
}

/// Writes a directory to boot from: what systemd wants of it, and what docs/getting-started.md says
/// of the unit.
fn furnish(root: &Path, drop_in: &str, environment: &str) -> std::io::Result<()> {
    fs::create_dir_all(root.join("usr"))?;
    for name in ["bin", "sbin", "lib", "lib64"] {
        if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
            symlink(target, root.join(name))?;
        }
    }
    write(&root.join("etc/os-release"), "ID=unstale-test\n")?;
    // Without one this would be the first boot, which enables every unit of the host.
    write(&root.join("etc/machine-id"), "0123456789abcdef0123456789abcdef\n")?;
    write(&root.join("etc/unstale/unstale.env"), environment)?;
    let units = root.join("etc/systemd/system");
    write(&units.join("unstale.service.d/test.conf"), drop_in)?;
    fs::copy(
        concat!(env!("CARGO_MANIFEST_DIR"), "/config/unstale.service"),
        units.join("unstale.service"),
    )?;
    Ok(())
}

fn write(file: &Path, text: &str) -> std::io::Result<()> {
    fs::create_dir_all(file.parent().unwrap_or(file))?;
    fs::write(file, text)
}
