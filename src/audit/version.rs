//! Where a cached value carries the version of its row, and what it says there.
//!
//! A place is a JSONPath of names and indices in a JSON document, or a field of a hash;
//! migrations/repeatable/policy.sql takes the same ones. A version is its text as it is written:
//! what that means is PostgreSQL's to say, which has the column's type. Refuses to guess: a value
//! without a scalar at its place is unreadable.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

/// What every lease begins with, and its length (docs/readers.md).
const LEASE: (&[u8], usize) = (b"unstale:lease:", 46);

/// Bytes of a version, at the most: a row does not say a longer one.
const LONGEST: usize = 8_192;

/// Where a cached copy carries its row's version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a JSON document, which is a string in Redis.
    Json(Vec<Step>),
    /// In the field of this name of a hash.
    Field(String),
}

/// A step into a JSON document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The member of an object.
    Name(String),
    /// The element of an array.
    Index(usize),
}

/// A path that is not understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "version_path '{0}' is not the place of one value in a JSON document; write it as in $.updated_at, $.data[0].version or $['any name']"
)]
pub struct NoPlace(String);

/// What is cached under a key, as far as an audit is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nothing, or a lease: whoever reads it asks the database.
    Nothing,
    /// A value that says that there is nothing: empty, or null, false, "", [] or {} in JSON.
    Empty,
    /// A value that says its version.
    Version(String),
    /// A value that does not.
    Unreadable,
}

impl Place {
    /// Reads a `version_path`: a JSONPath if it begins with `$`, else the name of a field.
    ///
    /// # Errors
    /// [`NoPlace`] with the path.
    pub fn parse(path: &str) -> Result<Self, NoPlace> {
        let Some(mut rest) = path.strip_prefix('$') else {
            return Ok(Self::Field(path.to_owned()));
        };
        let refused = || NoPlace(path.to_owned());
        let mut steps = Vec::new();
        while !rest.is_empty() {
            let (step, after) = step(rest).ok_or_else(refused)?;
            steps.push(step);
            rest = after;
        }
        if steps.is_empty() { Err(refused()) } else { Ok(Self::Json(steps)) }
    }

    /// What a string under the key says. Under a key of a hash a string can only be a lease.
    #[must_use]
    pub fn in_string(&self, value: &[u8]) -> Seen {
        let Some(value) = without_lease(value) else { return Seen::Nothing };
        match self {
            Self::Field(_) => Seen::Unreadable,
            Self::Json(steps) => in_json(steps, value),
        }
    }

    /// What the field of a hash says.
    #[must_use]
    pub fn in_field(value: &[u8]) -> Seen {
        match std::str::from_utf8(value) {
            Ok(text) => version(text.to_owned()),
            Err(_) => Seen::Unreadable,
        }
    }
}

/// The application's bytes; `None`: a lease without any. One that somebody loads early carries the
/// previous value, which readers still get.
#[must_use]
pub fn without_lease(value: &[u8]) -> Option<&[u8]> {
    let (prefix, length) = LEASE;
    if !value.starts_with(prefix) || value.len() < length {
        return Some(value);
    }
    value.get(length + 1..)
}

/// What could be that of a row, and shown to PostgreSQL.
fn version(text: String) -> Seen {
    let is_one = !text.is_empty() && text.len() <= LONGEST && !text.contains('\0');
    if is_one { Seen::Version(text) } else { Seen::Unreadable }
}

fn step(rest: &str) -> Option<(Step, &str)> {
    if let Some(rest) = rest.strip_prefix('.') {
        let end = rest.find(['.', '[']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let is_plain =
            |c: char| !c.is_whitespace() && !c.is_control() && !"][.'\"\\*?@(),:".contains(c);
        return (!name.is_empty() && name.chars().all(is_plain))
            .then(|| (Step::Name(name.to_owned()), after));
    }
    let rest = rest.strip_prefix('[')?;
    let Some(quote) = rest.chars().next().filter(|c| matches!(c, '\'' | '"')) else {
        let (index, after) = rest.split_once(']')?;
        let is_index = index.len() <= 9
            && index.bytes().all(|byte| byte.is_ascii_digit())
            && (index == "0" || !index.starts_with('0'));
        return is_index
            .then(|| index.parse().ok())
            .flatten()
            .map(|index| (Step::Index(index), after));
    };
    let (name, after) = rest[1..].split_once(quote)?;
    Some((Step::Name(name.to_owned()), after.strip_prefix(']')?)).filter(|_| !name.contains('\\'))
}

fn in_json(steps: &[Step], value: &[u8]) -> Seen {
    if matches!(value.trim_ascii(), b"" | b"null" | b"false" | b"\"\"" | b"[]" | b"{}") {
        return Seen::Empty;
    }
    let Ok(text) = std::str::from_utf8(value) else { return Seen::Unreadable };
    let mut at = text;
    for step in steps {
        let next = match step {
            Step::Name(name) => serde_json::from_str::<BTreeMap<String, &RawValue>>(at)
                .ok()
                .and_then(|mut members| members.remove(name)),
            Step::Index(index) => serde_json::from_str::<Vec<&RawValue>>(at)
                .ok()
                .and_then(|elements| elements.get(*index).copied()),
        };
        let Some(next) = next else { return Seen::Unreadable };
        at = next.get();
    }
    match at.bytes().next() {
        Some(b'"') => serde_json::from_str(at).map_or(Seen::Unreadable, version),
        Some(b'-' | b'0'..=b'9') => version(at.to_owned()),
        _ => Seen::Unreadable,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(path: &str, value: &str) -> Seen {
        Place::parse(path).expect("a place").in_string(value.as_bytes())
    }

    fn says(text: &str) -> Seen {
        Seen::Version(text.to_owned())
    }

    #[test]
    fn a_version_is_found_where_the_path_says() {
        assert_eq!(seen("$.v", r#"{"a":1,"v":"x\ny"}"#), says("x\ny"));
        assert_eq!(
            seen("$.data[1].v", r#"{"data":[0,{"v":12345678901234567890.10}]}"#),
            says("12345678901234567890.10")
        );
        assert_eq!(seen("$['a.b'][\"c'd\"][0]", r#" {"a.b" : {"c'd":[7]}} "#), says("7"));
        assert_eq!(seen("$[0]", "[1e3]"), says("1e3"));
        assert_eq!(seen("$.ü", r#"{"\u00fc":-1}"#), says("-1"));
        assert_eq!(Place::in_field(b"7"), says("7"));
    }

    #[test]
    fn a_value_without_one_is_unreadable_and_one_that_says_nothing_is_empty() {
        for value in [
            r#"{"w":1}"#,
            r#"{"v":null}"#,
            r#"{"v":{}}"#,
            r#"{"v":true}"#,
            r#"{"v":"\u0000"}"#,
            r#"{"v":""}"#,
            "[1]",
            "no json",
            "\u{0}",
            "7",
            r#"{"v":1"#,
        ] {
            assert_eq!(seen("$.v", value), Seen::Unreadable, "{value}");
        }
        for value in ["", "null", " null\n", "false", "\"\"", "[]", "{}"] {
            assert_eq!(seen("$.v", value), Seen::Empty, "{value}");
        }
        assert_eq!(Place::parse("$.v").expect("a place").in_string(b"\xff\xfe"), Seen::Unreadable);
        assert_eq!(seen("field", "a string"), Seen::Unreadable);
    }

    #[test]
    fn a_lease_is_as_nothing_and_the_value_that_it_carries_is_one() {
        let lease = format!("unstale:lease:{}", "0123456789abcdef".repeat(2));
        assert_eq!(seen("$.v", &lease), Seen::Nothing);
        assert_eq!(seen("field", &lease), Seen::Nothing);
        assert_eq!(seen("$.v", &format!("{lease}={{\"v\":1}}")), says("1"));
    }

    #[test]
    fn a_path_that_is_not_understood_is_refused_by_name() {
        for path in [
            "$",
            "$.",
            "$..a",
            "$.a[*]",
            "$.a[?(@.b)]",
            "$.a[-1]",
            "$.a[1:2]",
            "$[01]",
            "$['a\\'b']",
            "$.a b",
            "$a",
            "$['a'",
            "$.a]",
        ] {
            let error = Place::parse(path).expect_err(path);
            assert!(error.to_string().contains(path), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_path_is_a_place_or_refused_and_any_value_is_read(path in r"\$?[a.$\['\]0-9*]{0,9}", value in r#"[\[\]{}":,a0-9.]{0,20}"#) {
            if let Ok(place) = Place::parse(&path) {
                let _ = place.in_string(value.as_bytes());
            }
        }

        #[test]
        fn what_a_document_says_at_its_place_is_found(names in proptest::collection::vec("[a-z .\\[]{1,6}", 1..5), text in any::<String>()) {
            let path: String = names.iter().map(|name| format!("['{name}']")).collect();
            let document = names.iter().rev().fold(serde_json::Value::from(text.clone()), |inner, name| serde_json::json!({ name: inner, "~": 1 }));
            let is_one = !text.is_empty() && !text.contains('\0');
            prop_assert_eq!(seen(&format!("${path}"), &document.to_string()), if is_one { Seen::Version(text) } else { Seen::Unreadable });
        }
    }
}
