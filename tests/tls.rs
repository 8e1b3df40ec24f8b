//! TLS to both servers, with certificates of an authority of our own: what goes through, what is
//! refused and with which words, and that no password shows on any of these ways.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};

use unstale::scratch::{Postgres, Redis, redis};

use crate::support::certificates::Certificates;
use crate::support::daemon::{self, Daemon, Settings};
use crate::support::servers::own_postgres;
use crate::support::wait::until;
use crate::support::world::World;

/// In both passwords, and in nothing else.
const SECRET: &str = "hunter2";

/// Servers that take TLS and nothing else on their ports, from those who show a certificate of the
/// same authority.
struct Encrypted {
    world: World,
    certificates: Certificates,
    redis_port: u16,
}

impl Encrypted {
    async fn new() -> Self {
        let certificates = Certificates::new();
        let redis_port = unstale::scratch::free_port().expect("a free port");
        let redis = tls_redis(&certificates, redis_port, "yes");
        let world = World::with(own_postgres(), redis).await;
        world.users(10).await;
        world.execute(&format!("alter role postgres password '{SECRET}-postgres'")).await;
        require_tls(world.postgres());
        let mut encrypted = Self { world, certificates, redis_port };
        encrypted.give_to_postgres();
        encrypted
    }

    /// PostgreSQL reads nobody's key but its own user's.
    fn give_to_postgres(&mut self) {
        let directory = self.world.postgres().directory();
        let owner = std::fs::metadata(directory).expect("its directory");
        for name in ["ca.crt", "server.crt", "server.key"] {
            let file = directory.join(name);
            std::fs::copy(self.certificates.path(name), &file).expect("a file");
            std::fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("our file");
            chown(&file, Some(owner.uid()), Some(owner.gid())).expect("our file");
        }
        self.world.own_postgres().restart().expect("PostgreSQL starts with TLS");
    }

    fn database_url(&self) -> String {
        self.database_url_with("localhost", "ca", Some("client"))
    }

    /// With the authority in a file, and a client's certificate if there is one.
    fn database_url_with(&self, host: &str, authority: &str, client: Option<&str>) -> String {
        let (port, file) =
            (self.world.postgres().port(), |name: &str| self.certificates.name(name));
        let authority = file(&format!("{authority}.crt"));
        let url = format!(
            "postgres://postgres:{SECRET}-postgres@{host}:{port}/app?sslmode=verify-full&sslrootcert={authority}"
        );
        match client {
            Some(name) => format!(
                "{url}&sslcert={}&sslkey={}",
                file(&format!("{name}.crt")),
                file(&format!("{name}.key"))
            ),
            None => url,
        }
    }

    fn redis_url(&self, host: &str) -> String {
        format!("rediss://default:{SECRET}-redis@{host}:{}/0", self.redis_port)
    }

    fn settings(&self) -> Settings {
        let settings =
            patient(Daemon::settings(&self.database_url(), &self.redis_url("localhost")));
        self.variables("ca", Some("client"))
            .into_iter()
            .fold(settings, |settings, (name, value)| settings.with(name, &value))
    }

    /// The files for Redis, and as the system's authorities not the developer's, which take long to
    /// read.
    fn variables(&self, authority: &str, client: Option<&str>) -> Vec<(&'static str, String)> {
        let file = |name: &str, kind: &str| self.certificates.name(&format!("{name}.{kind}"));
        let mut variables = vec![
            ("SSL_CERT_FILE", file("stranger", "crt")),
            ("UNSTALE_REDIS__TLS__CA_FILE", file(authority, "crt")),
        ];
        if let Some(name) = client {
            variables.push(("UNSTALE_REDIS__TLS__CERT_FILE", file(name, "crt")));
            variables.push(("UNSTALE_REDIS__TLS__KEY_FILE", file(name, "key")));
        }
        variables
    }

    /// What `unstale check` says.
    fn check(
        &self,
        database_url: &str,
        redis_url: &str,
        variables: Vec<(&'static str, String)>,
    ) -> String {
        let mut all = variables;
        all.extend([
            ("UNSTALE_HEARTBEAT__TIMEOUT", "25s".to_owned()),
            ("UNSTALE_REDIS__TIMEOUT", "10s".to_owned()),
        ]);
        all.extend([
            ("DATABASE_URL", database_url.to_owned()),
            ("REDIS_URL", redis_url.to_owned()),
        ]);
        let all: Vec<(&str, &str)> =
            all.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let output = daemon::command("check", &all);
        let said = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            ![SECRET, database_url, redis_url].iter().any(|hidden| said.contains(hidden)),
            "{said}"
        );
        said
    }
}

/// A debug build takes its time over a handshake, on a busy machine longer than a fault may last
/// elsewhere.
fn patient(settings: Settings) -> Settings {
    settings.impatient().in_one_session().with("UNSTALE_REDIS__TIMEOUT", "10s")
}

/// A Redis without a port for plain text. `clients`: whether they must show a certificate, `yes` or
/// `no`.
fn tls_redis(certificates: &Certificates, port: u16, clients: &str) -> Redis {
    let (port, file) = (port.to_string(), |name| certificates.name(name));
    let arguments = [
        ("--tls-port", port),
        ("--tls-cert-file", file("server.crt")),
        ("--tls-key-file", file("server.key")),
        ("--tls-ca-cert-file", file("ca.crt")),
        ("--tls-auth-clients", clients.to_owned()),
    ];
    let arguments =
        arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
    Redis::start(&redis::Options { arguments, ..redis::Options::default() })
        .expect("this test needs a Redis with TLS")
}

/// From the next start on. The test's own connections come by the socket. `password`, because TLS
/// is to keep it, and because scram-sha-256 takes a debug build long.
fn require_tls(postgres: &Postgres) {
    let data = postgres.directory().join("data");
    let settings = "ssl = on\nssl_cert_file = '../server.crt'\nssl_key_file = '../server.key'\nssl_ca_file = '../ca.crt'\n";
    let file = File::options().append(true).open(data.join("postgresql.conf"));
    file.and_then(|mut file| file.write_all(settings.as_bytes())).expect("the cluster's settings");
    let clients =
        "local all all trust\nhostssl all all 127.0.0.1/32 password clientcert=verify-full\n";
    std::fs::write(data.join("pg_hba.conf"), clients).expect("the cluster's clients");
}

#[tokio::test]
async fn a_change_goes_the_whole_way_over_tls_and_no_password_shows_anywhere() {
    let mut servers = Encrypted::new().await;
    let reply = servers
        .world
        .cache
        .ask(&["config", "set", "requirepass", &format!("{SECRET}-redis")])
        .expect("it answers");
    assert_eq!(reply, redis::Reply::Status("OK".into()));
    let loud = "trace,fred=trace,sqlx=trace,sqlx_core=trace,sqlx_postgres=trace";
    let mut daemon = servers.settings().with("UNSTALE_LOG__FILTER", loud).start();
    daemon.ready().await;
    servers.world.fill_users();
    servers.world.change_users().await;
    servers.world.users_are_fresh(&daemon).await;

    let plain = "select count(*) from pg_stat_activity join pg_stat_ssl using (pid) where application_name = 'unstale' and not ssl";
    let known = "select count(*) from pg_stat_activity join pg_stat_ssl using (pid) where application_name = 'unstale' and client_dn = '/CN=postgres'";
    assert_eq!((servers.world.number(plain).await, servers.world.number(known).await), (0, 2));

    let arguments =
        std::fs::read(format!("/proc/{}/cmdline", daemon.pid())).expect("it runs, on Linux");
    let arguments = String::from_utf8_lossy(&arguments).into_owned();
    let answers =
        ["/live", "/ready", "/metrics"].map(|path| daemon.get(path).expect("it answers").1);
    assert_eq!(daemon.terminate().code(), Some(0));
    let said = daemon.lines();
    for library in ["fred", "rustls", "unstale"] {
        assert!(
            said.iter().any(|line| line.contains(&format!("\"target\":\"{library}"))),
            "{library} was not loud"
        );
    }
    let all = said.into_iter().chain(daemon.notifications()).chain(answers).chain([arguments]);
    let hidden = [SECRET, "postgres://", "redis://", "rediss://", "sslmode="];
    let leaked: Vec<String> =
        all.filter(|text| hidden.iter().any(|word| text.contains(word))).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}

#[tokio::test]
async fn certificates_that_are_renewed_need_no_restart() {
    let mut servers = Encrypted::new().await;
    let settings =
        servers.settings().with("REDIS_URL", &format!("rediss://localhost:{}", servers.redis_port));
    let mut daemon = settings.start();
    daemon.ready().await;
    let gaps = daemon.gaps();
    servers.certificates.renew();
    servers.world.redis.kill9();
    servers.give_to_postgres();
    servers.world.redis.start_again().expect("it starts");
    servers.world.cache = servers.world.redis.client().expect("it is up");
    daemon.opens_gap(gaps).await;
    daemon.ready().await;
    servers.world.fill_users();
    servers.world.change_users().await;
    servers.world.users_are_fresh(&daemon).await;
}

#[tokio::test]
async fn a_server_that_is_not_to_be_trusted_and_a_client_without_certificate_are_refused_with_the_remedy()
 {
    let servers = Encrypted::new().await;
    let right = || servers.variables("ca", Some("client"));
    let (database, redis) = (servers.database_url(), servers.redis_url("localhost"));
    for (host, authority, client, remedy) in [
        (
            "localhost",
            "stranger",
            Some("client"),
            "let sslrootcert in DATABASE_URL name the file of the authority",
        ),
        (
            "127.0.0.1",
            "ca",
            Some("client"),
            "let DATABASE_URL name a host that the server's certificate is for",
        ),
        (
            "localhost",
            "ca",
            None,
            "name the files of a client certificate and its key with sslcert and sslkey in DATABASE_URL",
        ),
        ("localhost", "ca", Some("stranger"), "name files that the server's authority has signed"),
    ] {
        let said =
            servers.check(&servers.database_url_with(host, authority, client), &redis, right());
        assert!(said.contains("cannot connect to PostgreSQL") && said.contains(remedy), "{said}");
    }
    for (host, authority, client, remedy) in [
        (
            "localhost",
            "stranger",
            Some("client"),
            "name the file of that authority in redis.tls.ca_file",
        ),
        ("127.0.0.1", "ca", Some("client"), "let REDIS_URL name one that it is for"),
        ("localhost", "ca", None, "it wants a certificate; name its files in redis.tls.cert_file"),
        ("localhost", "ca", Some("stranger"), "that its authority has signed"),
    ] {
        let said = servers.check(
            &database,
            &servers.redis_url(host),
            servers.variables(authority, client),
        );
        assert!(said.contains("cannot connect to Redis") && said.contains(remedy), "{said}");
    }
}

#[tokio::test]
async fn the_system_s_authorities_are_trusted_unless_a_file_is_named() {
    let certificates = Certificates::new();
    let port = unstale::scratch::free_port().expect("a free port");
    let mut world = World::new().await;
    world.users(10).await;
    world.redis = tls_redis(&certificates, port, "no");
    world.cache = world.redis.client().expect("it is up");
    let settings = Daemon::settings(&world.database_url(), &format!("rediss://localhost:{port}"));
    let settings = patient(settings);

    let mut stranger = settings.clone().start();
    until("it does not trust the server", async || {
        stranger.not_ready().await.contains("redis.tls.ca_file")
    })
    .await;
    stranger.kill9();

    // What rustls-native-certs takes for the system's.
    let settings = settings.with("SSL_CERT_FILE", &certificates.name("ca.crt"));
    let mut exclusive = settings
        .clone()
        .with("UNSTALE_REDIS__TLS__CA_FILE", &certificates.name("stranger.crt"))
        .start();
    until("it trusts its file alone", async || {
        exclusive.not_ready().await.contains("redis.tls.ca_file")
    })
    .await;
    exclusive.kill9();

    let mut daemon = settings.start();
    daemon.ready().await;
    world.fill_users();
    world.change_users().await;
    world.users_are_fresh(&daemon).await;
}

#[test]
fn a_file_that_tls_cannot_use_exits_with_2_and_its_key_its_name_and_the_remedy() {
    let certificates = Certificates::new();
    certificates.openssl("pkey -in client.key -aes256 -passout pass:hunter2 -out locked.key");
    let broken = "-----BEGIN CERTIFICATE-----\nhunter2!\n-----END CERTIFICATE-----\n";
    let names = ["empty.pem", "broken.pem"]
        .map(|name| certificates.file(name, if name == "empty.pem" { "" } else { broken }));
    let [ca, cert, key] =
        ["CA", "CERT", "KEY"].map(|name| format!("UNSTALE_REDIS__TLS__{name}_FILE"));
    let file = |name: &str| certificates.name(name);
    for (set, fault) in [
        (
            vec![(&ca, file("nowhere.crt"))],
            "redis.tls.ca_file: {} cannot be read (No such file or directory",
        ),
        (
            vec![(&ca, names[0].clone())],
            "redis.tls.ca_file: {} holds no certificate; it must be in PEM",
        ),
        (
            vec![(&ca, names[1].clone())],
            "redis.tls.ca_file: {} is broken; it must hold a certificate in PEM",
        ),
        (
            vec![(&key, file("client.key")), (&cert, file("client.key"))],
            "redis.tls.cert_file: {} holds no certificate",
        ),
        (
            vec![(&cert, file("client.crt")), (&key, file("client.crt"))],
            "redis.tls.key_file: {} holds no private key without a passphrase",
        ),
        (
            vec![(&cert, file("client.crt")), (&key, file("locked.key"))],
            "redis.tls.key_file: {} holds no private key without a passphrase",
        ),
        (
            vec![(&cert, file("client.crt")), (&key, file("server.key"))],
            "redis.tls.key_file: {} does not go with the certificate in",
        ),
    ] {
        let last = set.last().expect("at least one").1.clone();
        let mut variables = vec![
            ("DATABASE_URL", "postgres://localhost/app"),
            ("REDIS_URL", "rediss://:hunter2@localhost"),
        ];
        variables.extend(set.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let output = daemon::command("run", &variables);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.starts_with(&format!("unstale: {}", fault.replace("{}", &last)))
                && !said.contains(SECRET),
            "{said}"
        );
    }
}
