//! The link to Redis: who answers, what fails, and what may have to be done again.
//!
//! Must hold: as long as a command fails, Redis is not said to be well, whatever else it does; and
//! what was deleted within `replay.window` is remembered by the number of its mark, as far as it
//! fits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::Limits;
use crate::deletion::{Deletion, Deletions};
use crate::mark::{self, Answer, Kept, Last, RedisMark};

/// Connections of a primary that are remembered to have answered; of an older one, which is heard
/// again, the worst is assumed.
const CONNECTIONS: usize = 64;

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    primaries: BTreeMap<Arc<str>, Primary>, // by the tags of their marks
    here: Arc<BTreeSet<Arc<str>>>,          // tags that there are; empty: none has answered yet
    inherited: Option<Inherited>,
    failing: BTreeSet<u64>, // commands
    failure: Option<String>,
    is_silent: bool, // nothing was done since the last failure
    answered: Instant,
    recent: Recent,
}

/// What is known of a primary's deletions; without a cluster there is one.
#[derive(Debug)]
struct Primary {
    last: Last,
    newest: u64,             // the largest number that was done
    connection: Option<u64>, // the newest that answered
    kept: u64,               // up to this number it knew of what was done before
    heard: BTreeSet<u64>,    // connections that have answered, the last ones
}

/// What was deleted before this process began.
#[derive(Debug)]
struct Inherited {
    at: Instant,
    marks: BTreeMap<Arc<str>, RedisMark>,
}

/// What was deleted lately.
#[derive(Debug, Default)]
struct Recent {
    works: VecDeque<Done>,
    keys: usize,
    bytes: usize,
    forgotten: BTreeMap<Arc<str>, u64>, // the largest numbers that are not in it any more
    is_partial: bool,                   // something younger than the window did not fit
}

#[derive(Debug)]
struct Done {
    at: Instant,
    tag: Arc<str>,
    number: u64,
    deletions: Deletions,
}

impl Primary {
    fn new(last: Last) -> Self {
        Self { last, newest: 0, connection: None, kept: 0, heard: BTreeSet::new() }
    }
}

impl Link {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            primaries: BTreeMap::new(),
            here: Arc::default(),
            inherited: None,
            failing: BTreeSet::new(),
            failure: None,
            is_silent: false,
            answered: now,
            recent: Recent::default(),
        }
    }

    /// Something was deleted before this process began, and its marks were stored.
    pub(super) fn resume(&mut self, now: Instant, stored: Option<&str>) {
        if self.inherited.is_none() && self.here.is_empty() {
            let marks = mark::read_stored(stored.unwrap_or_default())
                .map(|(tag, mark)| (tag.into(), mark))
                .collect();
            self.inherited = Some(Inherited { at: now, marks });
        }
    }

    /// The marks up to which everything that was deleted is proven to be.
    pub(super) fn stored(&self) -> Option<String> {
        let inherited = self.inherited.as_ref().filter(|_| self.here.is_empty());
        match inherited {
            Some(inherited) => {
                mark::stored(inherited.marks.iter().map(|(tag, mark)| (&**tag, mark)))
            }
            None => {
                mark::stored(self.primaries.iter().filter_map(
                    |(tag, primary)| match &primary.last {
                        Last::Mark(mark) => Some((&**tag, mark)),
                        Last::Nothing | Last::Unmarked => None,
                    },
                ))
            }
        }
    }

    /// These primaries there are now. Returns what that says of those that there are no more.
    pub(super) fn are_here(
        &mut self,
        now: Instant,
        tags: &Arc<BTreeSet<Arc<str>>>,
        window: Duration,
    ) -> Vec<(Arc<str>, Kept)> {
        if Arc::ptr_eq(&self.here, tags) || self.here == *tags {
            return Vec::new();
        }
        let is_first = self.here.is_empty();
        self.here = tags.clone();
        let mut gone = Vec::new();
        let mut marks = match &mut self.inherited {
            Some(inherited) if is_first => Some(std::mem::take(&mut inherited.marks)),
            _ => None,
        };
        for tag in tags.iter() {
            let last = match &mut marks {
                Some(marks) => marks.remove(tag).map_or(Last::Unmarked, Last::Mark),
                None => Last::Nothing,
            };
            self.primaries.entry(tag.clone()).or_insert_with(|| Primary::new(last));
        }
        // Nobody can say any more what became of their deletions.
        gone.extend(marks.into_iter().flatten().map(|(tag, _)| (tag, Kept::Unknown)));
        let is_remembered = !self.recent.is_partial
            && self.inherited.as_ref().is_none_or(|inherited| inherited.at + window < now);
        for (tag, primary) in self.primaries.extract_if(.., |tag, _| !tags.contains(tag)) {
            match primary.last {
                Last::Nothing => {}
                _ if is_remembered => gone.push((
                    tag.clone(),
                    Kept::UpTo(self.recent.forgotten.get(&tag).copied().unwrap_or(0)),
                )),
                _ => gone.push((tag, Kept::Unknown)),
            }
        }
        gone
    }

    /// A primary has done something. Returns what a new connection says about what it had done
    /// before.
    pub(super) fn done(&mut self, now: Instant, answer: &Answer) -> Kept {
        self.answered = now;
        self.is_silent = false;
        let Some(primary) = self.primaries.get_mut(&answer.tag) else {
            return Kept::UpTo(answer.mark.number - 1); // of one that is gone since
        };
        let kept =
            primary.kept(answer, self.recent.forgotten.get(&answer.tag).copied().unwrap_or(0));
        // A mark covers all smaller numbers, whichever answer comes first.
        if answer.mark.number > primary.newest {
            primary.newest = answer.mark.number;
            primary.last =
                if answer.is_marked { Last::Mark(answer.mark.clone()) } else { Last::Unmarked };
        }
        kept
    }

    /// Is it the first answer of a newer connection than those that have answered?
    pub(super) fn is_of_new_connection(&self, answer: &Answer) -> bool {
        let primary = self.primaries.get(&answer.tag);
        primary.is_some_and(|primary| primary.connection < Some(answer.mark.connection))
    }

    /// A command fails no more. Is all well again?
    pub(super) fn is_well_again(&mut self, id: u64) -> bool {
        self.failing.remove(&id);
        self.failing.is_empty() && self.failure.take().is_some()
    }

    /// A command failed, and will be repeated. Is it the first?
    pub(super) fn failed(&mut self, id: u64, reason: String) -> bool {
        self.failing.insert(id);
        self.is_silent = true;
        self.failure.replace(reason).is_none()
    }

    /// Nothing has been done for too long.
    pub(super) fn note_away(&mut self) {
        self.is_silent = true;
        self.failure.get_or_insert_with(|| "no answer".into());
    }

    /// Why it is not well.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// How many commands fail. What a part of Redis handed back counts as one.
    pub(super) fn failing(&self) -> usize {
        self.failing.len()
    }

    /// Has it done nothing since its last failure?
    pub(super) fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// When it last did something.
    pub(super) fn answered(&self) -> Instant {
        self.answered
    }

    /// Keeps what was done, within the window and the bounds of the batch; as it is while it is
    /// `needed`, if that fits.
    pub(super) fn remember(
        &mut self,
        now: Instant,
        answer: &Answer,
        deletions: Deletions,
        limits: Limits,
        window: Duration,
        needed: bool,
    ) {
        let Recent { works, keys, bytes, forgotten, is_partial } = &mut self.recent;
        *keys += deletions.len();
        *bytes += deletions.bytes();
        works.push_back(Done {
            at: now,
            tag: answer.tag.clone(),
            number: answer.mark.number,
            deletions,
        });
        let fits = |keys, bytes| keys <= limits.max_pending && bytes <= limits.max_bytes();
        if needed && fits(*keys, *bytes) {
            return;
        }
        while let Some(oldest) = works.front() {
            let is_old = oldest.at + window < now;
            if !is_old && fits(*keys, *bytes) {
                break;
            }
            *is_partial = !is_old;
            *keys -= oldest.deletions.len();
            *bytes -= oldest.deletions.bytes();
            let forgotten = forgotten.entry(oldest.tag.clone()).or_default();
            *forgotten = oldest.number.max(*forgotten);
            works.pop_front();
        }
    }

    /// What a primary deleted after this number; `None`: not all of it is remembered.
    pub(super) fn since(&self, tag: &Arc<str>, number: u64) -> Option<Vec<Deletion>> {
        let is_remembered =
            self.recent.forgotten.get(tag).is_none_or(|forgotten| *forgotten <= number);
        is_remembered.then(|| self.deletions(|done| done.tag == *tag && done.number > number))
    }

    /// What is remembered of the last `replay.window`.
    pub(super) fn recent(&self) -> Vec<Deletion> {
        self.deletions(|_| true)
    }

    fn deletions(&self, wanted: impl Fn(&Done) -> bool) -> Vec<Deletion> {
        let done = self.recent.works.iter().filter(|done| wanted(done));
        done.flat_map(|done| done.deletions.iter()).collect()
    }

    /// How many keys are remembered, and whether there were more.
    pub(super) fn remembered(&self) -> (usize, bool) {
        (self.recent.keys, self.recent.is_partial)
    }
}

impl Primary {
    /// `forgotten`: the largest number that is not remembered any more.
    fn kept(&mut self, answer: &Answer, forgotten: u64) -> Kept {
        let RedisMark { connection, number, .. } = answer.mark;
        if self.connection == Some(connection) {
            return Kept::All;
        }
        let is_first = self.heard.insert(connection);
        if self.heard.len() > CONNECTIONS {
            self.heard.pop_first();
        }
        if self.connection.is_some_and(|newest| connection < newest) {
            // An answer that was on its way when its connection ended: does the server of the next
            // one know of it? And if nothing was heard of its connection yet: what that one found
            // is not what the next one found, which is its mark.
            let known = if number <= self.kept { Kept::All } else { Kept::UpTo(number - 1) };
            let found =
                if is_first { self.bounded(self.last.kept(answer), forgotten) } else { Kept::All };
            return known.and(found);
        }
        self.connection = Some(connection);
        let kept = self.last.kept(answer);
        self.kept = if let Kept::UpTo(number) = kept { number } else { 0 };
        self.bounded(kept, forgotten)
    }

    fn bounded(&self, kept: Kept, forgotten: u64) -> Kept {
        match kept {
            Kept::UpTo(number) if self.newest <= number => Kept::All,
            Kept::UpTo(number) if number < forgotten => Kept::Unknown,
            kept => kept,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::Found;

    fn mark(life: &str, connection: u64, number: u64) -> RedisMark {
        RedisMark { life: life.into(), connection, number }
    }

    /// The command that made a connection may be heard after one of the next connection, which
    /// found the mark of the first.
    #[test]
    fn what_a_connection_found_is_not_lost_if_the_next_one_answers_first() {
        let answer = |found: RedisMark, connection, number| Answer {
            tag: "".into(),
            found: Found::Mark(found),
            mark: mark("me", connection, number),
            is_marked: true,
        };
        for (found, expected) in [
            (mark("before", 1, 99), Kept::Unknown),
            (mark("me", 1, 5), Kept::UpTo(5)),
            (mark("me", 1, 10), Kept::All),
        ] {
            let mut primary = Primary::new(Last::Mark(mark("me", 1, 10)));
            (primary.newest, primary.connection) = (10, Some(1));
            assert_eq!(primary.kept(&answer(mark("me", 2, 11), 3, 12), 0), Kept::All);
            assert_eq!(primary.kept(&answer(found.clone(), 2, 11), 0), expected);
            assert_eq!(primary.kept(&answer(found, 2, 11), 0), Kept::All, "it was said already");
        }
    }
}
