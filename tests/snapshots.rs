//! The schema, and the code that is generated for a watch, as committed text: a migration shows its
//! effect in its diff.
//!
//! `UNSTALE_BLESS=1 cargo test --test integration -- snapshots` writes tests/snapshots/ anew.

use std::process::Command;

use sqlx::AssertSqlSafe;

use crate::support::world::World;
use crate::tidy::read;

/// The version of PostgreSQL whose pg_dump made tests/snapshots/tables.sql; another one words some
/// statements differently.
const DUMPED_BY: i32 = 15;

/// One line a function, whatever the version of PostgreSQL: its text is in migrations/repeatable/.
const FUNCTIONS: &str = "
    select concat_ws(' ', format('%s(%s) returns %s;', p.proname, pg_get_function_identity_arguments(p.oid), pg_get_function_result(p.oid)),
                     l.lanname, case p.provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end,
                     case when p.prosecdef then 'security definer' end, 'set ' || array_to_string(p.proconfig, ', '),
                     case when p.oid in (select unstale.listener_functions()) then 'for listeners' end,
                     case when has_function_privilege('public', p.oid, 'execute') then 'FOR EVERYBODY' end)
      from pg_proc p join pg_language l on l.oid = p.prolang
     where p.pronamespace = 'unstale'::regnamespace order by p.proname, 1";

/// Fails with the lines that differ, or writes the file if UNSTALE_BLESS is set.
pub(crate) fn matches(path: &str, now: &str) {
    if std::env::var_os("UNSTALE_BLESS").is_some() {
        std::fs::write(format!("{}/{path}", env!("CARGO_MANIFEST_DIR")), now)
            .expect("a file of ours");
        return;
    }
    let committed = read(path);
    let (old, new): (Vec<&str>, Vec<&str>) = (committed.lines().collect(), now.lines().collect());
    let difference = difference(&old, &new);
    assert!(
        difference.is_empty(),
        "{path} differs; if it should, write it anew with UNSTALE_BLESS=1 and commit it:\n{difference}"
    );
}

/// The lines that went and came, by the longest common subsequence, with the number of the old
/// line.
fn difference(old: &[&str], new: &[&str]) -> String {
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, String::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || i < old.len() && common[i + 1][j] >= common[i][j + 1] {
            lines += &format!("{:>5} - {}\n", i + 1, old[i]);
            i += 1;
        } else {
            lines += &format!("{:>5} + {}\n", i + 1, new[j]);
            j += 1;
        }
    }
    lines
}

#[test]
fn a_difference_names_the_lines_that_went_and_came() {
    assert_eq!(
        difference(&["a", "b", "c"], &["a", "x", "c", "d"]),
        "    2 - b\n    3 + x\n    4 + d\n"
    );
    assert_eq!(difference(&["a"], &["a"]), "");
}

#[tokio::test]
async fn the_functions_of_the_schema_are_as_committed() {
    let world = World::new().await;
    let lines: Vec<String> =
        sqlx::query_scalar(FUNCTIONS).fetch_all(&world.sql).await.expect("a line for each");
    matches("tests/snapshots/functions.txt", &(lines.join("\n") + "\n"));
}

#[tokio::test]
async fn the_tables_of_the_schema_are_as_committed() {
    let world = World::new().await;
    let version =
        world.number("select current_setting('server_version_num')::bigint / 10000").await;
    if version != i64::from(DUMPED_BY) {
        eprintln!(
            "NOT COMPARED: tests/snapshots/tables.sql is of PostgreSQL {DUMPED_BY}, and this is {version}"
        );
        return;
    }
    let mut dump = Command::new(world.postgres().programs().join("pg_dump"));
    dump.args([
        "--schema-only",
        "--schema=unstale",
        "--no-owner",
        "--dbname",
        &world.postgres().socket_url(world.database()),
    ]);
    let output = dump.output().expect("pg_dump is beside the server");
    assert!(output.status.success(), "{output:?}");
    matches(
        "tests/snapshots/tables.sql",
        &normalised(&String::from_utf8(output.stdout).expect("UTF-8")),
    );
}

/// Without comments, settings and functions, one empty line between statements; the value of the
/// secret is not in a schema's dump.
fn normalised(dump: &str) -> String {
    let mut statements = Vec::new();
    for entry in dump.split("\n--\n-- Name: ").skip(1) {
        let Some((title, text)) = entry.split_once("\n--\n") else { continue };
        if ["; Type: FUNCTION;", "; Type: ACL;"].iter().all(|kind| !title.contains(kind))
            && !title.starts_with("FUNCTION ")
        {
            let lines = text
                .lines()
                .filter(|line| !["SET ", "--", "\\"].iter().any(|word| line.starts_with(word)));
            statements.push(lines.collect::<Vec<_>>().join("\n").trim().to_owned());
        }
    }
    statements.retain(|statement| !statement.is_empty());
    statements.join("\n\n") + "\n"
}

#[tokio::test]
async fn the_code_of_a_watch_of_each_delivery_is_as_committed() {
    let world = World::new().await;
    world
        .execute("create table users (id int primary key, email text, updated_at timestamptz)")
        .await;
    world.execute("create table events (id int, at timestamp) partition by range (id)").await;
    world.execute("create table events_1 partition of events for values from (0) to (100)").await;
    for (file, arguments) in [
        ("row", "'users', array['user:{id}', 'by:{email}']"),
        ("statement", "'users', array['user:{id}', 'by:{email}'], delivery => 'statement'"),
        (
            "log",
            "'users', array['user:{id}', 'by:{email}'], delivery => 'log', only_columns => array['email']",
        ),
        ("partitioned", "'events', array['event:{id}'], updated_at => 'at'"),
    ] {
        let sql = format!("select unstale.preview({arguments})");
        let statements: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(sql)).fetch_all(&world.sql).await.expect("statements");
        matches(&format!("tests/snapshots/watch_{file}.sql"), &(statements.join("\n\n") + "\n"));
    }
}

#[tokio::test]
async fn the_program_and_the_schema_have_the_same_version() {
    let world = World::new().await;
    assert_eq!(
        world.number("select unstale.version()::bigint").await,
        unstale::pg::migrate::known_version()
    );
}
