//! The primaries of a cluster, and which of them has a slot.
//!
//! Each has a hash tag of its own, in whose slot its mark lives. A tag outlives a fail-over,
//! because the replica that is promoted has the mark of its primary; it ends when its slot is given
//! to another primary, whose deletions the mark says nothing about.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::connection::Settings;
use super::marks::Marks;
use super::server::{Marking, Server, Way, lock};
use super::slots::{self, SLOTS, Seen};
use super::url::Node;
use super::wire::Address;

/// How long a primary may take at first. Most take a millisecond, and each may hold up the others
/// once for so long.
pub(super) const PATIENCE: Duration = Duration::from_millis(250);

/// No primary has the slot.
const NOBODY: usize = usize::MAX;

/// See the module.
pub(super) struct Map {
    pub(super) primaries: Vec<Arc<Primary>>,
    pub(super) tags: Arc<BTreeSet<Arc<str>>>,
    pub(super) seen: Vec<Seen>,
    owners: Vec<usize>, // by slot
}

/// A primary.
pub(super) struct Primary {
    pub(super) id: String,
    pub(super) address: Node,
    pub(super) tag: Arc<str>,
    pub(super) server: Server,
    /// Why it does not answer; while it is looked after, nothing waits for it.
    pub(super) doubt: Mutex<Option<String>>,
    patience: Mutex<Duration>,
}

impl Map {
    /// As it was seen. What is known of primaries that are still there is kept.
    pub(super) fn new(
        seen: Vec<Seen>,
        before: Option<&Self>,
        settings: &Settings,
        marks: Option<&Arc<Marks>>,
    ) -> Self {
        let primaries: Vec<_> =
            seen.iter().map(|one| Primary::of(one, &seen, before, settings, marks)).collect();
        let mut owners = vec![NOBODY; usize::from(SLOTS)];
        for (index, one) in seen.iter().enumerate() {
            for &(first, last) in &one.ranges {
                (first..=last).for_each(|slot| owners[usize::from(slot)] = index);
            }
        }
        let tags = Arc::new(primaries.iter().map(|primary| primary.tag.clone()).collect());
        Self { primaries, tags, seen, owners }
    }

    /// Who has the slot of this key.
    pub(super) fn owner(&self, key: &str) -> Option<usize> {
        self.owner_of_slot(slots::slot(key.as_bytes()))
    }

    /// Who has this slot.
    pub(super) fn owner_of_slot(&self, slot: u16) -> Option<usize> {
        Some(self.owners[usize::from(slot)]).filter(|&owner| owner != NOBODY)
    }

    /// Has a slot changed hands twice in these? Then a walk may have missed its keys.
    pub(super) fn moved_twice(maps: [&Self; 3]) -> bool {
        let owner = |map: &Self, slot: usize| {
            map.primaries.get(map.owners[slot]).map(|primary| primary.id.clone())
        };
        (0..usize::from(SLOTS)).any(|slot| {
            let [first, second, third] = maps.map(|map| owner(map, slot));
            first != second && second != third
        })
    }
}

impl Primary {
    fn of(
        one: &Seen,
        all: &[Seen],
        before: Option<&Map>,
        settings: &Settings,
        marks: Option<&Arc<Marks>>,
    ) -> Arc<Self> {
        let has = |tag: &str| {
            let slot = slots::slot(tag.as_bytes());
            one.ranges.iter().any(|&(first, last)| (first..=last).contains(&slot))
        };
        let known = before.map_or(&[][..], |before| &before.primaries);
        let same = known.iter().find(|known| known.id == one.id && has(&known.tag));
        if let Some(same) = same.filter(|same| same.address == one.address) {
            return same.clone();
        }
        // Promoted: the other one is no primary any more.
        let replaced = || {
            known
                .iter()
                .find(|known| has(&known.tag) && all.iter().all(|other| other.id != known.id))
        };
        let is_new = !known.iter().any(|known| known.id == one.id);
        let follows = same.or_else(|| if is_new { replaced() } else { None });
        let tag: Arc<str> = match follows {
            Some(follows) => follows.tag.clone(),
            None => slots::tag(one.ranges.first().map_or(0, |range| range.0)).into(),
        };
        let marking = match follows.and_then(|follows| follows.server.marking.clone()) {
            Some(marking) => Some(marking),
            None => marks.map(|marks| Marking::new(marks, tag.clone())),
        };
        let way = Way::At(Address::Host(one.address.clone()));
        let server = Server::new(settings.clone(), way, marking);
        Arc::new(Self {
            id: one.id.clone(),
            address: one.address.clone(),
            tag,
            server,
            doubt: Mutex::new(None),
            patience: Mutex::new(PATIENCE),
        })
    }

    /// For people.
    pub(super) fn name(&self) -> String {
        format!("{}:{}", self.address.0, self.address.1)
    }

    pub(super) fn doubt(&self) -> Option<String> {
        lock(&self.doubt).clone()
    }

    /// How long it may take for a command before what it should do is handed back. It goes on all
    /// the same.
    pub(super) fn patience(&self) -> Duration {
        *lock(&self.patience)
    }

    /// It answers, but later than that: it is slow, or far away.
    pub(super) fn be_patient(&self, most: Duration) {
        let mut patience = lock(&self.patience);
        *patience = (*patience * 2).min(most);
    }

    /// It had not answered at all.
    pub(super) fn be_impatient(&self) {
        *lock(&self.patience) = PATIENCE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Source, Tls};

    fn seen(id: &str, port: u16, ranges: &[(u16, u16)]) -> Seen {
        Seen { id: id.into(), address: ("h".into(), port), ranges: ranges.to_vec() }
    }

    fn map(seen: Vec<Seen>, before: Option<&Map>) -> Map {
        let settings = Settings {
            secret: Source::from(secrecy::SecretString::from("redis-cluster://h")),
            tls: Tls::default(),
            timeout: Duration::from_secs(1),
        };
        Map::new(seen, before, &settings, Some(&Arc::new(Marks::new("test"))))
    }

    fn tags(map: &Map) -> Vec<&str> {
        map.primaries.iter().map(|primary| &*primary.tag).collect()
    }

    #[test]
    fn a_tag_follows_a_fail_over_and_ends_when_its_slot_is_given_away() {
        let first = map(vec![seen("a", 1, &[(0, 8000)]), seen("b", 2, &[(8001, 16383)])], None);
        let [a, b] = tags(&first)[..] else { panic!("two") };
        assert_eq!([slots::slot(a.as_bytes()), slots::slot(b.as_bytes())], [0, 8001]);

        let promoted =
            map(vec![seen("a2", 3, &[(0, 8000)]), seen("b", 2, &[(8001, 16383)])], Some(&first));
        assert_eq!(tags(&promoted), [a, b]);
        assert!(Arc::ptr_eq(&first.primaries[1], &promoted.primaries[1]), "its connection is kept");

        let given = map(
            vec![seen("a2", 3, &[(1, 8000)]), seen("b", 2, &[(0, 0), (8001, 16383)])],
            Some(&promoted),
        );
        assert_ne!(tags(&given)[0], a, "it lives at b now, and says nothing of b");
        assert_eq!(tags(&given)[1], b);

        let joined = map(
            vec![
                seen("a2", 3, &[(1, 8000)]),
                seen("c", 4, &[(0, 0)]),
                seen("b", 2, &[(8001, 16383)]),
            ],
            Some(&promoted),
        );
        assert!(
            joined
                .primaries
                .iter()
                .all(|primary| primary.id == "b" || slots::slot(primary.tag.as_bytes()) < 2)
        );
        assert_ne!(tags(&joined)[0], a);
    }

    #[test]
    fn a_slot_that_changes_hands_twice_is_noticed() {
        let with =
            |owner: &str| map(vec![seen("x", 1, &[(1, 16383)]), seen(owner, 2, &[(0, 0)])], None);
        let [a, b] = [with("a"), with("b")];
        assert!(Map::moved_twice([&a, &b, &a]));
        assert!(!Map::moved_twice([&a, &b, &b]) && !Map::moved_twice([&a, &a, &b]));
    }
}
