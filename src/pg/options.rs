//! A URL as the driver's options.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::url::{Host, Url};
use super::{Error, passfile};
use crate::config::reading;

/// Where the socket of a server is, if nobody says: of Debian, and of PostgreSQL itself.
pub(super) const SOCKET_DIRECTORIES: [&str; 3] = ["/var/run/postgresql", "/private/tmp", "/tmp"];

/// As libpq has it: a socket; as other drivers do: localhost, where there is no socket.
pub(super) fn default_host(port: u16) -> String {
    let has_socket =
        |directory: &&&str| PathBuf::from(directory).join(format!(".s.PGSQL.{port}")).exists();
    SOCKET_DIRECTORIES.iter().find(has_socket).map_or("localhost", |directory| directory).to_owned()
}

/// Every field is ours: what the driver takes from the environment by itself is what the URL's
/// parser has taken from there.
pub(super) fn options(
    url: &Url,
    host: &Host,
    address: Option<IpAddr>,
    mode: PgSslMode,
) -> Result<PgConnectOptions, Error> {
    let from_environment = std::env::var("PGOPTIONS").ok();
    let mut options = match url
        .options
        .as_deref()
        .filter(|options| Some(*options) != from_environment.as_deref())
    {
        None => PgConnectOptions::new_without_pgpass(),
        // There is no other way to hand over a text that is not of the form -c name=value. A
        // password keeps it from ~/.pgpass.
        Some(text) => {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let carrier = format!("postgres://none:none@localhost/?options={encoded}");
            PgConnectOptions::from_str(&carrier)
                .map_err(|_| Error::Url("its options cannot be read".into()))?
        }
    };
    let name = if host.name.is_empty() { default_host(host.port) } else { host.name.clone() };
    if let Some(user) = &url.user {
        options = options.username(user);
    } else if from_environment.as_deref() != url.options.as_deref() {
        options = options.username(PgConnectOptions::new_without_pgpass().get_username());
    }
    let database = url.database.clone().unwrap_or_else(|| options.get_username().to_owned());
    options = options.database(&database).port(host.port).extra_float_digits(None); // a pooler would refuse to set it
    options = if name.starts_with('/') {
        options.host("localhost").socket(&name).ssl_mode(PgSslMode::Disable)
    } else {
        options
            .host(&address.map_or_else(|| name.clone(), |address| address.to_string()))
            .ssl_mode(mode)
    };
    let application = url.application.as_deref().filter(|name| *name != super::APPLICATION);
    options = match application {
        Some(name) => options.application_name(&format!("{}/{name}", super::APPLICATION)),
        None => options.application_name(super::APPLICATION),
    };
    if let Some(root) = &url.tls.root {
        options = options.ssl_root_cert_from_pem(pem("sslrootcert", root)?);
    }
    if let (Some(cert), Some(key)) = (&url.tls.cert, &url.tls.key) {
        options = options
            .ssl_client_cert_from_pem(pem("sslcert", cert)?)
            .ssl_client_key_from_pem(pem("sslkey", key)?);
    }
    let password = match &url.password {
        Some(password) => Some(password.clone()),
        None => passfile::password(url, &name, host.port, &database, options.get_username())?,
    };
    Ok(options
        .password(password.as_deref().unwrap_or_default())
        .log_statements(tracing::log::LevelFilter::Off)
        .log_slow_statements(tracing::log::LevelFilter::Off, Duration::ZERO))
}

/// A file of certificates or a key. A name may stand there that would never end, or never begin.
fn pem(part: &str, file: &str) -> Result<Vec<u8>, Error> {
    reading::bytes(Path::new(file), reading::PEM_BYTES)
        .map_err(|fault| Error::Url(format!("{part} {file} {fault}")))
}
