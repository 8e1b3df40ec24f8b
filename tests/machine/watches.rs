//! Watches that change while changes come in.

use std::time::Duration;

use unstale::batch::Lane;
use unstale::listener::machine::Settings;
use unstale::messages::{Event, Request};
use unstale::observe::Observation;
use unstale::watched::Watched;

use super::stage::{BACKEND, Stage, opening, server, settings, users};

const WATCHES: &str = r#"{"watches":true}"#;

fn readings(stage: &mut Stage) -> usize {
    stage.take_requests(|request| *request == Request::ReadWatches)
}

fn roomy() -> Stage {
    let mut limits = settings().limits;
    limits.max_pending = 50_000;
    let mut stage = Stage::with(Settings { limits, ..settings() });
    stage.open(opening(server("7/1", 0)));
    stage.catch_up();
    stage
}

#[test]
fn a_hundred_thousand_messages_cost_two_readings_and_hold_up_no_change() {
    let mut stage = roomy();
    for _ in 0..100_000 {
        assert!(stage.machine.accepts(Lane::Live), "receiving stopped");
        stage.notify(99, WATCHES);
    }
    assert_eq!(readings(&mut stage), 1);
    stage.change(42);
    assert_eq!(stage.deleting(), ["user:42"], "at once");
    stage.now += Duration::from_millis(10);
    stage.session(Event::Watches(vec![users(1, &["user:{id}"])]));
    assert_eq!(
        readings(&mut stage),
        0,
        "what came since the first began needs another, after a pause"
    );
    stage.pass(Duration::from_millis(39));
    assert_eq!(readings(&mut stage), 0);
    stage.pass(Duration::from_millis(1));
    assert_eq!(readings(&mut stage), 1);
    stage.session(Event::Watches(vec![users(1, &["user:{id}"])]));
    stage.pass(Duration::from_millis(900));
    assert_eq!(readings(&mut stage), 0);
}

#[test]
fn a_change_that_is_received_before_its_watch_is_read_is_understood_again_and_the_heartbeat_waits()
{
    let mut stage = roomy();
    stage.pass(Duration::from_secs(1));
    let n = stage.beat_sent();
    stage.notify(99, WATCHES);
    stage.change(42);
    stage.notify(99, r#"{"watch":1,"rev":2,"new":{"id":"43"}}"#);
    assert_eq!((readings(&mut stage), stage.deleting()), (1, vec!["user:42".to_owned()]));
    stage.notify(BACKEND, &format!(r#"{{"heartbeat":{n}}}"#));
    stage.log_is_empty();
    stage.said.clear();
    stage.redis_does_all();
    assert!(
        !stage.says(|said| matches!(said, Observation::Fresh { .. })),
        "what it proves is still held"
    );
    stage.session(Event::Watches(vec![users(2, &["user:{id}", "name:{id}"])]));
    assert_eq!(stage.deleting(), ["user:42", "name:42", "user:43", "name:43"]);
    stage.redis_does_all();
    assert!(stage.says(|said| matches!(said, Observation::Fresh { .. })));
}

#[test]
fn a_logged_change_of_a_watch_that_was_made_a_moment_ago_waits_for_the_watches() {
    let mut stage = roomy();
    stage.pass(Duration::from_secs(1));
    stage.beat_sent();
    stage.take_requests(|request| *request == Request::ReadLog);
    let change = r#"{"watch":2,"rev":1,"new":{"id":"5"}}"#;
    stage.session(Event::LogRead { changes: vec![change.into()], more: false });
    assert_eq!((readings(&mut stage), stage.deleting()), (1, vec![]));
    let posts = Watched::of(2, 1, "public.posts", &["post:{id}"]);
    stage.session(Event::Watches(vec![users(1, &["user:{id}"]), posts]));
    assert_eq!(stage.deleting(), ["post:5"]);
    assert!(stage.says(|said| *said == Observation::WatchesChanged { watches: 2 }));
}

#[test]
fn a_logged_change_of_a_watch_that_ended_long_ago_costs_one_reading() {
    let mut stage = roomy();
    let change = r#"{"watch":9,"rev":1,"new":{"id":"5"}}"#;
    for n in 0..5 {
        stage.pass(Duration::from_secs(1));
        stage.beat_sent();
        stage.take_requests(|request| *request == Request::ReadLog);
        stage.session(Event::LogRead { changes: vec![change.into()], more: false });
        assert_eq!(readings(&mut stage), usize::from(n == 0), "{n}");
        if n == 0 {
            stage.session(Event::Watches(vec![users(1, &["user:{id}"])]));
        }
    }
    assert!(!stage.says(|said| matches!(said, Observation::PayloadsSkipped { .. })));
}

#[test]
fn a_watch_that_ends_is_named_and_one_that_cannot_be_used_is_skipped() {
    let mut stage = roomy();
    stage.notify(99, WATCHES);
    let broken = Watched::of(3, 1, "public.broken", &["{id"]);
    stage
        .session(Event::Watches(vec![Watched { ended: true, ..users(1, &["user:{id}"]) }, broken]));
    assert!(stage.says(|said| *said == Observation::WatchEnded { table: "public.users".into() }));
    assert!(stage.says(
        |said| matches!(said, Observation::WatchSkipped { table, .. } if table == "public.broken")
    ));
    stage.change(42);
    assert_eq!(
        stage.deleting(),
        ["user:42"],
        "what it logged and announced before is still understood"
    );
}
