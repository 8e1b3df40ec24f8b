//! `unstale man`: one manual page with every subcommand, from the same description as the help.

use anyhow::Context as _;
use clap::{Arg, Command, CommandFactory as _};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::Cli;

/// Prints the page as roff to stdout.
///
/// # Errors
///
/// If stdout cannot be written to; a closed pipe is fine.
pub fn run() -> anyhow::Result<()> {
    let page = page(Cli::command()).context("the manual page")?;
    super::print(&page)
}

/// clap_mangen makes a page a subcommand; a program of this size is read as one, so theirs become parts of it.
fn page(mut command: Command) -> std::io::Result<Vec<u8>> {
    command.build();
    let mut page = Vec::new();
    let man = Man::new(command.clone()).manual("unstale");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;

    let mut rest = Roff::new();
    rest.control("SH", ["COMMANDS"]);
    for subcommand in command.get_subcommands() {
        if subcommand.get_name() != "help" {
            describe(subcommand, &mut rest);
        }
    }
    let after_help = command.get_after_help().map(ToString::to_string);
    headed(&after_help.unwrap_or_default(), "SH", &mut rest);
    rest.to_writer(&mut page)?;
    Ok(page)
}

fn describe(subcommand: &Command, page: &mut Roff) {
    let mut title = format!("unstale {}", subcommand.get_name());
    let is_own = |argument: &&Arg| !argument.is_global_set() && !matches!(argument.get_id().as_str(), "help" | "version");
    let arguments: Vec<&Arg> = subcommand.get_arguments().filter(is_own).collect();
    for argument in &arguments {
        title = match argument.is_positional() {
            true => format!("{title} {argument}"), // has its brackets
            false => format!("{title} [{argument}]"),
        };
    }
    page.control("SS", [title.as_str()]);
    let about = subcommand.get_long_about().or(subcommand.get_about());
    for paragraph in about.map(ToString::to_string).unwrap_or_default().split("\n\n") {
        page.control("PP", []).text([roman(paragraph)]);
    }
    for argument in arguments {
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        page.control("TP", []).text([bold(argument.to_string())]).text([roman(help)]);
    }
    if let Some(example) = subcommand.get_after_help() {
        as_is(&example.to_string(), page);
    }
}

/// Parts the text at its lines that stand at the margin and end in a colon, which become headings.
fn headed(text: &str, level: &str, page: &mut Roff) {
    for part in text.split("\n\n") {
        match part.split_once(":\n") {
            Some((heading, body)) if !part.starts_with(' ') => {
                page.control(level, [heading.to_uppercase().as_str()]);
                as_is(body, page);
            }
            _ => as_is(part, page),
        }
    }
}

/// Keeps the lines: the help is aligned already.
fn as_is(text: &str, page: &mut Roff) {
    page.control("PP", []).control("nf", []);
    page.text([roman(text)]).control("fi", []);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_and_exit_code_is_on_the_page() {
        let page = page(Cli::command()).expect("a page");
        let page = String::from_utf8(page).expect("text").replace("\\-", "-");
        for command in Cli::command().get_subcommands() {
            let heading = format!(".SS \"unstale {}", command.get_name());
            assert!(page.contains(&heading), "{heading} is not in {page}");
        }
        assert!(page.contains("unstale apply [--dry-run] [--sql]\""), "{page}");
        assert!(page.contains("unstale explain <TABLE> [COLUMN=VALUE]...\""), "{page}");
        assert!(page.contains(".SH \"EXIT CODES\"") && page.contains(".SH ENVIRONMENT"), "{page}");
    }
}
