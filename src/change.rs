//! What a NOTIFY payload says.
//!
//! Owns the wire format between the triggers (migrations/repeatable/triggers.sql) and the listener.
//! Any role that can connect can NOTIFY, so a payload is untrusted: an unknown field, a wrong type
//! or a missing part makes it [`Malformed`], and nothing else is derived from it. Refuses to know
//! tables, keys or Redis.
//!
//! ```json
//! {"watch":7,"rev":2,"new":{"id":"42","email":"b@c.d"},"old":{"id":"42","email":"a@c.d"}}
//! {"watch":7,"rev":2,"rows":[{"id":"42","email":"b@c.d"},{"id":"43","email":null}]}
//! {"watch":7,"rev":2,"new":{"id":"44","email":true}}     an e-mail of more than 8 kB: its keys are deleted by their pattern
//! {"watch":7,"rev":2,"all":true}
//! {"bell":true}
//! {"heartbeat":12}
//! {"watches":true}
//! {"wait":true}
//! {"probe":"eu1:0123456789abcdef0123456789abcdef"}
//! ```

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use crate::few::Few;

/// A payload, read strictly; it borrows from the text.
#[derive(Debug, PartialEq, Eq)]
pub enum Announcement<'a> {
    /// Rows were inserted, updated or deleted.
    Change(Change<'a>),
    /// Something was written to the log that is said nowhere else.
    Bell,
    /// A listener's own heartbeat. Believed only if it comes from that listener's backend.
    Heartbeat(u64),
    /// `unstale.watch()` or `unstale.unwatch()` changed something.
    Watches,
    /// Somebody waits until everything that was committed before this is deleted (`unstale wait`).
    Wait,
    /// `unstale check` asks the listener of an instance to delete the key that ends like this:
    /// instance, colon, 32 hexadecimal digits.
    Probe(Cow<'a, str>),
}

/// Changed rows, or all of a table.
#[derive(Debug, PartialEq, Eq)]
pub struct Change<'a> {
    /// `unstale.watch.id`.
    pub watch: i32,
    /// `unstale.watch.rev` of the trigger that wrote it.
    pub rev: i32,
    /// What changed.
    pub what: What<'a>,
}

/// The rows whose keys a change deletes.
#[derive(Debug, PartialEq, Eq)]
pub enum What<'a> {
    /// A row as it was, as it is, or both where a key column changed; or those of a whole
    /// statement.
    Rows(Few<Row<'a>>),
    /// TRUNCATE: every row.
    All,
}

/// The columns that the watch's templates name, as text.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Row<'a>(pub Few<Column<'a>>);

/// Its name and its value: `None`: there is one, too long to be said; `Some(None)`: it is NULL.
type Column<'a> = (Cow<'a, str>, Option<Option<Cow<'a, str>>>);

impl<'a> Row<'a> {
    /// `None`: the row lacks it, because the value is too long, or the column is a newer one;
    /// `Some(None)`: the value is NULL.
    #[must_use]
    pub fn value(&self, column: &str) -> Option<Option<&str>> {
        self.0
            .iter()
            .find(|(name, _)| name == column)
            .and_then(|(_, value)| value.as_ref().map(Option::as_deref))
    }

    /// Is the column among those of the row, whatever it says of its value?
    #[must_use]
    pub fn names(&self, column: &str) -> bool {
        self.0.iter().any(|(name, _)| name == column)
    }

    /// Reads the JSON object that `unstale.row_N()` makes.
    ///
    /// # Errors
    /// [`Malformed`] if it is anything else.
    pub fn parse(object: &'a str) -> Result<Self, Malformed> {
        Ok(serde_json::from_str(object)?)
    }
}

/// A payload that is not ours, or that somebody made up. Says why, never what it holds.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, an unknown field, or a value of a wrong type.
    #[error("not an announcement ({} error in column {})", category(.0), .0.column())]
    Json(#[from] serde_json::Error),
    /// Nothing is known of such a watch.
    #[error("an announcement of a table that is not watched")]
    UnknownWatch,
    /// Well-formed JSON that says nothing, or two things at once.
    #[error("an announcement without a meaning")]
    Meaningless,
}

fn category(error: &serde_json::Error) -> &'static str {
    match error.classify() {
        serde_json::error::Category::Data => "data",
        _ => "syntax",
    }
}

/// The fields of every announcement; which of them stand together decides what it is.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    watch: Option<i32>,
    rev: Option<i32>,
    #[serde(borrow)]
    new: Option<Row<'a>>,
    #[serde(borrow)]
    old: Option<Row<'a>>,
    #[serde(borrow)]
    rows: Option<Vec<Row<'a>>>,
    all: Option<bool>,
    bell: Option<bool>,
    heartbeat: Option<u64>,
    watches: Option<bool>,
    wait: Option<bool>,
    #[serde(borrow)]
    probe: Option<Text<'a>>,
}

/// Reads a payload.
///
/// # Errors
/// [`Malformed`]: count it and go on.
pub fn parse(payload: &str) -> Result<Announcement<'_>, Malformed> {
    let change = |watch, rev, what| Announcement::Change(Change { watch, rev, what });
    let fields = serde_json::from_str(payload)?;
    match fields {
        Fields {
            watch: Some(watch),
            rev: Some(rev),
            new,
            old,
            rows,
            all,
            bell: None,
            heartbeat: None,
            watches: None,
            wait: None,
            probe: None,
        } => match (new, old, rows, all) {
            (None, None, Some(rows), None) => {
                Ok(change(watch, rev, What::Rows(rows.into_iter().collect())))
            }
            (None, None, None, Some(true)) => Ok(change(watch, rev, What::All)),
            (new, old, None, None) if new.is_some() || old.is_some() => {
                Ok(change(watch, rev, What::Rows(new.into_iter().chain(old).collect())))
            }
            _ => Err(Malformed::Meaningless),
        },
        Fields {
            watch: None,
            rev: None,
            new: None,
            old: None,
            rows: None,
            all: None,
            bell,
            heartbeat,
            watches,
            wait,
            probe,
        } => match (bell, heartbeat, watches, wait, probe) {
            (Some(true), None, None, None, None) => Ok(Announcement::Bell),
            (None, Some(n), None, None, None) => Ok(Announcement::Heartbeat(n)),
            (None, None, Some(true), None, None) => Ok(Announcement::Watches),
            (None, None, None, Some(true), None) => Ok(Announcement::Wait),
            (None, None, None, None, Some(Text(probe))) if is_probe(&probe) => {
                Ok(Announcement::Probe(probe))
            }
            _ => Err(Malformed::Meaningless),
        },
        _ => Err(Malformed::Meaningless),
    }
}

/// Anybody's text would make a key of anybody's choice.
fn is_probe(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(instance, token)| {
        !instance.is_empty()
            && instance.len() <= 63
            && instance.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
            && token.len() == 32
            && token.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// A JSON text that borrows from the payload unless it has escapes.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// A column's value.
enum Value<'a> {
    Null,
    Text(Cow<'a, str>),
    /// `true`: there is one, too long to be a part of a key.
    Unsaid,
}

impl<'de: 'a, 'a> Deserialize<'de> for Value<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;
        impl<'de> Visitor<'de> for AnyValue {
            type Value = Value<'de>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a text, null, or true")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Value<'de>, E> {
                Ok(Value::Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Value<'de>, E> {
                Ok(Value::Text(Cow::Owned(text.to_owned())))
            }

            fn visit_unit<E>(self) -> Result<Value<'de>, E> {
                Ok(Value::Null)
            }

            fn visit_bool<E: serde::de::Error>(self, unsaid: bool) -> Result<Value<'de>, E> {
                if unsaid { Ok(Value::Unsaid) } else { Err(E::custom("false is no value")) }
            }
        }
        deserializer.deserialize_any(AnyValue)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Row<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Columns;
        impl<'de> Visitor<'de> for Columns {
            type Value = Row<'de>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Row<'de>, A::Error> {
                let mut columns: Few<Column<'de>> = Few::new();
                while let Some((Text(name), value)) = map.next_entry::<Text<'de>, Value<'de>>()? {
                    // With two values for a column, one of them would be believed and the other
                    // forgotten.
                    if columns.iter().any(|(known, _)| *known == name) {
                        return Err(serde::de::Error::custom("a column twice"));
                    }
                    columns.push((
                        name,
                        match value {
                            Value::Text(text) => Some(Some(text)),
                            Value::Null => Some(None),
                            Value::Unsaid => None,
                        },
                    ));
                }
                Ok(Row(columns))
            }
        }
        deserializer.deserialize_map(Columns)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row<'a>(columns: &[(&'a str, Option<&'a str>)]) -> Row<'a> {
        Row(columns
            .iter()
            .map(|(name, value)| ((*name).into(), Some(value.map(Into::into))))
            .collect())
    }

    #[test]
    fn an_update_of_a_key_column_brings_both_rows() {
        let payload = r#"{"watch":7,"rev":2,"new":{"id":"42","email":null},"old":{"id":"42","email":"a\"b\u00e9"}}"#;
        let rows = vec![
            row(&[("id", Some("42")), ("email", None)]),
            row(&[("id", Some("42")), ("email", Some("a\"b\u{e9}"))]),
        ];
        let expected = Announcement::Change(Change {
            watch: 7,
            rev: 2,
            what: What::Rows(rows.into_iter().collect()),
        });
        assert_eq!(parse(payload).expect("well-formed"), expected);
    }

    #[test]
    fn each_announcement_is_recognised() {
        let all = Announcement::Change(Change { watch: 7, rev: 1, what: What::All });
        assert_eq!(parse(r#"{"watch":7,"rev":1,"all":true}"#).expect("truncate"), all);
        let rows = Announcement::Change(Change {
            watch: 7,
            rev: 1,
            what: What::Rows(
                [row(&[("id", Some("1"))]), row(&[("id", None)])].into_iter().collect(),
            ),
        });
        assert_eq!(
            parse(r#"{"watch":7,"rev":1,"rows":[{"id":"1"},{"id":null}]}"#).expect("a statement"),
            rows
        );
        assert_eq!(parse(r#"{"bell":true}"#).expect("bell"), Announcement::Bell);
        assert_eq!(parse(r#"{"heartbeat":12}"#).expect("heartbeat"), Announcement::Heartbeat(12));
        assert_eq!(parse(r#"{"watches":true}"#).expect("watches"), Announcement::Watches);
        assert_eq!(parse(r#"{"wait":true}"#).expect("wait"), Announcement::Wait);
        let probe = parse(r#"{"probe":"eu-1:0123456789abcdef0123456789abcdef"}"#).expect("a probe");
        assert_eq!(probe, Announcement::Probe("eu-1:0123456789abcdef0123456789abcdef".into()));
    }

    #[test]
    fn a_value_that_is_too_long_is_not_said() {
        let Ok(Announcement::Change(Change { what: What::Rows(rows), .. })) =
            parse(r#"{"watch":1,"rev":1,"new":{"id":"1","email":true}}"#)
        else {
            panic!("not a change");
        };
        let row = rows.iter().next().expect("one row");
        assert_eq!((row.value("id"), row.value("email")), (Some(Some("1")), None));
    }

    #[test]
    fn whatever_else_is_malformed() {
        for payload in [
            "",
            "null",
            "[]",
            "{}",
            "42",
            "not json",
            r#"{"watch":"7","rev":1,"new":{}}"#,
            r#"{"watch":7,"rev":1}"#,
            r#"{"watch":7,"new":{"id":"1"}}"#,
            r#"{"watch":7,"rev":1,"new":{"id":1}}"#,
            r#"{"watch":7,"rev":1,"new":{"id":false}}"#,
            r#"{"watch":7,"rev":1,"new":[]}"#,
            r#"{"watch":7,"rev":1,"new":{"id":"1","id":"2"}}"#,
            r#"{"watch":7,"rev":1,"all":false}"#,
            r#"{"watch":7,"rev":1,"all":true,"new":{"id":"1"}}"#,
            r#"{"watch":7,"rev":1,"new":{"id":"1"},"more":1}"#,
            r#"{"watch":99999999999,"rev":1,"all":true}"#,
            r#"{"watch":7,"rev":1,"rows":[],"new":{"id":"1"}}"#,
            r#"{"watch":7,"rev":1,"rows":[1]}"#,
            r#"{"watch":7,"bell":true}"#,
            r#"{"bell":false}"#,
            r#"{"watches":true,"heartbeat":1}"#,
            r#"{"wait":false}"#,
            r#"{"wait":true,"watches":true}"#,
            r#"{"watches":true} {"watches":true}"#,
            r#"{"probe":"user:42"}"#,
            r#"{"probe":":0123456789abcdef0123456789abcdef"}"#,
            r#"{"probe":"a:b:0123456789abcdef0123456789abcdef"}"#,
            r#"{"probe":"a:0123456789ABCDEF0123456789abcdef"}"#,
            r#"{"probe":"a:0123456789abcdef0123456789abcdef","bell":true}"#,
        ] {
            assert!(parse(payload).is_err(), "{payload} was believed");
        }
    }

    #[test]
    fn an_error_never_quotes_a_value() {
        let error = parse(r#"{"watch":"secret"}"#).expect_err("a wrong type").to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_but_never_panics(payload in ".{0,200}") {
            let _ = parse(&payload);
        }

        #[test]
        fn any_values_survive_the_journey(values in proptest::collection::btree_map(".{1,20}", proptest::option::of(".{0,40}"), 0..5)) {
            let object = serde_json::to_string(&values).expect("serializes");
            let payload = format!(r#"{{"watch":1,"rev":1,"new":{object}}}"#);
            let Announcement::Change(Change { what: What::Rows(rows), .. }) = parse(&payload).expect("well-formed") else {
                panic!("not a change");
            };
            for (name, value) in &values {
                prop_assert_eq!(rows.iter().next().and_then(|row| row.value(name)), Some(value.as_deref()));
            }
        }
    }
}
