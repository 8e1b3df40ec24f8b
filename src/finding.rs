//! What `unstale check` finds: one line each, with a remedy that can be pasted.

use serde::{Deserialize, Serialize};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// It works, and somebody should know.
    Warning,
    /// A promise is broken, or will be.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// A server, a table, an instance ...
    pub about: String,
    /// A sentence.
    pub finding: String,
    /// A command, or SQL.
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(about: impl Into<String>, finding: impl Into<String>) -> Self {
        Self { severity: Severity::Ok, about: about.into(), finding: finding.into(), remedy: None }
    }

    /// Somebody should know.
    pub fn warning(
        about: impl Into<String>,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Warning,
            about: about.into(),
            finding: finding.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// Somebody must act.
    pub fn error(
        about: impl Into<String>,
        finding: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity: Severity::Error,
            about: about.into(),
            finding: finding.into(),
            remedy: Some(remedy.into()),
        }
    }
}
