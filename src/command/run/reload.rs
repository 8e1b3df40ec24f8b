//! SIGHUP: the configuration is read again, and what can change while the listener listens does.
//!
//! A configuration that is wrong changes nothing. Variables of the environment stay as they were at
//! the start; what may differ is the file, and the files that hold the URLs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::watch;

use crate::config::reading::Aside;
use crate::config::{Config, Taken};
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
            Err(error) => {
                observe(&Observation::ConfigurationRefused { reason: format!("{error:#}") })
            }
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
    let new = aside.run(PATIENCE, move || Config::from_process(file.as_deref())).await??;
    let differences = known.differences(&new);
    let new = new.keeping(known);
    let made = new.clone();
    let old = parts.borrow().clone();
    let marks = old.sink.marks().unwrap_or_else(|| Arc::new(Marks::new(&new.instance)));
    let mut replaced = aside.run(PATIENCE, move || super::parts(&made, marks)).await??; // it tries the files of TLS
    replaced.settings.seed = old.settings.seed;
    if !differences.iter().any(|(key, _)| key.starts_with("redis.")) {
        replaced.sink = old.sink; // and its connection
    }
    filter.set(&new.log)?;
    if differences.iter().any(|(key, _)| matches!(*key, "database.url" | "redis.url")) {
        super::exposures(&new, &replaced)
            .for_each(|exposure| observe(&Observation::Exposed(exposure)));
    }
    parts.send_replace(replaced);
    let (fixed, changed): (Vec<_>, Vec<_>) =
        differences.into_iter().partition(|(_, taken)| *taken == Taken::Restart);
    let names = |of: Vec<(&'static str, Taken)>| of.into_iter().map(|(key, _)| key).collect();
    Ok((new, Observation::Reconfigured { changed: names(changed), fixed: names(fixed) }))
}
