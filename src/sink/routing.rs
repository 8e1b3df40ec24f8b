//! What a command to a cluster becomes: shares for the primaries, redirections, and what is handed
//! back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fred::bytes::BytesMut;
use fred::types::{Key, Value};
use tokio::task::JoinSet;

use super::Done;
use super::cluster::Cluster;
use super::error::Error;
use super::groups::Groups;
use super::map::{Map, PATIENCE, Primary};
use super::server::{Manner, Outcome};
use super::slots::{self, Redirect};
use super::url::Node;
use crate::deletion::Deletions;
use crate::delivered::{Delivered, Left, Part};

/// How often keys are sent after their slots, before they are handed back.
const ROUNDS: usize = 4;

/// Walks through all primaries, one after the other, before the pattern is handed back.
const MAX_PASSES: usize = 6;

/// What is done so far.
#[derive(Default)]
struct Sum {
    existed: u64,
    parts: Vec<Part>,
    left: Vec<String>,
    reason: Option<String>,
}

/// Keys for a primary.
type Sending = (Arc<Primary>, Groups);

/// Keys that were sent to a primary.
struct Share {
    primary: Arc<Primary>,
    groups: Groups,
    result: Result<Outcome, String>,
}

impl Cluster {
    /// Does what can be done of it.
    ///
    /// # Errors
    /// If no node answers.
    pub(super) async fn perform(self: &Arc<Self>, deletions: &Deletions) -> Result<Done, Error> {
        let mut sum = Sum::default();
        let map = match deletions {
            Deletions::Keys(keys) => self.keys(keys, &mut sum).await?,
            Deletions::Patterns(patterns) => self.patterns(patterns, &mut sum).await?,
        };
        let left = (!sum.left.is_empty()).then(|| Left {
            reason: sum.reason.unwrap_or_else(|| "its slots are on the move".into()),
            deletions: deletions.of_same_kind(sum.left),
        });
        Ok(Done {
            existed: sum.existed,
            delivered: Delivered { parts: sum.parts, left, tags: map.tags.clone() },
        })
    }

    async fn keys(
        self: &Arc<Self>,
        keys: &Arc<Vec<String>>,
        sum: &mut Sum,
    ) -> Result<Arc<Map>, Error> {
        let mut map = self.map().await?;
        let canary = self.marks.as_ref().map(|marks| marks.canary());
        let mut rest = shared(keys);
        // Each heartbeat wants an answer of every primary.
        let is_canary = |key: &String| canary.is_some_and(|canary| canary == key);
        if let Some(place) = keys.iter().position(is_canary) {
            rest.remove(place);
            let canaries =
                map.primaries.iter().map(|primary| format!("{}:{{{}}}", keys[place], primary.tag));
            rest.extend(canaries.map(Key::from));
        }
        for round in 0..ROUNDS {
            let (shares, homeless) = split(&map, std::mem::take(&mut rest), round > 0);
            if !homeless.is_empty() {
                sum.reason = Some("no primary has the slots of some keys (CLUSTER INFO)".into());
                rest.extend(homeless);
            }
            let (mut asks, mut moved) =
                (BTreeMap::<Node, Vec<(usize, Key)>>::new(), !rest.is_empty());
            let shares = self.send(shares, Manner::BySlot).await;
            for share in shares {
                let part = sum.parts.len();
                for (group, redirect) in sum.take(share, keys) {
                    match redirect {
                        Redirect::Moved => moved = true,
                        Redirect::Apart => {}
                        Redirect::Ask(node) => {
                            asks.entry(node)
                                .or_default()
                                .extend(group.into_iter().map(|key| (part, key)));
                            continue;
                        }
                    }
                    rest.extend(group);
                }
            }
            for (node, keys) in asks {
                rest.extend(self.ask(&map, node, keys, sum).await);
            }
            if moved || round + 1 == ROUNDS {
                map = self.refresh(Some(&map)).await.unwrap_or(map);
            }
            if rest.is_empty() {
                break;
            }
        }
        sum.left.extend(rest.iter().map(text));
        if let Some(canary) = canary
            && sum.left.iter().any(|key| is_of(key, canary))
        {
            sum.left.retain(|key| !is_of(key, canary));
            sum.left.push(canary.to_owned());
        }
        Ok(map)
    }

    /// Sends keys to the node that takes their slot in. Returns those that it has not either.
    async fn ask(
        self: &Arc<Self>,
        map: &Map,
        mut node: Node,
        keys: Vec<(usize, Key)>,
        sum: &mut Sum,
    ) -> Vec<Key> {
        if node.0.is_empty()
            && let Some(Part { answer, .. }) =
                keys.first().and_then(|(part, _)| sum.parts.get(*part))
            && let Some(primary) = map.primaries.iter().find(|primary| primary.tag == answer.tag)
        {
            node.0.clone_from(&primary.address.0);
        }
        let groups = Groups::apart(keys.iter().map(|(_, key)| key.clone()).collect());
        if let Some(primary) = map.primaries.iter().find(|primary| primary.address == node) {
            let mut rest = Vec::new();
            for share in self.send(vec![(primary.clone(), groups)], Manner::Asking).await {
                let elsewhere = sum.take(share, &Arc::default());
                rest.extend(elsewhere.into_iter().flat_map(|(group, _)| group));
            }
            return rest;
        }
        let server = self.stranger(&node);
        let result = tokio::time::timeout(PATIENCE, server.delete(&groups, Manner::Asking)).await;
        let Ok(Ok(outcome)) = result else { return keys.into_iter().map(|(_, key)| key).collect() };
        sum.existed += outcome.existed;
        let mut rest = Vec::new();
        for (place, (part, key)) in keys.into_iter().enumerate() {
            let is_here = outcome.elsewhere.iter().all(|(group, _)| *group != place);
            if !is_here || outcome.refused.iter().any(|(group, _)| *group == place) {
                rest.push(key);
            } else if let Some(Part { deletions: Deletions::Keys(done), .. }) =
                sum.parts.get_mut(part)
            {
                // It has no slot, so no mark, either: whoever gives the slot away vouches for it.
                Arc::make_mut(done).push(text(&key));
            }
        }
        rest
    }

    /// All at once.
    async fn send(self: &Arc<Self>, shares: Vec<Sending>, manner: Manner) -> Vec<Share> {
        if let [_] = &shares[..] {
            let mut done = Vec::with_capacity(1);
            for (primary, groups) in shares {
                let result = self.send_to(&primary, &groups, manner).await;
                done.push(Share { primary, groups, result });
            }
            return done;
        }
        let (mut sent, mut done) = (JoinSet::new(), Vec::with_capacity(shares.len()));
        for (primary, groups) in shares {
            let cluster = self.clone();
            sent.spawn(async move {
                let result = cluster.send_to(&primary, &groups, manner).await;
                Share { primary, groups, result }
            });
        }
        while let Some(share) = sent.join_next().await {
            done.extend(share.ok());
        }
        done
    }

    async fn send_to(
        self: &Arc<Self>,
        primary: &Arc<Primary>,
        groups: &Groups,
        manner: Manner,
    ) -> Result<Outcome, String> {
        if let Some(reason) = primary.doubt() {
            return Err(reason);
        }
        let patience = primary.patience();
        let reason =
            match tokio::time::timeout(patience, primary.server.delete(groups, manner)).await {
                Ok(Ok(outcome)) => return Ok(outcome),
                Ok(Err(error)) => error.to_string(),
                Err(_) => {
                    primary.be_patient(self.settings.timeout);
                    format!("no answer within {patience:?}")
                }
            };
        self.doubt(primary, reason.clone());
        Err(reason)
    }

    async fn patterns(
        self: &Arc<Self>,
        patterns: &[String],
        sum: &mut Sum,
    ) -> Result<Arc<Map>, Error> {
        let (mut map, mut open) = self.look_closely().await?;
        let mut earlier: Option<Arc<Map>> = None;
        for _ in 0..MAX_PASSES {
            self.pass(&map, patterns, sum).await;
            let (after, open_after) = self.look_closely().await?;
            let is_still =
                map.seen == after.seen && (open, open_after) == (Some(false), Some(false));
            // In two passes, a key whose slot moved once was in the same place for one of them.
            let gave_once =
                earlier.is_some_and(|earlier| !Map::moved_twice([&earlier, &map, &after]));
            earlier = Some(std::mem::replace(&mut map, after));
            open = open_after;
            if sum.reason.is_some() {
                break;
            }
            if is_still || gave_once {
                return Ok(map);
            }
        }
        sum.left.extend(patterns.iter().cloned());
        Ok(map)
    }

    /// Every primary once, all at the same time.
    async fn pass(self: &Arc<Self>, map: &Map, patterns: &[String], sum: &mut Sum) {
        let mut walks = JoinSet::new();
        for primary in map.primaries.iter().cloned() {
            let (cluster, patterns) = (self.clone(), patterns.to_vec());
            walks.spawn(async move { (cluster.walk(&primary, &patterns).await, primary) });
        }
        while let Some(walk) = walks.join_next().await {
            match walk {
                Ok((Ok(outcome), _)) => {
                    sum.existed += outcome.existed;
                    sum.parts.push(Part {
                        answer: outcome.answer,
                        deletions: Deletions::Patterns(Arc::new(patterns.to_vec())),
                    });
                }
                Ok((Err(reason), primary)) => {
                    sum.reason = Some(format!("{}: {reason}", primary.name()))
                }
                Err(_) => sum.reason = Some("the walk's task ended".into()),
            }
        }
    }

    async fn walk(
        self: &Arc<Self>,
        primary: &Arc<Primary>,
        patterns: &[String],
    ) -> Result<Outcome, String> {
        if let Some(reason) = primary.doubt() {
            return Err(reason);
        }
        primary.server.walk(patterns, Manner::BySlot).await.map_err(|error| {
            self.doubt(primary, error.to_string());
            error.to_string()
        })
    }

    /// The newest map, and whether a slot is on its way; `None`: nobody may say.
    async fn look_closely(self: &Arc<Self>) -> Result<(Arc<Map>, Option<bool>), Error> {
        let known = self.map().await?;
        let map = self.refresh(Some(&known)).await.unwrap_or(known);
        let mut looks = JoinSet::new();
        for primary in map.primaries.iter().filter(|primary| primary.doubt().is_none()).cloned() {
            looks.spawn(async move {
                let connection = primary.server.connection().await?;
                connection.say::<Value>("CLUSTER", vec!["NODES".into()]).await
            });
        }
        let (mut open, mut is_known) = (false, true);
        while let Ok(Some(look)) =
            tokio::time::timeout(Duration::from_secs(1), looks.join_next()).await
        {
            match look {
                Ok(Ok(nodes)) => {
                    open |=
                        nodes.as_string().is_some_and(|nodes| !slots::open_slots(&nodes).is_empty())
                }
                _ => is_known = false,
            }
        }
        is_known &= looks.is_empty();
        Ok((map, is_known.then_some(open)))
    }
}

impl Sum {
    /// Returns what is to be sent elsewhere. `asked`: the keys of the whole command, which are
    /// shared if this did all of them.
    fn take(&mut self, share: Share, asked: &Arc<Vec<String>>) -> Vec<(Vec<Key>, Redirect)> {
        let Share { primary, groups, result } = share;
        let Outcome { existed, answer, elsewhere, refused } = match result {
            Ok(outcome) => outcome,
            Err(reason) => {
                self.reason = Some(format!("{}: {reason}", primary.name()));
                self.left.extend(groups.into_keys().iter().map(text));
                return Vec::new();
            }
        };
        self.existed += existed;
        let mut is_here = vec![true; groups.len()];
        let mut redirected = Vec::with_capacity(elsewhere.len());
        for (group, redirect) in elsewhere {
            is_here[group] = false;
            redirected.push((groups.group(group).to_vec(), redirect));
        }
        for (group, words) in refused {
            is_here[group] = false;
            let group = groups.group(group);
            if let [key] = group {
                self.reason = Some(Error::Refused(words).to_string());
                self.left.push(text(key));
            } else {
                redirected.push((group.to_vec(), Redirect::Apart)); // one of them holds up the others
            }
        }
        let here = groups.iter().zip(is_here).filter(|(_, is_here)| *is_here);
        let done: Vec<&Key> = here.flat_map(|(group, _)| group).collect();
        let is_all = done.iter().map(|key| key.as_bytes()).eq(asked.iter().map(String::as_bytes));
        let keys = match is_all {
            true => asked.clone(),
            false => Arc::new(done.into_iter().map(text).collect()),
        };
        self.parts.push(Part { answer, deletions: Deletions::Keys(keys) });
        redirected
    }
}

/// The shares of the primaries, grouped by slot, or one by one; and the keys of slots that none
/// has.
fn split(map: &Map, keys: Vec<Key>, one_by_one: bool) -> (Vec<Sending>, Vec<Key>) {
    let mut shares: Vec<Vec<(u16, Key)>> = vec![Vec::new(); map.primaries.len()];
    let mut homeless = Vec::new();
    for (slot, key) in keys.into_iter().map(slots::beside) {
        match map.owner_of_slot(slot) {
            Some(owner) => shares[owner].push((slot, key)),
            None => homeless.push(key),
        }
    }
    let groups = |keys: Vec<(u16, Key)>| match one_by_one {
        true => Groups::apart(keys.into_iter().map(|(_, key)| key).collect()),
        false => Groups::by_slot(keys),
    };
    let shares = map.primaries.iter().cloned().zip(shares).filter(|(_, keys)| !keys.is_empty());
    (shares.map(|(primary, keys)| (primary, groups(keys))).collect(), homeless)
}

/// Of a key that came from a text.
fn text(key: &Key) -> String {
    key.as_str_lossy().into_owned()
}

/// Is it the canary of one of the primaries?
fn is_of(key: &str, canary: &str) -> bool {
    key.strip_prefix(canary).is_some_and(|rest| rest.starts_with(":{"))
}

/// The same keys for fred, in one buffer: it wants to own them, and so does who may have to repeat
/// them.
pub(super) fn shared(keys: &[String]) -> Vec<Key> {
    let mut all = BytesMut::with_capacity(keys.iter().map(String::len).sum());
    keys.iter().for_each(|key| all.extend_from_slice(key.as_bytes()));
    let mut all = all.freeze();
    keys.iter().map(|key| all.split_to(key.len()).into()).collect()
}
