//! The timers: what happens because time passes.

use std::time::Instant;

use crate::batch::Lane;
use crate::messages::{Cause, Request};

use super::{Action, CatchUp, Machine, State};

/// All that there are. Each is derived from the part that sets and clears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// Open a session. Set by a loss.
    Reconnect,
    /// Give up on opening one. Set by the attempt, cleared by LISTEN.
    ConnectTimeout,
    /// Leave with work undone. Set by a shutdown.
    DrainTimeout,
    /// Begin to catch up again. Set by the failure of a sweep.
    CatchUpRetry,
    /// PostgreSQL does not take a heartbeat. Set by asking for one, cleared by its answer.
    BeatTimeout,
    /// Nothing arrives: half-open. Set anew by everything that arrives, and while nothing is
    /// received because the batch is full.
    Silence,
    /// Ask for a heartbeat. Set by the last one's answer, earlier if somebody waits.
    Beat,
    /// Report skipped payloads. Set by the first one, or ten seconds after the last report.
    ReportSkipped,
    /// Report how far catching up is. Set by the gap, and by the last report.
    ReportProgress,
    /// The batch is full and Redis does nothing about it. Set by its last answer, cleared by room.
    Stall,
    /// Read the watches. Set by a message that they have changed, not before the pause after the
    /// last reading.
    ReadWatches,
    /// Read the change log. Set by the last reading, earlier by a ring or a heartbeat; not while
    /// the batch is full.
    ReadLog,
    /// Ask the replicas. Set by the last question.
    AskReplicas,
    /// Walk through Redis for patterns that wait. Set by the batch; the command is sent after every
    /// input.
    Walk,
    /// Delete once more. Set by the delete, if there is a place; the command is sent after every
    /// input.
    SecondDelete,
}

impl Timer {
    /// In the order in which they fire.
    const ALL: [Self; 15] = [
        Self::Reconnect,
        Self::ConnectTimeout,
        Self::DrainTimeout,
        Self::CatchUpRetry,
        Self::BeatTimeout,
        Self::Silence,
        Self::Beat,
        Self::ReportSkipped,
        Self::ReportProgress,
        Self::Stall,
        Self::ReadWatches,
        Self::ReadLog,
        Self::AskReplicas,
        Self::Walk,
        Self::SecondDelete,
    ];
}

impl Machine {
    /// When to poll at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        Timer::ALL.into_iter().filter_map(|timer| self.due(timer)).min()
    }

    pub(super) fn tick(&mut self, now: Instant) {
        if self.state.in_session() && self.batch.is_full(Lane::Live) {
            self.beats.note_received(now);
        }
        for timer in Timer::ALL {
            if self.due(timer).is_some_and(|due| now >= due) {
                self.fire(now, timer);
            }
        }
    }

    fn due(&self, timer: Timer) -> Option<Instant> {
        let settings = &self.settings;
        let in_session = self.state.in_session();
        let is_full = self.batch.is_full(Lane::Live);
        match (timer, &self.state) {
            (Timer::Reconnect, State::Waiting { until }) => Some(*until),
            (Timer::ConnectTimeout, State::Connecting { since }) => Some(*since + settings.timeout),
            (Timer::DrainTimeout, State::Draining { until }) => Some(*until),
            (Timer::CatchUpRetry, State::CatchingUp(CatchUp::AwaitingRetry { until })) => {
                Some(*until)
            }
            (Timer::ReportProgress, State::CatchingUp(_)) => {
                self.gap.as_ref().map(super::gap::Gap::report_due)
            }
            (Timer::BeatTimeout, _) if in_session => self.beats.unsent(settings.timeout),
            (Timer::Silence, _) if in_session => Some(self.beats.silent(settings.timeout)),
            (Timer::Beat, _) if in_session => self.beats.next(settings.interval),
            (Timer::ReportSkipped, _) if in_session => self.intake.report_due(),
            (Timer::Stall, _) if in_session && is_full => Some(self.idle_since() + settings.stall),
            (Timer::ReadWatches, _) if in_session => self.watch_reading.due(),
            (Timer::ReadLog, _) if in_session && !is_full => self.change_log.due(),
            (Timer::AskReplicas, _) if !self.state.is_leaving() => {
                self.second_deletes.ask_due(settings.interval)
            }
            (Timer::Walk, _) if self.state != State::Stopped => self.batch.due(),
            (Timer::SecondDelete, _)
                if !self.state.is_leaving() && self.batch.has_place_aside() =>
            {
                self.second_deletes.due()
            }
            _ => None,
        }
    }

    fn fire(&mut self, now: Instant, timer: Timer) {
        match timer {
            Timer::Reconnect => {
                self.actions.push(Action::OpenSession);
                self.enter(State::Connecting { since: now });
            }
            Timer::ConnectTimeout => self.lost(
                now,
                Cause::Session,
                "PostgreSQL did not answer within heartbeat.timeout".into(),
            ),
            Timer::DrainTimeout => self.stop(false),
            Timer::CatchUpRetry => self.catch_up(),
            Timer::BeatTimeout => self.lost(
                now,
                Cause::Heartbeat,
                "PostgreSQL did not take a heartbeat within heartbeat.timeout".into(),
            ),
            Timer::Silence => {
                let reason = match self.state {
                    State::Subscribing => {
                        "LISTEN succeeded and nothing arrives; connect to PostgreSQL itself, not through a transaction-mode pooler"
                    }
                    _ => "nothing arrived within heartbeat.timeout: the connection is half-open",
                };
                self.lost(now, Cause::Heartbeat, reason.into());
            }
            Timer::Beat => self.beat(now),
            Timer::ReportSkipped => {
                let skipped = self.intake.report(now);
                self.say(skipped);
            }
            Timer::ReportProgress => {
                if let Some(gap) = &mut self.gap {
                    let progress = gap.report(now);
                    self.say(progress);
                }
            }
            Timer::Stall => self.overflow(now),
            Timer::ReadWatches => {
                self.watch_reading.begin(now);
                self.ask(Request::ReadWatches);
            }
            Timer::ReadLog => {
                self.change_log.ask(now);
                self.ask(Request::ReadLog);
            }
            Timer::AskReplicas => {
                self.second_deletes.ask(now);
                self.actions.push(Action::AskReplicas(now));
            }
            Timer::Walk | Timer::SecondDelete => {} // `send` follows
        }
    }

    /// Since when Redis, or a part of it, has done nothing about what waits.
    fn idle_since(&self) -> Instant {
        let answered = self.link.answered();
        self.batch.handed_back_since().map_or(answered, |since| since.min(answered))
    }
}
