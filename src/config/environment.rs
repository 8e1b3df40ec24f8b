//! The environment, and systemd's credentials: a figment provider of our own.
//!
//! figment's `Env` lower-cases names, guesses types (an instance named 42 becomes a number, and the
//! error shows the value) and cannot read files. This one looks every variable up among the keys
//! that exist, so a problem carries the variable's real name, texts stay texts, and nothing is
//! shown that may be a secret.
//!
//! Refused: an `UNSTALE_` variable that is no key, and a secret that is given twice (`X` and
//! `X_FILE`). Ignored: an empty secret (Compose writes those for unset variables), and the
//! variables that Kubernetes makes up for a service called `unstale` (`UNSTALE_SERVICE_HOST`,
//! `UNSTALE_PORT=tcp://...`), which nobody typed and which no key can look like.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Metadata, Profile, Provider};

use super::error::Problem;
use super::file::of_list;
use super::key::Key;
use super::keys;
use super::reading::{self, Unreadable};
use super::source::SecretFile;

/// Names a file, not a key.
pub(super) const CONFIG_FILE: &str = "UNSTALE_CONFIG";
/// Where systemd puts what `LoadCredential=` names; files, one a credential.
pub(super) const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Where the authorities are that the system trusts; the libraries of TLS read it, and would wait
/// for a pipe.
pub(super) const AUTHORITIES: &str = "SSL_CERT_FILE";

/// Whether a variable is one of ours; values of all others may be anything, even not UTF-8.
pub(super) fn is_ours(variable: &str) -> bool {
    variable.starts_with("UNSTALE_")
        || variable == CREDENTIALS
        || ["DATABASE_URL", "REDIS_URL"].iter().any(|name| {
            variable.strip_prefix(name).is_some_and(|rest| matches!(rest, "" | "_FILE"))
        })
}

/// Values by key, each with the name under which it was found.
pub(super) struct Environment {
    name: &'static str,
    found: BTreeMap<String, Found>,
}

struct Found {
    /// A variable, or a credential's file.
    place: String,
    value: Value,
    /// What held it, and can be read again.
    file: Option<PathBuf>,
}

impl Found {
    /// A secret, which is a text or several: what is wrong with them is for the limits to say.
    fn new(key: &Key, place: String, text: &str, file: Option<PathBuf>) -> Option<Self> {
        key.read(text).ok().map(|value| Self { place, value, file })
    }
}

impl Environment {
    /// What the variables say; what they say wrongly goes to `problems`.
    pub(super) fn from_variables(
        variables: &BTreeMap<String, String>,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let mut environment = Self { name: "environment", found: BTreeMap::new() };
        let keys = keys();
        for key in &keys {
            let found = if key.is_secret {
                secret(key, variables, problems)
            } else {
                plain(key, variables, problems)
            };
            environment.found.extend(found.map(|found| (key.path.clone(), found)));
        }
        for (variable, value) in variables {
            refuse_unknown(variable, value, &keys, problems);
        }
        environment
    }

    /// The secrets among systemd's credentials: `database_url` and `redis_url`, if they are there.
    pub(super) fn from_credentials(directory: &Path, problems: &mut Vec<Problem>) -> Self {
        let mut found = BTreeMap::new();
        for key in keys().into_iter().filter(|key| key.is_secret) {
            let file = directory.join(key.path.replace('.', "_"));
            let place = file.display().to_string();
            match reading::secret(&file) {
                Ok(text) => found.extend(
                    Found::new(&key, place, &text, Some(file)).map(|found| (key.path, found)),
                ),
                Err(Unreadable::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => problems.push(Problem::new(place, error.to_string())),
            }
        }
        Self { name: "credentials", found }
    }

    /// Where each secret can be read again. What was found here is what counts: a text in the place
    /// of a file takes the file away.
    pub(super) fn name_files(&self, files: &mut BTreeMap<String, SecretFile>) {
        for (path, Found { place, file, .. }) in &self.found {
            match file {
                Some(file) => {
                    drop(files.insert(
                        path.clone(),
                        SecretFile { place: place.clone(), path: file.clone() },
                    ))
                }
                None => drop(files.remove(path)),
            }
        }
    }
}

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        let places: BTreeMap<String, String> =
            self.found.iter().map(|(path, found)| (path.clone(), found.place.clone())).collect();
        Metadata::named(self.name).interpolater(move |_: &Profile, keys: &[&str]| {
            let path = keys.join(".");
            places.get(of_list(&path)).cloned().unwrap_or(path)
        })
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let mut values = Dict::new();
        for (path, found) in &self.found {
            match figment::util::nest(path, found.value.clone()) {
                Value::Dict(_, nested) => merge(&mut values, nested),
                _ => unreachable!("a path has at least one part"),
            }
        }
        Ok(Profile::Default.collect(values))
    }
}

/// Adds values, section by section.
fn merge(values: &mut Dict, nested: Dict) {
    for (name, value) in nested {
        match (values.get_mut(&name), value) {
            (Some(Value::Dict(_, there)), Value::Dict(_, new)) => merge(there, new),
            (_, value) => {
                values.insert(name, value);
            }
        }
    }
}

fn plain(
    key: &Key,
    variables: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) -> Option<Found> {
    let value = key
        .read(variables.get(&key.variable)?)
        .map_err(|fault| problems.push(Problem::new(&key.variable, fault)))
        .ok()?;
    Some(Found { place: key.variable.clone(), value, file: None })
}

/// The secret under its own name, else under the usual one: an application's `DATABASE_URL` may
/// lead through a pooler that cannot LISTEN, and `UNSTALE_DATABASE__URL` beside it need not.
fn secret(
    key: &Key,
    variables: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) -> Option<Found> {
    [Some(key.variable.clone()), usual_name(key)].into_iter().flatten().find_map(|variable| {
        let written = |name: &str| variables.get(name).filter(|text| !text.is_empty());
        let file_variable = format!("{variable}_FILE");
        match (written(&variable), written(&file_variable)) {
            (None, None) => None,
            (Some(text), None) => Found::new(key, variable, text, None),
            (None, Some(file)) => match reading::secret(Path::new(file)) {
                Ok(text) => Found::new(key, file_variable, &text, Some(file.into())),
                Err(error) => {
                    problems.push(Problem::new(file_variable, format!("{file} {error}")));
                    None
                }
            },
            (Some(_), Some(_)) => {
                let fault =
                    format!("{variable} is set too, and only one of them can be meant; unset one");
                problems.push(Problem::new(file_variable, fault));
                None
            }
        }
    })
}

/// `DATABASE_URL` for `database.url`, `REDIS_URL` likewise.
fn usual_name(key: &Key) -> Option<String> {
    key.path.ends_with(".url").then(|| key.path.replace('.', "_").to_uppercase())
}

fn refuse_unknown(variable: &str, value: &str, keys: &[Key], problems: &mut Vec<Problem>) {
    let Some(rest) = variable.strip_prefix("UNSTALE_") else {
        return;
    };
    let is_key = |key: &Key| {
        key.variable == variable
            || (key.is_secret && variable.strip_suffix("_FILE") == Some(&key.variable))
    };
    if variable == CONFIG_FILE || keys.iter().any(is_key) || is_service_link(rest, value) {
        return;
    }
    if rest == "WATCH" || rest.starts_with("WATCH_") {
        let fault = "a watch cannot be given by a variable; write [[watch]] in the file, or call unstale.watch in SQL";
        problems.push(Problem::new(variable, fault));
        return;
    }
    let names = keys.iter().map(|key| key.variable.as_str()).chain([CONFIG_FILE]);
    problems.push(Problem::unknown(variable, variable, names));
}

/// Whether Kubernetes made this variable, for a service `unstale` or `unstale-...` of the
/// namespace. Shapes: `{SVC}_SERVICE_HOST`, `{SVC}_SERVICE_PORT[_NAME]`, `{SVC}_PORT`,
/// `{SVC}_PORT_9464_TCP[_PROTO|_PORT|_ADDR]`
/// (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>).
fn is_service_link(rest: &str, value: &str) -> bool {
    // A key's sections are parted by two underscores, a service's name never is.
    if rest.contains("__") {
        return false;
    }
    let name = format!("_{rest}");
    let is_url = ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme));
    let is_number = value.parse::<u16>().is_ok();
    let numbered = name.rsplit_once("_PORT_").is_some_and(|(_, port)| {
        let mut parts = port.split('_');
        parts.next().is_some_and(|number| number.parse::<u16>().is_ok())
            && parts.next().is_some_and(|protocol| matches!(protocol, "TCP" | "UDP" | "SCTP"))
    });
    name.ends_with("_SERVICE_HOST")
        || (name.contains("_SERVICE_PORT") && is_number)
        || (name.ends_with("_PORT") && is_url)
        || numbered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(variables: &[(&str, &str)]) -> Vec<String> {
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let mut problems = Vec::new();
        Environment::from_variables(&variables, &mut problems);
        problems.iter().map(Problem::to_string).collect()
    }

    #[test]
    fn what_kubernetes_makes_up_for_a_service_called_unstale_is_ignored() {
        let none = problems(&[
            ("UNSTALE_SERVICE_HOST", "10.0.0.11"),
            ("UNSTALE_SERVICE_PORT", "9464"),
            ("UNSTALE_SERVICE_PORT_METRICS", "9464"),
            ("UNSTALE_PORT", "tcp://10.0.0.11:9464"),
            ("UNSTALE_PORT_9464_TCP", "tcp://10.0.0.11:9464"),
            ("UNSTALE_PORT_9464_TCP_PROTO", "tcp"),
            ("UNSTALE_PORT_9464_TCP_PORT", "9464"),
            ("UNSTALE_PORT_9464_TCP_ADDR", "10.0.0.11"),
            ("UNSTALE_METRICS_SERVICE_HOST", "10.0.0.12"),
            ("UNSTALE_METRICS_PORT_9464_TCP_ADDR", "10.0.0.12"),
        ]);
        assert_eq!(none, Vec::<String>::new());
    }

    #[test]
    fn a_port_that_a_person_wrote_is_not_taken_for_kubernetes() {
        assert_eq!(problems(&[("UNSTALE_PORT", "9464")]).len(), 1);
        assert_eq!(problems(&[("UNSTALE_HTTP__PORT", "tcp://1.2.3.4:1")]).len(), 1);
    }

    #[test]
    fn every_unknown_variable_is_named_with_the_nearest_key() {
        let found = problems(&[("UNSTALE_HTTP__LISTN", "x"), ("UNSTALE_INSTANZ", "y")]);
        assert_eq!(
            found,
            [
                "UNSTALE_HTTP__LISTN: unknown key; did you mean UNSTALE_HTTP__LISTEN?",
                "UNSTALE_INSTANZ: unknown key; did you mean UNSTALE_INSTANCE?",
            ]
        );
    }

    #[test]
    fn a_watch_in_the_environment_is_told_where_watches_go() {
        let found = problems(&[("UNSTALE_WATCH__TABLE", "public.users")]);
        assert!(found[0].contains("[[watch]]"), "{found:?}");
    }

    #[test]
    fn a_secret_and_its_file_are_one_too_many() {
        let found = problems(&[("REDIS_URL", "redis://h"), ("REDIS_URL_FILE", "/x")]);
        assert_eq!(
            found,
            ["REDIS_URL_FILE: REDIS_URL is set too, and only one of them can be meant; unset one"]
        );
    }
}
