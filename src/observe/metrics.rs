//! Observations as metrics. Names begin with `unstale_` and end with their unit.

use std::time::Duration;

use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use super::{Observation, Readiness, RepeatedFor};

/// Bounds of `unstale_freshness_seconds` and `unstale_delivery_seconds`: half a millisecond to a
/// minute.
const SECONDS: &[f64] = &[
    0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0, 30.0, 60.0,
];

/// Installs the process's recorder and describes every metric.
///
/// # Errors
/// If there is one already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), SECONDS)?;
    let handle = builder.install_recorder()?;
    describe();
    metrics_process::Collector::default().describe();
    Ok(handle)
}

fn describe() {
    let described = [
        (
            "unstale_changes_total",
            "Changes announced, by table; a statement of many rows is few of them",
        ),
        (
            "unstale_keys_invalidated_total",
            "Keys and patterns handed to Redis for deletion, by table",
        ),
        ("unstale_keys_removed_total", "Keys that existed when Redis deleted them"),
        (
            "unstale_repeated_keys_total",
            "Keys deleted once more, by cause: time, replicas, or max_wait (replicas that were given up)",
        ),
        (
            "unstale_repeats_dropped_total",
            "Keys deleted only once, because too many wait to be deleted once more",
        ),
        (
            "unstale_gaps_total",
            "Times in which changes may have been missed and were caught up with, by cause",
        ),
        ("unstale_reconnects_total", "Failures of a connection, by side: postgres or redis"),
        ("unstale_sweep_rows_total", "Rows that sweeps found, by table"),
        (
            "unstale_payloads_skipped_total",
            "NOTIFY payloads that are not announcements of a watched table",
        ),
        (
            "unstale_audited_total",
            "Keys of the sample that were looked at again, by table and by how long after their delete",
        ),
        (
            "unstale_stale_total",
            "Keys of the sample whose cached value was not that of its row, likewise",
        ),
        (
            "unstale_bookkeeping_failures_total",
            "Statements by which progress is noted in the database and that it refused",
        ),
    ];
    for (name, help) in described {
        describe_counter!(name, help);
    }
    describe_gauge!(
        "unstale_watermark_age_seconds",
        Unit::Seconds,
        "How far the watermark is behind PostgreSQL's clock"
    );
    describe_gauge!(
        "unstale_notify_queue_ratio",
        "Share of PostgreSQL's notification queue in use, 0 to 1"
    );
    describe_gauge!("unstale_pending_keys", "Keys and patterns that wait for Redis");
    describe_gauge!(
        "unstale_replica_lag_bytes",
        Unit::Bytes,
        "What a replica has still to replay, by its number in replicas.urls"
    );
    describe_gauge!(
        "unstale_findings",
        "What is not as it should be in the database, by severity: error or warning; NaN if it could not be asked"
    );
    describe_gauge!("unstale_ready", "1 if ready, else 0");
    describe_histogram!(
        "unstale_freshness_seconds",
        Unit::Seconds,
        "From a heartbeat being sent to PostgreSQL to Redis having deleted all that came before it"
    );
    describe_histogram!(
        "unstale_delivery_seconds",
        Unit::Seconds,
        "From a change being received to Redis having deleted its keys, of a sample: one change at a time"
    );
    gauge!("unstale_ready").set(0.0);
    counter!("unstale_payloads_skipped_total").increment(0);
    for name in ["unstale_bookkeeping_failures_total", "unstale_repeats_dropped_total"] {
        counter!(name).increment(0);
    }
    for cause in [RepeatedFor::Time, RepeatedFor::Replicas, RepeatedFor::MaxWait] {
        counter!("unstale_repeated_keys_total", "cause" => cause.label()).increment(0);
    }
    for side in ["postgres", "redis"] {
        counter!("unstale_reconnects_total", "side" => side).increment(0);
    }
}

/// Counts it.
pub fn record(observation: &Observation) {
    match observation {
        Observation::SessionLost { .. } => {
            counter!("unstale_reconnects_total", "side" => "postgres").increment(1)
        }
        Observation::RedisFailed { .. } => {
            counter!("unstale_reconnects_total", "side" => "redis").increment(1)
        }
        Observation::GapOpened { cause } => {
            counter!("unstale_gaps_total", "cause" => cause.label()).increment(1)
        }
        Observation::PayloadsSkipped { count, .. } => {
            counter!("unstale_payloads_skipped_total").increment(*count)
        }
        Observation::NotKept { .. } => counter!("unstale_bookkeeping_failures_total").increment(1),
        Observation::Fresh { took } => {
            histogram!("unstale_freshness_seconds").record(took.as_secs_f64())
        }
        Observation::Delivered { took } => {
            histogram!("unstale_delivery_seconds").record(took.as_secs_f64())
        }
        Observation::Status { pending, watermark_age } => status(*pending, *watermark_age),
        Observation::NotifyQueue(ratio) => gauge!("unstale_notify_queue_ratio").set(*ratio),
        Observation::Repeated { keys, cause } => {
            counter!("unstale_repeated_keys_total", "cause" => cause.label())
                .increment(*keys as u64);
        }
        Observation::ReplicaLag { replica, lag_bytes } => lag(*replica, *lag_bytes),
        Observation::RepeatsDropped { keys, .. } => {
            counter!("unstale_repeats_dropped_total").increment(*keys as u64)
        }
        Observation::Deleted { existed } => {
            counter!("unstale_keys_removed_total").increment(*existed)
        }
        Observation::Readiness(readiness) => {
            gauge!("unstale_ready").set(f64::from(u8::from(*readiness == Readiness::Ready)))
        }
        _ => {}
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float, and a lag of 2^52 bytes is none"
)]
fn lag(replica: usize, bytes: u64) {
    gauge!("unstale_replica_lag_bytes", "replica" => (replica + 1).to_string()).set(bytes as f64);
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float, and the batch is bounded far below 2^52"
)]
fn status(pending: usize, watermark_age: Option<Duration>) {
    gauge!("unstale_pending_keys").set(pending as f64);
    if let Some(age) = watermark_age {
        gauge!("unstale_watermark_age_seconds").set(age.as_secs_f64());
    }
}

/// Errors and warnings in the database; `None`: it could not be asked.
pub fn findings(found: Option<[u32; 2]>) {
    for (n, severity) in ["error", "warning"].into_iter().enumerate() {
        gauge!("unstale_findings", "severity" => severity)
            .set(found.map_or(f64::NAN, |found| f64::from(found[n])));
    }
}

/// A key of the sample was looked at again.
pub fn audited(table: &str, after: &str, is_stale: bool) {
    let labels = [("table", table.to_owned()), ("after", after.to_owned())];
    counter!("unstale_audited_total", &labels).increment(1);
    counter!("unstale_stale_total", &labels).increment(u64::from(is_stale));
}

/// Counts what happened to a table.
pub fn count(table: &str, changes: u64, keys: u64, swept: u64) {
    for (name, n) in [
        ("unstale_changes_total", changes),
        ("unstale_keys_invalidated_total", keys),
        ("unstale_sweep_rows_total", swept),
    ] {
        if n > 0 {
            counter!(name, "table" => table.to_owned()).increment(n);
        }
    }
}
