//! The image that `Dockerfile` describes, built by buildah around the program that `./dev image`
//! has built, and run.
//!
//! No registry is asked: the first stage, which compiles, is stood in for by a directory with what
//! the second one copies from it. `./dev image` compiles with the same command, of the files that
//! the first stage is given and no others.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use unstale::scratch::Guard;

use super::{made, not_tested};
use crate::support::world::World;

/// buildah with a storage of its own, which goes with the guard. Its driver neither mounts nor asks
/// for a file system that can.
struct Buildah {
    guard: Guard,
}

impl Buildah {
    fn new() -> Self {
        Self { guard: Guard::on_disk().expect("a directory for the image") }
    }

    fn words(&self) -> Vec<String> {
        let place = self.guard.directory().display();
        [
            "buildah",
            "--storage-driver=vfs",
            &format!("--root={place}/storage"),
            &format!("--runroot={place}/run"),
        ]
        .map(str::to_owned)
        .into()
    }

    /// Succeeds, and returns what it prints.
    fn does(&self, arguments: &[&str]) -> String {
        let words = self.words();
        let output = Command::new(&words[0])
            .args(&words[1..])
            .args(arguments)
            .output()
            .expect("buildah; ./dev installs it");
        let text = |bytes| String::from_utf8_lossy(bytes).trim_end().to_owned();
        assert!(
            output.status.success(),
            "buildah {arguments:?}: {}\n{}",
            text(&output.stdout),
            text(&output.stderr)
        );
        text(&output.stdout)
    }
}

/// What the build stage leaves: the authorities of this host, and the program.
fn built(directory: &Path) -> PathBuf {
    let stage = directory.join("stage");
    let certificates = stage.join("etc/ssl/certs");
    std::fs::create_dir_all(&certificates).expect("a fresh directory");
    let authorities = "/etc/ssl/certs/ca-certificates.crt";
    std::fs::copy(authorities, certificates.join("ca-certificates.crt"))
        .expect("Debian's ca-certificates; ./dev installs it");
    std::fs::copy(made("UNSTALE_STATIC"), stage.join("unstale"))
        .expect("the program that ./dev has built");
    stage
}

/// The process that buildah started as `/unstale`, below process `pid`.
fn unstale_below(pid: u32) -> Option<Pid> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    if name.trim_end() == "unstale" {
        return Pid::from_raw(pid.try_into().ok()?);
    }
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?.filter_map(Result::ok);
    let children = threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .collect::<String>();
    children.split_whitespace().filter_map(|child| child.parse().ok()).find_map(unstale_below)
}

#[tokio::test]
#[ignore = "wants a static program: ./dev image"]
async fn it_holds_one_program_and_runs_it_as_nobody() {
    let may_mount = Command::new("unshare")
        .args(["--mount", "true"])
        .status()
        .is_ok_and(|status| status.success());
    if !may_mount {
        return not_tested("the image was not built", "root, who may mount");
    }
    let buildah = Buildah::new();
    let stage = format!("build={}", built(buildah.guard.directory()).display());
    let context = env!("CARGO_MANIFEST_DIR");
    buildah.does(&[
        "build",
        "--isolation=chroot",
        "--build-context",
        &stage,
        "--tag=unstale",
        context,
    ]);
    let container = buildah.does(&["from", "--pull-never", "localhost/unstale"]);

    // What it is told to run, and as whom.
    let image: Value = serde_json::from_str(&buildah.does(&["inspect", &container])).expect("JSON");
    let config = &image["OCIv1"]["config"];
    assert_eq!(config["Entrypoint"], serde_json::json!(["/unstale"]));
    assert_eq!(config["Cmd"], serde_json::json!(["run"]));
    assert_eq!(config["User"], "65534:65534");
    let root = buildah.does(&["mount", &container]);
    let found = Command::new("find")
        .args([&root, "-type", "f", "-printf", "%P\n"])
        .output()
        .expect("findutils");
    let mut files: Vec<_> = std::str::from_utf8(&found.stdout).expect("UTF-8").lines().collect();
    files.sort_unstable();
    assert_eq!(files, ["etc/ssl/certs/ca-certificates.crt", "unstale"]);

    // It runs without a libc beside it.
    let version =
        buildah.does(&["run", "--isolation=chroot", &container, "--", "/unstale", "--version"]);
    assert_eq!(version, concat!("unstale ", env!("CARGO_PKG_VERSION")));

    // It listens, and leaves when it is asked to. buildah hands on no signal.
    let mut world = World::new().await;
    world.users(10).await;
    let settings = world.daemon();
    let variables = settings.environment_file();
    let mut words: Vec<String> =
        ["sh", "-c", r#"words=$1; shift 2; HOME=/ exec $words /unstale "$@""#, "unstale-image"]
            .map(str::to_owned)
            .into();
    let variables = variables.lines().map(|line| format!("--env={line}"));
    let run = buildah
        .words()
        .into_iter()
        .chain(["run", "--isolation=chroot"].map(str::to_owned))
        .chain(variables);
    words.push(run.chain([container, "--".to_owned()]).collect::<Vec<_>>().join(" "));
    let mut daemon = settings.under(words).start();
    daemon.ready().await;
    let pid = unstale_below(daemon.pid()).expect("it runs below buildah");
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).expect("it runs");
    assert!(status.lines().any(|line| line == "Uid:\t65534\t65534\t65534\t65534"), "{status}");
    world.fill(["user:1", "user:7"]);
    world
        .execute("update users set name = 'bob', updated_at = clock_timestamp() where id = 1")
        .await;
    world.gone(["user:1"]).await;
    assert_eq!(world.left(["user:7"]), ["user:7"]);
    kill_process(pid, Signal::TERM).expect("it runs");
    assert!(daemon.ends().success(), "{:?}", daemon.lines());
}
