//! What both URLs have in common: percent-encoding, and the known name that was probably meant.

/// Below this likeness a suggestion would only mislead.
const ALIKE: f64 = 0.6;

/// The known name that is most like `name`, if one is like it at all. Case counts for nothing here,
/// because a name in the wrong case is the likeliest mistake.
#[must_use]
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    let likeness =
        |known: &str| strsim::normalized_damerau_levenshtein(&name, &known.to_lowercase());
    let best = known
        .into_iter()
        .map(|known| (likeness(known), known))
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.filter(|(likeness, _)| *likeness >= ALIKE).map(|(_, known)| known)
}

/// Percent-encoding undone: `%2F` is a slash.
///
/// # Errors
/// What is wrong with it, as a sentence that shows nothing of the text.
pub fn decode(text: &str) -> Result<String, &'static str> {
    const FAULT: &str = "after % come two hexadecimal digits, and not 00";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut digit = || {
            rest.next()
                .and_then(|digit| char::from(digit).to_digit(16))
                .and_then(|digit| u8::try_from(digit).ok())
        };
        let decoded =
            if byte == b'%' { digit().ok_or(FAULT)? << 4 | digit().ok_or(FAULT)? } else { byte };
        if decoded == 0 {
            return Err(FAULT);
        }
        bytes.push(decoded);
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding_is_undone_or_refused() {
        assert_eq!(decode("a%2Fb%c3%A9").as_deref(), Ok("a/b\u{e9}"));
        for text in ["%", "%2", "%zz", "%00", "%ff"] {
            assert!(decode(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_in_another_case_or_with_a_slip_is_recognised_and_a_strange_one_is_not() {
        let known = ["sslmode", "sslrootcert", "options"];
        assert_eq!(nearest("sslMode", known), Some("sslmode"));
        assert_eq!(nearest("ssl-mode", known), Some("sslmode"));
        assert_eq!(nearest("optoins", known), Some("options"));
        assert_eq!(nearest("pool_timeout", known), None);
    }
}
