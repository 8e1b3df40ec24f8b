//! Reading what is cached, for an audit: values and fields in pipelines of bounded size, and the
//! names of keys.

use fred::interfaces::KeysInterface;
use fred::types::{Key, Value};

use super::connection::{Connection, command_error, custom};
use super::error::{self, Error};
use super::server::Server;
use super::slots::Redirect;
use super::walk::SCAN_COUNT;
use super::{Kind, Sink};

/// What the replies of one pipeline should have together, so that memory stays bounded whatever the
/// values are.
const PIPELINE_BYTES: usize = 1 << 20;

/// Keys in one pipeline, at first and at the most.
const PIPELINE_KEYS: (usize, usize) = (16, 500);

/// How often keys are sent after their slots.
const ROUNDS: usize = 4;

/// What is under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cached {
    /// Nothing.
    Absent,
    /// A string.
    Text(Vec<u8>),
    /// The field that was asked for.
    Field(Vec<u8>),
    /// Something else, or a hash without that field.
    Other,
    /// Its slot is on the move, so that nobody has said.
    Unknown,
}

impl Sink {
    /// Hands what is under each key to `each`, by its place in the list: a string, or with `field`
    /// that field of a hash.
    ///
    /// # Errors
    /// [`Error`]; then not each key was looked at.
    pub async fn values(
        &self,
        keys: &[&str],
        field: Option<&str>,
        mut each: impl FnMut(usize, Cached),
    ) -> Result<(), Error> {
        let cluster = match &self.kind {
            Kind::One(server) => {
                let all: Vec<usize> = (0..keys.len()).collect();
                for place in server.values(keys, &all, field, &mut each).await? {
                    each(place, Cached::Unknown);
                }
                return Ok(());
            }
            Kind::Cluster(cluster) => cluster,
        };
        let (mut map, mut rest) = (cluster.map().await?, (0..keys.len()).collect::<Vec<_>>());
        for _ in 0..ROUNDS {
            let mut shares = vec![Vec::new(); map.primaries.len()];
            let mut moved = Vec::new();
            for place in rest {
                match map.owner(keys[place]) {
                    Some(owner) => shares[owner].push(place),
                    None => moved.push(place),
                }
            }
            for (primary, share) in map.primaries.iter().zip(shares) {
                moved.extend(primary.server.values(keys, &share, field, &mut each).await?);
            }
            rest = moved;
            if rest.is_empty() {
                return Ok(());
            }
            map = cluster.refresh(Some(&map)).await?;
        }
        rest.into_iter().for_each(|place| each(place, Cached::Unknown));
        Ok(())
    }

    /// One step through all of Redis: those keys among the next thousand that match the glob and
    /// are text, and the cursor of the next step. The first is `0`, and after the last comes `0`
    /// again.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn keys_of_matching(
        &self,
        pattern: &str,
        cursor: String,
    ) -> Result<(String, Vec<String>), Error> {
        self.step(cursor, async |server, cursor| {
            let connection = server.connection().await?;
            let step = connection.client.scan_page(cursor, pattern, Some(SCAN_COUNT), None);
            let step: Result<(String, Vec<Key>), Error> = connection.ask(step).await;
            let (next, keys) = server.concluded(&connection, step).await?;
            Ok((next, keys.iter().filter_map(|key| key.as_str().map(str::to_owned)).collect()))
        })
        .await
    }
}

impl Server {
    /// Likewise, of the keys at these places. Returns the places of those that live elsewhere.
    async fn values(
        &self,
        keys: &[&str],
        places: &[usize],
        field: Option<&str>,
        each: &mut impl FnMut(usize, Cached),
    ) -> Result<Vec<usize>, Error> {
        let (mut moved, mut rest, mut size) = (Vec::new(), places, PIPELINE_KEYS.0);
        while !rest.is_empty() {
            let (chunk, after) = rest.split_at(size.min(rest.len()));
            let connection = self.connection().await?;
            let asked: Vec<&str> = chunk.iter().map(|&place| keys[place]).collect();
            let read = read(&connection, &asked, field).await;
            let read = match self.concluded(&connection, read).await {
                // Together, or one of them, more than a reply may have.
                Err(Error::Broken(_)) if size > 1 => {
                    size = 1;
                    continue;
                }
                Err(Error::Broken(_)) => vec![Some(Cached::Other)],
                read => read?,
            };
            let mut bytes = 0;
            for (&place, cached) in chunk.iter().zip(read) {
                let Some(cached) = cached else {
                    moved.push(place);
                    continue;
                };
                if let Cached::Text(value) | Cached::Field(value) = &cached {
                    bytes += value.len();
                }
                each(place, cached);
            }
            size = (PIPELINE_BYTES * chunk.len() / bytes.max(1))
                .clamp(1, PIPELINE_KEYS.1)
                .min(chunk.len() * 4);
            rest = after;
        }
        Ok(moved)
    }
}

/// `None`: it lives elsewhere.
async fn read(
    connection: &Connection,
    keys: &[&str],
    field: Option<&str>,
) -> Result<Vec<Option<Cached>>, Error> {
    let get = |key: &str| ("GET", vec![key.to_owned()]);
    let first = keys.iter().map(|key| {
        field.map_or_else(|| get(key), |field| ("HGET", vec![(*key).to_owned(), field.to_owned()]))
    });
    let replies = pipeline(connection, first.collect()).await?;
    let (mut read, mut again) = (Vec::with_capacity(keys.len()), Vec::new());
    for (place, reply) in replies.into_iter().enumerate() {
        read.push(match (reply, field) {
            (Reply::Elsewhere, _) => None,
            (Reply::Value(Value::Null), None) => Some(Cached::Absent),
            (Reply::Value(value), None) => {
                Some(value.into_bytes().map_or(Cached::Other, |bytes| Cached::Text(bytes.to_vec())))
            }
            (Reply::OtherType, None) => Some(Cached::Other),
            (Reply::Value(Value::Null), Some(_)) => {
                again.push((place, ("TYPE", vec![keys[place].to_owned()])));
                Some(Cached::Other)
            }
            (Reply::Value(value), Some(_)) => Some(
                value.into_bytes().map_or(Cached::Other, |bytes| Cached::Field(bytes.to_vec())),
            ),
            // A lease is a string, whatever the value will be.
            (Reply::OtherType, Some(_)) => {
                again.push((place, get(keys[place])));
                Some(Cached::Other)
            }
        });
    }
    let (places, commands): (Vec<_>, Vec<_>) = again.into_iter().unzip();
    let are_types: Vec<bool> = commands.iter().map(|(name, _)| *name == "TYPE").collect();
    for ((place, is_type), reply) in
        places.into_iter().zip(are_types).zip(pipeline(connection, commands).await?)
    {
        read[place] = match reply {
            Reply::Elsewhere => None,
            Reply::Value(Value::Null) => Some(Cached::Absent),
            Reply::Value(value) if is_type => Some(if value.as_str().as_deref() == Some("none") {
                Cached::Absent
            } else {
                Cached::Other
            }),
            Reply::Value(value) => {
                Some(value.into_bytes().map_or(Cached::Other, |bytes| Cached::Text(bytes.to_vec())))
            }
            Reply::OtherType => Some(Cached::Other),
        };
    }
    Ok(read)
}

/// An answer to one command.
enum Reply {
    Value(Value),
    /// The key is of another type.
    OtherType,
    /// The key lives elsewhere.
    Elsewhere,
}

async fn pipeline(
    connection: &Connection,
    commands: Vec<(&'static str, Vec<String>)>,
) -> Result<Vec<Reply>, Error> {
    if commands.is_empty() {
        return Ok(Vec::new());
    }
    let in_words = |error: fred::error::Error| command_error(&error, connection.timeout);
    let pipeline = connection.client.pipeline();
    for (name, arguments) in commands {
        let _: () = fred::interfaces::ClientLike::custom(&pipeline, custom(name), arguments)
            .await
            .map_err(in_words)?;
    }
    let replies = connection.ask(async { Ok(pipeline.try_all::<Value>().await) }).await?;
    let reply = |reply: Result<Value, fred::error::Error>| match reply.map_err(in_words) {
        Ok(value) => Ok(Reply::Value(value)),
        Err(Error::Refused(words)) if error::code(&words) == Some("WRONGTYPE") => {
            Ok(Reply::OtherType)
        }
        Err(Error::Refused(words)) if Redirect::read(&words).is_some() => Ok(Reply::Elsewhere),
        Err(error) => Err(error),
    };
    replies.into_iter().map(reply).collect()
}
