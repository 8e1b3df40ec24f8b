//! `unstale migrate`: applies the embedded migrations, and makes the watches' generated code anew.

use crate::config::Config;
use crate::pg::{Postgres, migrate};

/// Applies what is missing or differs, and says each step as it is done.
///
/// # Errors
/// Without `DATABASE_URL`, if the schema is newer than this program or belongs to somebody else, or
/// what the server says.
pub async fn run(config: &Config) -> anyhow::Result<()> {
    let mut connection = Postgres::new(config.database_source()?)?.connect().await?;
    let migrated = migrate::migrate(&mut connection).await?;
    for name in &migrated.applied {
        super::print(format!("applied {name}\n").as_bytes())?;
    }
    for outdated in &migrated.outdated {
        let said = if migrate::regenerate(&mut connection, outdated).await? {
            format!("triggers of {} made anew\n", outdated.table)
        } else {
            format!(
                "triggers of {} are left as they are, and work: the table is in use. Run this again\n",
                outdated.table
            )
        };
        super::print(said.as_bytes())?;
    }
    if migrated.applied.is_empty() && migrated.outdated.is_empty() {
        super::print(
            format!("nothing to do: the schema is at version {}\n", migrate::known_version())
                .as_bytes(),
        )?;
    }
    Ok(())
}
