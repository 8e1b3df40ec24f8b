//! The tests that docs/testing.md shows, run as they stand there, against a running listener.
//!
//! Their tools come from PyPI and npm into folders that `cargo clean` removes, and from Debian's
//! packages.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::daemon::{BINARY, Daemon};
use crate::support::wait::until;
use crate::support::world::World;
use crate::tidy::read;

/// The page's first block of a language.
fn block(language: &str) -> String {
    nth_block(language, 1)
}

/// The page's blocks of a language, from 1.
fn nth_block(language: &str, n: usize) -> String {
    let page = read("docs/testing.md");
    let block =
        page.split(&format!("```{language}\n")).nth(n).and_then(|rest| rest.split("\n```").next());
    block.unwrap_or_else(|| panic!("the page has no block of {language}")).to_owned()
}

/// A folder of tools, made once. Marked as whole at the end, so that one that was interrupted is
/// not taken for it.
pub(crate) fn tools(name: &str, install: impl FnOnce(&Path)) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    if !folder.join("whole").exists() {
        std::fs::create_dir_all(&folder).expect("a folder of ours");
        install(&folder);
        std::fs::write(folder.join("whole"), "").expect("a file of ours");
    }
    folder
}

fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; ./dev installs it"))
}

pub(crate) fn succeeds(command: &mut Command) {
    let output = output(command);
    let said = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    assert!(output.status.success(), "{command:?}: {said}");
}

/// The page's watch, and a listener.
async fn listening() -> (World, Daemon) {
    let world = World::new().await;
    world.execute(&block("sql")).await;
    let mut daemon = world.daemon().start();
    daemon.ready().await;
    (world, daemon)
}

/// Where this binary is found first.
fn path() -> String {
    let binaries = Path::new(BINARY).parent().expect("it is in a folder").display().to_string();
    format!("{binaries}:{}", std::env::var("PATH").unwrap_or_default())
}

/// Runs the page's test, which succeeds; and fails once nobody listens, so that it does test
/// something.
async fn holds(run: impl Fn(&mut Command) -> &mut Command, program: impl AsRef<Path>) {
    let (world, mut daemon) = listening().await;
    let mut command = Command::new(program.as_ref());
    command
        .env("PATH", path())
        .env("DATABASE_URL", world.database_url())
        .env("REDIS_URL", world.redis_url())
        .env("UNSTALE_INSTANCE", "test");
    run(&mut command);
    succeeds(&mut command);
    daemon.kill9();
    assert!(!output(&mut command).status.success(), "it succeeds without a listener");
}

fn pytest() -> PathBuf {
    tools("pytest", |folder| {
        succeeds(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder));
        let packages = ["pytest==8.*", "psycopg[binary]==3.*", "redis>=5"];
        succeeds(
            Command::new(folder.join("bin/python"))
                .args(["-m", "pip", "install", "--quiet"])
                .args(packages),
        );
    })
}

/// With the page's conftest.py nothing has to listen before.
#[tokio::test]
async fn the_page_s_fixture_brings_a_listener_of_its_own_and_ends_it() {
    let world = World::new().await;
    world.execute(&block("sql")).await;
    let (tools, folder) = (pytest(), tempfile::tempdir().expect("a directory"));
    for (name, text) in
        [("conftest.py", nth_block("python", 2)), ("test_users.py", block("python"))]
    {
        std::fs::write(folder.path().join(name), text).expect("a file of ours");
    }
    let mut command = Command::new(tools.join("bin/python"));
    command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]).current_dir(folder.path());
    command
        .env("PATH", path())
        .env("DATABASE_URL", world.database_url())
        .env("REDIS_URL", world.redis_url());
    succeeds(&mut command);
    let sessions = "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'unstale'";
    until("the listener has ended", async || world.number(sessions).await == 0).await;
}

#[tokio::test]
async fn the_page_s_test_holds_in_pytest() {
    let folder = pytest();
    let test = folder.join("test_users.py");
    std::fs::write(&test, block("python")).expect("a file of ours");
    holds(
        |command| command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]).arg(&test),
        folder.join("bin/python"),
    )
    .await;
}

#[tokio::test]
async fn the_page_s_test_holds_in_jest() {
    let folder = tools("jest", |folder| {
        std::fs::write(folder.join("package.json"), "{}").expect("a file of ours");
        let packages = [
            "install",
            "--no-audit",
            "--no-fund",
            "--loglevel=error",
            "jest@29",
            "pg@8",
            "ioredis@5",
        ];
        succeeds(Command::new("npm").args(packages).current_dir(folder));
    });
    std::fs::write(folder.join("users.test.js"), block("javascript")).expect("a file of ours");
    holds(
        |command| command.args(["--runInBand", "--forceExit"]).current_dir(&folder),
        folder.join("node_modules/.bin/jest"),
    )
    .await;
}

#[tokio::test]
async fn the_page_s_test_holds_in_rspec() {
    let folder = tools("rspec", |_| {});
    let test = folder.join("users_spec.rb");
    std::fs::write(&test, block("ruby")).expect("a file of ours");
    holds(|command| command.arg(&test), "rspec").await;
}
