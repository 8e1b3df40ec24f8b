//! `unstale completions`: the script of a shell, from the same description as the help.

use clap::CommandFactory as _;

use crate::cli::{Cli, Completions};

/// Prints the script to stdout.
///
/// # Errors
///
/// If stdout cannot be written to; a closed pipe is fine.
pub fn run(args: &Completions) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "unstale", &mut script);
    super::print(&script)
}
