//! Who deletes: tasks that perform one command after the other, each repeated until it is done.
//!
//! UNLINK may be repeated (P6). The tasks are kept, because each has 15 kB: one for each command
//! left a hole of that size in the heap for each.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Done, Sink};
use crate::backoff::Backoff;
use crate::batch::Command;

/// Delays between attempts. Short, because a restarted Redis is back in a moment.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What becomes of a command.
#[derive(Debug)]
pub enum Report {
    /// It is done.
    Done {
        /// The command.
        id: u64,
        /// What it brought.
        done: Done,
    },
    /// It failed, and will be repeated.
    Failed {
        /// The command.
        id: u64,
        /// Why, for people.
        reason: String,
    },
}

/// How to hand a command to a task that waits for one.
type Worker = mpsc::Sender<Command>;

/// See the module. Dropping it ends them.
pub struct Workers {
    sink: Arc<dyn Fn() -> Arc<Sink> + Send + Sync>,
    tasks: JoinSet<()>,
    idle: Vec<Worker>,
    report: mpsc::Sender<(Report, Option<Worker>)>,
    reports: mpsc::Receiver<(Report, Option<Worker>)>,
}

impl Workers {
    /// None yet. Each attempt asks for the sink, which may be another one by then.
    pub fn new(sink: impl Fn() -> Arc<Sink> + Send + Sync + 'static) -> Self {
        let (report, reports) = mpsc::channel(64);
        Self { sink: Arc::new(sink), tasks: JoinSet::new(), idle: Vec::new(), report, reports }
    }

    /// Begins a command. How many are under way is the caller's business.
    pub fn begin(&mut self, command: Command) {
        let worker = self.idle.pop().unwrap_or_else(|| {
            let (worker, commands) = mpsc::channel(1);
            self.tasks.spawn(perform(
                self.sink.clone(),
                commands,
                worker.clone(),
                self.report.clone(),
            ));
            worker
        });
        let _ = worker.try_send(command); // it waits for one, so there is room
    }

    /// The next report. May be abandoned and called again.
    pub async fn next(&mut self) -> Report {
        match self.reports.recv().await {
            Some((report, worker)) => {
                self.idle.extend(worker);
                report
            }
            None => std::future::pending().await, // we hold a sender ourselves
        }
    }
}

async fn perform(
    sink: Arc<dyn Fn() -> Arc<Sink> + Send + Sync>,
    mut commands: mpsc::Receiver<Command>,
    worker: Worker,
    report: mpsc::Sender<(Report, Option<Worker>)>,
) {
    while let Some(Command { id, deletions }) = commands.recv().await {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1, id);
        let done = loop {
            let sink = sink();
            match sink.perform(&deletions).await {
                Ok(done) => break done,
                Err(error) => {
                    let _ =
                        report.send((Report::Failed { id, reason: error.to_string() }, None)).await;
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        };
        let _ = report.send((Report::Done { id, done }, Some(worker.clone()))).await;
    }
}
