//! How single values are written, as far as `humantime-serde` and `serde_with` do not do it:
//! secrets, lists, and addresses.
//!
//! Empty texts mean "none". An error shows the text and the fix; that of a secret cannot fail, so
//! it cannot show one.

use std::net::SocketAddr;
use std::time::Duration;

use humantime_serde::Serde;
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::{Deserialize, Deserializer, Error, IntoDeserializer as _};
use serde::ser::Serializer;

/// An empty text, or what `read` makes of another.
fn if_any<'de, D: Deserializer<'de>, T>(
    from: D,
    read: impl FnOnce(String) -> Result<T, D::Error>,
) -> Result<Option<T>, D::Error> {
    Some(String::deserialize(from)?).filter(|text| !text.is_empty()).map(read).transpose()
}

/// A duration, or `""` for none.
pub(super) fn span_if_any<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<Duration>, D::Error> {
    if_any(from, |text| Serde::deserialize(text.into_deserializer()).map(Serde::into_inner))
}

/// An address, or `""` for none. That of `SocketAddr` itself would show neither the text nor the
/// form.
pub(super) fn address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    if_any(from, |text| {
        let fault = format!(
            "\"{text}\" is not an IP address with a port; write it as in 127.0.0.1:9464 or [::]:9464"
        );
        text.parse().map_err(|_| D::Error::custom(fault))
    })
}

/// A list of durations.
pub(super) mod spans {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(
        spans: &[Duration],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(spans.iter().map(Serde::from))
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<Duration>, D::Error> {
        Ok(Vec::deserialize(from)?.into_iter().map(Serde::into_inner).collect())
    }
}

/// A text that may be shown to nobody.
pub(super) mod secret {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(
        _: &Option<SecretString>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_none() // a secret never leaves
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<SecretString>, D::Error> {
        if_any(from, |text| Ok(text.into()))
    }
}

/// Several of those.
pub(super) mod secrets {
    use super::*;

    pub(in crate::config) fn serialize<S: Serializer>(
        _: &[SecretString],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq([""; 0]) // a secret never leaves
    }

    pub(in crate::config) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<SecretString>, D::Error> {
        Ok(Vec::<String>::deserialize(from)?
            .into_iter()
            .filter(|text| !text.is_empty())
            .map(SecretString::from)
            .collect())
    }
}

/// The texts of one secret or of several, to be compared.
pub(super) fn exposed<'a>(
    secrets: impl IntoIterator<Item = &'a SecretString>,
) -> impl Iterator<Item = &'a str> {
    secrets.into_iter().map(SecretString::expose_secret)
}
