//! `REDIS_URL`, in front of the driver, in the spelling that the driver documents
//! (<https://docs.rs/fred/10.1.0/fred/types/config/struct.Config.html#method.from_url>).
//!
//! The driver by itself ignores a part that it does not know, so that `redis://h?db=2` would empty
//! database 0. Must hold: nothing of a URL is ignored, and no refusal shows a part that may belong
//! to a password. Pure.

use std::path::PathBuf;

use crate::spelling::{self, nearest};

/// After whatever may be a part of a password.
const ENCODE: &str =
    "in a user or password write @ as %40, : as %3A, / as %2F, ? as %3F, # as %23, % as %25";

/// Where a URL leads.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Url {
    /// `rediss://` and its relatives.
    pub(super) tls: bool,
    /// Of the ACL; `None`: the default user.
    pub(super) user: Option<String>,
    /// `None`: there is none.
    pub(super) password: Option<String>,
    /// `None`: 0.
    pub(super) database: Option<u8>,
    /// What is there.
    pub(super) place: Place,
}

/// A server, or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// `redis://host:6379/0`.
    Server(Node),
    /// `redis+unix:///run/redis.sock?db=0`.
    Socket(PathBuf),
    /// `redis-cluster://host:6379?node=host:6379`: some of its servers.
    Cluster(Vec<Node>),
    /// `redis-sentinel://host:26379/0?node=host:26379&sentinelServiceName=mymaster`.
    Sentinel {
        /// The sentinels.
        nodes: Vec<Node>,
        /// What they call the primary.
        service: String,
    },
}

/// Host and port.
pub(super) type Node = (String, u16);

/// What a scheme leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Server,
    Socket,
    Cluster,
    Sentinel,
}

/// Schemes, what they lead to, and whether with TLS; `valkey` stands for `redis` in each.
const SCHEMES: [(&str, Kind, bool); 7] = [
    ("redis", Kind::Server, false),
    ("rediss", Kind::Server, true),
    ("redis+unix", Kind::Socket, false),
    ("redis-cluster", Kind::Cluster, false),
    ("rediss-cluster", Kind::Cluster, true),
    ("redis-sentinel", Kind::Sentinel, false),
    ("rediss-sentinel", Kind::Sentinel, true),
];

impl Kind {
    /// The names that may stand after the `?`.
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Server => &[],
            Self::Socket => &["db"],
            Self::Cluster => &["node"],
            Self::Sentinel => &["node", "sentinelServiceName"],
        }
    }

    fn port(self) -> u16 {
        if self == Self::Sentinel { 26379 } else { 6379 }
    }
}

impl Url {
    /// Reads a URL.
    ///
    /// # Errors
    /// The sentence that says what is wrong; it shows no secret.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let (kind, tls, rest) = scheme(url)?;
        if rest.contains('#') {
            return Err(format!("a # has no meaning here; {ENCODE}"));
        }
        let (place, query) =
            rest.split_once('?').map_or((rest, ""), |(place, query)| (place, query));
        let (credentials, place) = place
            .rsplit_once('@')
            .map_or((None, place), |(credentials, place)| (Some(credentials), place));
        if credentials.is_some_and(|credentials| credentials.contains(['@', '/']))
            || query.contains('@')
        {
            return Err(format!("there is an @ too many; {ENCODE}"));
        }
        let (user, password) = credentials.map(user_and_password).transpose()?.unwrap_or_default();
        let (authority, path) = place.split_once('/').unwrap_or((place, ""));
        let parts = Parts::read(kind, authority, path, query)?;
        let (database, place) = match kind {
            Kind::Socket => (parts.database(parts.one("db"))?, parts.socket()?),
            Kind::Server => {
                (parts.database(Some(path))?, Place::Server(node(authority, kind.port())?))
            }
            Kind::Cluster if !path.is_empty() && path != "0" => {
                return Err("a cluster has no database but 0; leave it out".into());
            }
            Kind::Cluster => (None, Place::Cluster(parts.nodes()?)),
            Kind::Sentinel => {
                let service = parts.one("sentinelServiceName").filter(|name| !name.is_empty());
                let service = service
                    .ok_or("which primary is meant? write ?sentinelServiceName=mymaster")?
                    .to_owned();
                (parts.database(Some(path))?, Place::Sentinel { nodes: parts.nodes()?, service })
            }
        };
        Ok(Self { tls, user, password, database, place })
    }
}

fn scheme(url: &str) -> Result<(Kind, bool, &str), String> {
    let usage =
        "write redis://:password@host:6379/0, rediss:// for TLS, or redis+unix:///run/redis.sock";
    let (name, rest) =
        url.split_once("://").ok_or_else(|| format!("it is not a Redis URL; {usage}"))?;
    let as_redis =
        name.strip_prefix("valkey").map_or_else(|| name.to_owned(), |rest| format!("redis{rest}"));
    if let Some((_, kind, tls)) = SCHEMES.iter().find(|(known, ..)| *known == as_redis) {
        return Ok((*kind, *tls, rest));
    }
    // What other clients call it: redis-py, Lettuce, Jedis.
    if matches!(name, "unix" | "redis-socket" | "redis+socket" | "rediss+unix") {
        return Err(
            "the URL of a socket is written redis+unix:///run/redis.sock?db=0, or redis+unix://user:password@/run/redis.sock".into()
        );
    }
    Err(format!("it is not a Redis URL; {usage}"))
}

fn user_and_password(credentials: &str) -> Result<(Option<String>, Option<String>), String> {
    // Some programs take a lone word for the user, others for the password.
    let (user, password) = credentials
        .split_once(':')
        .ok_or("a user has no password; write :password@ or user:password@ before the host")?;
    let text = |text: &str| decode(text).map(|text| Some(text).filter(|text| !text.is_empty()));
    Ok((text(user)?, text(password)?))
}

/// What stands around.
struct Parts<'a> {
    kind: Kind,
    authority: &'a str,
    path: &'a str,
    query: Vec<(String, String)>,
}

impl<'a> Parts<'a> {
    fn read(kind: Kind, authority: &'a str, path: &'a str, query: &str) -> Result<Self, String> {
        let mut parts = Self { kind, authority, path, query: Vec::new() };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            if !kind.names().contains(&name.as_str()) {
                return Err(unknown(kind, &name));
            }
            if name != "node" && parts.one(&name).is_some() {
                return Err(format!("{name} stands there twice"));
            }
            parts.query.push((name, value));
        }
        Ok(parts)
    }

    fn one(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn database(&self, written: Option<&str>) -> Result<Option<u8>, String> {
        match written {
            None | Some("") => Ok(None),
            Some(number) => number.parse().map(Some).map_err(|_| match self.kind {
                Kind::Socket => "db must be the number of a database, as in ?db=2".to_owned(),
                _ => "after the host comes the number of a database, as in redis://host:6379/2"
                    .to_owned(),
            }),
        }
    }

    /// A host before the path is only there for parsers that want one.
    fn socket(&self) -> Result<Place, String> {
        if !matches!(self.authority, "" | "localhost") || self.path.is_empty() {
            return Err("the URL of a socket has three slashes and the whole path: redis+unix:///run/redis.sock".into());
        }
        Ok(Place::Socket(format!("/{}", decode(self.path)?).into()))
    }

    fn nodes(&self) -> Result<Vec<Node>, String> {
        let others =
            self.query.iter().filter(|(name, _)| name == "node").map(|(_, value)| value.as_str());
        [self.authority]
            .into_iter()
            .chain(others)
            .map(|text| node(text, self.kind.port()))
            .collect()
    }
}

/// A name with a digit in it is no part of any URL, and may be one of a password that was not
/// encoded.
fn unknown(kind: Kind, name: &str) -> String {
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphabetic() || "_-.".contains(c)) {
        return format!("what follows the ? is not name=value; {ENCODE}");
    }
    match (kind, name) {
        (Kind::Server, "db" | "database") => {
            format!(
                "the database's number comes after the host, as in redis://host:6379/2, not as {name}="
            )
        }
        (_, "password" | "username" | "user") => {
            format!("{name} comes before the host, as in redis://user:password@host:6379")
        }
        (_, "sentinelUsername" | "sentinelPassword") => {
            format!("{name} is not supported yet: the sentinels must ask for no password")
        }
        _ => match nearest(name, kind.names().iter().copied()) {
            Some(nearest) => format!("there is no part {name}; did you mean {nearest}?"),
            None => format!("there is no part {name}; leave it out"),
        },
    }
}

/// `host:port`, `[::1]:port`.
fn node(text: &str, default: u16) -> Result<Node, String> {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (
            host,
            rest.strip_prefix(':')
                .or(rest.is_empty().then_some(""))
                .ok_or("after ] comes a port, as in [::1]:6379")?,
        ),
        None => text.split_once(':').unwrap_or((text, "")),
    };
    if host.is_empty() {
        return Err("it names no host".into());
    }
    let port =
        if port.is_empty() { Some(default) } else { port.parse().ok().filter(|port| *port > 0) };
    Ok((
        decode(host)?,
        port.ok_or_else(|| format!("a port is not a number from 1 to 65535; {ENCODE}"))?,
    ))
}

/// What stands between the separators.
fn decode(text: &str) -> Result<String, String> {
    spelling::decode(text).map_err(|fault| format!("{fault}; {ENCODE}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(url: &str) -> Url {
        Url::parse(url).unwrap_or_else(|refusal| panic!("{url}: {refusal}"))
    }

    fn refused(url: &str) -> String {
        Url::parse(url).err().unwrap_or_else(|| panic!("{url} is taken"))
    }

    fn server(host: &str, port: u16) -> Place {
        Place::Server((host.into(), port))
    }

    #[test]
    fn every_scheme_is_read() {
        for (url, place, tls, user, password, database) in [
            ("redis://h", server("h", 6379), false, None, None, None),
            ("redis://h/", server("h", 6379), false, None, None, None),
            ("redis://:pw@h:1/2", server("h", 1), false, None, Some("pw"), Some(2)),
            (
                "rediss://u:p%40%2F@[::1]:1/0",
                server("::1", 1),
                true,
                Some("u"),
                Some("p@/"),
                Some(0),
            ),
            ("valkeys://u:p@h", server("h", 6379), true, Some("u"), Some("p"), None),
            (
                "redis+unix:///run/r.sock",
                Place::Socket("/run/r.sock".into()),
                false,
                None,
                None,
                None,
            ),
            (
                "redis+unix://:pw@localhost/run/r.sock?db=3",
                Place::Socket("/run/r.sock".into()),
                false,
                None,
                Some("pw"),
                Some(3),
            ),
            (
                "valkey+unix://u:pw@/run/r.sock",
                Place::Socket("/run/r.sock".into()),
                false,
                Some("u"),
                Some("pw"),
                None,
            ),
            (
                "rediss-cluster://a:1?node=b:2&node=c",
                Place::Cluster(vec![("a".into(), 1), ("b".into(), 2), ("c".into(), 6379)]),
                true,
                None,
                None,
                None,
            ),
            (
                "redis-sentinel://a/1?node=b:2&sentinelServiceName=m",
                Place::Sentinel {
                    nodes: vec![("a".into(), 26379), ("b".into(), 2)],
                    service: "m".into(),
                },
                false,
                None,
                None,
                Some(1),
            ),
        ] {
            let read = parsed(url);
            let Url {
                tls: its_tls,
                user: its_user,
                password: its_password,
                database: its_database,
                place: its_place,
            } = read;
            assert_eq!(its_place, place, "{url}");
            assert_eq!(
                (its_tls, its_user.as_deref(), its_password.as_deref(), its_database),
                (tls, user, password, database),
                "{url}"
            );
        }
    }

    #[test]
    fn what_is_not_understood_is_refused_with_the_right_spelling() {
        assert!(refused("redis://h?db=2").contains("redis://host:6379/2"));
        assert!(refused("redis://h/2?timeout=5").contains("no part timeout"));
        assert!(refused("redis://h/abc").contains("redis://host:6379/2"));
        assert!(refused("redis://h/1/2").contains("redis://host:6379/2"));
        assert!(refused("redis://h/300").contains("number of a database"));
        assert!(refused("unix:///run/r.sock").contains("redis+unix:///run/redis.sock"));
        assert!(refused("redis+unix://run/r.sock").contains("three slashes"));
        assert!(refused("redis-sentinel://h").contains("sentinelServiceName"));
        assert!(
            refused("redis-sentinel://h?sentinelservicename=x")
                .contains("did you mean sentinelServiceName?")
        );
        assert!(refused("redis-cluster://h/2").contains("no database but 0"));
        assert!(refused("rediss://h/#insecure").contains('#'));
        assert!(refused("redis://u@h").contains("has no password"));
        assert!(refused("redis://:1").contains("no host"));
        assert!(refused("http://h").contains("redis://:password@host:6379/0"));
    }

    #[test]
    fn no_refusal_shows_a_part_of_a_password() {
        for url in [
            "redis://u:hun@ter2@h",
            "redis://:hun/ter2@h",
            "redis://:hun?ter2@h",
            "redis://:hun#ter2@h",
            "redis://:%zzhunter2@h",
            "x://:hunter2@h",
        ] {
            let refusal = refused(url);
            assert!(!refusal.contains("hun") && !refusal.contains("ter2"), "{refusal}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_or_refused(url in "(redis|valkey)[s+a-z-]{0,9}://[a-z0-9@:/?&=%,\\[\\] \u{e9}]{0,60}") {
            let _ = Url::parse(&url);
        }

        #[test]
        fn any_password_survives_percent_encoding(password in "[^\\x00]{1,20}") {
            let encoded: String = password.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(parsed(&format!("redis://:{encoded}@h")).password, Some(password));
        }
    }
}
