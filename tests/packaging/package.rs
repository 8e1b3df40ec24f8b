//! The Debian package on a machine of its own: installed, configured, run, upgraded, removed and
//! purged.

use std::collections::BTreeSet;

use super::{made, not_tested};
use crate::support::machine::{self, Machine, PACKAGE};
use crate::support::servers::own_postgres;
use crate::support::wait::until;
use crate::support::world::World;

/// Where the package's configuration is.
const CONFIGURATION: [&str; 2] = ["/etc/unstale/unstale.env", "/etc/unstale/unstale.toml"];

#[tokio::test]
#[ignore = "wants a package: ./dev package test"]
async fn it_is_installed_configured_run_upgraded_and_purged_without_a_trace() {
    if let Some(lacking) = machine::lacking() {
        return not_tested("the package was not installed", lacking);
    }
    let mut world = World::on(own_postgres()).await;
    world.users(10).await;
    let machine = Machine::copy(&made("UNSTALE_PACKAGE")).await;
    let dpkg =
        |words: &str| machine.shell(&format!("DEBIAN_FRONTEND=noninteractive dpkg {words} 2>&1"));
    dpkg("--purge unstale"); // one that the host has
    let before = machine.written();

    // To install it enables and starts nothing.
    dpkg(&format!("--install {PACKAGE}"));
    assert_eq!(
        ["ActiveState", "UnitFileState"].map(|name| machine.property(name)),
        ["inactive", "disabled"]
    );
    assert_eq!(
        machine.shell("stat -c '%U %a' /etc/unstale/unstale.env"),
        "root 600",
        "passwords go there"
    );
    assert!(machine.shell("dpkg --verify unstale").is_empty());
    assert!(machine.shell("zcat /usr/share/man/man1/unstale.1.gz").contains(".TH unstale 1"));

    // As docs/getting-started.md has it: the URLs, migrate, then the service.
    let environment = world.daemon().impatient().without("UNSTALE_LOG__FORMAT").environment_file();
    machine.shell(&format!("cat > /etc/unstale/unstale.env <<'END'\n{environment}END"));
    let unstale = |words: &str| {
        machine.shell(&format!("set -a; . /etc/unstale/unstale.env; set +a; unstale {words} 2>&1"))
    };
    unstale("migrate");
    machine.systemctl("enable --now unstale");
    let unit = machine.property("FragmentPath");
    assert!(
        machine.shell("dpkg -L unstale").lines().any(|file| file.ends_with(&unit)),
        "{unit} is not the package's"
    );
    world.fill(["user:1", "user:7"]);
    world
        .execute("update users set name = 'bob', updated_at = clock_timestamp() where id = 1")
        .await;
    world.gone(["user:1"]).await;
    assert_eq!(world.left(["user:7"]), ["user:7"]);
    unstale("check");

    // An upgrade leaves the configuration as it is and the old process running.
    let first = machine.property("MainPID");
    dpkg(&format!("--force-confdef --install {PACKAGE}"));
    assert_eq!(
        ["ActiveState", "MainPID"].map(|name| machine.property(name)),
        ["active", first.as_str()]
    );
    assert!(machine.shell("cat /etc/unstale/unstale.env").contains(&world.redis_url()));

    // Removed, it has ended; the configuration waits for another installation.
    dpkg("--remove unstale");
    until("no service is left", async || machine.property("ActiveState") == "inactive").await;
    let files =
        |machine: &Machine| machine.written().difference(&before).cloned().collect::<BTreeSet<_>>();
    for file in CONFIGURATION {
        assert!(
            files(&machine).contains(file),
            "{file} went with the program: {:?}",
            files(&machine)
        );
    }
    dpkg("--purge unstale");
    assert_eq!(files(&machine), BTreeSet::new(), "purged, something is left");
}
