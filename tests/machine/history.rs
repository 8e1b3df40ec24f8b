//! What another PostgreSQL, or the same after a restart, means for what is cached.

use std::time::Duration;

use unstale::messages::{Event, Opening, Request};
use unstale::observe::Observation;
use unstale::watermark::{PgTime, Progress, Proven, Server, Snapshot, Stored};

use super::stage::{Stage, opening, server, snapshot, stored};

/// A listener that has listened to `7/1` for three minutes, deleted the key of user 42, and lost
/// its session. The next session finds this.
fn again(server: Server, stored: Option<Stored>) -> Stage {
    let mut stage = Stage::listening();
    stage.beats(180);
    stage.change(42);
    stage.redis_does_all();
    stage.session(Event::Lost("the server went away".into()));
    stage.said.clear();
    stage.open(Opening { stored, ..opening(server) });
    stage.beat();
    stage
}

fn flushes(stage: &Stage) -> bool {
    stage.deleting().contains(&"user:*".to_owned()) && stage.sweeps.is_empty()
}

fn repeats(stage: &Stage) -> bool {
    stage.deleting().contains(&"user:42".to_owned())
}

fn says_flushed(stage: &Stage, with: &str) -> bool {
    stage.says(|said| matches!(said, Observation::Flushed { reason } if reason.contains(with)))
}

#[test]
fn the_same_server_is_swept_from_what_is_remembered() {
    let stage = again(server("7/1", 0), Some(stored("7/1", 1_100)));
    assert!(!repeats(&stage) && !flushes(&stage));
    let from = stage.sweeps[0].checkpoint.clone().expect("it was there");
    assert!(from.log.xmin > snapshot(1_170).xmin, "newer than what is stored: {from:?}");
}

#[test]
fn a_restart_repeats_what_was_deleted_lately_in_case_it_lost_commits() {
    let stage = again(server("7/1", 5), Some(stored("7/1", 1_175)));
    assert!(repeats(&stage), "{:?}", stage.deleting());
    let from = stage.sweeps[0].checkpoint.clone().expect("it is stored");
    assert_eq!(
        from.log,
        snapshot(1_175),
        "what it has kept, not what is remembered: xids are given out again"
    );
    assert!(stage.says(|said| matches!(said, Observation::PostgresChanged { reason, .. } if reason.starts_with("restarted"))));
}

#[test]
fn a_restart_of_a_server_that_does_not_say_its_timeline_may_be_a_fail_over() {
    let mut stage = Stage::new();
    stage.open(opening(server("7/?", 0)));
    stage.catch_up();
    stage.beats(180);
    stage.session(Event::Lost("the server went away".into()));
    stage.open(Opening { stored: Some(stored("7/?", 1_175)), ..opening(server("7/?", 5)) });
    stage.beat();
    let from = stage.sweeps[0].checkpoint.clone().expect("it is stored");
    assert_eq!(from.log, Snapshot::nothing(), "all of the log");
}

#[test]
fn a_fail_over_while_it_listens_repeats_what_was_deleted_lately_and_reads_the_whole_log() {
    let stage = again(server("7/2", 5), Some(stored("7/1", 1_175)));
    assert!(repeats(&stage) && !flushes(&stage), "{:?}", stage.deleting());
    let from = stage.sweeps[0].checkpoint.clone().expect("it is stored");
    assert_eq!(
        (from.watermark.expect("it is stored").0, from.log),
        (1_115 * 1_000_000, Snapshot::nothing()),
        "from a replay.window ago"
    );
    assert!(stage.says(|said| matches!(said, Observation::PostgresChanged { reason, .. } if reason.starts_with("failed over"))));
}

#[test]
fn a_restore_to_an_earlier_time_deletes_everything() {
    let stage = again(server("7/2", 5), Some(stored("7/1", 1_050)));
    assert!(
        flushes(&stage) && says_flushed(&stage, "restored to an earlier time"),
        "{:?}",
        stage.said
    );
}

#[test]
fn a_restore_is_recognised_also_while_an_old_transaction_holds_the_watermark_back() {
    for (saved, is_restored) in [(1_199, false), (1_100, true)] {
        let mut stage = Stage::listening();
        stage.beats(20);
        stage.hold_back();
        stage.beats(180);
        stage.session(Event::Lost("the server went away".into()));
        let stored = Stored { saved_at: Some(PgTime(saved * 1_000_000)), ..stored("7/1", 1_010) };
        stage.open(Opening { stored: Some(stored), ..opening(server("7/2", 5)) });
        stage.beat();
        assert_eq!(
            says_flushed(&stage, "restored to an earlier time"),
            is_restored,
            "{saved}: {:?}",
            stage.said
        );
    }
}

/// A process that was started shortly before a fail-over knows nothing of the keys that the process
/// before it deleted for commits that are lost.
#[test]
fn a_fail_over_to_before_this_process_began_deletes_everything() {
    for (saved, is_before) in [(1_000, true), (1_001, false)] {
        let mut stage = Stage::listening();
        stage.session(Event::Lost("the server went away".into()));
        let stored = Stored { saved_at: Some(PgTime(saved * 1_000_000)), ..stored("7/1", 995) };
        stage.open(Opening { stored: Some(stored), ..opening(server("7/2", 5)) });
        stage.beat();
        assert_eq!(flushes(&stage), is_before, "{saved}: {:?}", stage.said);
        assert_eq!(says_flushed(&stage, "of before this process began"), is_before);
    }
}

#[test]
fn another_system_deletes_everything() {
    let stage = again(server("8/1", 5), Some(stored("7/1", 1_175)));
    assert!(flushes(&stage) && says_flushed(&stage, "is another one"), "{:?}", stage.said);
}

#[test]
fn a_restore_from_before_its_first_checkpoint_deletes_everything() {
    let stage = again(server("7/2", 5), None);
    assert!(flushes(&stage) && says_flushed(&stage, "its checkpoint is gone"), "{:?}", stage.said);
}

#[test]
fn a_fail_over_before_the_first_checkpoint_deletes_everything() {
    let mut stage = first(server("7/1", 0), None);
    stage.session(Event::Lost("the server went away".into()));
    stage.open(Opening { stored: None, ..opening(server("7/2", 5)) });
    stage.beat();
    assert!(stage.deleting().contains(&"user:*".to_owned()), "{:?}", stage.said);
    assert!(says_flushed(&stage, "its checkpoint is gone"), "{:?}", stage.said);
}

#[test]
fn a_checkpoint_that_is_gone_from_the_same_server_is_no_reason_to_delete_everything() {
    let stage = again(server("7/1", 0), None);
    assert!(
        !flushes(&stage) && stage.sweeps[0].checkpoint.is_some(),
        "somebody forgot the instance; it remembers"
    );
}

/// A new process.
fn first(server: Server, stored: Option<Stored>) -> Stage {
    let mut stage = Stage::new();
    stage.open(Opening { stored, ..opening(server) });
    stage.beat();
    stage
}

#[test]
fn an_instance_that_was_never_here_sweeps_from_the_beginning() {
    let stage = first(server("7/1", 0), None);
    assert_eq!(stage.sweeps[0].checkpoint, None);
}

#[test]
fn an_instance_that_was_ended_before_it_had_ever_caught_up_deletes_everything() {
    let mut stage = Stage::new();
    stage.open(Opening { was_here: true, ..opening(server("7/1", 0)) });
    stage.beat();
    assert!(flushes(&stage) && says_flushed(&stage, "ever caught up"), "{:?}", stage.said);
}

#[test]
fn an_instance_that_comes_back_sweeps_from_what_it_has_stored() {
    let stage = first(server("7/1", 9), Some(stored("7/1", 1_050)));
    assert_eq!(
        stage.sweeps[0].checkpoint,
        stored("7/1", 1_050).proven.checkpoint,
        "a restart meanwhile is none of its business"
    );
}

#[test]
fn a_fail_over_while_it_was_away_deletes_everything() {
    let stage = first(server("7/2", 9), Some(stored("7/1", 1_050)));
    assert!(
        flushes(&stage) && says_flushed(&stage, "while this instance was away"),
        "{:?}",
        stage.said
    );
}

#[test]
fn an_instance_that_was_away_for_too_long_deletes_everything() {
    let stage = first(server("7/1", 9), Some(Stored { forgotten: true, ..stored("7/1", 1_050) }));
    assert!(flushes(&stage) && says_flushed(&stage, "checkpoint.forget_after"), "{:?}", stage.said);
}

/// A process that comes back, finds this mark in Redis, and is asked what may be stored while it
/// catches up.
fn stored_in_the_gap(found: &str) -> Option<Progress> {
    let left = Stored { redis: Some("old:1:5".into()), ..stored("7/1", 1_050) };
    let mut stage = first(server("7/1", 0), Some(left));
    stage.redis_has(found);
    stage.requests.clear();
    stage.redis_does_all();
    stage.pass(Duration::from_millis(10));
    assert!(!stage.is_ready(), "the sweep has not ended");
    stage.requests.into_iter().find_map(|request| match request {
        Request::Beat { progress, .. } => Some(progress),
        _ => None,
    })?
}

/// If it were killed before, the next one would find the mark of a process that it knows nothing
/// of, and read what was proven a whole `replay.window` ago.
#[test]
fn a_new_process_stores_its_mark_at_once_with_what_was_proven_before_it() {
    let progress = stored_in_the_gap("old:1:7").expect("Redis has kept all");
    let Progress { checkpoint, replay, redis } = progress;
    assert_eq!(Proven { checkpoint: Some(checkpoint), replay }, stored("7/1", 1_050).proven);
    assert_eq!(redis.as_deref(), Some("me:1:1"));
}

#[test]
fn where_redis_may_have_undone_something_nothing_is_stored_until_it_is_done_again() {
    for found in ["old:1:4", "another:1:7"] {
        assert_eq!(stored_in_the_gap(found), None, "{found}");
    }
}
