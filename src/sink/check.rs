//! What in Redis would make a promise untrue, from what it says of itself.

use crate::finding::Finding;

/// Above this share of `maxmemory` a server that evicts nothing will soon refuse to cache.
const NEARLY_FULL: f64 = 0.9;

/// Reads the answer to INFO.
#[must_use]
pub fn findings(info: &str, as_cluster: bool) -> Vec<Finding> {
    let field = |name: &str| {
        info.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'))
    };
    let number =
        |name: &str| field(name).and_then(|value| value.parse::<f64>().ok()).unwrap_or_default();
    let mut findings = Vec::new();

    let (server, version, oldest) = match (field("valkey_version"), field("redis_version")) {
        (Some(version), _) => ("Valkey", version, (7, 2)),
        (None, version) => ("Redis", version.unwrap_or("unknown"), (6, 2)),
    };
    let shown = format!("{server} {version}");
    if parts(version).is_some_and(|parts| parts < oldest) {
        let remedy = format!("# upgrade {server} to {}.{} or newer", oldest.0, oldest.1);
        findings.push(Finding::error(&shown, "it is too old", remedy));
    }
    if field("cluster_enabled") == Some("1") && !as_cluster {
        findings.push(Finding::error(
            &shown,
            "it is one node of a cluster, and knows only its own keys",
            "# let REDIS_URL begin with redis-cluster://, or rediss-cluster:// for TLS",
        ));
    }
    match field("role") {
        Some("slave" | "replica") => {
            let (host, port) =
                (field("master_host").unwrap_or("primary"), field("master_port").unwrap_or("6379"));
            let remedy = match url(host, port) {
                Some(url) => format!("export REDIS_URL={url}"),
                None => "# let REDIS_URL name the primary".to_owned(),
            };
            findings.push(Finding::error(
                &shown,
                format!("this is a replica of {host}:{port}, and refuses to delete"),
                remedy,
            ));
        }
        _ => findings.push(Finding::ok(&shown, "it is a primary")),
    }
    let (used, most) = (number("used_memory"), number("maxmemory"));
    if most > 0.0 && used > most * NEARLY_FULL && field("maxmemory_policy") == Some("noeviction") {
        let sentence = format!(
            "{:.0} % of maxmemory is in use and nothing is evicted: soon nothing new is cached",
            used / most * 100.0
        );
        findings.push(Finding::warning(
            &shown,
            sentence,
            "redis-cli config set maxmemory-policy allkeys-lru",
        ));
    }
    findings
}

/// The server is not ours: its words become part of a command only if they are a host's name and a
/// port.
fn url(host: &str, port: &str) -> Option<String> {
    let is_name =
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "._-:".contains(c));
    let port: u16 = port.parse().ok()?;
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    is_name.then(|| format!("redis://{host}:{port}"))
}

fn parts(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Severity;

    fn worst(info: &str) -> (Severity, String) {
        let finding =
            findings(info, false).into_iter().find(|finding| finding.severity != Severity::Ok);
        finding.map_or((Severity::Ok, String::new()), |finding| (finding.severity, finding.finding))
    }

    #[test]
    fn versions_are_compared_by_their_numbers() {
        assert_eq!(worst("redis_version:6.2.0\r\nrole:master\r\n").0, Severity::Ok);
        assert_eq!(worst("redis_version:10.0.1\r\nrole:master\r\n").0, Severity::Ok);
        assert_eq!(worst("redis_version:6.0.16\r\nrole:master\r\n").0, Severity::Error);
        assert_eq!(
            worst("redis_version:7.2.4\r\nvalkey_version:7.2.11\r\nrole:master\r\n").0,
            Severity::Ok
        );
    }

    #[test]
    fn a_replica_names_its_primary() {
        let (severity, finding) = worst(
            "redis_version:7.0.15\r\nrole:slave\r\nmaster_host:10.0.0.1\r\nmaster_port:6380\r\n",
        );
        assert_eq!(severity, Severity::Error);
        assert!(finding.contains("10.0.0.1:6380"), "{finding}");
    }

    #[test]
    fn a_server_s_words_are_no_part_of_a_command_unless_they_name_a_host() {
        let remedy = |host: &str, port: &str| {
            let info = format!(
                "redis_version:7.0.15\r\nrole:slave\r\nmaster_host:{host}\r\nmaster_port:{port}\r\n"
            );
            findings(&info, false).into_iter().find_map(|finding| finding.remedy)
        };
        assert_eq!(
            remedy("redis-1.example", "6380").as_deref(),
            Some("export REDIS_URL=redis://redis-1.example:6380")
        );
        assert_eq!(remedy("::1", "6380").as_deref(), Some("export REDIS_URL=redis://[::1]:6380"));
        for (host, port) in [
            ("$(touch /tmp/x)", "6379"),
            ("a;b", "6379"),
            ("h", "6379 $(x)"),
            ("`x`", "1"),
            ("", "1"),
            ("h", "99999"),
        ] {
            assert_eq!(
                remedy(host, port).as_deref(),
                Some("# let REDIS_URL name the primary"),
                "{host} {port}"
            );
        }
    }

    #[test]
    fn a_full_server_that_evicts_nothing_is_a_warning() {
        let full = "redis_version:7.0.15\r\nrole:master\r\nused_memory:95\r\nmaxmemory:100\r\nmaxmemory_policy:";
        assert_eq!(worst(&format!("{full}noeviction\r\n")).0, Severity::Warning);
        assert_eq!(worst(&format!("{full}allkeys-lru\r\n")).0, Severity::Ok);
    }
}
