//! The changes that are said nowhere but in the log: when to read them.
//!
//! A writer announces its change only if nobody else is announcing, and one with a lock_timeout, or on a server where transactions
//! may be prepared, never does. So the log is read all the time: a moment after something was found in it, often while changes
//! come in, because others may be logging beside them, and otherwise as rarely as a change may wait.

use std::time::{Duration, Instant};

use crate::batch::Lane;
use crate::change::{self, Announcement};

use super::{Action, Machine, State};

/// How soon it is read again after something was found.
const SOON: Duration = Duration::from_millis(2);

/// How often while changes are announced or found, and for [`LINGER`] after the last one: writers whose transactions overlap log
/// beside one that announces, and need not wait for its commit.
const BUSY: Duration = Duration::from_millis(8);

/// See [`BUSY`].
const LINGER: Duration = Duration::from_secs(1);

/// How often otherwise: a reading of nothing takes PostgreSQL and us a tenth of a millisecond each.
const IDLE: Duration = Duration::from_millis(40);

/// See the module. Numbers are of heartbeats.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// The last one that was sent.
    pub(super) beat: u64,
    /// The last one that was heard again.
    pub(super) heard: u64,
    /// The last one after which everything was read.
    pub(super) read: u64,
    /// The last one that was both.
    pub(super) complete: u64,
    covers: u64,         // the last one that was sent before the reading on its way began
    is_on_its_way: bool, // a page was asked for, or waits for the watches
    is_continued: bool,  // the next page is not the first of a reading
    wanted: bool,
    delay: Duration,       // doubles while nothing is found
    next: Option<Instant>, // when it is read by itself; none before the first reading
    busy_until: Option<Instant>,
    waiting: Option<(Vec<String>, bool)>, // the rest of a page, which speaks of a watch that is not known yet
}

impl Log {
    /// When it is to be read by itself.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next.filter(|_| !self.is_on_its_way)
    }

    fn is_busy(&self, now: Instant) -> bool {
        self.busy_until.is_some_and(|until| now < until)
    }
}

impl Machine {
    /// There is something in it, or might be.
    pub(super) fn read_log(&mut self) {
        self.log.wanted = true;
    }

    /// Asks for a page, if one is wanted and there is room for it.
    pub(super) fn ask_for_log(&mut self, now: Instant) {
        let in_session = matches!(self.state, State::Subscribing | State::CatchingUp(_) | State::Listening);
        let log = &mut self.log;
        let is_due = log.next.is_some_and(|next| now >= next);
        if !in_session || log.is_on_its_way || !(log.wanted || is_due) || self.batch.is_full(Lane::Live) {
            return;
        }
        if !log.is_continued {
            log.covers = log.beat;
        }
        log.is_on_its_way = true;
        log.wanted = false;
        log.next = None;
        self.actions.push(Action::ReadLog);
    }

    pub(super) fn log_read(&mut self, now: Instant, mut changes: Vec<String>, more: bool) {
        let known = changes.iter().position(|change| !self.logged_and_known(change)).unwrap_or(changes.len());
        self.found(now, known > 0);
        if known > 0 {
            self.take_sample(now);
        }
        if known < changes.len() {
            // A watch that was made or changed a moment ago: what it logs may be read before its announcement is received.
            self.log.waiting = Some((changes.split_off(known), more));
            self.reading = true;
            self.actions.push(Action::ReadWatches);
        } else {
            self.page_is_done(more);
        }
    }

    /// The watches have been read: what is still unknown ended long ago.
    pub(super) fn go_on_with_log(&mut self, now: Instant) {
        if let Some((changes, more)) = self.log.waiting.take() {
            for change in &changes {
                self.logged(Lane::Live, change);
            }
            self.found(now, true);
            self.page_is_done(more);
        }
    }

    /// Takes a change, unless its watch is still to be read.
    fn logged_and_known(&mut self, change: &str) -> bool {
        let parsed = change::parse(change);
        if let Ok(Announcement::Change(change)) = &parsed
            && self.rules.get(&change.watch).is_none_or(|rule| rule.rev < change.rev)
        {
            return false;
        }
        self.logged_as(Lane::Live, parsed);
        true
    }

    fn found(&mut self, now: Instant, something: bool) {
        let log = &mut self.log;
        if something {
            log.busy_until = Some(now + LINGER);
        }
        let longest = if log.is_busy(now) { BUSY } else { IDLE };
        log.delay = if something { SOON } else { (log.delay * 2).clamp(SOON, longest) };
        log.next = Some(now + log.delay);
    }

    /// A change was announced: others may be logging theirs.
    pub(super) fn expect_logged(&mut self, now: Instant) {
        self.log.busy_until = Some(now + LINGER);
        self.log.next = self.log.next.map(|next| next.min(now + BUSY));
    }

    fn page_is_done(&mut self, more: bool) {
        let log = &mut self.log;
        log.is_on_its_way = false;
        log.is_continued = more;
        log.wanted |= more;
        if !more {
            log.read = log.covers;
            self.beat_is_complete();
        }
    }
}
