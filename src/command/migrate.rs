//! `unstale migrate`: applies the embedded migrations.

use crate::config::Config;
use crate::pg::{Postgres, migrate};

/// Applies what is missing and says what it was.
///
/// # Errors
/// Without `DATABASE_URL`, if the schema is newer than this program, or what the server says.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let applied = migrate::migrate(&Postgres::new(config.database_source()?)?).await?;
    let mut text = String::new();
    for name in &applied {
        text += &format!("applied {name}\n");
    }
    if applied.is_empty() {
        text += &format!("nothing to do: the schema is at version {}\n", migrate::known_version());
    }
    super::print(text.as_bytes())
}
