//! A look at keys: what is cached under each, what its row says, and whether the two agree.
//!
//! One look proves nothing: between the two answers a row may have changed, and its delete be on
//! the way. Who finds a mismatch looks again after a while ([`is_stale`]). Must hold: nothing that
//! is cached, and no key, gets into an error.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context as _, bail};

use crate::audit::invert::{Inverter, Obscure, Reading};
use crate::audit::version::{Place, Seen, without_lease};
use crate::change::Row;
use crate::deletion::Deletion;
use crate::glob::{Glob, Globs};
use crate::pg::audit::{Found, Reader, Rows};
use crate::pg::watches;
use crate::rule::Rule;
use crate::sink::{Cached, Sink};

/// Rows of one question, beside one for each key: those of lists, `orders:{user_id}`, are many.
const ROWS_BEYOND: usize = 10_000;

/// What the rights of an audit lack, in words.
const RIGHTS: &str = "an audit reads what is cached: let its Redis user run GET, HGET, TYPE and SCAN on the keys of the watches \
                      (+get +hget +type +scan; `unstale check` prints the rest of the rule)";

/// A watch, as an audit needs it.
pub(crate) struct Subject {
    /// `unstale.watch.id`.
    pub(crate) watch: i32,
    /// Schema and name.
    pub(crate) table: String,
    /// The templates as they are written.
    pub(crate) keys: Vec<String>,
    pub(crate) rule: Rule,
    /// How each template is inverted.
    pub(crate) inverters: Vec<Result<Inverter, Obscure>>,
    /// Where a value carries its version.
    pub(crate) place: Option<Place>,
    version_type: String,
    pub(crate) has_stamp: bool,
    pub(crate) blocks: i64,
    /// Why its values cannot be compared with rows.
    pub(crate) unauditable: Option<String>,
}

/// A key of a watch, and the rows that may have made it: objects as `unstale.row_N()` makes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) subject: usize,
    pub(crate) template: usize,
    pub(crate) key: String,
    pub(crate) wanted: Vec<String>,
}

/// What a look has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing is cached, or a lease.
    Absent,
    /// What is cached is as the row, or says that there is none, rightly.
    Same,
    /// They differ, or the row is gone. Looked at again, the same two differ in the same way, or
    /// something has changed.
    Differs(Box<Difference>),
    /// There is nothing to compare.
    Unreadable,
}

/// By key, the versions of its rows.
type Versions = HashMap<String, Vec<Option<String>>>;

/// The two sides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    seen: Seen,
    stored: Vec<Option<String>>, // none: the row is gone
}

/// Is what differed in a first look and differs in a later one stale? It is if neither side has
/// changed; else its next change was seen, and it is to be looked at again: `None`.
pub(crate) fn is_stale(first: &Difference, later: &Outcome) -> Option<bool> {
    match later {
        Outcome::Differs(later) if **later == *first => Some(true),
        Outcome::Differs(_) => None,
        _ => Some(false),
    }
}

/// The watches in force, or those of these tables.
pub(crate) async fn subjects(reader: &mut Reader, only: &[String]) -> anyhow::Result<Vec<Subject>> {
    let tables = reader.tables().await?;
    let mut tables: HashMap<i32, _> =
        tables.into_iter().map(|table| (table.watch, table)).collect();
    let mut subjects = Vec::new();
    for watched in watches::load(reader.plain()).await? {
        let Some(table) = tables.remove(&watched.id).filter(|_| !watched.ended) else { continue };
        if !only.is_empty() && !only.contains(&watched.table) {
            continue;
        }
        let rule = Rule::of(&watched)?;
        let types: Vec<_> = rule.columns().iter().cloned().zip(table.column_types).collect();
        subjects.push(Subject {
            watch: watched.id,
            table: watched.table,
            inverters: rule
                .templates()
                .iter()
                .map(|template| Inverter::new(template, &types))
                .collect(),
            place: watched.spec.version_path.as_deref().map(Place::parse).transpose()?,
            rule,
            keys: watched.spec.keys,
            version_type: table.version_type.unwrap_or_default(),
            has_stamp: table.has_stamp,
            blocks: table.blocks,
            unauditable: table.unauditable,
        });
    }
    Ok(subjects)
}

/// The pattern that finds the keys of all of these in Redis.
pub(crate) fn pattern(subjects: &[Subject]) -> anyhow::Result<String> {
    let text = |deletion| match deletion {
        Deletion::Key(key) => {
            let mut pattern = String::new();
            crate::rule::escape_glob(&key, &mut pattern);
            pattern
        }
        Deletion::Pattern(pattern) => pattern,
    };
    let patterns: Vec<String> =
        subjects.iter().flat_map(|subject| subject.rule.everything().map(text)).collect();
    Ok(Globs::parse(&patterns)?.common().unwrap_or_else(|| "*".into()))
}

impl Subject {
    /// The candidate that this key is, if it is one of ours.
    pub(crate) fn candidate(&self, subject: usize, key: &str) -> Option<Candidate> {
        self.inverters.iter().enumerate().find_map(|(template, inverter)| {
            match inverter.as_ref().ok()?.invert(key) {
                Reading::Rows(wanted) => {
                    Some(Candidate { subject, template, key: key.to_owned(), wanted })
                }
                Reading::None | Reading::TooMany => None,
            }
        })
    }

    /// Has the key more readings than can be asked for?
    pub(crate) fn is_unclear(&self, key: &str) -> bool {
        self.inverters.iter().flatten().any(|inverter| inverter.invert(key) == Reading::TooMany)
    }

    /// The template whose pattern the key matches.
    pub(crate) fn template_of(&self, key: &str) -> Option<usize> {
        self.rule.templates().iter().position(|template| match template.render(&Row::default()) {
            Some(Deletion::Pattern(pattern)) => {
                Glob::parse(&pattern).is_ok_and(|glob| glob.matches(key.as_bytes()))
            }
            Some(Deletion::Key(constant)) => constant == key,
            None => false,
        })
    }

    /// The keys of a row, of the templates that `wants` it.
    pub(crate) fn candidates(
        &self,
        subject: usize,
        image: &str,
        wants: impl Fn(usize) -> bool,
    ) -> Vec<Candidate> {
        Row::parse(image)
            .map_or_else(|_| Vec::new(), |row| self.candidates_of(subject, &row, wants))
    }

    /// The same of a row that was read.
    pub(crate) fn candidates_of(
        &self,
        subject: usize,
        row: &Row<'_>,
        wants: impl Fn(usize) -> bool,
    ) -> Vec<Candidate> {
        let templates =
            self.rule.templates().iter().enumerate().filter(|(template, _)| wants(*template));
        let candidate = |(template, of): (usize, &crate::rule::Template)| {
            let mut columns = of.columns().peekable();
            columns.peek()?; // the value of a constant key is of no row
            let Some(Deletion::Key(key)) = of.render(row) else { return None };
            let wanted = of
                .columns()
                .map(|column| (column, row.value(column).flatten()))
                .collect::<BTreeMap<_, _>>();
            Some(Candidate {
                subject,
                template,
                key,
                wanted: vec![serde_json::to_string(&wanted).ok()?],
            })
        };
        templates.filter_map(candidate).collect()
    }
}

/// Both sides.
pub(crate) struct Look {
    reader: Reader,
    pub(crate) sink: Arc<Sink>,
    /// The watches whose rows could not be read, and why: the code of a table's owner may fail its
    /// own table, and nothing else.
    pub(crate) failed: BTreeMap<i32, String>,
}

impl Look {
    pub(crate) fn new(reader: Reader, sink: Arc<Sink>) -> Self {
        Self { reader, sink, failed: BTreeMap::new() }
    }

    /// For what runs no code of a table's owner.
    pub(crate) fn reader(&mut self) -> &mut Reader {
        &mut self.reader
    }

    /// Rows of a watch; none once it has failed.
    pub(crate) async fn rows(
        &mut self,
        subject: &Subject,
        rows: &Rows<'_>,
        most: usize,
    ) -> Option<Found> {
        if self.failed.contains_key(&subject.watch) {
            return None;
        }
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        match self.reader.rows(subject.watch, rows, most).await {
            Ok(found) => Some(found),
            Err(error) => {
                self.failed
                    .insert(subject.watch, format!("its rows cannot be read: {}", error.in_full()));
                None
            }
        }
    }

    /// Looks at each of them: first at what is cached, then at the rows.
    pub(crate) async fn at(
        &mut self,
        subjects: &[Subject],
        candidates: &[Candidate],
    ) -> anyhow::Result<Vec<Outcome>> {
        let mut outcomes = vec![Outcome::Unreadable; candidates.len()];
        let mut groups: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for (n, candidate) in candidates.iter().enumerate() {
            groups.entry((candidate.subject, candidate.template)).or_default().push(n);
        }
        for ((subject, template), places) in groups {
            let subject = &subjects[subject];
            let group: Vec<&Candidate> = places.iter().map(|&place| &candidates[place]).collect();
            let found = self.at_group(subject, template, &group).await?;
            places.into_iter().zip(found).for_each(|(place, outcome)| outcomes[place] = outcome);
        }
        Ok(outcomes)
    }

    async fn at_group(
        &mut self,
        subject: &Subject,
        template: usize,
        group: &[&Candidate],
    ) -> anyhow::Result<Vec<Outcome>> {
        let Some(place) = &subject.place else { bail!("{} has no version", subject.table) };
        let seen = self.seen(place, group).await?;
        let is_there: Vec<bool> = seen
            .iter()
            .map(|seen| seen.as_ref().is_some_and(|seen| *seen != Seen::Nothing))
            .collect();
        let there: Vec<&Candidate> = group
            .iter()
            .zip(&is_there)
            .filter(|(_, is)| **is)
            .map(|(candidate, _)| *candidate)
            .collect();
        let Some(mut stored) = self.stored(subject, template, &there).await else {
            return Ok(vec![Outcome::Unreadable; group.len()]);
        };
        let versions = self.compare(subject, group, &seen, &stored).await?;
        let mut outcomes = Vec::with_capacity(group.len());
        for ((candidate, seen), same) in group.iter().zip(seen).zip(versions) {
            let Some(seen) = seen else {
                outcomes.push(Outcome::Unreadable);
                continue;
            };
            let stored = stored.remove(&candidate.key).unwrap_or_default();
            outcomes.push(match (&seen, same) {
                (Seen::Nothing, _) => Outcome::Absent,
                (Seen::Empty, _) if stored.is_empty() => Outcome::Same,
                (Seen::Version(_) | Seen::Unreadable, _) if stored.is_empty() => {
                    Outcome::Differs(Box::new(Difference { seen, stored }))
                }
                (Seen::Empty | Seen::Unreadable, _) | (_, None) => Outcome::Unreadable,
                (Seen::Version(_), Some(true)) => Outcome::Same,
                (Seen::Version(_), Some(false)) => {
                    Outcome::Differs(Box::new(Difference { seen, stored }))
                }
            });
        }
        Ok(outcomes)
    }

    /// What is cached under each; `None`: nobody has said.
    async fn seen(&self, place: &Place, group: &[&Candidate]) -> anyhow::Result<Vec<Option<Seen>>> {
        let keys: Vec<&str> = group.iter().map(|candidate| candidate.key.as_str()).collect();
        let field = match place {
            Place::Field(field) => Some(field.as_str()),
            Place::Json(_) => None,
        };
        let mut seen = vec![None; keys.len()];
        let each = |at: usize, cached| {
            seen[at] = match cached {
                Cached::Absent => Some(Seen::Nothing),
                Cached::Text(value) => Some(place.in_string(&value)),
                Cached::Field(value) => Some(Place::in_field(&value)),
                Cached::Other => Some(Seen::Unreadable),
                Cached::Unknown => None,
            };
        };
        self.sink.values(&keys, field, each).await.context(RIGHTS)?;
        Ok(seen)
    }

    /// The versions of the rows that make each key; `None`: they cannot be read, or are too many.
    async fn stored(
        &mut self,
        subject: &Subject,
        template: usize,
        group: &[&Candidate],
    ) -> Option<Versions> {
        let mut stored = Versions::new();
        let wanted: Vec<String> =
            group.iter().flat_map(|candidate| candidate.wanted.iter().cloned()).collect();
        if wanted.is_empty() {
            return Some(stored);
        }
        let most = wanted.len() + ROWS_BEYOND;
        let rows = self.rows(subject, &Rows::Like(template, &wanted), most).await?;
        if rows.len() >= most {
            return None;
        }
        for (image, version) in rows {
            let row = Row::parse(&image).ok();
            if let Some(Deletion::Key(key)) =
                row.and_then(|row| subject.rule.templates()[template].render(&row))
            {
                stored.entry(key).or_default().push(version);
            }
        }
        stored.values_mut().for_each(|versions| versions.sort());
        Some(stored)
    }

    /// Is the version of each that of one of its rows? `None`: it cannot be said, or it has none.
    async fn compare(
        &mut self,
        subject: &Subject,
        group: &[&Candidate],
        seen: &[Option<Seen>],
        stored: &Versions,
    ) -> anyhow::Result<Vec<Option<bool>>> {
        let mut same = vec![None; group.len()];
        let (mut places, mut left, mut right) = (Vec::new(), Vec::new(), Vec::new());
        for (n, (candidate, seen)) in group.iter().zip(seen).enumerate() {
            let (Some(Seen::Version(version)), Some(rows)) = (seen, stored.get(&candidate.key))
            else {
                continue;
            };
            for row in rows.iter().flatten() {
                if row == version {
                    same[n] = Some(true); // spelt alike; most are
                } else {
                    places.push(n);
                    left.push(version.as_str());
                    right.push(row.as_str());
                }
            }
        }
        if places.is_empty() {
            return Ok(same);
        }
        for (n, is_same) in
            places.into_iter().zip(self.reader.same(&subject.version_type, &left, &right).await?)
        {
            same[n] = match (same[n], is_same) {
                (Some(true), _) | (_, Some(true)) => Some(true),
                (known, new) => known.or(new),
            };
        }
        Ok(same)
    }

    /// What is cached under these keys, for a comparison with what an application would store.
    pub(crate) async fn raw(&self, keys: &[&str]) -> anyhow::Result<Vec<Option<Vec<u8>>>> {
        let mut values = vec![None; keys.len()];
        let each = |at: usize, cached| {
            if let Cached::Text(value) = cached {
                values[at] = without_lease(&value).map(<[u8]>::to_vec);
            }
        };
        self.sink.values(keys, None, each).await.context(RIGHTS)?;
        Ok(values)
    }
}
