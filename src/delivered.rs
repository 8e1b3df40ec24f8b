//! What became of a command to Redis: who did which part of it, and what is left.
//!
//! One server does a command as a whole. In a cluster each primary does the part that lives there,
//! and what lives on one that does not answer is handed back, so that it holds up nothing else.
//! Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::deletion::Deletions;
use crate::mark::Answer;

/// See the module.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// What is done, by whom.
    pub parts: Vec<Part>,
    /// What is not; `None`: all is.
    pub left: Option<Left>,
    /// The tags of all primaries that there are now.
    pub tags: Arc<BTreeSet<Arc<str>>>,
}

/// What one primary has done.
#[derive(Debug, Clone)]
pub struct Part {
    /// Its answer.
    pub answer: Answer,
    /// What it did.
    pub deletions: Deletions,
}

/// What has to be tried again later.
#[derive(Debug, Clone)]
pub struct Left {
    /// It.
    pub deletions: Deletions,
    /// Why, for people.
    pub reason: String,
}

impl Delivered {
    /// By one server, as a whole.
    #[must_use]
    pub fn whole(answer: Answer, deletions: Deletions) -> Self {
        let tags = Arc::new(BTreeSet::from([answer.tag.clone()]));
        Self { parts: vec![Part { answer, deletions }], left: None, tags }
    }
}
