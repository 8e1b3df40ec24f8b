//! The heartbeats of one session: asked for, sent, heard again, acknowledged by Redis.

use std::collections::VecDeque;
use std::time::Instant;

use crate::batch::Mark;

/// Heartbeats on their way at the most; further ones are not waited for, because a later one proves what they would have.
const MAX_ON_THE_WAY: usize = 1024;

/// See the module.
#[derive(Debug)]
pub(super) struct Heart {
    /// The backend that sends them.
    pub(super) backend: u32,
    /// The number of the last one.
    pub(super) last: u64,
    /// When it was asked for.
    pub(super) asked: Instant,
    /// Has PostgreSQL taken it?
    pub(super) answered: bool,
    /// When the session last received anything.
    pub(super) heard: Instant,
    /// When Redis had last acknowledged one that was asked for after its last failure: only then is everything done that had been
    /// received before that.
    pub(super) settled_at: Option<Instant>,
    doubted: Option<Instant>,
    settled: Option<u64>,                     // the last that Redis has acknowledged, to be taken
    sent: VecDeque<(u64, Instant)>,           // not heard yet
    barriers: VecDeque<(u64, Instant, Mark)>, // heard, not acknowledged yet
}

impl Heart {
    pub(super) fn new(backend: u32, now: Instant) -> Self {
        Self {
            backend,
            last: 0,
            asked: now,
            answered: true,
            heard: now,
            settled_at: None,
            doubted: None,
            settled: None,
            sent: VecDeque::new(),
            barriers: VecDeque::new(),
        }
    }

    /// The number of the next one.
    pub(super) fn ask(&mut self, now: Instant) -> u64 {
        self.last += 1;
        self.asked = now;
        self.answered = false;
        if self.sent.len() < MAX_ON_THE_WAY {
            self.sent.push_back((self.last, now));
        }
        self.last
    }

    /// Number `n` was heard; it proves something once everything up to `mark` is acknowledged.
    pub(super) fn came_back(&mut self, n: u64, mark: Mark) {
        let mut asked = None;
        while let Some((_, at)) = self.sent.pop_front_if(|(sent, _)| *sent <= n) {
            asked = Some(at);
        }
        if let Some(asked) = asked
            && self.barriers.len() < MAX_ON_THE_WAY
        {
            self.barriers.push_back((n, asked, mark));
        }
    }

    /// If the next one is acknowledged, when it was asked for.
    pub(super) fn settle(&mut self, now: Instant, is_settled: impl Fn(Mark) -> bool) -> Option<Instant> {
        let (n, asked, _) = self.barriers.pop_front_if(|(.., mark)| is_settled(*mark))?;
        self.settled = Some(n);
        if self.doubted.is_none_or(|doubted| asked > doubted) {
            self.settled_at = Some(now);
        }
        Some(asked)
    }

    /// Redis failed to do something.
    pub(super) fn doubt(&mut self, now: Instant) {
        self.doubted = Some(now);
        self.settled_at = None;
    }

    /// The last one that was acknowledged since the last call.
    pub(super) fn take_settled(&mut self) -> Option<u64> {
        self.settled.take()
    }

    /// What was heard so far proves nothing: there is a gap before it.
    pub(super) fn forget(&mut self) {
        self.barriers.clear();
        self.settled = None;
    }
}
