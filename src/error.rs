//! How an error leaves the process: as one line, and as an exit code.
//!
//! The codes are part of the interface: 0 done, 1 failed or unhealthy, 2 usage or configuration, 3
//! the schema is newer than this binary. A supervisor may restart after 1; 2 and 3 need a person.

use crate::{config, pg, sink, visible};

/// The exit code for an error: the first cause that has one decides, all others are 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let code = |cause: &(dyn std::error::Error + 'static)| {
        let is_redis_s =
            matches!(cause.downcast_ref(), Some(sink::Error::File { .. } | sink::Error::Url(_)));
        let is_postgres_s = matches!(cause.downcast_ref(), Some(pg::Error::Url(_)));
        if cause.is::<config::Error>() || is_redis_s || is_postgres_s {
            Some(2)
        } else if matches!(cause.downcast_ref(), Some(pg::Error::SchemaNewer { .. })) {
            Some(3)
        } else {
            None
        }
    };
    error.chain().find_map(code).unwrap_or(1)
}

/// The error with its causes, each once.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let database = cause.downcast_ref::<pg::Error>();
        let words = database.map_or_else(|| cause.to_string(), pg::Error::in_full);
        // Several problems of a configuration are several lines; each problem is visible as it is.
        let words =
            if cause.is::<config::Error>() { words } else { visible::line(&words).into_owned() };
        if !line.ends_with(&words) {
            line = if line.is_empty() { words } else { format!("{line}: {words}") };
        }
        if database.is_some() || cause.is::<config::Error>() {
            break; // in full
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;

    #[test]
    fn an_error_keeps_its_code_under_any_context() {
        let configuration = anyhow::Error::new(config::Error::NoDatabaseUrl);
        let newer = pg::Error::SchemaNewer { found: 7, known: 5 };
        let newer = Err::<(), _>(newer).context("migrate").context("start");
        assert_eq!(exit_code(&configuration.context("start")), 2);
        assert_eq!(exit_code(&newer.expect_err("newer")), 3);
        assert_eq!(exit_code(&anyhow!("the link broke").context("run")), 1);
    }
}
