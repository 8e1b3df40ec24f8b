//! Where a secret stands, to be read anew for each connection: a password that is rotated in its file is taken without a restart.

use std::path::PathBuf;

use secrecy::SecretString;

use super::environment;
use super::error::Problem;

/// A file that a secret came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretFile {
    /// The variable that names it, or the credential.
    pub(super) place: String,
    /// The file.
    pub(super) path: PathBuf,
}

/// A secret, and the file to look into before each use, if there is one.
#[derive(Debug, Clone)]
pub struct Source {
    text: SecretString,
    file: Option<SecretFile>,
}

impl Source {
    pub(super) fn new(text: SecretString, file: Option<SecretFile>) -> Self {
        Self { text, file }
    }

    /// The secret as it is now. A file that cannot be read at this moment is no reason not to try the secret that it held; the
    /// problem is for whoever fails with that.
    #[must_use]
    pub fn read(&self) -> (SecretString, Option<Problem>) {
        let Some(file) = &self.file else { return (self.text.clone(), None) };
        match environment::read(&file.path) {
            Ok(text) => (text.into(), None),
            Err(error) => {
                let fault = format!("cannot read {}: {error}", file.path.display());
                (self.text.clone(), Some(Problem::new(&file.place, fault)))
            }
        }
    }
}

/// A secret that stands in no file.
impl From<SecretString> for Source {
    fn from(text: SecretString) -> Self {
        Self::new(text, None)
    }
}
