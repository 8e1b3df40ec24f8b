//! `unstale check --keys`: do the keys of the watches expire, and soon enough?
//!
//! A time to live is the last line of defence: it ends what no promise covers, such as a value that
//! a reader put back.

use std::time::{Duration, Instant};

use crate::deletion::Deletion;
use crate::finding::Finding;
use crate::rule::Rule;
use crate::sink::{Error, Sink};
use crate::visible;
use crate::watched::Watched;

/// Keys of a template that are looked at.
const KEYS: usize = 1_000;

/// Steps of a thousand keys through Redis in search of them.
const STEPS: usize = 1_000;

/// Keys that are named.
const EXAMPLES: usize = 3;

/// What a key without a time to live gets by the remedy where the watch has no policy.
const A_DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Keys and how long they will live.
#[derive(Debug, Default)]
struct Sample {
    /// `None`: for ever.
    keys: Vec<(String, Option<Duration>)>,
    /// There are no others.
    is_all: bool,
}

/// One finding for each template.
///
/// # Errors
/// If a template cannot be read, which `unstale.watch()` refuses.
pub(super) async fn findings(sink: &Sink, watches: &[Watched]) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for watched in watches.iter().filter(|watched| !watched.ended) {
        let rule = Rule::of(watched)?;
        for deletion in rule.everything() {
            let (pattern, sample) = match deletion {
                Deletion::Key(key) => (
                    key.clone(),
                    sink.life_of(&key).await.map(|keys| Sample { keys, is_all: true }),
                ),
                Deletion::Pattern(pattern) => (pattern.clone(), sample(sink, &pattern).await),
            };
            findings.push(match sample {
                Ok(sample) => {
                    judge(&pattern, &sample, watched.spec.max_ttl, sink.is_for_redis_cli())
                }
                Err(error) => not_looked_at(sink, &pattern, &error),
            });
        }
    }
    Ok(findings)
}

/// Rests as long as it works, so that others hardly notice.
async fn sample(sink: &Sink, pattern: &str) -> Result<Sample, Error> {
    let mut sample = Sample::default();
    let mut cursor = "0".to_owned();
    for _ in 0..STEPS {
        let began = Instant::now();
        let (next, keys) = sink.scan_ttls(pattern, cursor).await?;
        sample.keys.extend(keys);
        sample.is_all = next == "0";
        if sample.is_all || sample.keys.len() >= KEYS {
            break;
        }
        cursor = next;
        tokio::time::sleep(began.elapsed()).await;
    }
    Ok(sample)
}

fn not_looked_at(sink: &Sink, pattern: &str, error: &Error) -> Finding {
    Finding::warning(
        format!("keys {pattern}"),
        format!("they were not looked at: {error}"),
        super::grant(sink, "+scan +pttl"),
    )
}

fn judge(
    pattern: &str,
    sample: &Sample,
    max_ttl: Option<Duration>,
    is_for_redis_cli: bool,
) -> Finding {
    let about = format!("keys {pattern}");
    let looked_at = format!(
        "{}{}",
        if sample.is_all { "" } else { "of a sample, " },
        super::plural(sample.keys.len(), "key")
    );
    let is_too_long =
        |life: &Option<Duration>| life.is_none_or(|life| max_ttl.is_some_and(|most| life > most));
    let too_long: Vec<&str> = sample
        .keys
        .iter()
        .filter(|(_, life)| is_too_long(life))
        .map(|(key, _)| key.as_str())
        .collect();
    if too_long.is_empty() {
        let longest = sample.keys.iter().filter_map(|(_, life)| *life).max();
        return Finding::ok(
            about,
            longest.map_or(looked_at.clone(), |longest| {
                format!("{looked_at}; the last expires in {longest:.0?}")
            }),
        );
    }
    let examples =
        too_long.iter().take(EXAMPLES).map(|key| format!("{key:?}")).collect::<Vec<_>>().join(", ");
    let ttl = max_ttl.unwrap_or(A_DAY);
    let remedy = if is_for_redis_cli { remedy(pattern, ttl) } else { by_hand(ttl) };
    let count = too_long.len();
    match max_ttl {
        None => {
            let sentence = format!(
                "{looked_at}, {count} without a time to live ({examples}): what goes wrong once stays wrong"
            );
            Finding::warning(about, sentence, remedy)
        }
        Some(most) => {
            let most = humantime::format_duration(most);
            Finding::error(
                about,
                format!(
                    "{looked_at}, {count} that live longer than the watch's max_ttl of {most} ({examples})"
                ),
                remedy,
            )
        }
    }
}

/// For those that are there; the application must do its part. Those that expire sooner are left
/// alone, by a look at each: EXPIRE knows LT since Redis 7.
fn remedy(pattern: &str, ttl: Duration) -> String {
    let Some(pattern) = visible::in_shell(pattern) else {
        return "# give the keys a time to live; their template cannot be pasted safely".to_owned();
    };
    let seconds = ttl.as_secs().max(1);
    let cli = r#"redis-cli -u "$REDIS_URL""#;
    format!(
        r#"{cli} --scan --pattern {pattern} | while IFS= read -r key; do life=$({cli} ttl "$key" < /dev/null); if [ "$life" = -1 ] || [ "$life" -gt {seconds} ]; then {cli} expire "$key" {seconds} < /dev/null; fi; done"#
    )
}

/// Where the keys are on several servers, or redis-cli does not understand the URL.
fn by_hand(ttl: Duration) -> String {
    format!(
        "# on each primary: SCAN, and EXPIRE {} for each of the keys that lives longer",
        ttl.as_secs().max(1)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    fn judged(lives: &[Option<u64>], max_ttl: Option<u64>) -> Finding {
        let keys = lives
            .iter()
            .enumerate()
            .map(|(n, life)| (format!("k:{n}"), life.map(Duration::from_secs)))
            .collect();
        judge("k:*", &Sample { keys, is_all: true }, max_ttl.map(Duration::from_secs), true)
    }

    #[test]
    fn where_redis_cli_cannot_help_it_is_not_named() {
        let sample = Sample { keys: vec![("k:1".into(), None)], is_all: true };
        let remedy = |is_for_redis_cli| judge("k:*", &sample, None, is_for_redis_cli).remedy;
        assert!(remedy(true).is_some_and(|remedy| remedy.starts_with("redis-cli")));
        assert!(remedy(false).is_some_and(|remedy| remedy.starts_with("# on each primary")));
    }

    #[test]
    fn a_policy_makes_an_error_of_what_lives_too_long() {
        assert_eq!(judged(&[], Some(60)).severity, Severity::Ok);
        assert_eq!(judged(&[Some(60)], Some(60)).severity, Severity::Ok);
        assert_eq!(judged(&[Some(60), Some(61)], Some(60)).severity, Severity::Error);
        assert_eq!(judged(&[None], Some(60)).severity, Severity::Error);
        assert_eq!(judged(&[Some(999_999)], None).severity, Severity::Ok);
        assert_eq!(judged(&[None], None).severity, Severity::Warning);
    }

    #[test]
    fn three_are_named() {
        let finding = judged(&[None, Some(1), None, None, None], Some(60)).finding;
        assert_eq!(
            finding,
            r#"5 keys, 4 that live longer than the watch's max_ttl of 1m ("k:0", "k:2", "k:3")"#
        );
    }
}
