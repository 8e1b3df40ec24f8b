//! What comes in from Redis: what it has done, what it failed to do, and what it has undone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::Lane;
use crate::delivered::Delivered;
use crate::mark::Kept;
use crate::messages::Cause;
use crate::observe::Observation;

use super::gap::{Gap, Resume};
use super::{Action, CatchUp, Machine, State};

/// Stands for all commands of which something was handed back: no command has this number.
const HANDED_BACK: u64 = 0;

/// What Redis has undone is caught up with no sooner than this after the last time.
const REPLAY_PAUSE: Duration = Duration::from_secs(5);

impl Machine {
    pub(super) fn acknowledged(&mut self, now: Instant, id: u64, delivered: Delivered) {
        if self.batch.is_full(Lane::Live) {
            self.beats.note_received(now); // nothing was received meanwhile because we did not listen
        }
        let Delivered { parts, left, tags } = delivered;
        let again = match &left {
            Some(left) => self.batch.hand_back(id, &left.deletions, now),
            None => self.batch.acknowledge(id, now),
        };
        let mut undone = self.link.are_here(now, &tags, self.settings.window);
        for part in parts {
            if self.link.is_of_new_connection(&part.answer) {
                self.beats.want(); // with which its mark is stored
            }
            undone.push((part.answer.tag.clone(), self.link.done(now, &part.answer)));
            if let Some(again) = again {
                if let Some(dropped) = self.second_deletes.deleted(now, &part.deletions, again) {
                    self.say(dropped);
                }
                let needed = self.gap.as_ref().is_some_and(Gap::needs_what_was_deleted);
                self.link.remember(
                    now,
                    &part.answer,
                    part.deletions,
                    self.settings.limits,
                    self.settings.window,
                    needed,
                );
            }
        }
        for (tag, kept) in undone {
            self.redis_undid(now, &tag, kept);
        }
        if let Some(left) = left {
            self.redis_failed(now, HANDED_BACK, left.reason);
        } else if !self.batch.owes_handed_back() {
            self.link.is_well_again(HANDED_BACK);
        }
        if self.link.is_well_again(id) {
            self.say(Observation::RedisRecovered);
        }
        if self.state == State::CatchingUp(CatchUp::AwaitingRedis) {
            self.catch_up();
        }
    }

    pub(super) fn redis_failed(&mut self, now: Instant, id: u64, reason: String) {
        self.beats.doubt(now);
        if self.link.failed(id, reason.clone()) {
            self.say(Observation::RedisFailed { reason });
        }
    }

    /// Another server, or the same after a restart: what was acknowledged after this number, or
    /// lately, may be undone.
    fn redis_undid(&mut self, now: Instant, tag: &Arc<str>, kept: Kept) {
        let again = match kept {
            Kept::All => return,
            Kept::UpTo(number) => self.link.since(tag, number).map(|targets| targets.len()),
            Kept::Unknown => None,
        };
        if again.is_some() || !self.said.is_repeat(now, "another Redis") {
            self.say(Observation::RedisChanged { again });
        }
        self.watermark.undone();
        let in_session = self.state.hears();
        let is_first = self.gap.is_none();
        self.open_gap(now, Cause::Redis);
        self.beats.forget();
        match (kept, again, &mut self.gap) {
            (Kept::UpTo(number), Some(_), Some(gap)) => {
                gap.redis_undid(tag, number, is_first && in_session)
            }
            _ => self.demand(Resume::Replay, false),
        }
        if in_session {
            self.actions.push(Action::StopSweep);
            self.batch.clear(Lane::CatchUp);
            self.catch_up_in_time(now);
        }
    }

    /// A server that says something else each time, or keeps no mark, is not swept for without end.
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
}
