//! What `unstale check` asks of Redis: what it says of itself, what this user may, which keys there
//! are and how long they live.

use std::collections::BTreeSet;
use std::time::Duration;

use fred::interfaces::{ClientLike as _, KeysInterface};
use fred::types::{Expiration, Key, Value};

use super::connection::{Connection, command_error};
use super::error::Error;
use super::groups::Groups;
use super::server::{Manner, Server};
use super::url::Place;
use super::walk::SCAN_COUNT;
use super::{Kind, Sink};

/// PTTL of a key that is not there.
const GONE: i64 = -2;

/// How long each of some keys will live; `None`: for ever.
pub(crate) type Lives = Vec<(String, Option<Duration>)>;

impl Sink {
    /// What the servers say of themselves: the one, or each primary.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn infos(&self) -> Result<Vec<String>, Error> {
        let mut infos = Vec::new();
        for part in 0..self.parts().await? {
            infos.push(self.part(part, async |server| info(server).await).await?);
        }
        Ok(infos)
    }

    /// Does the URL lead to a cluster?
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        matches!(self.kind, Kind::Cluster(_))
    }

    /// Does redis-cli understand the URL? It knows those of one server, over TCP.
    #[must_use]
    pub fn is_for_redis_cli(&self) -> bool {
        self.settings.url().is_ok_and(|url| matches!(url.place, Place::Server(_)))
    }

    /// Is it allowed to delete what these patterns match? Deletes nothing but keys that are called
    /// as the patterns are.
    ///
    /// # Errors
    /// [`Error`], as a deletion would have it.
    pub async fn check_permissions(&self, patterns: &BTreeSet<String>) -> Result<(), Error> {
        for part in 0..self.parts().await? {
            let step = async |server: &Server| {
                let connection = server.connection().await?;
                let step = connection.client.scan_page::<(String, Vec<Key>), _, _>(
                    "0",
                    "unstale:check:*",
                    Some(1),
                    None,
                );
                connection.ask(step).await
            };
            self.part(part, step).await?;
        }
        for key in patterns
            .iter()
            .map(String::as_str)
            .filter(|pattern| pattern.contains('*'))
            .chain(["unstale:check:"])
        {
            let delete = async |server: &Server| match server
                .delete(&Groups::together(vec![key.into()]), Manner::Alone)
                .await?
                .refused
                .pop()
            {
                Some((_, words)) => Err(Error::Refused(words)),
                None => Ok(()),
            };
            self.owner(key, delete).await?;
        }
        Ok(())
    }

    /// May it read and write a mark? Leaves nothing there.
    ///
    /// # Errors
    /// [`Error`], as a mark would have it.
    pub async fn can_mark(&self) -> Result<(), Error> {
        let key = "unstale:check:";
        let mark = async |server: &Server| {
            let connection = server.connection().await?;
            connection.ask(connection.client.get::<Option<String>, _>(key)).await?;
            let soon = Some(Expiration::PX(1));
            connection
                .ask(connection.client.set::<Option<String>, _, _>(key, "", soon, None, true))
                .await
        };
        self.owner(key, mark).await.map(drop)
    }

    /// Puts a key there, for a while.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn put(&self, key: &str, time: Duration) -> Result<(), Error> {
        let expires = Expiration::PX(i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
        let put = async |server: &Server| {
            let connection = server.connection().await?;
            connection
                .ask(connection.client.set(
                    key,
                    "put here by `unstale check`",
                    Some(expires.clone()),
                    None,
                    false,
                ))
                .await
        };
        self.owner(key, put).await
    }

    /// Is the key there?
    ///
    /// # Errors
    /// [`Error`].
    pub async fn has(&self, key: &str) -> Result<bool, Error> {
        let has = async |server: &Server| {
            let connection = server.connection().await?;
            connection.ask(connection.client.exists(key)).await
        };
        self.owner(key, has).await
    }

    /// One step through all of Redis: the keys among the next thousand that match the glob, and how
    /// long each will live (`None`: for ever). Returns the cursor of the next step; the first is
    /// `0`, and after the last comes `0` again.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn scan_ttls(&self, pattern: &str, cursor: String) -> Result<(String, Lives), Error> {
        self.step(cursor, async |server, cursor| {
            let connection = server.connection().await?;
            let step = connection.client.scan_page(cursor, pattern, Some(SCAN_COUNT), None);
            let (next, keys): (String, Vec<Key>) = connection.ask(step).await?;
            Ok((next, lives(&connection, keys).await?))
        })
        .await
    }

    /// A step of a walk through all servers, one after the other: `what` gets that server's own
    /// cursor, and returns its next.
    pub(super) async fn step<T>(
        &self,
        cursor: String,
        what: impl AsyncFn(&Server, String) -> Result<(String, T), Error>,
    ) -> Result<(String, T), Error> {
        let (part, cursor) = cursor.split_once('/').unwrap_or(("0", &cursor));
        let part: usize = part.parse().unwrap_or(0);
        let (next, keys) =
            self.part(part, async |server: &Server| what(server, cursor.to_owned()).await).await?;
        let next = match (next.as_str(), part + 1 < self.parts().await?) {
            ("0", false) => next,
            ("0", true) => format!("{}/0", part + 1),
            _ => format!("{part}/{next}"),
        };
        Ok((next, keys))
    }

    /// How long the key will live, if it is there.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn life_of(&self, key: &str) -> Result<Lives, Error> {
        self.owner(key, async |server| lives(&server.connection().await?, vec![key.into()]).await)
            .await
    }

    /// How many servers share the keys.
    async fn parts(&self) -> Result<usize, Error> {
        match &self.kind {
            Kind::One(_) => Ok(1),
            Kind::Cluster(cluster) => Ok(cluster.map().await?.primaries.len()),
        }
    }

    async fn part<T>(
        &self,
        part: usize,
        what: impl AsyncFn(&Server) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match &self.kind {
            Kind::One(server) => what(server).await,
            Kind::Cluster(cluster) => match cluster.map().await?.primaries.get(part) {
                Some(primary) => what(&primary.server).await,
                None => Err(Error::Ended), // the cluster has become smaller
            },
        }
    }

    /// Asks the server that has the key.
    async fn owner<T>(
        &self,
        key: &str,
        what: impl AsyncFn(&Server) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Kind::Cluster(cluster) = &self.kind else { return self.part(0, what).await };
        let map = cluster.map().await?;
        let ask = async |map: &super::map::Map| match map.owner(key) {
            Some(owner) => what(&map.primaries[owner].server).await,
            None => Err(Error::Refused("CLUSTERDOWN no primary has its slot".into())),
        };
        match ask(&map).await {
            Err(Error::Refused(words)) if words.starts_with("MOVED") => {
                ask(&*cluster.refresh(Some(&map)).await?).await
            }
            result => result,
        }
    }
}

async fn info(server: &Server) -> Result<String, Error> {
    let connection = server.connection().await?;
    connection.ask(connection.client.info(None)).await
}

async fn lives(connection: &Connection, keys: Vec<Key>) -> Result<Lives, Error> {
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let pipeline = connection.client.pipeline();
    for key in &keys {
        let _: () = pipeline
            .pttl(key.clone())
            .await
            .map_err(|error| command_error(&error, connection.timeout))?;
    }
    let lives: Vec<Value> =
        connection.ask(async { pipeline.try_all::<Value>().await.into_iter().collect() }).await?;
    let name = |key: &Key| key.as_str_lossy().into_owned();
    let there =
        keys.iter().zip(lives.iter().filter_map(Value::as_i64)).filter(|(_, life)| *life != GONE);
    Ok(there
        .map(|(key, life)| (name(key), u64::try_from(life).ok().map(Duration::from_millis)))
        .collect())
}
