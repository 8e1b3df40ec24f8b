//! What was said lately: the same failure again and again is a line a minute, not one for each
//! attempt.

use std::time::{Duration, Instant};

/// How long a sentence is not said again.
const QUIET: Duration = Duration::from_secs(60);

/// The last sentence that was said.
#[derive(Debug, Default)]
pub(in crate::listener) struct RepeatFilter {
    reason: String,
    at: Option<Instant>,
}

impl RepeatFilter {
    /// Was this just said? If not, it is said now.
    pub(in crate::listener) fn is_repeat(&mut self, now: Instant, reason: &str) -> bool {
        let again = self.reason == reason && self.at.is_some_and(|at| now < at + QUIET);
        if !again {
            reason.clone_into(&mut self.reason);
            self.at = Some(now);
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_said_once_a_minute_and_another_one_at_once() {
        let (mut filter, start) = (RepeatFilter::default(), Instant::now());
        let mut again =
            |seconds, reason| filter.is_repeat(start + Duration::from_secs(seconds), reason);
        assert_eq!(
            [again(0, "refused"), again(10, "refused"), again(59, "refused"), again(60, "refused")],
            [false, true, true, false]
        );
        assert_eq!(
            [again(61, "timeout"), again(62, "refused"), again(63, "refused")],
            [false, false, true]
        );
    }
}
