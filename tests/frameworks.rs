//! Calls of `unstale.watch` from the tools that people make their migrations with, as the guide
//! writes them.
//!
//! The tools come from PyPI into a virtual environment that `cargo clean` removes.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::world::World;
use crate::tidy::read;

/// Runs a program to its end.
fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Python with Alembic. Published by a rename, so that one that was interrupted is not taken for
/// whole.
fn alembic() -> PathBuf {
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("alembic");
    let python = environment.join("bin/python");
    if !environment.join("whole").exists() {
        succeeds(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment));
        succeeds(Command::new(&python).args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "alembic==1.*",
            "sqlalchemy==2.*",
            "psycopg[binary]==3.*",
        ]));
        std::fs::write(environment.join("whole"), "").expect("a file of ours");
    }
    python
}

/// The guide's block of Python.
fn guide() -> String {
    let guide = read("docs/operating.md");
    let block = guide.split("```python\n").nth(1).and_then(|rest| rest.split("```").next());
    block.expect("a block of Python").to_owned()
}

#[tokio::test]
async fn alembic_makes_the_guide_s_watch() {
    let world = World::new().await;
    world.execute("create table users (id int primary key, email text, updated_at timestamptz default now())").await;
    let script = format!(
        "from sqlalchemy import create_engine
from alembic.migration import MigrationContext
from alembic.operations import Operations
engine = create_engine({:?})
with engine.begin() as connection:
    op = Operations(MigrationContext.configure(connection))
    {}
",
        world.database_url().replace("postgres://", "postgresql+psycopg://"),
        guide().replace('\n', "\n    ")
    );
    succeeds(Command::new(alembic()).args(["-c", &script]));
    let keys: Vec<String> = sqlx::query_scalar("select keys from unstale.watches")
        .fetch_one(&world.sql)
        .await
        .expect("a watch");
    assert_eq!(keys, ["user:{id}:profile", "user:by-email:{email}"]);
}

#[tokio::test]
async fn the_refusal_of_a_retype_names_what_the_guide_says_it_names() {
    let world = World::new().await;
    world.users(1).await;
    let error = sqlx::query("alter table users alter column email type varchar(10)")
        .execute(&world.sql)
        .await
        .expect_err("it is watched");
    let error = error
        .into_database_error()
        .expect("the server's")
        .downcast::<sqlx::postgres::PgDatabaseError>();
    let detail = error.detail().unwrap_or_default().to_owned();
    assert!(
        detail.contains("function unstale.row_1(users) depends on column")
            || detail.contains("trigger unstale_1_update"),
        "{detail}"
    );
}
