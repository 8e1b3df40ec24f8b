//! Connecting: which server, with which settings, and whether something stands between.
//!
//! Must hold: a connection from here is with a primary, resolves nothing through `search_path`,
//! waits for no WAL flush (what we write is only bookkeeping, and an older checkpoint is safe), is
//! reaped by the server if we vanish, and is ruled by no setting that somebody has given to the
//! database or to the role for other programs. Settings go with the startup packet, because those
//! win over a role's and can stay in no pool. A pooler refuses or swallows them: then it must be
//! one that gives each client a server of its own, and they are SET. Refuses: a pooler in
//! transaction mode, before anything that would stay in its pool was said.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgPool, Row};

use super::options::{default_host, options};
use super::url::{Host, Mode, Url, Wants};
use super::{Error, addresses};
use crate::config::{Problem, Source};
use crate::exposure::{Exposure, ToPostgres};

/// What holds in each of our sessions, whatever the database's and the role's settings say.
const SETTINGS: [(&str, &str); 18] = [
    ("search_path", "pg_catalog"),
    ("synchronous_commit", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("jit", "off"), // to compile what looks through the catalogs takes longer than to run it a thousand times
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "60000"),
    ("idle_in_transaction_session_timeout", "60000"),
    ("idle_session_timeout", "0"), // the listening session is idle for as long as nobody writes
    ("statement_timeout", "0"),    // whoever waits here has a timeout of their own
    ("lock_timeout", "0"),
    ("row_security", "on"),
    ("standard_conforming_strings", "on"),
    ("transform_null_equals", "off"),
    ("bytea_output", "hex"),
];

/// Said in the startup packet alone: where it is not seen, something has swallowed the packet's
/// settings.
const MARKER: &str = "unstale.direct";

/// A setting of newer servers that ends a session in the middle of its work.
const NEWER: &str =
    "(select set_config(name, '0', false) from pg_settings where name = 'transaction_timeout')";

/// `alter database ... set role` is meant for other programs; `alter role ... set role` of our own
/// role is meant.
const OWN_ROLE: &str = "case when current_user <> session_user and not exists (
         select from pg_db_role_setting s, unnest(s.setconfig) c
          where s.setrole = (select oid from pg_roles where rolname = session_user) and c like 'role=%')
     then set_config('role', 'none', false) end";

/// For each of several hosts, if `connect_timeout` is silent: one that does not even refuse must
/// not keep us from the others.
const PATIENCE: Duration = Duration::from_secs(3);

/// Looks at a pool in transaction mode before it is believed to be none. One look nearly always
/// suffices, because such a pool lends the server that was given back last.
const LOOKS: usize = 8;

/// Where the database is. What leads there holds a password, so it has no `Debug`.
#[derive(Clone)]
pub struct Postgres {
    source: Source,
    place: String,
    /// Which of several hosts to try first: the last that was a primary, or the next one after a
    /// failure.
    first: Arc<AtomicUsize>,
    /// Is it read where others read, and need be no primary?
    takes_standby: bool,
}

/// The way to the server that a connection has reached, so that a second connection goes to the
/// same one.
pub struct Route {
    options: PgConnectOptions,
    /// What is said at the beginning of a session: what did not go with the startup packet.
    set: String,
    place: String,
}

impl Postgres {
    /// Reads the URL, which is read anew for each connection.
    ///
    /// # Errors
    /// [`Error::Url`].
    pub fn new(source: impl Into<Source>) -> Result<Self, Error> {
        let source = source.into();
        let url = parse(&source.known())?;
        let hosts: Vec<String> = url.hosts.iter().map(at).collect();
        let options = options(&url, &url.hosts[0], None, PgSslMode::Disable)?;
        let place = format!(
            "{}/{}",
            hosts.join(","),
            options.get_database().unwrap_or(options.get_username())
        );
        Ok(Self { source, place, first: Arc::default(), takes_standby: false })
    }

    /// A server that readers read.
    #[must_use]
    pub fn replica(self) -> Self {
        Self { takes_standby: true, ..self }
    }

    /// Hosts and database, for people.
    #[must_use]
    pub fn place(&self) -> String {
        self.place.clone()
    }

    /// Does the URL name a single server?
    #[must_use]
    pub fn is_one_server(&self) -> bool {
        parse(&self.source.known()).is_ok_and(|url| url.hosts.len() == 1)
    }

    /// Could somebody in between read the password?
    #[must_use]
    pub fn exposure(&self) -> Option<Exposure> {
        let url = parse(&self.source.known()).ok()?;
        let sslmode = match url.tls.mode {
            Mode::Disable => "disable",
            Mode::Allow => "allow",
            Mode::Prefer => "prefer",
            Mode::Require => "require",
            Mode::VerifyCa => "verify-ca",
            Mode::VerifyFull => "verify-full",
        };
        // A password in ~/.pgpass counts, too: whether there is one for this server is not looked
        // up.
        let has_password = url.password.is_some() || url.passfile.is_some();
        let on_network = url.hosts.iter().map(at).filter(|host| !host.starts_with('/'));
        let mut hosts = on_network
            .map(|host| host.rsplit_once(':').map_or(host.clone(), |(name, _)| name.to_owned()));
        hosts.find_map(|host| ToPostgres { host: Some(&host), sslmode, has_password }.exposure())
    }

    /// A connection of its own, with the primary.
    ///
    /// # Errors
    /// [`Error::Connect`] with the real cause, [`Error::NoPrimary`] with those of all hosts,
    /// [`Error::Pooler`], [`Error::Url`].
    pub async fn connect(&self) -> Result<PgConnection, Error> {
        Ok(self.route().await?.0)
    }

    /// The same, and the way that led there, for a second connection with the same server.
    ///
    /// # Errors
    /// As [`Postgres::connect`].
    pub async fn route(&self) -> Result<(PgConnection, Route), Error> {
        let (text, problem) = self.source.read().await;
        let url = parse(&text)?;
        let count = url.hosts.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut failed = Vec::new();
        for at in (first..first + count).map(|at| at % count) {
            // Whoever loses patience with this one begins with the next.
            self.first.store(at + 1, Ordering::Relaxed);
            let host = &url.hosts[at];
            let connected = match self.takes_standby {
                true => {
                    to_host(&Target {
                        url: &url,
                        host,
                        address: None,
                        takes_standby: !is_one_of_several(&url),
                    })
                    .await
                }
                false => to_name(&url, host).await,
            };
            match connected {
                Ok(connected) => {
                    self.first.store(at, Ordering::Relaxed);
                    return Ok(connected);
                }
                Err(error) if count == 1 => return Err(with_problem(error, problem)),
                Err(error) => failed.push(format!("{}: {}", self::at(host), error.without_place())),
            }
        }
        Err(Error::NoPrimary(failed.join("; ")))
    }
}

impl Route {
    /// Host and database, for people.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Another connection with the same server.
    pub(super) async fn connect(&self) -> Result<PgConnection, Error> {
        let failed = |source| Error::Connect { place: self.place.clone(), source };
        let mut connection = self.options.connect().await.map_err(failed)?;
        self.begin(&mut connection).await?;
        Ok(connection)
    }

    async fn begin(&self, connection: &mut PgConnection) -> Result<(), Error> {
        connection.execute(AssertSqlSafe(self.set.clone())).await.map_err(Error::of("SET"))?;
        Ok(())
    }

    /// A pool of one for such a connection, as the driver's listener wants it. `patience` bounds
    /// its connecting.
    pub(super) fn pool(&self, patience: Duration) -> PgPool {
        let set = self.set.clone();
        PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(patience)
            .max_lifetime(None)
            .idle_timeout(None)
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                let set = set.clone();
                Box::pin(async move { connection.execute(AssertSqlSafe(set)).await.map(|_| ()) })
            })
            .connect_lazy_with(self.options.clone())
    }
}

fn parse(text: &SecretString) -> Result<Url, Error> {
    Url::parse(text.expose_secret(), |name| std::env::var(name).ok()).map_err(Error::Url)
}

/// A password that cannot be read anew may be why the old one is refused.
fn with_problem(error: Error, problem: Option<Problem>) -> Error {
    match problem {
        Some(problem) => Error::Unsuitable(format!("{}; {problem}", error.in_full())),
        None => error,
    }
}

fn at(host: &Host) -> String {
    match host.name.as_str() {
        "" => default_host(host.port),
        name if name.starts_with('/') => name.to_owned(),
        name => format!("{name}:{}", host.port),
    }
}

/// To the primary among the servers of one name. By its name first, which is what a proxy in front
/// of many databases goes by, and if that leads to a standby, to each of its addresses.
async fn to_name(url: &Url, host: &Host) -> Result<(PgConnection, Route), Error> {
    let by_name = Target { url, host, address: None, takes_standby: false };
    let result = to_host(&by_name).await;
    if !matches!(result, Err(Error::Standby(_))) {
        return result;
    }
    let addresses = addresses::of(&host.name, host.port).await;
    if addresses.len() < 2 {
        // Alone, it is taken for what it is: whoever connects says what cannot be done there.
        return if is_one_of_several(url) {
            result
        } else {
            to_host(&Target { takes_standby: true, ..by_name }).await
        };
    }
    if url.tls.mode == Mode::VerifyFull {
        let sentence = format!(
            "; {} has other addresses, but with sslmode=verify-full the driver chooses among them: name the servers, as in //host1,host2/",
            host.name
        );
        return Err(Error::Standby(sentence));
    }
    let mut failed = Vec::new();
    for address in addresses {
        match to_host(&Target { address: Some(address), ..by_name }).await {
            Ok(connected) => return Ok(connected),
            Err(error) => failed.push(format!("{address}: {}", error.without_place())),
        }
    }
    Err(Error::NoPrimary(format!(
        "none of the addresses of {} is that of a primary: {}",
        host.name,
        failed.join("; ")
    )))
}

/// Will another server do instead of a standby, or no standby at all?
fn is_one_of_several(url: &Url) -> bool {
    url.hosts.len() > 1 || url.wants == Wants::ReadWrite
}

/// One server, and how it is called.
#[derive(Clone, Copy)]
struct Target<'a> {
    url: &'a Url,
    host: &'a Host,
    /// Instead of the name.
    address: Option<IpAddr>,
    takes_standby: bool,
}

/// To one server. `sslmode=allow` is two attempts.
async fn to_host(target: &Target<'_>) -> Result<(PgConnection, Route), Error> {
    let url = target.url;
    let modes = match url.tls.mode {
        Mode::Disable => &[PgSslMode::Disable][..],
        Mode::Allow => &[PgSslMode::Disable, PgSslMode::Require],
        Mode::Prefer => &[PgSslMode::Prefer],
        Mode::Require => &[PgSslMode::Require],
        Mode::VerifyCa => &[PgSslMode::VerifyCa],
        Mode::VerifyFull => &[PgSslMode::VerifyFull],
    };
    let mut result = Err(Error::Url(String::new()));
    for mode in modes {
        let options = options(url, target.host, target.address, *mode)?;
        let patience =
            url.timeout.or((url.hosts.len() > 1 || target.address.is_some()).then_some(PATIENCE));
        let connecting = open(target, options);
        result = match patience {
            None => connecting.await,
            Some(patience) => tokio::time::timeout(patience, connecting)
                .await
                .unwrap_or(Err(Error::Timeout(patience))),
        };
        if !matches!(result, Err(Error::Connect { .. })) {
            break;
        }
    }
    result
}

async fn open(
    target: &Target<'_>,
    options: PgConnectOptions,
) -> Result<(PgConnection, Route), Error> {
    let Target { url, host, .. } = *target;
    let place =
        format!("{}/{}", at(host), options.get_database().unwrap_or(options.get_username()));
    let failed = |source| Error::Connect { place: place.clone(), source };
    let role_is_asked_for = options.get_options().is_some_and(|options| options.contains("role="));
    let set = format!("select {NEWER}, {}", if role_is_asked_for { "null" } else { OWN_ROLE });
    let direct = options.clone().options(settings(url)).options([(MARKER, "yes")]);
    match direct.connect().await {
        Ok(mut connection) => {
            if look(&mut connection, target).await? {
                let route = Route { options: direct, set, place };
                route.begin(&mut connection).await?;
                return Ok((connection, route));
            }
            let _ = connection.close().await;
        }
        Err(error) if refuses_settings(&error) => {}
        Err(error) => return Err(failed(error)),
    }
    // A pooler, or a server that is too old for a setting.
    if options.get_options().is_some() {
        let sentence = "a pooler takes no `options`; leave them out of DATABASE_URL and PGOPTIONS, or connect to PostgreSQL itself";
        return Err(Error::Pooler(sentence.into()));
    }
    let mut connection = options.connect().await.map_err(failed)?;
    if lends_servers(&options, &mut connection).await? {
        let sentence = "a pooler in transaction mode stands before it, where LISTEN succeeds and nothing arrives; \
                        connect to PostgreSQL itself, or to a pool in session mode";
        return Err(Error::Pooler(sentence.into()));
    }
    look(&mut connection, target).await?;
    let names = settings(url)
        .map(|(name, value)| format!("('{name}', '{value}')"))
        .collect::<Vec<_>>()
        .join(", ");
    let known = "where name in (select name from pg_settings)"; // an older server refuses what it does not know
    let all = format!(
        "select set_config(name, value, false) from (values {names}) s(name, value) {known}; {set}"
    );
    let route = Route { options, set: all, place };
    route.begin(&mut connection).await?;
    Ok((connection, route))
}

/// Who asks for a server that takes writes by itself is not to be helped by our setting.
fn settings(url: &Url) -> impl Iterator<Item = (&'static str, &'static str)> {
    let read_write = url.wants == Wants::ReadWrite;
    SETTINGS
        .into_iter()
        .filter(move |(name, _)| !(read_write && *name == "default_transaction_read_only"))
}

/// Has the server seen our settings? Refuses one that is not wanted.
async fn look(connection: &mut PgConnection, target: &Target<'_>) -> Result<bool, Error> {
    // A simple query: behind a pooler a prepared statement might be somebody else's, and nothing
    // may be set there yet.
    let asked = format!(
        "select coalesce(current_setting('{MARKER}', true), '') = 'yes', pg_is_in_recovery(),
                current_setting('default_transaction_read_only') = 'on'"
    );
    let row = connection
        .fetch_one(AssertSqlSafe(asked))
        .await
        .map_err(Error::of("asking the server what it is"))?;
    if !target.takes_standby && row.get(1) {
        return Err(Error::Standby(String::new()));
    }
    if target.url.wants == Wants::ReadWrite && row.get(2) {
        let sentence = "its transactions are read-only (default_transaction_read_only), and target_session_attrs=read-write";
        return Err(Error::Unsuitable(sentence.into()));
    }
    Ok(row.get(0))
}

/// PgBouncer says 08P01, RDS Proxy 0A000, and a server says 42704 of a setting that it does not
/// know.
fn refuses_settings(error: &sqlx::Error) -> bool {
    let Some(error) = error.as_database_error() else { return false };
    match error.code().as_deref() {
        Some("08P01" | "0A000") => {
            ["startup parameter", "options"].iter().any(|words| error.message().contains(words))
        }
        Some("42704") => true,
        _ => false,
    }
}

/// Does whatever is there give a client another server for each transaction? Two clients that are
/// both connected then have the same one, or one client has two, one after the other.
async fn lends_servers(
    options: &PgConnectOptions,
    connection: &mut PgConnection,
) -> Result<bool, Error> {
    let looking = async {
        let mut another = options.connect().await?;
        let own = backend(connection).await?;
        for _ in 0..LOOKS {
            let theirs = backend(&mut another).await?;
            if theirs == own || backend(connection).await? != own {
                return Ok(true);
            }
        }
        another.close().await?;
        Ok::<_, sqlx::Error>(false)
    };
    match tokio::time::timeout(PATIENCE, looking).await {
        Ok(result) => result.map_err(Error::of("looking for a pooler")),
        Err(_) => Err(Error::Pooler(format!(
            "a pooler stands before it and gives no second server within {PATIENCE:?}; let its pool hold at least three for this role"
        ))),
    }
}

async fn backend(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    connection.fetch_one("select pg_backend_pid()").await.map(|row| row.get(0))
}
