//! `unstale.change_log`: what a sweep could not find, and what is said nowhere else.
//!
//! Ids and commit order differ, so the reader keeps no last id. It keeps the snapshot of its last
//! reading: a row is new if its transaction had not ended then, and has now. That is one of those
//! that were open in it, or one of after it. So each row is read once, however long its transaction
//! was open, and a transaction that stays open makes no reading longer. Xids that are still to come
//! are of a dump from another cluster: they are left alone.

use sqlx::Row;
use sqlx::postgres::PgConnection;

use super::Error;
use crate::watermark::{LogPlace, Snapshot};

/// A page ends when it has so many bytes of changes. After small ones there may come packed ones,
/// of 7 kB and hundreds of keys each.
const PAGE_BYTES: usize = 256 << 10;

/// Rows of a page, at the least and at the most. PostgreSQL looks at as many, so they are few where
/// changes are long; and many where they are short, because each page waits for a busy machine's
/// processors.
const PAGE_ROWS: std::ops::RangeInclusive<usize> = 32..=4096;

/// Reads what is said nowhere else, page by page.
#[derive(Debug)]
pub struct Reader {
    seen: Snapshot,
    rows: usize,             // of a page
    open: Option<LogPlace>,  // where the pages of the transactions that were open go on
    after: Option<LogPlace>, // where those of later ones do
    next: Option<Snapshot>,  // what will have been seen after the last page
}

/// A page.
#[derive(Debug, PartialEq, Eq)]
pub struct Page {
    /// What NOTIFY would have said.
    pub changes: Vec<String>,
    /// Ask again.
    pub more: bool,
}

impl Reader {
    /// Of what has not ended yet. LISTEN is active: what has ended is the sweep's business.
    ///
    /// # Errors
    /// [`Error::Statement`].
    pub async fn new(connection: &mut PgConnection) -> Result<Self, Error> {
        let row = sqlx::query("select pg_current_snapshot()::text")
            .fetch_one(connection)
            .await
            .map_err(Error::of("taking a snapshot"))?;
        Ok(Self {
            seen: parse_snapshot(row.get(0))?,
            rows: *PAGE_ROWS.start(),
            open: None,
            after: None,
            next: None,
        })
    }

    /// What had ended when it was last read.
    #[must_use]
    pub fn seen(&self) -> &Snapshot {
        &self.seen
    }

    /// The next page. After one without more, everything that had been committed before it was
    /// asked for has been read.
    ///
    /// # Errors
    /// [`Error::Statement`].
    pub async fn page(&mut self, connection: &mut PgConnection) -> Result<Page, Error> {
        let (open_xid, open_id) = self.open.unwrap_or((0, 0));
        let (after_xid, after_id) = self.after.unwrap_or((self.seen.xmax, 0));
        let rows = sqlx::query(
            "select change, xid, id, was_open from unstale.read_log($1::text[]::xid8[], $2::text::xid8, $3, $4::text::xid8, $5, $6, $7)",
        )
        .bind(self.seen.open.iter().map(ToString::to_string).collect::<Vec<_>>())
        .bind(open_xid.to_string())
        .bind(open_id)
        .bind(after_xid.to_string())
        .bind(after_id)
        .bind(i64::try_from(self.rows).unwrap_or(i64::MAX))
        .bind(i64::try_from(PAGE_BYTES).unwrap_or(i64::MAX))
        .fetch_all(connection)
        .await
        .map_err(Error::of("reading the log"))?;

        let mut changes = Vec::with_capacity(rows.len());
        let (mut count, mut bytes) = ([0, 0], [0, 0]);
        for row in &rows {
            let Some(xid) = row.get::<Option<String>, _>(1) else {
                // The first of the pages: a row that it does not see is read again, one that it
                // sees is in these pages.
                self.next.get_or_insert(parse_snapshot(row.get(0))?);
                continue;
            };
            let was_open: bool = row.get(3);
            let change: String = row.get(0);
            count[usize::from(was_open)] += 1;
            bytes[usize::from(was_open)] += change.len();
            *(if was_open { &mut self.open } else { &mut self.after }) =
                Some((parse_xid(&xid)?, row.get(2)));
            changes.push(change);
        }
        // The server counts the bytes of its own encoding, which are at most twice as many as ours.
        let more = count.iter().any(|&rows| rows >= self.rows) // more than that have one place
            || bytes.iter().any(|&bytes| bytes >= PAGE_BYTES / 2);
        if !more && let Some(next) = self.next.take() {
            (self.open, self.after, self.seen) = (None, None, next);
        }
        if let Some(average) = bytes.iter().sum::<usize>().checked_div(changes.len()) {
            self.rows = (PAGE_BYTES / average.max(1)).clamp(*PAGE_ROWS.start(), *PAGE_ROWS.end());
        }
        Ok(Page { changes, more })
    }
}

/// A snapshot as PostgreSQL writes it.
///
/// # Errors
/// [`Error::Unsuitable`].
pub fn parse_snapshot(text: &str) -> Result<Snapshot, Error> {
    text.parse().map_err(|_| {
        Error::Unsuitable(format!("PostgreSQL wrote a snapshot that cannot be read: {text}"))
    })
}

fn parse_xid(text: &str) -> Result<u64, Error> {
    text.parse().map_err(|_| {
        Error::Unsuitable(format!("PostgreSQL wrote an xid that cannot be read: {text}"))
    })
}

/// A page of the logged changes that `done` does not see, announced or not, in the order (xid, id),
/// after the place `after`. Returns the changes and the place of the last.
///
/// # Errors
/// [`Error::Statement`].
pub async fn page(
    connection: &mut PgConnection,
    done: &Snapshot,
    after: Option<LogPlace>,
    rows: i64,
) -> Result<(Vec<String>, Option<LogPlace>), Error> {
    let (xid, id) = after.unwrap_or((done.xmin, 0));
    let rows = sqlx::query(
        // Every name with its schema: the code of a table's owner ran in this session (sweep.rs).
        "select change, xid, id from unstale.log_since($3::pg_catalog.text::pg_catalog.pg_snapshot, $1::pg_catalog.text::pg_catalog.xid8, $2, $4)",
    )
    .bind(xid.to_string())
    .bind(id)
    .bind(done.to_string())
    .bind(rows)
    .fetch_all(connection)
    .await
    .map_err(Error::of("reading the log"))?;
    let place = |row: &sqlx::postgres::PgRow| Ok((parse_xid(row.get(1))?, row.get(2)));
    let last = rows.last().map(place).transpose()?;
    Ok((rows.iter().map(|row| row.get(0)).collect(), last))
}

/// Empties what of the log every instance has done, a replay window ago; instances that are
/// forgotten do not count.
///
/// # Errors
/// [`Error::Statement`].
pub async fn rotate(connection: &mut PgConnection) -> Result<(), Error> {
    sqlx::query("select unstale.rotate_log()")
        .execute(connection)
        .await
        .map_err(Error::of("emptying the log"))?;
    Ok(())
}
