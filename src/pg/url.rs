//! `DATABASE_URL` as libpq reads it (<https://www.postgresql.org/docs/current/libpq-connect.html>),
//! in front of the driver.
//!
//! Owns: which parts a URL may have, which `PG*` variable stands in for each, and a sentence for
//! every part that cannot be had. The driver by itself ignores a part that it does not know, so
//! that `sslMode=verify-full` would connect unverified. Must hold: nothing of a URL is ignored, and
//! no refusal shows a part that may belong to a password. Pure: the environment is an argument.

mod parts;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::spelling::{self, nearest};
use parts::{PARTS, Rule, allowed};

/// The server's usual port.
const PORT: u16 = 5432;

/// Where a URL leads.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Url {
    /// In the order in which they are tried; never empty.
    pub(super) hosts: Vec<Host>,
    /// `None`: the name of the operating system's user.
    pub(super) user: Option<String>,
    /// `None`: look into `passfile`.
    pub(super) password: Option<String>,
    /// `None`: `~/.pgpass`.
    pub(super) passfile: Option<PathBuf>,
    /// `None`: the user's name.
    pub(super) database: Option<String>,
    /// `sslmode` and its relatives.
    pub(super) tls: Tls,
    /// For the server's command line, as in `-c work_mem=64MB`.
    pub(super) options: Option<String>,
    /// Beside our own.
    pub(super) application: Option<String>,
    /// `target_session_attrs`.
    pub(super) wants: Wants,
    /// For each host; `None`: as long as it takes.
    pub(super) timeout: Option<Duration>,
}

/// A server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// A name or an address; with a slash at its beginning the directory of a socket; empty: the
    /// socket's usual directory.
    pub(super) name: String,
    /// Of TCP, or in the socket's name.
    pub(super) port: u16,
}

/// What kind of server will do. All of them must be primaries, because LISTEN works nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wants {
    /// A primary.
    Primary,
    /// A primary whose transactions are not read-only by default.
    ReadWrite,
}

/// How much of TLS there is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tls {
    /// `sslmode`.
    pub(super) mode: Mode,
    /// `None`: the authorities that the system trusts.
    pub(super) root: Option<String>,
    /// Our certificate.
    pub(super) cert: Option<String>,
    /// Its key.
    pub(super) key: Option<String>,
}

/// `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Never.
    Disable,
    /// If the server refuses without.
    Allow,
    /// If the server can.
    Prefer,
    /// Always, with any certificate.
    Require,
    /// Always, with a certificate of a trusted authority.
    VerifyCa,
    /// The same, for this host.
    VerifyFull,
}

const MODES: [(&str, Mode); 6] = [
    ("disable", Mode::Disable),
    ("allow", Mode::Allow),
    ("prefer", Mode::Prefer),
    ("require", Mode::Require),
    ("verify-ca", Mode::VerifyCa),
    ("verify-full", Mode::VerifyFull),
];

/// What a URL may begin with.
const SCHEMES: [&str; 2] = ["postgresql://", "postgres://"];

/// After whatever may be a part of a password.
const ENCODE: &str = "in a user or password write @ as %40, : as %3A, / as %2F, % as %25";

impl Url {
    /// Reads a URL. Where it is silent, the `PG*` variables speak.
    ///
    /// # Errors
    /// The sentence that says what is wrong; it shows no secret.
    pub(super) fn parse(
        url: &str,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, String> {
        let mut parts = written(url)?;
        for (name, variable_name, rule) in PARTS {
            if let Some(value) = variable(variable_name).filter(|value| !value.is_empty())
                && !parts.contains_key(name)
            {
                allowed(rule, &value, || format!("the environment's {variable_name}"))?;
                parts.insert(name, value);
            }
        }
        Self::from_parts(&parts)
    }

    fn from_parts(parts: &BTreeMap<&'static str, String>) -> Result<Self, String> {
        let text = |name: &str| parts.get(name).filter(|value| !value.is_empty()).cloned();
        let tls = Tls::from_parts(parts)?;
        Ok(Self {
            hosts: hosts(parts, tls.mode)?,
            user: text("user"),
            password: text("password"),
            passfile: text("passfile").map(PathBuf::from),
            database: text("dbname"),
            tls,
            options: text("options"),
            application: text("application_name").or_else(|| text("fallback_application_name")),
            wants: wants(parts.get("target_session_attrs").map_or("any", String::as_str))?,
            timeout: timeout(parts.get("connect_timeout").map_or("0", String::as_str))?,
        })
    }
}

/// The parts that stand in the URL, each of them known and possible.
fn written(url: &str) -> Result<BTreeMap<&'static str, String>, String> {
    let Some(rest) = SCHEMES.iter().find_map(|scheme| url.strip_prefix(scheme)) else {
        return Err(
            "it is not a PostgreSQL URL; write postgres://user:password@host:5432/database".into(),
        );
    };
    let mut parts = BTreeMap::new();
    let rest = match rest.find(['@', '/']) {
        Some(at) if rest[at..].starts_with('@') => {
            let (user, password) = rest[..at]
                .split_once(':')
                .map_or((&rest[..at], None), |(user, password)| (user, Some(password)));
            parts.insert("user", decode(user)?);
            if let Some(password) = password {
                parts.insert("password", decode(password)?);
            }
            &rest[at + 1..]
        }
        _ => rest,
    };
    let (place, query) =
        rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    let (authority, path) = place.split_once('/').unwrap_or((place, ""));
    if place.contains('@') {
        return Err(format!("there is an @ too many; {ENCODE}"));
    }
    let (names, ports) = split_hosts(authority)?;
    if names.iter().any(|name| !name.is_empty()) {
        parts.insert("host", names.join(","));
    }
    if ports.iter().any(|port| !port.is_empty()) {
        parts.insert("port", ports.join(","));
    }
    if !path.is_empty() {
        parts.insert("dbname", decode(path)?);
    }
    for pair in query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty())
    {
        let (name, value) = query_part(pair)?;
        parts.insert(name, value);
    }
    Ok(parts)
}

fn query_part(pair: &str) -> Result<(&'static str, String), String> {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    let (name, value) = (decode(name)?, decode(value)?);
    if name == "ssl" && value == "true" {
        return Ok(("sslmode", "require".into())); // JDBC's spelling, which libpq takes, too
    }
    let Some((known, _, rule)) = PARTS.iter().find(|(known, ..)| *known == name) else {
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphabetic() || "_-[].".contains(c))
        {
            return Err(format!("what follows the ? is not name=value&name=value; {ENCODE}"));
        }
        let names = PARTS
            .iter()
            .filter(|(.., rule)| !matches!(rule, Rule::Never(_)))
            .map(|(name, ..)| *name);
        return Err(match nearest(&name, names) {
            Some(nearest) => format!("there is no part {name}; did you mean {nearest}?"),
            None => format!("there is no part {name} in libpq's URLs; leave it out"),
        });
    };
    if !pair.contains('=') || value.contains('\0') {
        return Err(format!("{name} has no value; write {name}=..."));
    }
    allowed(rule, &value, || (*known).to_owned())?;
    Ok((known, value))
}

/// `a:1,[::1]:2,c` as names and ports, without anything that might be a secret in the errors.
fn split_hosts(authority: &str) -> Result<(Vec<String>, Vec<String>), String> {
    let mut both = (Vec::new(), Vec::new());
    for host in authority.split(',') {
        let (name, port) = if let Some(rest) = host.strip_prefix('[') {
            let (name, rest) = rest.split_once(']').ok_or("an IPv6 address has no ] at its end")?;
            match rest.strip_prefix(':') {
                Some(port) => (name, port),
                None if rest.is_empty() => (name, ""),
                None => {
                    return Err(
                        "after the ] of an IPv6 address comes a port, as in [::1]:5432".into()
                    );
                }
            }
        } else {
            host.split_once(':').unwrap_or((host, ""))
        };
        if !port.chars().all(|c| c.is_ascii_digit()) {
            return Err(format!(
                "a port is not a number; {ENCODE}, and an IPv6 address as in [::1]:5432"
            ));
        }
        both.0.push(decode(name)?);
        both.1.push(port.to_owned());
    }
    Ok(both)
}

fn hosts(parts: &BTreeMap<&'static str, String>, mode: Mode) -> Result<Vec<Host>, String> {
    let list = |name: &str| {
        parts
            .get(name)
            .map(|list| list.split(',').map(str::trim).collect::<Vec<_>>())
            .unwrap_or_default()
    };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = names.len().max(addresses.len()).max(1);
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(format!("host names {} servers and hostaddr {}", names.len(), addresses.len()));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(format!(
            "there are {} ports for {count} hosts; write one for each, or one for all",
            ports.len()
        ));
    }
    let of = |i: usize| {
        let port = ports.get(if ports.len() == 1 { 0 } else { i }).copied().unwrap_or_default();
        let port = match port {
            "" => PORT,
            text => text
                .parse()
                .ok()
                .filter(|port| *port > 0)
                .ok_or("a port is not a number from 1 to 65535")?,
        };
        let name = names.get(i).copied().unwrap_or_default();
        let address = addresses.get(i).copied().unwrap_or_default();
        if !address.is_empty() && address.parse::<std::net::IpAddr>().is_err() {
            return Err("hostaddr is a list of IP addresses; names belong into host".to_owned());
        }
        if !address.is_empty() && !name.is_empty() && mode == Mode::VerifyFull {
            return Err("hostaddr and sslmode=verify-full do not go together here; let host alone name the server".to_owned());
        }
        Ok(Host { name: if address.is_empty() { name } else { address }.to_owned(), port })
    };
    (0..count).map(of).collect()
}

impl Tls {
    fn from_parts(parts: &BTreeMap<&'static str, String>) -> Result<Self, String> {
        let file = |name: &str| parts.get(name).filter(|value| !value.is_empty()).cloned();
        let root = file("sslrootcert");
        let mode = match parts.get("sslmode").map(String::as_str) {
            None if root.as_deref() == Some("system") => Mode::VerifyFull,
            None => Mode::Prefer,
            Some(written) => {
                MODES.iter().find(|(name, _)| *name == written).map(|(_, mode)| *mode).ok_or_else(
                    || {
                        let names: Vec<_> = MODES.iter().map(|(name, _)| *name).collect();
                        format!("sslmode must be one of {}", names.join(", "))
                    },
                )?
            }
        };
        let (mode, root) = match root.as_deref() {
            Some("system") if mode != Mode::VerifyFull => {
                return Err("sslrootcert=system wants sslmode=verify-full: anybody has a certificate of such an authority".into());
            }
            Some("system") => (mode, None),
            // As libpq has it: who names an authority wants it to be looked at.
            Some(_) if mode == Mode::Require => (Mode::VerifyCa, root),
            _ => (mode, root),
        };
        let (cert, key) = (file("sslcert"), file("sslkey"));
        if cert.is_some() != key.is_some() {
            return Err("sslcert and sslkey go together, and name files in PEM".into());
        }
        Ok(Self { mode, root, cert, key })
    }
}

fn wants(written: &str) -> Result<Wants, String> {
    match written {
        "any" | "primary" => Ok(Wants::Primary),
        "read-write" => Ok(Wants::ReadWrite),
        "read-only" | "standby" | "prefer-standby" => {
            Err("target_session_attrs must be primary, read-write or any: LISTEN does not work on a standby".into())
        }
        _ => Err("target_session_attrs must be one of any, primary, read-write".into()),
    }
}

fn timeout(written: &str) -> Result<Option<Duration>, String> {
    let seconds: i64 =
        written.trim().parse().map_err(|_| "connect_timeout must be a whole number of seconds")?;
    Ok(u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs))
}

/// What stands between the separators.
fn decode(text: &str) -> Result<String, String> {
    spelling::decode(text).map_err(|fault| format!("{fault}; {ENCODE}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(url: &str) -> Result<Url, String> {
        Url::parse(url, |_| None)
    }

    fn parsed(url: &str) -> Url {
        parse(url).unwrap_or_else(|refusal| panic!("{url}: {refusal}"))
    }

    fn refused(url: &str) -> String {
        parse(url).err().unwrap_or_else(|| panic!("{url} is taken"))
    }

    fn hosts_of(url: &Url) -> String {
        url.hosts
            .iter()
            .map(|host| format!("{}:{}", host.name, host.port))
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// From the examples of libpq's documentation and of PostgreSQL's
    /// src/interfaces/libpq/t/001_uri.pl.
    #[test]
    fn it_reads_what_libpq_reads() {
        for (url, hosts, user, password, database) in [
            ("postgresql://", ":5432", None, None, None),
            ("postgresql://localhost", "localhost:5432", None, None, None),
            ("postgresql://localhost:5433", "localhost:5433", None, None, None),
            ("postgresql://localhost/mydb", "localhost:5432", None, None, Some("mydb")),
            (
                "postgresql://user:secret@localhost",
                "localhost:5432",
                Some("user"),
                Some("secret"),
                None,
            ),
            (
                "postgres://uri-user:secret@host:12345/db",
                "host:12345",
                Some("uri-user"),
                Some("secret"),
                Some("db"),
            ),
            ("postgresql://%75ri-user@host:12345/", "host:12345", Some("uri-user"), None, None),
            ("postgresql://u@host/db%20name", "host:5432", Some("u"), None, Some("db name")),
            (
                "postgresql://other@localhost/otherdb?connect_timeout=10&application_name=myapp",
                "localhost:5432",
                Some("other"),
                None,
                Some("otherdb"),
            ),
            (
                "postgresql:///mydb?host=localhost&port=5433",
                "localhost:5433",
                None,
                None,
                Some("mydb"),
            ),
            (
                "postgresql://[2001:db8::1234]:5433/database",
                "2001:db8::1234:5433",
                None,
                None,
                Some("database"),
            ),
            (
                "postgresql:///dbname?host=/var/lib/postgresql",
                "/var/lib/postgresql:5432",
                None,
                None,
                Some("dbname"),
            ),
            (
                "postgres://user@/db?host=/run/postgresql",
                "/run/postgresql:5432",
                Some("user"),
                None,
                Some("db"),
            ),
            (
                "postgresql://%2Fvar%2Flib%2Fpostgresql/dbname",
                "/var/lib/postgresql:5432",
                None,
                None,
                Some("dbname"),
            ),
            (
                "postgresql://host1:123,host2:456/somedb",
                "host1:123 host2:456",
                None,
                None,
                Some("somedb"),
            ),
            ("postgresql://a,b:6000,[::1]/db", "a:5432 b:6000 ::1:5432", None, None, Some("db")),
            ("postgresql://a,b/db?port=6000", "a:6000 b:6000", None, None, Some("db")),
            ("postgresql:///?hostaddr=127.0.0.1&port=6000", "127.0.0.1:6000", None, None, None),
            ("postgres://u:p%40%3A%2F%25@h/d", "h:5432", Some("u"), Some("p@:/%"), Some("d")),
            ("postgres://u:p?q#r@h/d", "h:5432", Some("u"), Some("p?q#r"), Some("d")),
        ] {
            let read = parsed(url);
            assert_eq!(hosts_of(&read), hosts, "{url}");
            assert_eq!(
                (read.user.as_deref(), read.password.as_deref(), read.database.as_deref()),
                (user, password, database),
                "{url}"
            );
        }
    }

    #[test]
    fn a_part_that_nobody_knows_is_refused_with_the_nearest() {
        assert_eq!(
            refused("postgres://h/d?sslMode=verify-full"),
            "there is no part sslMode; did you mean sslmode?"
        );
        assert_eq!(
            refused("postgres://h/d?ssl-mode=require"),
            "there is no part ssl-mode; did you mean sslmode?"
        );
        assert!(
            refused("postgres://h/d?pgbouncer=true").contains("no part pgbouncer in libpq's URLs")
        );
        assert!(
            refused("postgres://h/d?channel_binding=require")
                .contains("channel_binding can only be disable or prefer")
        );
        assert!(
            refused("postgres://h/d?target_session_attrs=standby")
                .contains("LISTEN does not work on a standby")
        );
        assert!(refused("postgres://h/d?service=app").contains("service is not supported"));
        assert!(refused("postgres://h/d?user").contains("user has no value"));
        assert!(refused("postgres://a,b,c/d?port=1,2").contains("2 ports for 3 hosts"));
        assert!(refused("postgres://h:70000/d").contains("from 1 to 65535"));
        assert!(refused("mysql://h/d").contains("postgres://user:password@host"));
    }

    #[test]
    fn tls_is_spelled_and_meant_as_in_libpq() {
        let mode = |query: &str| parsed(&format!("postgres://h/d?{query}")).tls;
        assert_eq!(mode("").mode, Mode::Prefer);
        assert_eq!(mode("sslmode=require").mode, Mode::Require);
        assert_eq!(mode("ssl=true").mode, Mode::Require);
        assert_eq!(mode("sslmode=require&sslrootcert=/ca").mode, Mode::VerifyCa);
        assert_eq!(
            mode("sslrootcert=system"),
            Tls { mode: Mode::VerifyFull, root: None, cert: None, key: None }
        );
        assert!(
            refused("postgres://h/d?sslrootcert=system&sslmode=require")
                .contains("sslmode=verify-full")
        );
        assert!(
            refused("postgres://h/d?sslmode=verify_full")
                .contains("one of disable, allow, prefer, require, verify-ca, verify-full")
        );
        assert!(refused("postgres://h/d?sslmode=VERIFY-FULL").contains("sslmode must be one of"));
        assert!(refused("postgres://h/d?sslcert=/c").contains("go together"));
        assert!(
            refused("postgres://h/d?hostaddr=1.2.3.4&sslmode=verify-full")
                .contains("let host alone")
        );
    }

    #[test]
    fn the_environment_speaks_where_the_url_is_silent() {
        let variables = [
            ("PGHOST", "e"),
            ("PGPORT", "6000"),
            ("PGUSER", "eu"),
            ("PGPASSWORD", "ep"),
            ("PGDATABASE", "ed"),
            ("PGSSLMODE", "require"),
        ];
        let read = |url: &str| {
            let variable = |name: &str| {
                variables
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| (*value).to_owned())
            };
            Url::parse(url, variable).unwrap_or_else(|refusal| panic!("{url}: {refusal}"))
        };
        let silent = read("postgres://");
        assert_eq!(hosts_of(&silent), "e:6000");
        assert_eq!(
            (silent.user.as_deref(), silent.password.as_deref(), silent.database.as_deref()),
            (Some("eu"), Some("ep"), Some("ed"))
        );
        assert_eq!(silent.tls.mode, Mode::Require);
        let loud = read("postgres://u:p@h:1/d?sslmode=disable");
        assert_eq!(
            (hosts_of(&loud).as_str(), loud.user.as_deref(), loud.tls.mode),
            ("h:1", Some("u"), Mode::Disable)
        );
        let refusal =
            Url::parse("postgres://h/d", |name| (name == "PGSERVICE").then(|| "x".into())).err();
        assert!(refusal.expect("refused").contains("the environment's PGSERVICE is not supported"));
    }

    #[test]
    fn no_refusal_shows_a_part_of_a_password() {
        for url in [
            "postgres://u:hun@ter2@h/d",
            "postgres://u:hunter/2@h/d",
            "postgres://u:hunter2/x?y=z@h/d",
            "postgres://u:%zzhunter2@h/d",
            "postgres://h/d?hunter2 x=1",
            "mysql://u:hunter2@h/d",
        ] {
            let refusal = refused(url);
            assert!(!refusal.contains("hun") && !refusal.contains("ter2"), "{refusal}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_is_read_or_refused(url in "postgres://[a-z0-9@:/?&=%,\\[\\] \u{e9}]{0,60}") {
            let _ = parse(&url);
        }

        #[test]
        fn any_password_survives_percent_encoding(password in "[^\\x00]{1,20}") {
            let encoded: String = password.bytes().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(parsed(&format!("postgres://u:{encoded}@h/d")).password, Some(password));
        }
    }
}
