//! What is to be deleted from Redis: one thing, as a template makes it, or many, as a command takes
//! them. Pure.

use std::sync::Arc;

/// Bytes that one takes in memory: its text, its place in a set, its header, and the allocator's.
#[must_use]
pub(crate) fn cost(text: &str) -> usize {
    text.len() + 80
}

/// One thing that is to be deleted.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Deletion {
    /// One key, literally.
    Key(String),
    /// Every key that matches a glob as Redis' SCAN understands it, literal parts escaped.
    Pattern(String),
}

impl Deletion {
    /// The key or the glob.
    #[must_use]
    pub fn text(&self) -> &str {
        let (Self::Key(text) | Self::Pattern(text)) = self;
        text
    }

    /// The key or the glob.
    #[must_use]
    pub fn into_text(self) -> String {
        let (Self::Key(text) | Self::Pattern(text)) = self;
        text
    }
}

/// What one command deletes: many of one kind. A clone shares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deletions {
    /// UNLINK of these keys.
    Keys(Arc<Vec<String>>),
    /// One walk by SCAN, and UNLINK of all that matches one of these globs.
    Patterns(Arc<Vec<String>>),
}

impl Deletions {
    /// The keys or the globs.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        let (Self::Keys(texts) | Self::Patterns(texts)) = self;
        texts
    }

    /// Others of the same kind.
    #[must_use]
    pub fn of_same_kind(&self, texts: Vec<String>) -> Self {
        match self {
            Self::Keys(_) => Self::Keys(Arc::new(texts)),
            Self::Patterns(_) => Self::Patterns(Arc::new(texts)),
        }
    }

    /// Each by itself.
    pub fn iter(&self) -> impl Iterator<Item = Deletion> + '_ {
        let one = match self {
            Self::Keys(_) => Deletion::Key,
            Self::Patterns(_) => Deletion::Pattern,
        };
        self.texts().iter().cloned().map(one)
    }

    /// How many keys or globs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.texts().len()
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.texts().is_empty()
    }

    /// What remembering them takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.texts().iter().map(|text| cost(text)).sum()
    }
}
