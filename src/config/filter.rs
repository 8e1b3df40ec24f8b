//! `log.filter`: which lines are written.

use tracing_subscriber::filter::{LevelFilter, Targets};

/// Reads `log.filter`: a level for all, a module, or `module=level`, with commas between them.
///
/// Not tracing-subscriber's `EnvFilter`: since <https://github.com/tokio-rs/tracing/pull/3243> it
/// counts from behind leading spaces and cuts from before them, so that a letter of two bytes there
/// ends the process; and it takes regular expressions of any size.
///
/// # Errors
/// What is wrong, in words.
pub(crate) fn targets(filter: &str) -> Result<Targets, String> {
    let mut targets = Targets::new();
    let mut is_empty = true;
    for directive in filter.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        is_empty = false;
        let (module, level) = match directive.split_once('=') {
            Some((module, level)) => (Some(module), Some(level)),
            None if directive.parse::<LevelFilter>().is_ok() => (None, Some(directive)),
            None => (Some(directive), None),
        };
        let level = match level {
            None => LevelFilter::TRACE,
            Some("") => return Err(format!("{directive} names no level")),
            Some(level) => level.parse().map_err(|_| {
                format!("\"{level}\" is no level: off, error, warn, info, debug, trace")
            })?,
        };
        targets = match module {
            None => targets.with_default(level),
            Some(module) if is_module(module) => targets.with_target(module, level),
            Some(module) => return Err(format!("\"{module}\" is no module")),
        };
    }
    Ok(if is_empty { targets.with_default(LevelFilter::ERROR) } else { targets })
}

/// A path of Rust, as in `unstale::pg`.
fn is_module(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_levels_and_modules_and_nothing_else() {
        for filter in [
            "info",
            "warn,unstale=debug",
            "off, unstale::pg = trace".replace(" = ", "=").as_str(),
            "unstale",
            "INFO,",
            "",
            "3",
        ] {
            assert!(targets(filter).is_ok(), "{filter}");
        }
        for filter in [
            "wärn",
            "wärn=debug",
            "a=b=c",
            "unstale=",
            "=info",
            "unstale[{x}]=info",
            "a=loud",
            "a[b{c=(((((((((x)]=info",
            "\0",
        ] {
            assert!(targets(filter).is_err(), "{filter}");
        }
    }
}
