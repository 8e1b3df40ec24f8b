//! `unstale explain`: the keys that a change of a row deletes.

use anyhow::{Context as _, bail};

use crate::change::Row;
use crate::cli::Explain;
use crate::config::Config;
use crate::deletion::Deletion;
use crate::pg::{Postgres, watches};
use crate::rule::Rule;
use crate::visible;

/// Prints one key a line.
///
/// # Errors
/// If the table is not watched, or a column is named that no template has.
pub async fn run(config: &Config, args: &Explain) -> anyhow::Result<()> {
    let mut connection = super::connect(&Postgres::new(config.database_source()?)?).await?;
    let table = super::full_name(&mut connection, &args.table).await?;
    let watched = watches::load(&mut connection)
        .await?
        .into_iter()
        .find(|watched| watched.table == table && !watched.ended);
    let watched = watched.with_context(|| {
        format!("{table} is not watched; call unstale.watch() for it, or list it as a [[watch]] and run `unstale apply`")
    })?;
    let rule = Rule::of(&watched)?;
    super::print(explain(&rule, &args.columns)?.as_bytes())
}

fn explain(rule: &Rule, columns: &[(String, String)]) -> anyhow::Result<String> {
    let row =
        Row(columns.iter().map(|(name, value)| (name.into(), Some(Some(value.into())))).collect());
    if let Some((unknown, _)) = columns.iter().find(|(name, _)| !rule.columns().contains(name)) {
        bail!(
            "no key of {} depends on {unknown}; its keys are made of {}",
            rule.table,
            rule.columns_in_words()
        );
    }
    let mut text = String::new();
    for deletion in rule.row(&row) {
        match deletion {
            Deletion::Key(key) => text += &format!("{}\n", visible::line(&key)),
            Deletion::Pattern(pattern) => {
                text += &format!(
                    "{}    (one of these: give {})\n",
                    visible::line(&pattern),
                    visible::line(&missing(rule, &row))
                );
            }
        }
    }
    Ok(text)
}

fn missing(rule: &Rule, row: &Row<'_>) -> String {
    let missing: Vec<_> = rule
        .columns()
        .iter()
        .filter(|column| row.value(column).is_none())
        .map(|column| format!("{column}=..."))
        .collect();
    missing.join(" ")
}

#[cfg(test)]
mod tests {
    use crate::watched::Watched;

    use super::*;

    fn rule() -> Rule {
        Rule::of(&Watched::of(1, 1, "public.users", &["user:{id}", "by:{email}", "users:count"]))
            .expect("a rule")
    }

    #[test]
    fn it_prints_a_key_a_line_and_says_which_column_is_missing() {
        let text = explain(&rule(), &[("id".into(), "42".into())]).expect("known columns");
        assert_eq!(text, "user:42\nby:*    (one of these: give email=...)\nusers:count\n");
    }

    #[test]
    fn a_column_that_no_template_has_is_refused_with_those_there_are() {
        let error =
            explain(&rule(), &[("name".into(), "x".into())]).expect_err("unknown").to_string();
        assert!(error.contains("name") && error.contains("id, email"), "{error}");
    }
}
