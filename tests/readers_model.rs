//! The readers' protocol of docs/readers.md, explored exhaustively: one key, three readers that
//! read twice each, a writer that commits twice, a delete for each commit that comes at any time
//! after it, and expiry at any moment.
//!
//! What must hold: when everything has come to rest, the key holds the row's last version, a lease,
//! or nothing. Each flaw that the protocol could have must be found.

use std::collections::{BTreeSet, VecDeque};

const READERS: usize = 3;
const READS: u8 = 2;
const COMMITS: u8 = 2;

/// A token is new for every fill: reader and number of the read.
type Token = u8;
/// The one token of a process, in the flaw.
const SHARED: Token = 100;
type Version = u8;

/// A value that was seen serves as a token, in the flaw.
const SEEN: Token = 200;

/// The second commit writes what was there in the beginning.
fn bytes(version: Version) -> u8 {
    version % 2
}

/// What the key holds. `Early` is a lease that carries the value that is being loaded anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Held {
    Absent,
    Lease(Token),
    Early(Token, Version),
    Value(Version),
}

/// Where a reader is: each step is one command to Redis or one query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reader {
    Idle,
    /// It has begun, with the snapshot of a transaction begun before: only in the flaw.
    Began(Version),
    /// The lease is taken.
    Holds(Token),
    /// The row is read, the fill is to come.
    Loaded(Token, Version),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    key: Held,
    row: Version,
    /// Commits whose delete is still to come.
    deletes: u8,
    /// Deletes whose commit is still to come: only in the flaw.
    hasty: u8,
    readers: [Reader; READERS],
    reads: [u8; READERS],
}

/// What an implementation can get wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// One token serves all fills of a process.
    OneToken,
    /// A fill does not compare.
    BlindFill,
    /// The row is read in a snapshot that is older than the lease.
    OldSnapshot,
    /// A delete can come before its commit is visible.
    HastyDelete,
    /// A value is loaded early without a lease, and stored if the key still holds the bytes that
    /// were seen.
    CompareValue,
}

/// Takes what one step changes.
type Steps<'a> = &'a mut dyn FnMut(&dyn Fn(&mut World));

impl World {
    fn new() -> Self {
        Self {
            key: Held::Absent,
            row: 0,
            deletes: 0,
            hasty: 0,
            readers: [Reader::Idle; READERS],
            reads: [0; READERS],
        }
    }

    fn at_rest(&self) -> bool {
        self.row == COMMITS
            && self.deletes == 0
            && self.readers.iter().all(|reader| *reader == Reader::Idle)
    }

    fn is_stale(&self) -> bool {
        matches!(self.key, Held::Value(version) | Held::Early(_, version) if bytes(version) != bytes(self.row))
    }

    /// Every world that one step leads to.
    fn next(&self, flaw: Flaw) -> Vec<Self> {
        let mut next = Vec::new();
        let mut to = |change: &dyn Fn(&mut Self)| {
            let mut world = self.clone();
            change(&mut world);
            next.push(world);
        };
        if self.row < COMMITS {
            to(&|world| {
                world.row += 1;
                world.deletes += 1 - world.hasty;
                world.hasty = 0;
            });
            if flaw == Flaw::HastyDelete && self.hasty == 0 {
                to(&|world| {
                    world.key = Held::Absent;
                    world.hasty = 1;
                });
            }
        }
        if self.deletes > 0 {
            to(&|world| {
                world.key = Held::Absent;
                world.deletes -= 1;
            });
        }
        // Expiry and eviction.
        to(&|world| world.key = Held::Absent);
        for i in 0..READERS {
            self.steps_of(i, flaw, &mut to);
        }
        next
    }

    fn steps_of(&self, i: usize, flaw: Flaw, to: Steps<'_>) {
        let token = if flaw == Flaw::OneToken {
            SHARED
        } else {
            u8::try_from(i).expect("few") * READS + self.reads[i]
        };
        let ends = |world: &mut Self| {
            world.readers[i] = Reader::Idle;
            world.reads[i] += 1;
        };
        match self.readers[i] {
            Reader::Idle if self.reads[i] == READS => {}
            Reader::Idle if flaw == Flaw::OldSnapshot => {
                to(&|world| world.readers[i] = Reader::Began(world.row))
            }
            Reader::Idle | Reader::Began(_) => self.takes(i, token, flaw, to),
            Reader::Holds(token) => {
                to(&|world| world.readers[i] = Reader::Loaded(token, world.row));
                // The load fails: the lease is given up. Or the reader is killed, and it stays.
                to(&|world| {
                    match world.key {
                        Held::Lease(held) if held == token => world.key = Held::Absent,
                        Held::Early(held, version) if held == token => {
                            world.key = Held::Value(version)
                        }
                        _ => {}
                    }
                    ends(world);
                });
                to(&|world| ends(world));
            }
            Reader::Loaded(token, version) => to(&|world| {
                let holds = match (flaw, world.key) {
                    (Flaw::BlindFill, _) => true,
                    (Flaw::CompareValue, Held::Value(there)) => token == SEEN + bytes(there),
                    (_, Held::Lease(held) | Held::Early(held, _)) => held == token,
                    _ => false,
                };
                if holds {
                    world.key = Held::Value(version);
                }
                ends(world);
            }),
        }
    }

    /// A miss, or an early load. A reader that finds a value or another's lease leaves the key as
    /// it is, which is no step.
    fn takes(&self, i: usize, token: Token, flaw: Flaw, to: Steps<'_>) {
        let taken = match self.key {
            Held::Absent => Held::Lease(token),
            Held::Value(version) if flaw == Flaw::CompareValue => {
                return to(&|world| world.readers[i] = Reader::Holds(SEEN + bytes(version)));
            }
            Held::Value(version) => Held::Early(token, version),
            Held::Lease(_) | Held::Early(..) => return,
        };
        to(&|world| {
            world.key = taken;
            world.readers[i] = match world.readers[i] {
                Reader::Began(version) => Reader::Loaded(token, version),
                _ => Reader::Holds(token),
            };
        });
    }
}

/// How many worlds there are, and the first way to a stale one, if there is one.
fn explore(flaw: Flaw) -> (usize, Option<Vec<World>>) {
    let mut seen = BTreeSet::from([World::new()]);
    let mut ahead = VecDeque::from([vec![World::new()]]);
    while let Some(way) = ahead.pop_front() {
        let world = way.last().expect("it begins somewhere");
        if world.at_rest() && world.is_stale() {
            return (seen.len(), Some(way));
        }
        for next in world.next(flaw) {
            if seen.insert(next.clone()) {
                ahead.push_back([way.as_slice(), &[next]].concat());
            }
        }
    }
    (seen.len(), None)
}

#[test]
fn no_order_of_events_leaves_a_stale_value() {
    let (worlds, stale) = explore(Flaw::None);
    assert!(stale.is_none(), "{stale:#?}");
    assert!(worlds > 30_000, "only {worlds} were looked at");
}

#[test]
fn each_flaw_is_found() {
    for flaw in
        [Flaw::OneToken, Flaw::BlindFill, Flaw::OldSnapshot, Flaw::HastyDelete, Flaw::CompareValue]
    {
        assert!(explore(flaw).1.is_some(), "{flaw:?} does no harm here: the model is too small");
    }
}
