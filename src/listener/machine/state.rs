//! Where the listener is, and where it may go from there.

use std::time::Instant;

use crate::batch::Point;

/// Where the listener is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// No session. Set by every loss; left at `until`.
    Waiting {
        /// The next attempt.
        until: Instant,
    },
    /// A session is being opened. Left when LISTEN has succeeded, or after `heartbeat.timeout`.
    Connecting {
        /// When it began.
        since: Instant,
    },
    /// LISTEN has succeeded. Left when the first heartbeat has come back.
    Subscribing,
    /// The gap is being closed. Left when all that a sweep and the log brought is acknowledged.
    CatchingUp(CatchUp),
    /// Every change is deleted as it comes. Left by a loss, a gap in the session, or a shutdown.
    Listening,
    /// Nothing more is received. Set by a shutdown; left when everything is acknowledged, or at
    /// `until`.
    Draining {
        /// When to give up.
        until: Instant,
    },
    /// The end.
    Stopped,
}

/// How far catching up is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CatchUp {
    /// Redis does not answer: changes are not even collected, because the sweep to come finds them.
    /// Left at its next answer.
    AwaitingRedis,
    /// A sweep failed, or Redis has undone too much too often. Left at `until`.
    AwaitingRetry {
        /// The next attempt.
        until: Instant,
    },
    /// A sweep brings rows. Left when it has ended, or failed.
    Sweeping,
    /// All rows have come; they wait for Redis. Left when everything up to the point is
    /// acknowledged.
    Settling(Point),
}

impl State {
    /// The transitions that there are. Within a gap, catching up may begin again at any time: Redis
    /// may undo what it has done, or be away for so long that what waits is dropped.
    #[must_use]
    pub fn may_become(&self, next: &Self) -> bool {
        use State::{CatchingUp, Connecting, Draining, Listening, Stopped, Subscribing, Waiting};
        match self {
            Waiting { .. } => matches!(next, Connecting { .. } | Draining { .. }),
            Connecting { .. } => matches!(next, Subscribing | Waiting { .. } | Draining { .. }),
            Subscribing => matches!(next, CatchingUp(_) | Waiting { .. } | Draining { .. }),
            CatchingUp(CatchUp::Settling(_)) => {
                matches!(next, CatchingUp(_) | Listening | Waiting { .. } | Draining { .. })
            }
            CatchingUp(_) => matches!(next, CatchingUp(_) | Waiting { .. } | Draining { .. }),
            Listening => matches!(next, CatchingUp(_) | Waiting { .. } | Draining { .. }),
            Draining { .. } => matches!(next, Stopped),
            Stopped => false,
        }
    }

    /// Is there a session that listens, and is it listened to?
    pub(super) fn in_session(&self) -> bool {
        matches!(self, Self::Subscribing | Self::CatchingUp(_) | Self::Listening)
    }

    /// Has the session proved that it hears? From then on a gap can open in it.
    pub(super) fn hears(&self) -> bool {
        matches!(self, Self::CatchingUp(_) | Self::Listening)
    }

    /// Is nothing received any more, by request?
    pub(super) fn is_leaving(&self) -> bool {
        matches!(self, Self::Draining { .. } | Self::Stopped)
    }

    pub(super) fn name(&self) -> &'static str {
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
