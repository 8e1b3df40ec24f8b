//! The schema, and the commands that put it and the watches into a database.

use std::process::Output;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use unstale::rule::Template;

use crate::support::daemon;
use crate::support::migrations::{files, psql};
use crate::support::world::World;

/// The numbered files, as the ledger has them.
const NUMBERED: [&str; 4] = ["0001_tables", "0006_private", "0007_policy", "0008_audit"];

fn unstale(world: &World, arguments: &str) -> Output {
    daemon::command(arguments, &[("DATABASE_URL", &world.database_url())])
}

/// What it printed; it succeeded.
fn says(world: &World, arguments: &str) -> String {
    let output = unstale(world, arguments);
    assert!(output.status.success(), "{arguments}: {output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Its exit code and what it complained of.
fn fails(world: &World, arguments: &str) -> (Option<i32>, String) {
    let output = unstale(world, arguments);
    assert!(!output.status.success(), "{arguments}: {output:?}");
    (output.status.code(), String::from_utf8(output.stderr).expect("UTF-8"))
}

async fn rows(world: &World, sql: &str) -> Vec<String> {
    sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_all(&world.sql)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"))
}

#[tokio::test]
async fn migrating_twice_is_harmless() {
    let world = World::bare().await;
    let first = says(&world, "migrate");
    let applied: Vec<&str> =
        first.lines().filter_map(|line| line.strip_prefix("applied ")).collect();
    let expected: Vec<String> = files()
        .iter()
        .map(|file| file["migrations/".len()..].trim_end_matches(".sql").to_owned())
        .collect();
    assert_eq!(applied, expected);
    assert!(says(&world, "migrate").contains("nothing to do"));
}

#[tokio::test]
async fn twenty_at_once_migrate_once() {
    let world = World::bare().await;
    let url = world.database_url();
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        let migrates: Vec<_> = (0..20)
            .map(|_| scope.spawn(|| daemon::command("migrate", &[("DATABASE_URL", &url)])))
            .collect();
        migrates.into_iter().map(|migrate| migrate.join().expect("it does not panic")).collect()
    });
    assert!(outputs.iter().all(|output| output.status.success()), "{outputs:?}");
    let applied = outputs
        .iter()
        .filter(|output| String::from_utf8_lossy(&output.stdout).contains("applied 0001"));
    assert_eq!(applied.count(), 1);
    assert_eq!(rows(&world, LEDGER).await, NUMBERED);
}

/// The ledger, with each number as a file's name has it.
const LEDGER: &str = "select to_char(version, 'FM0000') || '_' || description from unstale.migrations where success order by version";

#[tokio::test]
async fn a_repeatable_file_that_differs_is_applied_again_with_all_others_and_no_numbered_one() {
    let world = World::new().await;
    world.execute("update unstale.repeatable set digest = '' where name = 'watch'; drop function unstale.unwatch, unstale.cut").await;
    world.execute("insert into unstale.repeatable values ('of another release', '')").await;
    assert_eq!(says(&world, "migrate"), "applied repeatable/watch\n");
    let functions = "select proname::text from pg_proc where pronamespace = 'unstale'::regnamespace and proname in ('unwatch', 'cut') order by 1";
    assert_eq!(rows(&world, functions).await, ["cut", "unwatch"]);
    assert_eq!(
        rows(&world, "select name from unstale.repeatable where name like '% %'").await,
        [""; 0]
    );
    assert!(says(&world, "migrate").contains("nothing to do"));
}

#[tokio::test]
async fn a_schema_made_by_hand_is_adopted() {
    let world = World::bare().await;
    assert_eq!(psql(&world, &files(), "select unstale.regenerate()"), "0\n");
    world.execute("create table t (id int); select unstale.watch('t', array['t:{id}'])").await;
    let said = says(&world, "migrate");
    assert!(said.contains("applied repeatable/watch") && !said.contains("applied 0"), "{said}");
    assert!(says(&world, "migrate").contains("nothing to do"));
    assert_eq!(rows(&world, LEDGER).await, NUMBERED);
    assert_eq!(rows(&world, "select table_name from unstale.watches").await, ["public.t"]);
}

#[tokio::test]
async fn the_applications_own_migrations_are_left_alone() {
    let world = World::bare().await;
    world
        .execute("create table _sqlx_migrations (version bigint primary key, mine text); insert into _sqlx_migrations values (1, 'mine')")
        .await;
    says(&world, "migrate");
    assert_eq!(
        rows(&world, "select version || mine from public._sqlx_migrations").await,
        ["1mine"]
    );
}

#[tokio::test]
async fn a_newer_schema_is_refused_by_every_command_that_needs_it() {
    let world = World::new().await;
    world.execute("create or replace function unstale.version() returns integer language sql immutable return 9999").await;
    for command in ["migrate", "apply", "explain public.t id=1"] {
        let (code, complaint) = fails(&world, command);
        assert_eq!(code, Some(3), "{command}: {complaint}");
        assert!(complaint.contains("9999"), "{complaint}");
    }
}

#[tokio::test]
async fn without_the_schema_the_remedy_is_named() {
    let world = World::bare().await;
    let (code, complaint) = fails(&world, "explain public.t id=1");
    assert_eq!(code, Some(1));
    assert!(complaint.contains("unstale migrate"), "{complaint}");
}

/// The templates that migrations/repeatable/templates.sql takes are those that src/rule.rs takes,
/// with the same columns.
#[tokio::test]
async fn sql_and_rust_read_the_same_templates() {
    let world = World::new().await;
    let mut connection =
        PgConnection::connect(&world.database_url()).await.expect("the cluster is up");
    sqlx::raw_sql(
        "create function columns_or_null(template text) returns text[] language plpgsql as
         'begin return unstale.template_columns(template); exception when invalid_parameter_value then return null; end'",
    )
    .execute(&mut connection)
    .await
    .expect("a function");
    let fixed = [
        "",
        "a",
        "{a}",
        "a{b}",
        "{{",
        "}}",
        "{{a}}",
        "{{{a}}}",
        "{{user:{id}}}:profile",
        "{",
        "}",
        "a{",
        "a}",
        "a{}",
        "a{b{c}}",
        "a{b}}",
        "a{{b}",
        "x{a}{a}{b}{a}",
        "x{ a }",
        "é{é}😀",
        "a\n{b\n}",
        "\\{a}",
        "x{a\\}",
        "%s{a}",
        "{a}{b}",
        "{a} {b}",
        "'{a}'",
        "x{a}}}",
    ];
    let mut templates: Vec<String> = fixed.map(str::to_owned).into();
    let mut runner = TestRunner::new(Config { failure_persistence: None, ..Config::default() });
    for alphabet in [r"[{}a]{0,8}", r"[{}ab:é\\'\n ]{0,16}"] {
        let any = prop::string::string_regex(alphabet).expect("a pattern");
        templates.extend((0..500).map(|_| any.new_tree(&mut runner).expect("a text").current()));
    }
    let told: Vec<Option<String>> =
        sqlx::query_scalar("select columns_or_null(t)::text from unnest($1::text[]) with ordinality u(t, n) order by n")
            .bind(&templates)
            .fetch_all(&mut connection)
            .await
            .expect("a row for each");
    for (template, told) in templates.iter().zip(told) {
        let rust = Template::parse(template).ok().map(|parsed| {
            let mut columns: Vec<&str> = Vec::new();
            for column in parsed.columns() {
                if !columns.contains(&column) {
                    columns.push(column);
                }
            }
            columns.into_iter().map(str::to_owned).collect::<Vec<_>>()
        });
        let as_array: Option<String> = sqlx::query_scalar("select $1::text[]::text")
            .bind(&rust)
            .fetch_one(&mut connection)
            .await
            .expect("a row");
        assert_eq!(told, as_array, "{template:?}");
    }
}

/// Writes a configuration with these `[[watch]]`es.
fn configuration(watches: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), watches).expect("it is ours");
    file
}

#[tokio::test]
async fn apply_makes_the_watches_equal_the_list() {
    let world = World::new().await;
    world.execute("create table users (id int, email text); create table posts (id int); create table \"Odd one\" (id int)").await;
    world.execute("select unstale.watch('posts', array['post:{id}'])").await;
    let file = configuration(
        "[[watch]]\ntable = \"public.users\"\nkeys = [\"user:{id}\", \"users\"]\n
         [[watch]]\ntable = '\"Odd one\"'\nkeys = [\"odd:{id}\"]\n",
    );
    let apply = format!("apply --config {}", file.path().display());

    let plan = says(&world, &format!("{apply} --dry-run"));
    assert!(
        plan.contains("2 to add, 0 to change, 1 to remove, 0 unchanged")
            && plan.contains("dry run"),
        "{plan}"
    );
    assert_eq!(rows(&world, "select table_name from unstale.watches").await, ["public.posts"]);

    let done = says(&world, &apply);
    assert!(
        done.contains("public.users: added") && done.contains("public.posts: removed"),
        "{done}"
    );
    let listed = "select format('%s %s', table_name, keys) from unstale.watches order by 1";
    assert_eq!(
        rows(&world, listed).await,
        [
            "public.\"Odd one\" {odd:{id}}".replace("{odd:{id}}", "{\"odd:{id}\"}"),
            "public.users {\"user:{id}\",users}".to_owned()
        ]
    );
    assert!(says(&world, &apply).contains("0 to add, 0 to change, 0 to remove, 2 unchanged"));

    std::fs::write(
        file.path(),
        "[[watch]]\ntable = \"users\"\nkeys = [\"user:{id}\", \"by:{email}\"]\nonly_columns = [\"email\"]\nmax_ttl = \"1h\"\nguarantee = \"bounded\"\nreason = \"slow\"\n\
         version = \"id\"\nversion_path = \"$.v\"\n",
    )
    .expect("it is ours");
    let done = says(&world, &apply);
    assert!(
        done.contains("- key users\n")
            && done.contains("+ key by:{email}\n")
            && done.contains("public.users: changed"),
        "{done}"
    );
    assert!(
        done.contains("max_ttl  any -> 1h\n") && done.contains("guarantee  none -> bounded\n"),
        "{done}"
    );
    assert!(done.contains("version_path  none -> $.v\n"), "{done}");
    let policy = "select concat_ws(' ', guarantee, reason, version, version_path) from unstale.watches where table_name = 'public.users'";
    assert_eq!(rows(&world, policy).await, ["bounded slow id $.v"]);
    assert_eq!(rows(&world, listed).await, ["public.users {\"user:{id}\",\"by:{email}\"}"]);
    assert!(says(&world, &apply).contains("1 unchanged"));
}

/// What it prints, pasted, makes functions and triggers equal to those that `unstale apply` makes.
#[tokio::test]
async fn apply_prints_the_sql_of_each_watch_and_changes_nothing_and_waits_for_nobody() {
    let world = World::new().await;
    world
        .execute(
            "create table users (id int, email text, updated_at timestamptz); create table posts (id int); create table \"Odd one\" (id int);
             create table parts (id int, at timestamp) partition by range (id);
             create table parts_1 partition of parts for values from (0) to (9);
             select unstale.watch('users', array['user:{id}']), unstale.watch('posts', array['post:{id}'])",
        )
        .await;
    let file = configuration(
        "[[watch]]\ntable = \"users\"\nkeys = [\"user:{id}\", \"by:{email}\"]\ndelivery = \"statement\"\n
         [[watch]]\ntable = '\"Odd one\"'\nkeys = [\"odd:{id}\"]\n[[watch]]\ntable = \"parts\"\nkeys = [\"part:{id}\"]\nupdated_at = \"at\"\n",
    );
    let apply = format!("apply --config {}", file.path().display());
    let made = "select pg_get_functiondef(p.oid) from pg_proc p where p.pronamespace = 'unstale'::regnamespace and p.proname ~ '_[0-9]+$'
                union all select format('%s %s', tgenabled, pg_get_triggerdef(oid)) from pg_trigger where tgname like 'unstale%' order by 1";
    let before = rows(&world, made).await;

    let mut busy = world.sql.begin().await.expect("a transaction");
    sqlx::raw_sql("lock table users, posts, \"Odd one\", parts in row exclusive mode")
        .execute(&mut *busy)
        .await
        .expect("they are free");
    let printed = says(&world, &format!("{apply} --dry-run --sql"));
    busy.rollback().await.expect("they are free again");
    assert_eq!(rows(&world, made).await, before);
    assert_eq!(
        rows(&world, "select table_name from unstale.watches order by 1").await,
        ["public.posts", "public.users"]
    );
    for part in [
        "-- ~ public.users will be watched differently\n--       + key by:{email}\n",
        "select unstale.unwatch('public.posts');\n",
        "-- 2 to add, 1 to change, 1 to remove, 0 unchanged\n",
    ] {
        assert!(printed.contains(part), "{part}: {printed}");
    }

    let mut transaction = world.sql.begin().await.expect("a transaction");
    sqlx::raw_sql(AssertSqlSafe(printed)).execute(&mut *transaction).await.expect("it is SQL");
    let pasted: Vec<String> =
        sqlx::query_scalar(made).fetch_all(&mut *transaction).await.expect("rows");
    transaction.rollback().await.expect("it is ours");
    assert_ne!(pasted, before);
    says(&world, &apply);
    assert_eq!(rows(&world, made).await, pasted);
    assert!(
        says(&world, &format!("{apply} --dry-run --sql"))
            .starts_with("-- 0 to add, 0 to change, 0 to remove, 3 unchanged\n")
    );
    let (code, complaint) = fails(&world, "apply --sql");
    assert!(code == Some(2) && complaint.contains("--dry-run"), "{complaint}");
}

#[tokio::test]
async fn apply_changes_nothing_if_one_watch_of_the_list_would_be_refused() {
    let world = World::new().await;
    world.execute("create table users (id int); create table posts (id int)").await;
    let file = configuration(
        "[[watch]]\ntable = \"public.users\"\nkeys = [\"user:{id}\"]\n[[watch]]\ntable = \"public.posts\"\nkeys = [\"post:{nope}\"]\n",
    );
    let (code, complaint) = fails(&world, &format!("apply --config {}", file.path().display()));
    assert_eq!(code, Some(1));
    assert!(
        complaint.contains("post:{nope}") && complaint.contains("Its columns are id"),
        "{complaint}"
    );
    assert_eq!(rows(&world, "select table_name from unstale.watches").await, [""; 0]);
}

#[tokio::test]
async fn apply_forgets_a_table_that_was_dropped() {
    let world = World::new().await;
    world.execute("create table users (id int); create table posts (id int)").await;
    world.execute("select unstale.watch('users', array['user:{id}']), unstale.watch('posts', array['post:{id}'])").await;
    world.execute("drop table posts cascade").await;
    let file = configuration("[[watch]]\ntable = \"users\"\nkeys = [\"user:{id}\"]\n");
    let done = says(&world, &format!("apply --config {}", file.path().display()));
    assert!(done.contains("0 to add, 0 to change, 1 to remove, 1 unchanged"), "{done}");
    assert_eq!(rows(&world, "select table_name from unstale.watches").await, ["public.users"]);
}

#[tokio::test]
async fn explain_prints_the_keys_of_a_row() {
    let world = World::new().await;
    world
        .execute("create table users (id int, email text); select unstale.watch('users', array['user:{id}', 'by:{email}', 'users'])")
        .await;
    assert_eq!(
        says(&world, "explain public.users id=42 email=a@b.c"),
        "user:42\nby:a@b.c\nusers\n"
    );
    assert!(says(&world, "explain users id=42").contains("by:*"));
    for (arguments, part) in [
        ("public.users nope=1", "id, email"),
        ("public.nope id=1", "there is no table"),
        ("unstale.gap id=1", "not watched"),
    ] {
        let (code, complaint) = fails(&world, &format!("explain {arguments}"));
        assert_eq!(code, Some(1));
        assert!(complaint.contains(part), "{complaint}");
    }
}
