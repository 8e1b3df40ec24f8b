//! The changes that are said nowhere but in the log: when to read them.
//!
//! A writer announces its change only if nobody else is announcing, and one with a lock_timeout, or on a server where transactions
//! may be prepared, never does. So the log is read all the time: a moment after something was found in it, often while changes
//! come in, because others may be logging beside them, and otherwise as rarely as a change may wait.

use std::time::{Duration, Instant};

use crate::batch::Lane;
use crate::change::{self, Announcement};
use crate::watermark::Snapshot;

use super::{Action, Machine};

/// How soon it is read again after something was found.
const SOON: Duration = Duration::from_millis(2);

/// How often while changes are announced or found, and for [`LINGER`] after the last one: writers whose transactions overlap log
/// beside one that announces, and need not wait for its commit.
const BUSY: Duration = Duration::from_millis(8);

/// See [`BUSY`].
const LINGER: Duration = Duration::from_secs(1);

/// How often otherwise: a reading of nothing takes PostgreSQL and us a tenth of a millisecond each.
const IDLE: Duration = Duration::from_millis(40);

/// After the first ring in vain; it doubles up to `IN_VAIN_MAX`.
const IN_VAIN: Duration = Duration::from_millis(1);

/// See [`IN_VAIN`].
const IN_VAIN_MAX: Duration = Duration::from_millis(16);

/// Without a ring for so long, the next one is heard at once again.
const QUIET: Duration = Duration::from_secs(1);

/// See the module. Numbers are of heartbeats.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// What had ended when the session began: what a sweep finds in the log was understood by the watches of then, or later ones.
    pub(super) opened: Option<Snapshot>,
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
    waiting: Option<Waiting>,
    rung: Rung,
}

impl Log {
    /// Of a session that opened when this had ended.
    pub(super) fn of(opened: Snapshot) -> Self {
        Self { opened: Some(opened), ..Self::default() }
    }
}

/// The rest of a page, which speaks of a watch that is not known yet.
#[derive(Debug)]
struct Waiting {
    changes: Vec<String>,
    more: bool,
    needs: u64, // the reading of the watches after which it is
}

/// How often writers rang in vain. Any role can ring, so that what finds nothing is done ever less often.
#[derive(Debug, Default)]
struct Rung {
    in_vain: u32,          // one after the other
    asked: bool,           // nobody else wants the next reading
    reading: bool,         // nor the one under way
    next: Option<Instant>, // not before
}

impl Log {
    /// When it is to be read by itself, or because somebody rang in the meantime.
    pub(super) fn due(&self) -> Option<Instant> {
        let rung = self.rung.next.filter(|_| self.wanted);
        self.next.into_iter().chain(rung).min().filter(|_| !self.is_on_its_way)
    }

    fn is_busy(&self, now: Instant) -> bool {
        self.busy_until.is_some_and(|until| now < until)
    }
}

impl Machine {
    /// A heartbeat was sent, which proves nothing before it is read.
    pub(super) fn read_log(&mut self) {
        self.log.wanted = true;
        self.log.rung.next = None;
        self.log.rung.asked = false;
    }

    /// A writer rings.
    pub(super) fn log_is_rung(&mut self, now: Instant) {
        let log = &mut self.log;
        if log.rung.next.is_some_and(|next| now > next + QUIET) {
            log.rung = Rung::default();
        }
        log.rung.asked |= !log.wanted;
        log.wanted = true;
    }

    /// Asks for a page, if one is wanted and there is room for it.
    pub(super) fn ask_for_log(&mut self, now: Instant) {
        let in_session = self.in_session();
        let log = &mut self.log;
        let is_due = log.next.is_some_and(|next| now >= next);
        let wanted = log.wanted && log.rung.next.is_none_or(|next| now >= next);
        if !in_session || log.is_on_its_way || !(wanted || is_due) || self.batch.is_full(Lane::Live) {
            return;
        }
        if !log.is_continued {
            log.covers = log.beat;
        }
        log.is_on_its_way = true;
        log.rung.reading = std::mem::take(&mut log.rung.asked) && !is_due;
        log.wanted = false;
        log.next = None;
        self.actions.push(Action::ReadLog);
    }

    pub(super) fn log_read(&mut self, now: Instant, mut changes: Vec<String>, more: bool) {
        let known = changes.iter().position(|change| !self.logged_and_known(change)).unwrap_or(changes.len());
        self.was_rung(now, changes.is_empty() && !more);
        self.found(now, known > 0);
        if known > 0 {
            self.take_sample(now);
        }
        if known < changes.len() {
            // A watch that was made or changed a moment ago: what it logs may be read before its announcement is received.
            let needs = self.reading.want();
            self.log.waiting = Some(Waiting { changes: changes.split_off(known), more, needs });
        } else {
            self.page_is_done(more);
        }
    }

    /// The watches have been read: what is still unknown ended long ago.
    pub(super) fn go_on_with_log(&mut self, now: Instant) {
        let ended = self.reading.ended();
        if let Some(Waiting { changes, more, .. }) = self.log.waiting.take_if(|waiting| waiting.needs <= ended) {
            for change in &changes {
                self.remember_unknown(change);
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
            && !self.reading.is_unknown(change.watch, change.rev)
        {
            return false;
        }
        self.logged_as(Lane::Live, parsed);
        true
    }

    /// A reading that writers asked for has ended.
    fn was_rung(&mut self, now: Instant, in_vain: bool) {
        let rung = &mut self.log.rung;
        if std::mem::take(&mut rung.reading) && in_vain {
            rung.next = Some(now + (IN_VAIN * 2_u32.saturating_pow(rung.in_vain)).min(IN_VAIN_MAX));
            rung.in_vain += 1;
        } else if !in_vain {
            *rung = Rung::default();
        }
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
