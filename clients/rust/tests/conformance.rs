//! The client against the suite that any client can be run against.

use std::path::Path;
use std::process::Command;

fn suite(words: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // Cargo builds the examples with the tests.
    let test = std::env::current_exe().expect("a path");
    let program = test.parent().and_then(Path::parent).expect("target/debug").join("examples/conform");
    let status = Command::new("python3").arg(root.join("../conformance/suite.py")).args(words).arg("--").arg(program).status();
    assert!(status.expect("python3 runs").success());
}

#[test]
fn it_conforms_on_one_server() {
    suite(&[]);
}

#[test]
fn it_conforms_on_a_cluster() {
    suite(&["--cluster"]);
}
