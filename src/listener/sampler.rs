//! Which of the deleted keys are looked at again: a random share, offered to whoever looks, who never holds up the driver.

use std::hash::{BuildHasher as _, RandomState};

use tokio::sync::mpsc;

use crate::batch::Work;
use crate::delivered::Delivered;

/// See the module.
pub struct Sampler {
    share: f64, // 0 to 1
    random: u64,
    keys: mpsc::Sender<String>,
}

impl Sampler {
    /// Offers this share of the keys. Those that do not fit are left out.
    #[must_use]
    pub fn new(share: f64, keys: mpsc::Sender<String>) -> Self {
        Self { share, random: RandomState::new().hash_one(()) | 1, keys }
    }

    /// What was deleted.
    pub(super) fn offer(&mut self, delivered: &Delivered) {
        for part in &delivered.parts {
            let Work::Keys(keys) = &part.work else { continue };
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
        let mut sampler = Sampler::new(0.1, mpsc::channel(1).0);
        let drawn = (0..100_000).filter(|_| sampler.draw() < sampler.share).count();
        assert!((9_400..=10_600).contains(&drawn), "{drawn}");
    }
}
