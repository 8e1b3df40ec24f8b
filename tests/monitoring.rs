//! The dashboard and the alerts know the real metrics.

use std::collections::BTreeSet;
use std::process::Command;

use crate::support::wait::until;
use crate::support::world::World;
use crate::tidy::read;

/// Every word that begins as one of our metrics does.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let metrics = words.filter(|word| word.starts_with("unstale_") || word.starts_with("process_"));
    metrics.map(|word| word.trim_end_matches("_bucket").to_owned()).collect()
}

#[tokio::test]
async fn dashboard_and_alerts_ask_for_metrics_that_there_are_and_leave_none_out() {
    let world = World::new().await;
    world.users(3).await;
    let mut daemon = world.daemon().start();
    daemon.ready().await;
    world.execute("update users set name = 'x', updated_at = clock_timestamp() where id = 1").await;
    until("it was counted and followed, and the watermark moved", async || {
        [
            "unstale_changes_total{",
            "unstale_watermark_age_seconds ",
            "unstale_delivery_seconds_count 1",
        ]
        .iter()
        .all(|metric| daemon.metrics().contains(metric))
    })
    .await;
    let scraped = daemon.metrics();
    let described: BTreeSet<_> = scraped
        .lines()
        .filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next())
        .collect();
    let (dashboard, alerts) =
        (metrics_in(&read("config/dashboard.json")), metrics_in(&read("config/alerts.yml")));
    for metric in dashboard.union(&alerts) {
        // A family without a series is not rendered; these are counted only when there is something
        // to count.
        let is_rare = [
            "unstale_sweep_rows_total",
            "unstale_keys_removed_total",
            "unstale_audited_total",
            "unstale_stale_total",
            "unstale_replica_lag_bytes",
        ]
        .contains(&metric.as_str());
        assert!(
            described.contains(metric.as_str()) || is_rare,
            "{metric} is not among {described:?}"
        );
    }
    let shown: Vec<_> = described
        .iter()
        .filter(|metric| metric.starts_with("unstale_") && !dashboard.contains(**metric))
        .collect();
    assert!(shown.is_empty(), "the dashboard does not show {shown:?}");
    let reference = read("docs/reference.md");
    for metric in described.iter().filter(|metric| metric.starts_with("unstale_")) {
        assert!(
            reference.contains(&format!("`{metric}")),
            "docs/reference.md does not explain {metric}"
        );
    }
}

/// What nobody asks for is counted all the same.
#[tokio::test]
async fn a_trigger_that_does_not_fire_is_a_metric() {
    let world = World::new().await;
    world.users(3).await;
    world.execute("alter table users disable trigger all").await;
    let mut daemon = world.daemon().start();
    daemon.ready().await;
    until("it is counted", async || {
        daemon.metric("unstale_findings", &[("severity", "error")]) >= 1.0
    })
    .await;
}

#[test]
fn the_dashboard_is_one_that_grafana_reads() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("config/dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let ids: BTreeSet<_> =
        panels.iter().map(|panel| panel["id"].as_u64().expect("a number")).collect();
    assert_eq!(ids.len(), panels.len());
    for panel in panels {
        assert!(
            panel["targets"][0]["expr"].is_string() && panel["gridPos"]["w"].is_u64(),
            "{panel}"
        );
    }
}

#[test]
fn prometheus_takes_the_alerts_and_they_fire_when_they_should() {
    for (command, file) in
        [("check", "config/alerts.yml"), ("test", "tests/monitoring/alerts_test.yml")]
    {
        let output = Command::new("promtool")
            .args([command, "rules", file])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output();
        let output = output.expect("promtool, of Debian's package prometheus; ./dev installs it");
        assert!(output.status.success(), "{output:?}");
    }
}
