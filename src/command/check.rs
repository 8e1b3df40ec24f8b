//! `unstale check`: everything that would make a promise untrue, each with its remedy.

mod keys;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, SystemTime};

use anyhow::bail;
use sqlx::postgres::PgConnection;
use tokio::time::{Instant, sleep};

use crate::cli::Check;
use crate::config::Config;
use crate::deletion::{Deletion, Deletions};
use crate::exposure::{self, Exposure};
use crate::finding::{Finding, Severity};
use crate::pg::checkpoint::Instance;
use crate::pg::{self, Postgres};
use crate::rule::Rule;
use crate::sink::{self, Sink};
use crate::visible;

/// Clocks this far apart make times in logs and in the database hard to compare; nothing else
/// depends on ours.
const CLOCKS: Duration = Duration::from_secs(5);

/// What a user of Redis must be allowed to do.
const COMMANDS: &str = "+unlink +scan +ping +get +set";

/// What `unstale audit`, and the listener's sample, run beside these.
const AUDITS: &str = "+hget +type";

/// A listener that has not stored anything for so long is not there.
const AWAY_SECONDS: f64 = 60.0;

/// Looks at everything, prints what it found, and fails if there is an error.
///
/// # Errors
/// If a URL is missing, the schema is newer than this program, or something is not as it must be.
pub async fn run(config: &Config, args: &Check) -> anyhow::Result<()> {
    let postgres = Postgres::new(config.database_source()?)?;
    let sink = Sink::new(config.redis_source()?, &config.redis.tls, config.redis.timeout)?;
    let exposures =
        [postgres.exposure(), sink.exposure(), config.http.listen.and_then(exposure::of_port)];
    let exposed =
        |exposure: Exposure| Finding::warning(exposure.about, exposure.finding, exposure.remedy);
    let mut findings: Vec<Finding> = exposures.into_iter().flatten().map(exposed).collect();
    let mut connection = match in_postgres(config, &postgres, &mut findings).await {
        Ok(connection) => connection,
        Err(error) if matches!(error.downcast_ref(), Some(pg::Error::SchemaNewer { .. })) => {
            return Err(error);
        }
        // What was found before it is not lost.
        Err(error) => {
            let words = crate::error::one_line(&error);
            findings.push(Finding::error(
                format!("PostgreSQL at {}", postgres.place()),
                words,
                "# see the server's log",
            ));
            None
        }
    };
    if in_redis(&sink, connection.as_mut(), &mut findings).await
        && let Some(mut connection) = connection
    {
        findings.push(check_end_to_end(config, &sink, &mut connection).await?);
        if args.keys {
            findings
                .extend(keys::findings(&sink, &pg::watches::load(&mut connection).await?).await?);
        }
    }
    let text = if args.json {
        visible::json(&format!("{:#}\n", serde_json::json!({ "findings": findings }))).into_owned()
    } else {
        findings.iter().map(in_words).collect()
    };
    super::print(text.as_bytes())?;
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    match (count(Severity::Error), count(Severity::Warning)) {
        (0, _) => Ok(()),
        (errors, warnings) => bail!("{}, {}", plural(errors, "error"), plural(warnings, "warning")),
    }
}

/// Everything about PostgreSQL; the connection, if it is one that a listener could work with.
async fn in_postgres(
    config: &Config,
    postgres: &Postgres,
    findings: &mut Vec<Finding>,
) -> anyhow::Result<Option<PgConnection>> {
    let place = postgres.place();
    let (mut connection, route) =
        match tokio::time::timeout(config.heartbeat.timeout, postgres.route()).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => {
                findings.push(Finding::error(
                    format!("PostgreSQL at {place}"),
                    error.in_full(),
                    error.remedy(),
                ));
                return Ok(None);
            }
            Err(_) => {
                let sentence = format!("no answer within {:?}", config.heartbeat.timeout);
                findings.push(Finding::error(
                    format!("PostgreSQL at {place}"),
                    sentence,
                    "# look for a firewall, or for a server that hangs",
                ));
                return Ok(None);
            }
        };
    if let Err(error) = pg::check_server(&mut connection).await {
        findings.push(Finding::error(
            format!("PostgreSQL at {place}"),
            error.in_full(),
            error.remedy(),
        ));
        return Ok(None);
    }
    findings.push(Finding::ok(
        format!("PostgreSQL at {place}"),
        "it is a primary of a version that will do",
    ));
    let lacking = pg::check::privileges(&mut connection).await?;
    if !lacking.is_empty() {
        findings.extend(lacking);
        return Ok(None);
    }
    match pg::migrate::check(&mut connection).await {
        Err(error @ pg::Error::NotMigrated) => {
            findings.push(Finding::error("schema unstale", error.to_string(), "unstale migrate"));
            return Ok(None);
        }
        result => result?,
    }
    findings.extend(pg::check::surroundings(&mut connection).await?);
    findings.extend(pg::check::findings(&mut connection).await?);
    findings.push(match pg::check::delivers(&route, &mut connection, config.heartbeat.timeout / 2).await {
        Ok(true) => Finding::ok("LISTEN", "notifications arrive"),
        Ok(false) => {
            let sentence = "notifications do not arrive, as behind a pooler in transaction mode: the listener would hear nothing";
            Finding::error("LISTEN", sentence, "# let DATABASE_URL lead to PostgreSQL itself, or to a pool in session mode")
        }
        Err(error) => Finding::error("LISTEN", error.in_full(), error.remedy()),
    });
    let instance =
        Instance { name: config.instance.clone(), forget_after: config.checkpoint.forget_after };
    match tokio::time::timeout(
        config.heartbeat.timeout,
        pg::session::check_permissions(&route, instance),
    )
    .await
    {
        Ok(Ok(())) => {
            findings.push(Finding::ok("start", "all that a listener does at its start can be done"))
        }
        Ok(Err(error)) => findings.push(Finding::error(
            "start",
            format!("a listener would fail: {}", error.in_full()),
            error.remedy(),
        )),
        Err(_) => {
            let sentence = format!("no answer within {:?}", config.heartbeat.timeout);
            findings.push(Finding::error(
                "start",
                sentence,
                "# somebody holds a lock: select * from pg_locks where not granted",
            ));
        }
    }
    let theirs = SystemTime::UNIX_EPOCH
        + Duration::from_micros(u64::try_from(pg::clock(&mut connection).await?.0)?);
    let ours = SystemTime::now();
    let apart =
        ours.duration_since(theirs).or_else(|_| theirs.duration_since(ours)).unwrap_or_default();
    if apart > CLOCKS {
        findings.push(Finding::warning(
            "clock",
            format!("PostgreSQL's differs from this host's by {apart:.0?}"),
            "timedatectl set-ntp true",
        ));
    }
    Ok(Some(connection))
}

/// Everything about Redis; can it be worked with?
async fn in_redis(
    sink: &Sink,
    connection: Option<&mut PgConnection>,
    findings: &mut Vec<Finding>,
) -> bool {
    let globs = globs(connection).await;
    let infos = match sink.infos().await {
        Ok(infos) => infos,
        Err(error @ sink::Error::Refused(_)) => {
            findings.push(Finding::warning(
                "Redis",
                format!("INFO: {error}"),
                grant(sink, "+info"),
            ));
            Vec::new()
        }
        Err(error) => {
            findings.push(Finding::error(
                "Redis",
                error.to_string(),
                "# correct REDIS_URL, or start the server",
            ));
            return false;
        }
    };
    for info in infos {
        findings.extend(sink::check::findings(&info, sink.is_cluster()));
    }
    match sink.can_mark().await {
        Ok(()) => {}
        Err(error @ sink::Error::Refused(_)) => findings.push(Finding::warning(
            "Redis",
            format!("after each reconnect all of the last replay.window is deleted again, as nothing tells what was kept: {error}"),
            grant(sink, "+get +set '~unstale:*'"),
        )),
        Err(_) => {} // the check of permissions will show it
    }
    let rules = key_rules(&globs);
    if let Err(error) = sink.check_permissions(&globs).await {
        // To a user who may touch every key no rule can be added.
        let rules = if error.is_of_key() { format!(" {rules}") } else { String::new() };
        let remedy = grant(sink, &format!("{COMMANDS}{rules}"));
        findings.push(Finding::error("Redis", format!("it cannot delete: {error}"), remedy));
        return false;
    }
    findings.push(Finding::ok(
        "Redis",
        format!("it can delete; a user of its own needs no more than: {COMMANDS} {rules} (and {AUDITS} for an audit)"),
    ));
    true
}

/// All keys of the watches.
async fn globs(connection: Option<&mut PgConnection>) -> BTreeSet<String> {
    let watches = match connection {
        Some(connection) => pg::watches::load(connection).await.unwrap_or_default(),
        None => Vec::new(),
    };
    let rules = watches.into_iter().filter_map(|watched| Rule::of(&watched).ok());
    let texts = |rule: Rule| rule.everything().map(Deletion::into_text).collect::<Vec<_>>();
    rules.flat_map(texts).collect()
}

/// The keys that a user of Redis must be allowed to touch, as ACL rules. Where one cannot be quoted
/// for a shell, all of them.
fn key_rules(globs: &BTreeSet<String>) -> String {
    let is_plain = |text: &String| text.chars().all(|c| c.is_ascii_graphic() && c != '\'');
    if globs.is_empty() || !globs.iter().all(is_plain) {
        return "'~*'".into();
    }
    globs.iter().map(|text| format!("'~{text}' ")).collect::<String>() + "'~unstale:*'"
}

/// A key of this check alone: put into this Redis, and its name said in this database, to this
/// instance. Only a listener that hears this database under this name and deletes from this Redis
/// takes it away, whoever else shares any of the three.
async fn check_end_to_end(
    config: &Config,
    sink: &Sink,
    connection: &mut PgConnection,
) -> anyhow::Result<Finding> {
    let about = format!("listener {:?}", config.instance);
    let start = "systemctl start unstale   # or, to try it: unstale run";
    let Some(ago) = pg::check::last_seen(connection, &config.instance).await? else {
        return Ok(Finding::error(
            about,
            "no listener of this name was ever here: nothing is deleted",
            start,
        ));
    };
    let [high, low] = [0, 1].map(|n| RandomState::new().hash_one(n));
    let probe = format!("{}:{high:016x}{low:016x}", config.instance);
    let key = format!("unstale:canary:{probe}");
    let patience = config.heartbeat.interval * 3 + config.heartbeat.timeout;
    let began = Instant::now();
    if let Err(error) = sink.put(&key, patience * 2).await {
        let remedy = grant(sink, "+set +exists");
        return Ok(Finding::warning(
            about,
            format!("the whole way was not tried: {error}"),
            remedy,
        ));
    }
    pg::check::probe(connection, &probe).await?;
    let gone = async {
        while sink.has(&key).await? {
            if began.elapsed() > patience {
                return Ok(false);
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok::<_, sink::Error>(true)
    };
    Ok(match gone.await {
        Ok(true) => {
            Finding::ok(about, format!("a key went the whole way in {:.0?}", began.elapsed()))
        }
        Ok(false) => {
            let _ = sink.finish(Deletions::Keys(vec![key].into())).await;
            if ago > AWAY_SECONDS {
                return Ok(Finding::error(
                    about,
                    format!("it was last here {ago:.0} seconds ago: nothing is deleted"),
                    start,
                ));
            }
            let sentence = "it was here a moment ago, and a key that it was asked to delete is still there: \
                            it does not run, is not ready, has another Redis, or is of an older version";
            Finding::error(
                about,
                sentence,
                "systemctl status unstale # says why it is not ready; its REDIS_URL must be this one",
            )
        }
        Err(error) => Finding::warning(
            about,
            format!("the whole way was not tried: {error}"),
            grant(sink, "+set +exists"),
        ),
    })
}

/// Lets our user of Redis do this.
fn grant(sink: &Sink, rights: &str) -> String {
    match visible::in_shell(&sink.user()) {
        Some(user) => format!("redis-cli acl setuser {user} {rights}"),
        None => format!("# let the user of REDIS_URL have {rights}"),
    }
}

fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

fn in_words(finding: &Finding) -> String {
    let label = match finding.severity {
        Severity::Ok => "ok",
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    let mut text = format!(
        "{label:<8} {}: {}\n",
        visible::line(&finding.about),
        visible::line(&finding.finding)
    );
    if let Some(remedy) = &finding.remedy {
        // Escaped it would mean something else, and as it is it would be something else than what
        // is seen.
        let withheld = "# the remedy holds a name that cannot be shown and pasted safely; it is in `unstale check --json`";
        let _ = writeln!(
            text,
            "{:<8} {}",
            "",
            if visible::is_pastable(remedy) { remedy } else { withheld }
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_print_a_line_of_its_own_nor_a_remedy_that_is_not_what_it_seems() {
        let finding = Finding::error(
            "public.\"a\nalter role m superuser;\"",
            "x\u{1b}[2K",
            "select unstale.watch('a\nalter role m superuser;')",
        );
        let text = in_words(&finding);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(
            text.contains(r"a\nalter role")
                && !text.contains('\u{1b}')
                && text.contains("# the remedy holds"),
            "{text}"
        );
    }
}
