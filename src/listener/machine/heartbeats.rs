//! The heartbeats of one session: asked for, sent, heard again, acknowledged by Redis.
//!
//! Somebody may wait for one (`unstale wait`, or a listener that may be killed before the next one
//! of routine): then the next is sent at once, and what it proves is stored at once. It proves
//! nothing that the others do not prove anyway. However many wait, one heartbeat is on its way for
//! all of them, and the next one not sooner than [`REST`] after it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::batch::Point;

/// Heartbeats on their way at the most; further ones are not waited for, because a later one proves
/// what they would have.
const MAX_ON_THE_WAY: usize = 1024;

/// Between two heartbeats that somebody waits for: whoever may ask must not make the listener do
/// nothing else.
const REST: Duration = Duration::from_millis(5);

/// See the module.
#[derive(Debug)]
pub(super) struct Heartbeats {
    backend: u32,                              // that sends them
    last: u64,                                 // the number of the last one
    asked: Instant,                            // when that was asked for
    is_sent: bool,                             // has PostgreSQL taken it?
    received: Instant,                         // when the session last brought anything
    fresh: Option<Instant>, // when Redis had last acknowledged one that was asked for after its last failure
    doubted: Option<Instant>, // when Redis last failed
    settled: Option<u64>,   // the last that Redis has acknowledged, to be taken
    sent: VecDeque<(u64, Instant)>, // not heard yet
    barriers: VecDeque<(u64, Instant, Point)>, // heard, not acknowledged yet
    is_wanted: bool,        // somebody has begun to wait since the last was asked for
    awaited: Option<u64>,   // to be stored once it is acknowledged
}

impl Heartbeats {
    pub(super) fn new(backend: u32, now: Instant) -> Self {
        Self {
            backend,
            last: 0,
            asked: now,
            is_sent: true,
            received: now,
            fresh: None,
            doubted: None,
            settled: None,
            sent: VecDeque::new(),
            barriers: VecDeque::new(),
            is_wanted: false,
            awaited: None,
        }
    }

    /// Any role can send one; only our own proves anything. Another instance's is not for us.
    pub(super) fn is_ours(&self, backend: u32, n: u64) -> bool {
        backend == self.backend && n <= self.last
    }

    /// The session has brought something, or nothing because nobody listened.
    pub(super) fn note_received(&mut self, now: Instant) {
        self.received = now;
    }

    /// Somebody waits for what was committed before this.
    pub(super) fn want(&mut self) {
        self.is_wanted = true;
    }

    /// The number of the next one, which serves all who have begun to wait.
    pub(super) fn ask(&mut self, now: Instant) -> u64 {
        self.last += 1;
        self.asked = now;
        self.is_sent = false;
        if self.sent.len() < MAX_ON_THE_WAY {
            self.sent.push_back((self.last, now));
        }
        if std::mem::take(&mut self.is_wanted) {
            self.awaited = Some(self.last);
        }
        self.last
    }

    /// PostgreSQL has taken the last one.
    pub(super) fn note_sent(&mut self) {
        self.is_sent = true;
    }

    /// When the next is to be asked for. Not before PostgreSQL has taken the last.
    pub(super) fn next(&self, interval: Duration) -> Option<Instant> {
        let pause = if self.is_wanted { interval.min(REST) } else { interval };
        self.is_sent.then(|| self.asked + pause)
    }

    /// When PostgreSQL will have left one for too long.
    pub(super) fn unsent(&self, timeout: Duration) -> Option<Instant> {
        (!self.is_sent).then(|| self.asked + timeout)
    }

    /// When the session will have been silent for too long.
    pub(super) fn silent(&self, timeout: Duration) -> Instant {
        self.received + timeout
    }

    /// Number `n` was heard; it proves something once everything up to `point` is acknowledged.
    pub(super) fn came_back(&mut self, n: u64, point: Point) {
        let mut asked = None;
        while let Some((_, at)) = self.sent.pop_front_if(|(sent, _)| *sent <= n) {
            asked = Some(at);
        }
        if let Some(asked) = asked
            && self.barriers.len() < MAX_ON_THE_WAY
        {
            self.barriers.push_back((n, asked, point));
        }
    }

    /// If the next one is acknowledged, when it was asked for.
    pub(super) fn settle(
        &mut self,
        now: Instant,
        is_settled: impl Fn(Point) -> bool,
    ) -> Option<Instant> {
        let (n, asked, _) = self.barriers.pop_front_if(|(.., point)| is_settled(*point))?;
        self.settled = Some(n);
        if self.doubted.is_none_or(|doubted| asked > doubted) {
            self.fresh = Some(now);
        }
        Some(asked)
    }

    /// Redis failed to do something.
    pub(super) fn doubt(&mut self, now: Instant) {
        self.doubted = Some(now);
        self.fresh = None;
    }

    /// Did Redis acknowledge one within this time? Only one that was asked for after its last
    /// failure proves that everything is done that had been received before that.
    pub(super) fn are_fresh(&self, now: Instant, within: Duration) -> bool {
        self.fresh.is_some_and(|at| now.saturating_duration_since(at) <= within)
    }

    /// The last one that was acknowledged since the last call.
    pub(super) fn take_settled(&mut self) -> Option<u64> {
        self.settled.take()
    }

    /// Does somebody wait for what heartbeat `n` proves?
    pub(super) fn is_awaited(&self, n: u64) -> bool {
        self.awaited.is_some_and(|awaited| awaited <= n)
    }

    /// It is stored.
    pub(super) fn note_stored(&mut self) {
        self.awaited = None;
    }

    /// What was heard so far proves nothing: there is a gap before it.
    pub(super) fn forget(&mut self) {
        self.barriers.clear();
        self.settled = None;
    }
}
