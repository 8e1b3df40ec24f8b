//! How a listener is, as a document: what `/status.json` says, and what the page and `unstale
//! status` show.
//!
//! `docs/status.md` explains each field. Must hold: nothing in it is a row's value, a URL or a
//! secret, and its size is bounded, whatever is watched, found, or wrong. Texts of others are cut
//! here and escaped where they are shown. Pure.

pub mod format;
pub mod page;
pub mod terminal;

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::finding::{Finding, Severity};

/// Changes when a field goes, or means something else. A new field is optional, so that it changes
/// nothing.
pub const SCHEMA: u32 = 1;

/// Watches shown: the busiest.
pub const WATCHES: usize = 50;
/// Gaps of the ledger shown: the last.
pub const GAPS: usize = 10;
/// Findings shown: errors first.
pub const FINDINGS: usize = 50;
/// Redis servers shown: those that do not answer first.
pub const SERVERS: usize = 64;
/// Key templates of a watch shown.
pub const TEMPLATES: usize = 8;
/// Samples kept: five minutes of heartbeats, at the default interval.
pub const SAMPLES: usize = 300;
/// Samples are no older than this, in seconds. The width of the chart.
pub const SPAN_SECONDS: f64 = 300.0;

/// Characters of a name or a template.
const NAME: usize = 200;
/// Characters of a sentence.
const SENTENCE: usize = 600;
/// Characters of a remedy. A longer one is left out: half a statement must not be pasted.
const REMEDY: usize = 4_000;

/// The document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Of the program.
    pub version: String,
    /// The listener's name.
    pub instance: String,
    /// When this was true, by the clock of the listener's host: RFC 3339, UTC.
    pub at: String,
    /// Since the process began.
    pub uptime_seconds: f64,
    /// Promise P7, as `/ready` says it.
    pub ready: bool,
    /// What stands against it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
    /// Where the listener is: `waiting`, `connecting`, `subscribing`, `catching up`, `listening`,
    /// `draining` or `stopped`.
    pub state: String,
    /// Where changes come from.
    pub postgres: Place,
    /// From a heartbeat's commit to Redis having deleted all that came before it.
    pub freshness: Times,
    /// From a change's arrival to Redis having deleted its keys, of a sample.
    pub delivery: Times,
    /// How far the listener has come, provably.
    pub watermark: Watermark,
    /// What Redis has still to do.
    pub waiting: Waiting,
    /// The gap that is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<OpenGap>,
    /// The last gaps of this instance, the latest first; absent until the ledger was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gaps: Option<Vec<Gap>>,
    /// What is not as it should be in the database; absent if it could not be asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub findings: Option<Findings>,
    /// Where keys are deleted.
    pub redis: Redis,
    /// What is watched.
    pub watches: Watches,
}

/// PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Place {
    /// Hosts, ports and database; never user or password.
    pub place: String,
}

/// Durations that were measured lately.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Times {
    /// Each is its age and the duration, in seconds, the oldest first.
    pub samples: Vec<(f64, f64)>,
    /// Half of them are no longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_seconds: Option<f64>,
    /// 99 of 100 are no longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_seconds: Option<f64>,
}

/// The watermark.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Watermark {
    /// By PostgreSQL's clock: RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// How far it is behind that clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
}

/// What waits for Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Waiting {
    /// Keys that are not on their way yet, handed back ones included.
    pub keys: u64,
    /// Patterns, likewise.
    pub patterns: u64,
    /// What both take in memory.
    pub bytes: u64,
    /// Commands that Redis has not answered yet.
    pub commands: u64,
    /// Those of them that have failed, and are tried again.
    pub retries: u64,
    /// Keys that were deleted and wait to be deleted once more.
    pub repeats: u64,
}

/// A gap that is open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OpenGap {
    /// Why it opened.
    pub cause: String,
    /// Since then.
    pub lasted_seconds: f64,
    /// Rows read from the tables so far.
    pub swept: u64,
    /// Rows read from the log so far.
    pub logged: u64,
    /// Keys and patterns found so far.
    pub keys: u64,
}

/// A gap of the ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// Why it opened.
    pub cause: String,
    /// By PostgreSQL's clock: RFC 3339, UTC.
    pub opened_at: String,
    /// Until the last acknowledgement; absent while it is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lasted_seconds: Option<f64>,
    /// Rows read from the tables.
    pub swept: u64,
    /// Rows read from the log.
    pub logged: u64,
    /// Keys and patterns deleted.
    pub keys: u64,
}

/// What the database's part of `unstale check` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Findings {
    /// Since the database was asked.
    pub asked_seconds_ago: f64,
    /// How many are not in the list.
    pub more: u64,
    /// Errors first.
    pub list: Vec<Finding>,
}

/// Redis.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Redis {
    /// `server`, `sentinel` or `cluster`.
    pub kind: String,
    /// How many servers are not in the list.
    pub more: u64,
    /// Each primary; those that do not answer first.
    pub servers: Vec<Server>,
}

/// A primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Host and port, or a socket's path; behind Sentinel absent until a primary is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Is there a connection, and does it answer?
    pub answers: bool,
    /// If not, why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// The watches.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Watches {
    /// How many there are.
    pub count: u64,
    /// How many are not in the list.
    pub more: u64,
    /// The busiest first.
    pub list: Vec<Watch>,
}

/// A watch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// Schema and name.
    pub table: String,
    /// Templates.
    pub keys: Vec<String>,
    /// `row`, `statement` or `log`.
    pub delivery: String,
    /// What readers were promised: `lease`, `bounded` or `eventual`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guarantee: Option<String>,
    /// Can a sweep find its changed rows?
    pub sweepable: bool,
    /// Changes announced, since the process began.
    pub changes: u64,
    /// The same a second, over about the last minute.
    pub changes_per_second: f64,
    /// Keys and patterns deleted, since the process began.
    pub deleted: u64,
    /// The same a second, over about the last minute.
    pub deleted_per_second: f64,
    /// Cached values that were compared with their rows; absent until some were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nines: Option<Nines>,
}

/// What an audit has found of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nines {
    /// Values compared.
    pub audited: u64,
    /// Those that were not what is stored.
    pub stale: u64,
}

impl Status {
    /// Cuts lists and texts to what fits, and orders what is cut. What is left out is counted.
    /// Findings are cut by [`Findings::of`].
    pub fn bound(&mut self) {
        let cut = |count: usize, most: usize| {
            u64::try_from(count.saturating_sub(most)).unwrap_or(u64::MAX)
        };
        for text in [&mut self.instance, &mut self.postgres.place]
            .into_iter()
            .chain(&mut self.redis.servers.iter_mut().filter_map(|server| server.address.as_mut()))
        {
            shorten(text, NAME);
        }
        if let Some(why_not) = &mut self.why_not {
            shorten(why_not, SENTENCE);
        }
        let Redis { servers, more, .. } = &mut self.redis;
        servers.sort_by_key(|server| server.answers);
        *more = cut(servers.len(), SERVERS);
        servers.truncate(SERVERS);
        servers
            .iter_mut()
            .filter_map(|server| server.why_not.as_mut())
            .for_each(|why_not| shorten(why_not, SENTENCE));
        if let Some(gaps) = &mut self.gaps {
            gaps.truncate(GAPS);
            gaps.iter_mut().for_each(|gap| shorten(&mut gap.cause, NAME));
        }
        let Watches { count, more, list } = &mut self.watches;
        list.sort_by(|a, b| busiest_first(&a.rank(), &b.rank()));
        list.truncate(WATCHES);
        *more = count.saturating_sub(u64::try_from(list.len()).unwrap_or(u64::MAX));
        for Watch { table, keys, .. } in list {
            shorten(table, NAME);
            keys.truncate(TEMPLATES);
            keys.iter_mut().for_each(|key| shorten(key, NAME));
        }
    }
}

/// What a watch is ordered by: what happens a second, what has happened, its table.
pub type Rank<'a> = (f64, u64, &'a str);

/// The order of the watches.
#[must_use]
pub fn busiest_first(a: &Rank<'_>, b: &Rank<'_>) -> Ordering {
    b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then_with(|| a.2.cmp(b.2))
}

impl Watch {
    fn rank(&self) -> Rank<'_> {
        (self.changes_per_second + self.deleted_per_second, self.changes, &self.table)
    }
}

impl Findings {
    /// Those that fit, errors first.
    #[must_use]
    pub fn of(mut list: Vec<Finding>) -> Self {
        list.sort_by_key(|finding| finding.severity != Severity::Error);
        let more = u64::try_from(list.len().saturating_sub(FINDINGS)).unwrap_or(u64::MAX);
        list.truncate(FINDINGS);
        for Finding { about, finding, remedy, .. } in &mut list {
            shorten(about, NAME);
            shorten(finding, SENTENCE);
            remedy.take_if(|remedy| remedy.len() > REMEDY);
        }
        Self { asked_seconds_ago: 0.0, more, list }
    }
}

impl Times {
    /// Of ages and durations, the oldest first.
    #[must_use]
    pub fn of(samples: Vec<(f64, f64)>) -> Self {
        let mut sorted: Vec<f64> = samples.iter().map(|(_, seconds)| *seconds).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied()
        };
        Self { p50_seconds: at(50), p99_seconds: at(99), samples }
    }
}

/// Cuts a text, visibly.
fn shorten(text: &mut String, most: usize) {
    if let Some((at, _)) = text.char_indices().nth(most) {
        text.truncate(at);
        text.push('…');
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// With every field there is, and texts that mean harm.
    pub(crate) fn hostile() -> Status {
        let text = "<script>alert(1)</script>\" onload='x' & \u{1b}[31m\u{202e}\n";
        Status {
            schema: SCHEMA,
            version: "0.1.0".into(),
            instance: text.into(),
            at: "2026-01-31T10:00:00Z".into(),
            uptime_seconds: 3_600.0,
            ready: false,
            why_not: Some(text.into()),
            state: "catching up".into(),
            postgres: Place { place: text.into() },
            freshness: Times::of(vec![(200.0, 0.0021), (100.0, 0.0034), (1.0, 2.0)]),
            delivery: Times::of(vec![(1.0, 0.0004)]),
            watermark: Watermark {
                at: Some("2026-01-31T09:59:49Z".into()),
                age_seconds: Some(11.0),
            },
            waiting: Waiting {
                keys: 1_234,
                patterns: 2,
                bytes: 45_000,
                commands: 3,
                retries: 1,
                repeats: 7,
            },
            gap: Some(OpenGap {
                cause: text.into(),
                lasted_seconds: 3.0,
                swept: 1,
                logged: 2,
                keys: 3,
            }),
            gaps: Some(vec![Gap {
                cause: text.into(),
                opened_at: "2026-01-31T09:00:00Z".into(),
                lasted_seconds: Some(0.2),
                swept: 4,
                logged: 5,
                keys: 6,
            }]),
            findings: Some(Findings {
                asked_seconds_ago: 12.0,
                more: 0,
                list: vec![Finding::error(text, text, text), Finding::warning(text, text, text)],
            }),
            redis: Redis {
                kind: "cluster".into(),
                more: 0,
                servers: vec![
                    Server { address: Some(text.into()), answers: true, why_not: None },
                    Server { address: None, answers: false, why_not: Some(text.into()) },
                ],
            },
            watches: Watches { count: 1, more: 0, list: vec![watch(text, 1.5)] },
        }
    }

    pub(crate) fn watch(table: &str, rate: f64) -> Watch {
        Watch {
            table: table.into(),
            keys: vec![table.into()],
            delivery: "row".into(),
            guarantee: Some("lease".into()),
            sweepable: true,
            changes: 12,
            changes_per_second: rate,
            deleted: 24,
            deleted_per_second: rate,
            nines: Some(Nines { audited: 1_000, stale: 1 }),
        }
    }

    #[test]
    fn three_thousand_watches_and_long_texts_make_no_large_document() {
        let mut status = hostile();
        let long = "ä".repeat(10_000);
        status.watches.list =
            (0..3_000_u32).map(|n| watch(&format!("public.t{n} {long}"), f64::from(n))).collect();
        status.watches.list.iter_mut().for_each(|watch| watch.keys = vec![long.clone(); 50]);
        status.redis.servers = (0..1_000)
            .map(|n| Server {
                address: Some(long.clone()),
                answers: n != 999,
                why_not: Some(long.clone()),
            })
            .collect();
        let findings = (0..1_000).map(|n| match n {
            999 => Finding::error("last", "x", "y"),
            _ => Finding::warning(&*long, &*long, &*long),
        });
        status.findings = Some(Findings::of(findings.collect()));
        status.watches.count = 3_000;
        status.gaps = Some(vec![status.gaps.expect("one")[0].clone(); 1_000]);
        (status.instance, status.postgres.place, status.why_not) =
            (long.clone(), long.clone(), Some(long));
        status.freshness = Times::of(vec![(123.456, 0.001_234); SAMPLES]);
        status.bound();
        let document = serde_json::to_string(&status).expect("JSON");
        assert!(document.len() < 400_000, "{}", document.len());
        assert!(page::page(&status).len() < 500_000, "{}", page::page(&status).len());
        assert!(status.watches.list[0].table.starts_with("public.t2999 "), "the busiest first");
        assert_eq!((status.watches.list.len(), status.watches.more), (50, 2_950));
        assert!(!status.redis.servers[0].answers, "what does not answer is shown");
        let findings = status.findings.expect("they are known");
        assert_eq!((findings.list[0].about.as_str(), findings.more), ("last", 950));
        assert_eq!(findings.list[1].remedy, None, "half a remedy is none");
    }

    /// Every field as `docs/status.md` writes it.
    fn fields(
        value: &serde_json::Value,
        path: &str,
        found: &mut std::collections::BTreeSet<String>,
    ) {
        match value {
            serde_json::Value::Object(fields_of) => {
                let dot = if path.is_empty() { "" } else { "." };
                fields_of
                    .iter()
                    .for_each(|(name, value)| fields(value, &format!("{path}{dot}{name}"), found));
            }
            serde_json::Value::Array(values)
                if path.ends_with("samples")
                    || !values.iter().any(serde_json::Value::is_object) =>
            {
                found.insert(format!("{path}[]"));
            }
            serde_json::Value::Array(values) => {
                values.iter().for_each(|value| fields(value, &format!("{path}[]"), found))
            }
            _ => drop(found.insert(path.to_owned())),
        }
    }

    #[test]
    fn the_documented_fields_are_those_that_there_are() {
        let documentation = include_str!("../docs/status.md")
            .split("## `/status.json`")
            .nth(1)
            .expect("the chapter");
        let documented = documentation
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .map(str::to_owned)
            .collect();
        let mut actual = std::collections::BTreeSet::new();
        fields(&serde_json::to_value(hostile()).expect("JSON"), "", &mut actual);
        assert_eq!(actual, documented);
        assert!(documentation.contains(&format!("`schema` is {SCHEMA}.")));
        for most in [WATCHES, FINDINGS, SERVERS, SAMPLES] {
            assert!(documentation.contains(&most.to_string()), "{most}");
        }
    }

    #[test]
    fn percentiles_are_those_of_the_samples() {
        let times = Times::of((1..=100).map(|n| (1.0, f64::from(n))).collect());
        assert_eq!((times.p50_seconds, times.p99_seconds), (Some(50.0), Some(99.0)));
        assert_eq!(Times::of(vec![(1.0, 3.0)]).p99_seconds, Some(3.0));
        assert_eq!(Times::of(Vec::new()).p50_seconds, None);
    }
}
