//! `unstale apply`: makes the database's watches equal the configuration's `[[watch]]` list, after
//! printing the plan.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sqlx::postgres::PgConnection;

use crate::cli::Apply;
use crate::config::{Config, Watch};
use crate::pg::Postgres;
use crate::pg::watches;
use crate::visible::line;
use crate::watched::{Spec, Watched};

/// One difference between the configuration and the database.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Add { table: String, spec: Spec },
    Change { table: String, spec: Spec, from: Spec },
    Remove(Watched),
}

/// Prints the plan, and carries it out unless `--dry-run`.
///
/// # Errors
/// Before anything is changed if the list is empty, a table is missing or a watch would be refused;
/// later if a lock is not to be had. What was done until then stays, and another run does the rest.
pub async fn run(config: &Config, args: &Apply) -> anyhow::Result<()> {
    let mut connection = super::connect(&Postgres::new(config.database_source()?)?).await?;
    if config.watches.is_empty() {
        bail!(
            "the configuration has no [[watch]]; list the tables there, or call unstale.watch() in SQL and leave `apply` alone"
        );
    }
    let wanted = resolve(&mut connection, &config.watches).await?;
    let known = watches::load(&mut connection)
        .await?
        .into_iter()
        .filter(|watched| !watched.ended)
        .collect();
    let (plan, unchanged) = plan(wanted, known);
    if args.sql {
        return super::print(in_sql(&mut connection, &plan, unchanged).await?.as_bytes());
    }
    let mut text: String = plan.iter().map(in_words).collect();
    let _ = writeln!(text, "{}", summary(&plan, unchanged));
    super::print(text.as_bytes())?;
    if args.dry_run {
        return super::print(b"dry run: nothing was changed\n");
    }
    for step in &plan {
        carry_out(&mut connection, step).await?;
    }
    Ok(())
}

/// The full names of the tables, each watch checked by the database.
async fn resolve(
    connection: &mut PgConnection,
    configured: &[Watch],
) -> anyhow::Result<Vec<(String, Spec)>> {
    let mut wanted = Vec::new();
    for watch in configured {
        let table = watches::full_name(connection, &watch.table).await?;
        let table = table.with_context(|| {
            format!(
                "[[watch]] table = \"{}\": there is no such table; name it with its schema",
                watch.table
            )
        })?;
        let spec = Spec {
            keys: watch.keys.clone(),
            delivery: watch.delivery.as_str().to_owned(),
            updated_at: watch.updated_at.clone(),
            only_columns: watch.only_columns.clone(),
            max_ttl: watch.max_ttl,
            guarantee: watch.guarantee.clone(),
            reason: watch.reason.clone(),
            version: watch.version.clone(),
            version_path: watch.version_path.clone(),
            any_prefix: watch.any_prefix,
        };
        watches::check(connection, &table, &spec)
            .await
            .map_err(|error| anyhow::anyhow!("{table}: {}", error.in_full()))?;
        if wanted.iter().any(|(known, _)| *known == table) {
            bail!("[[watch]] lists {table} twice; put all its keys into one");
        }
        wanted.push((table, spec));
    }
    Ok(wanted)
}

fn plan(wanted: Vec<(String, Spec)>, known: Vec<Watched>) -> (Vec<Step>, usize) {
    let mut changes = Vec::new();
    let mut unchanged = 0;
    let mut known = known;
    for (table, spec) in wanted {
        match known
            .iter()
            .position(|watched| watched.table == table)
            .map(|at| known.swap_remove(at))
        {
            None => changes.push(Step::Add { table, spec }),
            Some(watched) if watched.spec == Spec { any_prefix: false, ..spec.clone() } => {
                unchanged += 1
            }
            Some(watched) => changes.push(Step::Change { table, spec, from: watched.spec }),
        }
    }
    known.sort_by(|a, b| a.table.cmp(&b.table));
    changes.extend(known.into_iter().map(Step::Remove));
    (changes, unchanged)
}

fn in_words(step: &Step) -> String {
    let list = |keys: &[String]| line(&keys.join(", ")).into_owned();
    let column = |column: &Option<String>| {
        column.as_deref().map_or("none".into(), |column| line(column).into_owned())
    };
    match step {
        Step::Add { table, spec } => {
            format!(
                "+ {} will be watched\n      keys      {}\n      delivery  {}\n",
                line(table),
                list(&spec.keys),
                line(&spec.delivery)
            )
        }
        Step::Remove(watched) => format!("- {} will no longer be watched\n", line(&watched.table)),
        Step::Change { table, spec, from } => {
            let mut text = format!("~ {} will be watched differently\n", line(table));
            for key in from.keys.iter().filter(|key| !spec.keys.contains(key)) {
                let _ = writeln!(text, "      - key {}", line(key));
            }
            for key in spec.keys.iter().filter(|key| !from.keys.contains(key)) {
                let _ = writeln!(text, "      + key {}", line(key));
            }
            if from.delivery != spec.delivery {
                let _ = writeln!(
                    text,
                    "      delivery  {} -> {}",
                    line(&from.delivery),
                    line(&spec.delivery)
                );
            }
            if from.updated_at != spec.updated_at {
                let _ = writeln!(
                    text,
                    "      updated_at  {} -> {}",
                    column(&from.updated_at),
                    column(&spec.updated_at)
                );
            }
            if from.only_columns != spec.only_columns {
                let columns = |columns: &Option<Vec<String>>| {
                    columns.as_ref().map_or("all".into(), |columns| list(columns))
                };
                let _ = writeln!(
                    text,
                    "      only_columns  {} -> {}",
                    columns(&from.only_columns),
                    columns(&spec.only_columns)
                );
            }
            if from.max_ttl != spec.max_ttl {
                let ttl = |ttl: Option<Duration>| {
                    ttl.map_or("any".into(), |ttl| humantime::format_duration(ttl).to_string())
                };
                let _ =
                    writeln!(text, "      max_ttl  {} -> {}", ttl(from.max_ttl), ttl(spec.max_ttl));
            }
            let policy = [
                ("guarantee", &from.guarantee, &spec.guarantee),
                ("reason", &from.reason, &spec.reason),
                ("version", &from.version, &spec.version),
                ("version_path", &from.version_path, &spec.version_path),
            ];
            for (name, before, now) in policy.into_iter().filter(|(_, before, now)| before != now) {
                let _ = writeln!(text, "      {name}  {} -> {}", column(before), column(now));
            }
            text
        }
    }
}

/// The plan as SQL: each step in words, as a comment, and below it the statements of its functions
/// and triggers.
async fn in_sql(
    connection: &mut PgConnection,
    plan: &[Step],
    unchanged: usize,
) -> anyhow::Result<String> {
    let (mut text, mut added) = (String::new(), 0);
    for step in plan {
        added += i32::from(matches!(step, Step::Add { .. }));
        for line in in_words(step).lines() {
            let _ = writeln!(text, "-- {line}");
        }
        let statements = match step {
            Step::Add { table, spec } | Step::Change { table, spec, .. } => {
                watches::preview(connection, table, spec, added).await?
            }
            Step::Remove(watched) => vec![watches::unwatch_sql(watched)],
        };
        for statement in statements {
            let _ = writeln!(text, "{statement}");
        }
        text.push('\n');
    }
    let _ = writeln!(text, "-- {}\n-- dry run: nothing was changed", summary(plan, unchanged));
    Ok(text)
}

fn summary(plan: &[Step], unchanged: usize) -> String {
    let count = |kind: fn(&Step) -> bool| plan.iter().filter(|step| kind(step)).count();
    format!(
        "{} to add, {} to change, {} to remove, {unchanged} unchanged",
        count(|step| matches!(step, Step::Add { .. })),
        count(|step| matches!(step, Step::Change { .. })),
        count(|step| matches!(step, Step::Remove(_))),
    )
}

async fn carry_out(connection: &mut PgConnection, step: &Step) -> anyhow::Result<()> {
    let (table, done) = match step {
        Step::Add { table, spec } | Step::Change { table, spec, .. } => {
            (table, watches::watch(connection, table, spec).await)
        }
        Step::Remove(watched) => (
            &watched.table,
            watches::unwatch(connection, watched).await.map(|()| "removed".to_owned()),
        ),
    };
    let done = done.map_err(|error| {
        anyhow::anyhow!("{table}: {}; run `unstale apply` again for the rest", error.in_full())
    })?;
    super::print(format!("{}: {}\n", line(table), line(&done)).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(keys: &[&str]) -> Spec {
        let keys = keys.iter().map(ToString::to_string).collect();
        Spec {
            keys,
            delivery: "row".into(),
            updated_at: Some("updated_at".into()),
            ..Spec::default()
        }
    }

    fn watched(table: &str, keys: &[&str]) -> Watched {
        Watched {
            id: 1,
            rev: 1,
            table: table.into(),
            ended: false,
            sweepable: true,
            audited: None,
            spec: spec(keys),
        }
    }

    #[test]
    fn a_plan_has_what_differs_and_nothing_else() {
        let wanted = vec![
            ("public.a".to_owned(), spec(&["a:{id}"])),
            ("public.b".to_owned(), spec(&["b:{id}", "bs"])),
            ("public.c".to_owned(), spec(&["c"])),
        ];
        let known = vec![
            watched("public.b", &["b:{id}", "old"]),
            watched("public.c", &["c"]),
            watched("public.d", &["d"]),
        ];
        let (plan, unchanged) = plan(wanted, known);
        assert_eq!(summary(&plan, unchanged), "1 to add, 1 to change, 1 to remove, 1 unchanged");
        let text: String = plan.iter().map(in_words).collect();
        assert_eq!(
            text,
            "+ public.a will be watched\n      keys      a:{id}\n      delivery  row\n\
             ~ public.b will be watched differently\n      - key old\n      + key bs\n\
             - public.d will no longer be watched\n",
        );
    }
}
