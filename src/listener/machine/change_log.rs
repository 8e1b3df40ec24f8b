//! When the change log is read: the changes that are said nowhere else.
//!
//! A writer announces its change only if nobody else is announcing, and one with a lock_timeout, or
//! on a server where transactions may be prepared, never does. So the log is read all the time: a
//! moment after something was found in it, often while changes come in, because others may be
//! logging beside them, and otherwise as rarely as a change may wait.

use std::time::{Duration, Instant};

use crate::watermark::Snapshot;

/// How soon it is read again after something was found.
const SOON: Duration = Duration::from_millis(2);

/// How often for [`LINGER`] after something was found: writers whose transactions overlap log
/// beside one that announces, and nobody rings for them.
const OVERLAP: Duration = Duration::from_millis(4);

/// How often for [`LINGER`] after a change was announced: others may begin to.
const BUSY: Duration = Duration::from_millis(8);

/// See [`OVERLAP`] and [`BUSY`].
const LINGER: Duration = Duration::from_secs(1);

/// How often otherwise: what nobody announces may take 50 ms, and reading nothing at this pace
/// takes a hundredth of a core.
const IDLE: Duration = Duration::from_millis(45);

/// After the first ring in vain; it doubles up to `IN_VAIN_MAX`.
const IN_VAIN: Duration = Duration::from_millis(1);

/// See [`IN_VAIN`].
const IN_VAIN_MAX: Duration = Duration::from_millis(16);

/// Without a ring for so long, the next one is heard at once again.
const QUIET: Duration = Duration::from_secs(1);

/// See the module. Numbers are of heartbeats.
#[derive(Debug)]
pub(super) struct ChangeLog {
    opened: Snapshot,
    sent: u64,               // the last one that was sent
    heard: u64,              // the last one that was heard again
    read: u64,               // the last one after which everything was read
    complete: u64,           // the last one that was both
    covers: u64,             // the last one that was sent before the reading on its way began
    page: Page,              // what was asked for
    is_continued: bool,      // the next page is not the first of a reading
    wanted: Option<Instant>, // since when, if it is
    delay: Duration,         // doubles while nothing is found
    next: Option<Instant>,   // when it is read by itself; none before the first reading
    busy_until: Instant,     // something was announced
    overlap_until: Instant,  // something was found
    rung: Rung,
}

/// A page of the log.
#[derive(Debug)]
enum Page {
    None,
    OnItsWay,
    /// The rest of it speaks of a watch that is not known yet.
    Waiting {
        changes: Vec<String>,
        more: bool,
        needs: u64,
    },
}

/// How often writers rang in vain. Any role can ring, so that what finds nothing is done ever less
/// often.
#[derive(Debug)]
struct Rung {
    in_vain: u32,        // one after the other
    is_asked: bool,      // nobody else wants the next reading
    is_reading: bool,    // nor the one under way
    not_before: Instant, // is the next one
}

impl Rung {
    fn new(now: Instant) -> Self {
        Self { in_vain: 0, is_asked: false, is_reading: false, not_before: now }
    }
}

impl ChangeLog {
    /// Of a session that opened when this had ended.
    pub(super) fn new(opened: Snapshot, now: Instant) -> Self {
        Self {
            opened,
            sent: 0,
            heard: 0,
            read: 0,
            complete: 0,
            covers: 0,
            page: Page::None,
            is_continued: false,
            wanted: None,
            delay: Duration::ZERO,
            next: None,
            busy_until: now,
            overlap_until: now,
            rung: Rung::new(now),
        }
    }

    /// What had ended when the session began: what a sweep finds in the log was understood by the
    /// watches of then, or later ones.
    pub(super) fn opened(&self) -> &Snapshot {
        &self.opened
    }

    /// A heartbeat was sent, which proves nothing before the log is read.
    pub(super) fn beat_sent(&mut self, n: u64, now: Instant) {
        self.sent = n;
        self.wanted = Some(now);
        self.rung.not_before = now;
        self.rung.is_asked = false;
    }

    /// A heartbeat was heard again, and everything before it is understood.
    pub(super) fn beat_heard(&mut self, n: u64) {
        self.heard = n;
    }

    /// The last heartbeat that was heard and after which everything was read, once.
    pub(super) fn take_complete(&mut self) -> Option<u64> {
        let n = self.heard.min(self.read);
        (n > self.complete).then(|| {
            self.complete = n;
            n
        })
    }

    /// A writer rings.
    pub(super) fn rung(&mut self, now: Instant) {
        if now > self.rung.not_before + QUIET {
            self.rung = Rung::new(now);
        }
        if self.wanted.is_none() {
            self.rung.is_asked = true;
            self.wanted = Some(now);
        }
    }

    /// A change was announced: others may be logging theirs.
    pub(super) fn change_announced(&mut self, now: Instant) {
        self.busy_until = now + LINGER;
        self.next = self.next.map(|next| next.min(now + BUSY));
    }

    /// When a page is to be asked for.
    pub(super) fn due(&self) -> Option<Instant> {
        let wanted = self.wanted.map(|since| since.max(self.rung.not_before));
        self.next.into_iter().chain(wanted).min().filter(|_| matches!(self.page, Page::None))
    }

    /// A page is asked for.
    pub(super) fn ask(&mut self, now: Instant) {
        if !self.is_continued {
            self.covers = self.sent;
        }
        let by_itself = self.next.is_some_and(|next| now >= next);
        self.page = Page::OnItsWay;
        self.rung.is_reading = std::mem::take(&mut self.rung.is_asked) && !by_itself;
        self.wanted = None;
        self.next = None;
    }

    /// A page has come. If writers asked for it in vain, they are heard ever less often.
    pub(super) fn page_came(&mut self, now: Instant, is_empty: bool, something_found: bool) {
        if std::mem::take(&mut self.rung.is_reading) && is_empty {
            self.rung.not_before =
                now + (IN_VAIN * 2_u32.saturating_pow(self.rung.in_vain)).min(IN_VAIN_MAX);
            self.rung.in_vain += 1;
        } else if !is_empty {
            self.rung = Rung::new(now);
        }
        self.found(now, something_found);
    }

    fn found(&mut self, now: Instant, something: bool) {
        if something {
            self.overlap_until = now + LINGER;
        }
        let longest = if now < self.overlap_until {
            OVERLAP
        } else if now < self.busy_until {
            BUSY
        } else {
            IDLE
        };
        self.delay = if something { SOON } else { (self.delay * 2).clamp(SOON, longest) };
        self.next = Some(now + self.delay);
    }

    /// The page is understood. After the last one of a reading, what was sent before it is read.
    pub(super) fn page_done(&mut self, now: Instant, more: bool) {
        self.page = Page::None;
        self.is_continued = more;
        if more {
            self.wanted.get_or_insert(now);
        } else {
            self.read = self.covers;
        }
    }

    /// The rest of the page waits for a reading of the watches.
    pub(super) fn hold(&mut self, changes: Vec<String>, more: bool, needs: u64) {
        self.page = Page::Waiting { changes, more, needs };
    }

    /// What waited for a reading of the watches up to this one, and whether there is another page.
    pub(super) fn take_held(&mut self, now: Instant, ended: u64) -> Option<(Vec<String>, bool)> {
        if !matches!(&self.page, Page::Waiting { needs, .. } if *needs <= ended) {
            return None;
        }
        let Page::Waiting { changes, more, .. } = std::mem::replace(&mut self.page, Page::OnItsWay)
        else {
            return None;
        };
        self.found(now, true);
        Some((changes, more))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often it is read in so many milliseconds. `happens` at the beginning of each, and says
    /// whether a reading would find something.
    fn readings(
        log: &mut ChangeLog,
        start: Instant,
        milliseconds: u64,
        happens: impl Fn(&mut ChangeLog, Instant, u64) -> bool,
    ) -> usize {
        log.beat_sent(1, start);
        let mut count = 0;
        for millisecond in 0..milliseconds {
            let now = start + Duration::from_millis(millisecond);
            let something = happens(log, now, millisecond);
            if log.due().is_some_and(|due| now >= due) {
                count += 1;
                log.ask(now);
                log.page_came(now, !something, something);
                log.page_done(now, false);
            }
        }
        count
    }

    #[test]
    fn who_rings_in_vain_is_heard_ever_less_often() {
        let start = Instant::now();
        let mut log = ChangeLog::new(Snapshot::nothing(), start);
        let count = readings(&mut log, start, 500, |log, now, _| {
            log.rung(now);
            false
        });
        assert!((30..45).contains(&count), "{count} readings in half a second");
        let now = start + Duration::from_secs(3);
        log.rung(now);
        assert!(log.due().is_some_and(|due| now >= due), "at once, after a while of silence");
    }

    #[test]
    fn it_is_read_most_often_where_something_was_found_and_rarely_where_nothing_happens() {
        let in_a_second = |happens: fn(&mut ChangeLog, Instant, u64) -> bool| {
            let start = Instant::now();
            readings(&mut ChangeLog::new(Snapshot::nothing(), start), start, 1_000, happens)
        };
        let overlapping = in_a_second(|_, _, millisecond| millisecond == 0);
        let busy = in_a_second(|log, now, millisecond| {
            if millisecond == 1 {
                log.change_announced(now);
            }
            false
        });
        let idle = in_a_second(|_, _, _| false);
        assert!((240..=260).contains(&overlapping), "{overlapping}");
        assert!((120..=130).contains(&busy), "{busy}");
        assert!((20..=30).contains(&idle), "{idle}");
    }

    #[test]
    fn a_heartbeat_is_complete_once_it_was_heard_and_everything_was_read_after_it_was_sent() {
        let now = Instant::now();
        let mut log = ChangeLog::new(Snapshot::nothing(), now);
        log.beat_sent(1, now);
        log.ask(now);
        log.beat_sent(2, now);
        log.beat_heard(2);
        assert_eq!(log.take_complete(), None, "nothing is read yet");
        log.page_came(now, false, true);
        log.page_done(now, true);
        assert_eq!(log.take_complete(), None, "there is another page");
        log.ask(now);
        log.page_came(now, true, false);
        log.page_done(now, false);
        assert_eq!(
            (log.take_complete(), log.take_complete()),
            (Some(1), None),
            "the reading began before the second was sent"
        );
    }
}
