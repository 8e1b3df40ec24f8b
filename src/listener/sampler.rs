//! Which of the deleted keys are looked at again: a random share, offered to whoever looks, who
//! never holds up the driver.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::deletion::Deletions;
use crate::delivered::Delivered;

/// How large the sample is, and when it is looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// The share of the deleted keys, 0 to 1.
    pub share: f64,
    /// So long after they were deleted, for each of these.
    pub after: Vec<Duration>,
}

impl Sampling {
    /// Is anything to be looked at?
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.share > 0.0 && !self.after.is_empty()
    }
}

/// See the module.
pub struct Sampler {
    share: f64, // 0 to 1; 0: nothing is wanted
    random: u64,
    keys: mpsc::Sender<String>,
}

impl Sampler {
    /// Offers a share of the keys. Those that do not fit are left out.
    #[must_use]
    pub fn new(sampling: &Sampling, keys: mpsc::Sender<String>) -> Self {
        let mut sampler = Self { share: 0.0, random: RandomState::new().hash_one(()) | 1, keys };
        sampler.reconfigure(sampling);
        sampler
    }

    /// From now on another share.
    pub(super) fn reconfigure(&mut self, sampling: &Sampling) {
        self.share = if sampling.is_wanted() { sampling.share } else { 0.0 };
    }

    /// What was deleted.
    pub(super) fn offer(&mut self, delivered: &Delivered) {
        if self.share <= 0.0 {
            return;
        }
        for part in &delivered.parts {
            let Deletions::Keys(keys) = &part.deletions else { continue };
            for key in keys.iter() {
                if self.draw() < self.share {
                    let _ = self.keys.try_send(key.clone());
                }
            }
        }
    }

    /// A number of 0 to 1, by xorshift64 (<https://www.jstatsoft.org/article/view/v008i14>).
    #[expect(clippy::cast_precision_loss, reason = "53 bits are a float's")]
    fn draw(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_so_many_are_drawn() {
        let mut sampler =
            Sampler::new(&Sampling { share: 0.1, after: vec![Duration::ZERO] }, mpsc::channel(1).0);
        let drawn = (0..100_000).filter(|_| sampler.draw() < sampler.share).count();
        assert!((9_400..=10_600).contains(&drawn), "{drawn}");
        for off in [
            Sampling { share: 0.0, after: vec![Duration::ZERO] },
            Sampling { share: 1.0, after: Vec::new() },
        ] {
            sampler.reconfigure(&off);
            assert!(!off.is_wanted() && sampler.share <= 0.0, "{off:?}");
        }
    }
}
