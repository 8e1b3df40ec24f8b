//! The unit file of `config/` in a real systemd: when it is active, what the watchdog does, and how
//! it ends.

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use crate::support::machine::{self, Machine};
use crate::support::servers::own_postgres;
use crate::support::wait::{pace, until};
use crate::support::world::World;

/// Long enough for a listener on a busy machine, and short enough for a test. All else is the unit
/// file's.
const DROP_IN: &str = "[Service]\nWatchdogSec=3s\nTimeoutStartSec=2s\n";

#[tokio::test]
async fn systemd_starts_watches_restarts_and_stops_the_unit_as_its_file_says() {
    if let Some(lacking) = machine::lacking() {
        assert!(
            std::env::var("CI").as_deref() != Ok("true"),
            "the unit file was not booted: this host lacks {lacking}"
        );
        // Past the harness, which swallows what a test prints that passes.
        let _ = writeln!(
            std::io::stderr(),
            "NOT TESTED: the unit file was not booted, because this host lacks {lacking}"
        );
        return;
    }
    let mut world = World::on(own_postgres()).await;
    world.users(10).await;
    world.redis.pause();
    let machine = Machine::boot(
        DROP_IN,
        &world.daemon().impatient().without("UNSTALE_LOG__FORMAT").environment_file(),
    )
    .await;

    // It starts, and is active when it is ready and not before.
    machine.systemctl("enable --now --no-block unstale");
    until("it says what it waits for", async || machine.property("StatusText").contains("Redis"))
        .await;
    pace(Duration::from_secs(3)).await; // longer than TimeoutStartSec, because it asks for more
    assert_eq!(machine.property("ActiveState"), "activating");
    world.redis.resume();
    until("it is active", async || machine.property("ActiveState") == "active").await;
    assert_eq!(["LimitCORE", "MemoryMax"].map(|name| machine.property(name)), ["0", "536870912"]);
    fresh_after(
        &mut world,
        "update users set name = 'bob', updated_at = clock_timestamp() where id = 1",
    )
    .await;

    // PostgreSQL goes and comes back: the same process goes on.
    let first = machine.property("MainPID");
    world.own_postgres().restart().expect("it starts again");
    fresh_after(
        &mut world,
        "update users set name = 'eve', updated_at = clock_timestamp() where id = 1",
    )
    .await;
    until("it is ready again", async || machine.property("StatusText") == "ready").await;
    assert_eq!(machine.property("MainPID"), first);
    assert_eq!(machine.property("NRestarts"), "0");

    // The journal has each line as a person reads it, with a priority and fields.
    until("the journal has it", async || {
        let warnings = machine.entries("--output=cat --priority=warning");
        warnings.contains("no session with PostgreSQL reason=") && !warnings.contains("caught up")
    })
    .await;
    until("its fields can be asked for", async || {
        machine.entries("--output=cat UNSTALE_CAUSE=session").contains("a gap is open")
    })
    .await;

    // Frozen, it is killed and started again, and finds what it missed.
    world.fill(["user:2"]);
    machine.systemctl("kill --signal=SIGSTOP unstale");
    world
        .execute("update users set name = 'bob', updated_at = clock_timestamp() where id = 2")
        .await;
    until("it is started again", async || machine.property("NRestarts") != "0").await;
    until("it is active again", async || machine.property("ActiveState") == "active").await;
    world.gone(["user:2"]).await;
    assert!(machine.journal().contains("Watchdog timeout"));
    assert_ne!(machine.property("MainPID"), first);

    // It leaves when it is asked to, by itself.
    machine.systemctl("stop unstale");
    let end = ["ActiveState", "Result", "ExecMainStatus"].map(|name| machine.property(name));
    assert_eq!(end, ["inactive", "success", "0"]);
}

#[test]
fn the_unit_is_exposed_to_little_and_bounded_in_memory() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/config/unstale.service");
    // 12 is 1.2 of 10: what is left are sockets of IP and the host's network, which it needs.
    let judged = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=12", "--no-pager", unit])
        .output();
    match judged {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout))
        }
        Err(error) => {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "the unit file was not judged: systemd-analyze: {error}"
            );
            let _ = writeln!(
                std::io::stderr(),
                "NOT TESTED: the unit file was not judged, because this host lacks systemd-analyze"
            );
        }
    }
    let text = crate::tidy::read("config/unstale.service");
    for line in
        ["MemoryMax=512M", "MemorySwapMax=0", "LimitCORE=0", "PrivateMounts=yes", "PrivateIPC=yes"]
    {
        assert!(text.lines().any(|known| known == line), "{line}");
    }
}

/// The change of user 1 deletes its key.
async fn fresh_after(world: &mut World, sql: &str) {
    world.fill(["user:1", "user:7"]);
    world.execute(sql).await;
    world.gone(["user:1"]).await;
    assert_eq!(world.left(["user:7"]), ["user:7"]);
}
