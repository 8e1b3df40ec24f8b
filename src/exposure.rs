//! What others on the network could read or answer: passwords on their way to a server, and the
//! port of the probes.
//!
//! Pure. It judges what an URL asks for, before anything is sent. Refuses to know how to connect.

use std::net::{IpAddr, SocketAddr};

/// Something that a person should know, and what mends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposure {
    /// A server, or the key.
    pub about: String,
    /// A sentence.
    pub finding: String,
    /// What to write, and where.
    pub remedy: String,
}

/// How a password would reach PostgreSQL.
#[derive(Debug, Clone, Copy)]
pub struct ToPostgres<'a> {
    /// The host; `None` for a socket of this host.
    pub host: Option<&'a str>,
    /// As libpq spells it.
    pub sslmode: &'a str,
    /// Whether one would be sent if the server asked.
    pub has_password: bool,
}

impl ToPostgres<'_> {
    /// `verify-full` alone keeps it from who stands in between: with less, that one refuses TLS, or
    /// shows a certificate of its own.
    #[must_use]
    pub fn exposure(self) -> Option<Exposure> {
        let host = self.host.filter(|host| {
            self.has_password && self.sslmode != "verify-full" && !is_loopback(host)
        })?;
        let proves = match self.sslmode {
            "require" | "verify-ca" => "does not prove which server gets it",
            _ => "lets whoever stands in between refuse TLS and read it",
        };
        Some(Exposure {
            about: format!("PostgreSQL at {host}"),
            finding: format!("the password crosses the network, and sslmode={} {proves}", self.sslmode),
            remedy: "# write ?sslmode=verify-full&sslrootcert=FILE into DATABASE_URL, FILE being the server's authority in PEM".to_owned(),
        })
    }
}

/// A password that goes to Redis in clear text. With TLS the server is always verified.
#[must_use]
pub fn of_redis(host: Option<&str>, has_tls: bool, has_password: bool) -> Option<Exposure> {
    let host = host.filter(|host| has_password && !has_tls && !is_loopback(host))?;
    Some(Exposure {
        about: format!("Redis at {host}"),
        finding: "the password crosses the network in clear text, and so do all keys".to_owned(),
        remedy: "# let REDIS_URL begin with rediss://, and redis.tls.ca_file name the server's authority in PEM".to_owned(),
    })
}

/// A port that others than this host's processes reach.
#[must_use]
pub fn of_port(address: SocketAddr) -> Option<Exposure> {
    (!address.ip().to_canonical().is_loopback()).then(|| Exposure {
        about: "http.listen".to_owned(),
        finding: format!(
            "whoever reaches {address} reads /ready and /metrics, which name tables, and can keep them busy: there is neither TLS nor a password"
        ),
        remedy: format!("# let http.listen be 127.0.0.1:{}, or let a firewall keep others from it", address.port()),
    })
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_name =
        host.eq_ignore_ascii_case("localhost") || host.to_ascii_lowercase().ends_with(".localhost");
    is_name || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(host: Option<&str>, sslmode: &str, has_password: bool) -> Option<String> {
        ToPostgres { host, sslmode, has_password }.exposure().map(|exposure| exposure.finding)
    }

    #[test]
    fn a_password_may_go_to_this_host_and_to_a_server_that_is_proven() {
        for host in [
            None,
            Some("localhost"),
            Some("LOCALHOST"),
            Some("127.8.0.1"),
            Some("[::1]"),
            Some("::ffff:127.0.0.1"),
        ] {
            assert_eq!(says(host, "prefer", true), None, "{host:?}");
        }
        assert_eq!(says(Some("db.example"), "verify-full", true), None);
        assert_eq!(says(Some("db.example"), "disable", false), None);
        for (mode, words) in [
            ("prefer", "refuse TLS"),
            ("disable", "refuse TLS"),
            ("require", "which server"),
            ("verify-ca", "which server"),
        ] {
            assert!(
                says(Some("10.0.0.1"), mode, true).is_some_and(|says| says.contains(words)),
                "{mode}"
            );
        }
        assert!(says(Some("localhost.example"), "prefer", true).is_some());
    }

    #[test]
    fn redis_and_the_port_of_the_probes_alike() {
        assert!(of_redis(Some("cache"), false, true).is_some());
        for (host, has_tls, has_password) in
            [(Some("cache"), true, true), (Some("cache"), false, false), (None, false, true)]
        {
            assert_eq!(of_redis(host, has_tls, has_password), None);
        }
        let exposed = |address: &str| of_port(address.parse().expect("an address")).is_some();
        assert!(exposed("0.0.0.0:1") && exposed("[::]:1") && exposed("192.0.2.1:1"));
        assert!(!exposed("127.0.0.1:1") && !exposed("[::1]:1") && !exposed("[::ffff:127.0.0.1]:1"));
    }
}
