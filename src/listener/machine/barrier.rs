//! Somebody waits (`unstale wait`): the next heartbeat is sent at once, and what it proves is stored at once.
//!
//! Proves nothing that the heartbeats do not prove anyway. However many wait, one heartbeat is on its way for all of them, and the
//! next one not sooner than [`REST`] after it.

use std::time::{Duration, Instant};

use super::{Action, Machine};

/// Between two heartbeats that are asked for: whoever may ask must not make the listener do nothing else.
const REST: Duration = Duration::from_millis(5);

/// Who waits.
#[derive(Debug, Default)]
pub(super) struct Barrier {
    /// Somebody has asked since the last heartbeat was asked for.
    wanted: bool,
    /// The heartbeat that is to be stored once it is acknowledged.
    awaited: Option<u64>,
}

impl Machine {
    /// Somebody waits for what was committed before this.
    pub(super) fn is_awaited(&mut self) {
        self.barrier.wanted = true;
    }

    /// When the next heartbeat is due because of it. Not before the last is answered.
    pub(super) fn hurry_due(&self) -> Option<Instant> {
        (self.barrier.wanted && self.heart.answered).then(|| self.heart.asked + REST)
    }

    /// Sends it. Every heartbeat does for those who had asked before it.
    pub(super) fn hurry(&mut self, now: Instant) {
        if self.hurry_due().is_some_and(|due| now >= due) {
            self.beat(now);
        }
    }

    /// Heartbeat `n` was asked for.
    pub(super) fn beat_serves(&mut self, n: u64) {
        if std::mem::take(&mut self.barrier.wanted) {
            self.barrier.awaited = Some(n);
        }
    }

    /// Everything before heartbeat `n` is proven.
    pub(super) fn beat_is_proven(&mut self, n: u64) {
        if self.barrier.awaited.is_some_and(|awaited| awaited <= n)
            && let Some(progress) = self.progress()
        {
            self.barrier.awaited = None;
            self.actions.push(Action::Keep(progress));
        }
    }
}
