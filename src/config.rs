//! The configuration as meant: read from its sources, put together, checked.
//!
//! Defaults, then the file, then systemd's credentials, then the environment; the later one wins.
//! What comes out of [`Config::load`] is within its limits, so nobody downstream checks again. It
//! must never show a secret, neither in `Debug` nor in an error, and it refuses whatever it does
//! not know rather than run with half of what was meant.
//!
//! Every problem that can be found at once is reported at once. A missing URL is no problem until
//! somebody asks for it: `migrate` needs no Redis.

mod environment;
mod error;
mod file;
mod filter;
mod key;
mod limits;
pub mod reading;
mod section;
mod source;
mod text;

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use figment::Figment;
use secrecy::SecretString;

use environment::Environment;
use reading::Unreadable;

pub use error::{Error, Problem};
pub(crate) use filter::targets;
pub use key::{Key, Taken};
pub use section::{
    Audit, Backoff, Batch, Checkpoint, Config, Database, Delivery, Heartbeat, Http, Log, LogFormat,
    Redis, Repeat, Replay, Replicas, Shutdown, Sweep, Tls, Watch,
};
pub use source::{SecretFile, Source};

/// The key of several URLs.
const REPLICAS: &str = "replicas.urls";

/// Read if no file is named, and if it is there.
pub const DEFAULT_FILE: &str = "/etc/unstale/unstale.toml";

/// Every key but those of `[[watch]]`, in the order of the file.
pub fn keys() -> Vec<Key> {
    Config::keys()
}

impl Config {
    /// The configuration of this process: `path` (`--config`), else `UNSTALE_CONFIG`, else
    /// [`DEFAULT_FILE`] if it is there, and the process's environment.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn from_process(path: Option<&Path>) -> Result<Self, Error> {
        let mut problems = Vec::new();
        let mut variables = BTreeMap::new();
        // `std::env::vars` panics at a value that is not UTF-8, even if it is not ours.
        for (name, value) in std::env::vars_os() {
            let Ok(name) = name.into_string() else {
                continue;
            };
            match value.into_string() {
                Ok(value) => drop(variables.insert(name, value)),
                Err(_) if environment::is_ours(&name) => {
                    problems.push(Problem::new(name, "the value is not UTF-8"));
                }
                Err(_) => {}
            }
        }
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        Self::read(path, Some(Path::new(DEFAULT_FILE)), variables)
    }

    /// The configuration of a file and of an environment, neither of which need be the process's
    /// own. Without `path`, `UNSTALE_CONFIG` of this environment names the file, and else there is
    /// none.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, Error> {
        Self::read(path, None, environment.into_iter().collect())
    }

    /// Where PostgreSQL is.
    ///
    /// # Errors
    ///
    /// [`Error::NoDatabaseUrl`] if nobody said.
    pub fn database_url(&self) -> Result<&SecretString, Error> {
        self.database.url.as_ref().ok_or(Error::NoDatabaseUrl)
    }

    /// Where Redis is.
    ///
    /// # Errors
    ///
    /// [`Error::NoRedisUrl`] if nobody said.
    pub fn redis_url(&self) -> Result<&SecretString, Error> {
        self.redis.url.as_ref().ok_or(Error::NoRedisUrl)
    }

    /// The same, to be read anew for each connection.
    ///
    /// # Errors
    ///
    /// [`Error::NoDatabaseUrl`] if nobody said.
    pub fn database_source(&self) -> Result<Source, Error> {
        Ok(self.source("database.url", self.database_url()?))
    }

    /// The same, to be read anew for each connection.
    ///
    /// # Errors
    ///
    /// [`Error::NoRedisUrl`] if nobody said.
    pub fn redis_source(&self) -> Result<Source, Error> {
        Ok(self.source("redis.url", self.redis_url()?))
    }

    /// Where the replicas are, each to be read anew for each connection.
    #[must_use]
    pub fn replica_sources(&self) -> Vec<Source> {
        let file = self.secret_files.get(REPLICAS);
        let urls = self.replicas.urls.iter().enumerate();
        urls.map(|(number, url)| {
            Source::new(REPLICAS, url.clone(), file.cloned()).of_a_list(number)
        })
        .collect()
    }

    fn source(&self, key: &'static str, known: &SecretString) -> Source {
        Source::new(key, known.clone(), self.secret_files.get(key).cloned())
    }

    /// The key that each heartbeat of this instance deletes.
    #[must_use]
    pub fn canary(&self) -> String {
        format!("unstale:canary:{}", self.instance)
    }

    fn read(
        path: Option<&Path>,
        fallback: Option<&Path>,
        variables: BTreeMap<String, String>,
    ) -> Result<Self, Error> {
        let set = |name| variables.get(name).filter(|value| !value.is_empty());
        let named =
            path.map(Path::to_owned).or_else(|| set(environment::CONFIG_FILE).map(PathBuf::from));

        let mut problems = Vec::new();
        let mut figment = Figment::new();
        let mut secret_files = BTreeMap::new();
        if let Some((path, text)) = read_file(named.as_deref(), fallback)? {
            figment = figment.merge(file::Source::parse(&path, &text, &mut problems)?);
        }
        if let Some(file) = set(environment::AUTHORITIES)
            && let Err(fault @ (Unreadable::Kind(_) | Unreadable::Size(_))) =
                reading::bytes(Path::new(file), reading::PEM_BYTES)
        {
            problems.push(Problem::new(environment::AUTHORITIES, format!("{file} {fault}")));
        }
        if let Some(directory) = set(environment::CREDENTIALS) {
            let directory = Path::new(directory);
            let credentials = Environment::from_credentials(directory, &mut problems);
            credentials.name_files(&mut secret_files);
            figment = figment.merge(credentials);
        }
        let environment = Environment::from_variables(&variables, &mut problems);
        environment.name_files(&mut secret_files);
        figment = figment.merge(environment);
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }

        let config: Self = figment
            .extract()
            .map_err(|error| Error::Invalid(error.into_iter().map(Problem::from).collect()))?;
        let config = Self { secret_files, ..config };
        let problems = limits::problems(&config, &figment);
        if problems.is_empty() { Ok(config) } else { Err(Error::Invalid(problems)) }
    }
}

/// A file that was named must be there; the fallback need not.
fn read_file(
    named: Option<&Path>,
    fallback: Option<&Path>,
) -> Result<Option<(PathBuf, String)>, Error> {
    let Some(path) = named.or(fallback) else {
        return Ok(None);
    };
    match reading::text(path, reading::CONFIGURATION_BYTES) {
        Ok(text) => Ok(Some((path.to_owned(), text))),
        Err(Unreadable::Io(error)) if named.is_none() && error.kind() == ErrorKind::NotFound => {
            Ok(None)
        }
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}
