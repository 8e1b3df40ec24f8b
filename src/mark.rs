//! The mark: what Redis itself says of how far it has kept its deletes.
//!
//! With each deletion goes a SET of `unstale:mark:<instance>` on the same connection. A server
//! executes both in this order, and what a fail-over or a restart from disk keeps is a prefix of
//! what it had executed. So a mark that is read back proves that all deletes up to it survived,
//! those of later numbers may be undone, and without a mark nothing is proven. Numbers are given
//! out in the order of sending and count through the life of a process. The connection is part of a
//! mark, because a process that ends between noticing a loss and repeating it must not leave a mark
//! that denies it. Pure.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A mark, written as `life:connection:number`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisMark {
    /// The process that wrote it.
    pub life: Arc<str>,
    /// On which of its connections.
    pub connection: u64,
    /// Of the deletion that it followed.
    pub number: u64,
}

impl fmt::Display for RedisMark {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}:{}", self.life, self.connection, self.number)
    }
}

/// A text that is no mark.
#[derive(Debug, thiserror::Error)]
#[error("not a mark")]
pub struct NoMark;

impl FromStr for RedisMark {
    type Err = NoMark;

    fn from_str(text: &str) -> Result<Self, NoMark> {
        let mut parts = text.split(':');
        let (Some(life), Some(connection), Some(number), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NoMark);
        };
        let number_of = |text: &str| text.parse().map_err(|_| NoMark);
        Ok(Self {
            life: life.into(),
            connection: number_of(connection)?,
            number: number_of(number)?,
        })
    }
}

/// What stood in the mark's key when a connection was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// A mark.
    Mark(RedisMark),
    /// Nothing, or nothing of ours: the server is another one, came back empty, or has evicted the
    /// key.
    Nothing,
    /// The user may not look.
    Refused,
}

impl Found {
    /// What is to be reported of `self`, found when a connection of this life was made, if an
    /// earlier one that was not reported had found `earlier`: our own marks may have been written
    /// over it since.
    #[must_use]
    pub fn after(self, earlier: Option<Self>, life: &str) -> Self {
        match (earlier, self) {
            (None, now) => now,
            (Some(earlier @ (Self::Nothing | Self::Refused)), _) => earlier,
            (_, now @ (Self::Nothing | Self::Refused)) => now,
            (Some(Self::Mark(earlier)), Self::Mark(now)) if earlier.life == now.life => {
                Self::Mark(if now.number < earlier.number { now } else { earlier })
            }
            (Some(earlier), Self::Mark(now)) if *now.life == *life => earlier,
            (Some(_), Self::Mark(_)) => Self::Nothing, // somebody else's
        }
    }
}

/// The marks of all primaries as they are stored with the progress: `tag=mark,tag=mark`, or the
/// mark alone where there is one server.
#[must_use]
pub fn stored<'a>(marks: impl Iterator<Item = (&'a str, &'a RedisMark)>) -> Option<String> {
    let marks: Vec<_> = marks
        .map(|(tag, mark)| if tag.is_empty() { mark.to_string() } else { format!("{tag}={mark}") })
        .collect();
    (!marks.is_empty()).then(|| marks.join(","))
}

/// Those that can be read.
pub fn read_stored(text: &str) -> impl Iterator<Item = (&str, RedisMark)> {
    text.split(',').filter_map(|part| {
        let (tag, mark) = part.split_once('=').unwrap_or(("", part));
        Some((tag, mark.parse().ok()?))
    })
}

/// Who has done a deletion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Which primary of a cluster: the hash tag of its mark's key, which lives there. Empty: there
    /// is one server.
    pub tag: Arc<str>,
    /// What the connection found when it was made.
    pub found: Found,
    /// The mark that followed the deletion, or would have.
    pub mark: RedisMark,
    /// Was it written?
    pub is_marked: bool,
}

/// What a connection says about the deletions before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// All of them are kept.
    All,
    /// Those up to this number are.
    UpTo(u64),
    /// It is not known which are.
    Unknown,
}

impl Kept {
    /// Of two, what is known to be kept by both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::All, kept) | (kept, Self::All) => kept,
            (Self::UpTo(one), Self::UpTo(other)) => Self::UpTo(one.min(other)),
        }
    }
}

/// How far the last deletions were marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Last {
    /// Nothing was deleted yet.
    Nothing,
    /// The last one has this mark.
    Mark(RedisMark),
    /// The last one has none.
    Unmarked,
}

impl Last {
    /// What a new connection says, by its first answer.
    #[must_use]
    pub fn kept(&self, answer: &Answer) -> Kept {
        match (self, &answer.found) {
            (Self::Nothing, _) => Kept::All,
            (_, Found::Mark(found)) if found.life == answer.mark.life => Kept::UpTo(found.number),
            (Self::Mark(last), Found::Mark(found))
                if (&last.life, last.connection) == (&found.life, found.connection)
                    && found.number >= last.number =>
            {
                Kept::All
            }
            _ => Kept::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(life: &str, connection: u64, number: u64) -> RedisMark {
        RedisMark { life: life.into(), connection, number }
    }

    fn answer(found: Found) -> Answer {
        Answer { tag: "".into(), found, mark: mark("me", 3, 50), is_marked: true }
    }

    #[test]
    fn a_mark_is_read_as_it_is_written_and_nothing_else_is_one() {
        let written = mark("00ff", 2, 17);
        assert_eq!(written.to_string().parse::<RedisMark>().expect("a mark"), written);
        for text in [
            "",
            "a",
            "a:1",
            "a:1:2:3",
            "a:b:1",
            "a:1:-1",
            "d6e1b34f0c1ad45e8a4c31a38d1f2b7c0cf3b1c2",
        ] {
            assert!(text.parse::<RedisMark>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_nobody_was_told_is_not_hidden_by_our_own_marks() {
        let [ours, less, theirs] =
            [mark("me", 3, 9), mark("me", 1, 4), mark("before", 1, 99)].map(Found::Mark);
        for (now, earlier, expected) in [
            (ours.clone(), None, ours.clone()),
            (ours.clone(), Some(less.clone()), less.clone()),
            (less.clone(), Some(ours.clone()), less),
            (ours.clone(), Some(theirs.clone()), theirs.clone()),
            (theirs, Some(ours.clone()), Found::Nothing),
            (ours.clone(), Some(Found::Nothing), Found::Nothing),
            (Found::Nothing, Some(ours), Found::Nothing),
        ] {
            assert_eq!(
                now.clone().after(earlier.clone(), "me"),
                expected,
                "{now:?} after {earlier:?}"
            );
        }
    }

    #[test]
    fn the_marks_of_all_primaries_are_read_as_they_are_stored() {
        let marks = [("a", mark("00ff", 2, 17)), ("1b", mark("00ff", 3, 18))];
        let text = stored(marks.iter().map(|(tag, mark)| (*tag, mark))).expect("marks");
        assert_eq!(text, "a=00ff:2:17,1b=00ff:3:18");
        assert_eq!(read_stored(&text).collect::<Vec<_>>(), marks);
        assert_eq!(read_stored("00ff:2:17").collect::<Vec<_>>(), [("", mark("00ff", 2, 17))]);
        assert_eq!(read_stored("a=x,=,b").count(), 0);
        assert_eq!(stored(std::iter::empty()), None);
    }

    #[test]
    fn a_connection_tells_what_was_kept() {
        let last = Last::Mark(mark("before", 4, 90));
        for (last, found, expected) in [
            (Last::Nothing, Found::Nothing, Kept::All),
            (last.clone(), Found::Mark(mark("before", 4, 90)), Kept::All),
            (last.clone(), Found::Mark(mark("before", 4, 91)), Kept::All),
            (last.clone(), Found::Mark(mark("before", 4, 89)), Kept::Unknown),
            (last.clone(), Found::Mark(mark("before", 5, 95)), Kept::Unknown),
            (last.clone(), Found::Mark(mark("another", 4, 95)), Kept::Unknown),
            (last.clone(), Found::Nothing, Kept::Unknown),
            (last, Found::Refused, Kept::Unknown),
            (Last::Unmarked, Found::Mark(mark("before", 4, 95)), Kept::Unknown),
            (Last::Unmarked, Found::Mark(mark("me", 2, 40)), Kept::UpTo(40)),
            (Last::Mark(mark("me", 2, 45)), Found::Mark(mark("me", 1, 40)), Kept::UpTo(40)),
        ] {
            assert_eq!(last.kept(&answer(found.clone())), expected, "{last:?} {found:?}");
        }
    }
}
