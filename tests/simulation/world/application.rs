//! What the application does: transactions, writes with every kind of stamp, and fills of the
//! cache.

use unstale::watermark::MARGIN;

use super::{EMAILS, Event, Flaw, IDS, MICROS, Row, Transaction, World};

use std::collections::BTreeMap;
use std::time::Duration;

impl World {
    pub(super) fn work(&mut self) {
        match self.below(10) {
            0..=4 => self.fill(),
            5 if self.open.len() < 4 => self.begin(),
            6 if !self.open.is_empty() => self.end(),
            7 if self.one_in(10) => self.switch(),
            8 if self.one_in(10) => self.forge(),
            _ => self.write(),
        }
    }

    /// Messages that anybody can send, a hundred of each.
    fn forge(&mut self) {
        let revs = self.below(4);
        let message = match self.below(8) {
            0 => format!(r#"{{"watch":1,"rev":{revs},"all":true}}"#),
            1 => format!(r#"{{"watch":{},"rev":1,"new":{{"id":"1"}}}}"#, revs + 2),
            2 | 3 => r#"{"watches":true}"#.to_owned(),
            4 => r#"{"wait":true}"#.to_owned(),
            _ => r#"{"bell":true}"#.to_owned(),
        };
        self.say(|| format!("forged: {message}"));
        (0..100).for_each(|_| self.notify(99, message.clone()));
    }

    /// Caches what is committed, atomically; a fill in flight is the leases' business.
    fn fill(&mut self) {
        let key = match self.below(4) {
            0 | 1 => format!("e:{}", self.below(EMAILS)),
            2 if self.rev.is_multiple_of(2) => format!("n:{}", self.below(IDS)),
            _ => format!("u:{}", self.below(IDS)),
        };
        let value = self.truth(&key);
        if self.redis_up && !self.redis_silent {
            self.say(|| format!("cache {key} = {value}"));
            self.cache.insert(key, value);
        }
    }

    pub(super) fn truth(&self, key: &str) -> String {
        let (kind, number) = key.split_once(':').expect("a key of ours");
        let number: u64 = number.parse().expect("a key of ours");
        let rows = self
            .rows
            .iter()
            .filter(|(id, row)| if kind == "e" { row.email == number } else { **id == number });
        rows.map(|(id, row)| format!("{id}@{}", row.version)).collect::<Vec<_>>().join(",")
    }

    fn begin(&mut self) {
        if !self.up {
            return;
        }
        let xid = self.take_xid();
        let transaction = Transaction {
            xid,
            began: self.clock(),
            prepared: false,
            writes: BTreeMap::new(),
            notifies: Vec::new(),
            log: Vec::new(),
            announces: false,
        };
        self.say(|| format!("begin {xid}"));
        self.open.push(transaction);
    }

    pub(super) fn take_xid(&mut self) -> u64 {
        self.next_xid += 1;
        self.next_xid - 1
    }

    /// A write, in one of the open transactions or in its own.
    fn write(&mut self) {
        if !self.up {
            return;
        }
        let open: Vec<usize> = (0..self.open.len()).filter(|&i| !self.open[i].prepared).collect();
        let own = open.is_empty() || self.one_in(2);
        let at = if own {
            self.begin();
            self.open.len() - 1
        } else {
            open[self.below(open.len() as u64) as usize]
        };
        if own && self.one_in(40) {
            self.truncate(at);
        } else {
            let id = self.below(IDS);
            let locked = self
                .open
                .iter()
                .enumerate()
                .any(|(i, other)| i != at && other.writes.contains_key(&id));
            if !locked {
                self.write_row(at, id);
            }
        }
        if own {
            self.commit(at);
        }
    }

    fn write_row(&mut self, at: usize, id: u64) {
        let old = match self.open[at].writes.get(&id) {
            Some(written) => written.clone(),
            None => self.rows.get(&id).cloned(),
        };
        let clock = self.clock();
        let kept = old.as_ref().map(|old| old.stamp);
        let stamp = match self.below(6) {
            0..=2 => clock,                             // clock_timestamp()
            3 => self.open[at].began,                   // now()
            4 => kept.unwrap_or(clock - 3600 * MICROS), // forgotten
            _ => clock - 3600 * MICROS,                 // of another system
        };
        self.version += 1;
        let email = self.below(EMAILS);
        let new = match &old {
            Some(_) if self.one_in(5) => None,
            Some(old) if !self.one_in(3) => {
                Some(Row { email: old.email, stamp, version: self.version })
            }
            _ => Some(Row { email, stamp, version: self.version }),
        };
        let same_keys = matches!((&old, &new), (Some(old), Some(new)) if old.email == new.email);
        let inserted = old.is_none() && new.is_some();
        let fresh = stamp >= clock - MARGIN.as_micros() as i64;
        let rev = self.rev;
        let object = |row: &Row| format!(r#"{{"id":"{id}","email":"{}"}}"#, row.email);
        let change = match (&old, &new) {
            (None, None) => return,
            (Some(old), None) => format!(r#"{{"watch":1,"rev":{rev},"old":{}}}"#, object(old)),
            (Some(old), Some(new)) if !same_keys => {
                format!(r#"{{"watch":1,"rev":{rev},"new":{},"old":{}}}"#, object(new), object(old))
            }
            (_, Some(new)) => format!(r#"{{"watch":1,"rev":{rev},"new":{}}}"#, object(new)),
        };
        self.say(|| format!("  {} writes {id}: {old:?} -> {new:?}", self.open[at].xid));
        self.tell(at, change, fresh && (same_keys || inserted));
        self.open[at].writes.insert(id, new);
    }

    /// Only alone: it takes the table's lock.
    fn truncate(&mut self, at: usize) {
        if self.open.len() > 1 {
            return;
        }
        let change = format!(r#"{{"watch":1,"rev":{},"all":true}}"#, self.rev);
        self.tell(at, change, false);
        self.open[at].writes = self.rows.keys().map(|id| (*id, None)).collect();
    }

    /// The triggers.
    fn tell(&mut self, at: usize, change: String, sweepable: bool) {
        let others_announce = self
            .open
            .iter()
            .enumerate()
            .any(|(other, transaction)| other != at && transaction.announces);
        let announced = !others_announce && !self.delivers_by_log;
        let transaction = &mut self.open[at];
        transaction.announces |= !others_announce;
        if announced {
            transaction.notifies.push(change.clone());
        } else if !others_announce {
            transaction.notifies.push(r#"{"bell":true}"#.into());
        }
        let is_lost = match self.flaw {
            Flaw::NothingLogged => announced,
            Flaw::OthersNotLogged => announced && sweepable || others_announce,
            _ => announced && sweepable,
        };
        if !is_lost {
            transaction.log.push((announced, change));
        }
    }

    /// The other delivery, or other templates. It takes the table's lock, so that no transaction
    /// has written under the old one and goes on.
    fn switch(&mut self) {
        if self.up && self.open.iter().all(|transaction| transaction.writes.is_empty()) {
            if self.one_in(2) {
                self.delivers_by_log = !self.delivers_by_log;
            } else {
                self.rev += 1;
                // Nobody reads them any more, or has yet.
                let caches =
                    self.replicas.iter_mut().map(|(_, cache, _)| cache).chain([&mut self.cache]);
                caches.for_each(|cache| cache.retain(|key, _| !key.starts_with("n:")));
            }
            self.say(|| {
                format!("delivery by log: {}, revision {}", self.delivers_by_log, self.rev)
            });
            self.notify(1, r#"{"watches":true}"#.into());
        }
    }

    fn end(&mut self) {
        let at = self.below(self.open.len() as u64) as usize;
        match self.below(8) {
            0 => drop(self.open.remove(at)),
            1 => self.open[at].prepared = true,
            2..=4 => self.commit(at),
            _ => {} // it stays open
        }
    }

    pub(super) fn commit(&mut self, at: usize) {
        let transaction = self.open.remove(at);
        self.say(|| format!("commit {}", transaction.xid));
        for (id, row) in transaction.writes {
            match row {
                Some(row) => self.rows.insert(id, row),
                None => self.rows.remove(&id),
            };
        }
        self.log.extend(
            transaction
                .log
                .into_iter()
                .map(|(announced, change)| (transaction.xid, announced, change)),
        );
        for payload in transaction.notifies {
            self.notify(1, payload);
        }
    }

    /// In the order of commit, to whoever listens now.
    pub(super) fn notify(&mut self, backend: u32, payload: String) {
        if self.listening && !self.black_holed {
            self.last_delivery =
                self.last_delivery.max(self.now + Duration::from_micros(self.random % 3_000));
            self.at(
                self.last_delivery,
                Event::Notification { session: self.session, backend, payload },
            );
        }
    }
}
