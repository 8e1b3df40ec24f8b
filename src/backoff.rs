//! How long to wait before the next attempt: exponential, jittered, for ever.
//!
//! Owns the delays alone; who waits, and what resets them, is the machine's business.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// The delays between attempts.
#[derive(Debug)]
pub struct Backoff {
    builder: ExponentialBuilder,
    delays: ExponentialBackoff,
    longest: Duration,
}

impl Backoff {
    /// Delays that begin at about `shortest` and double up to about `longest`. The jitter adds up
    /// to once the delay, so that a hundred listeners do not come back together; `seed` makes it
    /// repeatable.
    #[must_use]
    pub fn new(shortest: Duration, longest: Duration, seed: u64) -> Self {
        let builder = ExponentialBuilder::default()
            .with_min_delay(shortest)
            .with_max_delay(longest)
            .without_max_times()
            .with_jitter()
            .with_jitter_seed(seed);
        Self { builder, delays: builder.build(), longest }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().unwrap_or(self.longest).min(self.longest)
    }

    /// Begins again with the shortest delay.
    pub fn reset(&mut self) {
        self.delays = self.builder.build();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_stay_within_the_limit_and_never_end() {
        let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(10));
        let mut backoff = Backoff::new(shortest, longest, 7);
        let delays: Vec<_> = (0..1000).map(|_| backoff.next_delay()).collect();
        assert!(delays.iter().all(|delay| (shortest..=longest).contains(delay)), "{delays:?}");
        assert!(
            delays[0] < Duration::from_millis(201) && delays[999] > Duration::from_secs(9),
            "{delays:?}"
        );
        backoff.reset();
        assert!(backoff.next_delay() < Duration::from_millis(201));
    }
}
