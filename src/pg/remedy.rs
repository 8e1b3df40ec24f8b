//! What to do about a connection that did not come about, or a statement that was refused: the
//! right thing for each cause, because "correct `DATABASE_URL`, or start the server" helps only
//! where that is the cause.

use super::tls;

/// In parentheses, after what could not be done; empty where there is nothing better than the
/// server's words.
pub(super) fn remedy(source: &sqlx::Error) -> &'static str {
    match source.as_database_error().and_then(|error| error.code()).as_deref() {
        Some("53300") => {
            " (a listener needs three connections, and `unstale check` two more: `alter role ... connection limit 5`, or a larger max_connections)"
        }
        _ => tls::remedy(source),
    }
}

/// A command, or where to look, for a connection that did not come about.
pub(super) fn command(source: &sqlx::Error) -> String {
    let hint = match source.as_database_error().and_then(|error| error.code()).as_deref() {
        Some("53300") => {
            "alter role unstale_listener connection limit 5; -- or a larger max_connections, or fewer other sessions"
        }
        Some("28P01") => "# correct user and password in DATABASE_URL",
        Some("28000") => {
            "# let pg_hba.conf take this user from this host, or correct the user in DATABASE_URL"
        }
        Some("3D000") => "# correct the name of the database in DATABASE_URL",
        Some(_) => "# see the server's log",
        None if matches!(source, sqlx::Error::Io(_)) => {
            "# correct DATABASE_URL, or start the server"
        }
        None => "# correct sslmode and the files of TLS in DATABASE_URL",
    };
    hint.to_owned()
}

/// What to paste, or where to look, for a statement that the server refuses.
pub(super) fn after_refusal(source: &sqlx::Error) -> String {
    let hint = match source.as_database_error().and_then(|error| error.code()).as_deref() {
        Some("42501") => {
            "psql \"$DATABASE_URL\" --set ON_ERROR_STOP=1 --file config/roles.sql   # as the owner of the tables"
        }
        Some("25006") => {
            "# the server takes no writes: let DATABASE_URL lead to the primary, or let it write again"
        }
        Some("53100") => "# make room on the server's disk",
        Some("55P03" | "57014") => {
            "# somebody holds a lock: select * from pg_locks where not granted; then try again"
        }
        _ => "# see the server's log",
    };
    hint.to_owned()
}
