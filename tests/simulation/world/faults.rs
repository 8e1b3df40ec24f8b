//! What goes wrong: PostgreSQL, Redis, the connections, the clock, and the listener itself.

use std::cmp::Reverse;

use unstale::listener::machine::{Input, Machine, State};
use unstale::mark::Found;
use unstale::messages;
use unstale::watermark::MARGIN;

use super::{Event, Flaw, MICROS, Standby, WINDOW, World, has_standby, settings};

impl World {
    pub(super) fn fault(&mut self) {
        if has_standby(self.seed) && self.one_in(4) {
            return self.postgres_fails_over();
        }
        match self.below(10) {
            0 => self.cut("cut"),
            1 if self.listening => {
                self.say(|| "black hole".into());
                self.black_holed = true;
                self.lost_since = self.now;
            }
            2 if self.up => {
                self.say(|| "postgres down".into());
                self.up = false;
                self.starts += 1;
                self.open.retain(|transaction| transaction.prepared);
                self.cut("the server went away");
                self.later(15_000, Event::PostgresBack);
            }
            3 if self.redis_up => {
                self.say(|| "redis down".into());
                self.redis_up = false;
                self.later(20_000, Event::RedisBack);
            }
            4 if !self.redis_silent => {
                self.say(|| "redis answers no more".into());
                self.redis_silent = true;
                self.later(10_000, Event::RedisBack);
            }
            5 => {
                self.say(|| "redis forgets".into());
                self.mark = Found::Nothing;
                if self.one_in(2) {
                    self.cache.clear(); // or it has evicted the mark alone
                }
            }
            6 => {
                // Within one margin in all, as the design allows.
                let step = self.below(3) as i64 * MICROS;
                if self.clock_back + step <= MARGIN.as_micros() as i64 {
                    self.say(|| format!("the clock steps back by {step} us"));
                    self.clock_back += step;
                }
            }
            7 => self.restart(),
            8 => self.fail_over(),
            _ => self.handle(Input::Shutdown),
        }
    }

    /// A replica becomes Redis. It is behind by less than the window, and was never told of the
    /// last deletes.
    pub(super) fn fail_over(&mut self) {
        let behind = self.below(self.replicas.len() as u64 + 1) as usize;
        if let Some((at, cache, mark)) = self.replicas.get(behind) {
            self.say(|| format!("redis fails over, back to {:.3}", at.as_secs_f64()));
            self.cache = cache.clone();
            if self.flaw != Flaw::MarkOutlivesDeletes {
                self.mark = mark.clone();
            }
            self.redis_id += 1;
        }
    }

    pub(super) fn replicate(&mut self) {
        let Self { now: at, next_xid, rev, saved_at, .. } = *self;
        let (rows, log, stored) = (self.rows.clone(), self.log.clone(), self.stored.clone());
        self.standbys.push_back(Standby { at, next_xid, rows, log, rev, stored, saved_at });
        self.standbys.retain(|standby| standby.at + WINDOW > at);
    }

    /// The standby becomes PostgreSQL. It may lack the last commits: those of which the listener
    /// has heard, because nobody could know of the others. Their xids are given out again.
    pub(super) fn postgres_fails_over(&mut self) {
        let all_is_heard = *self.machine.state() == State::Listening
            && self.listening
            && !self.black_holed
            && self.log.iter().all(|(xid, announced, _)| *announced || self.seen.sees(*xid))
            && !self
                .schedule
                .iter()
                .any(|Reverse(due)| matches!(&due.event, Event::Notification { session, .. } if *session == self.session));
        let behind = self.below(self.standbys.len() as u64 + 1) as usize;
        if all_is_heard
            && let Some(standby) =
                self.standbys.get(behind).filter(|standby| standby.rev == self.rev).cloned()
        {
            self.say(|| format!("postgres fails over, back to {:.3}", standby.at.as_secs_f64()));
            (self.next_xid, self.rows, self.log) = (standby.next_xid, standby.rows, standby.log);
            (self.stored, self.saved_at) = (standby.stored, standby.saved_at);
        } else {
            self.say(|| "postgres fails over".into());
        }
        self.standbys.clear();
        self.open.clear();
        self.timeline += 1;
        self.starts += 1;
        self.cut("the server failed over");
    }

    pub(super) fn cut(&mut self, why: &str) {
        if self.session_is_open() {
            self.say(|| format!("session lost: {why}"));
            self.end_session();
            // Whoever commits while nobody listens is the one who may be forgotten.
            if self.one_in(2) && !self.open.is_empty() {
                let at = self.below(self.open.len() as u64) as usize;
                self.commit(at);
            }
            self.session_says(messages::Event::Lost(why.into()));
        }
    }

    pub(super) fn session_is_open(&self) -> bool {
        matches!(
            self.machine.state(),
            State::Connecting { .. } | State::Subscribing | State::CatchingUp(_) | State::Listening
        )
    }

    /// kill -9, or after a shutdown: what was in flight may or may not reach Redis, and nobody
    /// waits for it.
    pub(super) fn restart(&mut self) {
        self.say(|| "the listener is restarted".into());
        self.end_session();
        self.sweep += 1;
        self.listener += 1;
        (self.connection, self.untold) = (None, None);
        self.machine = Machine::new(settings(self.seed, self.listener), self.instant());
        self.turn();
    }

    pub(super) fn end_session(&mut self) {
        if self.listening && !self.black_holed {
            self.lost_since = self.now;
        }
        self.session += 1;
        self.listening = false;
        self.black_holed = false;
    }

    pub(super) fn heal(&mut self) {
        self.say(|| "all heals".into());
        self.is_healed = true;
        self.up = true;
        self.redis_up = true;
        self.redis_silent = false;
        while !self.open.is_empty() {
            self.commit(0);
        }
        if matches!(self.machine.state(), State::Draining { .. } | State::Stopped) {
            self.restart();
        }
    }
}
