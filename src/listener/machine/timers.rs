//! The timers: what happens because time passes.
//!
//! Each is a field that [`Machine::deadline`] and `tick` compare with the clock's reading.

use std::time::Instant;

use crate::batch::Lane;
use crate::observe::Cause;

use super::{Action, CatchUp, Machine, State};

impl Machine {
    /// When to tick at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let heart =
            [self.heart.asked + self.settings.interval, self.heart.asked + self.settings.timeout, self.heart.heard + self.settings.timeout];
        let stall = self.batch.is_full(Lane::Live).then(|| self.link.answered() + self.settings.stall);
        let walk = self.batch.next_walk();
        match &self.state {
            State::Waiting { until } | State::Draining { until } => walk.into_iter().chain([*until]).min(),
            State::Connecting { since } => walk.into_iter().chain([*since + self.settings.timeout]).min(),
            State::Stopped => None,
            State::Subscribing | State::CatchingUp(_) | State::Listening => {
                let retry = match self.state {
                    State::CatchingUp(CatchUp::AwaitingRetry { until }) => Some(until),
                    _ => None,
                };
                // The next heartbeat is not due before the last is answered.
                let log = self.log.due().filter(|_| !self.batch.is_full(Lane::Live));
                heart
                    .into_iter()
                    .skip(usize::from(!self.heart.answered))
                    .chain(stall)
                    .chain(retry)
                    .chain(log)
                    .chain(walk)
                    .chain(self.reading.due())
                    .chain(self.hurry_due())
                    .min()
            }
        }
    }

    pub(super) fn tick(&mut self, now: Instant) {
        match self.state {
            State::Waiting { until } if now >= until => {
                self.actions.push(Action::OpenSession);
                self.enter(State::Connecting { since: now });
            }
            State::Connecting { since } if now >= since + self.settings.timeout => {
                self.lost(now, Cause::Session, "PostgreSQL did not answer within heartbeat.timeout".into());
            }
            State::Draining { until } if now >= until => self.stop(false),
            State::CatchingUp(CatchUp::AwaitingRetry { until }) if now >= until => {
                self.catch_up();
                self.pulse(now);
            }
            State::Subscribing | State::CatchingUp(_) | State::Listening => self.pulse(now),
            _ => {}
        }
    }

    /// The timers of a session.
    fn pulse(&mut self, now: Instant) {
        if !self.accepts(Lane::Live) {
            self.heart.heard = now;
        }
        if !self.heart.answered && now >= self.heart.asked + self.settings.timeout {
            return self.lost(now, Cause::Heartbeat, "PostgreSQL did not take a heartbeat within heartbeat.timeout".into());
        }
        if now >= self.heart.heard + self.settings.timeout {
            let reason = match self.state {
                State::Subscribing => {
                    "LISTEN succeeded and nothing arrives; connect to PostgreSQL itself, not through a transaction-mode pooler"
                }
                _ => "nothing arrived within heartbeat.timeout: the connection is half-open",
            };
            return self.lost(now, Cause::Heartbeat, reason.into());
        }
        if self.heart.answered && now >= self.heart.asked + self.settings.interval {
            self.beat(now);
        }
        self.hurry(now);
        self.tell_skipped(now);
        self.tell_progress(now);
        if self.batch.is_full(Lane::Live) && now >= self.link.answered() + self.settings.stall {
            self.overflow(now);
        }
    }

    pub(super) fn beat(&mut self, now: Instant) {
        let n = self.heart.ask(now);
        self.beat_serves(n);
        let progress = self.progress();
        self.actions.push(Action::Beat { n, progress });
    }
}
