//! From a key back to the values of the columns that made it.
//!
//! `a:{x}:{y}` of `a:1:2:3` has two readings; all are handed out, and whoever asks the database for
//! their rows makes the key of each again, so that one of them is right or none. Must hold: the
//! columns of any row are among the readings of its key. Refuses templates whose keys do not tell
//! where a column ends, as unstale.is_ambiguous() does (a test holds the two equal), and those
//! without a column.

use serde_json::{Map, Value};

use crate::rule::{Part, Template};

/// Readings of one key. More, and it is not read.
const MOST_READINGS: usize = 16;

/// Bytes of a value beyond which a row does not say it.
const LONGEST_VALUE: usize = 8_192;

/// Why the keys of a template are not inverted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Obscure {
    /// One key for all rows.
    #[error("it has no column, so that its value is of no row")]
    Constant,
    /// `{a}{b}`.
    #[error(
        "its columns stand side by side, so that a key does not say where one ends; put a literal between them"
    )]
    Adjacent,
}

/// What a key says.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    /// It is none of this template.
    None,
    /// The columns' values, as JSON objects.
    Rows(Vec<String>),
    /// There are too many readings.
    TooMany,
}

/// A template, with the types of its columns.
#[derive(Debug, Clone)]
pub struct Inverter {
    parts: Vec<Part>,
    types: Vec<(String, String)>,
}

impl Inverter {
    /// `types`: each column and the name of its type (`pg_type.typname`, of a domain that of its
    /// base).
    ///
    /// # Errors
    /// [`Obscure`].
    pub fn new(template: &Template, types: &[(String, String)]) -> Result<Self, Obscure> {
        let parts = template.parts().to_vec();
        let is_column = |part: &Part| matches!(part, Part::Column(_));
        if !parts.iter().any(is_column) {
            return Err(Obscure::Constant);
        }
        if parts.windows(2).any(|pair| pair.iter().all(is_column)) {
            return Err(Obscure::Adjacent);
        }
        Ok(Self { parts, types: types.to_vec() })
    }

    /// The rows that may have made this key.
    #[must_use]
    pub fn invert(&self, key: &str) -> Reading {
        let mut readings = Vec::new();
        let is_whole = self.readings(&self.parts, key, &mut Vec::new(), &mut readings);
        match (is_whole, readings.is_empty()) {
            (false, _) => Reading::TooMany,
            (true, true) => Reading::None,
            (true, false) => Reading::Rows(readings),
        }
    }

    /// False: there are more than could be handed out.
    fn readings<'k>(
        &'k self,
        parts: &'k [Part],
        rest: &'k str,
        so_far: &mut Vec<(&'k str, &'k str)>,
        out: &mut Vec<String>,
    ) -> bool {
        let Some((part, parts)) = parts.split_first() else {
            if rest.is_empty() {
                let row: Map<String, Value> = so_far
                    .iter()
                    .map(|(column, value)| ((*column).to_owned(), (*value).into()))
                    .collect();
                out.push(Value::from(row).to_string());
            }
            return out.len() <= MOST_READINGS;
        };
        let column = match part {
            Part::Literal(literal) => {
                return rest
                    .strip_prefix(literal.as_str())
                    .is_none_or(|rest| self.readings(parts, rest, so_far, out));
            }
            Part::Column(column) => column,
        };
        // A column ends where the next literal begins, or at the end.
        let ends: Vec<usize> = match parts.first() {
            Some(Part::Literal(literal)) => (0..=rest.len())
                .filter(|&end| {
                    rest.is_char_boundary(end) && rest[end..].starts_with(literal.as_str())
                })
                .collect(),
            _ => vec![rest.len()],
        };
        for end in ends {
            let value = &rest[..end];
            let known = so_far.iter().find(|(name, _)| name == column).map(|(_, value)| *value);
            if known.is_some_and(|known| known != value) || !self.fits(column, value) {
                continue;
            }
            so_far.push((column, value));
            let is_whole = self.readings(parts, &rest[end..], so_far, out);
            so_far.pop();
            if !is_whole {
                return false;
            }
        }
        true
    }

    /// Could the column's type be written so? PostgreSQL would fail for a text that is none of an
    /// indexable type (audit.sql).
    fn fits(&self, column: &str, value: &str) -> bool {
        let written = |number: Option<String>| number.is_some_and(|number| number == value);
        let kind = self
            .types
            .iter()
            .find(|(name, _)| name == column)
            .map_or("", |(_, kind)| kind.as_str());
        match kind {
            "int2" => written(value.parse::<i16>().ok().map(|number| number.to_string())),
            "int4" => written(value.parse::<i32>().ok().map(|number| number.to_string())),
            "int8" => written(value.parse::<i64>().ok().map(|number| number.to_string())),
            "oid" => written(value.parse::<u32>().ok().map(|number| number.to_string())),
            "bool" => matches!(value, "true" | "false"),
            "uuid" => {
                value.len() == 36
                    && value.bytes().enumerate().all(|(at, byte)| match at {
                        8 | 13 | 18 | 23 => byte == b'-',
                        _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
                    })
            }
            _ => value.len() <= LONGEST_VALUE && !value.contains('\0'),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::change::Row;
    use crate::deletion::Deletion;

    fn inverter(template: &str, types: &[(&str, &str)]) -> Result<Inverter, Obscure> {
        let types: Vec<_> =
            types.iter().map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned())).collect();
        Inverter::new(&Template::parse(template).expect("a template"), &types)
    }

    fn rows(rows: &[&str]) -> Reading {
        Reading::Rows(rows.iter().map(|row| (*row).to_owned()).collect())
    }

    #[test]
    fn a_key_says_its_columns() {
        let users = inverter("user:{id}:profile", &[("id", "int4")]).expect("invertible");
        assert_eq!(users.invert("user:42:profile"), rows(&[r#"{"id":"42"}"#]));
        for other in [
            "user:42",
            "user:x:profile",
            "user:042:profile",
            "user:+42:profile",
            "user:99999999999:profile",
            "user::profile",
            "x",
        ] {
            assert_eq!(users.invert(other), Reading::None, "{other}");
        }
        let tagged = inverter("{{user:{id}}}:{id}", &[("id", "int8")]).expect("invertible");
        assert_eq!(tagged.invert("{user:7}:7"), rows(&[r#"{"id":"7"}"#]));
        assert_eq!(tagged.invert("{user:7}:8"), Reading::None);
    }

    #[test]
    fn what_has_several_readings_has_all_of_them() {
        let texts = inverter("{a}:{b}", &[("a", "text"), ("b", "text")]).expect("invertible");
        assert_eq!(
            texts.invert("1:2:3"),
            rows(&[r#"{"a":"1","b":"2:3"}"#, r#"{"a":"1:2","b":"3"}"#])
        );
        assert_eq!(texts.invert(&":".repeat(17)), Reading::TooMany);
        let typed = inverter("{a}:{b}", &[("a", "int4"), ("b", "text")]).expect("invertible");
        assert_eq!(typed.invert("1:2:3"), rows(&[r#"{"a":"1","b":"2:3"}"#]));
    }

    #[test]
    fn a_template_that_does_not_tell_is_refused() {
        assert_eq!(inverter("users", &[]).err(), Some(Obscure::Constant));
        assert_eq!(inverter("x:{a}{b}", &[]).err(), Some(Obscure::Adjacent));
        assert!(inverter("x:{a}}}{b}", &[]).is_ok());
    }

    proptest! {
        #[test]
        fn the_columns_of_a_row_are_among_the_readings_of_its_key(a in "[ab:]{0,4}", b in "[ab:é]{0,4}", number in any::<i32>()) {
            let inverter = inverter("k:{a}:{n}:{b}", &[("a", "text"), ("n", "int4"), ("b", "text")]).expect("invertible");
            let number = number.to_string();
            let row = Row([("a", &a), ("n", &number), ("b", &b)].into_iter().map(|(name, value)| (name.into(), Some(Some(value.into())))).collect());
            let Some(Deletion::Key(key)) = Template::parse("k:{a}:{n}:{b}").expect("a template").render(&row) else { panic!("no key") };
            let Reading::Rows(readings) = inverter.invert(&key) else { panic!("no reading of {key}") };
            let expected = serde_json::json!({ "a": a, "n": number, "b": b }).to_string();
            prop_assert!(readings.contains(&expected), "{:?} lacks {}", readings, expected);
        }
    }
}
