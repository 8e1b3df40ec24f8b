//! Sessions, heartbeats, sweeps, and the end.

use std::time::Duration;

use unstale::listener::machine::{CatchUp, Input, State};
use unstale::messages::{Cause, Event, Request, Swept};
use unstale::observe::Observation;
use unstale::watermark::PgTime;

use super::stage::{BACKEND, Stage, opening, server};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn nothing_is_read_before_a_heartbeat_has_proved_that_notify_arrives() {
    let mut stage = Stage::new();
    assert_eq!(stage.counts.0, 1, "a session is opened at once");
    stage.open(opening(server("7/1", 0)));
    assert_eq!((stage.machine.state(), stage.sweeps.len()), (&State::Subscribing, 0));
    assert!(
        matches!(
            stage.requests[..],
            [Request::OpenGap(Cause::Start, _), Request::Beat { n: 1, progress: None }]
        ),
        "{:?}",
        stage.requests
    );
    stage.beat_sent();
    assert_eq!(stage.machine.state(), &State::Subscribing, "it was sent, and has not come back");
    stage.notify(BACKEND, r#"{"heartbeat":1}"#);
    assert_eq!(
        (stage.machine.state(), stage.sweeps.len()),
        (&State::CatchingUp(CatchUp::Sweeping), 1)
    );
}

#[test]
fn it_is_ready_once_everything_that_a_sweep_brought_is_acknowledged() {
    let mut stage = Stage::new();
    stage.open(opening(server("7/1", 0)));
    stage.beat();
    stage.redis_does_all();
    stage.swept(Swept::Rows(1, vec![r#"{"id":"1"}"#.into()]));
    stage.swept(Swept::Ended);
    assert!(
        !stage.is_ready()
            && matches!(stage.machine.state(), State::CatchingUp(CatchUp::Settling(_)))
    );
    stage.redis_does_all();
    assert_eq!(stage.machine.state(), &State::Listening);
    assert!(
        stage.take_requests(
            |request| matches!(request, Request::CloseGap(gap) if gap.swept == 1 && gap.keys == 1)
        ) == 1
    );
    stage.beats(1);
    assert!(stage.is_ready(), "{}", stage.why_not());
}

/// A listener that is killed soon after it was ready, again and again, would catch up with the same
/// each time.
#[test]
fn what_was_caught_up_with_is_stored_at_once() {
    let mut stage = Stage::listening();
    stage.beats(2);
    stage.session(Event::Lost("the server went away".into()));
    stage.open(opening(server("7/1", 0)));
    stage.catch_up();
    stage.pass(Duration::from_millis(10));
    let is_stored = |request: &Request| matches!(request, Request::Beat { progress: Some(_), .. });
    assert!(stage.requests.iter().any(is_stored), "{:?}", stage.requests);
}

#[test]
fn a_heartbeat_proves_nothing_before_the_log_was_read_after_it() {
    let mut stage = Stage::listening();
    stage.beats(2);
    stage.pass(SECOND);
    stage.log_is_empty(); // it is read all the time
    let n = stage.beat_sent();
    stage.notify(BACKEND, &format!(r#"{{"heartbeat":{n}}}"#));
    stage.redis_does_all();
    stage.said.clear();
    assert!(!stage.says(|said| matches!(said, Observation::Fresh { .. })));
    stage.take_requests(|request| *request == Request::ReadLog);
    let change = r#"{"watch":1,"rev":1,"old":{"id":"9"}}"#.to_owned();
    stage.session(Event::LogRead { changes: vec![change], more: false });
    assert_eq!(stage.deleting(), ["user:9"]);
    assert!(
        !stage.says(|said| matches!(said, Observation::Fresh { .. })),
        "what the log said is not deleted yet"
    );
    stage.redis_does_all();
    assert!(stage.says(|said| matches!(said, Observation::Fresh { .. })));
}

#[test]
fn another_instances_heartbeat_proves_nothing() {
    let mut stage = Stage::new();
    stage.open(opening(server("7/1", 0)));
    stage.beat_sent();
    stage.notify(BACKEND + 1, r#"{"heartbeat":1}"#);
    stage.notify(BACKEND, r#"{"heartbeat":2}"#);
    assert_eq!(
        stage.machine.state(),
        &State::Subscribing,
        "of another backend, and of a number that was not asked for"
    );
}

#[test]
fn a_lost_session_is_opened_again_and_swept_from_the_checkpoint() {
    let mut stage = Stage::listening();
    stage.beats(30);
    stage.session(Event::Lost("terminated".into()));
    assert_eq!((stage.counts.1, stage.is_ready()), (1, false));
    assert!(stage.why_not().contains("terminated"));
    stage.open(opening(server("7/1", 0)));
    stage.beat();
    let checkpoint = stage.sweeps[0].checkpoint.clone().expect("heartbeats were proven");
    assert!(
        checkpoint.watermark.is_some_and(|PgTime(at)| at > 1_010 * 1_000_000),
        "{checkpoint:?}"
    );
}

#[test]
fn a_session_that_is_lost_in_the_middle_of_a_sweep_leaves_what_was_done_of_it() {
    let mut stage = Stage::new();
    stage.open(opening(server("7/1", 0)));
    stage.beat();
    stage.redis_does_all();
    let bring = |stage: &mut Stage, id: u32, at: i64| {
        stage.swept(Swept::Rows(1, vec![format!(r#"{{"id":"{id}"}}"#)]));
        stage.swept(Swept::Page(1, PgTime(at)));
    };
    bring(&mut stage, 1, 500);
    stage.redis_does_all();
    // What came meanwhile is proven by a heartbeat.
    for _ in 0..2 {
        stage.pass(SECOND);
        stage.beat();
        stage.redis_does_all();
    }
    bring(&mut stage, 2, 600); // not acknowledged
    stage.session(Event::Lost("cut".into()));
    stage.sweeps.clear();
    stage.open(opening(server("7/1", 0)));
    stage.beat();
    assert_eq!(stage.sweeps[0].done, [(1, PgTime(500))].into());
}

#[test]
fn a_sweep_that_fails_begins_again_after_a_while() {
    let mut stage = Stage::new();
    stage.open(opening(server("7/1", 0)));
    stage.beat();
    stage.sweeps.clear();
    stage.swept(Swept::Failed("a lock".into()));
    assert!(matches!(stage.machine.state(), State::CatchingUp(CatchUp::AwaitingRetry { .. })));
    assert!(stage.why_not().contains("a lock"));
    stage.pass(SECOND);
    assert_eq!(
        (stage.machine.state(), stage.sweeps.len()),
        (&State::CatchingUp(CatchUp::Sweeping), 1)
    );
}

#[test]
fn a_table_that_cannot_be_read_loses_all_its_keys() {
    let mut stage = Stage::new();
    stage.open(opening(server("7/1", 0)));
    stage.beat();
    stage.redis_does_all();
    stage.swept(Swept::Unreadable {
        watch: 1,
        table: "public.users".into(),
        reason: "no right".into(),
    });
    assert_eq!(stage.deleting(), ["user:*"]);
}

#[test]
fn a_large_table_without_an_index_is_named_once() {
    let mut stage = Stage::new();
    stage.open(opening(server("7/1", 0)));
    stage.beat();
    for _ in 0..3 {
        stage.swept(Swept::NoIndex { table: "public.users".into(), remedy: "create index".into() });
    }
    assert_eq!(
        stage
            .said
            .iter()
            .filter(|said| matches!(said, Observation::SweepWithoutIndex { .. }))
            .count(),
        1
    );
}

#[test]
fn a_server_that_does_not_answer_is_given_up_on() {
    let mut stage = Stage::new();
    stage.pass(SECOND * 9);
    assert_eq!(stage.counts, (1, 0, 0));
    stage.pass(SECOND * 2);
    assert_eq!(stage.counts.1, 1);
    assert!(stage.said.iter().any(|said| matches!(said, Observation::SessionLost { reason, .. } if reason.contains("did not answer"))));
}

#[test]
fn listen_without_notifications_names_the_pooler() {
    let mut stage = Stage::new();
    stage.open(opening(server("7/1", 0)));
    stage.beat_sent();
    for _ in 0..11 {
        stage.pass(SECOND);
        if stage.machine.state() == &State::Subscribing {
            stage.beat_sent();
        }
    }
    let names_it = |said: &Observation| matches!(said, Observation::SessionLost { reason, .. } if reason.contains("transaction-mode pooler"));
    assert!(stage.says(names_it), "{:?}", stage.said);
}

#[test]
fn silence_while_it_listens_is_a_half_open_connection() {
    let mut stage = Stage::listening();
    for _ in 0..11 {
        stage.pass(SECOND);
        if stage.machine.state() == &State::Listening {
            stage.beat_sent(); // taken, and never heard again
        }
    }
    assert!(stage.says(|said| matches!(said, Observation::SessionLost { reason, .. } if reason.contains("half-open"))));
    assert!(stage.says(|said| *said == Observation::GapOpened { cause: Cause::Heartbeat }));
}

#[test]
fn a_heartbeat_that_postgresql_does_not_take_ends_the_session() {
    let mut stage = Stage::listening();
    stage.pass(SECOND);
    for _ in 0..11 {
        stage.pass(SECOND);
        stage.notify(99, "{}"); // something is received all the time
    }
    assert!(stage.says(|said| matches!(said, Observation::SessionLost { reason, .. } if reason.contains("did not take a heartbeat"))));
}

#[test]
fn the_same_failure_again_and_again_is_said_once_a_minute() {
    let mut stage = Stage::new();
    for _ in 0..20 {
        stage.pass(SECOND);
        stage.session(Event::Lost("refused".into()));
    }
    let said = stage
        .said
        .iter()
        .filter(|said| matches!(said, Observation::SessionLost { again: false, .. }))
        .count();
    assert_eq!(said, 1);
}

#[test]
fn whoever_waits_is_answered_by_a_heartbeat_at_once_which_is_stored_at_once() {
    let mut stage = Stage::listening();
    stage.beats(2);
    stage.pass(Duration::from_millis(100));
    stage.beat(); // whose turn it was
    stage.redis_does_all();
    stage.requests.clear();
    let beats = |stage: &mut Stage| {
        stage.requests.iter().filter(|request| matches!(request, Request::Beat { .. })).count()
    };
    stage.notify(99, r#"{"wait":true}"#);
    assert_eq!(beats(&mut stage), 1);
    stage.beat();
    stage.redis_does_all();
    assert_eq!(stage.take_requests(|request| matches!(request, Request::Keep(_))), 1);
    stage.requests.clear();
    for _ in 0..1_000 {
        stage.notify(99, r#"{"wait":true}"#);
    }
    stage.pass(Duration::from_millis(5));
    assert_eq!(beats(&mut stage), 1, "one for all of them, after a rest");
}

#[test]
fn payloads_that_are_not_ours_are_reported_in_sums() {
    let mut stage = Stage::listening();
    for _ in 0..100 {
        stage.notify(99, "not ours");
    }
    stage.pass(SECOND);
    let counts = |stage: &Stage| -> Vec<u64> {
        let count = |said: &Observation| {
            if let Observation::PayloadsSkipped { count, .. } = said { Some(*count) } else { None }
        };
        stage.said.iter().filter_map(count).collect()
    };
    assert_eq!(counts(&stage), [1], "the first at once");
    for _ in 0..9 {
        stage.pass(SECOND);
        stage.beat();
    }
    assert_eq!(counts(&stage), [1, 99]);
}

#[test]
fn a_shutdown_deletes_what_was_received_and_stores_how_far_it_came() {
    let mut stage = Stage::listening();
    stage.beats(2);
    stage.change(42);
    stage.requests.clear();
    stage.input(Input::Shutdown);
    assert!(matches!(stage.machine.state(), State::Draining { .. }));
    stage.redis_does_all();
    assert_eq!(stage.machine.state(), &State::Stopped);
    assert!(matches!(stage.requests[..], [Request::Save(_)]), "{:?}", stage.requests);
    assert!(stage.says(|said| *said == Observation::Stopped { drained: true }));
}

#[test]
fn a_shutdown_in_a_gap_stores_nothing_and_waits_no_longer_than_it_may() {
    let mut stage = Stage::new();
    stage.open(opening(server("7/1", 0)));
    stage.beat();
    stage.requests.clear();
    stage.input(Input::Shutdown);
    stage.pass(SECOND * 4);
    assert!(matches!(stage.machine.state(), State::Draining { .. }), "Redis has not answered");
    stage.pass(SECOND * 2);
    assert_eq!((stage.machine.state(), stage.requests.len()), (&State::Stopped, 0));
    assert!(stage.says(|said| *said == Observation::Stopped { drained: false }));
}

/// It may be another server, to which it would say what was proven of the last one.
#[test]
fn a_shutdown_while_it_connects_stores_nothing() {
    let mut stage = Stage::listening();
    stage.beats(2);
    stage.session(Event::Lost("the server went away".into()));
    stage.pass(SECOND);
    assert!(matches!(stage.machine.state(), State::Connecting { .. }));
    stage.requests.clear();
    stage.input(Input::Shutdown);
    stage.redis_does_all();
    assert_eq!((stage.machine.state(), stage.requests.len()), (&State::Stopped, 0));
}
