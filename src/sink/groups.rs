//! Keys in groups, of which each is one command's: all of them, each by itself, or those of a slot.
//! Pure but for fred's types.

use std::ops::Range;

use fred::types::Key;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Groups {
    keys: Vec<Key>,
    ends: Vec<usize>, // of each group, in `keys`
}

impl Groups {
    /// One group; none, if there are no keys.
    pub(super) fn together(keys: Vec<Key>) -> Self {
        let ends = if keys.is_empty() { Vec::new() } else { vec![keys.len()] };
        Self { keys, ends }
    }

    /// Each key is a group.
    pub(super) fn apart(keys: Vec<Key>) -> Self {
        let ends = (1..=keys.len()).collect();
        Self { keys, ends }
    }

    /// Those of each slot together, whose number is beside each key.
    pub(super) fn by_slot(mut keys: Vec<(u16, Key)>) -> Self {
        keys.sort_by_key(|(slot, _)| *slot);
        let mut groups = Self { keys: Vec::with_capacity(keys.len()), ends: Vec::new() };
        let mut last = None;
        for (slot, key) in keys {
            groups.push(key, last == Some(slot));
            last = Some(slot);
        }
        groups
    }

    /// One more key, of the last group or of a new one.
    fn push(&mut self, key: Key, is_of_last: bool) {
        self.keys.push(key);
        match self.ends.last_mut().filter(|_| is_of_last) {
            Some(end) => *end += 1,
            None => self.ends.push(self.keys.len()),
        }
    }

    /// How many groups.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[Key]> {
        (0..self.len()).map(|group| &self.keys[self.range(group)])
    }

    /// The keys of one, by its place.
    pub(super) fn group(&self, group: usize) -> &[Key] {
        &self.keys[self.range(group)]
    }

    pub(super) fn into_keys(self) -> Vec<Key> {
        self.keys
    }

    fn range(&self, group: usize) -> Range<usize> {
        let begin = if group == 0 { 0 } else { self.ends[group - 1] };
        begin..self.ends[group]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: &[&str]) -> Vec<Key> {
        names.iter().map(|name| Key::from(*name)).collect()
    }

    fn names(groups: &Groups) -> Vec<Vec<&str>> {
        groups.iter().map(|group| group.iter().filter_map(Key::as_str).collect()).collect()
    }

    #[test]
    fn keys_of_one_slot_come_together_and_no_others() {
        let slots = [2, 1, 2, 0, 1];
        let keys = keys(&["b1", "a1", "b2", "c", "a2"]);
        let groups = Groups::by_slot(slots.into_iter().zip(keys).collect());
        assert_eq!(names(&groups), [vec!["c"], vec!["a1", "a2"], vec!["b1", "b2"]]);
        assert_eq!(groups.len(), 3);
        assert_eq!(groups.into_keys().len(), 5);
    }

    #[test]
    fn all_together_or_each_by_itself() {
        assert_eq!(names(&Groups::together(keys(&["a", "b"]))), [["a", "b"]]);
        assert_eq!(names(&Groups::apart(keys(&["a", "b"]))), [["a"], ["b"]]);
        assert_eq!(Groups::together(Vec::new()).len(), 0);
    }
}
