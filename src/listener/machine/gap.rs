//! An open gap: where catching up begins, and what a server may have undone.
//!
//! Must hold: what a gap demands only ever grows until it is closed. A gap in a gap is one gap.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::{Lane, Mark, Work};
use crate::mark::{Answer, Kept};
use crate::observe::{Cause, GapSummary, Observation};
use crate::watermark::{Checkpoint, LogPlace, LogRead, PgTime, Progress, Server, Snapshot, Stored};

use super::{Action, CatchUp, Machine, State};

/// How often a long sweep says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// A replay that begins sooner after the last one waits for a while.
const REPLAY_PAUSE: Duration = Duration::from_secs(5);

/// Where catching up begins, from the cheapest to the surest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Resume {
    /// Nothing was missed: what Redis has undone is known, and deleted again. As long as the session lasts.
    Nothing,
    /// At the checkpoint.
    Checkpoint,
    /// At the checkpoint of `replay.window` ago: Redis may have undone the deletes since.
    Replay,
    /// The same with the whole log: after a fail-over of PostgreSQL lost transactions' xids are given out again.
    ReplayAndLog,
    /// Nowhere: every key is deleted.
    Everything,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Gap {
    pub(super) cause: Cause,
    pub(super) since: Instant,
    pub(super) resume: Resume,
    /// Keys that were deleted lately are deleted once more: PostgreSQL may have undone the commits that they were deleted for.
    pub(super) again: bool,
    /// Those that a primary deleted after this number are: it may have undone it.
    pub(super) repeat: BTreeMap<Arc<str>, u64>,
    pub(super) swept: u64,
    pub(super) logged: u64,
    pub(super) keys: u64,
    pages: VecDeque<(i32, PgTime, Mark)>, // brought by this session's sweep, not acknowledged yet
    swept_through: HashMap<i32, PgTime>,  // acknowledged pages of this session's sweep
    done: HashMap<i32, PgTime>,           // what need not be swept again if the session is lost
    log_pages: VecDeque<(LogRead, Mark)>, // of the log, brought and not acknowledged yet
    log: Option<LogRead>,                 // what of it need not be read again
    told: Instant,
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
            told: since,
        }
    }

    /// What a sweep in this session need not read again. What came after a page of it was received.
    fn done_now(&self) -> HashMap<i32, PgTime> {
        let mut done = self.done.clone();
        for (&watch, &through) in &self.swept_through {
            let done = done.entry(watch).or_insert(through);
            *done = (*done).max(through);
        }
        done
    }

    pub(super) fn summary(&self, now: Instant) -> GapSummary {
        GapSummary { cause: self.cause, lasted: now - self.since, swept: self.swept, logged: self.logged, keys: self.keys }
    }
}

impl Machine {
    /// What may be stored: nothing while a gap is open.
    pub(super) fn progress(&self) -> Option<Progress> {
        self.gap.is_none().then(|| Progress { proven: self.watermark.proven(), redis: self.link.stored() })
    }

    /// Keeps what Redis has done.
    pub(super) fn remember(&mut self, now: Instant, answer: &Answer, work: Work) {
        let needed = self.gap.as_ref().is_some_and(|gap| gap.again || !gap.repeat.is_empty());
        self.link.remember(now, answer, work, self.settings.limits, self.settings.window, needed);
    }

    /// Another server, or the same after a restart: what was acknowledged after this number, or lately, may be undone.
    pub(super) fn redis_undid(&mut self, now: Instant, tag: &Arc<str>, kept: Kept) {
        let again = match kept {
            Kept::All => return,
            Kept::UpTo(number) => self.link.since(tag, number).map(|targets| targets.len()),
            Kept::Unknown => None,
        };
        if again.is_some() || !self.said.is_repeat(now, "another Redis") {
            self.say(Observation::RedisChanged { again });
        }
        self.watermark.undone();
        let in_session = matches!(self.state, State::CatchingUp(_) | State::Listening);
        let is_first = self.gap.is_none();
        if in_session {
            self.open_gap_in_session(now, Cause::Redis)
        } else {
            self.open_gap(now, Cause::Redis)
        }
        self.heart.forget();
        match (kept, again) {
            (Kept::UpTo(number), Some(_)) => {
                if let Some(gap) = &mut self.gap {
                    let known = gap.repeat.entry(tag.clone()).or_insert(number);
                    *known = number.min(*known);
                    if is_first && in_session {
                        gap.resume = Resume::Nothing;
                    }
                }
                self.forget_pages();
            }
            _ => self.demand(Resume::Replay, false),
        }
        if in_session {
            self.actions.push(Action::StopSweep);
            self.batch.clear(Lane::CatchUp);
            self.catch_up_in_time(now);
        }
    }

    /// A server that tells something else each time, or keeps no mark, is not swept for without end.
    fn catch_up_in_time(&mut self, now: Instant) {
        if let State::CatchingUp(CatchUp::AwaitingRetry { .. }) = self.state {
            return;
        }
        if self.replayed.replace(now).is_some_and(|last| now < last + REPLAY_PAUSE) {
            let until = now + self.backoff.next_delay();
            return self.enter(State::CatchingUp(CatchUp::AwaitingRetry { until }));
        }
        self.catch_up();
    }

    /// The gap is more than it seemed.
    pub(super) fn demand(&mut self, resume: Resume, again: bool) {
        if let Some(gap) = &mut self.gap {
            gap.resume = gap.resume.max(resume);
            gap.again |= again;
        }
        self.forget_pages();
    }

    /// The sweep has brought all rows of a watch up to this stamp.
    pub fn swept_page(&mut self, watch: i32, through: PgTime) {
        let mark = self.batch.mark(Lane::CatchUp);
        if let Some(gap) = &mut self.gap {
            gap.pages.push_back((watch, through, mark));
        }
    }

    /// The sweep has brought all of the log up to this place.
    pub fn swept_log_page(&mut self, through: LogPlace) {
        let mark = self.batch.mark(Lane::CatchUp);
        if let (Some(gap), Some(seen)) = (&mut self.gap, &self.log.opened) {
            gap.log_pages.push_back((LogRead { seen: seen.clone(), through }, mark));
        }
    }

    pub(super) fn settle_pages(&mut self) {
        let Some(gap) = &mut self.gap else { return };
        while let Some((read, _)) = gap.log_pages.pop_front_if(|(_, mark)| self.batch.is_settled(*mark)) {
            gap.log = Some(read);
        }
        while let Some((watch, through, _)) = gap.pages.pop_front_if(|(.., mark)| self.batch.is_settled(*mark)) {
            gap.swept_through.insert(watch, through);
        }
    }

    /// The session is lost in the middle of a sweep: what of it need not be done again?
    ///
    /// Rows stamped before `through` were in an acknowledged page, unless their transaction ended after the page was read. Then
    /// this session received it, or its xid is not below that of the last settled heartbeat, and its stamp not before what
    /// that heartbeat would prove. So the earlier of both is done.
    pub(super) fn keep_pages(&mut self) {
        let proven = self.heart.take_settled().and_then(|n| self.watermark.would_prove(n));
        let Some(gap) = &mut self.gap else { return };
        gap.pages.clear();
        gap.log_pages.clear();
        for (watch, through) in gap.swept_through.drain() {
            if let Some(proven) = proven {
                let done = gap.done.entry(watch).or_insert(PgTime(i64::MIN));
                *done = (*done).max(through.min(proven));
            }
        }
    }

    /// What the sweep has done so far proves nothing: changes that were received meanwhile were dropped, or undone.
    pub(super) fn forget_pages(&mut self) {
        if let Some(gap) = &mut self.gap {
            gap.pages.clear();
            gap.swept_through.clear();
            gap.done.clear();
            gap.log_pages.clear();
            gap.log = None;
        }
    }

    pub(super) fn tell_progress(&mut self, now: Instant) {
        if !matches!(self.state, State::CatchingUp(_)) {
            return;
        }
        if let Some(gap) = &mut self.gap
            && now >= gap.told + PROGRESS_INTERVAL
        {
            gap.told = now;
            let through = gap.swept_through.values().max().map(|through| through.0);
            let observation = Observation::CatchingUp { swept: gap.swept, logged: gap.logged, keys: gap.keys, through };
            self.say(observation);
        }
    }

    /// Is this the PostgreSQL that the progress is about, and has it kept what it told?
    pub(super) fn compare_histories(&mut self, server: Server, stored: Option<&Stored>) {
        let flush = |reason| (Resume::Everything, false, reason);
        let known = self.server.replace(server.clone());
        let remembered = self.watermark.proven().checkpoint.and_then(|checkpoint| checkpoint.watermark);
        let (resume, again, reason) = match (known, stored) {
            (Some(known), None) if known.history != server.history && remembered.is_some() => {
                flush("its checkpoint is gone, so the database was restored from before it")
            }
            (_, None) => return,
            (_, Some(stored)) if stored.forgotten => flush("this instance was away for longer than checkpoint.forget_after"),
            (None, Some(stored)) if stored.history != server.history => {
                flush("PostgreSQL failed over or was restored while this instance was away: what was lost is not known")
            }
            (Some(known), Some(stored)) if known.history != server.history => {
                let watermark = stored.proven.checkpoint.as_ref().and_then(|checkpoint| checkpoint.watermark);
                let is_old = watermark.zip(remembered).is_some_and(|(stored, known)| stored < known.earlier(self.settings.window));
                if is_old || system(&known) != system(&server) {
                    flush("the database was restored to an earlier time, or is another one")
                } else {
                    let reason = "failed over; keys deleted in the last replay.window are deleted again, older lost commits are not known";
                    (Resume::ReplayAndLog, true, reason)
                }
            }
            (Some(known), Some(_)) if known.started != server.started => {
                let reason =
                    "restarted; keys deleted in the last replay.window are deleted again, in case it lost commits (synchronous_commit)";
                // A server that does not tell its timeline may have failed over.
                let resume = if server.history.contains('?') { Resume::ReplayAndLog } else { Resume::Checkpoint };
                (resume, true, reason)
            }
            _ => return,
        };
        self.demand(resume, again);
        if resume == Resume::Everything {
            self.say(Observation::Flushed { reason });
        } else {
            let (again, is_partial) = self.link.remembered();
            let reason = if is_partial {
                "its last commits may be lost, and not all of their keys are remembered (batch.max_pending)"
            } else {
                reason
            };
            self.say(Observation::PostgresChanged { reason, again });
        }
    }

    /// What may be undone, and is remembered, is deleted once more.
    fn repeat(&mut self) {
        let Some(gap) = &mut self.gap else { return };
        let mut targets = if gap.again { self.link.recent() } else { Vec::new() };
        for (tag, number) in &gap.repeat {
            match self.link.since(tag, *number) {
                Some(undone) => targets.extend(undone),
                None => gap.resume = gap.resume.max(Resume::Replay), // meanwhile it did not fit any more
            }
        }
        for target in targets {
            self.batch.add(Lane::CatchUp, target);
        }
    }

    /// Redis answers, NOTIFY arrives: read, or delete, what the gap demands.
    pub(super) fn begin_catching_up(&mut self) {
        self.repeat();
        let resume = self.gap.as_ref().map_or(Resume::Checkpoint, |gap| gap.resume);
        let proven = self.watermark.proven();
        let from = match resume {
            Resume::Nothing => {
                let mark = self.batch.mark(Lane::CatchUp);
                return self.enter(State::CatchingUp(CatchUp::Settling(mark)));
            }
            Resume::Everything => {
                let watches: Vec<i32> = self.rules.keys().copied().collect();
                watches.into_iter().for_each(|watch| self.widen(watch));
                let mark = self.batch.mark(Lane::CatchUp);
                return self.enter(State::CatchingUp(CatchUp::Settling(mark)));
            }
            Resume::Checkpoint => proven.checkpoint,
            Resume::Replay => proven.replay,
            Resume::ReplayAndLog => proven.replay.map(|replay| Checkpoint { log: Snapshot::nothing(), ..replay }),
        };
        let done = self.gap.as_ref().map(Gap::done_now).unwrap_or_default();
        let log = self.gap.as_ref().and_then(|gap| gap.log.clone());
        self.actions.push(Action::Sweep { checkpoint: from, done, log });
        self.enter(State::CatchingUp(CatchUp::Sweeping));
    }
}

/// The system identifier in a history.
fn system(server: &Server) -> &str {
    server.history.split('/').next().unwrap_or_default()
}
