//! What the demo prints: short lines that fit a slide.
//!
//! Owns: stdout while the demo runs. Colours only for a terminal that has not been told otherwise
//! (NO_COLOR). A reader who has seen enough (`unstale demo | head`) is no failure: what cannot be
//! written is not.

use std::io::{IsTerminal as _, Write as _, stdout};

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";

/// Where the numbers of all steps begin.
const COLUMN: usize = 30;

/// The voice of the demo.
#[derive(Debug, Clone, Copy)]
pub(super) struct Say {
    coloured: bool,
}

impl Say {
    pub(super) fn new() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { coloured: stdout().is_terminal() && !unwanted }
    }

    /// A plain line.
    pub(super) fn line(self, text: &str) {
        let _ = writeln!(stdout(), "  {text}");
    }

    /// An empty line.
    pub(super) fn blank(self) {
        let _ = writeln!(stdout());
    }

    /// A line that matters less.
    pub(super) fn aside(self, text: &str) {
        self.line(&self.paint(DIM, text));
    }

    /// A headline.
    pub(super) fn title(self, text: &str) {
        let _ = writeln!(stdout(), "\n  {}", self.paint(BOLD, text));
    }

    /// A promise that held, and the numbers.
    pub(super) fn held(self, what: &str, numbers: &str) {
        let tick = self.paint(GREEN, "✓");
        let _ = writeln!(stdout(), "  {tick} {what:COLUMN$} {numbers}");
    }

    fn paint(self, colour: &str, text: &str) -> String {
        if self.coloured { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// A count with thousands separated: 100,000.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn thousands_are_separated() {
        assert_eq!(
            [0, 999, 1_000, 100_000, 1_234_567].map(count),
            ["0", "999", "1,000", "100,000", "1,234,567"]
        );
    }
}
