//! When the watches are read, and what arrives meanwhile.
//!
//! Any role can send the message that asks for a reading, so messages are coalesced: one reading that begins after a message serves all
//! that came before it, and readings take a share of the time. Receiving goes on. A change that was received after such a message and
//! before its reading may be one of another revision than the known one. Must hold: it is understood by the rules that are known, if it
//! can be, at once; it is held, and understood once more where its rule turns out to be another one; and no heartbeat that came after it
//! is complete before that (P3). What is held is bounded in bytes; beyond, a watch that turns out to be changed is widened to all its
//! keys.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use crate::batch::Lane;
use crate::change::{self, Announcement};

use super::{Action, Machine};

/// Bytes of changes that are held.
const HELD_BYTES: usize = 256 << 10;

/// Watches of changes that were not held; with more, all of them are meant.
const MAX_WIDENED: usize = 1_024;

/// Watches known to be unknown, at the most.
const MAX_UNKNOWN: usize = 1_024;

/// Pause after a reading, in times of what it took, and at the least.
const PAUSE: (u32, Duration) = (4, Duration::from_millis(20));

/// See the module. Readings are counted from 1 in each session.
#[derive(Debug, Default)]
pub(super) struct Reading {
    begun: u64,
    ended: u64,
    wanted: u64,            // up to this one
    began: Option<Instant>, // the one that is under way
    next: Option<Instant>,  // not before
    held: VecDeque<Held>,
    held_bytes: usize,
    widened: BTreeMap<i32, u64>, // watches of changes that were not held, and the reading that they need
    all_widened: Option<u64>,    // likewise, of any watch
    beats: VecDeque<(u64, u64)>, // heard, and the reading that they need
    unknown: BTreeMap<i32, i32>, // watches that a reading did not find, and up to which revision
}

/// A change, and the reading after which it is understood.
#[derive(Debug)]
struct Held {
    needs: u64,
    payload: String,
    is_understood: bool, // by the rules of then
}

impl Reading {
    /// The watches may have changed; the returned reading will tell.
    pub(super) fn want(&mut self) -> u64 {
        self.wanted = self.begun + 1;
        self.wanted
    }

    /// The reading after which what arrives now is understood, if one is awaited.
    pub(super) fn awaited(&self) -> Option<u64> {
        (self.wanted > self.ended).then_some(self.wanted)
    }

    /// How many have ended.
    pub(super) fn ended(&self) -> u64 {
        self.ended
    }

    /// Did a reading not find the watch, in no revision so new?
    pub(super) fn is_unknown(&self, watch: i32, rev: i32) -> bool {
        self.unknown.get(&watch).is_some_and(|known| rev <= *known)
    }

    /// When one that is wanted may begin.
    pub(super) fn due(&self) -> Option<Instant> {
        self.next.filter(|_| self.wanted > self.begun && self.began.is_none())
    }

    /// May one begin? Then it has.
    fn begins(&mut self, now: Instant) -> bool {
        let begins = self.wanted > self.begun && self.began.is_none() && self.next.is_none_or(|next| now >= next);
        if begins {
            self.begun += 1;
            self.began = Some(now);
        }
        begins
    }

    fn ends(&mut self, now: Instant) {
        if let Some(began) = self.began.take() {
            self.ended = self.begun;
            self.next = Some(now + (now.saturating_duration_since(began) * PAUSE.0).max(PAUSE.1));
        }
    }

    /// Keeps a change until the reading that is awaited has ended.
    pub(super) fn hold(&mut self, needs: u64, watch: i32, payload: &str, is_understood: bool) {
        if self.held_bytes + payload.len() <= HELD_BYTES {
            self.held_bytes += payload.len();
            self.held.push_back(Held { needs, payload: payload.to_owned(), is_understood });
        } else if self.widened.len() < MAX_WIDENED || self.widened.contains_key(&watch) {
            self.widened.insert(watch, needs);
        } else {
            self.all_widened = Some(needs);
        }
    }

    fn not_found(&mut self, watch: i32, rev: i32) {
        if self.unknown.len() >= MAX_UNKNOWN {
            self.unknown.clear();
        }
        let known = self.unknown.entry(watch).or_insert(rev);
        *known = rev.max(*known);
    }
}

impl Machine {
    /// Asks for the watches, if that is wanted and may be.
    pub(super) fn ask_for_watches(&mut self, now: Instant) {
        if self.in_session() && self.reading.begins(now) {
            self.actions.push(Action::ReadWatches);
        }
    }

    /// Heartbeat `n` was heard; what was held before it must be understood first.
    pub(super) fn beat_is_heard(&mut self, n: u64) {
        match self.reading.awaited() {
            None => self.log.heard = n,
            Some(needs) => {
                // Of those that need the same reading the last one proves the most.
                self.reading.beats.pop_back_if(|(_, last)| *last == needs);
                self.reading.beats.push_back((n, needs));
            }
        }
    }

    /// The watches have been read; `changed` are those that are others than they were.
    pub(super) fn watches_are_read(&mut self, now: Instant, changed: &BTreeSet<i32>) {
        self.reading.ends(now);
        let ended = self.reading.ended;
        self.reading.unknown.retain(|watch, _| !changed.contains(watch));
        while let Some(held) = self.reading.held.pop_front_if(|held| held.needs <= ended) {
            self.reading.held_bytes -= held.payload.len();
            self.understand(&held, changed);
        }
        let due = |needs: &u64| *needs <= ended;
        let mut widened: BTreeSet<i32> = self.reading.widened.extract_if(.., |_, needs| due(needs)).map(|(watch, _)| watch).collect();
        if self.reading.all_widened.take_if(|needs| due(needs)).is_some() {
            widened = changed.clone();
        }
        for watch in widened.intersection(changed) {
            self.widen_in(Lane::Live, *watch);
        }
        while let Some((n, _)) = self.reading.beats.pop_front_if(|(_, needs)| due(needs)) {
            self.log.heard = n;
        }
        self.go_on_with_log(now);
        self.beat_is_complete();
    }

    fn understand(&mut self, held: &Held, changed: &BTreeSet<i32>) {
        let Ok(Announcement::Change(change)) = change::parse(&held.payload) else { return };
        if !held.is_understood || changed.contains(&change.watch) {
            let result = self.changed(Lane::Live, &change);
            self.believe(result);
        }
    }

    /// A logged change whose watch no reading finds: later ones like it need no reading.
    pub(super) fn remember_unknown(&mut self, payload: &str) {
        if let Ok(Announcement::Change(change)) = change::parse(payload)
            && self.rules.get(&change.watch).is_none_or(|rule| rule.rev < change.rev)
        {
            self.reading.not_found(change.watch, change.rev);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::batch::{Limits, Work};
    use crate::listener::machine::{Input, Opening, Settings};
    use crate::rule::Rule;
    use crate::watermark::{Beat, PgTime, Server, Snapshot};

    use super::*;

    const BACKEND: u32 = 7;

    fn settings() -> Settings {
        Settings {
            canary: "unstale:canary:test".into(),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(1),
            seed: 1,
            limits: Limits { keys_per_command: 500, in_flight: 8, max_pending: 50_000, slot: None },
            stall: Duration::from_secs(5),
            window: Duration::from_secs(60),
            repeat: Vec::new(),
            replicas: 0,
            max_wait: Duration::from_secs(60),
            shutdown: Duration::from_secs(5),
        }
    }

    fn rule(rev: i32, templates: &[&str]) -> Rule {
        let keys: Vec<String> = templates.iter().map(|key| (*key).to_owned()).collect();
        Rule::new(1, rev, "public.users".into(), &keys).expect("templates")
    }

    /// A machine in a session, which has heard its first heartbeat.
    fn machine(now: Instant) -> Machine {
        let mut machine = Machine::new(settings(), now);
        machine.handle(now, Input::Tick);
        let server = Server { history: "7/1".into(), started: PgTime(0) };
        let opening = Opening { backend: BACKEND, rules: vec![rule(1, &["user:{id}"])], server, stored: None, seen: Snapshot::nothing() };
        machine.handle(now, Input::Subscribed(opening));
        let snapshot = Snapshot { xmin: 10, xmax: 10, open: [].into() };
        machine.handle(now, Input::BeatSent(Beat { n: 1, at: PgTime(0), snapshot }));
        machine.notified(now, BACKEND, r#"{"heartbeat":1}"#);
        machine.handle(now, Input::LogRead { changes: Vec::new(), more: false });
        machine
    }

    fn readings(actions: &[Action]) -> usize {
        actions.iter().filter(|action| **action == Action::ReadWatches).count()
    }

    fn keys(actions: &[Action]) -> Vec<String> {
        let sent = actions.iter().filter_map(|action| match action {
            Action::Send(command) => Some(&command.work),
            _ => None,
        });
        sent.flat_map(|(Work::Keys(texts) | Work::Patterns(texts))| texts.iter().cloned()).filter(|key| !key.contains("canary")).collect()
    }

    const CHANGE: &str = r#"{"watch":1,"rev":1,"new":{"id":"42"}}"#;
    const WATCHES: &str = r#"{"watches":true}"#;

    #[test]
    fn a_hundred_thousand_messages_cost_two_readings_and_hold_up_no_change() {
        let now = Instant::now();
        let mut machine = machine(now);
        let mut asked = 0;
        for n in 0..100_000 {
            assert!(machine.accepts(Lane::Live), "receiving stopped");
            machine.notified(now, 99, WATCHES);
            if n % 128 == 0 {
                asked += readings(&machine.handle(now, Input::Tick));
            }
        }
        assert_eq!(asked, 1);
        machine.notified(now, 5, CHANGE);
        assert_eq!(keys(&machine.handle(now, Input::Tick)), ["user:42"], "at once");
        let later = now + Duration::from_millis(10);
        let actions = machine.handle(later, Input::Watches(vec![rule(1, &["user:{id}"])]));
        assert_eq!((readings(&actions), keys(&actions)), (0, vec![]), "what came since the first began needs another, after a pause");
        assert_eq!(machine.reading.due(), Some(later + Duration::from_millis(40)));
        assert_eq!(readings(&machine.handle(later + Duration::from_millis(40), Input::Tick)), 1);
        let end = later + Duration::from_millis(50);
        machine.handle(end, Input::Watches(vec![rule(1, &["user:{id}"])]));
        assert_eq!(readings(&machine.handle(end + Duration::from_secs(9), Input::Tick)), 0);
    }

    #[test]
    fn a_change_that_is_received_before_its_watch_is_read_is_understood_again_and_the_heartbeat_waits() {
        let now = Instant::now();
        let mut machine = machine(now);
        machine.notified(now, 5, WATCHES);
        machine.notified(now, 5, CHANGE);
        machine.notified(now, 5, r#"{"watch":1,"rev":2,"new":{"id":"43"}}"#);
        let actions = machine.handle(now, Input::Tick);
        assert_eq!((readings(&actions), keys(&actions)), (1, vec!["user:42".to_owned()]));
        machine.beat_is_heard(2);
        assert_eq!(machine.log.heard, 1, "what it proves is still held");
        let actions = machine.handle(now, Input::Watches(vec![rule(2, &["user:{id}", "name:{id}"])]));
        assert_eq!(keys(&actions), ["user:42", "name:42", "user:43", "name:43"]);
        assert_eq!(machine.log.heard, 2);
    }

    #[test]
    fn what_is_held_is_bounded_and_beyond_that_a_changed_watch_is_widened() {
        let now = Instant::now();
        let mut machine = machine(now);
        machine.notified(now, 5, WATCHES);
        for n in 0..100_000 {
            machine.notified(now, 5, &format!(r#"{{"watch":{},"rev":1,"new":{{"id":"{n}"}}}}"#, 1 + n % 5_000));
            if machine.batch.is_full(Lane::Live) {
                machine.batch.clear(Lane::Live);
            }
        }
        assert!(machine.reading.held_bytes <= HELD_BYTES && machine.reading.widened.len() <= MAX_WIDENED);
        machine.batch.clear(Lane::Live);
        machine.handle(now, Input::Tick);
        let actions = machine.handle(now, Input::Watches(vec![rule(2, &["user:{id}", "name:{id}"])]));
        let sent = keys(&actions);
        assert!(sent.contains(&"user:*".to_owned()) && sent.contains(&"name:*".to_owned()), "{} others", sent.len());
    }

    #[test]
    fn who_rings_in_vain_is_heard_ever_less_often() {
        let start = Instant::now();
        let mut machine = machine(start);
        let asked = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::ReadLog));
        let mut count = 0;
        for millisecond in 0..500 {
            let now = start + Duration::from_millis(millisecond);
            machine.notified(now, 99, r#"{"bell":true}"#);
            if asked(&machine.handle(now, Input::Tick)) {
                count += 1;
                machine.handle(now, Input::LogRead { changes: Vec::new(), more: false });
            }
        }
        assert!((30..45).contains(&count), "{count} readings in half a second");
        let now = start + Duration::from_secs(3);
        machine.notified(now, 99, r#"{"bell":true}"#);
        assert!(asked(&machine.handle(now, Input::Tick)), "at once, after a while of silence");
    }
}
