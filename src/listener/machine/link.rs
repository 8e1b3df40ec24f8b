//! The link to Redis: who answers, what fails, and what may have to be done again.
//!
//! Must hold: as long as a command fails, Redis is not said to be well, whatever else it does; and what was deleted within
//! `replay.window` is remembered by the number of its mark, as far as it fits.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::batch::{Limits, Work};
use crate::mark::{Answer, Kept, Last, RedisMark};
use crate::rule::Target;

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    last: Last,
    newest: u64,             // the largest number that was done
    connection: Option<u64>, // the newest that answered
    kept: u64,               // up to this number it knew of what was done before
    failing: BTreeSet<u64>,  // commands
    failure: Option<String>,
    is_silent: bool, // nothing was done since the last failure
    answered: Instant,
    recent: Recent,
}

/// What was deleted lately.
#[derive(Debug, Default)]
struct Recent {
    works: VecDeque<Done>,
    keys: usize,
    bytes: usize,
    forgotten: u64,   // the largest number that is not in it any more
    is_partial: bool, // something younger than the window did not fit
}

#[derive(Debug)]
struct Done {
    at: Instant,
    number: u64,
    work: Work,
}

impl Link {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            last: Last::Nothing,
            newest: 0,
            connection: None,
            kept: 0,
            failing: BTreeSet::new(),
            failure: None,
            is_silent: false,
            answered: now,
            recent: Recent::default(),
        }
    }

    /// Something was deleted before this process began, and its mark was stored.
    pub(super) fn resume(&mut self, stored: Option<&str>) {
        if self.last == Last::Nothing {
            self.last = Last::read(stored);
        }
    }

    /// The mark up to which everything that was deleted is proven to be.
    pub(super) fn stored(&self) -> Option<String> {
        self.last.stored()
    }

    /// Redis has done a command. Returns what a new connection tells about what was done before, and whether all is well again.
    pub(super) fn done(&mut self, now: Instant, id: u64, answer: &Answer) -> (Kept, bool) {
        self.answered = now;
        self.is_silent = false;
        let kept = self.kept(answer);
        // A mark covers all smaller numbers, whichever answer comes first.
        if answer.mark.number > self.newest {
            self.newest = answer.mark.number;
            self.last = if answer.is_marked { Last::Mark(answer.mark.clone()) } else { Last::Unmarked };
        }
        self.failing.remove(&id);
        let recovered = self.failing.is_empty() && self.failure.take().is_some();
        (kept, recovered)
    }

    fn kept(&mut self, answer: &Answer) -> Kept {
        let RedisMark { connection, number, .. } = answer.mark;
        if self.connection == Some(connection) {
            return Kept::All;
        }
        if self.connection.is_some_and(|newest| connection < newest) {
            // An answer that was on its way when its connection ended: does the server of the next one know of it?
            return if number <= self.kept { Kept::All } else { Kept::UpTo(number - 1) };
        }
        self.connection = Some(connection);
        let kept = self.last.kept(answer);
        self.kept = if let Kept::UpTo(number) = kept { number } else { 0 };
        match kept {
            Kept::UpTo(number) if self.newest <= number => Kept::All,
            Kept::UpTo(number) if number < self.recent.forgotten => Kept::Unknown,
            kept => kept,
        }
    }

    /// A command failed, and will be repeated. Is it the first?
    pub(super) fn failed(&mut self, id: u64, reason: String) -> bool {
        self.failing.insert(id);
        self.is_silent = true;
        self.failure.replace(reason).is_none()
    }

    /// Nothing has been done for too long.
    pub(super) fn is_away(&mut self) {
        self.is_silent = true;
        self.failure.get_or_insert_with(|| "no answer".into());
    }

    /// Why it is not well.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// Has it done nothing since its last failure?
    pub(super) fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// When it last did something.
    pub(super) fn answered(&self) -> Instant {
        self.answered
    }

    /// Keeps what was done, within the window and the bounds of the batch; as it is while it is `needed`, if that fits.
    pub(super) fn remember(&mut self, now: Instant, number: u64, work: Work, limits: Limits, window: Duration, needed: bool) {
        let Recent { works, keys, bytes, forgotten, is_partial } = &mut self.recent;
        *keys += work.targets();
        *bytes += work.bytes();
        works.push_back(Done { at: now, number, work });
        let fits = |keys, bytes| keys <= limits.max_pending && bytes <= limits.max_bytes();
        if needed && fits(*keys, *bytes) {
            return;
        }
        while let Some(oldest) = works.front() {
            let is_old = oldest.at + window < now;
            if !is_old && fits(*keys, *bytes) {
                break;
            }
            *is_partial = !is_old;
            *keys -= oldest.work.targets();
            *bytes -= oldest.work.bytes();
            *forgotten = oldest.number.max(*forgotten);
            works.pop_front();
        }
    }

    /// What was deleted after this number; `None`: not all of it is remembered.
    pub(super) fn since(&self, number: u64) -> Option<Vec<Target>> {
        (self.recent.forgotten <= number).then(|| self.targets(number))
    }

    /// What is remembered of the last `replay.window`.
    pub(super) fn recent(&self) -> Vec<Target> {
        self.targets(0)
    }

    fn targets(&self, after: u64) -> Vec<Target> {
        let works = self.recent.works.iter().filter(|done| done.number > after);
        let targets = works.flat_map(|done| match &done.work {
            Work::Keys(keys) => keys.iter().cloned().map(Target::Key).collect::<Vec<_>>(),
            Work::Patterns(patterns) => patterns.iter().cloned().map(Target::Pattern).collect(),
        });
        targets.collect()
    }

    /// How many keys are remembered, and whether there were more.
    pub(super) fn remembered(&self) -> (usize, bool) {
        (self.recent.keys, self.recent.is_partial)
    }
}
