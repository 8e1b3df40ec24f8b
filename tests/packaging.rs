//! What others install or start: the Debian package, the image and the composition.
//!
//! The first two are made by `./dev package` and `./dev image`, which call these tests: to build a
//! release takes minutes.

use std::io::Write as _;

mod compose;
mod image;
mod package;

/// A file that `./dev` has made for a test.
fn made(variable: &str) -> std::path::PathBuf {
    std::env::var_os(variable)
        .unwrap_or_else(|| panic!("{variable} is not set; ./dev sets it"))
        .into()
}

/// Says what was not tested, past the harness, which swallows what a test prints that passes; in
/// the CI everything has to be.
fn not_tested(what: &str, lacking: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{what}: this host lacks {lacking}");
    let _ = writeln!(std::io::stderr(), "NOT TESTED: {what}, because this host lacks {lacking}");
}
