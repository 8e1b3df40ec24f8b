//! The tests that docs/testing.md shows, run as they stand there, against a running listener.
//!
//! Their tools come from PyPI and npm into folders that `cargo clean` removes, and from Debian's packages.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::daemon::{BINARY, Daemon};
use crate::support::world::World;
use crate::tidy::read;

/// The page's block of a language.
fn block(language: &str) -> String {
    let page = read("docs/testing.md");
    let block = page.split(&format!("```{language}\n")).nth(1).and_then(|rest| rest.split("\n```").next());
    block.unwrap_or_else(|| panic!("the page has no block of {language}")).to_owned()
}

/// A folder of tools, made once. Marked as whole at the end, so that one that was interrupted is not taken for it.
fn tools(name: &str, install: impl FnOnce(&Path)) -> PathBuf {
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

fn succeeds(command: &mut Command) {
    let output = output(command);
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
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

/// Runs the page's test, which succeeds; and fails once nobody listens, so that it does test something.
async fn holds(run: impl Fn(&mut Command) -> &mut Command, program: impl AsRef<Path>) {
    let (world, mut daemon) = listening().await;
    let binaries = Path::new(BINARY).parent().expect("it is in a folder").display().to_string();
    let path = format!("{binaries}:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(program.as_ref());
    command.env("PATH", path).env("DATABASE_URL", world.database_url()).env("REDIS_URL", world.redis_url()).env("UNSTALE_INSTANCE", "test");
    run(&mut command);
    succeeds(&mut command);
    daemon.kill9();
    assert!(!output(&mut command).status.success(), "it succeeds without a listener");
}

#[tokio::test]
async fn the_page_s_test_holds_in_pytest() {
    let folder = tools("pytest", |folder| {
        succeeds(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder));
        let packages = ["pytest==8.*", "psycopg[binary]==3.*", "redis>=5"];
        succeeds(Command::new(folder.join("bin/python")).args(["-m", "pip", "install", "--quiet"]).args(packages));
    });
    let test = folder.join("test_users.py");
    std::fs::write(&test, block("python")).expect("a file of ours");
    holds(|command| command.args(["-m", "pytest", "-q", "-p", "no:cacheprovider"]).arg(&test), folder.join("bin/python")).await;
}

#[tokio::test]
async fn the_page_s_test_holds_in_jest() {
    let folder = tools("jest", |folder| {
        std::fs::write(folder.join("package.json"), "{}").expect("a file of ours");
        let packages = ["install", "--no-audit", "--no-fund", "--loglevel=error", "jest@29", "pg@8", "ioredis@5"];
        succeeds(Command::new("npm").args(packages).current_dir(folder));
    });
    std::fs::write(folder.join("users.test.js"), block("javascript")).expect("a file of ours");
    holds(|command| command.args(["--runInBand", "--forceExit"]).current_dir(&folder), folder.join("node_modules/.bin/jest")).await;
}

#[tokio::test]
async fn the_page_s_test_holds_in_rspec() {
    let folder = tools("rspec", |_| {});
    let test = folder.join("users_spec.rb");
    std::fs::write(&test, block("ruby")).expect("a file of ours");
    holds(|command| command.arg(&test), "rspec").await;
}
