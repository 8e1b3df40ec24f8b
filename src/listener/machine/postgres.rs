//! What comes in from PostgreSQL: by the session, by notifications, by a sweep.
//!
//! Must hold: a change is collected, or the sweep to come will find it.

use std::time::Instant;

use crate::batch::Lane;
use crate::change::{self, Announcement, Change, Malformed};
use crate::deletion::Deletion;
use crate::messages::{Cause, Event, Opening, Request, Swept};
use crate::observe::Observation;
use crate::rule::Rule;
use crate::watched::Watched;
use crate::watermark::{LogRead, Proven, Watermark};

use super::change_log::ChangeLog;
use super::gap::Resume;
use super::heartbeats::Heartbeats;
use super::history::{Before, judge};
use super::intake::Difference;
use super::watch_reading::WatchReading;
use super::{CatchUp, Machine, State};

/// The session.
impl Machine {
    pub(super) fn session_says(&mut self, now: Instant, event: Event) {
        match event {
            Event::Subscribed(opening) => self.subscribed(now, *opening),
            Event::BeatSent { beat, queue_ratio } => {
                self.say(Observation::NotifyQueue(queue_ratio));
                self.beats.note_sent();
                self.change_log.beat_sent(beat.n, now);
                self.began.get_or_insert(beat.at);
                self.watermark.sent(beat);
                self.say(Observation::Status {
                    pending: self.pending(),
                    watermark_age: self.watermark.age(),
                });
            }
            Event::Watches(watches) => self.watches_read(now, watches),
            Event::LogRead { changes, more } => self.log_read(now, changes, more),
            Event::Saved => {}
            Event::NotKept(reason) => {
                let again = self.not_kept.is_repeat(now, &reason);
                self.say(Observation::NotKept { reason, again });
            }
            Event::Lost(reason) => self.lost(now, Cause::Session, reason),
        }
    }

    fn subscribed(&mut self, now: Instant, opening: Opening) {
        if !matches!(self.state, State::Connecting { .. }) {
            return;
        }
        let Opening { backend, watches, server, unknown, stored, was_here, forgotten, seen } =
            opening;
        if let Some(reason) = unknown {
            self.say(Observation::ServerTellsLittle { reason });
        }
        for instance in forgotten {
            self.say(Observation::InstanceForgotten { instance });
        }
        self.beats = Heartbeats::new(backend, now);
        self.change_log = ChangeLog::new(seen, now);
        self.watch_reading = WatchReading::new(now);
        self.set_watches(watches);
        self.say(Observation::Subscribed { watches: self.intake.in_force() });

        let before = Before {
            known: self.server.as_ref(),
            remembered: self
                .watermark
                .proven()
                .checkpoint
                .and_then(|checkpoint| checkpoint.watermark),
            beat: self.watermark.last_beat(),
            began: self.began,
            stored: stored.as_ref(),
            was_here,
        };
        let verdict = judge(&server, &before, self.settings.window);
        // What is remembered is newer than what is stored, but a server that was restarted may have
        // given out its xids again.
        let is_same_server = self.server.as_ref() == Some(&server);
        self.server = Some(server);
        self.open_gap(now, Cause::Session);
        if let Some(verdict) = verdict {
            self.demand(verdict.resume, verdict.again);
            self.say_history(verdict.resume, verdict.reason);
        }
        let is_everything = self.gap.as_ref().is_some_and(super::gap::Gap::is_everything);
        let proven = if is_everything {
            Proven::default() // of another server, or of a log that is gone
        } else if is_same_server {
            self.watermark.proven()
        } else {
            stored.as_ref().map(|stored| stored.proven.clone()).unwrap_or_default()
        };
        self.watermark = Watermark::new(proven, self.settings.window);
        if let Some(stored) = &stored {
            self.link.resume(now, stored.redis.as_deref());
        }
        if let Some(gap) = &self.gap {
            let (cause, age) = (gap.cause(), gap.age(now));
            self.ask(Request::OpenGap(cause, age));
        }
        self.enter(State::Subscribing);
        self.beat(now);
    }

    fn say_history(&mut self, resume: Resume, reason: &'static str) {
        if resume == Resume::Everything {
            return self.say(Observation::Flushed { reason });
        }
        let (again, is_partial) = self.link.remembered();
        let reason = if is_partial {
            "its last commits may be lost, and not all of their keys are remembered (batch.max_pending)"
        } else {
            reason
        };
        self.say(Observation::PostgresChanged { reason, again });
    }

    /// Compiles what is watched. A watch that does not compile is reported and skipped.
    fn set_watches(&mut self, watches: Vec<Watched>) -> Difference {
        let mut rules = Vec::with_capacity(watches.len());
        for watched in watches {
            match Rule::of(&watched) {
                Ok(rule) => rules.push(rule),
                Err(error) => self.say(Observation::WatchSkipped {
                    table: watched.table,
                    reason: error.to_string(),
                }),
            }
        }
        let difference = self.intake.set_rules(rules);
        for table in &difference.ended {
            self.say(Observation::WatchEnded { table: table.clone() });
        }
        difference
    }

    fn watches_read(&mut self, now: Instant, watches: Vec<Watched>) {
        self.beats.note_received(now);
        let difference = self.set_watches(watches);
        if difference.is_any {
            self.say(Observation::WatchesChanged { watches: self.intake.in_force() });
        }
        let changed = difference.changed;
        let released = self.watch_reading.end(now, &changed);
        for held in released.changes {
            if let Ok(Announcement::Change(change)) = change::parse(&held.payload)
                && (!held.is_understood || changed.contains(&change.watch))
            {
                let result = self.changed(Lane::Live, &change);
                self.intake.believe(now, result);
            }
        }
        for watch in released.widened {
            self.intake.everything(&mut self.batch, Lane::Live, watch);
        }
        if let Some(n) = released.beat {
            self.change_log.beat_heard(n);
        }
        self.go_on_with_log(now);
        self.beat_is_complete();
    }
}

/// Notifications.
impl Machine {
    pub(super) fn notified(&mut self, now: Instant, backend: u32, payload: &str) {
        self.beats.note_received(now);
        let believed = match change::parse(payload) {
            Ok(Announcement::Change(change)) => {
                let believed = self.announced(payload, &change);
                self.take_sample(now);
                self.change_log.change_announced(now);
                believed
            }
            Ok(Announcement::Heartbeat(n)) => {
                if self.beats.is_ours(backend, n) {
                    self.beat_came_back(n);
                }
                Ok(())
            }
            Ok(Announcement::Watches) => {
                self.watch_reading.want();
                Ok(())
            }
            Ok(Announcement::Bell) => {
                self.change_log.rung(now);
                Ok(())
            }
            Ok(Announcement::Wait) => {
                self.beats.want();
                Ok(())
            }
            Ok(Announcement::Probe(probe)) => {
                self.probed(&probe);
                Ok(())
            }
            Err(malformed) => Err(malformed),
        };
        self.intake.believe(now, believed);
    }

    fn beat_came_back(&mut self, n: u64) {
        if self.state == State::Subscribing {
            self.backoff.reset();
            self.catch_up();
        }
        // What was held before it must be understood first.
        match self.watch_reading.awaited() {
            None => self.change_log.beat_heard(n),
            Some(needs) => self.watch_reading.hold_beat(needs, n),
        }
        self.beat_is_complete();
    }

    /// A heartbeat that has come back proves something once the log was read after it was sent.
    fn beat_is_complete(&mut self) {
        let Some(n) = self.change_log.take_complete() else { return };
        if self.state == State::CatchingUp(CatchUp::AwaitingRedis) {
            return; // what came before it was not collected
        }
        self.add_canary();
        let point = self.batch.point(Lane::Live);
        self.beats.came_back(n, point);
    }

    /// A key beside this instance's canary, put there by `unstale check`: that it goes proves that
    /// this listener hears this database and deletes from that Redis.
    fn probed(&mut self, probe: &str) {
        let key = format!("unstale:canary:{probe}");
        let is_ours =
            key.strip_prefix(&self.settings.canary).is_some_and(|rest| rest.starts_with(':'));
        if is_ours && self.state != State::CatchingUp(CatchUp::AwaitingRedis) {
            self.batch.add(Lane::Live, Deletion::Key(key));
        }
    }

    /// A change, which is held as well while its watch may be another than the known one.
    fn announced(&mut self, payload: &str, change: &Change<'_>) -> Result<(), Malformed> {
        let Some(needs) = self.watch_reading.awaited() else {
            return self.changed(Lane::Live, change);
        };
        if self.state == State::CatchingUp(CatchUp::AwaitingRedis) {
            return Ok(()); // the sweep to come finds it
        }
        let is_known = self.intake.knows(change.watch, change.rev);
        self.watch_reading.hold(needs, change.watch, payload, is_known);
        if is_known { self.changed(Lane::Live, change) } else { Ok(()) }
    }

    fn changed(&mut self, lane: Lane, change: &Change<'_>) -> Result<(), Malformed> {
        if lane == Lane::Live && self.state == State::CatchingUp(CatchUp::AwaitingRedis) {
            return self.intake.is_of_a_watch(change.watch); // the sweep to come finds it
        }
        self.intake.change(&mut self.batch, lane, change)
    }

    /// Follows one change at a time on its way to Redis.
    fn take_sample(&mut self, now: Instant) {
        if self.sample.is_none() {
            self.sample = Some((now, self.batch.point(Lane::Live)));
        }
    }
}

/// The change log, and a sweep.
impl Machine {
    fn log_read(&mut self, now: Instant, mut changes: Vec<String>, more: bool) {
        let known = changes
            .iter()
            .position(|change| !self.logged_and_known(now, change))
            .unwrap_or(changes.len());
        self.change_log.page_came(now, changes.is_empty() && !more, known > 0);
        if known > 0 {
            self.take_sample(now);
        }
        if known < changes.len() {
            // A watch that was made or changed a moment ago: what it logs may be read before its
            // announcement is received.
            let needs = self.watch_reading.want();
            self.change_log.hold(changes.split_off(known), more, needs);
        } else {
            self.change_log.page_done(now, more);
            self.beat_is_complete();
        }
    }

    /// The watches have been read: what is still unknown ended long ago.
    fn go_on_with_log(&mut self, now: Instant) {
        let Some((changes, more)) = self.change_log.take_held(now, self.watch_reading.ended())
        else {
            return;
        };
        for change in &changes {
            if let Ok(Announcement::Change(change)) = change::parse(change)
                && !self.intake.knows(change.watch, change.rev)
            {
                self.watch_reading.not_found(change.watch, change.rev);
            }
            self.logged(now, Lane::Live, change::parse(change));
        }
        self.change_log.page_done(now, more);
    }

    /// Takes a change, unless its watch is still to be read.
    fn logged_and_known(&mut self, now: Instant, change: &str) -> bool {
        let parsed = change::parse(change);
        if let Ok(Announcement::Change(change)) = &parsed
            && !self.intake.knows(change.watch, change.rev)
            && !self.watch_reading.is_unknown(change.watch, change.rev)
        {
            return false;
        }
        self.logged(now, Lane::Live, parsed);
        true
    }

    /// A change as the log holds it.
    fn logged(&mut self, now: Instant, lane: Lane, parsed: Result<Announcement<'_>, Malformed>) {
        let believed = match parsed {
            Ok(Announcement::Change(change)) => match self.changed(lane, &change) {
                Err(Malformed::UnknownWatch) => Ok(()), // ended long ago, and its keys were deleted then
                result => result,
            },
            Ok(_) => Err(Malformed::Meaningless),
            Err(malformed) => Err(malformed),
        };
        self.intake.believe(now, believed);
    }

    pub(super) fn swept(&mut self, now: Instant, swept: Swept) {
        match swept {
            Swept::Rows(watch, rows) => rows.iter().for_each(|row| {
                let keys = self.intake.row(&mut self.batch, Lane::CatchUp, watch, row);
                if let Some(gap) = &mut self.gap {
                    gap.row_swept(keys);
                }
            }),
            Swept::Page(watch, through) => {
                let point = self.batch.point(Lane::CatchUp);
                if let Some(gap) = &mut self.gap {
                    gap.page_swept(watch, through, point);
                }
            }
            Swept::Log(changes) => changes.iter().for_each(|change| {
                let before = self.batch.waiting(Lane::CatchUp);
                self.logged(now, Lane::CatchUp, change::parse(change));
                let keys = self.batch.waiting(Lane::CatchUp) - before;
                if let Some(gap) = &mut self.gap {
                    gap.change_swept(keys as u64);
                }
            }),
            Swept::LogPage(through) => {
                let read = LogRead { seen: self.change_log.opened().clone(), through };
                let point = self.batch.point(Lane::CatchUp);
                if let Some(gap) = &mut self.gap {
                    gap.log_page_swept(read, point);
                }
            }
            Swept::Unreadable { watch, table, reason } => {
                self.say(Observation::SweptByPattern { table, reason });
                self.intake.everything(&mut self.batch, Lane::CatchUp, watch);
            }
            Swept::NoIndex { table, remedy } => {
                if self.without_index.insert(table.clone()) {
                    self.say(Observation::SweepWithoutIndex { table, remedy });
                }
            }
            Swept::Ended => {
                self.sweep_failure = None;
                if self.state == State::CatchingUp(CatchUp::Sweeping) {
                    self.settle_catching_up();
                }
            }
            Swept::Failed(reason) => self.sweep_failed(now, reason),
        }
    }

    fn sweep_failed(&mut self, now: Instant, reason: String) {
        if self.state == State::CatchingUp(CatchUp::Sweeping) {
            let retry_in = self.backoff.next_delay();
            let again = self.said.is_repeat(now, &reason);
            self.sweep_failure = Some(reason.clone());
            self.say(Observation::SweepFailed { reason, retry_in, again });
            self.enter(State::CatchingUp(CatchUp::AwaitingRetry { until: now + retry_in }));
        }
    }
}
