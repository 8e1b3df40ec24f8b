//! Observations as lines of the log. `error` means that somebody must act.

use std::time::{Duration, UNIX_EPOCH};

use tracing::{debug, error, info, warn};

use super::{Observation, Readiness};
use crate::exposure::Exposure;

/// Writes the line.
#[expect(clippy::too_many_lines, reason = "a table: what is said of each observation")]
pub fn write(observation: &Observation) {
    match observation {
        Observation::Subscribed { watches } => info!(watches, "listening to PostgreSQL"),
        Observation::SessionLost { reason, again: true, .. }
        | Observation::SweepFailed { reason, again: true, .. } => {
            debug!(reason, "still the same");
        }
        Observation::SessionLost { reason, retry_in, again: false } => {
            warn!(reason, retry_in_seconds = retry_in.as_secs_f64(), "no session with PostgreSQL");
        }
        Observation::GapOpened { cause } => {
            info!(cause = cause.label(), "a gap is open; its changes will be found")
        }
        Observation::GapClosed(gap) => info!(
            cause = gap.cause.label(),
            lasted_seconds = gap.lasted.as_secs_f64(),
            rows = gap.swept,
            logged = gap.logged,
            keys = gap.keys,
            "caught up"
        ),
        Observation::CatchingUp { swept, logged, keys, through } => {
            let through =
                through.and_then(|micros| u64::try_from(micros).ok()).map(Duration::from_micros);
            let through = through
                .map(|since| humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string());
            info!(rows = swept, logged, keys, through, "catching up");
        }
        Observation::Reconfigured { changed, fixed } => {
            info!(changed = changed.join(", "), "the configuration was read again");
            if !fixed.is_empty() {
                warn!(keys = fixed.join(", "), "these keys changed, too, and need a restart");
            }
        }
        Observation::ConfigurationRefused { reason } => {
            error!(reason, "the configuration was read again and is wrong: the old one stays")
        }
        Observation::Exposed(Exposure { about, finding, remedy }) => {
            warn!(
                about,
                finding,
                remedy = remedy.trim_start_matches("# "),
                "exposed to the network"
            );
        }
        Observation::SweepWithoutIndex { table, remedy } => {
            warn!(
                table,
                remedy, "a large table has no index for catching up: each page reads all of it"
            );
        }
        Observation::SweepFailed { reason, retry_in, again: false } => {
            warn!(
                reason,
                retry_in_seconds = retry_in.as_secs_f64(),
                "the sweep ended early and will be repeated"
            );
        }
        Observation::SweptByPattern { table, reason } => {
            error!(table, reason, "the table cannot be swept: all its keys are deleted instead")
        }
        Observation::Overflowed { waiting } => {
            warn!(keys = waiting, "Redis is away for too long: what waits is left to a sweep")
        }
        Observation::RedisFailed { reason } => {
            error!(reason, "Redis does not delete; trying again until it does")
        }
        Observation::RedisChanged { again: Some(again) } => {
            warn!(
                keys = again,
                "Redis failed over, or was restarted, and has lost its last deletes: these keys are deleted again"
            );
        }
        Observation::RedisChanged { again: None } => {
            warn!(
                "another Redis answers, or a restarted one: the last replay.window is deleted again"
            );
        }
        Observation::PostgresChanged { reason, again } => {
            warn!(reason, keys = again, "PostgreSQL was restarted or failed over")
        }
        Observation::Flushed { reason } => {
            warn!(reason, "all keys of all watched tables are deleted")
        }
        Observation::NotKept { reason, again: true } => debug!(reason, "still the same"),
        Observation::NotKept { reason, again: false } => {
            error!(
                reason,
                "progress cannot be noted in the database: deletion goes on, and a restart would have more to do"
            );
        }
        Observation::ServerTellsLittle { reason } => {
            warn!(reason, "PostgreSQL does not say all of who it is")
        }
        Observation::InstanceForgotten { instance } => {
            warn!(
                instance,
                "this instance is away for longer than its checkpoint.forget_after: the log is no longer kept for it"
            );
        }
        Observation::RedisRecovered => info!("Redis deletes again"),
        Observation::PayloadsSkipped { count, reason } => {
            warn!(count, reason, "skipped payloads that are not ours")
        }
        Observation::WatchesChanged { watches } => info!(watches, "the watches changed"),
        Observation::WatchSkipped { table, reason } => {
            error!(table, reason, "a watch cannot be used; watch the table again")
        }
        Observation::WatchEnded { table } => {
            warn!(table, "the table is no longer watched, or was dropped: all its keys are deleted")
        }
        Observation::Fresh { took } => {
            debug!(seconds = took.as_secs_f64(), "a heartbeat went through")
        }
        Observation::Status { pending, watermark_age } => {
            debug!(
                pending,
                watermark_age_seconds = watermark_age.map(|age| age.as_secs_f64()),
                "status"
            );
        }
        Observation::NotifyQueue(ratio) if *ratio > 0.5 => {
            error!(
                ratio,
                "PostgreSQL's notification queue fills up: look for a listener in an open transaction (pg_stat_activity)"
            );
        }
        Observation::RepeatsDropped { keys, again: false } => {
            warn!(
                keys,
                "deleted, and not to be deleted once more (repeat.after): too many keys wait for that already"
            );
        }
        Observation::ReplicaFailed { place, reason, again: false } => {
            warn!(
                place,
                reason,
                "a replica does not say how far it is: keys are deleted once more after replicas.max_wait"
            );
        }
        Observation::ReplicaFailed { again: true, .. } | Observation::ReplicaLag { .. } => {}
        Observation::RepeatsDropped { again: true, .. } | Observation::Repeated { .. } => {}
        Observation::NotifyQueue(_)
        | Observation::Deleted { .. }
        | Observation::Delivered { .. } => {}
        Observation::Readiness(Readiness::Ready) => info!("ready"),
        Observation::Readiness(Readiness::NotReady(reason)) => info!(reason, "not ready"),
        Observation::StopAsked => info!("asked to stop; a second signal exits at once"),
        Observation::Failed { event, reason } => debug!(reason, "{event}"),
        Observation::Stopped { drained: true } => info!("stopped; everything received is deleted"),
        Observation::Stopped { drained: false } => {
            warn!("stopped before everything was deleted; the next start catches up")
        }
    }
}
