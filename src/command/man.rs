//! `unstale man`: the manual pages, one for each command, from the same description as the help.

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::cli::{Cli, Man};

/// Writes the pages as roff into a directory.
///
/// # Errors
///
/// If that cannot be written to.
pub fn run(args: &Man) -> anyhow::Result<()> {
    clap_mangen::generate_to(Cli::command(), &args.directory)
        .with_context(|| format!("the manual pages in {}", args.directory.display()))
}
