//! Waiting for something to be seen: the only sleep in the tree.
//!
//! Owns: the polling and its deadline. A test says what it waits for, so that a failure names it.
//! Refuses: waiting for time to pass in the hope that something has happened by then.

use std::time::{Duration, Instant};

/// Far longer than anything takes on a machine that is busy, so that running into it means
/// something.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

const POLL: Duration = Duration::from_millis(5);

/// One look at the world: `true` or `Some` is what was waited for.
pub(crate) trait Look {
    /// What a successful look brings.
    type Seen;
    /// What was seen, if it was.
    fn seen(self) -> Option<Self::Seen>;
}

impl Look for bool {
    type Seen = ();
    fn seen(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Look for Option<T> {
    type Seen = T;
    fn seen(self) -> Self {
        self
    }
}

/// Looks until it sees `what`; panics after [`PATIENCE`].
pub(crate) async fn until<L: Look>(what: &str, look: impl AsyncFnMut() -> L) -> L::Seen {
    until_within(what, PATIENCE, look).await
}

/// Looks until it sees `what`; panics after `patience`.
pub(crate) async fn until_within<L: Look>(
    what: &str,
    patience: Duration,
    mut look: impl AsyncFnMut() -> L,
) -> L::Seen {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(seen) = look().await.seen() {
            return seen;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} in vain until {what}");
        tokio::time::sleep(POLL).await;
    }
}

/// Lets time pass, for a schedule of faults or a writer that takes its time: where time itself is
/// under test.
pub(crate) async fn pace(duration: Duration) {
    tokio::time::sleep(duration).await;
}

/// The delay of a slow link. Not for tests: they wait for something.
pub(super) async fn delay(duration: Duration) {
    tokio::time::sleep(duration).await;
}
