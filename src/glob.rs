//! Which keys a set of patterns matches.
//!
//! A walk through Redis serves all patterns that wait when it begins, so the keys that SCAN brings
//! are matched here. The globs are our own (`rule.rs`): literal text in which a backslash escapes
//! the next character, and `*` for a column's value. Redis' other signs (`?`, `[`) never stand
//! unescaped in them, and are refused. Must hold: whatever Redis' own matching finds is found.
//! Pure.

use std::collections::{BTreeSet, HashMap};

use crate::rule::escape_glob;

/// A pattern as its literal texts: `user:*:*` is `["user:", ":", ""]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    parts: Vec<Vec<u8>>, // one more than there are stars
}

/// A text that is not a pattern of ours.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("'{0}' is not a pattern of escaped literals and *")]
pub struct NoGlob(String);

impl Glob {
    /// Reads a pattern.
    ///
    /// # Errors
    /// [`NoGlob`] for an unescaped `?`, `[` or `]`, and for a backslash at the end.
    pub fn parse(pattern: &str) -> Result<Self, NoGlob> {
        let refused = || NoGlob(pattern.to_owned());
        let mut parts = vec![Vec::new()];
        let mut bytes = pattern.bytes();
        while let Some(byte) = bytes.next() {
            let literal = match byte {
                b'*' => {
                    parts.push(Vec::new());
                    continue;
                }
                b'\\' => bytes.next().ok_or_else(refused)?,
                b'?' | b'[' | b']' => return Err(refused()),
                literal => literal,
            };
            if let Some(last) = parts.last_mut() {
                last.push(literal);
            }
        }
        Ok(Self { parts })
    }

    /// What every key that it matches begins with.
    #[must_use]
    pub fn prefix(&self) -> &[u8] {
        self.parts.first().map_or(&[], Vec::as_slice)
    }

    /// Does it match this key? Each literal is taken at its first place, and the last at the end: a
    /// star takes anything, so a later place would never do better.
    #[must_use]
    pub fn matches(&self, key: &[u8]) -> bool {
        let Some((first, rest)) = self.parts.split_first() else { return false };
        let Some(mut key) = key.strip_prefix(first.as_slice()) else { return false };
        let Some((last, middle)) = rest.split_last() else { return key.is_empty() };
        for part in middle {
            match find(key, part) {
                Some(at) => key = &key[at + part.len()..],
                None => return false,
            }
        }
        key.ends_with(last)
    }
}

/// Where `part` first stands in `text`.
fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    if part.is_empty() {
        Some(0)
    } else {
        text.windows(part.len()).position(|window| window == part)
    }
}

/// Many patterns, asked at once: a key is compared only with those whose prefix it has.
#[derive(Debug)]
pub struct Globs {
    by_prefix: HashMap<Vec<u8>, Vec<Glob>>,
    lengths: BTreeSet<usize>, // of the prefixes
}

impl Globs {
    /// Reads the patterns.
    ///
    /// # Errors
    /// [`NoGlob`] of the first that is none.
    pub fn parse(patterns: &[String]) -> Result<Self, NoGlob> {
        let mut globs = Self { by_prefix: HashMap::new(), lengths: BTreeSet::new() };
        for pattern in patterns {
            let glob = Glob::parse(pattern)?;
            globs.lengths.insert(glob.prefix().len());
            globs.by_prefix.entry(glob.prefix().to_owned()).or_default().push(glob);
        }
        Ok(globs)
    }

    /// Does any of them match this key?
    #[must_use]
    pub fn matches(&self, key: &[u8]) -> bool {
        let candidates = self
            .lengths
            .iter()
            .map_while(|&length| key.get(..length))
            .filter_map(|prefix| self.by_prefix.get(prefix));
        candidates.flatten().any(|glob| glob.matches(key))
    }

    /// What Redis is to look for, so that it sends no more than it must: the pattern that finds all
    /// keys that begin as all of these do. `None`: they have nothing in common.
    #[must_use]
    pub fn common(&self) -> Option<String> {
        let mut prefixes = self.by_prefix.keys();
        let first = prefixes.next()?.as_slice();
        let common = prefixes.fold(first, |common, prefix| {
            let same = common.iter().zip(prefix).take_while(|(a, b)| a == b).count();
            &common[..same]
        });
        // A prefix may end in the middle of a letter; what is before it will do.
        let common = match std::str::from_utf8(common) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&common[..error.valid_up_to()]).unwrap_or_default(),
        };
        if common.is_empty() {
            return None;
        }
        let mut pattern = String::with_capacity(common.len() + 1);
        escape_glob(common, &mut pattern);
        pattern.push('*');
        Some(pattern)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(pattern: &str, key: &str) -> bool {
        Glob::parse(pattern).expect("a pattern").matches(key.as_bytes())
    }

    #[test]
    fn a_star_stands_for_anything_and_an_escaped_one_for_itself() {
        for (pattern, key, expected) in [
            ("user:*", "user:42", true),
            ("user:*", "user:", true),
            ("user:*", "users:1", false),
            ("user:*:profile", "user:42:profile", true),
            ("user:*:profile", "user:a:profile:profile", true),
            ("user:*:profile", "user::profil", false),
            ("*:x", "a:b:x", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("constant", "constant", true),
            ("constant", "constant:1", false),
            (r"100\*:*", "100*:1", true),
            (r"100\*:*", "1000:1", false),
            (r"a\\*", r"a\b", true),
            (r"\[\?\]*", "[?]x", true),
            ("é*", "éa", true),
        ] {
            assert_eq!(matches(pattern, key), expected, "{pattern} {key}");
        }
    }

    #[test]
    fn what_is_not_ours_is_refused() {
        for pattern in ["a?", "a[b]", "a]", "a\\"] {
            assert_eq!(Glob::parse(pattern), Err(NoGlob(pattern.into())));
        }
    }

    #[test]
    fn redis_is_asked_for_what_all_patterns_begin_with() {
        let common = |patterns: &[&str]| {
            let patterns: Vec<String> =
                patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
            Globs::parse(&patterns).expect("patterns").common()
        };
        assert_eq!(common(&["app:user:*", "app:order:*:x", "app:u*"]).as_deref(), Some("app:*"));
        assert_eq!(common(&[r"a\*b:*"]).as_deref(), Some(r"a\*b:*"));
        assert_eq!(common(&["a:*", "b:*"]), None);
        assert_eq!(common(&["é:*", "è:*"]), None, "they share the first byte of a letter");
    }

    /// Redis' `stringmatchlen` for the signs that a pattern of ours has, as it is written there.
    fn redis(pattern: &[u8], key: &[u8]) -> bool {
        match pattern {
            [] => key.is_empty(),
            [b'*', rest @ ..] => (0..=key.len()).any(|at| redis(rest, &key[at..])),
            [b'\\', literal, rest @ ..] | [literal, rest @ ..] => {
                key.first() == Some(literal) && redis(rest, &key[1..])
            }
        }
    }

    proptest! {
        #[test]
        fn they_match_what_redis_matches(pattern in "(a|b|:|\\*|\\\\\\*|\\\\\\?){0,8}", key in "[ab:*?]{0,8}") {
            let expected = redis(pattern.as_bytes(), key.as_bytes());
            prop_assert_eq!(matches(&pattern, &key), expected);
            let globs = Globs::parse(&["zzz*".to_owned(), pattern]).expect("patterns");
            prop_assert_eq!(globs.matches(key.as_bytes()), expected);
        }
    }
}
