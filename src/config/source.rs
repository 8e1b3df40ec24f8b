//! A secret that is read anew each time it is used.
//!
//! A password is rotated where its file is (`DATABASE_URL_FILE`, systemd's credentials, a
//! Kubernetes secret), and the old one ends: whoever connects asks here for what holds now. Refuses
//! to show it, and to wait for its file for long.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};

use super::error::Problem;
use super::limits;
use super::reading::{self, Aside};

/// Far more than a file on this host takes, and less than a connection may.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where a secret can be read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    /// The variable that names it, or the credential.
    pub(super) place: String,
    /// The file.
    pub(super) path: PathBuf,
}

/// See the module. Clones share what was read last, and what hangs, so that it hangs once.
#[derive(Clone)]
pub struct Source {
    key: &'static str,
    last: Arc<Mutex<SecretString>>,
    file: Option<SecretFile>,
    nth: Option<usize>, // of the texts in the file
    aside: Aside,
}

impl Source {
    pub(super) fn new(key: &'static str, known: SecretString, file: Option<SecretFile>) -> Self {
        Self { key, last: Arc::new(Mutex::new(known)), file, nth: None, aside: Aside::default() }
    }

    /// One of several in the same file.
    pub(super) fn of_a_list(self, nth: usize) -> Self {
        Self { nth: Some(nth), ..self }
    }

    /// As it was read last, at first by the configuration.
    #[must_use]
    pub fn known(&self) -> SecretString {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// As it is now. A file that cannot be read at this moment is no reason not to try what it
    /// held; the problem is for whoever fails with that.
    pub async fn read(&self) -> (SecretString, Option<Problem>) {
        match self.anew().await {
            Ok(secret) => {
                self.last.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&secret);
                (secret, None)
            }
            Err(problem) => (self.known(), Some(problem)),
        }
    }

    async fn anew(&self) -> Result<SecretString, Problem> {
        let Some(SecretFile { place, path }) = &self.file else { return Ok(self.known()) };
        let problem = |fault: String| Problem::new(place, format!("{} {fault}", path.display()));
        let file = path.clone();
        let read =
            self.aside.run(PATIENCE, move || reading::secret(&file).map(SecretString::from)).await;
        let secret = read
            .map_err(|stuck| problem(format!("does not answer: {stuck}")))?
            .map_err(|error| problem(error.to_string()))?;
        let secret = match self.nth {
            None => secret,
            Some(nth) => match secret.expose_secret().split_whitespace().nth(nth) {
                Some(text) => SecretString::from(text.to_owned()),
                None => {
                    return Err(problem(format!(
                        "holds less than {} URLs now; reload the configuration",
                        nth + 1
                    )));
                }
            },
        };
        limits::fault_of_url(self.key, &secret)
            .map_or(Ok(secret), |fault| Err(problem(fault.to_owned())))
    }
}

/// A secret that stands in no file.
impl From<SecretString> for Source {
    fn from(text: SecretString) -> Self {
        Self::new("", text, None)
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("key", &self.key)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}
