//! What is not as it should be in the database, counted now and then: a dropped trigger pages somebody, instead of waiting to be asked for.
//!
//! On a connection of its own, and with patience of its own: however long the database takes to answer, no heartbeat waits for it.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::finding::Severity;
use crate::listener::driver::Parts;
use crate::observe::metrics;
use crate::pg::{self, Postgres};

/// Between two looks.
const EVERY: Duration = Duration::from_mins(1);

/// Counts until `shutdown`. What could not be asked for is not a number, and not what it was before.
pub(super) async fn count(parts: watch::Receiver<Parts>, shutdown: CancellationToken) {
    loop {
        let postgres = parts.borrow().postgres.clone();
        let counted = tokio::time::timeout(EVERY / 2, look(&postgres)).await;
        metrics::findings(counted.ok().and_then(Result::ok));
        if shutdown.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
            return;
        }
    }
}

/// Errors and warnings.
async fn look(postgres: &Postgres) -> Result<[u32; 2], pg::Error> {
    let findings = pg::check::of_database(&mut postgres.connect().await?).await?;
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count().try_into().unwrap_or(u32::MAX);
    Ok([count(Severity::Error), count(Severity::Warning)])
}
