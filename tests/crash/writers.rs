//! The application's writers: everything that an application, an import or a person at a prompt may
//! do to a row.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::postgres::PgQueryResult;
use sqlx::{AssertSqlSafe, PgConnection, Row};
use tokio_util::sync::CancellationToken;

use super::random::Random;
use super::shared::{Held, Shared, now};
use super::tables::{Column, TABLES, Table, email, email_number};
use crate::support::wait::pace;

/// Whether a writer keeps its transactions short, or open across faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Haste {
    Short,
    /// For up to this long, with pauses between its statements.
    Long(Duration),
}

/// Writes until `stop`.
pub(super) async fn write(
    shared: Arc<Shared>,
    mut random: Random,
    haste: Haste,
    stop: CancellationToken,
) {
    let mut connection = None;
    while !stop.is_cancelled() {
        if connection.is_none() {
            connection = shared.connect(&stop).await;
        }
        let Some(sql) = &mut connection else { return };
        let mut transaction = Transaction {
            shared: &shared,
            held: Held::new(&shared),
            notes: Vec::new(),
            rows: 0,
            committing: false,
        };
        let ended = transaction.run(sql, &mut random, haste, &stop).await;
        if let Err(error) = ended {
            shared.excuse(&error);
            transaction.lost();
            connection = None;
        }
        pace(random.millis(5..60)).await;
    }
}

/// What a statement does to some rows.
#[derive(Debug, Clone, Copy)]
enum Verb {
    Update,
    /// Gives them other emails: their keys change.
    Rename,
    Insert,
    /// An import: inserts or overwrites, and says nothing of `updated_at`.
    Import,
    Delete,
    /// Changes nothing that is cached, but perhaps the stamp.
    Touch,
    Truncate,
}

/// What a statement does to `updated_at`.
#[derive(Debug, Clone, Copy)]
enum Stamp {
    Untouched,
    Clock,
    /// When the transaction began.
    Began,
    HourAgo,
    Null,
}

impl Stamp {
    fn choose(table: &Table, random: &mut Random) -> Self {
        match (table.column, random.below(100)) {
            (Column::Missing, _) => Self::Untouched,
            (Column::Kept, 0..65) => Self::Clock,
            (Column::Kept, 65..92) => Self::Began,
            (Column::Kept, 92..97) => Self::Untouched,
            (Column::Neglected, 0..85) => Self::Untouched,
            (Column::Neglected, 97..) => Self::Null,
            _ => Self::HourAgo,
        }
    }

    fn sql(self, table: &Table) -> Option<String> {
        let time = match self {
            Self::Untouched => return None,
            Self::Clock => "clock_timestamp()",
            Self::Began => "now()",
            Self::HourAgo => "now() - interval '1 hour'",
            Self::Null => "null",
        };
        Some(if table.name == "neglected" {
            format!("timezone('UTC', {time})")
        } else {
            time.to_owned()
        })
    }
}

struct Transaction<'a> {
    shared: &'a Shared,
    held: Held<'a>,
    /// For the journal: key, and what was done to it.
    notes: Vec<(String, String)>,
    rows: u64,
    committing: bool,
}

impl Transaction<'_> {
    async fn run(
        &mut self,
        sql: &mut PgConnection,
        random: &mut Random,
        haste: Haste,
        stop: &CancellationToken,
    ) -> sqlx::Result<()> {
        sqlx::query("begin").execute(&mut *sql).await?;
        for _ in 0..=random.below(3) {
            let undone = random.one_in(6);
            if undone || random.one_in(6) {
                sqlx::query("savepoint here").execute(&mut *sql).await?;
                let (notes, rows) = (self.notes.len(), self.rows);
                self.statement(sql, random).await?;
                if undone {
                    sqlx::query("rollback to here").execute(&mut *sql).await?;
                    self.notes.truncate(notes);
                    self.rows = rows;
                }
            } else {
                self.statement(sql, random).await?;
            }
            if let Haste::Long(longest) = haste {
                let pause = random.millis(50..longest.as_millis().try_into().expect("seconds"));
                let _ = stop.run_until_cancelled(pace(pause)).await; // either way it goes on
            }
        }
        let undone = random.one_in(8);
        self.committing = !undone;
        sqlx::query(if undone { "rollback" } else { "commit" }).execute(&mut *sql).await?;
        let tally = &self.shared.tally;
        if undone {
            tally.rolled_back.fetch_add(1, Ordering::Relaxed);
        } else {
            tally.committed.fetch_add(1, Ordering::Relaxed);
            tally.changes.fetch_add(self.rows, Ordering::Relaxed);
        }
        self.note(if undone { "rolled back" } else { "committed" });
        Ok(())
    }

    /// A fault ended it.
    fn lost(&mut self) {
        let tally = &self.shared.tally;
        tally.lost.fetch_add(1, Ordering::Relaxed);
        if self.committing {
            tally.undecided.fetch_add(1, Ordering::Relaxed);
        }
        self.note(if self.committing { "perhaps committed" } else { "lost before its commit" });
    }

    fn note(&mut self, outcome: &str) {
        self.shared.note(outcome, std::mem::take(&mut self.notes));
    }

    async fn statement(&mut self, sql: &mut PgConnection, random: &mut Random) -> sqlx::Result<()> {
        let table = match random.below(100) {
            0..35 => &TABLES[0],
            35..53 => &TABLES[1],
            53..66 => &TABLES[2],
            66..80 => &TABLES[3],
            80..92 => &TABLES[4],
            _ => &TABLES[5],
        };
        let verb = match random.below(100) {
            0..10 if table.whole => Verb::Truncate,
            0..55 => Verb::Update,
            55..68 => Verb::Rename,
            68..78 => Verb::Insert,
            78..85 => Verb::Import,
            85..94 => Verb::Delete,
            _ => Verb::Touch,
        };
        let stamp = Stamp::choose(table, random);
        let rows = self.claim(sql, table, batch(table, random), verb, random).await?;
        if rows.is_empty() {
            return Ok(()); // somebody else is at it
        }
        let version = self.shared.version();
        let (ids, emails): (Vec<i32>, Vec<Option<String>>) =
            rows.iter().map(|row| (row.id, row.new.map(email))).unzip();
        let query = sqlx::query(AssertSqlSafe(verb.sql(table, stamp)));
        let query = match verb {
            Verb::Truncate => query,
            Verb::Delete | Verb::Touch => query.bind(ids),
            Verb::Update => query.bind(ids).bind(version),
            Verb::Rename | Verb::Insert | Verb::Import => {
                query.bind(ids).bind(version).bind(emails)
            }
        };
        let done = query.execute(&mut *sql).await?;
        self.did(table, &rows, &done, format!("{verb:?} v{version} {stamp:?} at {}, ", now()));
        Ok(())
    }

    fn did(&mut self, table: &Table, rows: &[Claimed], done: &PgQueryResult, what: String) {
        self.rows += done.rows_affected();
        let emails = rows
            .iter()
            .flat_map(|row| [row.old, row.new])
            .flatten()
            .map(|number| table.email_key(&email(number)));
        let keys =
            rows.iter().map(|row| table.row_key(row.id)).chain(emails).chain(table.whole_key());
        self.notes.extend(keys.map(|key| (key, what.clone())));
    }

    /// Claims as many of these rows as it can have, with the emails that they have and shall have.
    async fn claim(
        &mut self,
        sql: &mut PgConnection,
        table: &Table,
        mut ids: Vec<i32>,
        verb: Verb,
        random: &mut Random,
    ) -> sqlx::Result<Vec<Claimed>> {
        ids.retain(|id| self.held.take(table.row_claim(*id)));
        self.held.lock(&mut *sql).await?;
        let emails = format!("select id, email from public.{} where id = any($1)", table.name);
        let old = sqlx::query(AssertSqlSafe(emails)).bind(&ids).fetch_all(&mut *sql).await?;
        let mut old: std::collections::HashMap<i32, Option<i32>> = old
            .iter()
            .map(|row| (row.get(0), row.get::<Option<&str>, _>(1).map(email_number)))
            .collect();
        let mut rows = Vec::with_capacity(ids.len());
        for id in ids {
            let wanted = match verb {
                Verb::Rename | Verb::Insert | Verb::Import => {
                    Some(random.number(table.ids)).filter(|_| !random.one_in(12))
                }
                _ => None,
            };
            let row = Claimed { id, old: old.remove(&id).flatten(), new: wanted };
            if [row.old, row.new]
                .into_iter()
                .flatten()
                .all(|number| self.held.take(table.email_claim(number)))
            {
                rows.push(row);
            }
        }
        self.held.lock(&mut *sql).await?;
        Ok(rows)
    }
}

/// A row that is ours to write, and its emails.
struct Claimed {
    id: i32,
    old: Option<i32>,
    new: Option<i32>,
}

impl Verb {
    /// $1 are the ids, $2 is the version, $3 are the emails.
    fn sql(self, table: &Table, stamp: Stamp) -> String {
        let name = table.name;
        let stamp = stamp.sql(table);
        let set = stamp.as_ref().map(|stamp| format!(", updated_at = {stamp}")).unwrap_or_default();
        let (column, value) =
            stamp.map(|stamp| (", updated_at", format!(", {stamp}"))).unwrap_or_default();
        let new = "unnest($1::int[], $3::text[]) new(id, email)";
        let insert = format!(
            "insert into public.{name} (id, email, version{column}) select id, email, $2::bigint{value} from {new}"
        );
        match self {
            Self::Update => {
                format!("update public.{name} set version = $2{set} where id = any($1)")
            }
            Self::Rename => {
                format!(
                    "update public.{name} t set email = new.email, version = $2::bigint{set} from {new} where t.id = new.id"
                )
            }
            Self::Insert => format!("{insert} on conflict (id) do nothing"),
            Self::Import => format!(
                "{insert} on conflict (id) do update set email = excluded.email, version = excluded.version"
            ),
            Self::Delete => format!("delete from public.{name} where id = any($1)"),
            Self::Touch => {
                format!("update public.{name} set note = note + 1{set} where id = any($1)")
            }
            Self::Truncate => format!("truncate public.{name}"),
        }
    }
}

/// Ids of neighbours: mostly one, at times more than the listener can hold in its batch.
fn batch(table: &Table, random: &mut Random) -> Vec<i32> {
    let length = match random.below(100) {
        _ if table.whole => table.ids,
        0..55 => 1,
        55..88 => random.number(8),
        88..98 => random.number(100),
        _ => 300 + random.number(400),
    };
    let first = random.number(table.ids);
    (first..=table.ids.min(first + length - 1)).collect()
}
