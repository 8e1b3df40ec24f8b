//! Keys that are deleted once more after each of some delays. What waits is bounded in bytes; what
//! does not fit is deleted once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indexmap::IndexSet;

/// Bytes of keys that wait for all their repeats: about a million keys of 25 bytes, more than are
/// deleted in a second.
const HELD_BYTES: usize = 32 << 20;

/// Bytes that the keys of one command take beside their texts, and one key of them.
const OVERHEAD: (usize, usize) = (160, 4);

/// Bytes of keys in one repeating command, unless those of a single first one are more.
const COMMAND_BYTES: usize = 1 << 20;

/// So long the first due key waits for others, at the most, so that one that changes a thousand
/// times a second is repeated ten times; and as this part of the delay, if that is less.
const COALESCED: (Duration, u32) = (Duration::from_millis(100), 8);

/// The keys of one command, in two allocations.
#[derive(Debug)]
pub(super) struct Packed {
    text: String,
    ends: Vec<u32>,
}

/// Keys in the order in which they are due. Bounded by whoever adds.
#[derive(Debug, Default)]
pub(super) struct Held {
    keys: VecDeque<(Instant, Arc<Packed>)>,
    count: usize,
    bytes: usize,
}

/// The keys that wait for one of the delays.
#[derive(Debug)]
struct Delayed {
    delay: Duration,
    held: Held,
    released: Option<Instant>, // what was due then goes as soon as there is a place
}

/// See the module.
#[derive(Debug)]
pub(super) struct Repeats {
    delays: Vec<Delayed>,
}

impl Packed {
    /// A command's keys are at most a few megabytes, so that an end fits.
    pub(super) fn new(keys: &[String]) -> Arc<Self> {
        let mut text = String::with_capacity(keys.iter().map(String::len).sum());
        let ends = keys.iter().map(|key| {
            text.push_str(key);
            u32::try_from(text.len()).unwrap_or(u32::MAX)
        });
        let ends = ends.collect();
        Arc::new(Self { text, ends })
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn bytes(&self) -> usize {
        OVERHEAD.0 + self.text.len() + self.ends.len() * OVERHEAD.1
    }

    fn iter(&self) -> impl Iterator<Item = &str> {
        let ends = self.ends.iter().map(|end| *end as usize);
        ends.scan(0, |begin, end| self.text.get(std::mem::replace(begin, end)..end))
    }
}

impl Held {
    pub(super) fn push(&mut self, at: Instant, keys: Arc<Packed>) {
        self.bytes += keys.bytes();
        self.count += keys.len();
        self.keys.push_back((at, keys));
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many keys. One that was deleted twice counts twice.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn first(&self) -> Option<Instant> {
        self.keys.front().map(|(at, _)| *at)
    }

    /// The keys of those that are due until then, each once, and no more than one command takes.
    pub(super) fn take(&mut self, until: Instant, keys_per_command: usize) -> Vec<String> {
        let mut taken: IndexSet<String> = IndexSet::new();
        let mut bytes = 0;
        while let Some((_, keys)) = self.keys.pop_front_if(|(at, keys)| {
            let fits = taken.len() + keys.len() <= keys_per_command
                && bytes + keys.bytes() <= COMMAND_BYTES;
            *at <= until && (fits || taken.is_empty())
        }) {
            bytes += keys.bytes();
            self.bytes -= keys.bytes();
            self.count -= keys.len();
            taken.extend(keys.iter().map(str::to_owned));
        }
        if self.keys.is_empty() {
            self.keys = VecDeque::new(); // also gives its memory back
        }
        taken.into_iter().collect()
    }
}

impl Delayed {
    fn due(&self) -> Option<Instant> {
        let patience = COALESCED.0.min(self.delay / COALESCED.1);
        self.held.first().map(|first| {
            if self.released.is_some_and(|released| first <= released) {
                first
            } else {
                first + patience
            }
        })
    }
}

impl Repeats {
    /// Keys that wait for a repeat.
    pub(super) fn waiting(&self) -> usize {
        self.delays.iter().map(|delayed| delayed.held.count()).sum()
    }

    pub(super) fn new(after: &[Duration]) -> Self {
        let mut repeats = Self { delays: Vec::new() };
        repeats.set(after);
        repeats
    }

    /// Other delays, from now on. What waits for one that is not among them is not repeated for it.
    pub(super) fn set(&mut self, after: &[Duration]) {
        let mut known = std::mem::take(&mut self.delays);
        for &delay in after {
            let held = known
                .iter_mut()
                .find(|known| known.delay == delay)
                .map(|known| std::mem::take(&mut known.held));
            self.delays.push(Delayed { delay, held: held.unwrap_or_default(), released: None });
        }
    }

    /// Are there any?
    pub(super) fn is_empty(&self) -> bool {
        self.delays.is_empty()
    }

    /// These were deleted. Returns whether all of their repeats are held.
    pub(super) fn deleted(&mut self, now: Instant, keys: &Arc<Packed>) -> bool {
        let mut bytes: usize = self.delays.iter().map(|delayed| delayed.held.bytes()).sum();
        for Delayed { delay, held, .. } in &mut self.delays {
            bytes += keys.bytes();
            if bytes > HELD_BYTES {
                return false;
            }
            held.push(now + *delay, keys.clone());
        }
        true
    }

    /// When the next are to be deleted.
    pub(super) fn due(&self) -> Option<Instant> {
        self.delays.iter().filter_map(Delayed::due).min()
    }

    /// The next ones that are due.
    pub(super) fn next(&mut self, now: Instant, keys_per_command: usize) -> Option<Vec<String>> {
        let delayed =
            self.delays.iter_mut().find(|delayed| delayed.due().is_some_and(|due| due <= now))?;
        let released = *delayed.released.insert(match delayed.released {
            Some(released) if delayed.held.first().is_some_and(|first| first <= released) => {
                released
            }
            _ => now,
        });
        Some(delayed.held.take(released, keys_per_command))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MILLI: Duration = Duration::from_millis(1);

    fn packed(keys: &[&str]) -> Arc<Packed> {
        Packed::new(&keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_key_is_repeated_after_each_delay_and_not_before() {
        let (mut repeats, start) = (Repeats::new(&[SECOND, SECOND * 10]), Instant::now());
        assert!(repeats.deleted(start, &packed(&["a", "", "b\u{e9}"])));
        assert_eq!(repeats.due(), Some(start + SECOND + MILLI * 100));
        assert_eq!(repeats.next(start + SECOND, 500), None);
        assert_eq!(
            repeats.next(start + SECOND + MILLI * 100, 500),
            Some(vec!["a".into(), String::new(), "b\u{e9}".into()])
        );
        assert_eq!(repeats.due(), Some(start + SECOND * 10 + MILLI * 100));
        assert!(repeats.next(start + SECOND * 11, 500).is_some());
        assert_eq!((repeats.due(), repeats.next(start + SECOND * 20, 500)), (None, None));
    }

    #[test]
    fn what_is_deleted_again_and_again_is_repeated_ten_times_a_second() {
        let (mut repeats, start) = (Repeats::new(&[SECOND]), Instant::now());
        let mut repeated = 0;
        for n in 0..2_000 {
            let now = start + MILLI * n;
            assert!(repeats.deleted(now, &packed(&["hot"])));
            while let Some(keys) = repeats.next(now, 500) {
                assert_eq!(keys, ["hot"]);
                repeated += 1;
            }
        }
        assert_eq!(repeated, 9);
    }

    #[test]
    fn a_command_holds_no_more_keys_than_it_may_and_what_was_due_follows_at_once() {
        let (mut repeats, start) = (Repeats::new(&[SECOND]), Instant::now());
        for keys in [["a", "b"], ["c", "d"], ["e", "f"]] {
            assert!(repeats.deleted(start, &packed(&keys)));
        }
        let now = start + SECOND * 2;
        let commands: Vec<_> = std::iter::from_fn(|| repeats.next(now, 5)).collect();
        assert_eq!(commands, [vec!["a", "b", "c", "d"], vec!["e", "f"]]);
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_and_is_given_back() {
        let (mut repeats, start) = (Repeats::new(&[SECOND]), Instant::now());
        let keys: Vec<String> = (0..500).map(|n| format!("user:{n:020}")).collect();
        let mut held = 0;
        while repeats.deleted(start, &Packed::new(&keys)) {
            held += keys.len();
        }
        assert!((900_000..1_200_000).contains(&held), "{held}");
        assert!(repeats.delays[0].held.bytes() <= HELD_BYTES);
        let mut repeated = 0;
        while let Some(keys) = repeats.next(start + SECOND * 2, 500) {
            repeated += keys.len();
        }
        assert_eq!((repeated, repeats.delays[0].held.bytes(), repeats.waiting()), (held, 0, 0));
    }

    #[test]
    fn other_delays_keep_what_waits_for_one_that_stays() {
        let (mut repeats, start) = (Repeats::new(&[SECOND, SECOND * 10]), Instant::now());
        assert!(repeats.deleted(start, &packed(&["a"])));
        repeats.set(&[SECOND * 10]);
        assert_eq!(repeats.due(), Some(start + SECOND * 10 + MILLI * 100));
        repeats.set(&[]);
        assert_eq!(repeats.due(), None);
    }
}
