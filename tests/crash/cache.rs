//! The cache of the application: one server, a cluster, or a primary behind Sentinel
//! (`UNSTALE_CHAOS_REDIS`), and its readers' client.
//!
//! Must hold: when a fill returns, the server has done it, or is dead, or has refused it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::path::PathBuf;

use unstale::scratch::Redis;
use unstale::scratch::redis::{Client, Cluster, Guarded, Options, Reply};

use super::faults::{Fault, Part};

/// Redirections that a reader follows.
const REDIRECTIONS: usize = 4;

/// How many slots there are.
const SLOTS: u16 = 16_384;

/// How many are moved at once.
const MOVED: u16 = 40;

/// After that a server counts as gone.
const GONE_MS: u32 = 500;

/// The servers that are not the world's.
pub(super) enum Servers {
    /// There are none.
    World,
    Cluster(Cluster),
    Guarded(Guarded),
}

impl Servers {
    pub(super) fn start() -> Self {
        // What a killed server has acknowledged it keeps, but for what a fail-over undoes.
        // SIGKILL leaves to the system what it was given, so that nothing has to reach the disk.
        let arguments = ["--appendfsync", "no"].map(str::to_owned).to_vec();
        let options = Options { append_only: true, arguments, ..Options::default() };
        match std::env::var("UNSTALE_CHAOS_REDIS").as_deref() {
            Err(_) => Self::World,
            Ok("cluster") => {
                Self::Cluster(Cluster::start(3, 1, GONE_MS, &options).expect("a cluster"))
            }
            Ok("sentinel") => Self::Guarded(Guarded::start(GONE_MS, &options).expect("sentinels")),
            Ok(other) => panic!("UNSTALE_CHAOS_REDIS={other}: write cluster or sentinel"),
        }
    }

    /// Where the readers find them.
    pub(super) fn routes(&self, world: PathBuf) -> Routes {
        let of = |redis: &Redis| (redis.port().expect("by TCP"), redis.socket());
        match self {
            Self::World => Routes::One(world),
            Self::Cluster(cluster) => Routes::Cluster(cluster.nodes.iter().map(of).collect()),
            Self::Guarded(guarded) => Routes::Guarded {
                servers: guarded.servers.iter().map(of).collect(),
                sentinels: guarded.sentinels.iter().map(|redis| redis.socket()).collect(),
            },
        }
    }
}

impl Servers {
    /// Does it to one of them.
    pub(super) fn begin(&mut self, world: &mut Redis, part: Part, fault: Fault, which: usize) {
        let node = match self {
            Self::World => world,
            Self::Cluster(cluster) => match fault {
                Fault::FailedOver => return fail_over(cluster, which),
                Fault::Resharded => return reshard(cluster, which),
                _ => {
                    let count = cluster.nodes.len();
                    &mut cluster.nodes[which % count]
                }
            },
            Self::Guarded(guarded) if part == Part::Sentinel => &mut guarded.sentinels[which % 3],
            Self::Guarded(guarded) if fault == Fault::FailedOver => {
                let answer = guarded.sentinels[which % 3]
                    .client()
                    .and_then(|mut client| client.ask(&["sentinel", "failover", "mymaster"]));
                return drop(answer); // it may be paused, or have just done so
            }
            Self::Guarded(guarded) => {
                let primary = guarded.primary().unwrap_or(0);
                // The primary more often.
                let count = guarded.servers.len();
                &mut guarded.servers[if which.is_multiple_of(4) { which % count } else { primary }]
            }
        };
        if fault == Fault::Killed { node.kill9() } else { node.pause() }
    }

    /// Ends whatever is wrong with them.
    pub(super) fn end(&mut self, world: &mut Redis, part: Part) {
        let nodes: Vec<&mut Redis> = match self {
            Self::World => vec![world],
            Self::Cluster(cluster) => cluster.nodes.iter_mut().collect(),
            Self::Guarded(guarded) if part == Part::Sentinel => {
                guarded.sentinels.iter_mut().collect()
            }
            Self::Guarded(guarded) => guarded.servers.iter_mut().collect(),
        };
        for node in nodes {
            match node.pid() {
                None => node.start_again().expect("Redis reads its file"),
                Some(_) => node.resume(),
            }
        }
    }

    /// Have they found to each other again?
    pub(super) fn are_well(&self) -> bool {
        match self {
            Self::World => true,
            Self::Cluster(cluster) => cluster.is_well().unwrap_or(false),
            Self::Guarded(guarded) => guarded.is_well().unwrap_or(false),
        }
    }

    /// What each node of a cluster thinks of the others.
    pub(super) fn described(&self) -> String {
        let Self::Cluster(cluster) = self else { return String::new() };
        let mut text = String::new();
        for node in 0..cluster.nodes.len() {
            for question in [&["cluster", "info"], &["cluster", "nodes"], &["info", "replication"]]
            {
                text += &format!("{node} {question:?}: {:?}\n", cluster.ask(node, question));
            }
        }
        text.replace("\\r", "").replace("\\n", "\n    ")
    }

    /// The keys of each primary.
    pub(super) fn keys(&self, world: &Redis) -> Vec<Reply> {
        let primaries: Vec<&Redis> = match self {
            Self::World => vec![world],
            Self::Cluster(cluster) => cluster
                .primaries()
                .expect("all run")
                .into_iter()
                .map(|node| &cluster.nodes[node])
                .collect(),
            Self::Guarded(guarded) => {
                vec![&guarded.servers[guarded.primary().expect("there is one")]]
            }
        };
        primaries
            .into_iter()
            .map(|node| {
                node.client()
                    .and_then(|mut client| client.ask(&["keys", "*"]))
                    .expect("Redis is up")
            })
            .collect()
    }
}

/// The first replica that can.
fn fail_over(cluster: &Cluster, which: usize) {
    let count = cluster.nodes.len();
    for node in (which..which + count).map(|node| node % count) {
        if cluster.ask(node, &["cluster", "failover"]).is_ok() {
            return;
        }
    }
}

/// Some slots that are next to each other, as far as the cluster is well.
fn reshard(cluster: &Cluster, which: usize) {
    if !cluster.is_well().unwrap_or(false) {
        return;
    }
    let first = which as u16 * 273 % SLOTS;
    let Ok(from) = cluster.owner(first) else { return };
    let Ok(primaries) = cluster.primaries() else { return };
    let Some(to) = primaries.into_iter().cycle().skip(which % 2).take(6).find(|node| *node != from)
    else {
        return;
    };
    for slot in (first..(first + MOVED).min(SLOTS))
        .filter(|&slot| cluster.owner(slot).is_ok_and(|owner| owner == from))
    {
        let Err(error) = cluster.move_slot(slot, from, to, || ()) else { continue };
        // The nodes have not agreed yet who owns it after a fail-over: given up, as an operator
        // would.
        assert!(
            error.to_string().contains("MOVED"),
            "a cluster that is well gives slots away: {error}"
        );
        for node in [from, to] {
            cluster
                .ask(node, &["cluster", "setslot", &slot.to_string(), "stable"])
                .expect("all run");
        }
        return;
    }
}

/// See [`Servers::routes`].
#[derive(Debug, Clone)]
pub(super) enum Routes {
    One(PathBuf),
    Cluster(HashMap<u16, PathBuf>),
    Guarded { servers: HashMap<u16, PathBuf>, sentinels: Vec<PathBuf> },
}

/// A reader's connections.
pub(super) struct Cache {
    routes: Routes,
    connections: HashMap<u16, Client>,
    guess: u16,
}

impl Cache {
    /// Finds the primary, or nodes of the cluster.
    pub(super) fn connect(routes: &Routes) -> io::Result<Self> {
        let mut cache = Self { routes: routes.clone(), connections: HashMap::new(), guess: 0 };
        cache.guess = match routes {
            Routes::One(path) => {
                cache.connections.insert(0, Client::connect(path)?);
                0
            }
            Routes::Cluster(nodes) => *nodes.keys().next().expect("there are some"),
            Routes::Guarded { sentinels, .. } => primary_by(sentinels)?,
        };
        Ok(cache)
    }

    /// What is cached under the keys.
    pub(super) fn values(&mut self, keys: &[String]) -> io::Result<Vec<Reply>> {
        if let Routes::Cluster(_) = self.routes {
            return keys.iter().map(|key| self.ask(&["get", key])).collect();
        }
        let words: Vec<&str> =
            ["mget"].into_iter().chain(keys.iter().map(String::as_str)).collect();
        match self.ask(&words)? {
            Reply::List(replies) => Ok(replies),
            other => Ok(vec![other]),
        }
    }

    /// Caches all of it; the last reply says whether it is done.
    pub(super) fn put(&mut self, values: &[(String, String)]) -> io::Result<Reply> {
        if let Routes::Cluster(_) = self.routes {
            for (key, value) in values {
                let reply = self.ask(&["set", key, value])?;
                if let Reply::Error(_) = reply {
                    return Ok(reply);
                }
            }
            return Ok(Reply::Status("OK".into()));
        }
        let words: Vec<&str> = ["mset"]
            .into_iter()
            .chain(values.iter().flat_map(|(key, value)| [key.as_str(), value]))
            .collect();
        self.ask(&words)
    }

    /// Whether the key is there, of a server that is well.
    pub(super) fn has(&mut self, key: &str) -> bool {
        self.ask(&["exists", key]).expect("Redis is up") == Reply::Integer(1)
    }

    fn ask(&mut self, command: &[&str]) -> io::Result<Reply> {
        let mut port = self.guess;
        let mut asking = false;
        for _ in 0..REDIRECTIONS {
            let client = self.client(port)?;
            if asking {
                client.ask(&["asking"])?;
            }
            let reply = client.ask(command)?;
            let Reply::Error(words) = &reply else { return Ok(reply) };
            asking = words.starts_with("ASK ");
            if !asking && !words.starts_with("MOVED ") {
                return Ok(reply);
            }
            port = words
                .rsplit(':')
                .next()
                .and_then(|port| port.parse().ok())
                .ok_or(io::ErrorKind::InvalidData)?;
            if !asking {
                self.guess = port;
            }
        }
        Ok(Reply::Error("CLUSTERDOWN too many redirections".into()))
    }

    fn client(&mut self, port: u16) -> io::Result<&mut Client> {
        let path = match &self.routes {
            Routes::One(path) => path,
            Routes::Cluster(servers) | Routes::Guarded { servers, .. } => {
                servers.get(&port).ok_or(io::ErrorKind::NotFound)?
            }
        };
        match self.connections.entry(port) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(Client::connect(path)?)),
        }
    }
}

/// The port of the primary, by the first sentinel that answers.
fn primary_by(sentinels: &[PathBuf]) -> io::Result<u16> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for sentinel in sentinels {
        match Client::connect(sentinel)
            .and_then(|mut client| client.ask(&["sentinel", "get-master-addr-by-name", "mymaster"]))
        {
            Ok(Reply::List(address)) => {
                if let Some(Reply::Value(Some(port))) = address.get(1)
                    && let Ok(port) = String::from_utf8_lossy(port).parse()
                {
                    return Ok(port);
                }
            }
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    Err(last)
}
