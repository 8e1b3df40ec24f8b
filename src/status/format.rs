//! Durations, numbers and sizes as a person reads them at a glance. The page's script writes
//! durations in the same way.

use super::Nines;

/// `0.8 ms`, `12 ms`, `3.4 s`, `5 min`, `2 h`, `3 d`.
#[must_use]
pub fn seconds(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.2} ms", s * 1e3),
        s if s < 0.01 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7_200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

/// `1 234 567`, with thin spaces that do not break.
#[must_use]
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 2);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

/// `0`, `0.02`, `1.5`, `120`: a second.
#[must_use]
pub fn rate(rate: f64) -> String {
    match rate {
        r if r < 0.005 => "0".to_owned(),
        r if r < 1.0 => format!("{r:.2}"),
        r if r < 10.0 => format!("{r:.1}"),
        r => format!("{r:.0}"),
    }
}

/// `0 B`, `512 B`, `1.5 kB`, `12 MB`.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
pub fn bytes(bytes: u64) -> String {
    let mut size = bytes as f64;
    for unit in ["B", "kB", "MB"] {
        if size < 1_000.0 {
            return if size < 10.0 && unit != "B" {
                format!("{size:.1} {unit}")
            } else {
                format!("{size:.0} {unit}")
            };
        }
        size /= 1_000.0;
    }
    format!("{size:.1} GB")
}

/// The share of values that were right: `99.99 % of 12 345`. Never rounded up: `100 %` means all of
/// them.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "six digits are shown")]
pub fn nines(nines: Nines) -> String {
    let Nines { audited, stale } = nines;
    let of = number(audited);
    if stale == 0 {
        return format!("100 % of {of}");
    }
    let percent = 100.0 * audited.saturating_sub(stale) as f64 / audited.max(1) as f64;
    format!("{} % of {of}", (percent * 10_000.0).floor() / 10_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_keep_their_size() {
        let shown = [0.000_42, 0.004_21, 0.0421, 0.9, 4.21, 42.1, 421.0, 7_300.0, 4e5].map(seconds);
        assert_eq!(
            shown,
            ["0.42 ms", "4.2 ms", "42 ms", "900 ms", "4.2 s", "42 s", "7 min", "2 h", "5 d"]
        );
        assert_eq!(
            [0, 999, 1_000, 1_234_567].map(number),
            ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]
        );
        assert_eq!([0.0, 0.02, 1.5, 120.4].map(rate), ["0", "0.02", "1.5", "120"]);
        assert_eq!(
            [0, 512, 1_500, 12_000_000, 3_000_000_000].map(bytes),
            ["0 B", "512 B", "1.5 kB", "12 MB", "3.0 GB"]
        );
    }

    #[test]
    fn one_stale_value_in_a_million_is_not_rounded_away() {
        assert_eq!(nines(Nines { audited: 1_000, stale: 0 }), "100 % of 1\u{202f}000");
        assert_eq!(
            nines(Nines { audited: 1_000_000, stale: 1 }),
            "99.9999 % of 1\u{202f}000\u{202f}000"
        );
        assert_eq!(
            nines(Nines { audited: 100_000_000, stale: 1 }),
            "99.9999 % of 100\u{202f}000\u{202f}000"
        );
    }
}
