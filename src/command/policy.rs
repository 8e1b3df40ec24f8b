//! `unstale policy`: the caching policy of a database as a document, from its watches.
//!
//! With `--check` also what is missing of it: a watch without guarantee, longest life or reason,
//! and keys in Redis that begin as those of a watch and are deleted by none.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::bail;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::cli::Policy;
use crate::config::Config;
use crate::glob::Glob;
use crate::pg::{Postgres, watches};
use crate::rule::Rule;
use crate::sink::Sink;
use crate::visible;
use crate::watched::{Audited, Watched};

/// Keys of each prefix that are named.
const EXAMPLES: usize = 3;

/// Prints it.
///
/// # Errors
/// If a server cannot be asked, or, with `--check`, if something is missing.
pub async fn run(config: &Config, args: &Policy) -> anyhow::Result<()> {
    let mut connection = super::connect(&Postgres::new(config.database_source()?)?).await?;
    let watches: Vec<Watched> = watches::load(&mut connection)
        .await?
        .into_iter()
        .filter(|watched| !watched.ended)
        .collect();
    drop(connection);
    let mut missing = Vec::new();
    if args.check {
        let sink = Sink::new(config.redis_source()?, &config.redis.tls, config.redis.timeout)?;
        missing = watches.iter().flat_map(unsaid).collect();
        missing.extend(uncovered(&sink, &watches).await?);
    }
    if args.json {
        let document = json!({ "watches": watches.iter().map(in_json).collect::<Vec<_>>(), "missing": missing });
        super::print(visible::json(&format!("{document:#}\n")).as_bytes())?;
    } else {
        super::print(in_markdown(&watches, &missing).as_bytes())?;
    }
    match missing.len() {
        0 => Ok(()),
        1 => bail!("the policy lacks something"),
        n => bail!("the policy lacks {n} things"),
    }
}

/// What a watch does not say of its cached values.
fn unsaid(watched: &Watched) -> Vec<String> {
    let spec = &watched.spec;
    let parts = [
        (
            spec.guarantee.is_none(),
            "guarantee, what its readers were promised: guarantee => 'lease', 'bounded' or 'eventual'",
        ),
        (spec.max_ttl.is_none(), "longest life, the last line of defence: max_ttl => '1 hour'"),
        (spec.reason.is_none(), "reason, why it is cached, and for so long: reason => '...'"),
    ];
    parts
        .iter()
        .filter(|(lacks, _)| *lacks)
        .map(|(_, what)| format!("{} has no {what}", watched.table))
        .collect()
}

/// Keys that begin as those of a template do, and that no template makes: deleted by nobody. One
/// sentence a prefix.
async fn uncovered(sink: &Sink, watches: &[Watched]) -> anyhow::Result<Vec<String>> {
    let mut globs = Vec::new();
    for watched in watches {
        let rule = Rule::of(watched)?;
        for deletion in rule.everything() {
            globs.push(Glob::parse(deletion.text())?);
        }
    }
    let prefixes = globs
        .iter()
        .map(Glob::prefix)
        .filter(|prefix| !prefix.is_empty())
        .map(|prefix| String::from_utf8_lossy(prefix).into_owned());
    let mut found: BTreeMap<String, (u64, Vec<String>)> =
        prefixes.map(|prefix| (prefix, (0, Vec::new()))).collect();
    let mut cursor = "0".to_owned();
    loop {
        let began = Instant::now();
        let (next, keys) = sink.scan_ttls("*", cursor).await?;
        for (key, _) in keys {
            let is_covered = globs.iter().any(|glob| glob.matches(key.as_bytes()));
            let longest = |found: &&String| found.len();
            if is_covered || key.starts_with("unstale:") {
                continue;
            }
            let prefix =
                found.keys().filter(|prefix| key.starts_with(*prefix)).max_by_key(longest).cloned();
            if let Some((count, examples)) = prefix.and_then(|prefix| found.get_mut(&prefix)) {
                *count += 1;
                if examples.len() < EXAMPLES && !examples.contains(&key) {
                    examples.push(key);
                }
            }
        }
        if next == "0" {
            break;
        }
        cursor = next;
        sleep(began.elapsed()).await; // others hardly notice
    }
    let sentence = |(prefix, (count, examples)): (String, (u64, Vec<String>))| {
        let keys = if count == 1 { "1 key begins" } else { &format!("{count} keys begin") };
        format!("{keys} with \"{prefix}\" and no watch deletes them: {}", examples.join(", "))
    };
    Ok(found.into_iter().filter(|(_, (count, _))| *count > 0).map(sentence).collect())
}

fn in_json(watched: &Watched) -> Value {
    let spec = &watched.spec;
    json!({
        "table": watched.table,
        "keys": spec.keys,
        "guarantee": spec.guarantee,
        "max_ttl_seconds": spec.max_ttl.map(|ttl| ttl.as_secs()),
        "reason": spec.reason,
        "delivery": spec.delivery,
        "updated_at": spec.updated_at.as_ref().filter(|_| watched.sweepable),
        "only_columns": spec.only_columns,
        "version": spec.version,
        "version_path": spec.version_path,
        "audited": watched.audited.map(|audited| json!({
            "at": moment(audited),
            "complete": audited.complete,
            "compared": audited.compared,
            "stale": audited.stale,
            "unreadable": audited.unreadable,
        })),
    })
}

fn in_markdown(watches: &[Watched], missing: &[String]) -> String {
    let mut text =
        "# Caching policy\n\nA change of a row deletes the row's keys from Redis. The rest is below, cache by cache.\n".to_owned();
    if watches.is_empty() {
        text.push_str("\nNothing is watched.\n");
    }
    for watched in watches {
        let spec = &watched.spec;
        let codes =
            |texts: &[String]| texts.iter().map(|text| code(text)).collect::<Vec<_>>().join(", ");
        let lines = [
            ("keys", codes(&spec.keys)),
            ("guarantee", guarantee(spec.guarantee.as_deref(), spec.max_ttl)),
            (
                "longest life",
                spec.max_ttl.map_or("not said".to_owned(), |ttl| {
                    humantime::format_duration(ttl).to_string()
                }),
            ),
            ("why", spec.reason.as_deref().map_or("not said".to_owned(), prose)),
            ("deleted", mechanism(watched)),
            (
                "an UPDATE counts",
                spec.only_columns.as_ref().map_or("always".to_owned(), |columns| {
                    format!("if one of {} or of a key changed", codes(columns))
                }),
            ),
            (
                "version",
                spec.version
                    .as_deref()
                    .zip(spec.version_path.as_deref())
                    .map_or("not said".to_owned(), |(column, path)| {
                        format!("{} at {}", code(column), code(path))
                    }),
            ),
            ("last audited", watched.audited.map_or("never".to_owned(), audit)),
        ];
        let _ = write!(text, "\n## {}\n\n| | |\n|---|---|\n", prose(&watched.table));
        for (name, value) in lines {
            let _ = writeln!(text, "| {name} | {value} |");
        }
    }
    if !missing.is_empty() {
        text.push_str("\n## Missing\n\n");
    }
    for sentence in missing {
        let _ = writeln!(text, "- {}", prose(sentence));
    }
    text
}

fn guarantee(guarantee: Option<&str>, max_ttl: Option<Duration>) -> String {
    match (guarantee, max_ttl) {
        (None, _) => "not said".to_owned(),
        (Some("lease"), _) => {
            "lease: readers hold one, so that nothing older than a delivered change is stored again"
                .to_owned()
        }
        (Some("bounded"), Some(ttl)) => format!(
            "bounded: nothing is older than {}, whoever stores it",
            humantime::format_duration(ttl)
        ),
        (Some("bounded"), None) => "bounded, and by what is not said".to_owned(),
        (Some("eventual"), _) => {
            "eventual: a reader may store an old value again, until its next change or its end"
                .to_owned()
        }
        (Some(other), _) => prose(other),
    }
}

/// When it was, as RFC 3339 writes it.
fn moment(audited: Audited) -> Option<String> {
    let since = Duration::from_micros(u64::try_from(audited.at.0).ok()?);
    Some(humantime::format_rfc3339_seconds(UNIX_EPOCH + since).to_string())
}

fn audit(audited: Audited) -> String {
    let Audited { complete, compared, stale, unreadable, .. } = audited;
    let of = if complete { "all" } else { "a sample" };
    let unreadable =
        if unreadable > 0 { format!(", {unreadable} without a version") } else { String::new() };
    format!(
        "{}, {of}: {stale} of {compared} cached values stale{unreadable}",
        moment(audited).unwrap_or_default()
    )
}

fn mechanism(watched: &Watched) -> String {
    let how = match watched.spec.delivery.as_str() {
        "log" => "from the log",
        _ => "when it is announced, or from the log",
    };
    match watched.spec.updated_at.as_deref().filter(|_| watched.sweepable) {
        Some(column) => format!("{how}; after a gap by {} and the log", code(column)),
        None => format!("{how}; after a gap by the log, where every change is"),
    }
}

/// A text of somebody's within a table of Markdown: none of its signs means anything.
fn prose(text: &str) -> String {
    let mut safe = String::new();
    for c in visible::line(text).chars() {
        if r"\`*_{}[]<>#|&~!".contains(c) {
            safe.push('\\');
        }
        safe.push(c);
    }
    safe
}

/// A text of somebody's as code. A table's cell ends at `|`, in code, too.
fn code(text: &str) -> String {
    let text = visible::line(text).replace('|', r"\|");
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or_default();
    let (fence, space) = (
        "`".repeat(longest + 1),
        if text.starts_with('`') || text.ends_with('`') { " " } else { "" },
    );
    format!("{fence}{space}{text}{space}{fence}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_stays_in_its_cell() {
        assert_eq!(prose("a | b <script> [x](y)\n"), r"a \| b \<script\> \[x\](y)\\n");
        assert_eq!(code("user:{id}"), "`user:{id}`");
        assert_eq!(code("a`b|"), r"``a`b\|``");
        assert_eq!(code("`a"), "`` `a ``");
    }
}
