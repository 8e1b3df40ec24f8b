//! `unstale demo`: the whole story on throw-away servers, in less than a minute.
//!
//! Owns: when the story begins and ends. Must hold: it needs nothing of the person who runs it but
//! the server programs, touches nothing of theirs, and leaves nothing behind, however it ends. It
//! fails if anything that it promises does not come out.

mod say;
mod stage;
mod story;

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::cli::Demo;
use say::Say;
use stage::Stage;
use story::Story;

/// Tells the story; with `--keep`, leaves the servers running until a signal.
///
/// # Errors
/// When a server program is missing, when anything does not come out as promised, and when
/// interrupted.
pub async fn run(options: &Demo) -> anyhow::Result<()> {
    forget_postgres_variables()?;
    let mut interrupts = Interrupts::listen()?;
    let say = Say::new();
    // A task of its own: some of its steps block, and a signal must be heard meanwhile.
    let mut story = tokio::spawn(tell(say));
    let stage = tokio::select! {
        told = &mut story => told.context("the demo itself failed")??,
        () = interrupts.next() => {
            say.title("Interrupted; cleaning up.");
            story.abort();
            // It ends at its next step, and takes everything down with it. Who cannot wait
            // interrupts once more, and the guards do the rest.
            tokio::select! {
                _ = story => {}
                () = interrupts.next() => {}
            }
            bail!("interrupted");
        }
    };
    if options.keep {
        say.line("It all runs on until Ctrl-C. To look around:");
        stage.addresses().iter().for_each(|address| say.line(&format!("    {address}")));
        interrupts.next().await;
        say.blank();
    }
    drop(stage);
    say.aside("The servers are gone, and so are their files.");
    say.blank();
    Ok(())
}

/// The story, from the first server to the last check; what it was played on is still there.
async fn tell(say: Say) -> anyhow::Result<Stage> {
    let start = Instant::now();
    say.title("unstale: a cache that is never stale");
    let mut stage = Stage::build()?;
    let mut story = Story::begin(&mut stage, say).await?;
    story.one_change().await?;
    story.delete().await?;
    story.key_change().await?;
    story.crash().await?;
    // Last: a restart soon after it would have its hundred thousand rows to sweep again.
    story.bulk_import().await?;
    say.title(&format!(
        "Everything came out as promised, in {:.0} s.",
        start.elapsed().as_secs_f64()
    ));
    Ok(stage)
}

/// Ctrl-C, SIGTERM, and the terminal's closing.
struct Interrupts([Signal; 3]);

impl Interrupts {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("no signals");
        Ok(Self([
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
            listen(SignalKind::hangup())?,
        ]))
    }

    /// Waits for the next of them, including one that came since the last.
    async fn next(&mut self) {
        let [interrupt, terminate, hang_up] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    }
}

/// Starts over without PGOPTIONS, PGSSLMODE and their like, if there are any: sqlx reads them for
/// every connection, and a process cannot take a variable back safely once it has threads.
fn forget_postgres_variables() -> anyhow::Result<()> {
    let theirs = |name: &str| name.starts_with("PG") && name != "PG_BIN_DIR";
    let names: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| theirs(name))
        .collect();
    if names.is_empty() {
        return Ok(());
    }
    let mut again =
        Command::new(std::env::current_exe().context("this program cannot find itself")?);
    again.args(std::env::args_os().skip(1));
    for name in &names {
        again.env_remove(name);
    }
    Err(again.exec()).context("this program cannot start itself again without the PG variables")
}
