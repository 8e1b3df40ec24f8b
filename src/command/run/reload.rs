//! SIGHUP: the configuration is read again, and what can change while the listener listens does.
//!
//! A configuration that is wrong changes nothing. Variables of the environment stay as they were at the start; what may differ is
//! the file, and the files that hold the URLs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use tokio::signal::unix::Signal;
use tokio::sync::watch;

use crate::config::Config;
use crate::config::reading::Aside;
use crate::listener::driver::Dependencies;
use crate::logs::Filter;
use crate::observe::{Observation, observe};
use crate::sink::Marks;

/// For all files together. Until then the listener does its work.
const PATIENCE: Duration = Duration::from_secs(10);

/// Answers each SIGHUP.
pub(super) async fn on_hangup(
    mut hangup: Signal,
    file: Option<PathBuf>,
    mut known: Config,
    filter: Filter,
    parts: watch::Sender<Dependencies>,
) {
    let aside = Aside::default();
    while hangup.recv().await.is_some() {
        match again(&aside, file.clone(), &known, &filter, &parts).await {
            Ok((new, differences)) => {
                observe(&differences);
                known = new;
            }
            Err(error) => observe(&Observation::ConfigurationRefused { reason: format!("{error:#}") }),
        }
    }
}

async fn again(
    aside: &Aside,
    file: Option<PathBuf>,
    known: &Config,
    filter: &Filter,
    parts: &watch::Sender<Dependencies>,
) -> anyhow::Result<(Config, Observation)> {
    let mut new = aside.run(PATIENCE, move || Config::from_process(file.as_deref())).await??;
    let differences = differences(known, &new);
    new.instance.clone_from(&known.instance); // progress is kept under it
    new.http.clone_from(&known.http);
    new.log.format = known.log.format;
    let made = new.clone();
    let old = parts.borrow().clone();
    let marks = old.sink.marks().unwrap_or_else(|| Arc::new(Marks::new(&new.instance)));
    let mut replaced = aside.run(PATIENCE, move || super::parts(&made, marks)).await??; // it tries the files of TLS
    replaced.settings.seed = old.settings.seed;
    if is_same_redis(known, &new) {
        replaced.sink = old.sink; // and its connection
    }
    filter.set(&new.log)?;
    super::exposures(&new, &replaced)
        .filter(|_| known_url_changed(known, &new))
        .for_each(|exposure| observe(&Observation::Exposed(exposure)));
    parts.send_replace(replaced);
    Ok((new, differences))
}

fn is_same_redis(old: &Config, new: &Config) -> bool {
    !differ(old.redis.url.as_ref(), new.redis.url.as_ref()) && old.redis.timeout == new.redis.timeout && old.redis.tls == new.redis.tls
}

fn known_url_changed(old: &Config, new: &Config) -> bool {
    differ(old.database.url.as_ref(), new.database.url.as_ref()) || differ(old.redis.url.as_ref(), new.redis.url.as_ref())
}

fn differ(old: Option<&SecretString>, new: Option<&SecretString>) -> bool {
    old.map(ExposeSecret::expose_secret) != new.map(ExposeSecret::expose_secret)
}

fn replicas_differ(old: &Config, new: &Config) -> bool {
    let (before, after) = (&old.replicas, &new.replicas);
    let is_other = |(old, new)| differ(Some(old), Some(new));
    before.max_wait != after.max_wait || before.urls.len() != after.urls.len() || before.urls.iter().zip(&after.urls).any(is_other)
}

fn differences(old: &Config, new: &Config) -> Observation {
    let changed = [
        ("database.url", differ(old.database.url.as_ref(), new.database.url.as_ref())),
        ("redis.url", differ(old.redis.url.as_ref(), new.redis.url.as_ref())),
        ("redis.tls", old.redis.tls != new.redis.tls),
        ("redis.timeout", old.redis.timeout != new.redis.timeout),
        ("log.filter", old.log.filter != new.log.filter),
        ("heartbeat", old.heartbeat != new.heartbeat),
        ("backoff", old.backoff != new.backoff),
        ("batch", old.batch != new.batch),
        ("sweep", old.sweep != new.sweep),
        ("repeat", old.repeat != new.repeat),
        ("audit", old.audit != new.audit),
        ("replicas", replicas_differ(old, new)),
        ("replay", old.replay != new.replay),
        ("checkpoint", old.checkpoint != new.checkpoint),
        ("shutdown", old.shutdown != new.shutdown),
    ];
    let fixed = [
        ("instance", old.instance != new.instance),
        ("http.listen", old.http != new.http),
        ("log.format", old.log.format != new.log.format),
    ];
    let names = |of: &[(&'static str, bool)]| of.iter().filter(|(_, differs)| *differs).map(|(name, _)| *name).collect();
    Observation::Reconfigured { changed: names(&changed), fixed: names(&fixed) }
}
