//! A list that mostly has one item, and then allocates nothing: most changes are of one row, and
//! most keys of one column.
//!
//! Not smallvec, whose lists are invariant: a row that borrows from its payload could not be handed
//! on.

/// See the module.
#[derive(Debug, PartialEq, Eq)]
pub struct Few<T> {
    first: Option<T>,
    more: Vec<T>, // empty without a first one
}

impl<T> Few<T> {
    /// Nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self { first: None, more: Vec::new() }
    }

    /// One item more, at the end.
    pub fn push(&mut self, item: T) {
        match self.first {
            None => self.first = Some(item),
            Some(_) => self.more.push(item),
        }
    }

    /// In the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().chain(&self.more)
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.first.is_some()) + self.more.len()
    }

    /// Nothing in it?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items = items.into_iter();
        Self { first: items.next(), more: items.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_what_it_is_given_in_order() {
        for count in 0..4 {
            let mut pushed = Few::new();
            (0..count).for_each(|item| pushed.push(item));
            assert_eq!(pushed.iter().copied().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
            assert_eq!((pushed.len(), pushed.is_empty()), (count, count == 0));
            assert_eq!(pushed, (0..count).collect());
        }
    }
}
