//! The listener's sample: some keys are looked at again a while after they were deleted, and counted as fresh or stale.
//!
//! In a task and on connections of its own, so that a deletion never waits for it. Bounded: what does not fit is not looked at, and not
//! counted. A mismatch is looked at once more before it counts, as in `unstale audit`; what changes all the time is not counted either.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval, sleep};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::command::audit::look::{self, Candidate, Difference, Look, Outcome, Subject};
use crate::config;
use crate::listener::board::Board;
use crate::listener::driver::Dependencies;
use crate::listener::sampler::Sampler;
use crate::observe::metrics;
use crate::pg::audit::Reader;
use crate::sink::Sink;

/// Keys between the driver and this task.
const CHANNEL: usize = 1_000;

/// Keys that wait for a look, and their bytes.
const MOST_WAITING: (usize, usize) = (50_000, 4 << 20);

/// Keys that are looked at together.
const BATCH: usize = 500;

/// Before a mismatch is looked at again: longer than a change takes to be deleted.
const GRACE: Duration = Duration::from_millis(500);

/// How often a mismatch is looked at whose sides change all the time.
const LOOKS: u32 = 4;

/// How often it is looked what is due, and how often the watches are read.
const TICK: Duration = Duration::from_millis(50);
const REREAD: Duration = Duration::from_secs(30);

/// After a failure of either server.
const PAUSE: Duration = Duration::from_secs(1);

/// A key that waits.
struct Waiting {
    due: Instant,
    after: usize,
    key: String,
}

/// A mismatch that waits for its second look.
struct Suspect {
    due: Instant,
    after: usize,
    candidate: Candidate,
    difference: Box<Difference>,
    looks: u32,
}

/// See the module.
struct Sample {
    parts: watch::Receiver<Dependencies>,
    board: Arc<Board>,
    after: Vec<(Duration, String)>,
    waiting: Vec<VecDeque<Waiting>>, // for each delay, in order
    bytes: usize,
    suspects: VecDeque<Suspect>,
    open: Option<(Look, Vec<Subject>, Instant)>,
}

/// Begins the task, if a sample is wanted. The driver offers keys to what this returns.
pub(super) fn begin(
    audit: &config::Audit,
    parts: watch::Receiver<Dependencies>,
    board: Arc<Board>,
    shutdown: CancellationToken,
) -> Option<Sampler> {
    if audit.sample <= 0.0 || audit.after.is_empty() {
        return None;
    }
    let (offered, keys) = mpsc::channel(CHANNEL);
    let after: Vec<_> = audit.after.iter().map(|after| (*after, humantime::format_duration(*after).to_string())).collect();
    let waiting = after.iter().map(|_| VecDeque::new()).collect();
    let sample = Sample { parts, board, after, waiting, bytes: 0, suspects: VecDeque::new(), open: None };
    tokio::spawn(async move { shutdown.run_until_cancelled(Box::pin(sample.run(keys))).await });
    Some(Sampler::new(audit.sample, offered))
}

impl Sample {
    async fn run(mut self, mut keys: mpsc::Receiver<String>) {
        let mut tick = interval(TICK);
        loop {
            tokio::select! {
                key = keys.recv() => match key {
                    Some(key) => self.wait_for(&key),
                    None => return,
                },
                _ = tick.tick() => {
                    if let Err(error) = self.look_at_what_is_due().await {
                        debug!(reason = format!("{error:#}"), "the sample could not be looked at");
                        self.open = None;
                        sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    fn wait_for(&mut self, key: &str) {
        let now = Instant::now();
        for (after, ((delay, _), waiting)) in self.after.iter().zip(&mut self.waiting).enumerate() {
            if waiting.len() < MOST_WAITING.0 && self.bytes < MOST_WAITING.1 {
                self.bytes += key.len();
                waiting.push_back(Waiting { due: now + *delay, after, key: key.to_owned() });
            }
        }
    }

    async fn look_at_what_is_due(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let mut due = Vec::new();
        for waiting in &mut self.waiting {
            while due.len() < BATCH
                && let Some(next) = waiting.pop_front_if(|next| next.due <= now)
            {
                self.bytes -= next.key.len();
                due.push(next);
            }
        }
        let mut suspects = Vec::new();
        while suspects.len() < BATCH
            && let Some(suspect) = self.suspects.pop_front_if(|suspect| suspect.due <= now)
        {
            suspects.push(suspect);
        }
        if due.is_empty() && suspects.is_empty() {
            return Ok(());
        }
        let (mut look, subjects, read) = match self.open.take().filter(|(_, _, read)| read.elapsed() < REREAD) {
            Some(open) => open,
            None => {
                // These may be other watches, in another order.
                self.suspects.clear();
                suspects.clear();
                open(&self.parts).await?
            }
        };
        self.first(&mut look, &subjects, due).await?;
        self.second(&mut look, &subjects, suspects).await?;
        self.open = Some((look, subjects, read));
        Ok(())
    }

    async fn first(&mut self, look: &mut Look, subjects: &[Subject], due: Vec<Waiting>) -> anyhow::Result<()> {
        let (mut candidates, mut afters) = (Vec::new(), Vec::new());
        for Waiting { after, key, .. } in due {
            let can = |subject: &Subject| subject.unauditable.is_none();
            let found = subjects.iter().enumerate().filter(|(_, subject)| can(subject)).find_map(|(n, subject)| subject.candidate(n, &key));
            if let Some(candidate) = found {
                candidates.push(candidate);
                afters.push(after);
            }
        }
        let outcomes = look.at(subjects, &candidates).await?;
        for ((candidate, outcome), after) in candidates.into_iter().zip(outcomes).zip(afters) {
            match outcome {
                Outcome::Absent | Outcome::Same => self.count(&subjects[candidate.subject], after, false),
                Outcome::Unreadable => {}
                Outcome::Differs(difference) if self.suspects.len() < MOST_WAITING.0 => {
                    self.suspects.push_back(Suspect { due: Instant::now() + GRACE, after, candidate, difference, looks: 1 });
                }
                Outcome::Differs(_) => {}
            }
        }
        Ok(())
    }

    async fn second(&mut self, look: &mut Look, subjects: &[Subject], suspects: Vec<Suspect>) -> anyhow::Result<()> {
        let candidates: Vec<Candidate> = suspects.iter().map(|suspect| suspect.candidate.clone()).collect();
        let outcomes = look.at(subjects, &candidates).await?;
        for (suspect, outcome) in suspects.into_iter().zip(outcomes) {
            let subject = &subjects[suspect.candidate.subject];
            match (look::is_stale(&suspect.difference, &outcome), outcome) {
                (Some(is_stale), _) => self.count(subject, suspect.after, is_stale),
                (None, Outcome::Differs(difference)) if suspect.looks < LOOKS => {
                    self.suspects.push_back(Suspect { due: Instant::now() + GRACE, difference, looks: suspect.looks + 1, ..suspect });
                }
                (None, _) => {}
            }
        }
        Ok(())
    }

    fn count(&self, subject: &Subject, after: usize, is_stale: bool) {
        metrics::audited(&subject.table, &self.after[after].1, is_stale);
        self.board.audited(subject.watch, 1, u64::from(is_stale));
    }
}

async fn open(parts: &watch::Receiver<Dependencies>) -> anyhow::Result<(Look, Vec<Subject>, Instant)> {
    let (postgres, sink): (_, Arc<Sink>) = {
        let parts = parts.borrow();
        (parts.postgres.clone(), parts.audited.clone())
    };
    let mut reader = Reader::open(postgres).await?;
    let subjects = look::subjects(&mut reader, &[]).await?;
    Ok((Look::new(reader, sink), subjects, Instant::now()))
}
