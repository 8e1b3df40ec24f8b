//! The house rules that matter, as tests: they read the sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`: path from the root, and text without its unit tests.
fn sources(folder: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder)
            .expect("a folder of ours")
            .map(|entry| entry.expect("readable").path())
        {
            if entry.is_dir() {
                walk(&entry, found);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                found.push(entry);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), &mut found);
    let text = |path: &PathBuf| {
        let text = fs::read_to_string(path).expect("UTF-8");
        text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned()
    };
    found
        .iter()
        .map(|path| {
            (path.strip_prefix(root()).expect("below it").display().to_string(), text(path))
        })
        .collect()
}

/// A file of the tree.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What a module may not mention, by the beginning of its path.
const FORBIDDEN: &[(&[&str], &[&str])] = &[
    (
        &[
            "src/change.rs",
            "src/rule.rs",
            "src/batch.rs",
            "src/batch",
            "src/deletion.rs",
            "src/delivered.rs",
            "src/watermark.rs",
            "src/backoff.rs",
            "src/few.rs",
            "src/visible.rs",
            "src/exposure.rs",
            "src/glob.rs",
            "src/spelling.rs",
            "src/status.rs",
            "src/status",
            "src/audit",
            "src/pg/url.rs",
            "src/pg/url",
            "src/sink/url.rs",
            "src/listener/machine",
        ],
        &[
            "tokio",
            "sqlx",
            "fred",
            "tracing",
            "Instant::now",
            "SystemTime",
            "crate::pg",
            "crate::sink",
            "select ",
        ],
    ),
    (&["src/pg"], &["crate::sink", "fred", "crate::listener", "Instant::now", "SystemTime"]),
    (&["src/sink"], &["crate::pg", "sqlx", "crate::listener", "Instant::now", "SystemTime"]),
    (&["src/observe"], &["crate::pg", "crate::sink", "crate::listener", "sqlx", "fred"]),
];

#[test]
fn imports_point_down() {
    for (path, text) in sources("src") {
        for (places, words) in FORBIDDEN {
            if places.iter().any(|place| path.starts_with(place)) {
                let code: Vec<_> =
                    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
                for word in *words {
                    assert!(!code.iter().any(|line| line.contains(word)), "{path} mentions {word}");
                }
            }
        }
    }
}

#[test]
fn only_observe_speaks_to_the_logger() {
    for (path, text) in sources("src") {
        let speaks = ["debug", "info", "warn", "error", "trace"]
            .iter()
            .any(|level| text.contains(&format!("tracing::{level}")));
        assert!(
            !speaks || path.starts_with("src/observe") || path.starts_with("src/logs"),
            "{path} speaks to tracing; make it an Observation"
        );
        assert!(
            !text.contains("use tracing::{")
                || path.starts_with("src/observe")
                || path.starts_with("src/logs"),
            "{path}"
        );
    }
}

/// Words that had several meanings; the glossary of docs/architecture.md has one for each.
const BANNED: [&str; 8] = [
    "wave",
    "rekeys",
    "aloud",
    "whole_way",
    "rehearse",
    "lives_of_matching",
    "the one of before",
    "that of before",
];

#[test]
fn words_have_one_meaning() {
    for folder in ["src", "tests", "benches"] {
        for (path, text) in sources(folder).into_iter().filter(|(path, _)| path != "tests/tidy.rs")
        {
            let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            for banned in BANNED {
                let is_there = if banned.contains(' ') {
                    text.contains(banned)
                } else {
                    words.contains(&banned)
                };
                assert!(!is_there, "{path} says {banned}");
            }
        }
    }
}

#[test]
fn every_module_says_what_it_is_for() {
    for folder in ["src", "tests", "benches"] {
        for (path, text) in sources(folder) {
            assert!(text.starts_with("//!"), "{path} has no //!");
        }
    }
}

#[test]
fn sql_lives_in_pg_and_in_the_migrations() {
    for (path, text) in sources("src") {
        // The demo is an application of its own, and scratch its servers.
        if !["src/pg", "src/command/demo", "src/scratch"]
            .iter()
            .any(|place| path.starts_with(place))
        {
            assert!(!text.contains("sqlx::query"), "{path} has SQL");
        }
    }
}

#[test]
fn files_stay_readable() {
    for folder in ["src", "tests"] {
        for (path, text) in sources(folder) {
            let lines = text.lines().count();
            assert!(
                lines <= 520,
                "{path} has {lines} lines before its tests; find its second subject"
            );
        }
    }
}

/// rustfmt holds the code that it can break; this the SQL and the comments.
#[test]
fn lines_have_at_most_100_columns() {
    let is_wide = |line: &&str| line.chars().count() > 100;
    for entry in fs::read_dir(root().join("migrations/repeatable")).expect("the directory") {
        let path = entry.expect("a file").path();
        let text = fs::read_to_string(&path).expect("SQL");
        // RAISE takes one literal, which cannot be broken.
        let wide = text.lines().filter(is_wide).find(|line| !line.trim_start().starts_with('\''));
        assert_eq!(wide, None, "{}", path.display());
    }
    for (path, text) in ["src", "tests", "benches"].into_iter().flat_map(sources) {
        let comments = text.lines().map(str::trim_start).filter(|line| line.starts_with("//"));
        // What cannot be broken: a link, a row of a table, a drawing.
        let is_whole =
            |line: &&str| ["http", " | ", "  ", "-->"].iter().any(|of| line.contains(of));
        let wide = comments.filter(is_wide).find(|line| !is_whole(line));
        assert_eq!(wide, None, "{path}");
    }
}

#[test]
fn the_reference_lists_the_metrics_there_are_and_no_others() {
    let names = |text: &str, open: char, close: char| -> BTreeSet<String> {
        text.split(open)
            .filter_map(|rest| {
                rest.split_once(close)
                    .map(|(name, _)| name.split('{').next().unwrap_or_default().to_owned())
            })
            .filter(|name| {
                name.starts_with("unstale_")
                    && name.chars().all(|c| c.is_ascii_lowercase() || c == '_')
            })
            .collect()
    };
    let known = names(&read("src/observe/metrics.rs"), '"', '"');
    let told: BTreeSet<_> = names(&read("docs/reference.md"), '`', '`');
    assert_eq!(known, told);
}

#[test]
fn links_lead_somewhere() {
    let slug = |heading: &str| -> String {
        let kept = heading
            .trim_start_matches('#')
            .trim()
            .chars()
            .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    let pages = [
        "",
        "docs",
        "docs/decisions",
        "clients",
        "clients/python",
        "clients/node",
        "clients/rust",
        "clients/rails",
    ]
    .into_iter()
    .flat_map(|folder| {
        let files = fs::read_dir(root().join(folder))
            .expect("it is there")
            .map(|file| file.expect("it is there").path());
        files.filter(|file| file.extension().is_some_and(|extension| extension == "md"))
    });
    for page in pages {
        let text = fs::read_to_string(&page).expect("UTF-8");
        for target in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
        {
            if target.contains("://") || target.contains(' ') {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = if file.is_empty() {
                page.clone()
            } else {
                page.parent().expect("a folder").join(file)
            };
            assert!(file.exists(), "{}: {target} is not there", page.display());
            let has_heading = || {
                fs::read_to_string(&file)
                    .expect("UTF-8")
                    .lines()
                    .any(|line| line.starts_with('#') && slug(line) == anchor)
            };
            assert!(
                anchor.is_empty() || has_heading(),
                "{}: {target} has no such heading",
                page.display()
            );
        }
    }
}

#[test]
fn the_changelog_has_the_form_of_keep_a_changelog() {
    let text = read("CHANGELOG.md");
    assert!(text.starts_with("# Changelog\n"), "its title");
    let releases: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    assert_eq!(releases.first(), Some(&"[Unreleased]"), "what comes next stands first");
    for release in &releases {
        let (name, date) = release.split_once(" - ").unwrap_or((release, ""));
        assert!(text.contains(&format!("\n{name}: https://")), "{name} has no link at the end");
        let is_date = date.len() == 10
            && date
                .bytes()
                .enumerate()
                .all(|(i, b)| if i == 4 || i == 7 { b == b'-' } else { b.is_ascii_digit() });
        assert!(is_date || name == "[Unreleased]", "{release}: [version] - year-month-day");
    }
    for kind in text.lines().filter_map(|line| line.strip_prefix("### ")) {
        let kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];
        assert!(kinds.contains(&kind), "{kind} is none of {kinds:?}");
    }
    let version = env!("CARGO_PKG_VERSION");
    let is_released =
        releases.iter().any(|release| release.starts_with(&format!("[{version}] - ")));
    assert!(
        is_released || text.contains(&format!("release will be {version}.")),
        "{version} of Cargo.toml is not there"
    );
}

#[test]
fn every_manifest_names_the_repository() {
    let repository = env!("CARGO_PKG_REPOSITORY");
    assert!(repository.starts_with("https://"), "Cargo.toml: repository = {repository:?}");
    let manifests = [
        "python/pyproject.toml",
        "node/package.json",
        "rust/Cargo.toml",
        "rails/unstale-rails.gemspec",
    ];
    let manifests = manifests.map(|name| format!("clients/{name}"));
    for file in manifests.iter().map(String::as_str).chain(["packaging/copyright", "CHANGELOG.md"])
    {
        assert!(read(file).contains(repository), "{file} does not name {repository}");
    }
}

#[test]
fn the_workflows_run_what_dev_has() {
    let dev = read("dev");
    for file in ["ci.yml", "weekly.yml"] {
        let text = read(&format!(".github/workflows/{file}"));
        for command in
            text.split("./dev ").skip(1).filter_map(|rest| rest.split_whitespace().next())
        {
            assert!(
                dev.contains(&format!("\n    {command}) ")),
                "{file}: there is no ./dev {command}"
            );
        }
    }
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = read("Cargo.toml");
    let dependencies = manifest
        .split("[dependencies]")
        .nth(1)
        .expect("dependencies")
        .split("\n[")
        .next()
        .expect("a table");
    let lines: Vec<_> = dependencies.lines().filter(|line| !line.is_empty()).collect();
    for (i, line) in lines.iter().enumerate().filter(|(_, line)| !line.starts_with('#')) {
        let above = lines[..i].iter().rev().take(3).any(|line| line.starts_with('#'));
        assert!(above || line.contains(" # "), "no reason beside {line}");
    }
}
