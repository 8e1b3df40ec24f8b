//! What another PostgreSQL than the last session's means: it was restarted, failed over, or
//! restored, and may have undone commits.

use std::time::Duration;

use crate::watermark::{PgTime, Server, Stored};

use super::gap::Resume;

/// What is to be done about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Where catching up begins.
    pub(super) resume: Resume,
    /// Keys that were deleted lately are deleted once more.
    pub(super) again: bool,
    /// Why, for people.
    pub(super) reason: &'static str,
}

/// What is known of the servers before this one.
#[derive(Debug)]
pub(super) struct Before<'a> {
    /// That of the last session of this process.
    pub(super) known: Option<&'a Server>,
    /// How far it had come then.
    pub(super) remembered: Option<PgTime>,
    /// When it last sent a heartbeat, with which it stores something, by PostgreSQL's clock.
    pub(super) beat: Option<PgTime>,
    /// When this process first sent one: what was deleted before that, it does not remember.
    pub(super) began: Option<PgTime>,
    /// What is stored in this one.
    pub(super) stored: Option<&'a Stored>,
    /// Was this instance here, however far it came?
    pub(super) was_here: bool,
}

/// Is this the PostgreSQL that the progress is about, and has it kept what it said? `None`: yes, or
/// nothing is known.
pub(super) fn judge(server: &Server, before: &Before<'_>, window: Duration) -> Option<Verdict> {
    let flush = |reason| Some(Verdict { resume: Resume::Everything, again: false, reason });
    match (before.known, before.stored) {
        // Also before the first checkpoint: this session's keys may be of commits that are lost.
        (Some(known), None) if known.timeline != server.timeline => {
            flush("its checkpoint is gone, so PostgreSQL failed over or was restored to before it")
        }
        // It may have been about to delete everything.
        (None, None) if before.was_here => {
            flush("this instance was ended before it had ever caught up")
        }
        (_, Some(stored)) if stored.forgotten => {
            flush("this instance was away for longer than checkpoint.forget_after")
        }
        (None, Some(stored)) if stored.timeline != server.timeline => flush(
            "PostgreSQL failed over or was restored while this instance was away: what was lost is not known",
        ),
        (Some(known), Some(stored)) if known.timeline != server.timeline => {
            if is_from_before(stored, before, window) || system(known) != system(server) {
                flush("the database was restored to an earlier time, or is another one")
            } else if !has_heard_of_this_process(stored, before) {
                flush(
                    "failed over, and may have lost commits of before this process began, whose keys it does not remember",
                )
            } else {
                let reason = "failed over; keys deleted in the last replay.window are deleted again, older lost commits are not known";
                Some(Verdict { resume: Resume::ReplayAndLog, again: true, reason })
            }
        }
        (Some(known), _) if known.started != server.started => {
            let reason = "restarted; keys deleted in the last replay.window are deleted again, in case it lost commits (synchronous_commit)";
            // A server that does not say its timeline may have failed over.
            let resume = if server.timeline.contains('?') {
                Resume::ReplayAndLog
            } else {
                Resume::Checkpoint
            };
            Some(Verdict { resume, again: true, reason })
        }
        _ => None,
    }
}

/// Does the server know less of us than a fail-over could have lost? The watermark alone would not
/// do: a transaction that stays open holds it back, and then the restored one is hardly older.
fn is_from_before(stored: &Stored, before: &Before<'_>, window: Duration) -> bool {
    let watermark = stored.proven.checkpoint.as_ref().and_then(|checkpoint| checkpoint.watermark);
    let older = |stored: Option<PgTime>, known: Option<PgTime>| {
        stored.zip(known).is_some_and(|(stored, known)| stored < known.earlier(window))
    };
    older(watermark, before.remembered) || older(stored.saved_at, before.beat)
}

/// Has the server kept a heartbeat of this process? Then what it lost came after that.
fn has_heard_of_this_process(stored: &Stored, before: &Before<'_>) -> bool {
    stored.saved_at.zip(before.began).is_some_and(|(saved_at, began)| saved_at >= began)
}

/// The system identifier.
fn system(server: &Server) -> &str {
    server.timeline.split('/').next().unwrap_or_default()
}
