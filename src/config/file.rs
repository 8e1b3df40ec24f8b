//! The configuration file, held against the keys that exist.
//!
//! Owns the list of [`keys`], which is read off the serialized defaults so that it cannot be out of date, and the
//! provider that parses a file. It refuses unknown keys, all of them at once, each with the key that was probably meant,
//! and turns whole numbers into texts where a text belongs. What is wrong with a value is said by the key's type.

use std::path::Path;

use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Map, Num, Value};
use figment::{Metadata, Profile, Provider};
use serde::Serialize;

use super::error::{Error, Problem};
use super::section::{File, Watch};

/// One configuration key, for the documentation and for whoever checks it.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Where it stands in the file, as in `http.listen`.
    pub path: String,
    /// The environment variable, as in `UNSTALE_HTTP__LISTEN`.
    pub variable: String,
    /// The default as one would write it in the environment; `None` if there is none.
    pub default: Option<String>,
    /// Whether a value is a number.
    pub is_number: bool,
    /// Whether that may have a fraction.
    pub is_fraction: bool,
    /// Whether a value must never be shown, and may come from a file or a credential.
    pub is_secret: bool,
}

/// Every key but `[[watch]]`, in alphabetical order of its path.
pub fn keys() -> Vec<Key> {
    let mut keys = Vec::new();
    collect("", &known(&File::default()), &mut keys);
    keys
}

fn collect(prefix: &str, section: &Dict, keys: &mut Vec<Key>) {
    for (name, value) in section {
        let path = format!("{prefix}{name}");
        match value {
            Value::Dict(_, inner) => collect(&format!("{path}."), inner, keys),
            Value::Array(..) => {} // [[watch]]
            value => keys.push(key(path, value)),
        }
    }
}

/// Whether the value of this key must never be shown.
pub(super) fn is_secret(path: &str) -> bool {
    matches!(path, "database.url" | "redis.url" | "replicas.urls")
}

fn key(path: String, default: &Value) -> Key {
    Key {
        variable: format!("UNSTALE_{}", path.replace('.', "__").to_uppercase()),
        default: text(default),
        is_number: matches!(default, Value::Num(..)),
        is_fraction: matches!(default, Value::Num(_, Num::F32(_) | Num::F64(_))),
        is_secret: is_secret(&path),
        path,
    }
}

/// The defaults as a tree: what keys there are, and what kind each value is of.
fn known<T: Serialize>(defaults: &T) -> Dict {
    // Structs of texts and numbers always serialize to a dictionary.
    Value::serialize(defaults).ok().and_then(Value::into_dict).unwrap_or_default()
}

/// A scalar as one would write it; `None` for what has no such form. A fraction has none: 1.10 would become 1.1.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(_, text) => Some(text.clone()),
        Value::Bool(_, value) => Some(value.to_string()),
        Value::Num(_, Num::F32(_) | Num::F64(_)) => None,
        Value::Num(_, number) => {
            number.to_u128().map(|number| number.to_string()).or_else(|| number.to_i128().map(|number| number.to_string()))
        }
        _ => None,
    }
}

/// A configuration file that was read: TOML whose keys are all known.
pub(super) struct Source {
    name: String,
    values: Dict,
}

impl Source {
    /// Parses `text`, the content of `path`; unknown keys are added to `problems`.
    pub(super) fn parse(path: &Path, text: &str, problems: &mut Vec<Problem>) -> Result<Self, Error> {
        let mut values: Dict = Toml::from_str(text).map_err(|error| {
            let before = &text[..error.span().map_or(0, |span| span.start.min(text.len()))];
            Error::Syntax {
                path: path.to_owned(),
                line: before.matches('\n').count() + 1,
                column: before.len() - before.rfind('\n').map_or(0, |newline| newline + 1) + 1,
                message: error.message().lines().collect::<Vec<_>>().join(", "),
            }
        })?;
        let name = path.display().to_string();
        let mut all = Conform { file: &name, names: keys().into_iter().map(|key| key.path).collect(), problems };
        all.names.push("watch".to_owned());
        all.section("", &mut values, &known(&File::default()));
        Ok(Self { name, values })
    }
}

impl Provider for Source {
    fn metadata(&self) -> Metadata {
        let name = self.name.clone();
        Metadata::named("configuration file")
            .source(self.name.clone())
            .interpolater(move |_: &Profile, keys: &[&str]| in_file(&keys.join("."), &name))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

fn in_file(path: &str, file: &str) -> String {
    // figment counts the entries of a list from 0 and joins them like keys: watch.0.table.
    let mut parts = path.splitn(3, '.');
    if let (Some("watch"), Some(Ok(number))) = (parts.next(), parts.next().map(str::parse::<usize>)) {
        let key = parts.next().map_or(String::new(), |key| format!("{key} of "));
        return format!("{key}[[watch]] number {} in {file}", number + 1);
    }
    format!("{path} in {file}")
}

/// Holds what was typed against the known keys.
struct Conform<'a> {
    file: &'a str,
    names: Vec<String>,
    problems: &'a mut Vec<Problem>,
}

impl Conform<'_> {
    fn section(&mut self, prefix: &str, typed: &mut Dict, known: &Dict) {
        for (name, value) in typed {
            let path = format!("{prefix}{name}");
            match (known.get(name), value) {
                (None, Value::Dict(_, inner)) if !inner.is_empty() => {
                    // Name the keys that somebody wrote, not the table around them.
                    self.section(&format!("{path}."), inner, &Dict::new());
                }
                (None, _) => self.unknown(&path),
                (Some(Value::Dict(_, known)), Value::Dict(_, inner)) => {
                    self.section(&format!("{path}."), inner, known);
                }
                (Some(Value::Dict(..)), _) => self
                    .problems
                    .push(Problem::new(in_file(&path, self.file), format!("is a section; write [{path}] and its keys on lines below"))),
                (Some(Value::Array(..)), Value::Array(_, entries)) if path == "watch" => {
                    self.watches(entries);
                }
                (Some(Value::String(..) | Value::Empty(..)), value) => {
                    // An instance may be called 42 without quotes.
                    if let Some(text) = text(value) {
                        *value = Value::from(text);
                    }
                }
                _ => {} // serde has the words for it
            }
        }
    }

    fn watches(&mut self, entries: &mut [Value]) {
        let known = known(&Watch::default());
        let names: Vec<String> = known.keys().cloned().collect();
        let all = std::mem::replace(&mut self.names, names);
        for (number, entry) in entries.iter_mut().enumerate() {
            if let Value::Dict(_, entry) = entry {
                self.section(&format!("watch.{number}."), entry, &known);
            }
        }
        self.names = all;
    }

    fn unknown(&mut self, path: &str) {
        let name = match path.splitn(3, '.').collect::<Vec<_>>()[..] {
            ["watch", _, name] => name,
            _ => path,
        };
        let names = self.names.iter().map(String::as_str);
        let problem = Problem::unknown(in_file(path, self.file), name, names);
        self.problems.push(problem);
    }
}
