//! Redis: deleting keys, and saying whether it was done.
//!
//! Owns the only connections to Redis: to one server, to the primary behind Sentinel, or to each
//! primary of a cluster. One attempt is one call; who repeats it is a [`worker`]. Must hold: what
//! is said to be done, Redis has answered for. Refuses to know PostgreSQL, and to log or show the
//! URL, which holds the password.

pub mod check;
mod cluster;
mod connection;
mod error;
mod fence;
mod groups;
mod look;
mod map;
mod marks;
mod read;
mod routing;
mod sentinel;
mod server;
mod slots;
mod tls;
mod url;
mod walk;
mod wire;
pub mod worker;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{Source, Tls};
use crate::deletion::Deletions;
use crate::delivered::{Delivered, Left};
use crate::exposure::{self, Exposure};
use crate::status;

use cluster::Cluster;
use connection::Settings;
pub use error::Error;
use groups::Groups;
pub use marks::Marks;
pub use read::Cached;
use sentinel::Sentinels;
use server::{Manner, Marking, Outcome, Server, Way};
pub use slots::slot;
use url::Place;
use wire::Address;

/// How often [`Sink::finish`] tries, and how long it waits in between: long enough for a fail-over.
const ATTEMPTS: u32 = 60;
const PAUSE: Duration = Duration::from_millis(250);

/// See the module.
pub struct Sink {
    settings: Settings,
    kind: Kind,
    marks: Option<Arc<Marks>>,
}

enum Kind {
    One(Box<Server>),
    Cluster(Arc<Cluster>),
}

/// What a command brought.
#[derive(Debug)]
pub struct Done {
    /// How many of the keys existed.
    pub existed: u64,
    /// Who did what, and what is left.
    pub delivered: Delivered,
}

impl Sink {
    /// Reads the URL and tries the files of `tls`; connects when first asked for something.
    /// `timeout` bounds each command.
    ///
    /// # Errors
    /// [`Error::Url`], [`Error::File`].
    pub fn new(
        secret: impl Into<Source>,
        tls: &Tls,
        timeout: Duration,
    ) -> Result<Arc<Self>, Error> {
        Self::of(secret.into(), tls, timeout, None)
    }

    /// The same, which also marks how far it has come.
    ///
    /// # Errors
    /// Likewise.
    pub fn marking(
        secret: impl Into<Source>,
        tls: &Tls,
        timeout: Duration,
        marks: Arc<Marks>,
    ) -> Result<Arc<Self>, Error> {
        Self::of(secret.into(), tls, timeout, Some(marks))
    }

    fn of(
        secret: Source,
        tls: &Tls,
        timeout: Duration,
        marks: Option<Arc<Marks>>,
    ) -> Result<Arc<Self>, Error> {
        let settings = Settings { secret, tls: tls.clone(), timeout };
        let url = settings.url()?;
        if url.tls {
            tls::client_config(tls)?; // its files are there
        }
        let way = match url.place {
            Place::Cluster(nodes) => {
                let kind = Kind::Cluster(Cluster::new(settings.clone(), nodes, marks.clone()));
                return Ok(Arc::new(Self { settings, kind, marks }));
            }
            Place::Server(node) => Way::At(Address::Host(node)),
            Place::Socket(path) => Way::At(Address::Socket(path)),
            Place::Sentinel { nodes, service } => {
                Way::Sentinels(Arc::new(Sentinels::new(&settings, nodes, service)))
            }
        };
        let marking = marks.as_ref().map(|marks| Marking::new(marks, "".into()));
        let kind = Kind::One(Box::new(Server::new(settings.clone(), way, marking)));
        Ok(Arc::new(Self { settings, kind, marks }))
    }

    /// What tells the slot of a key, if it is a cluster.
    #[must_use]
    pub fn slot(&self) -> Option<fn(&[u8]) -> u16> {
        matches!(self.kind, Kind::Cluster(_)).then_some(slot)
    }

    /// Its marks, for another one that takes its place.
    #[must_use]
    pub fn marks(&self) -> Option<Arc<Marks>> {
        self.marks.clone()
    }

    /// Deletes, as far as that can be done now. Twice is as good as once.
    ///
    /// # Errors
    /// Then some of it may have been done, and all of it is to be repeated.
    pub async fn perform(&self, deletions: &Deletions) -> Result<Done, Error> {
        let server = match &self.kind {
            Kind::Cluster(cluster) => return cluster.perform(deletions).await,
            Kind::One(server) => server,
        };
        let outcome = match deletions {
            Deletions::Keys(keys) if keys.is_empty() => {
                server.delete(&Groups::default(), Manner::Alone).await?
            }
            Deletions::Keys(keys) => {
                let outcome =
                    server.delete(&Groups::together(routing::shared(keys)), Manner::Alone).await?;
                if !outcome.refused.is_empty() {
                    return one_by_one(server, keys).await;
                }
                outcome
            }
            Deletions::Patterns(patterns) if patterns.is_empty() => {
                server.delete(&Groups::default(), Manner::Alone).await?
            }
            Deletions::Patterns(patterns) => server.walk(patterns, Manner::Alone).await?,
        };
        Ok(Done {
            existed: outcome.existed,
            delivered: Delivered::whole(outcome.answer, deletions.clone()),
        })
    }

    /// Deletes all of it: what is handed back is tried again for some seconds. Returns how many of
    /// the keys existed.
    ///
    /// # Errors
    /// As [`Sink::perform`]; and [`Error::Left`].
    pub async fn finish(&self, deletions: Deletions) -> Result<u64, Error> {
        let (mut existed, mut deletions) = (0, deletions);
        let mut reason = String::new();
        for _ in 0..ATTEMPTS {
            let done = self.perform(&deletions).await?;
            existed += done.existed;
            let Some(left) = done.delivered.left else { return Ok(existed) };
            (deletions, reason) = (left.deletions, left.reason);
            tokio::time::sleep(PAUSE).await;
        }
        Err(Error::Left(reason))
    }

    /// Could somebody in between read the password?
    #[must_use]
    pub fn exposure(&self) -> Option<Exposure> {
        let url = self.settings.url().ok()?;
        let nodes = match &url.place {
            Place::Server(node) => std::slice::from_ref(node),
            Place::Cluster(nodes) | Place::Sentinel { nodes, .. } => nodes,
            Place::Socket(_) => &[],
        };
        nodes
            .iter()
            .find_map(|(host, _)| exposure::of_redis(Some(host), url.tls, url.password.is_some()))
    }

    /// Its servers, as far as is known without asking them.
    #[must_use]
    pub fn standing(&self) -> status::Redis {
        let (kind, servers) = match &self.kind {
            Kind::Cluster(cluster) => ("cluster", cluster.standing()),
            Kind::One(server) => (
                if server.is_behind_sentinel() { "sentinel" } else { "server" },
                vec![server.standing()],
            ),
        };
        status::Redis { kind: kind.to_owned(), more: 0, servers }
    }

    /// The user of the URL, for people.
    #[must_use]
    pub fn user(&self) -> String {
        self.settings.url().ok().and_then(|url| url.user).unwrap_or_else(|| "default".into())
    }
}

/// Deletes the keys that the user may touch, where one of them held up the others.
async fn one_by_one(server: &Server, keys: &[String]) -> Result<Done, Error> {
    let groups = Groups::apart(routing::shared(keys));
    let Outcome { existed, answer, refused, .. } = server.delete(&groups, Manner::Alone).await?;
    let places: HashSet<usize> = refused.iter().map(|(place, _)| *place).collect();
    let (mut done, mut left) = (Vec::new(), Vec::new());
    for (place, key) in keys.iter().enumerate() {
        if places.contains(&place) { left.push(key.clone()) } else { done.push(key.clone()) }
    }
    let mut delivered = Delivered::whole(answer, Deletions::Keys(Arc::new(done)));
    delivered.left = refused.into_iter().next().map(|(_, words)| Left {
        reason: Error::Refused(words).to_string(),
        deletions: Deletions::Keys(Arc::new(left)),
    });
    Ok(Done { existed, delivered })
}
