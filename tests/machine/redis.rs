//! Redis: away, full, failed over, and what is deleted once more.

use std::time::Duration;

use unstale::listener::machine::{CatchUp, State};
use unstale::messages::{Cause, Event, RepeatedFor, Request, Swept};
use unstale::observe::Observation;
use unstale::watermark::PgTime;

use super::stage::{Stage, opening, server, settings};

const SECOND: Duration = Duration::from_secs(1);

/// Changes until the batch is full.
fn fill(stage: &mut Stage) {
    let mut id = 0;
    while stage.machine.accepts(unstale::batch::Lane::Live) {
        id += 1;
        assert!(id < 100_000, "never full");
        stage.change(id);
    }
}

#[test]
fn a_redis_that_is_away_at_the_start_is_asked_until_it_answers_and_nothing_is_collected_meanwhile()
{
    let mut stage = Stage::new();
    stage.open(opening(server("7/1", 0)));
    stage.notify(super::stage::BACKEND, "{}");
    stage.change(1);
    stage.redis_fails();
    stage.beat();
    assert_eq!(stage.machine.state(), &State::CatchingUp(CatchUp::AwaitingRedis));
    stage.change(2);
    assert!(!stage.deleting().contains(&"user:2".to_owned()), "the sweep to come finds it");
    assert!(stage.sweeps.is_empty() && stage.why_not().contains("refused"));
    stage.redis_does_all();
    assert_eq!(
        (stage.machine.state(), stage.sweeps.len()),
        (&State::CatchingUp(CatchUp::Sweeping), 1)
    );
}

#[test]
fn a_full_batch_that_redis_leaves_as_it_is_is_dropped_in_favour_of_a_sweep() {
    let mut stage = Stage::listening();
    stage.beats(20);
    fill(&mut stage);
    stage.pass(SECOND * 4);
    assert_eq!(stage.machine.state(), &State::Listening);
    stage.pass(SECOND * 2);
    assert_eq!(stage.machine.state(), &State::CatchingUp(CatchUp::AwaitingRedis));
    assert!(stage.says(|said| matches!(said, Observation::Overflowed { .. })));
    assert_eq!(
        stage
            .take_requests(|request| *request == Request::OpenGap(Cause::Overflow, Duration::ZERO)),
        1,
        "noted at once"
    );
    assert!(stage.machine.accepts(unstale::batch::Lane::Live), "PostgreSQL is drained on");
    stage.redis_does_all();
    assert_eq!(stage.sweeps.len(), 1);
    assert!(stage.sweeps[0].checkpoint.is_some());
}

#[test]
fn an_overflow_while_it_subscribes_changes_nothing() {
    let mut stage = Stage::new();
    stage.open(opening(server("7/1", 0)));
    fill(&mut stage);
    stage.pass(SECOND * 6);
    assert_eq!(
        stage.machine.state(),
        &State::Subscribing,
        "the gap is open, and the sweep still to come"
    );
    assert!(stage.says(|said| matches!(said, Observation::Overflowed { .. })));
}

#[test]
fn a_gap_in_a_gap_is_one_gap() {
    let mut stage = Stage::listening();
    stage.beats(2);
    stage.session(Event::Lost("cut".into()));
    stage.open(opening(server("7/1", 0)));
    stage.beat();
    stage.redis_fails_over(None);
    stage.redis_does_all();
    assert_eq!(
        stage.said.iter().filter(|said| matches!(said, Observation::GapOpened { .. })).count(),
        2,
        "of the start, and of the loss"
    );
    stage.swept(Swept::Ended);
    stage.redis_does_all();
    assert_eq!(
        stage.take_requests(
            |request| matches!(request, Request::CloseGap(gap) if gap.cause == Cause::Session)
        ),
        1
    );
}

#[test]
fn what_redis_has_undone_and_is_remembered_is_deleted_again_without_a_sweep() {
    let mut stage = Stage::listening();
    stage.beats(2);
    stage.change(1);
    stage.redis_does_all();
    let kept = stage.deletions();
    stage.change(2);
    stage.redis_does_all();
    stage.change(3);
    stage.redis_fails_over(Some(kept));
    let command = stage.commands.remove(0);
    stage.redis_does(command);
    assert_eq!(stage.deleting(), ["user:2", "user:3"], "all that came after what it has kept");
    assert!(stage.sweeps.is_empty());
    stage.redis_does_all();
    assert_eq!(stage.machine.state(), &State::Listening);
}

#[test]
fn what_redis_has_undone_and_nobody_knows_is_swept_from_a_window_ago() {
    let mut stage = Stage::listening();
    stage.beats(180);
    stage.redis_fails_over(None);
    stage.change(1);
    stage.redis_does_all();
    assert_eq!(
        (stage.machine.state(), stage.sweeps.len()),
        (&State::CatchingUp(CatchUp::Sweeping), 1)
    );
    let PgTime(at) =
        stage.sweeps[0].checkpoint.as_ref().and_then(|from| from.watermark).expect("proven");
    let last = 1_181 * 1_000_000;
    assert!((last - 90_000_000..=last - 60_000_000).contains(&at), "{at}");
    assert!(stage.says(|said| *said == Observation::RedisChanged { again: None }));
}

#[test]
fn redis_fails_over_in_the_middle_of_a_sweep() {
    let mut stage = Stage::listening();
    stage.beats(100);
    stage.session(Event::Lost("cut".into()));
    stage.open(opening(server("7/1", 0)));
    stage.beat();
    stage.redis_does_all();
    let from = stage.sweeps[0].checkpoint.clone();
    stage.swept(Swept::Rows(1, vec![r#"{"id":"1"}"#.into()]));
    stage.swept(Swept::Page(1, PgTime(1_050 * 1_000_000)));
    stage.redis_fails_over(None);
    stage.redis_does_all();
    assert_eq!((stage.counts.2, stage.sweeps.len()), (1, 2), "stopped, and begun again");
    assert!(
        stage.sweeps[1].done.is_empty() && stage.sweeps[1].checkpoint != from,
        "{:?}",
        stage.sweeps
    );
}

#[test]
fn a_redis_that_keeps_no_mark_is_not_swept_for_without_end() {
    let mut stage = Stage::listening();
    stage.beats(2);
    for _ in 0..50 {
        stage.redis_fails_over(None);
        stage.change(1);
        stage.redis_does_all();
        stage.pass(Duration::from_millis(20));
    }
    assert!(stage.sweeps.len() <= 3, "{} sweeps in a second", stage.sweeps.len());
}

#[test]
fn it_is_not_ready_while_a_command_fails() {
    let mut stage = Stage::listening();
    stage.beats(2);
    assert!(stage.is_ready());
    stage.change(1);
    stage.redis_fails();
    assert!(stage.why_not().contains("refused"));
    stage.redis_does_all();
    assert!(stage.says(|said| *said == Observation::RedisRecovered));
    assert!(
        !stage.is_ready(),
        "a heartbeat that was asked for after the failure has yet to go through"
    );
    stage.beats(1);
    assert!(stage.is_ready(), "{}", stage.why_not());
}

#[test]
fn a_key_is_deleted_once_more_after_a_while_unless_it_is_leaving() {
    let repeating = || unstale::listener::machine::Settings { repeat: vec![SECOND], ..settings() };
    for leaves in [false, true] {
        let mut stage = Stage::with(repeating());
        stage.open(opening(server("7/1", 0)));
        stage.catch_up();
        stage.change(42);
        stage.redis_does_all();
        if leaves {
            stage.change(43); // and Redis does not answer
            stage.input(unstale::listener::machine::Input::Shutdown);
        }
        stage.pass(SECOND * 2);
        let is_repeated = stage
            .says(|said| matches!(said, Observation::Repeated { cause: RepeatedFor::Time, .. }));
        assert_eq!(is_repeated, !leaves, "{:?}", stage.deleting());
        assert_eq!(stage.deleting().contains(&"user:42".to_owned()), !leaves);
    }
}
