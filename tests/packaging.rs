//! What others start: the composition.

use std::io::Write as _;

mod compose;

/// Says what was not tested, past the harness, which swallows what a test prints that passes; in the CI everything has to be.
fn not_tested(what: &str, lacking: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{what}: this host lacks {lacking}");
    let _ = writeln!(std::io::stderr(), "NOT TESTED: {what}, because this host lacks {lacking}");
}
