//! A cluster: each key to the primary that has its slot, over a connection for each, supervised and
//! replaced as that to a single server.
//!
//! The map of slots is ours: asked of the primaries, and again when one redirects or fails. Must
//! hold: a primary that does not answer holds up only what lives there. What it should do is handed
//! back at once, and it is looked after until it answers or another has its slots. A walk visits
//! every primary, and again if slots moved meanwhile.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as SyncMutex};
use std::time::Duration;

use fred::types::Value;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::connection::Settings;
use super::error::Error;
use super::map::{Map, Primary};
use super::marks::Marks;
use super::server::{Server, Way, lock};
use super::slots::{self, Seen};
use super::url::Node;
use super::wire::Address;
use crate::backoff::Backoff;
use crate::status;

/// After the first answer, how long other nodes are waited for when the map is asked for.
const OTHERS: Duration = Duration::from_millis(150);

/// How many nodes are asked for it.
const ASKED: usize = 7;

/// Between two attempts to reach a primary, and two looks at the map meanwhile.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// See the module.
pub(super) struct Cluster {
    pub(super) settings: Settings,
    pub(super) marks: Option<Arc<Marks>>,
    seeds: Vec<(Node, Arc<Server>)>,
    map: SyncMutex<Option<Arc<Map>>>,
    refreshing: Mutex<()>,
    strangers: SyncMutex<HashMap<Node, Arc<Server>>>, // nodes without a slot, which take the first one in
}

impl Cluster {
    pub(super) fn new(
        settings: Settings,
        nodes: Vec<Node>,
        marks: Option<Arc<Marks>>,
    ) -> Arc<Self> {
        let seed =
            |node: Node| (node.clone(), Arc::new(Server::new(settings.clone(), at(&node), None)));
        let seeds = nodes.into_iter().map(seed).collect();
        let (map, refreshing, strangers) =
            (SyncMutex::default(), Mutex::default(), SyncMutex::default());
        Arc::new(Self { settings, marks, seeds, map, refreshing, strangers })
    }

    /// The map that there is, or a first one.
    pub(super) async fn map(&self) -> Result<Arc<Map>, Error> {
        let known = lock(&self.map).clone();
        match known {
            Some(map) => Ok(map),
            None => self.refresh(None).await,
        }
    }

    /// Each primary, as far as is known without asking it.
    pub(super) fn standing(&self) -> Vec<status::Server> {
        let Some(map) = lock(&self.map).clone() else {
            let why_not = Some("the cluster's primaries are not known yet".to_owned());
            return vec![status::Server { address: None, answers: false, why_not }];
        };
        let primary = |primary: &Arc<Primary>| {
            let why_not = primary.doubt();
            status::Server { address: Some(primary.name()), answers: why_not.is_none(), why_not }
        };
        map.primaries.iter().map(primary).collect()
    }

    /// A map that is newer than this one.
    pub(super) async fn refresh(&self, old: Option<&Arc<Map>>) -> Result<Arc<Map>, Error> {
        let _one_at_a_time = self.refreshing.lock().await;
        let known = lock(&self.map).clone();
        if let Some(known) = &known
            && old.is_none_or(|old| !Arc::ptr_eq(old, known))
        {
            return Ok(known.clone());
        }
        let seen = self.look(known.as_deref()).await?;
        if let Some(known) = known.filter(|known| known.seen == seen) {
            return Ok(known);
        }
        let mut place = lock(&self.map);
        let map = Arc::new(Map::new(seen, place.as_deref(), &self.settings, self.marks.as_ref()));
        *place = Some(map.clone());
        lock(&self.strangers).clear();
        Ok(map)
    }

    /// What most of the nodes that answer see.
    async fn look(&self, known: Option<&Map>) -> Result<Vec<Seen>, Error> {
        let mut primaries = known.map_or_else(Vec::new, |map| map.primaries.clone());
        primaries.sort_by_key(|primary| primary.doubt().is_some());
        let asked: Vec<_> = primaries.into_iter().take(ASKED).map(Asked::Primary).collect();
        if let Ok(seen) = views(asked).await {
            return Ok(seen);
        }
        views(
            self.seeds
                .iter()
                .map(|(node, server)| Asked::Seed(node.clone(), server.clone()))
                .collect(),
        )
        .await
    }

    /// A node that is told of by another one.
    pub(super) fn stranger(&self, node: &Node) -> Arc<Server> {
        let new = || Arc::new(Server::new(self.settings.clone(), at(node), None));
        lock(&self.strangers).entry(node.clone()).or_insert_with(new).clone()
    }

    /// From here on nothing waits for it, until it answers again.
    pub(super) fn doubt(self: &Arc<Self>, primary: &Arc<Primary>, reason: String) {
        if lock(&primary.doubt).replace(reason).is_none() {
            tokio::spawn(look_after(Arc::downgrade(self), primary.clone()));
        }
    }
}

fn at(node: &Node) -> Way {
    Way::At(Address::Host(node.clone()))
}

/// Until the primary answers, or is none any more.
async fn look_after(cluster: std::sync::Weak<Cluster>, primary: Arc<Primary>) {
    let answers = async {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1, 0);
        while let Err(error) = primary.server.touch().await {
            *lock(&primary.doubt) = Some(error.to_string());
            primary.be_impatient();
            tokio::time::sleep(backoff.next_delay()).await;
        }
    };
    let is_gone = async {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1, 1);
        // The cluster is not held while this waits: it ends when the sink is replaced.
        while let Some(cluster) = cluster.upgrade() {
            let known = lock(&cluster.map).clone();
            let map = cluster.refresh(known.as_ref()).await.ok().or(known);
            if map.is_none_or(|map| !map.primaries.iter().any(|other| Arc::ptr_eq(other, &primary)))
            {
                return;
            }
            drop(cluster);
            tokio::time::sleep(backoff.next_delay()).await;
        }
    };
    tokio::select! {
        () = answers => {}
        () = is_gone => {}
    }
    *lock(&primary.doubt) = None;
}

/// Who is asked for the map.
enum Asked {
    Primary(Arc<Primary>),
    Seed(Node, Arc<Server>),
}

impl Asked {
    async fn view(self) -> Result<Vec<Seen>, String> {
        let (server, (host, port)) = match &self {
            Self::Primary(primary) => (&primary.server, &primary.address),
            Self::Seed(node, server) => (&**server, node),
        };
        let view = async {
            let connection = server.connection().await?;
            let answer = connection.say::<Value>("CLUSTER", vec!["SLOTS".into()]).await;
            if let Err(Error::Refused(words)) = &answer
                && words.contains("cluster support disabled")
            {
                return Err(Error::Connect(
                    "it is no cluster; let REDIS_URL begin with redis://".into(),
                ));
            }
            slots::view(server.concluded(&connection, answer).await?, host)
                .ok_or_else(|| Error::Connect("it knows no primaries yet".into()))
        };
        view.await.map_err(|error| format!("{host}:{port}: {error}"))
    }
}

/// Asks all at once, and believes the majority of those that answer soon.
async fn views(nodes: Vec<Asked>) -> Result<Vec<Seen>, Error> {
    let mut asked = JoinSet::new();
    nodes.into_iter().for_each(|node| drop(asked.spawn(node.view())));
    let (mut votes, mut reasons) = (HashMap::<Vec<Seen>, usize>::new(), Vec::new());
    loop {
        let next = match votes.is_empty() {
            true => Ok(asked.join_next().await),
            false => tokio::time::timeout(OTHERS, asked.join_next()).await,
        };
        match next {
            Err(_) | Ok(None) => break,
            Ok(Some(Ok(Ok(seen)))) => *votes.entry(seen).or_default() += 1,
            Ok(Some(Ok(Err(reason)))) => reasons.push(reason),
            Ok(Some(Err(_))) => {}
        }
    }
    let most = votes.into_iter().max_by_key(|(_, votes)| *votes).map(|(seen, _)| seen);
    most.ok_or_else(|| {
        Error::Connect(format!("no node of the cluster answers; {}", reasons.join("; ")))
    })
}
