//! How things stand, for the status page: copies of numbers that are there already, so that to ask costs nothing.

use std::time::{Duration, Instant};

use crate::status::{OpenGap, Waiting};
use crate::watermark::PgTime;

use super::{Machine, State};

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
        let gap = self.gap.as_ref().map(|gap| OpenGap {
            cause: gap.cause.label().to_owned(),
            lasted_seconds: now.saturating_duration_since(gap.since).as_secs_f64(),
            swept: gap.swept,
            logged: gap.logged,
            keys: gap.keys,
        });
        Standing {
            state: self.state.name(),
            redis_failure: self.link.failure().map(str::to_owned),
            watermark: self.watermark.proven().checkpoint.and_then(|checkpoint| checkpoint.watermark),
            watermark_age: self.watermark_age(),
            waiting: Waiting {
                keys: count(targets - patterns),
                patterns: count(patterns),
                bytes: count(bytes),
                commands: count(self.batch.on_their_way()),
                retries: count(self.link.failing()),
                repeats: count(self.repeats.waiting() + self.replicas.waiting()),
            },
            gap,
        }
    }
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Waiting { .. } => "waiting",
            Self::Connecting { .. } => "connecting",
            Self::Subscribing => "subscribing",
            Self::CatchingUp(_) => "catching up",
            Self::Listening => "listening",
            Self::Draining { .. } => "draining",
            Self::Stopped => "stopped",
        }
    }
}
