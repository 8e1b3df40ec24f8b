//! The configuration file, held against the keys that exist.
//!
//! Owns the provider that parses a file. It refuses unknown keys, all of them at once, each with
//! the key that was probably meant, and turns whole numbers into texts where a text belongs. What
//! is wrong with a value is said by the key's type.

use std::path::Path;

use figment::providers::{Format as _, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};

use super::error::{Error, Problem};
use super::key::{Key, as_text, tree};
use super::{Config, Watch, keys};

/// Whether the value of this key must never be shown.
pub(super) fn is_secret(path: &str) -> bool {
    keys().iter().any(|key| key.is_secret && key.path == of_list(path))
}

/// The key of a list for one of its entries, which figment counts as if they were keys:
/// repeat.after.0.
pub(super) fn of_list(path: &str) -> &str {
    path.rsplit_once('.')
        .filter(|(_, entry)| entry.parse::<usize>().is_ok())
        .map_or(path, |(list, _)| list)
}

/// A configuration file that was read: TOML whose keys are all known.
pub(super) struct Source {
    name: String,
    values: Dict,
}

impl Source {
    /// Parses `text`, the content of `path`; unknown keys are added to `problems`.
    pub(super) fn parse(
        path: &Path,
        text: &str,
        problems: &mut Vec<Problem>,
    ) -> Result<Self, Error> {
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
        let keys = keys();
        let names = keys.iter().map(|key| key.path.clone()).chain(["watch".to_owned()]).collect();
        Conform { file: &name, keys, names, problems }.section(
            "",
            &mut values,
            &tree(&Config::default()),
        );
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
    if let (Some("watch"), Some(Ok(number))) = (parts.next(), parts.next().map(str::parse::<usize>))
    {
        let key = parts.next().map_or(String::new(), |key| format!("{key} of "));
        return format!("{key}[[watch]] number {} in {file}", number + 1);
    }
    format!("{} in {file}", of_list(path))
}

/// Holds what was typed against the known keys.
struct Conform<'a> {
    file: &'a str,
    keys: Vec<Key>,
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
                (Some(Value::Dict(..)), _) => self.problems.push(Problem::new(
                    in_file(&path, self.file),
                    format!("is a section; write [{path}] and its keys on lines below"),
                )),
                (Some(Value::Array(..)), Value::Array(_, entries)) if path == "watch" => {
                    self.watches(entries);
                }
                (Some(Value::Array(..)), value) => self.list(&path, value),
                (Some(Value::String(..) | Value::Empty(..)), value) => as_if_quoted(value),
                _ => {} // serde has the words for it
            }
        }
    }

    /// A list may be written as in a variable, too.
    fn list(&self, path: &str, value: &mut Value) {
        let Some(key) = self.keys.iter().find(|key| key.path == path) else { return };
        match value {
            Value::Array(_, entries) => entries.iter_mut().for_each(as_if_quoted),
            value => {
                *value = as_text(value)
                    .and_then(|text| key.read(&text).ok())
                    .unwrap_or_else(|| value.clone())
            }
        }
    }

    fn watches(&mut self, entries: &mut [Value]) {
        let known = tree(&Watch::default());
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

/// An instance may be called 42 without quotes.
fn as_if_quoted(value: &mut Value) {
    if let Some(text) = as_text(value) {
        *value = Value::from(text);
    }
}
