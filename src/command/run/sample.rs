//! The listener's sample: some keys are looked at again a while after they were deleted, and
//! counted as fresh or stale.
//!
//! In a task and on connections of its own, so that a deletion never waits for it. Bounded: what
//! does not fit is not looked at, and not counted. A mismatch is looked at once more before it
//! counts, as in `unstale audit`; what changes all the time is not counted either. A reload changes
//! the share and the delays; while no sample is wanted, it has neither a connection nor anything
//! that waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::command::audit::look::{self, Candidate, Difference, Look, Outcome, Subject};
use crate::listener::board::Board;
use crate::listener::driver::Dependencies;
use crate::listener::sampler::Sampler;
use crate::observe::{Observation, metrics, observe};
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

/// How long the rows of a batch may take: the code of one table's owner keeps the keys of all
/// others waiting for so long.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How often it is looked what is due, and how often the watches are read.
const TICK: Duration = Duration::from_millis(50);
const REREAD: Duration = Duration::from_secs(30);

/// After a failure of either server.
const PAUSE: Duration = Duration::from_secs(1);

/// A key that waits.
struct Waiting {
    due: Instant,
    key: String,
}

/// What waits for looks so long after it was deleted, in order.
struct Delay {
    after: Duration,
    label: Arc<str>, // of the metrics
    waiting: VecDeque<Waiting>,
}

/// A mismatch that waits for its second look.
struct Suspect {
    due: Instant,
    label: Arc<str>,
    candidate: Candidate,
    difference: Box<Difference>,
    looks: u32,
}

/// See the module.
struct Sample {
    parts: watch::Receiver<Dependencies>,
    board: Arc<Board>,
    delays: Vec<Delay>, // none: nothing is wanted
    bytes: usize,       // of what waits
    suspects: VecDeque<Suspect>,
    open: Option<(Look, Vec<Subject>, Instant)>,
}

/// Begins the task, which waits if no sample is wanted. The driver offers keys to what this
/// returns.
pub(super) fn begin(
    parts: watch::Receiver<Dependencies>,
    board: Arc<Board>,
    shutdown: CancellationToken,
) -> Sampler {
    let (offered, keys) = mpsc::channel(CHANNEL);
    let sampler = Sampler::new(&parts.borrow().sampling, offered);
    let mut sample = Sample {
        parts,
        board,
        delays: Vec::new(),
        bytes: 0,
        suspects: VecDeque::new(),
        open: None,
    };
    sample.reconfigure();
    tokio::spawn(async move { shutdown.run_until_cancelled(Box::pin(sample.run(keys))).await });
    sampler
}

impl Sample {
    async fn run(mut self, mut keys: mpsc::Receiver<String>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                key = keys.recv() => match key {
                    Some(key) => self.wait_for(&key),
                    None => return,
                },
                Ok(()) = self.parts.changed() => self.reconfigure(),
                _ = tick.tick(), if !self.delays.is_empty() => {
                    if let Err(error) = self.look_at_what_is_due().await {
                        observe(&Observation::Failed { event: "the sample could not be looked at", reason: format!("{error:#}") });
                        self.open = None;
                        sleep(PAUSE).await;
                    }
                }
            }
        }
    }

    /// Takes over the delays, and which servers are asked. What waits for a delay that stays goes
    /// on waiting.
    fn reconfigure(&mut self) {
        let sampling = self.parts.borrow_and_update().sampling.clone();
        let mut before = std::mem::take(&mut self.delays);
        for after in sampling.after.iter().copied().filter(|_| sampling.is_wanted()) {
            let same = before.iter().position(|delay| delay.after == after);
            let new = || Delay {
                after,
                label: humantime::format_duration(after).to_string().into(),
                waiting: VecDeque::new(),
            };
            self.delays.push(same.map_or_else(new, |at| before.swap_remove(at)));
        }
        self.bytes = self
            .delays
            .iter()
            .flat_map(|delay| &delay.waiting)
            .map(|waiting| waiting.key.len())
            .sum();
        self.open = None;
        if self.delays.is_empty() {
            self.suspects.clear();
        }
    }

    fn wait_for(&mut self, key: &str) {
        let now = Instant::now();
        for delay in &mut self.delays {
            if delay.waiting.len() < MOST_WAITING.0 && self.bytes < MOST_WAITING.1 {
                self.bytes += key.len();
                delay.waiting.push_back(Waiting { due: now + delay.after, key: key.to_owned() });
            }
        }
    }

    async fn look_at_what_is_due(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let mut due = Vec::new();
        for Delay { label, waiting, .. } in &mut self.delays {
            while due.len() < BATCH
                && let Some(next) = waiting.pop_front_if(|next| next.due <= now)
            {
                self.bytes -= next.key.len();
                due.push((label.clone(), next.key));
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
        let (mut look, subjects, read) =
            match self.open.take().filter(|(_, _, read)| read.elapsed() < REREAD) {
                Some(open) => open,
                None => {
                    let open = open(&self.parts).await?;
                    // These may be other watches, in another order.
                    let again = |suspect: Suspect| {
                        Some(Suspect {
                            candidate: candidate(&open.1, &suspect.candidate.key)?,
                            ..suspect
                        })
                    };
                    self.suspects = self.suspects.drain(..).filter_map(again).collect();
                    suspects = suspects.into_iter().filter_map(again).collect();
                    open
                }
            };
        self.first(&mut look, &subjects, due).await?;
        self.second(&mut look, &subjects, suspects).await?;
        self.open = Some((look, subjects, read));
        Ok(())
    }

    async fn first(
        &mut self,
        look: &mut Look,
        subjects: &[Subject],
        due: Vec<(Arc<str>, String)>,
    ) -> anyhow::Result<()> {
        let found =
            due.into_iter().filter_map(|(label, key)| Some((candidate(subjects, &key)?, label)));
        let (candidates, labels): (Vec<_>, Vec<_>) = found.unzip();
        let outcomes = look.at(subjects, &candidates).await?;
        for ((candidate, outcome), label) in candidates.into_iter().zip(outcomes).zip(labels) {
            match outcome {
                Outcome::Absent | Outcome::Same => {
                    self.count(&subjects[candidate.subject], &label, false)
                }
                Outcome::Unreadable => {}
                Outcome::Differs(difference) if self.suspects.len() < MOST_WAITING.0 => {
                    self.suspects.push_back(Suspect {
                        due: Instant::now() + GRACE,
                        label,
                        candidate,
                        difference,
                        looks: 1,
                    });
                }
                Outcome::Differs(_) => {}
            }
        }
        Ok(())
    }

    async fn second(
        &mut self,
        look: &mut Look,
        subjects: &[Subject],
        suspects: Vec<Suspect>,
    ) -> anyhow::Result<()> {
        let candidates: Vec<Candidate> =
            suspects.iter().map(|suspect| suspect.candidate.clone()).collect();
        let outcomes = look.at(subjects, &candidates).await?;
        for (suspect, outcome) in suspects.into_iter().zip(outcomes) {
            let subject = &subjects[suspect.candidate.subject];
            match (look::is_stale(&suspect.difference, &outcome), outcome) {
                (Some(is_stale), _) => self.count(subject, &suspect.label, is_stale),
                (None, Outcome::Differs(difference)) if suspect.looks < LOOKS => {
                    self.suspects.push_back(Suspect {
                        due: Instant::now() + GRACE,
                        difference,
                        looks: suspect.looks + 1,
                        ..suspect
                    });
                }
                (None, _) => {}
            }
        }
        Ok(())
    }

    fn count(&self, subject: &Subject, label: &str, is_stale: bool) {
        metrics::audited(&subject.table, label, is_stale);
        self.board.audited(subject.watch, 1, u64::from(is_stale));
    }
}

/// Whose key it is, of the watches that can be audited.
fn candidate(subjects: &[Subject], key: &str) -> Option<Candidate> {
    let mut auditable =
        subjects.iter().enumerate().filter(|(_, subject)| subject.unauditable.is_none());
    auditable.find_map(|(n, subject)| subject.candidate(n, key))
}

async fn open(
    parts: &watch::Receiver<Dependencies>,
) -> anyhow::Result<(Look, Vec<Subject>, Instant)> {
    let (postgres, sink): (_, Arc<Sink>) = {
        let parts = parts.borrow();
        (parts.postgres.clone(), parts.audited.clone())
    };
    let mut reader = Reader::open(postgres, TIMEOUT).await?;
    let subjects = look::subjects(&mut reader, &[]).await?;
    Ok((Look::new(reader, sink), subjects, Instant::now()))
}
