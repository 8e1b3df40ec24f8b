//! One row of the table of keys, and the macro that makes the table.
//!
//! `table!` is written in `section.rs` as structs whose fields have a default, and how a change of
//! the value is taken. It makes the structs, their `Default`, the [`Key`]s with their descriptions,
//! and the comparison of two configurations. From the keys come the variables,
//! `config/unstale.toml` and the table of `docs/reference.md` (tests/documents.rs). The default and
//! the kind of a value are read off the serialized structs, so they cannot be out of date.

use figment::value::{Dict, Num, Value};
use serde::Serialize;

/// One configuration key.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Where it stands in the file, as in `http.listen`.
    pub path: String,
    /// The environment variable, as in `UNSTALE_HTTP__LISTEN`.
    pub variable: String,
    /// Its description: the first paragraph is for the reference, all of them for the file.
    pub about: &'static [&'static str],
    /// The default as one would write it in the environment; empty if there is none.
    pub default: String,
    /// The value that the file shows, as TOML.
    pub shown: String,
    /// Whether that is the default; else it is an example, in a comment.
    pub shows_default: bool,
    /// How a change of the value is taken.
    pub taken: Taken,
    /// Whether a value must never be shown, and may come from a file or a credential.
    pub is_secret: bool,
    kind: Kind,
}

/// How a change of a value is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// By SIGHUP.
    Reload,
    /// By a restart; a reload keeps the old value.
    Restart,
    /// By the next `unstale apply`.
    Apply,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Whole,
    Fraction,
    List,
}

impl Key {
    /// A row of the table, whose default is among these.
    pub(super) fn new(
        path: &str,
        about: &'static [&'static str],
        taken: Taken,
        example: Option<(&str, Value)>,
        defaults: &Value,
    ) -> Self {
        let none = Value::from("");
        let default = defaults.find_ref(path).unwrap_or(&none);
        let shown = example.as_ref().map_or(default, |(_, example)| example);
        Self {
            path: path.to_owned(),
            variable: format!("UNSTALE_{}", path.replace('.', "__").to_uppercase()),
            about,
            default: in_a_variable(default),
            shown: serde_json::to_string(shown)
                .unwrap_or_default()
                .replace("null", "\"\"")
                .replace("\",\"", "\", \""),
            shows_default: example.is_none(),
            taken,
            is_secret: example.is_some_and(|(why, _)| why == "secret"),
            kind: match default {
                Value::Num(_, Num::F32(_) | Num::F64(_)) => Kind::Fraction,
                Value::Num(..) => Kind::Whole,
                Value::Array(..) => Kind::List,
                _ => Kind::Text,
            },
        }
    }

    /// What a text means, in a variable or in a file of its own.
    pub(super) fn read(&self, text: &str) -> Result<Value, String> {
        let not = |expected| format!("\"{text}\" is not {expected}");
        match self.kind {
            Kind::Text => Ok(Value::from(text)),
            Kind::Whole => {
                text.trim().parse::<u64>().map(Value::from).map_err(|_| not("a whole number"))
            }
            Kind::Fraction => {
                let number = text.trim().parse::<f64>().ok().filter(|number| number.is_finite());
                number.map(Value::from).ok_or_else(|| not("a number, as in 0.001"))
            }
            // A URL may have a comma, a duration a blank.
            Kind::List if self.is_secret => Ok(text.split_whitespace().collect::<Vec<_>>().into()),
            Kind::List => Ok(text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .into()),
        }
    }
}

/// The defaults as a tree: what keys there are, and what kind each value is of.
pub(super) fn tree<T: Serialize>(defaults: &T) -> Dict {
    // Structs of texts and numbers always serialize to a dictionary.
    Value::serialize(defaults).ok().and_then(Value::into_dict).unwrap_or_default()
}

fn in_a_variable(value: &Value) -> String {
    match value {
        Value::Num(_, Num::F64(number)) => number.to_string(),
        Value::Array(_, entries) => {
            entries.iter().filter_map(as_text).collect::<Vec<_>>().join(", ")
        }
        value => as_text(value).unwrap_or_default(),
    }
}

/// A scalar as one would write it; `None` for what has no such form. A fraction has none: 1.10
/// would become 1.1.
pub(super) fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.clone()),
        Value::Bool(_, value) => Some(value.to_string()),
        Value::Num(_, Num::F32(_) | Num::F64(_)) => None,
        Value::Num(_, number) => number
            .to_u128()
            .map(|number| number.to_string())
            .or_else(|| number.to_i128().map(|number| number.to_string())),
        _ => None,
    }
}

/// Makes the structs below `$Whole` (`at []` is itself). A field is a key if it has `= default, how
/// a change is taken`, and is else a part with a `Default` of its own. After that may come `example
/// value`, which the file shows in the place of the default, or `secret value`.
macro_rules! table {
    ($Whole:ident: $(
        $(#[doc = $about:literal])+
        struct $Section:ident at $at:tt {
            $(
                $(#[doc = $doc:literal])+
                $(#[serde($($serde:tt)+)])?
                $visibility:vis $field:ident: $Type:ty $(= $default:expr, $taken:ident $(, $why:ident $example:expr)?)?;
            )+
        }
    )+) => {
        $(
            $(#[doc = $about])+
            #[derive(Debug, Clone, Serialize, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub struct $Section {
                $($(#[doc = $doc])+ $(#[serde($($serde)+)])? $visibility $field: $Type,)+
            }

            impl Default for $Section {
                fn default() -> Self {
                    Self { $($field: table!(@default $($default)?),)+ }
                }
            }
        )+

        impl $Whole {
            /// Every key, in the order of the table.
            #[must_use]
            pub fn keys() -> Vec<Key> {
                let (mut keys, defaults) = (Vec::new(), Value::from(key::tree(&Self::default())));
                $($( table!(@key keys defaults $at $field [$($doc)+] $($taken $($why $example)?)?); )+)+
                keys
            }

            /// The keys whose values differ.
            #[must_use]
            pub fn differences(&self, other: &Self) -> Vec<(&'static str, Taken)> {
                let mut differences = Vec::new();
                $($($(
                    if table!(@differ self other $at $field $($why)?) {
                        differences.push((table!(@path $at $field), Taken::$taken));
                    }
                )?)+)+
                differences
            }

            /// The same with those values of `known` that only a restart changes.
            #[must_use]
            #[allow(unused_mut, unused_variables, reason = "[[watch]] has no such value")]
            pub fn keeping(mut self, known: &Self) -> Self {
                $($($( table!(@keep $taken self known $at $field); )?)+)+
                self
            }
        }
    };
    (@default) => { Default::default() };
    (@default $default:expr) => { $default };
    (@key $keys:ident $defaults:ident $at:tt $field:ident [$($doc:literal)+]) => {};
    (@key $keys:ident $defaults:ident $at:tt $field:ident [$($doc:literal)+] $taken:ident $($why:ident $example:expr)?) => {
        $keys.push(Key::new(table!(@path $at $field), &[$($doc),+], Taken::$taken, table!(@example $($why $example)?), &$defaults))
    };
    (@example) => { None };
    (@example $why:ident $example:expr) => { Value::serialize($example).ok().map(|example| (stringify!($why), example)) };
    (@path [$($section:ident).*] $field:ident) => { concat!($(stringify!($section), ".",)* stringify!($field)) };
    (@of $whole:ident [$($section:ident).*] $field:ident) => { $whole.$($section.)*$field };
    (@differ $old:ident $new:ident $at:tt $field:ident secret) => {
        text::exposed(&table!(@of $old $at $field)).ne(text::exposed(&table!(@of $new $at $field)))
    };
    (@differ $old:ident $new:ident $at:tt $field:ident $($why:ident)?) => { table!(@of $old $at $field) != table!(@of $new $at $field) };
    (@keep Restart $new:ident $old:ident $at:tt $field:ident) => { table!(@of $new $at $field) = table!(@of $old $at $field).clone() };
    (@keep $taken:ident $new:ident $old:ident $at:tt $field:ident) => {};
}

pub(super) use table;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Watch};

    /// A field that is neither a key nor a section would have no variable and no description.
    #[test]
    fn every_field_of_the_configuration_is_a_key() {
        fn leaves(prefix: &str, section: &Dict) -> Vec<String> {
            let below = |(name, value): (&String, &Value)| match value {
                Value::Dict(_, inner) => leaves(&format!("{prefix}{name}."), inner),
                _ => vec![format!("{prefix}{name}")],
            };
            section.iter().flat_map(below).collect()
        }
        for (defaults, keys) in
            [(tree(&Config::default()), Config::keys()), (tree(&Watch::default()), Watch::keys())]
        {
            let mut keys: Vec<_> = keys.into_iter().map(|key| key.path).collect();
            keys.sort();
            let fields: Vec<_> =
                leaves("", &defaults).into_iter().filter(|path| path != "watch").collect();
            assert_eq!(fields, keys);
        }
    }
}
