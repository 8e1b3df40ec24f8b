//! What systemd hears: ready, stopping, a status line, and that the program still turns.
//!
//! Without `NOTIFY_SOCKET` every call does nothing. A socket that is gone must not stop the
//! listener, so a failed notification is a line in the log and no error. The variables stay set:
//! removing them is unsound in a process with threads, and the only children are the demo's
//! servers, from which systemd would accept nothing (`NotifyAccess=main`).

use std::time::Duration;

use sd_notify::NotifyState;

use crate::observe::{Observation, observe};
use crate::visible;

/// How often to call [`starting`].
pub const START_INTERVAL: Duration = Duration::from_secs(15);

/// The start has succeeded.
pub fn ready() {
    notify(&NotifyState::Ready);
}

/// The start takes as long as it takes, and goes on: call it every [`START_INTERVAL`] until
/// [`ready`]. systemd's watchdog begins only then.
pub fn starting() {
    let until = u32::try_from((START_INTERVAL * 4).as_micros()).unwrap_or(u32::MAX);
    notify(&NotifyState::ExtendTimeoutUsec(until));
}

/// The line that `systemctl status` shows; a line break in it would begin another assignment.
pub fn status(text: &str) {
    notify(&NotifyState::Status(&visible::line(text)));
}

/// The program is leaving on request.
pub fn stopping() {
    notify(&NotifyState::Stopping);
}

/// The program still turns. Call it from the loop that must not hang, every [`watchdog_interval`].
pub fn watchdog() {
    notify(&NotifyState::Watchdog);
}

/// How often to call [`watchdog`]: half of what systemd waits (`WatchdogSec=`), as
/// sd_watchdog_enabled(3) advises. `None` if it does not wait for this process.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|timeout| timeout / 2).filter(|interval| !interval.is_zero())
}

fn notify(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        observe(&Observation::Failed {
            event: "systemd was not notified",
            reason: error.to_string(),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::{Command, Stdio};

    use super::*;

    /// Not a test: the process whose environment has the variables (setting them here would be
    /// unsound).
    #[test]
    #[ignore = "a child process of the other tests"]
    fn child() {
        starting();
        ready();
        status("listening\nREADY=0");
        watchdog();
        stopping();
        let interval = watchdog_interval().map(|interval| interval.as_millis());
        assert_eq!(interval, Some(15_000));
    }

    fn child_with(socket: &str) -> bool {
        Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "systemd::tests::child", "--ignored"])
            .env("NOTIFY_SOCKET", socket)
            .env("WATCHDOG_USEC", "30000000")
            .env_remove("WATCHDOG_PID")
            .stdout(Stdio::null())
            .status()
            .expect("a child")
            .success()
    }

    #[test]
    fn systemd_hears_each_notification_on_a_line_of_its_own() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_nonblocking(true).expect("no waiting");
        assert!(child_with(&path.display().to_string()));

        let mut heard = String::new();
        let mut buffer = [0; 256];
        while let Ok(length) = socket.recv(&mut buffer) {
            heard += std::str::from_utf8(&buffer[..length]).expect("text");
        }
        assert_eq!(
            heard,
            "EXTEND_TIMEOUT_USEC=60000000\nREADY=1\nSTATUS=listening\\nREADY=0\nWATCHDOG=1\nSTOPPING=1\n"
        );
    }

    #[test]
    fn a_socket_that_is_gone_stops_nobody() {
        assert!(child_with("/nowhere/notify"));
    }

    #[test]
    fn without_systemd_nothing_happens() {
        ready();
        assert_eq!(watchdog_interval(), None);
    }
}
