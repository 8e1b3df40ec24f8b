//! Leaving on request: the first SIGTERM or SIGINT asks, the second one insists.
//!
//! Owns the signals that end the process. The token is an argument of whatever must end; nothing
//! here knows who holds it.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::observe::{Observation, observe};

/// What a shell reports for a process that a signal ended: 128 and its number.
const BY_SIGINT: i32 = 130;
const BY_SIGTERM: i32 = 143;

/// A token that SIGTERM or SIGINT cancels. A second signal exits the process at once, with 143 or
/// 130: whoever sends it does not want to wait, and nothing is lost, because a start recovers from
/// a kill. Signals count from this call on.
///
/// # Errors
///
/// If the operating system refuses the signal handlers.
///
/// # Panics
///
/// Outside of a tokio runtime.
pub fn on_signals() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        next(&mut terminate, &mut interrupt).await;
        observe(&Observation::StopAsked);
        cancelled.cancel();
        let code = next(&mut terminate, &mut interrupt).await;
        std::process::exit(code);
    });
    Ok(token)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> i32 {
    tokio::select! {
        _ = terminate.recv() => BY_SIGTERM,
        _ = interrupt.recv() => BY_SIGINT,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Not a test: the process that the tests below send signals to.
    #[tokio::test]
    #[ignore = "a child process of the other tests"]
    async fn child() {
        let token = on_signals().expect("signal handlers");
        eprintln!("waiting");
        token.cancelled().await;
        eprintln!("cancelled");
        std::future::pending::<()>().await;
    }

    fn kill(child: &Child, signal: &str) {
        let id = child.id().to_string();
        let status = Command::new("kill").args([signal, &id]).status();
        assert!(status.expect("kill").success());
    }

    fn exit_code_after(first: &str, second: &str) -> Option<i32> {
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args(["--exact", "shutdown::tests::child", "--ignored", "--nocapture"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a child");
        let mut lines = BufReader::new(child.stderr.take().expect("stderr")).lines();
        let mut wait_for = |line: &str| {
            let found = lines.by_ref().map_while(Result::ok).any(|found| found == line);
            assert!(found, "the child ended without saying {line}");
        };
        wait_for("waiting");
        kill(&child, first);
        wait_for("cancelled");
        kill(&child, second);
        child.wait().expect("the child").code()
    }

    #[test]
    fn the_first_signal_cancels_and_the_second_exits_with_its_code() {
        assert_eq!(exit_code_after("-TERM", "-INT"), Some(130));
        assert_eq!(exit_code_after("-INT", "-TERM"), Some(143));
    }
}
