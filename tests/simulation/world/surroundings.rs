//! What surrounds the machine: its session, its sweeps, and Redis.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use unstale::batch::{Command, Lane};
use unstale::deletion::Deletions;
use unstale::delivered::Delivered;
use unstale::glob::Globs;
use unstale::listener::machine::{Action, Input, State};
use unstale::mark::{Answer, Found, RedisMark};
use unstale::messages::{self, Opening, Request, Swept};
use unstale::watched::Watched;
use unstale::watermark::{
    Beat, Checkpoint, LogPlace, LogRead, PgTime, Progress, Proven, Server, Snapshot, Stored,
};

use super::{Event, Flaw, World};

impl World {
    pub(super) fn handle(&mut self, input: Input<'_>) {
        self.machine.handle(self.instant(), input);
        self.turn();
    }

    pub(super) fn session_says(&mut self, event: messages::Event) {
        self.handle(Input::Session(event));
    }

    /// Lets the machine do what is due.
    pub(super) fn turn(&mut self) {
        for action in self.machine.poll(self.instant()) {
            self.act(action);
        }
        if *self.machine.state() == State::Stopped {
            self.restart();
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::AskReplicas(_) => unreachable!("there are none"),
            Action::OpenSession => {
                self.end_session();
                let session = self.session;
                self.before_listen = Some(self.rows.clone());
                if self.up {
                    self.later(50, Event::ListenActive { session });
                } else {
                    self.later(
                        50,
                        Event::Session {
                            session,
                            says: messages::Event::Lost("connection refused".into()),
                        },
                    );
                }
            }
            Action::CloseSession => {
                self.end_session();
                self.sweep += 1;
            }
            Action::Ask(request) => self.asked(request),
            Action::Sweep { checkpoint, done, log } => {
                self.log_done = log;
                self.start_sweep(checkpoint, done.get(&1).copied());
            }
            Action::StopSweep => self.sweep += 1,
            Action::Send(command) => {
                self.later(2, Event::RedisAttempt { listener: self.listener, command })
            }
            Action::Observe(observation) => self.say(|| format!("    {observation:?}")),
        }
    }

    /// What the session does, if it hears it.
    fn asked(&mut self, request: Request) {
        if let Request::CloseGap(_) = request {
            self.brought = None;
        }
        if !self.listening || self.black_holed {
            return;
        }
        let session = self.session;
        match request {
            Request::Beat { n, progress } => self.beat(n, progress),
            Request::Keep(progress) | Request::Save(progress) if self.up => self.save(progress),
            Request::ReadWatches => {
                let before = if self.flaw == Flaw::WatchesReadBefore {
                    self.rev.max(2) - 1
                } else {
                    self.rev
                };
                self.later(
                    5,
                    Event::Session {
                        session,
                        says: messages::Event::Watches(vec![watched(before)]),
                    },
                );
            }
            Request::ReadLog => self.later(3, Event::LogPage { session }),
            Request::Keep(_) | Request::Save(_) | Request::OpenGap(..) | Request::CloseGap(_) => {}
        }
    }

    fn save(&mut self, progress: Progress) {
        let Progress { checkpoint, replay, redis } = progress;
        if let Some(replay) = &replay {
            self.log.retain(|(xid, ..)| !replay.log.sees(*xid)); // emptied
        }
        self.stored = Some(Stored {
            proven: Proven { checkpoint: Some(checkpoint), replay },
            redis,
            timeline: self.server().timeline,
            forgotten: false,
            saved_at: None,
        });
    }

    pub(super) fn server(&self) -> Server {
        let (timeline, starts) = if self.flaw == Flaw::TimelineUnchanged {
            (1, 0)
        } else {
            (self.timeline, self.starts)
        };
        Server { timeline: format!("7/{timeline}"), started: PgTime(starts) }
    }

    fn beat(&mut self, n: u64, progress: Option<Progress>) {
        self.saved_at = self.clock();
        if let Some(progress) = progress {
            self.save(progress);
        }
        let beat = Beat { n, at: PgTime(self.clock()), snapshot: self.snapshot() };
        self.take_xid();
        self.notify(self.session as u32, format!(r#"{{"heartbeat":{n}}}"#));
        self.later(
            3,
            Event::Session {
                session: self.session,
                says: messages::Event::BeatSent { beat, queue_ratio: 0.0 },
            },
        );
    }

    fn snapshot(&self) -> Snapshot {
        let xmax = self.next_xid;
        let mut open: Vec<u64> = self.open.iter().map(|transaction| transaction.xid).collect();
        if self.flaw == Flaw::OpenTransactionsIgnored {
            open.clear();
        }
        open.sort_unstable();
        Snapshot { xmin: open.first().copied().unwrap_or(xmax), xmax, open: open.into() }
    }

    /// What is said nowhere else, a few changes at a time.
    fn log_page(&mut self, session: u64) {
        if self.pages.is_empty() && self.seen_next.is_none() {
            let news =
                self.log.iter().filter(|(xid, announced, _)| !announced && !self.seen.sees(*xid));
            let last = news.clone().map(|(xid, ..)| *xid).max();
            self.pages = news.map(|(.., change)| change.clone()).collect();
            self.seen_next = Some(match (self.flaw, last) {
                (Flaw::LogReadInOrder, None) => self.seen.clone(),
                (Flaw::LogReadInOrder, Some(last)) => {
                    Snapshot { xmin: last + 1, xmax: last + 1, open: [].into() }
                }
                _ => self.snapshot(),
            });
        }
        let changes: Vec<String> = self.pages.drain(..self.pages.len().min(3)).collect();
        let more = !self.pages.is_empty();
        if !more && let Some(seen) = self.seen_next.take() {
            self.seen = seen;
        }
        self.later(3, Event::Session { session, says: messages::Event::LogRead { changes, more } });
    }

    /// Pages in the order of their stamps, each read when its turn comes; then the log.
    fn start_sweep(&mut self, from: Option<Checkpoint>, done: Option<PgTime>) {
        self.sweep += 1;
        self.sweep_pace = if self.one_in(3) { 2_000 } else { 20 };
        let done = if self.flaw == Flaw::PagesTrusted { self.brought } else { done };
        let watermark = from
            .as_ref()
            .and_then(|from| from.watermark)
            .max(done)
            .map_or(i64::MIN, |watermark| watermark.0);
        let done = from.map_or_else(Snapshot::nothing, |from| from.log);
        let page = Event::SweepPage { sweep: self.sweep, after: watermark.saturating_sub(1), done };
        self.later(self.sweep_pace, page);
    }

    /// All rows of the next stamp.
    fn sweep_page(&mut self, after: i64, done: Snapshot) {
        let rows = match (self.flaw, &self.before_listen) {
            (Flaw::SweepBeforeListen, Some(rows)) => rows,
            _ => &self.rows,
        };
        let sweep = self.sweep;
        let Some(stamp) = rows.values().map(|row| row.stamp).filter(|stamp| *stamp > after).min()
        else {
            return self.later(20, Event::SweepLog { sweep, done, after: None });
        };
        let page = rows.iter().filter(|(_, row)| row.stamp == stamp);
        let page =
            page.map(|(id, row)| format!(r#"{{"id":"{id}","email":"{}"}}"#, row.email)).collect();
        self.machine.handle(self.instant(), Input::Swept(Swept::Rows(1, page)));
        self.brought = Some(PgTime(stamp));
        self.handle(Input::Swept(Swept::Page(1, PgTime(stamp))));
        self.later(self.sweep_pace, Event::SweepPage { sweep, after: stamp, done });
    }

    /// The next row of the log, in the order of transactions and ids.
    fn sweep_log(&mut self, done: Snapshot, after: Option<LogPlace>) {
        // As with the pages of a table: what is cut off is hardest.
        if after.is_some() && !self.is_healed && self.one_in(3) {
            return self.cut("in the middle of the log");
        }
        let mut rows: Vec<(LogPlace, &String)> = Vec::new();
        let mut ids = BTreeMap::new();
        for (xid, _, change) in self.log.iter().filter(|(xid, ..)| !done.sees(*xid)) {
            let id = ids.entry(*xid).or_insert(0);
            *id += 1;
            rows.push(((*xid, *id), change));
        }
        if let Some(LogRead { seen, through }) = &self.log_done {
            let is_trusted = self.flaw == Flaw::LogPlaceTrusted;
            rows.retain(|(place, _)| place > through || !is_trusted && !seen.sees(place.0));
        }
        let sweep = self.sweep;
        let next =
            rows.into_iter().filter(|(place, _)| after.is_none_or(|after| *place > after)).min();
        let Some((place, change)) = next.map(|(place, change)| (place, change.clone())) else {
            return self.at(self.now, Event::SweepEnd { sweep });
        };
        self.machine.handle(self.instant(), Input::Swept(Swept::Log(vec![change])));
        // Of what had not ended for an earlier sweep it says nothing.
        if self.log_done.as_ref().is_none_or(|done| place > done.through) {
            self.machine.handle(self.instant(), Input::Swept(Swept::LogPage(place)));
        }
        self.turn();
        self.later(self.sweep_pace, Event::SweepLog { sweep, done, after: Some(place) });
    }

    pub(super) fn happen(&mut self, event: Event) {
        match event {
            Event::ListenActive { session } if session == self.session && self.up => {
                self.listening = true;
                self.last_delivery = self.now;
                self.seen = self.snapshot();
                self.seen_next = None;
                self.pages.clear();
                let server = self.server();
                let stored = self
                    .stored
                    .clone()
                    .map(|stored| Stored { saved_at: Some(PgTime(self.saved_at)), ..stored });
                let was_here = self.saved_at > 0;
                self.saved_at = self.clock();
                let seen = self.seen.clone();
                let (backend, watches) = (session as u32, vec![watched(self.rev)]);
                let opening = Opening {
                    backend,
                    watches,
                    server,
                    unknown: None,
                    stored,
                    was_here,
                    forgotten: Vec::new(),
                    seen,
                };
                self.later(
                    30,
                    Event::Session {
                        session,
                        says: messages::Event::Subscribed(Box::new(opening)),
                    },
                );
            }
            Event::LogPage { session } if session == self.session && !self.black_holed => {
                self.log_page(session)
            }
            Event::Session { session, says } if session == self.session && !self.black_holed => {
                self.session_says(says)
            }
            Event::Notification { session, backend, payload }
                if session == self.session && !self.black_holed =>
            {
                if self.machine.accepts(Lane::Live) {
                    self.say(|| format!("    <- {payload}"));
                    self.handle(Input::Notified { backend, payload: &payload });
                } else {
                    // It waits on the connection, and those behind it wait, too: the sequence keeps
                    // their order.
                    self.wait_in_line(Event::Notification { session, backend, payload });
                }
            }
            Event::SweepPage { sweep, after, done } if sweep == self.sweep => {
                if self.machine.accepts(Lane::CatchUp) {
                    self.sweep_page(after, done);
                } else {
                    self.wait_in_line(Event::SweepPage { sweep, after, done });
                }
            }
            Event::SweepLog { sweep, done, after } if sweep == self.sweep => {
                if self.machine.accepts(Lane::CatchUp) {
                    self.sweep_log(done, after);
                } else {
                    self.wait_in_line(Event::SweepLog { sweep, done, after });
                }
            }
            Event::SweepEnd { sweep } if sweep == self.sweep => {
                if self.machine.accepts(Lane::CatchUp) {
                    self.handle(Input::Swept(Swept::Ended));
                } else {
                    self.wait_in_line(Event::SweepEnd { sweep });
                }
            }
            Event::RedisAttempt { listener, command } => self.redis(listener, command),
            Event::RedisReply { listener, id, redis, answer, deletions }
                if listener == self.listener =>
            {
                self.redis_heard = redis;
                self.handle(Input::Acknowledged {
                    id,
                    delivered: Delivered::whole(answer, deletions),
                });
            }
            Event::PostgresBack => self.up = true,
            Event::RedisBack => {
                self.redis_up = true;
                self.redis_silent = false;
            }
            _ => {} // for somebody who is gone
        }
    }

    /// A full pipe: everything of the same kind is put off together, in its order.
    fn wait_in_line(&mut self, first: Event) {
        let same = |event: &Event| match &first {
            Event::Notification { .. } => matches!(event, Event::Notification { .. }),
            _ => matches!(
                event,
                Event::SweepPage { .. } | Event::SweepEnd { .. } | Event::SweepLog { .. }
            ),
        };
        let (mut line, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.schedule)
            .into_sorted_vec()
            .into_iter()
            .rev()
            .map(|Reverse(scheduled)| scheduled)
            .partition(|scheduled| same(&scheduled.event));
        self.schedule = rest.into_iter().map(Reverse).collect();
        line.sort();
        let again = self.now + Duration::from_millis(10);
        self.at(again, first);
        for scheduled in line {
            self.last_delivery = self.last_delivery.max(scheduled.at).max(again);
            self.at(scheduled.at.max(again), scheduled.event);
        }
    }

    /// Of the listener's connection, which is made anew when it has failed, or leads to another
    /// Redis.
    fn answer(&mut self) -> Answer {
        let known = self
            .connection
            .take()
            .filter(|(redis, ..)| *redis == self.redis_id || self.flaw == Flaw::FailOverUnnoticed);
        let (redis, number, found) = known.unwrap_or_else(|| {
            self.connections += 1;
            let found = self.mark.clone().after(self.untold.take(), &self.listener.to_string());
            self.untold = Some(found.clone());
            (self.redis_id, self.connections, found)
        });
        self.connection = Some((redis, number, found.clone()));
        self.numbers += 1;
        let mark = RedisMark {
            life: self.listener.to_string().into(),
            connection: number,
            number: self.numbers,
        };
        if self.flaw == Flaw::FailOverUnnoticed {
            return Answer {
                tag: "".into(),
                found: Found::Mark(RedisMark { number: u64::MAX, ..mark.clone() }),
                mark,
                is_marked: true,
            };
        }
        Answer { tag: "".into(), found, mark, is_marked: true }
    }

    fn redis(&mut self, listener: u64, command: Command) {
        let fails = !self.redis_up || self.redis_silent || self.one_in(20);
        let mut answer = self.answer();
        // Refused, or done with the reply lost.
        if self.redis_up && (!fails || self.one_in(2)) {
            self.say(|| format!("    redis does {command:?}"));
            match &command.deletions {
                Deletions::Keys(keys) => keys.iter().for_each(|key| drop(self.cache.remove(key))),
                Deletions::Patterns(patterns) => {
                    let globs = Globs::parse(patterns).expect("patterns");
                    self.cache.retain(|key, _| !globs.matches(key.as_bytes()));
                }
            }
            // A full server refuses it now and then.
            answer.is_marked = !self.one_in(30);
            if answer.is_marked && listener == self.listener {
                self.mark = Found::Mark(answer.mark.clone());
            }
        }
        if listener != self.listener {
            return; // nobody repeats it, and nobody hears
        }
        if fails {
            self.connection = None;
            self.handle(Input::RedisFailed { id: command.id, reason: "no answer".into() });
            self.later(1_000, Event::RedisAttempt { listener, command });
        } else {
            self.untold = None;
            self.later(
                2,
                Event::RedisReply {
                    listener,
                    id: command.id,
                    redis: self.redis_id,
                    answer,
                    deletions: command.deletions,
                },
            );
        }
    }
}

fn watched(rev: u64) -> Watched {
    let templates = ["u:{id}", "e:{email}", "n:{id}"];
    let in_force = if rev.is_multiple_of(2) { &templates[..] } else { &templates[..2] };
    Watched::of(1, rev as i32, "public.users", in_force)
}
