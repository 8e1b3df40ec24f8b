//! The application's tables, the keys that it caches, and what they should hold.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sqlx::{AssertSqlSafe, PgConnection, Row};

/// How an application treats `updated_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Column {
    /// Every write sets it.
    Kept,
    /// Updates leave it alone, or set an old time.
    Neglected,
    /// There is none.
    Missing,
}

/// A watched table. A row has an id, an email or none, and a version that no other write has used.
#[derive(Debug)]
pub(super) struct Table {
    /// In schema public.
    pub(super) name: &'static str,
    /// Rows have the ids 1 to this, and emails the same numbers.
    pub(super) ids: i32,
    /// Its `updated_at`.
    pub(super) column: Column,
    /// It is written, truncated and read as a whole: its rows share one claim, and there is a key
    /// over all of them.
    pub(super) whole: bool,
}

/// Everything that is written.
pub(super) const TABLES: [Table; 6] = [
    Table { name: "kept", ids: 1200, column: Column::Kept, whole: false },
    Table { name: "neglected", ids: 800, column: Column::Neglected, whole: false },
    Table { name: "plain", ids: 600, column: Column::Missing, whole: false },
    Table { name: "told", ids: 800, column: Column::Kept, whole: false },
    Table { name: "logged", ids: 600, column: Column::Missing, whole: false },
    Table { name: "small", ids: 40, column: Column::Kept, whole: true },
];

/// The id of a row of `kept` that only the end of a round writes.
pub(super) const MARKER: i32 = 0;

/// Tables and watches. `kept` is partitioned and counts only some columns; `neglected` has a stamp
/// without a zone; `told` is delivered by statement, and `logged` by the log.
pub(super) const SCHEMA: &str = "
    create table public.kept (id int primary key, email text, version bigint not null, note int default 0, updated_at timestamptz)
        partition by hash (id);
    create table public.kept_0 partition of public.kept for values with (modulus 2, remainder 0);
    create table public.kept_1 partition of public.kept for values with (modulus 2, remainder 1);
    create table public.neglected (id int primary key, email text, version bigint not null, note int default 0,
                                   updated_at timestamp default timezone('UTC', now()));
    create table public.plain (id int primary key, email text, version bigint not null, note int default 0);
    create table public.told (id int primary key, email text, version bigint not null, note int default 0, updated_at timestamptz);
    create table public.logged (id int primary key, email text, version bigint not null, note int default 0);
    create table public.small (id int primary key, email text, version bigint not null, note int default 0, updated_at timestamptz);
    create index on public.kept using hash (email);
    create index on public.neglected using hash (email);
    create index on public.plain using hash (email);
    create index on public.told using hash (email);
    create index on public.logged using hash (email);
    select unstale.watch('public.kept', keys => array['kept:{id}', 'kept:by-email:{email}'], only_columns => array['version']);
    select unstale.watch('public.neglected', keys => array['neglected:{id}', 'neglected:by-email:{email}']);
    select unstale.watch('public.plain', keys => array['plain:{id}', 'plain:by-email:{email}']);
    select unstale.watch('public.told', keys => array['told:{id}', 'told:by-email:{email}'], delivery => 'statement');
    select unstale.watch('public.logged', keys => array['logged:{id}', 'logged:by-email:{email}'], delivery => 'log');
    select unstale.watch('public.small', keys => array['small:{id}', 'small:by-email:{email}', 'small:all']);
";

/// What the watches of `neglected` and `told` change to, and back: other templates, and other
/// deliveries.
pub(super) const WATCHES: [&str; 5] = [
    "select unstale.watch('public.neglected', keys => array['neglected:noted:{note}:{id}', 'neglected:{id}', 'neglected:by-email:{email}'])",
    "select unstale.watch('public.neglected', keys => array['neglected:{id}', 'neglected:by-email:{email}'])",
    "select unstale.watch('public.told', keys => array['told:{id}', 'told:by-email:{email}'], delivery => 'log')",
    "select unstale.watch('public.told', keys => array['told:{id}', 'told:by-email:{email}'])",
    "select unstale.watch('public.told', keys => array['told:{id}', 'told:by-email:{email}'], delivery => 'statement')",
];

impl Table {
    /// The key of a row.
    pub(super) fn row_key(&self, id: i32) -> String {
        format!("{}:{id}", self.name)
    }

    /// The key of an email.
    pub(super) fn email_key(&self, email: &str) -> String {
        format!("{}:by-email:{email}", self.name)
    }

    /// The key over all rows, of a table that has one.
    pub(super) fn whole_key(&self) -> Option<String> {
        self.whole.then(|| format!("{}:all", self.name))
    }

    /// What to claim for a row.
    pub(super) fn row_claim(&self, id: i32) -> i64 {
        self.claim(if self.whole { 0 } else { 2 * i64::from(id) })
    }

    /// What to claim for an email.
    pub(super) fn email_claim(&self, number: i32) -> i64 {
        self.claim(if self.whole { 0 } else { 2 * i64::from(number) + 1 })
    }

    fn claim(&self, within: i64) -> i64 {
        let place =
            TABLES.iter().position(|table| table.name == self.name).expect("it is one of them");
        (i64::try_from(place).expect("there are few") << 32) + within
    }
}

/// The text of an email. Some are so long that a change does not fit into a NOTIFY.
pub(super) fn email(number: i32) -> String {
    let host = if number % 50 == 7 { "long.".repeat(1700) } else { String::new() };
    format!("e{number}@{host}example.org")
}

/// The number of an email.
pub(super) fn email_number(email: &str) -> i32 {
    let number = email
        .strip_prefix('e')
        .and_then(|rest| rest.split_once('@'))
        .and_then(|(number, _)| number.parse().ok());
    number.unwrap_or_else(|| panic!("not an email of ours: {email}"))
}

/// Rows of a table as they are read for the cache: id, email, version.
pub(super) type Rows = Vec<(i32, Option<String>, i64)>;

/// What to cache under the key of a row.
pub(super) fn row_value(rows: &Rows, id: i32) -> String {
    rows.iter().find(|row| row.0 == id).map_or("none".into(), |(.., version)| format!("v{version}"))
}

/// What to cache under the key of an email: everybody who has it.
pub(super) fn email_value(rows: &Rows, email: &str) -> String {
    let mut value = String::new();
    for (id, _, version) in rows.iter().filter(|row| row.1.as_deref() == Some(email)) {
        let _ = write!(value, "{id}=v{version} "); // to a String
    }
    if value.is_empty() { "none".into() } else { value }
}

/// What to cache under the key over all rows.
pub(super) fn whole_value(rows: &Rows) -> String {
    format!("{} rows, {}", rows.len(), rows.iter().map(|row| row.2).sum::<i64>())
}

/// The rows with one of these ids or emails.
pub(super) async fn read(
    connection: &mut PgConnection,
    table: &Table,
    ids: &[i32],
    emails: &[String],
) -> sqlx::Result<Rows> {
    let sql = format!(
        "select id, email, version from public.{} where id = any($1) or email = any($2) order by id",
        table.name
    );
    let rows = sqlx::query(AssertSqlSafe(sql)).bind(ids).bind(emails).fetch_all(connection).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// All rows.
pub(super) async fn read_all(connection: &mut PgConnection, table: &Table) -> sqlx::Result<Rows> {
    let sql = format!("select id, email, version from public.{} order by id", table.name);
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(connection).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect())
}

/// What every key that may be cached should hold.
pub(super) async fn truth(connection: &mut PgConnection) -> sqlx::Result<BTreeMap<String, String>> {
    let mut truth = BTreeMap::new();
    for table in &TABLES {
        let rows = read_all(connection, table).await?;
        let of_id: BTreeMap<i32, String> =
            rows.iter().map(|(id, _, version)| (*id, format!("v{version}"))).collect();
        let mut of_email: BTreeMap<&str, Rows> = BTreeMap::new();
        for row in &rows {
            of_email.entry(row.1.as_deref().unwrap_or_default()).or_default().push(row.clone());
        }
        for number in 0..=table.ids {
            truth.insert(
                table.row_key(number),
                of_id.get(&number).cloned().unwrap_or("none".into()),
            );
            let email = email(number);
            let value = email_value(of_email.get(email.as_str()).unwrap_or(&Rows::new()), &email);
            truth.insert(table.email_key(&email), value);
        }
        if let Some(key) = table.whole_key() {
            truth.insert(key, whole_value(&rows));
        }
    }
    Ok(truth)
}
