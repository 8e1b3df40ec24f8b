//! Choices that a seed repeats: splitmix64.

use std::time::Duration;

/// A stream of choices.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    /// The stream of one task in one round; streams of the same seed have nothing in common.
    pub(super) fn new(seed: u64, round: u64, task: u64) -> Self {
        let mut random = Self(seed);
        random.0 ^= random.next().wrapping_add(round);
        random.0 ^= random.next().wrapping_add(task);
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `end` - 1.
    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).expect("below a usize")
    }

    /// 1 to `last`.
    pub(super) fn number(&mut self, last: i32) -> i32 {
        let last = usize::try_from(last).expect("not negative");
        i32::try_from(1 + self.below(last)).expect("at most an i32")
    }

    /// True once in `n` times.
    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A duration in milliseconds.
    pub(super) fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(range.start + self.next() % (range.end - range.start))
    }

    /// In any order.
    pub(super) fn shuffle<T>(&mut self, things: &mut [T]) {
        for last in (1..things.len()).rev() {
            things.swap(last, self.below(last + 1));
        }
    }
}
