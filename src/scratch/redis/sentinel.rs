//! A private primary with a replica, and three sentinels that watch over them.
//!
//! Must hold: the sentinels agree on the primary, and know the replica and each other, once this
//! returns.

use std::io;

use super::{Options, Redis, Reply, until};
use crate::scratch::Error;

/// What the sentinels call the primary.
const SERVICE: &str = "mymaster";

/// Running servers; gone when dropped.
#[derive(Debug)]
pub struct Guarded {
    /// The first primary, and its replica.
    pub servers: Vec<Redis>,
    /// Those who watch.
    pub sentinels: Vec<Redis>,
}

impl Guarded {
    /// Starts them. `down_after_ms`: after that a server counts as gone.
    ///
    /// # Errors
    /// When no server program is found, or they do not find to each other.
    pub fn start(down_after_ms: u32, options: &Options) -> Result<Self, Error> {
        let mut options = Options { tcp: true, ..options.clone() };
        options.arguments.extend(["--repl-diskless-sync-delay", "0"].map(str::to_owned));
        let primary = Redis::start(&options)?;
        let port = primary.port().unwrap_or_default();
        let replica = Redis::start(&options)?;
        let failed = |error: io::Error| Error::Start {
            what: "Sentinel",
            how: error.to_string(),
            log: String::new(),
        };
        // Linked before the sentinels look, which ask a primary for its replicas only now and then.
        let link = || -> io::Result<()> {
            replica.client()?.ask(&["replicaof", "127.0.0.1", &port.to_string()])?;
            until("the replica is in step", || {
                let reply = replica.client()?.ask(&["info", "replication"])?;
                Ok(
                    matches!(reply, Reply::Value(Some(text)) if String::from_utf8_lossy(&text).contains("master_link_status:up")),
                )
            })
        };
        link().map_err(failed)?;
        let watched = format!(
            "sentinel monitor {SERVICE} 127.0.0.1 {port} 2\nsentinel down-after-milliseconds {SERVICE} {down_after_ms}\n\
             sentinel failover-timeout {SERVICE} 3000"
        );
        let sentinel = Options { tcp: true, sentinel: Some(watched), ..Options::default() };
        let sentinels = (0..3).map(|_| Redis::start(&sentinel)).collect::<Result<Vec<_>, _>>()?;
        let guarded = Self { servers: vec![primary, replica], sentinels };
        guarded.settle().map_err(failed)?;
        Ok(guarded)
    }

    /// Waits until they all know each other.
    fn settle(&self) -> io::Result<()> {
        until("the sentinels know each other", || {
            for sentinel in &self.sentinels {
                let Reply::List(words) =
                    sentinel.client()?.ask(&["sentinel", "master", SERVICE])?
                else {
                    return Ok(false);
                };
                let field = |name: &str| {
                    let place = words.iter().position(
                        |word| matches!(word, Reply::Value(Some(text)) if text == name.as_bytes()),
                    )?;
                    if let Some(Reply::Value(Some(text))) = words.get(place + 1) {
                        Some(text.clone())
                    } else {
                        None
                    }
                };
                if (field("num-slaves"), field("num-other-sentinels"))
                    != (Some(b"1".to_vec()), Some(b"2".to_vec()))
                {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// `redis-sentinel://127.0.0.1:PORT?node=127.0.0.1:PORT&sentinelServiceName=mymaster`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(&self.sentinels.iter().filter_map(Redis::port).collect::<Vec<_>>())
    }

    /// The same with other sentinels.
    #[must_use]
    pub fn url_of(&self, ports: &[u16]) -> String {
        let nodes: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!(
            "redis-sentinel://{}?node={}&sentinelServiceName={SERVICE}",
            nodes[0],
            nodes[1..].join("&node=")
        )
    }

    /// Which server most of the sentinels that answer call the primary.
    ///
    /// # Errors
    /// When none answers.
    pub fn primary(&self) -> io::Result<usize> {
        let mut votes = vec![0; self.servers.len()];
        for sentinel in self
            .sentinels
            .iter()
            .filter(|sentinel| sentinel.pid().is_some() && !sentinel.is_paused())
        {
            let Reply::List(address) =
                sentinel.client()?.ask(&["sentinel", "get-master-addr-by-name", SERVICE])?
            else {
                continue;
            };
            let Some(Reply::Value(Some(port))) = address.get(1) else { continue };
            let port = String::from_utf8_lossy(port).parse().ok();
            if let Some(server) = self.servers.iter().position(|server| server.port() == port) {
                votes[server] += 1;
            }
        }
        let most = (0..votes.len())
            .max_by_key(|&server| votes[server])
            .filter(|&server| votes[server] > 0);
        most.ok_or_else(|| io::Error::other("no sentinel names a primary"))
    }

    /// Is there a primary that calls itself one, with the other as its replica?
    ///
    /// # Errors
    /// When a server does not run.
    pub fn is_well(&self) -> io::Result<bool> {
        let primary = self.primary()?;
        for (place, server) in self.servers.iter().enumerate() {
            let reply = server.client()?.ask(&["info", "replication"])?;
            let Reply::Value(Some(text)) = reply else { return Ok(false) };
            let text = String::from_utf8_lossy(&text);
            if !text.contains(if place == primary {
                "role:master"
            } else {
                "master_link_status:up"
            }) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Asks for a fail-over, and waits until it is done.
    ///
    /// # Errors
    /// When it does not come about.
    pub fn fail_over(&self) -> io::Result<()> {
        let before = self.primary()?;
        until("another is the primary", || {
            // Refused while the last one is fresh.
            self.sentinels[0].client()?.ask(&["sentinel", "failover", SERVICE])?;
            Ok(self.primary()? != before)
        })
    }
}
