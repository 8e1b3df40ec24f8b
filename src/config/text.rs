//! How single values are written: durations, addresses, files, secrets, and the empty text that means "none".
//!
//! Each module is one serde `with`. An error shows the text and the fix; [`secret`] cannot fail, so it cannot show one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

/// Durations as humantime writes them.
pub(super) mod span {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*span))
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        parse(&String::deserialize(from)?)
    }

    pub(super) fn parse<E: serde::de::Error>(text: &str) -> Result<Duration, E> {
        humantime::parse_duration(text).map_err(|_| E::custom(format!("\"{text}\" is not a duration; write a unit, as in 30s or 2m")))
    }
}

/// The same, or `""` for none.
pub(super) mod span_if_any {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(span: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        match span {
            Some(known) => span::serialize(known, to),
            None => to.serialize_str(""),
        }
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let text = String::deserialize(from)?;
        if text.is_empty() { Ok(None) } else { span::parse(&text).map(Some) }
    }
}

/// A list of durations, in brackets or with commas between.
pub(super) mod spans {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(spans: &[Duration], to: S) -> Result<S::Ok, S::Error> {
        let spans: Vec<_> = spans.iter().map(|span| humantime::format_duration(*span).to_string()).collect();
        to.serialize_str(&spans.join(", "))
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Duration>, D::Error> {
        let texts = match Listed::deserialize(from)? {
            Listed::Each(texts) => texts,
            Listed::Together(text) => text.split(',').map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).collect(),
        };
        texts.iter().map(|text| span::parse(text)).collect()
    }
}

/// Several of those that may be shown to nobody, in brackets or with blanks between.
pub(super) mod secrets {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(_: &[SecretString], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_none() // a secret never leaves
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SecretString>, D::Error> {
        let texts = match Listed::deserialize(from)? {
            Listed::Each(texts) => texts,
            Listed::Together(text) => text.split_whitespace().map(str::to_owned).collect(),
        };
        Ok(texts.into_iter().filter(|text| !text.is_empty()).map(SecretString::from).collect())
    }
}

/// A list as a file can have it, and as a variable has it.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a list of texts, as in [\"1s\", \"10s\"]")]
enum Listed {
    Each(Vec<String>),
    Together(String),
}

/// Texts that may be shown to nobody; an empty one counts as not written.
pub(super) mod secret {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(_: &Option<SecretString>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_none() // a secret never leaves
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SecretString>, D::Error> {
        let text = String::deserialize(from)?;
        Ok((!text.is_empty()).then(|| SecretString::from(text)))
    }
}

/// An address, or `""` for none.
pub(super) mod address {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(address: &Option<SocketAddr>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&address.map_or(String::new(), |address| address.to_string()))
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(from)?;
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| {
            D::Error::custom(format!("\"{text}\" is not an IP address with a port; write it as in 127.0.0.1:9464 or [::]:9464"))
        })
    }
}

/// A file's name, or `""` for none.
pub(super) mod path {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(path: &Option<PathBuf>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&path.as_deref().unwrap_or(Path::new("")).display())
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
        let text = String::deserialize(from)?;
        Ok((!text.is_empty()).then(|| text.into()))
    }
}

/// A column, or another text, or `""` for none.
pub(super) mod column {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(column: &Option<String>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(column.as_deref().unwrap_or_default())
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
        let text = String::deserialize(from)?;
        Ok((!text.is_empty()).then_some(text))
    }
}
