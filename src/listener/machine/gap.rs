//! An open gap: where catching up begins, how far it is, and what a server may have undone.
//!
//! Must hold: what a gap demands only ever grows until it is closed. A gap in a gap is one gap.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::Point;
use crate::deletion::Deletion;
use crate::messages::{Cause, GapSummary};
use crate::observe::Observation;
use crate::status::OpenGap;
use crate::watermark::{Checkpoint, LogRead, PgTime, Proven, Snapshot};

use super::link::Link;

/// How often a long sweep reports how far it is.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// Where catching up begins, from the cheapest to the surest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Resume {
    /// Nothing was missed: what Redis has undone is known, and deleted again. As long as the
    /// session lasts.
    Nothing,
    /// At the checkpoint.
    Checkpoint,
    /// At the checkpoint of `replay.window` ago: Redis may have undone the deletes since.
    Replay,
    /// The same with the whole log: after a fail-over of PostgreSQL lost transactions' xids are
    /// given out again.
    ReplayAndLog,
    /// Nowhere: every key is deleted.
    Everything,
}

/// How to catch up.
#[derive(Debug, PartialEq)]
pub(super) enum Plan {
    /// Nothing is to be read.
    Nothing,
    /// All keys of all watches are deleted.
    Everything,
    /// Tables and log are read.
    Sweep {
        /// What is proven.
        checkpoint: Option<Checkpoint>,
        /// Watches that an unfinished sweep has brought up to this stamp.
        done: HashMap<i32, PgTime>,
        /// What of the log it has brought.
        log: Option<LogRead>,
    },
}

/// See the module.
#[derive(Debug)]
pub(super) struct Gap {
    cause: Cause,
    since: Instant,
    resume: Resume,
    again: bool, // PostgreSQL may have undone the commits that keys were deleted for lately
    repeat: BTreeMap<Arc<str>, u64>, // what a primary deleted after this number it may have undone
    swept: u64,
    logged: u64,
    keys: u64,
    pages: VecDeque<(i32, PgTime, Point)>, // brought by this session's sweep, not acknowledged yet
    swept_through: HashMap<i32, PgTime>,   // acknowledged pages of this session's sweep
    done: HashMap<i32, PgTime>,            // what need not be swept again if the session is lost
    log_pages: VecDeque<(LogRead, Point)>, // of the log, brought and not acknowledged yet
    log: Option<LogRead>,                  // what of it need not be read again
    reported: Instant,
}

impl Gap {
    pub(super) fn new(cause: Cause, since: Instant) -> Self {
        Self {
            cause,
            since,
            resume: Resume::Checkpoint,
            again: false,
            repeat: BTreeMap::new(),
            swept: 0,
            logged: 0,
            keys: 0,
            pages: VecDeque::new(),
            swept_through: HashMap::new(),
            done: HashMap::new(),
            log_pages: VecDeque::new(),
            log: None,
            reported: since,
        }
    }

    /// Why it opened.
    pub(super) fn cause(&self) -> Cause {
        self.cause
    }

    /// For how long it has been open.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// It is more than it seemed. What the sweep has done so far proves nothing: what was received
    /// meanwhile was dropped, or undone.
    pub(super) fn demand(&mut self, resume: Resume, again: bool) {
        self.resume = self.resume.max(resume);
        self.again |= again;
        self.forget_pages();
    }

    /// What a primary deleted after this number it has undone, and it is remembered. `is_all`:
    /// there is no other reason for this gap.
    pub(super) fn redis_undid(&mut self, tag: &Arc<str>, number: u64, is_all: bool) {
        let known = self.repeat.entry(tag.clone()).or_insert(number);
        *known = number.min(*known);
        if is_all {
            self.resume = Resume::Nothing;
        }
        self.forget_pages();
    }

    /// Is every key to be deleted?
    pub(super) fn is_everything(&self) -> bool {
        self.resume == Resume::Everything
    }

    /// Does what was proven before it still hold? Not once a server may have undone something.
    pub(super) fn keeps_what_was_proven(&self) -> bool {
        self.resume <= Resume::Checkpoint && !self.again && self.repeat.is_empty()
    }

    /// Is what was deleted lately still needed, beyond its bounds?
    pub(super) fn needs_what_was_deleted(&self) -> bool {
        self.again || !self.repeat.is_empty()
    }

    /// What may be undone, and is remembered.
    pub(super) fn undone(&mut self, link: &Link) -> Vec<Deletion> {
        let mut deletions = if self.again { link.recent() } else { Vec::new() };
        for (tag, number) in &self.repeat {
            match link.since(tag, *number) {
                Some(undone) => deletions.extend(undone),
                None => self.resume = self.resume.max(Resume::Replay), // meanwhile it did not fit any more
            }
        }
        deletions
    }

    /// How to catch up from what is proven.
    pub(super) fn plan(&self, proven: Proven) -> Plan {
        let checkpoint = match self.resume {
            Resume::Nothing => return Plan::Nothing,
            Resume::Everything => return Plan::Everything,
            Resume::Checkpoint => proven.checkpoint,
            Resume::Replay => proven.replay,
            Resume::ReplayAndLog => {
                proven.replay.map(|replay| Checkpoint { log: Snapshot::nothing(), ..replay })
            }
        };
        // What came after an acknowledged page was received in this session.
        let mut done = self.done.clone();
        for (&watch, &through) in &self.swept_through {
            let done = done.entry(watch).or_insert(through);
            *done = (*done).max(through);
        }
        Plan::Sweep { checkpoint, done, log: self.log.clone() }
    }

    /// A sweep has brought a row.
    pub(super) fn row_swept(&mut self, keys: u64) {
        self.swept += 1;
        self.keys += keys;
    }

    /// A sweep has brought a change of the log.
    pub(super) fn change_swept(&mut self, keys: u64) {
        self.logged += 1;
        self.keys += keys;
    }

    /// A sweep has brought all rows of a watch up to this stamp, which wait for Redis up to the
    /// point.
    pub(super) fn page_swept(&mut self, watch: i32, through: PgTime, point: Point) {
        self.pages.push_back((watch, through, point));
    }

    /// A sweep has brought all of the log up to this place.
    pub(super) fn log_page_swept(&mut self, read: LogRead, point: Point) {
        self.log_pages.push_back((read, point));
    }

    /// Redis has acknowledged something.
    pub(super) fn settle(&mut self, is_settled: impl Fn(Point) -> bool) {
        while let Some((read, _)) = self.log_pages.pop_front_if(|(_, point)| is_settled(*point)) {
            self.log = Some(read);
        }
        while let Some((watch, through, _)) =
            self.pages.pop_front_if(|(.., point)| is_settled(*point))
        {
            self.swept_through.insert(watch, through);
        }
    }

    /// The session is lost, perhaps in the middle of a sweep: from here on something may be missed.
    /// What of the sweep need not be done again?
    ///
    /// Rows stamped before `through` were in an acknowledged page, unless their transaction ended
    /// after the page was read. Then this session received it, or its xid is not below that of the
    /// last settled heartbeat, and its stamp not before what that heartbeat would prove. So the
    /// earlier of both is done.
    pub(super) fn session_lost(&mut self, proven: Option<PgTime>) {
        self.pages.clear();
        self.log_pages.clear();
        for (watch, through) in self.swept_through.drain() {
            if let Some(proven) = proven {
                let done = self.done.entry(watch).or_insert(PgTime(i64::MIN));
                *done = (*done).max(through.min(proven));
            }
        }
        self.resume = self.resume.max(Resume::Checkpoint);
    }

    fn forget_pages(&mut self) {
        self.pages.clear();
        self.swept_through.clear();
        self.done.clear();
        self.log_pages.clear();
        self.log = None;
    }

    /// When to report how far it is.
    pub(super) fn report_due(&self) -> Instant {
        self.reported + REPORT_INTERVAL
    }

    /// Reports it.
    pub(super) fn report(&mut self, now: Instant) -> Observation {
        self.reported = now;
        let through = self.swept_through.values().max().map(|through| through.0);
        Observation::CatchingUp { swept: self.swept, logged: self.logged, keys: self.keys, through }
    }

    /// For the status page.
    pub(super) fn shown(&self, now: Instant) -> OpenGap {
        OpenGap {
            cause: self.cause.label().to_owned(),
            lasted_seconds: self.age(now).as_secs_f64(),
            swept: self.swept,
            logged: self.logged,
            keys: self.keys,
        }
    }

    /// For the ledger.
    pub(super) fn summary(&self, now: Instant) -> GapSummary {
        GapSummary {
            cause: self.cause,
            lasted: now - self.since,
            swept: self.swept,
            logged: self.logged,
            keys: self.keys,
        }
    }
}
