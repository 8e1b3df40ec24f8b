//! How things stand, for the probes and the status page: copies of numbers that are there already,
//! so that to ask costs nothing.

use std::time::{Duration, Instant};

use crate::messages::Readiness;
use crate::status::{OpenGap, Waiting};
use crate::watermark::PgTime;

use super::{CatchUp, Machine, State};

/// See the module.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// The state's name.
    pub state: &'static str,
    /// Why Redis is not well.
    pub redis_failure: Option<String>,
    /// How far it has come.
    pub watermark: Option<PgTime>,
    /// How far that was behind PostgreSQL's clock at the last heartbeat.
    pub watermark_age: Option<Duration>,
    /// What Redis has still to do.
    pub waiting: Waiting,
    /// The gap that is open.
    pub gap: Option<OpenGap>,
}

impl Machine {
    /// Now.
    #[must_use]
    pub fn standing(&self, now: Instant) -> Standing {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        let (targets, patterns, bytes) = self.batch.all_waiting();
        Standing {
            state: self.state.name(),
            redis_failure: self.link.failure().map(str::to_owned),
            watermark: self
                .watermark
                .proven()
                .checkpoint
                .and_then(|checkpoint| checkpoint.watermark),
            watermark_age: self.watermark.age(),
            waiting: Waiting {
                keys: count(targets - patterns),
                patterns: count(patterns),
                bytes: count(bytes),
                commands: count(self.batch.on_their_way()),
                retries: count(self.link.failing()),
                repeats: count(self.second_deletes.waiting()),
            },
            gap: self.gap.as_ref().map(|gap| gap.shown(now)),
        }
    }

    /// Promise P7, or what stands against it.
    #[must_use]
    pub fn readiness(&self, now: Instant) -> Readiness {
        let why = match &self.state {
            State::Waiting { .. } | State::Connecting { .. } => {
                format!("no session with PostgreSQL: {}", self.lost_because)
            }
            State::Subscribing => "waiting for the first heartbeat to come back".into(),
            State::CatchingUp(CatchUp::AwaitingRedis) => {
                format!(
                    "catching up waits for Redis: {}",
                    self.link.failure().unwrap_or("no answer")
                )
            }
            State::CatchingUp(_) => {
                let cause = self.gap.as_ref().map_or("none", |gap| gap.cause().label());
                match (self.link.failure(), &self.sweep_failure) {
                    (Some(failure), _) => {
                        format!("catching up after a gap ({cause}), and Redis: {failure}")
                    }
                    (None, Some(failure)) => format!(
                        "catching up after a gap ({cause}), and its sweep ended early: {failure}"
                    ),
                    (None, None) => format!("catching up after a gap ({cause})"),
                }
            }
            State::Draining { .. } | State::Stopped => "shutting down".into(),
            State::Listening => match self.link.failure() {
                Some(failure) => format!("Redis: {failure}"),
                None if self.beats.are_fresh(now, self.settings.interval * 2) => {
                    return Readiness::Ready;
                }
                None => {
                    "no heartbeat came through PostgreSQL and Redis within two intervals".into()
                }
            },
        };
        Readiness::NotReady(why)
    }
}
