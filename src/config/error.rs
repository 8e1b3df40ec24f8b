//! What can be wrong with a configuration, as sentences for the person who has to change it.
//!
//! Every sentence names the place as its author wrote it (the variable, or the key and its file),
//! the value unless it is a secret, and the fix. Nothing here may hold a secret: [`Problem`]s are
//! built from names and from values that were checked not to be one, and a TOML error keeps its
//! position but never the line, which could be a URL's.

use std::fmt;
use std::path::PathBuf;

use figment::Profile;
use figment::error::{Actual, Kind};

use super::file;
use super::reading::{Unreadable, shown as shown_file};
use crate::visible;

/// Why there is no configuration. All of them are exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that was named, or the one in `/etc`, cannot be read.
    #[error("the configuration file {} {source}", shown_file(path))]
    Read {
        /// The file as it was named.
        path: PathBuf,
        /// Why.
        source: Unreadable,
    },
    /// A file is not TOML.
    #[error("{}, line {line}, column {column}: {}", shown_file(path), visible::line(message))]
    Syntax {
        /// The file as it was named.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The column in bytes, counted from 1.
        column: usize,
        /// What the parser expected; never the line itself.
        message: String,
    },
    /// Keys or values that cannot be meant, as many as could be found at once; never empty.
    #[error("{}", in_lines(.0))]
    Invalid(Vec<Problem>),
    /// A command needs PostgreSQL and no source names it.
    #[error(
        "DATABASE_URL is not set; name the PostgreSQL database, \
         as in DATABASE_URL=postgres://unstale@localhost:5432/app (or DATABASE_URL_FILE, or database.url in the file)"
    )]
    NoDatabaseUrl,
    /// A command needs Redis and no source names it.
    #[error(
        "REDIS_URL is not set; name the Redis server, \
         as in REDIS_URL=redis://localhost:6379/0 (or REDIS_URL_FILE, or redis.url in the file)"
    )]
    NoRedisUrl,
}

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// A variable (`UNSTALE_HTTP__LISTEN`), or a key and its file (`http.listen in
    /// /etc/unstale/unstale.toml`).
    pub place: String,
    /// What is wrong and how to fix it.
    pub fault: String,
}

impl Problem {
    pub(super) fn new(place: impl Into<String>, fault: impl Into<String>) -> Self {
        Self { place: place.into(), fault: fault.into() }
    }

    /// A key that nobody knows; `known` are the names it could have been meant to be.
    pub(super) fn unknown<'a>(
        place: impl Into<String>,
        name: &str,
        known: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let fault = match nearest(name, known) {
            Some(nearest) => format!("unknown key; did you mean {nearest}?"),
            None => "unknown key".to_owned(),
        };
        Self::new(place, fault)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", visible::line(&self.place), visible::line(&self.fault))
    }
}

/// What serde objected to, in our words.
impl From<figment::Error> for Problem {
    fn from(error: figment::Error) -> Self {
        let key = error.path.join(".");
        let place = match &error.metadata {
            Some(metadata) => metadata.interpolate(&Profile::Default, &error.path),
            None => key.clone(),
        };
        let fault = match error.kind {
            Kind::Message(message) => message,
            Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
                let actual =
                    if file::is_secret(&key) { "the value".to_owned() } else { shown(&actual) };
                format!("{actual} is not {}", in_words(&expected))
            }
            Kind::UnknownVariant(found, known) => {
                format!("\"{found}\" is not one of {}", known.join(", "))
            }
            other => other.to_string(),
        };
        Self::new(place, fault)
    }
}

/// The known name that is most like `name`. Nobody mistypes a name into a hundred letters, and to
/// compare takes the square of them.
fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known.into_iter().filter(|_| name.len() <= 100).max_by(|a, b| {
        let a = strsim::normalized_damerau_levenshtein(name, a);
        a.total_cmp(&strsim::normalized_damerau_levenshtein(name, b))
    })
}

fn shown(actual: &Actual) -> String {
    match actual {
        Actual::Str(text) => format!("\"{text}\""),
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(value) => value.to_string(),
        Actual::Signed(value) => value.to_string(),
        Actual::Float(value) => value.to_string(),
        other => other.to_string(),
    }
}

/// serde names Rust's types; the reader of the sentence may not know them.
fn in_words(expected: &str) -> String {
    match expected {
        "u16" | "u32" | "u64" | "usize" => "a whole number (written without quotes)".to_owned(),
        "a string" | "string" => "a text (written in quotes)".to_owned(),
        "f64" => "a number (written without quotes)".to_owned(),
        "a duration" => "a duration; write a unit, as in 30s or 2m".to_owned(),
        "a sequence" => "a list, as in [\"a\", \"b\"]".to_owned(),
        other => other.to_owned(),
    }
}

fn in_lines(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    // Indented, so that it still reads as one entry behind the program's name.
    lines.join("\n  ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_survives_a_missing_and_a_swapped_letter() {
        let known = ["http.listen", "log.format", "log.filter"];
        assert_eq!(nearest("http.listn", known), Some("http.listen"));
        assert_eq!(nearest("log.fromat", known), Some("log.format"));
        assert_eq!(nearest("anything", []), None);
    }

    #[test]
    fn several_problems_are_several_lines() {
        let error = Error::Invalid(vec![Problem::new("a", "is bad"), Problem::new("b", "too")]);
        assert_eq!(error.to_string(), "a: is bad\n  b: too");
    }
}
