//! A secret that is read anew each time it is used.
//!
//! A password is rotated where its file is (`DATABASE_URL_FILE`, systemd's credentials, a Kubernetes secret), and the old one ends:
//! whoever connects asks here for what holds now. Refuses to show it, and to wait for its file for ever.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::limits;
use super::reading::{self, Aside};

/// Where a secret can be read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SecretFile {
    /// The variable or the credential, for people.
    pub(super) place: String,
    pub(super) file: PathBuf,
}

/// See the module. Clones share what hangs, so that it hangs once.
#[derive(Clone)]
pub struct Secret {
    key: &'static str,
    known: SecretString,
    file: Option<SecretFile>,
    aside: Aside,
}

/// Why a secret could not be read anew. Holds nothing of it.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {fault}")]
pub struct SecretError {
    /// The variable, or the credential.
    pub place: String,
    /// What is wrong and how to fix it.
    pub fault: String,
}

impl Secret {
    pub(super) fn new(key: &'static str, known: SecretString, file: Option<SecretFile>) -> Self {
        Self { key, known, file, aside: Aside::default() }
    }

    /// As it was when the configuration was read.
    #[must_use]
    pub fn known(&self) -> &SecretString {
        &self.known
    }

    /// As it is now: what its file holds, or else what the configuration said. For each connection anew.
    ///
    /// # Errors
    /// [`SecretError`], after `patience` at the latest. [`Self::known`] may do all the same.
    pub async fn read(&self, patience: Duration) -> Result<SecretString, SecretError> {
        let Some(SecretFile { place, file }) = &self.file else { return Ok(self.known.clone()) };
        let fault = |fault: String| SecretError { place: place.clone(), fault: format!("{} {fault}", reading::shown(file)) };
        let (key, path) = (self.key, file.clone());
        let read = self.aside.run(patience, move || reading::secret(&path).map(SecretString::from)).await;
        let secret = read.map_err(|stuck| fault(format!("does not answer: {stuck}")))?.map_err(|error| fault(error.to_string()))?;
        match limits::fault_of_url(key, &secret) {
            Some(wrong) => Err(fault(wrong.to_owned())),
            None => Ok(secret),
        }
    }
}

/// How long a file may take to answer while a connection is made.
const PATIENCE: Duration = Duration::from_secs(2);

impl Secret {
    /// As it is now, for a connection. A file that cannot be read at this moment is no reason not to try the secret that it held; the
    /// error is for whoever fails with that.
    pub async fn now(&self) -> (SecretString, Option<SecretError>) {
        match self.read(PATIENCE).await {
            Ok(secret) => (secret, None),
            Err(error) => (self.known.clone(), Some(error)),
        }
    }
}

/// A secret that stands in no file.
impl From<SecretString> for Secret {
    fn from(known: SecretString) -> Self {
        Self::new("", known, None)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("key", &self.key).field("file", &self.file).finish_non_exhaustive()
    }
}
