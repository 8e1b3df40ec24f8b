//! Who is the primary, by the word of the sentinels, and whether it still is.
//!
//! Must hold: a server is written to only if it calls itself a primary, and only as long as no
//! other one has more sentinels behind it. One sentinel may be down, behind, or wrong: all are
//! asked, the majority of those that answer is believed, and if there is none, who knows the later
//! fail-over. What a primary that was left has taken meanwhile, the mark tells.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fred::types::Value;
use tokio::task::JoinSet;

use super::connection::{Connection, Settings};
use super::error::{self, Error};
use super::server::{Server, Way};
use super::url::Node;
use super::wire::Address;

/// Between two looks at who is the primary.
const LOOK: Duration = Duration::from_millis(500);

/// After the first answer, how long the others are waited for.
const OTHERS: Duration = Duration::from_millis(200);

/// See the module.
pub(super) struct Sentinels {
    servers: Vec<(Node, Arc<Server>)>,
    service: String,
}

/// What sentinels say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    votes: usize,
    epoch: u64, // of the fail-over that made it one
    address: Node,
}

impl Sentinels {
    pub(super) fn new(settings: &Settings, nodes: Vec<Node>, service: String) -> Self {
        let server = |node: Node| {
            let way = Way::Bare(Address::Host(node.clone()));
            (node, Arc::new(Server::new(settings.clone(), way, None)))
        };
        Self { servers: nodes.into_iter().map(server).collect(), service }
    }

    /// Whom they name, the likeliest first.
    async fn candidates(&self) -> Result<Vec<Candidate>, Error> {
        let mut asked = JoinSet::new();
        for (node, server) in &self.servers {
            let (node, server, service) = (node.clone(), server.clone(), self.service.clone());
            asked.spawn(async move { (node, named(&server, &service).await) });
        }
        let (mut answers, mut reasons, mut unknown) = (Vec::new(), Vec::new(), false);
        loop {
            let next = match answers.is_empty() {
                true => Ok(asked.join_next().await),
                false => tokio::time::timeout(OTHERS, asked.join_next()).await,
            };
            match next {
                Err(_) | Ok(None) => break,
                Ok(Some(Err(_))) => {}
                Ok(Some(Ok((_, Ok(Some(answer)))))) => answers.push(answer),
                Ok(Some(Ok((_, Ok(None))))) => unknown = true,
                Ok(Some(Ok(((host, port), Err(error))))) => {
                    reasons.push(format!("{host}:{port}: {error}"))
                }
            }
        }
        if answers.is_empty() {
            let reason = match unknown {
                true => format!(
                    "no sentinel knows {}; is sentinelServiceName in REDIS_URL right?",
                    error::shown(&self.service)
                ),
                false => format!("no sentinel answers; {}", reasons.join("; ")),
            };
            return Err(Error::Connect(reason));
        }
        Ok(ranked(answers))
    }
}

/// The likeliest first.
fn ranked(answers: Vec<(Node, u64)>) -> Vec<Candidate> {
    let mut by_address: BTreeMap<Node, Candidate> = BTreeMap::new();
    for (address, epoch) in answers {
        let candidate =
            by_address.entry(address.clone()).or_insert(Candidate { votes: 0, epoch: 0, address });
        candidate.votes += 1;
        candidate.epoch = candidate.epoch.max(epoch);
    }
    let mut ranked: Vec<_> = by_address.into_values().collect();
    ranked.sort_by_key(|candidate| std::cmp::Reverse((candidate.votes, candidate.epoch)));
    ranked
}

/// Whom this one names; `None`: it does not know the service.
async fn named(sentinel: &Server, service: &str) -> Result<Option<(Node, u64)>, Error> {
    let connection = sentinel.connection().await?;
    let answer =
        connection.say::<Value>("SENTINEL", vec!["MASTER".into(), service.to_owned()]).await;
    let answer = match answer {
        Err(Error::Refused(words)) if words.contains("No such master") => return Ok(None),
        answer => sentinel.concluded(&connection, answer).await?,
    };
    let words: Vec<String> = answer.into_array().iter().filter_map(Value::as_string).collect();
    let field =
        |name: &str| words.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].clone());
    let address = field("ip").zip(field("port").and_then(|port| port.parse().ok()));
    let address = address.ok_or_else(|| Error::Broken("it is no sentinel".into()))?;
    Ok(Some((address, field("config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0))))
}

/// Connects to the primary. The connection ends as soon as another one is.
/// A sentinel is a [`Server`], too; hence the box.
pub(super) fn open(
    settings: Settings,
    sentinels: Arc<Sentinels>,
) -> Pin<Box<dyn Future<Output = Result<Connection, Error>> + Send>> {
    Box::pin(open_likeliest(settings, sentinels))
}

async fn open_likeliest(
    settings: Settings,
    sentinels: Arc<Sentinels>,
) -> Result<Connection, Error> {
    let mut reasons = Vec::new();
    for Candidate { address, .. } in sentinels.candidates().await? {
        match open_primary(&settings, &address).await {
            Ok(connection) => {
                tokio::spawn(watch(
                    settings.clone(),
                    sentinels.clone(),
                    address,
                    connection.clone(),
                ));
                return Ok(connection);
            }
            Err(error) => reasons.push((address, error)),
        }
    }
    // Its words tell the remedy, if there is only one.
    match reasons.pop() {
        Some((_, error)) if reasons.is_empty() => Err(error),
        last => Err(Error::Connect(
            reasons
                .into_iter()
                .chain(last)
                .map(|((host, port), error)| format!("{host}:{port}: {error}"))
                .collect::<Vec<_>>()
                .join("; "),
        )),
    }
}

async fn open_primary(settings: &Settings, node: &Node) -> Result<Connection, Error> {
    let connection = Connection::open(settings, &Address::Host(node.clone()), true).await?;
    let role = match connection.say::<Value>("ROLE", Vec::new()).await {
        Ok(answer) => answer.into_array().first().and_then(Value::as_string),
        // Then it says READONLY to the first deletion.
        Err(Error::Refused(words)) if matches!(error::code(&words), Some("NOPERM" | "ERR")) => None,
        Err(error) => {
            connection.close();
            return Err(error);
        }
    };
    if role.as_deref().is_some_and(|role| role != "master") {
        connection.close();
        return Err(Error::Connect(format!(
            "the sentinels name {}:{}, which is a replica; the fail-over is waited for",
            node.0, node.1
        )));
    }
    Ok(connection)
}

/// Ends the connection when another server is the primary.
async fn watch(
    settings: Settings,
    sentinels: Arc<Sentinels>,
    address: Node,
    connection: Connection,
) {
    let look = async {
        loop {
            tokio::time::sleep(LOOK).await;
            let Ok(candidates) = sentinels.candidates().await else { continue };
            let Some(first) = candidates.first().filter(|first| first.address != address) else {
                continue;
            };
            // A sentinel that is wrong names one that is none.
            if let Ok(other) = open_primary(&settings, &first.address).await {
                other.close();
                return;
            }
        }
    };
    if connection.ended.run_until_cancelled(Box::pin(look)).await.is_some() {
        connection.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_majority_is_believed_and_without_one_the_later_fail_over() {
        let first = |answers: &[(&str, u64)]| {
            let answers =
                answers.iter().map(|(host, epoch)| (((*host).to_owned(), 1), *epoch)).collect();
            ranked(answers).remove(0).address.0
        };
        assert_eq!(first(&[("old", 1), ("new", 2), ("new", 2)]), "new");
        assert_eq!(first(&[("lie", 99), ("true", 2), ("true", 2)]), "true");
        assert_eq!(first(&[("old", 1), ("new", 2)]), "new");
    }
}
