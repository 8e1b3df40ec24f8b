//! What the status page is made of: kept by the driver and the tasks beside it, read by whoever
//! asks.
//!
//! Must hold: the driver never waits. What it notes are a few copies under a lock that nobody holds
//! for longer than it takes to copy what is there, and at most four times a second; to order, to
//! cut and to write is for who asks. Bounded by the number of watches.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::machine::{Standing, Tally};
use crate::finding::Finding;
use crate::messages::Readiness;
use crate::observe::Observation;
use crate::pg::gaps::Gap;
use crate::status::{
    self, Findings, Nines, Place, Rank, SAMPLES, SCHEMA, SPAN_SECONDS, Status, Times, WATCHES,
    Watch,
};
use crate::watched::Watched;
use crate::watermark::PgTime;

/// A rate is over about so long: a younger change counts more.
const RATE_SECONDS: f64 = 60.0;

/// Findings that are older than this are not what is known: the database could not be asked for a
/// while.
const FINDINGS_LAST: Duration = Duration::from_mins(5);

/// See the module.
#[derive(Debug)]
pub struct Board {
    instance: String,
    began: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    standing: Option<Standing>,
    beat: Option<Instant>, // the last heartbeat, at which the watermark's age was known
    fresh: Samples,
    delivered: Samples,
    watches: BTreeMap<i32, Counted>,
    findings: Option<(Instant, Findings)>,
    gaps: Option<Vec<Gap>>,
}

/// Durations that were measured lately.
#[derive(Debug, Default)]
struct Samples(VecDeque<(Instant, Duration)>);

/// A watch, and what was counted of it.
#[derive(Debug, Clone)]
struct Counted {
    watch: Watch,
    changes: Rate,
    deleted: Rate,
}

/// A mean that forgets.
#[derive(Debug, Default, Clone, Copy)]
struct Rate(Option<(Instant, f64)>);

impl Samples {
    fn push(&mut self, now: Instant, took: Duration) {
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back((now, took));
    }

    fn times(&self, now: Instant) -> Times {
        let rounded = |seconds: f64, parts: f64| (seconds * parts).round() / parts;
        let samples = self.0.iter().map(|(at, took)| {
            (now.saturating_duration_since(*at).as_secs_f64(), took.as_secs_f64())
        });
        let young = samples.filter(|(age, _)| *age <= SPAN_SECONDS);
        Times::of(young.map(|(age, took)| (rounded(age, 10.0), rounded(took, 1e6))).collect())
    }
}

impl Rate {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    fn add(&mut self, now: Instant, count: u64) {
        self.0 = Some((now, self.level(now) + count as f64));
    }

    fn level(self, now: Instant) -> f64 {
        self.0.map_or(0.0, |(at, level)| {
            level * (-now.saturating_duration_since(at).as_secs_f64() / RATE_SECONDS).exp()
        })
    }

    fn per_second(self, now: Instant) -> f64 {
        (self.level(now) / RATE_SECONDS * 1e3).round() / 1e3
    }
}

impl Board {
    /// Of a process that begins now.
    #[must_use]
    pub fn new(instance: String, now: Instant) -> Self {
        Self { instance, began: now, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner) // what is counted is true after a panic, too
    }

    /// What is shown of what the program says.
    pub fn note(&self, now: Instant, observation: &Observation) {
        match observation {
            Observation::Fresh { took } => self.inner().fresh.push(now, *took),
            Observation::Delivered { took } => self.inner().delivered.push(now, *took),
            Observation::Status { .. } => self.inner().beat = Some(now),
            _ => {}
        }
    }

    /// How things stand.
    pub fn stands(&self, standing: Standing) {
        self.inner().standing = Some(standing);
    }

    /// The watches as they are now. What was counted of one that stays goes on.
    pub fn watches(&self, watches: &[Watched]) {
        let mut inner = self.inner();
        let mut known = std::mem::take(&mut inner.watches);
        let counted = |watched: &Watched| {
            let Watched { id, table, sweepable, spec, .. } = watched;
            let before = known.remove(id);
            let (changes, deleted) =
                before.as_ref().map(|before| (before.changes, before.deleted)).unwrap_or_default();
            let counts = before.map(|before| before.watch);
            let watch = Watch {
                table: table.clone(),
                keys: spec.keys.clone(),
                delivery: spec.delivery.clone(),
                guarantee: spec.guarantee.clone(),
                sweepable: *sweepable,
                changes: counts.as_ref().map_or(0, |before| before.changes),
                changes_per_second: 0.0,
                deleted: counts.as_ref().map_or(0, |before| before.deleted),
                deleted_per_second: 0.0,
                nines: counts.and_then(|before| before.nines),
            };
            (*id, Counted { watch, changes, deleted })
        };
        inner.watches = watches.iter().filter(|watched| !watched.ended).map(counted).collect();
    }

    /// What was counted of a watch.
    pub fn counted(&self, now: Instant, watch: i32, tally: Tally) {
        if let Some(counted) = self.inner().watches.get_mut(&watch) {
            counted.watch.changes += tally.changes;
            counted.watch.deleted += tally.keys;
            counted.changes.add(now, tally.changes);
            counted.deleted.add(now, tally.keys);
        }
    }

    /// Cached values of a watch were compared with their rows: so many more, of which so many were
    /// stale.
    pub fn audited(&self, watch: i32, audited: u64, stale: u64) {
        if let Some(counted) = self.inner().watches.get_mut(&watch) {
            let nines = counted.watch.nines.get_or_insert(Nines { audited: 0, stale: 0 });
            nines.audited += audited;
            nines.stale += stale;
        }
    }

    /// What the database said of itself; `None`: it could not be asked.
    pub fn found(&self, now: Instant, findings: Option<Vec<Finding>>) {
        self.inner().findings = findings.map(|findings| (now, Findings::of(findings)));
    }

    /// What the ledger said.
    pub fn gaps(&self, gaps: Vec<Gap>) {
        self.inner().gaps = Some(gaps);
    }

    /// The document.
    #[must_use]
    pub fn status(
        &self,
        now: Instant,
        wall: SystemTime,
        readiness: &Readiness,
        postgres: String,
        redis: status::Redis,
    ) -> Status {
        let inner = self.inner();
        let standing = inner.standing.as_ref();
        let since_beat =
            inner.beat.map_or(Duration::ZERO, |beat| now.saturating_duration_since(beat));
        let age = standing.and_then(|standing| standing.watermark_age);
        let findings = inner
            .findings
            .as_ref()
            .map(|(asked, findings)| (now.saturating_duration_since(*asked), findings));
        let findings = findings.filter(|(ago, _)| *ago <= FINDINGS_LAST);
        let why_not = match readiness {
            Readiness::Ready => None,
            Readiness::NotReady(reason) => Some(reason.clone()),
        };
        let mut status = Status {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.instance.clone(),
            at: humantime::format_rfc3339_seconds(wall).to_string(),
            uptime_seconds: tenth(now.saturating_duration_since(self.began)),
            ready: why_not.is_none(),
            why_not,
            state: standing.map_or("starting", |standing| standing.state).to_owned(),
            postgres: Place { place: postgres },
            freshness: inner.fresh.times(now),
            delivery: inner.delivered.times(now),
            watermark: status::Watermark {
                at: standing.and_then(|standing| standing.watermark).and_then(in_words),
                age_seconds: age.map(|age| tenth(age + since_beat)),
            },
            waiting: standing.map(|standing| standing.waiting).unwrap_or_default(),
            gap: standing.and_then(|standing| standing.gap.clone()),
            gaps: inner.gaps.as_ref().map(|gaps| gaps.iter().map(shown).collect()),
            findings: findings.map(|(ago, findings)| Findings {
                asked_seconds_ago: tenth(ago),
                ..findings.clone()
            }),
            redis: with_failure(
                redis,
                standing.and_then(|standing| standing.redis_failure.as_deref()),
            ),
            watches: inner.busiest(now),
        };
        drop(inner);
        status.bound();
        status
    }
}

impl Inner {
    /// Only these are copied: who asks is served by the listener's thread.
    fn busiest(&self, now: Instant) -> status::Watches {
        let mut ranked: Vec<_> =
            self.watches.values().map(|counted| (counted.rank(now), counted)).collect();
        ranked.sort_by(|(a, _), (b, _)| status::busiest_first(a, b));
        let list = ranked.iter().take(WATCHES).map(|(_, counted)| counted.shown(now)).collect();
        status::Watches { count: u64::try_from(ranked.len()).unwrap_or(u64::MAX), more: 0, list }
    }
}

impl Counted {
    fn rank(&self, now: Instant) -> Rank<'_> {
        (
            self.changes.per_second(now) + self.deleted.per_second(now),
            self.watch.changes,
            &self.watch.table,
        )
    }

    fn shown(&self, now: Instant) -> Watch {
        let Self { watch, changes, deleted } = self;
        Watch {
            changes_per_second: changes.per_second(now),
            deleted_per_second: deleted.per_second(now),
            ..watch.clone()
        }
    }
}

fn shown(gap: &Gap) -> status::Gap {
    let Gap { cause, opened_at, lasted_seconds, swept, logged, keys } = gap.clone();
    let opened_at = in_words(opened_at).unwrap_or_else(|| "-".to_owned());
    status::Gap { cause, opened_at, lasted_seconds, swept, logged, keys }
}

/// Of one server alone, what fails is that it does not answer.
fn with_failure(mut redis: status::Redis, failure: Option<&str>) -> status::Redis {
    if redis.kind != "cluster"
        && let Some(failure) = failure
    {
        for server in &mut redis.servers {
            (server.answers, server.why_not) = (false, Some(failure.to_owned()));
        }
    }
    redis
}

/// RFC 3339, as far as the format goes.
fn in_words(time: PgTime) -> Option<String> {
    let since = Duration::from_micros(u64::try_from(time.0).ok()?);
    let year_9999 = Duration::from_secs(253_402_300_799);
    (since <= year_9999).then(|| humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string())
}

fn tenth(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watched::Spec;

    fn watched(id: i32, table: &str) -> Watched {
        let spec = Spec {
            keys: vec![format!("{table}:{{id}}")],
            delivery: "row".into(),
            ..Spec::default()
        };
        Watched {
            id,
            rev: 1,
            table: table.into(),
            ended: false,
            sweepable: true,
            spec,
            audited: None,
        }
    }

    fn status(board: &Board, now: Instant) -> Status {
        board.status(now, UNIX_EPOCH, &Readiness::Ready, "h:1/d".into(), status::Redis::default())
    }

    #[test]
    fn a_rate_rises_with_changes_and_falls_without() {
        let start = Instant::now();
        let board = Board::new("test".into(), start);
        board.watches(&[watched(1, "a"), watched(2, "b")]);
        let mut now = start;
        for _ in 0..600 {
            now += Duration::from_secs(1);
            board.counted(now, 2, Tally { changes: 10, keys: 30, swept: 0 });
        }
        let busy = status(&board, now).watches;
        assert_eq!(
            (busy.count, busy.list[0].table.as_str(), busy.list[0].changes, busy.list[0].deleted),
            (2, "b", 6_000, 18_000)
        );
        assert!((9.5..=10.5).contains(&busy.list[0].changes_per_second), "{busy:?}");
        assert!((28.5..=31.5).contains(&busy.list[0].deleted_per_second), "{busy:?}");
        let quiet = status(&board, now + Duration::from_mins(10)).watches.list.remove(0);
        assert_eq!((quiet.changes, quiet.changes_per_second), (6_000, 0.0));
    }

    #[test]
    fn counts_go_on_for_a_watch_that_stays_and_end_with_one_that_ends() {
        let now = Instant::now();
        let board = Board::new("test".into(), now);
        board.watches(&[watched(1, "a"), watched(2, "b")]);
        board.counted(now, 1, Tally { changes: 3, keys: 4, swept: 0 });
        board.audited(1, 10, 1);
        board.audited(1, 10, 0);
        let ended = Watched { ended: true, ..watched(2, "b") };
        board.watches(&[Watched { rev: 2, ..watched(1, "a2") }, ended]);
        board.counted(now, 2, Tally { changes: 3, keys: 4, swept: 0 });
        let watches = status(&board, now).watches;
        let [one] = &watches.list[..] else { panic!("{watches:?}") };
        assert_eq!(
            (one.table.as_str(), one.changes, one.nines),
            ("a2", 3, Some(Nines { audited: 20, stale: 1 }))
        );
        assert!(one.changes_per_second > 0.0);
    }

    #[test]
    fn samples_are_bounded_and_those_of_long_ago_are_not_shown() {
        let start = Instant::now();
        let board = Board::new("test".into(), start);
        for n in 0..SAMPLES as u64 * 3 {
            board.note(
                start + Duration::from_millis(n),
                &Observation::Fresh { took: Duration::from_micros(n) },
            );
        }
        let fresh = status(&board, start + Duration::from_secs(10)).freshness;
        assert_eq!((fresh.samples.len(), fresh.samples[SAMPLES - 1]), (SAMPLES, (9.1, 0.000_899)));
        assert!(status(&board, start + Duration::from_mins(6)).freshness.samples.is_empty());
    }

    #[test]
    fn findings_that_could_not_be_renewed_are_not_shown_for_long() {
        let now = Instant::now();
        let board = Board::new("test".into(), now);
        assert_eq!(status(&board, now).findings, None);
        board.found(now, Some(Vec::new()));
        assert_eq!(
            status(&board, now + Duration::from_secs(60))
                .findings
                .expect("known")
                .asked_seconds_ago,
            60.0
        );
        assert_eq!(status(&board, now + Duration::from_mins(6)).findings, None);
    }

    #[test]
    fn the_watermark_ages_between_heartbeats() {
        let now = Instant::now();
        let board = Board::new("test".into(), now);
        let standing = Standing {
            state: "listening",
            redis_failure: Some("gone".into()),
            watermark: Some(PgTime(1_000_000)),
            watermark_age: Some(Duration::from_secs(10)),
            waiting: status::Waiting::default(),
            gap: None,
        };
        board.note(now, &Observation::Status { pending: 0, watermark_age: None });
        board.stands(standing);
        let server = status::Server { address: Some("h:1".into()), answers: true, why_not: None };
        let redis = status::Redis { kind: "server".into(), more: 0, servers: vec![server] };
        let later = board.status(
            now + Duration::from_secs(5),
            UNIX_EPOCH,
            &Readiness::NotReady("x".into()),
            String::new(),
            redis,
        );
        assert_eq!(
            (later.watermark.at.as_deref(), later.watermark.age_seconds),
            (Some("1970-01-01T00:00:01Z"), Some(15.0))
        );
        assert_eq!((later.ready, later.redis.servers[0].why_not.as_deref()), (false, Some("gone")));
    }
}
