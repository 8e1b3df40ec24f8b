//! A private cluster of Redis: primaries with replicas, on ports of 127.0.0.1.
//!
//! Must hold: every slot is served once this returns, and every replica is in step. A primary that
//! is gone does not take the others' slots with it. Refuses: slots of its own choosing; whoever
//! wants others moves them.

use std::collections::BTreeMap;
use std::io;

use super::{Client, Options, Redis, Reply, until};
use crate::scratch::Error;
use crate::sink::slot;

/// How many slots there are.
const SLOTS: u16 = 16_384;

/// Running servers; gone when dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The primaries first, then their replicas in the same order, again and again.
    pub nodes: Vec<Redis>,
    primaries: usize,
}

impl Cluster {
    /// Starts a cluster that answers once this returns. `node_timeout_ms`: after that a primary
    /// counts as gone.
    ///
    /// # Errors
    /// When no server program is found, or they do not find to each other.
    pub fn start(
        primaries: usize,
        replicas_each: usize,
        node_timeout_ms: u32,
        options: &Options,
    ) -> Result<Self, Error> {
        let mut options = Options { tcp: true, ..options.clone() };
        let timeout = node_timeout_ms.to_string();
        let own = [
            ["--cluster-enabled", "yes"],
            ["--cluster-node-timeout", &timeout],
            ["--cluster-require-full-coverage", "no"],
            ["--repl-diskless-sync-delay", "0"],
            ["--cluster-replica-validity-factor", "0"],
        ];
        options.arguments.extend(own.concat().into_iter().map(str::to_owned));
        let count = primaries * (1 + replicas_each);
        let nodes = (0..count).map(|_| Redis::start(&options)).collect::<Result<Vec<_>, _>>()?;
        let cluster = Self { nodes, primaries };
        let failed = |error: io::Error| Error::Start {
            what: "a cluster of Redis",
            how: error.to_string(),
            log: String::new(),
        };
        cluster.join().map_err(failed)?;
        Ok(cluster)
    }

    fn join(&self) -> io::Result<()> {
        let port = |node: usize| self.port(node).to_string();
        // All of them first: a node that has been met takes no epoch any more.
        for node in 0..self.nodes.len() {
            self.ask(node, &["cluster", "set-config-epoch", &(node + 1).to_string()])?;
        }
        for node in 0..self.nodes.len() {
            self.ask(
                node,
                &["cluster", "meet", "127.0.0.1", &port((node + 1) % self.nodes.len())],
            )?;
            self.ask(node, &["cluster", "meet", "127.0.0.1", &port(0)])?;
        }
        let share = SLOTS / self.primaries as u16;
        for node in 0..self.primaries {
            let first = share * node as u16;
            let end = if node + 1 == self.primaries { SLOTS } else { first + share };
            let slots: Vec<String> = (first..end).map(|slot| slot.to_string()).collect();
            let words: Vec<&str> = ["cluster", "addslots"]
                .into_iter()
                .chain(slots.iter().map(String::as_str))
                .collect();
            self.ask(node, &words)?;
        }
        let all = self.nodes.len();
        until("they know each other", || {
            Ok((0..all)
                .map(|node| self.nodes_of(node))
                .collect::<io::Result<Vec<_>>>()?
                .iter()
                .all(|nodes| {
                    nodes
                        .lines()
                        .filter(|line| line.contains("connected") && !line.contains("handshake"))
                        .count()
                        == all
                }))
        })?;
        for node in self.primaries..all {
            let id = self.id(node % self.primaries)?;
            until("the replica knows its primary", || {
                Ok(self.ask(node, &["cluster", "replicate", &id]).is_ok())
            })?;
        }
        for node in self.primaries..all {
            until("the replica is in step", || {
                Ok(self.text(node, &["info", "replication"])?.contains("master_link_status:up"))
            })?;
        }
        until("all slots are served", || {
            let states = (0..all)
                .map(|node| self.text(node, &["cluster", "info"]))
                .collect::<io::Result<Vec<_>>>()?;
            let slots = (0..all).map(|node| self.ranges(node)).collect::<io::Result<Vec<_>>>()?;
            Ok(states.iter().all(|state| state.contains("cluster_state:ok"))
                && slots.iter().all(|ranges| *ranges == self.primaries))
        })
    }

    /// `redis-cluster://127.0.0.1:PORT?node=127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        let others: Vec<String> = (1..self.nodes.len())
            .map(|node| format!("node=127.0.0.1:{}", self.port(node)))
            .collect();
        format!("redis-cluster://127.0.0.1:{}?{}", self.port(0), others.join("&"))
    }

    /// The port of a node.
    #[must_use]
    pub fn port(&self, node: usize) -> u16 {
        self.nodes[node].port().unwrap_or_default()
    }

    /// One command to a node, whose answer is no error.
    ///
    /// # Errors
    /// When it does not run, or refuses.
    pub fn ask(&self, node: usize, command: &[&str]) -> io::Result<Reply> {
        match self.nodes[node].client()?.ask(command)? {
            Reply::Error(words) => Err(io::Error::other(format!(
                "{}: {words}",
                command[..command.len().min(3)].join(" ")
            ))),
            reply => Ok(reply),
        }
    }

    /// The same, whose answer is a text.
    ///
    /// # Errors
    /// Likewise.
    pub fn text(&self, node: usize, command: &[&str]) -> io::Result<String> {
        match self.ask(node, command)? {
            Reply::Value(Some(text)) => String::from_utf8(text).map_err(io::Error::other),
            Reply::Status(text) => Ok(text),
            other => Err(io::Error::other(format!("{command:?}: {other:?}"))),
        }
    }

    /// What CLUSTER NODES says at a node.
    ///
    /// # Errors
    /// When it does not run.
    pub fn nodes_of(&self, node: usize) -> io::Result<String> {
        self.text(node, &["cluster", "nodes"])
    }

    /// The name of a node in the cluster.
    ///
    /// # Errors
    /// When it does not run.
    pub fn id(&self, node: usize) -> io::Result<String> {
        self.text(node, &["cluster", "myid"])
    }

    /// How many ranges of slots are served, as a node sees it.
    fn ranges(&self, node: usize) -> io::Result<usize> {
        let Reply::List(ranges) = self.ask(node, &["cluster", "slots"])? else { return Ok(0) };
        Ok(ranges.len())
    }

    /// Which node is the primary of a key, by what most nodes that run say.
    ///
    /// # Errors
    /// When none has its slot.
    pub fn primary_of(&self, key: &str) -> io::Result<usize> {
        self.owner(slot(key.as_bytes()))
    }

    /// Which node is the primary of a slot, likewise.
    ///
    /// # Errors
    /// When none has it.
    pub fn owner(&self, slot: u16) -> io::Result<usize> {
        let mut votes = vec![0; self.nodes.len()];
        for node in self.running() {
            let Ok(Reply::List(ranges)) = self.ask(node, &["cluster", "slots"]) else { continue };
            for range in ranges {
                if let Reply::List(parts) = range
                    && let [Reply::Integer(first), Reply::Integer(last), Reply::List(primary), ..] =
                        &parts[..]
                    && (*first..=*last).contains(&i64::from(slot))
                    && let Some(Reply::Integer(port)) = primary.get(1)
                    && let Some(owner) =
                        (0..self.nodes.len()).find(|&node| i64::from(self.port(node)) == *port)
                {
                    votes[owner] += 1;
                }
            }
        }
        let most = (0..votes.len()).max_by_key(|&node| votes[node]).filter(|&node| votes[node] > 0);
        most.ok_or_else(|| io::Error::other(format!("nobody has slot {slot}")))
    }

    fn running(&self) -> impl Iterator<Item = usize> {
        (0..self.nodes.len())
            .filter(|&node| self.nodes[node].pid().is_some() && !self.nodes[node].is_paused())
    }

    /// Which nodes call themselves primaries and have slots.
    ///
    /// # Errors
    /// When one does not run.
    pub fn primaries(&self) -> io::Result<Vec<usize>> {
        let mut primaries = Vec::new();
        for node in 0..self.nodes.len() {
            let nodes = self.nodes_of(node)?;
            let own = nodes
                .lines()
                .find(|line| line.contains("myself,master"))
                .map(|line| line.split(' ').count());
            if own.is_some_and(|words| words > 8) {
                primaries.push(node);
            }
        }
        Ok(primaries)
    }

    /// Do all nodes run, and agree that all slots are served?
    ///
    /// # Errors
    /// When one does not run.
    pub fn is_well(&self) -> io::Result<bool> {
        for node in 0..self.nodes.len() {
            let info = self.text(node, &["cluster", "info"])?;
            let wanted = ["cluster_state:ok", "cluster_slots_ok:16384", "cluster_slots_pfail:0"];
            let is_linked = self
                .text(node, &["info", "replication"])?
                .lines()
                .all(|line| line.trim() != "master_link_status:down");
            if !is_linked || !wanted.iter().all(|line| info.contains(line)) {
                return Ok(false);
            }
        }
        Ok(self.primaries()?.len() == self.primaries)
    }

    /// A connection to the primary of a key.
    ///
    /// # Errors
    /// When it does not run.
    pub fn client_for(&self, key: &str) -> io::Result<Client> {
        self.nodes[self.primary_of(key)?].client()
    }

    /// Puts keys where they belong.
    ///
    /// # Errors
    /// When a primary does not run.
    pub fn put_all(&self, keys: impl IntoIterator<Item = String>, value: &str) -> io::Result<()> {
        let mut shares: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        let mut owners = BTreeMap::new();
        for key in keys {
            let slot = slot(key.as_bytes());
            let owner = match owners.get(&slot) {
                Some(owner) => *owner,
                None => *owners.entry(slot).or_insert(self.owner(slot)?),
            };
            shares.entry(owner).or_default().push(key);
        }
        shares
            .into_iter()
            .try_for_each(|(node, keys)| self.nodes[node].client()?.put_all(keys, value))
    }

    /// Gives a slot to another primary, with its keys, as `redis-cli --cluster reshard` does;
    /// `between` is called when the slot is on its way and its keys are not yet.
    ///
    /// # Errors
    /// When a primary does not run, or refuses.
    pub fn move_slot(
        &self,
        slot: u16,
        from: usize,
        to: usize,
        between: impl FnOnce(),
    ) -> io::Result<()> {
        let (slot, ids) = (slot.to_string(), [self.id(from)?, self.id(to)?]);
        self.ask(to, &["cluster", "setslot", &slot, "importing", &ids[0]])?;
        self.ask(from, &["cluster", "setslot", &slot, "migrating", &ids[1]])?;
        between();
        while let Reply::List(keys) = self.ask(from, &["cluster", "getkeysinslot", &slot, "100"])?
            && !keys.is_empty()
        {
            for key in keys {
                let Reply::Value(Some(key)) = key else { continue };
                let (key, port) =
                    (String::from_utf8_lossy(&key).into_owned(), self.port(to).to_string());
                self.ask(from, &["migrate", "127.0.0.1", &port, &key, "0", "5000", "replace"])?;
            }
        }
        self.ask(to, &["cluster", "setslot", &slot, "node", &ids[1]])?;
        self.ask(from, &["cluster", "setslot", &slot, "node", &ids[1]])?;
        Ok(())
    }
}
