//! Rows of watched tables for an audit, with their versions, and whether two versions are the same.
//!
//! Rows come through `unstale.audit_N()`, which runs as the table's owner. As for a page of the
//! sweep, its transaction is read-only and never commits, and a session in which it failed is
//! replaced (sweep.rs). What is cached is shown to another session, in which no code of an owner
//! has run.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use super::sweep::{PATIENCE, Session, in_time};
use super::{Error, Postgres};

/// How long a statement may take, if nobody else is kept waiting.
pub const TIMEOUT: Duration = Duration::from_secs(60);

/// What an audit must know of a watch in force, beside its rule.
#[derive(Debug, Clone)]
pub struct Table {
    /// `unstale.watch.id`.
    pub watch: i32,
    /// The types of the columns that its templates name, in the order in which they first appear.
    pub column_types: Vec<String>,
    /// The type of its version.
    pub version_type: Option<String>,
    /// It can say which rows changed last.
    pub has_stamp: bool,
    /// Blocks of its largest partition.
    pub blocks: i64,
    /// Why it cannot be audited.
    pub unauditable: Option<String>,
}

/// Which rows.
#[derive(Debug, Clone)]
pub enum Rows<'a> {
    /// Those in so many blocks from this one on.
    Blocks(i64, i64),
    /// So many that were stamped last.
    Recent(i64),
    /// Those with the columns of a template (its place in the watch) as in one of these JSON
    /// objects.
    Like(usize, &'a [String]),
}

/// Rows as `unstale.row_N()` writes them, each with its version; `None`: NULL, or too long to be
/// said.
pub type Found = Vec<(String, Option<String>)>;

/// See the module.
pub struct Reader {
    postgres: Postgres,
    session: Session,
    clean: Option<i32>, // the watch whose code alone has run in the session
    plain: PgConnection,
    timeout: Duration, // of a statement that runs code of an owner
}

impl Reader {
    /// Connects. The rows of a question are there within `timeout`, or it fails.
    ///
    /// # Errors
    /// [`Error::Connect`].
    pub async fn open(postgres: Postgres, timeout: Duration) -> Result<Self, Error> {
        let session = Session::open(&postgres, timeout).await?;
        let plain = in_time(TIMEOUT, postgres.connect()).await?;
        Ok(Self { postgres, session, clean: None, plain, timeout })
    }

    /// The watches in force.
    ///
    /// # Errors
    /// [`Error::Statement`].
    pub async fn tables(&mut self) -> Result<Vec<Table>, Error> {
        let sql = "select watch, column_types, version_type, has_stamp, blocks, unauditable from unstale.audit_tables()";
        let asked = sqlx::query(sql).fetch_all(&mut self.plain);
        let rows = in_time(TIMEOUT, async {
            asked.await.map_err(Error::of("reading what is to be audited"))
        })
        .await?;
        let table = |row: &sqlx::postgres::PgRow| Table {
            watch: row.get(0),
            column_types: row.get(1),
            version_type: row.get(2),
            has_stamp: row.get(3),
            blocks: row.get(4),
            unauditable: row.get(5),
        };
        Ok(rows.iter().map(table).collect())
    }

    /// The connection in which no owner's code runs.
    pub fn plain(&mut self) -> &mut PgConnection {
        &mut self.plain
    }

    /// Reads rows of a watch, at most `most` for one partition of the question. The session is good
    /// for another table afterwards.
    ///
    /// # Errors
    /// [`Error`]; if no new session is to be had, also for the next call.
    pub async fn rows(&mut self, watch: i32, rows: &Rows<'_>, most: i64) -> Result<Found, Error> {
        let result = self.try_rows(watch, rows, most).await;
        if let Err(error) = &result {
            self.session.replace(&self.postgres, matches!(error, Error::Timeout(_))).await?;
            self.clean = None;
        }
        result
    }

    async fn try_rows(&mut self, watch: i32, rows: &Rows<'_>, most: i64) -> Result<Found, Error> {
        if self.clean != Some(watch) {
            self.session.clean().await?;
            self.clean = Some(watch);
        }
        let (how, place, size, wanted): (i32, i64, i64, &[String]) = match rows {
            Rows::Blocks(first, count) => (0, *first, *count, &[]),
            Rows::Recent(count) => (-1, 0, *count, &[]),
            Rows::Like(template, wanted) => {
                (i32::try_from(template + 1).unwrap_or(i32::MAX), 0, most, wanted)
            }
        };
        self.session.run("begin isolation level read committed read only").await?;
        let sql = format!(
            "select a.image, a.version from unstale.audit_{watch}($1, $2, $3, $4::pg_catalog.text[]::pg_catalog.json[]) a"
        );
        let query = sqlx::query(AssertSqlSafe(sql))
            .persistent(false)
            .bind(how)
            .bind(place)
            .bind(size)
            .bind(wanted);
        let asked = query.fetch_all(&mut self.session.connection);
        let failed = || Error::of("reading the rows of a table");
        let rows =
            in_time(self.timeout + PATIENCE, async { asked.await.map_err(failed()) }).await?;
        self.session.run("rollback").await?;
        // try_get: the code of the table's owner may have set another client_encoding.
        let found = |row: &sqlx::postgres::PgRow| {
            Ok((
                row.try_get(0)?,
                row.try_get::<Option<String>, _>(1)?.and_then(|json| text_of(&json)),
            ))
        };
        rows.iter().map(found).collect::<Result<_, sqlx::Error>>().map_err(failed())
    }

    /// Are these the same, as the version's type compares? `None`: the cached one is not of the
    /// type.
    ///
    /// # Errors
    /// [`Error::Statement`].
    pub async fn same(
        &mut self,
        version_type: &str,
        cached: &[&str],
        stored: &[&str],
    ) -> Result<Vec<Option<bool>>, Error> {
        let query = sqlx::query("select unstale.same_versions($1, $2, $3)")
            .bind(version_type)
            .bind(cached)
            .bind(stored);
        let asked = query.fetch_one(&mut self.plain);
        let row = in_time(TIMEOUT, async { asked.await.map_err(Error::of("comparing versions")) })
            .await?;
        Ok(row.get(0))
    }

    /// Notes what an audit has found of a watch.
    ///
    /// # Errors
    /// [`Error::Statement`].
    pub async fn save(
        &mut self,
        watch: i32,
        complete: bool,
        [compared, stale, unreadable]: [i64; 3],
    ) -> Result<(), Error> {
        let query =
            sqlx::query("select unstale.save_audit($1, $2, $3, $4, $5)").bind(watch).bind(complete);
        let saved = query.bind(compared).bind(stale).bind(unreadable).execute(&mut self.plain);
        in_time(TIMEOUT, async {
            saved.await.map_err(Error::of("noting what the audit has found"))
        })
        .await?;
        Ok(())
    }
}

/// A JSON string's text; `None` for null, and for `true`, which stands for a value that is too
/// long.
fn text_of(json: &str) -> Option<String> {
    serde_json::from_str(json).ok()
}
