//! The addresses of a name. One name may stand for a primary and its standbys.

use std::net::IpAddr;
use std::time::Duration;

/// A resolver that does not answer keeps nobody from the name's own connection.
const PATIENCE: Duration = Duration::from_secs(3);

/// Each address of a name once, in the resolver's order. None for a socket's directory, an address,
/// and a name that nobody knows: whoever connects says so.
pub(super) async fn of(name: &str, port: u16) -> Vec<IpAddr> {
    if name.is_empty() || name.starts_with('/') || name.parse::<IpAddr>().is_ok() {
        return Vec::new();
    }
    let Ok(Ok(found)) = tokio::time::timeout(PATIENCE, tokio::net::lookup_host((name, port))).await
    else {
        return Vec::new();
    };
    let mut addresses = Vec::new();
    for address in found.map(|found| found.ip()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_has_addresses_and_nothing_else_has() {
        assert!(of("localhost", 5432).await.contains(&"127.0.0.1".parse().expect("an address")));
        for name in ["", "/run/postgresql", "127.0.0.1", "::1", "no.such.name.invalid"] {
            assert_eq!(of(name, 5432).await, [] as [IpAddr; 0], "{name}");
        }
    }
}
