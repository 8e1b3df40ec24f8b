//! The composition, without containers: the command of each service is started as `compose.yaml`
//! has it, with the programs of this host, an address and a /tmp of its own, and the names of all
//! services. Then `unstale` runs between them, once for each profile.
//!
//! Not looked at: the images, which no registry is asked for, and what Compose does by itself
//! (order, restarts, networks).

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use unstale::scratch::Guard;
use unstale::scratch::guard::Process;

use super::not_tested;
use crate::guide::{succeeds, tools};
use crate::support::daemon::{Daemon, command};
use crate::support::wait::{PATIENCE, until};
use crate::support::world::World;
use crate::tidy::read;

/// A "container": service `$1` has /etc/hosts of directory `$2` and, if it runs a server, a /tmp of
/// its own.
const CONTAINER: &str = r#"
set -e
mount --bind "$2/hosts" /etc/hosts
cd "$2/$1"
if [ -e redis-server ]; then
    mount --bind . /tmp
    cd /tmp
fi
shift 2
PATH=/tmp:$PATH
exec "$@"
"#;

/// What the services are told beyond their commands, because they have no network of their own.
const SERVER: &str = r#"#!/bin/sh
exec /tmp/server "$@" --bind ADDRESS --bind-source-addr ADDRESS --protected-mode no
"#;

/// The composition, with what its anchors stand for, and words for its commands as the shell reads
/// them.
fn composition() -> Value {
    let folder = tools("yaml", |folder| {
        succeeds(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder));
        succeeds(Command::new(folder.join("bin/python")).args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "pyyaml==6.*",
        ]));
    });
    let script = r#"
import json, shlex, sys, yaml
composition = yaml.safe_load(open(sys.argv[1]))
for service in composition["services"].values():
    if isinstance(service.get("command"), str):  # aliases are one object
        service["command"] = [word.replace("$$", "$") for word in shlex.split(service["command"])]
json.dump(composition, sys.stdout)
"#;
    let mut python = Command::new(folder.join("bin/python"));
    let output = python
        .args(["-c", script, concat!(env!("CARGO_MANIFEST_DIR"), "/compose.yaml")])
        .output()
        .expect("a Python of ours");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// The REDIS_URLs that the file's comments give, one for each profile.
fn urls_of_profiles() -> BTreeMap<String, String> {
    let text = read("compose.yaml").replace("\\\n  #", "");
    let comments =
        text.lines().filter_map(|line| line.trim().strip_prefix("# ")?.split_once("REDIS_URL="));
    let urls = comments.map(|(_, rest)| {
        let (url, rest) = rest
            .strip_prefix('"')
            .and_then(|rest| rest.split_once('"'))
            .or_else(|| rest.split_once(' '))
            .expect("a URL");
        let profile = rest
            .split("--profile ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next())
            .expect("a profile");
        (profile.to_owned(), url.to_owned())
    });
    urls.collect()
}

/// The value of `${NAME:-value}`.
fn default_of(text: &str) -> &str {
    text.split_once(":-")
        .and_then(|(_, rest)| rest.strip_suffix('}'))
        .expect("a variable with a default")
}

/// The services' names, each with an address of this host that nobody else is likely to use.
struct Network {
    guard: Guard,
    addresses: BTreeMap<String, String>,
    services: Value,
}

impl Network {
    fn new(composition: &Value) -> Self {
        let guard = Guard::new().expect("a directory for the services");
        let services = composition["services"].clone();
        let [second, third] = [guard.pid() / 250 % 250 + 1, guard.pid() % 250];
        let names = services.as_object().expect("services").keys();
        let addresses: BTreeMap<_, _> = names
            .zip(2..)
            .map(|(name, n)| (name.clone(), format!("127.{second}.{third}.{n}")))
            .collect();
        let hosts = addresses.iter().map(|(name, address)| format!("{address} {name}\n"));
        let hosts =
            ["127.0.0.1 localhost\n".to_owned()].into_iter().chain(hosts).collect::<String>();
        std::fs::write(guard.directory().join("hosts"), hosts).expect("a fresh directory");
        Self { guard, addresses, services }
    }

    /// Whether somebody listens on the services' ports, on all addresses of this host.
    fn is_taken(&self) -> bool {
        self.addresses.values().any(|address| {
            [6379, 16379, 26379]
                .iter()
                .any(|port| TcpListener::bind((address.as_str(), *port)).is_err())
        })
    }

    /// Words before a program that let it run as the service `name`.
    fn container(&self, name: &str) -> Vec<String> {
        let directory = self.guard.directory().join(name);
        std::fs::create_dir_all(&directory).expect("a directory of ours");
        let words = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            CONTAINER,
            "unstale-container",
            name,
        ];
        let place = self.guard.directory().display().to_string();
        words.map(str::to_owned).into_iter().chain([place]).collect()
    }

    /// Starts the command of a service of Redis.
    fn start(&self, name: &str, server: &Path) -> Process {
        let words = self.container(name);
        let directory = self.guard.directory().join(name);
        if !directory.join("server").exists() {
            // Not by its own name, which may be that of another of its programs.
            symlink(server, directory.join("server")).expect("a directory of ours");
            write_program(
                &directory.join("redis-server"),
                &SERVER.replace("ADDRESS", &self.addresses[name]),
            );
        }
        let mut process = self.guard.command("KILL", &words[0]).expect("a pipe to share");
        process.args(&words[1..]);
        match &self.services[name]["command"] {
            Value::Null => process.arg("redis-server"), // the image's own
            given => {
                process.args(given.as_array().expect("words").iter().filter_map(Value::as_str))
            }
        };
        let log = std::fs::File::create(self.guard.directory().join(format!("{name}.log")))
            .expect("a directory of ours");
        process.stdout(log.try_clone().expect("a file more")).stderr(log);
        Process::start(process).expect("unshare starts")
    }

    /// Asks a server by redis-cli, following a cluster's redirections.
    fn ask(&self, name: &str, words: &[&str]) -> String {
        let output = self.run(name, &[&["redis-cli", "-c", "-h", name], words].concat(), &[]);
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Runs a program to its end as the service `name`.
    fn run(&self, name: &str, words: &[&str], variables: &[(&str, &str)]) -> Output {
        let container = self.container(name);
        let mut process = Command::new(&container[0]);
        process
            .args(&container[1..])
            .args(words)
            .envs(variables.iter().copied())
            .output()
            .expect("unshare starts")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in self.addresses.keys() {
                let log =
                    std::fs::read_to_string(self.guard.directory().join(format!("{name}.log")))
                        .unwrap_or_default();
                eprintln!(
                    "{name}'s last words:\n{}",
                    log.lines().rev().take(5).collect::<Vec<_>>().join("\n")
                );
            }
        }
    }
}

fn write_program(file: &Path, text: &str) {
    std::fs::write(file, text).expect("a directory of ours");
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).expect("a file of ours");
}

/// A command that succeeds, without a word.
fn works(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

#[tokio::test]
async fn each_service_s_command_starts_what_unstale_runs_with() {
    let composition = composition();
    let network = Network::new(&composition);
    let world = World::new().await;
    let server = std::fs::read_link(format!("/proc/{}/exe", world.redis.pid().expect("it runs")))
        .expect("Linux says where it is");
    let what = "the composition was not started";
    if !works("unshare", &["--mount", "--pid", "--fork", "true"]) {
        return not_tested(what, "root, who may mount");
    }
    if !works("redis-cli", &["--version"]) {
        return not_tested(what, "redis-cli");
    }
    if network.is_taken() {
        return not_tested(what, "a free port 6379 on 127.0.0.0/8");
    }
    world.users(10).await;

    // Everything that runs an image of Redis; those without a profile belong to each.
    let services = composition["services"].as_object().expect("services");
    let of_redis: Vec<_> = services
        .iter()
        .filter(|(_, service)| service["image"].as_str().is_some_and(|i| i.starts_with("redis:")))
        .collect();
    let mut servers = of_redis
        .iter()
        .filter(|(name, _)| *name != "cluster")
        .map(|(name, _)| network.start(name, &server))
        .collect::<Vec<_>>();
    assert_eq!(servers.len(), 8, "a service more? {services:?}");
    // It tries again until its nodes are there, because Compose restarts it.
    until("the cluster is made", async || {
        network.start("cluster", &server).wait(PATIENCE).is_some_and(|end| end.success())
    })
    .await;
    until("the replica is there", async || {
        network.ask("redis", &["info", "replication"]).contains("connected_slaves:1")
    })
    .await;

    // The database: what the image is told to make is what the URL names. The server here is
    // another, without a password.
    let environment = &services["unstale"]["environment"];
    let database = environment["DATABASE_URL"].as_str().expect("a URL");
    let made = &services["postgres"]["environment"];
    let [name, password] = ["POSTGRES_DB", "POSTGRES_PASSWORD"]
        .map(|variable| made[variable].as_str().expect("a text"));
    assert_eq!(database, format!("postgres://postgres:{password}@postgres:5432/{name}"));
    let database = world.database_url();
    let port = world.postgres().port().to_string();
    let health = services["postgres"]["healthcheck"]["test"].as_str().expect("a command");
    let health = network.run(
        "postgres",
        &["sh", "-c", health],
        &[("PGPORT", &port), ("PATH", &path(world.postgres().programs()))],
    );
    assert!(health.status.success(), "{health:?}");

    // unstale, by each of the URLs.
    let default = default_of(environment["REDIS_URL"].as_str().expect("a URL")).to_owned();
    let mut urls = urls_of_profiles();
    assert_eq!(urls.keys().collect::<Vec<_>>(), ["cluster", "sentinel"], "the file's comments");
    urls.insert(String::new(), default);
    assert_eq!(services["migrate"]["command"], serde_json::json!(["migrate"]));
    assert!(command("migrate", &[("DATABASE_URL", &database)]).status.success());
    for (profile, url) in &urls {
        let instance = format!("compose{profile}");
        let settings =
            Daemon::settings(&database, url).impatient().with("UNSTALE_INSTANCE", &instance);
        let mut daemon = settings.under(network.container("unstale")).start();
        daemon.ready().await;
        let primary = if profile == "cluster" { "cluster-1" } else { "redis" };
        assert_eq!(network.ask(primary, &["set", "user:1", "cached"]), "OK", "{profile}");
        world
            .execute(
                "update users set name = name || '!', updated_at = clock_timestamp() where id = 1",
            )
            .await;
        until("the key is gone", async || network.ask(primary, &["exists", "user:1"]) == "0").await;
        daemon.kill9();
    }
    for (server, (name, _)) in
        servers.iter_mut().zip(of_redis.iter().filter(|(name, _)| *name != "cluster"))
    {
        assert!(server.ended().is_none(), "{name} has ended");
    }
}

/// PATH, with a directory before it.
fn path(first: &Path) -> String {
    format!("{}:{}", first.display(), std::env::var("PATH").unwrap_or_default())
}
