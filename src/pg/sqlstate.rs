//! From an SQLSTATE to what the listener does about it. Keep this list narrow.

/// What an error of a sweep's statement means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The connection, the server or a lock: the same statement may succeed later.
    Retry,
    /// This table cannot be read, now or later, without somebody's help.
    Table,
}

/// Classes 22 (data), 42 (missing or forbidden objects), 0A (unsupported), P0 (its owner's code)
/// and 57014 (a page took longer than a minute) are about the table; all else may pass.
#[must_use]
pub fn class(error: &sqlx::Error) -> Class {
    match error.as_database_error().and_then(|error| error.code()) {
        None if matches!(error, sqlx::Error::ColumnDecode { .. }) => Class::Table, // what its owner's code has made of it
        Some(code)
            if ["22", "42", "0A", "P0", "57014"].iter().any(|class| code.starts_with(class)) =>
        {
            Class::Table
        }
        _ => Class::Retry,
    }
}
