//! Texts that others wrote (names of tables and instances, errors of servers, INFO, payloads), on
//! their way to a terminal, a line of the log, a page, or a clipboard.
//!
//! Must hold: such a text stays within its line, changes nothing about the terminal, and reads in
//! the order in which it is stored. Control characters, line breaks, and what is invisible or turns
//! the direction of writing are shown as Rust escapes them. A backslash is not escaped in turn:
//! patterns and paths are full of them, and an escape only has to be harmless, not reversible. JSON
//! stays exact: there the same characters are written as JSON escapes them.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character does something else than to be seen where it stands. Unicode's Cc, its line
/// separators, and of Cf what reorders or hides text
/// (<https://www.unicode.org/reports/tr36/#Bidirectional_Text_Spoofing>).
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
                | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}'
        )
}

/// The text as part of a line.
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_unsafe, |c, safe| safe.extend(c.escape_default()))
}

/// A document of JSON, which means the same as before. Its line breaks are between values: within
/// texts they are escaped already.
#[must_use]
pub fn json(document: &str) -> Cow<'_, str> {
    let escape = |c: char, safe: &mut String| {
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(safe, "\\u{unit:04x}");
        }
    };
    escaped(document, |c| is_unsafe(c) && c != '\n', escape)
}

/// The text as one word of a POSIX shell; `None` if it cannot be pasted as it is shown.
#[must_use]
pub fn in_shell(text: &str) -> Option<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c);
    match text {
        text if !is_pastable(text) => None,
        text if !text.is_empty() && text.chars().all(is_plain) => Some(text.to_owned()),
        text => Some(format!("'{}'", text.replace('\'', r"'\''"))),
    }
}

/// The text as a literal of SQL; `None` if it cannot be pasted as it is shown.
#[must_use]
pub fn in_sql(text: &str) -> Option<String> {
    is_pastable(text).then(|| format!("'{}'", text.replace('\'', "''")))
}

/// Whether what is pasted is what is shown, and stays on its line.
#[must_use]
pub fn is_pastable(text: &str) -> bool {
    !text.contains(is_unsafe)
}

/// Most texts need no escapes, and no copy.
fn escaped(
    text: &str,
    is_unsafe: impl Fn(char) -> bool,
    escape: impl Fn(char, &mut String),
) -> Cow<'_, str> {
    let Some(first) = text.find(&is_unsafe) else { return Cow::Borrowed(text) };
    let mut safe = String::with_capacity(text.len() + 16);
    safe.push_str(&text[..first]);
    for c in text[first..].chars() {
        if is_unsafe(c) { escape(c, &mut safe) } else { safe.push(c) }
    }
    Cow::Owned(safe)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_would_act_is_shown_and_the_rest_is_left_alone() {
        assert!(matches!(line(r"public.Größe 用户 q\?:* 'a' 👍"), Cow::Borrowed(_)));
        assert_eq!(line("a\nalter role m superuser;\r\t"), r"a\nalter role m superuser;\r\t");
        assert_eq!(line("\u{1b}]0;title\u{7} \u{9b}31m"), r"\u{1b}]0;title\u{7} \u{9b}31m");
        assert_eq!(
            line("user\u{202e}nimda \u{2066}\u{200b}\u{feff}"),
            r"user\u{202e}nimda \u{2066}\u{200b}\u{feff}"
        );
    }

    #[test]
    fn a_name_that_cannot_be_quoted_is_not() {
        assert_eq!(in_shell("10.0.0.1:6379").as_deref(), Some("10.0.0.1:6379"));
        assert_eq!(in_shell("$(touch /tmp/x)").as_deref(), Some("'$(touch /tmp/x)'"));
        assert_eq!(in_shell("").as_deref(), Some("''"));
        assert_eq!(in_sql("it's").as_deref(), Some("'it''s'"));
        assert_eq!((in_shell("a\nb"), in_sql("a\u{202e}")), (None, None));
    }

    proptest! {
        #[test]
        fn any_text_becomes_one_line_that_becomes_itself(text in any::<String>()) {
            let shown = line(&text);
            prop_assert!(!shown.contains(is_unsafe));
            prop_assert_eq!(line(&shown), shown.as_ref());
        }

        #[test]
        fn any_text_in_json_is_the_same_text_without_what_acts(text in any::<String>()) {
            let document = serde_json::json!({ "text": &text, "list": [&text] });
            for written in [document.to_string(), format!("{document:#}")] {
                let safe = json(&written);
                prop_assert!(!safe.replace('\n', "").contains(is_unsafe));
                prop_assert_eq!(&serde_json::from_str::<serde_json::Value>(&safe).expect("JSON"), &document);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_shell_reads_a_quoted_word_as_it_was(text in r#"[ -~é"'`$\\!*()]{0,24}"#) {
            let word = in_shell(&text).expect("it can be quoted");
            let output = Command::new("sh").args(["-c", &format!("printf %s {word}")]).output().expect("a shell");
            prop_assert_eq!(String::from_utf8_lossy(&output.stdout), text);
        }
    }
}
