//! What is not as it should be in the database, looked for now and then: a dropped trigger pages
//! somebody, instead of waiting to be asked for. And the ledger of gaps. Both are for the status
//! page, too.
//!
//! On a connection of its own, and with patience of its own: however long the database takes to
//! answer, no heartbeat waits for it.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::finding::{Finding, Severity};
use crate::listener::board::Board;
use crate::listener::driver::Dependencies;
use crate::messages::Readiness;
use crate::observe::metrics;
use crate::pg::{self, gaps};
use crate::status::GAPS;

/// Between two looks at everything.
const EVERY: Duration = Duration::from_mins(1);
/// After a gap opened or closed, until the ledger is read: it is written by then, and gaps by the
/// hundred cost a look a second.
const WRITTEN: Duration = Duration::from_secs(1);

/// Looks until `shutdown`. What could not be asked for is not a number, and not what it was before.
pub(super) async fn look_after(
    parts: watch::Receiver<Dependencies>,
    mut readiness: watch::Receiver<Readiness>,
    board: Arc<Board>,
    shutdown: CancellationToken,
) {
    let looking = async {
        loop {
            let next = Instant::now() + EVERY;
            let findings = timeout(EVERY / 2, look(&parts, &board)).await.ok().and_then(Result::ok);
            metrics::findings(findings.as_deref().map(counted));
            board.found(Instant::now().into_std(), findings);
            while Instant::now() < next {
                let changed = tokio::select! {
                    changed = readiness.changed() => changed.is_ok(),
                    () = sleep_until(next) => break,
                };
                if !changed {
                    return sleep(EVERY).await; // the listener has ended, and this will
                }
                sleep(WRITTEN).await;
                readiness.mark_unchanged();
                let _ = timeout(EVERY / 2, look_at_ledger(&parts, &board)).await; // the next look reads it, too
            }
        }
    };
    let _ = shutdown.run_until_cancelled(looking).await;
}

async fn look(
    parts: &watch::Receiver<Dependencies>,
    board: &Board,
) -> Result<Vec<Finding>, pg::Error> {
    let mut connection = connect(parts).await?;
    let _ = read_ledger(&mut connection, parts, board).await; // what it says is not a finding
    pg::check::of_database(&mut connection).await
}

async fn look_at_ledger(
    parts: &watch::Receiver<Dependencies>,
    board: &Board,
) -> Result<(), pg::Error> {
    read_ledger(&mut connect(parts).await?, parts, board).await
}

async fn read_ledger(
    connection: &mut PgConnection,
    parts: &watch::Receiver<Dependencies>,
    board: &Board,
) -> Result<(), pg::Error> {
    let instance = parts.borrow().instance.name.clone();
    board.gaps(gaps::last(connection, &instance, GAPS).await?);
    Ok(())
}

async fn connect(parts: &watch::Receiver<Dependencies>) -> Result<PgConnection, pg::Error> {
    let postgres = parts.borrow().postgres.clone();
    postgres.connect().await
}

/// Errors and warnings.
fn counted(findings: &[Finding]) -> [u32; 2] {
    let count = |severity| {
        findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
            .try_into()
            .unwrap_or(u32::MAX)
    };
    [count(Severity::Error), count(Severity::Warning)]
}
