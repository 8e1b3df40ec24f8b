//! Why Redis did not do it, in words: what it means, what the server said, and the remedy.
//!
//! What a server says is not ours: it is shown in one line without control characters, and cut.

use std::path::PathBuf;
use std::time::Duration;

/// Letters of a server's words that are shown.
const SHOWN: usize = 200;

/// Why Redis did not do it. None holds the URL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL cannot be read.
    #[error("REDIS_URL: {0}")]
    Url(String),
    /// No connection.
    #[error("cannot connect to Redis: {0}")]
    Connect(String),
    /// Connected, and no answer in time. It may have been done all the same.
    #[error("Redis did not answer within {0:?} (redis.timeout)")]
    Timeout(Duration),
    /// The connection ended. It may have been done all the same.
    #[error("the connection to Redis ended")]
    Ended,
    /// A server was set back without the connection ending: it has lost deletes.
    #[error("Redis has lost its last deletes, as after a fail-over; they are repeated")]
    SetBack,
    /// Redis does not keep to its protocol, or to any measure.
    #[error("what answers is no Redis that can be worked with: {0}")]
    Broken(String),
    /// A file that TLS needs is not as it must be.
    #[error("{key}: {} {fault}", file.display())]
    File {
        /// The key that names it.
        key: &'static str,
        /// The file.
        file: PathBuf,
        /// What is wrong with it, as the sentence goes on, and what to do.
        fault: String,
    },
    /// A part of a cluster did not do it.
    #[error("a part of the cluster does not answer: {0}")]
    Left(String),
    /// Redis said no, in these words.
    #[error("{}", refusal(.0))]
    Refused(String),
}

impl Error {
    /// May the user not touch a key?
    #[must_use]
    pub fn is_of_key(&self) -> bool {
        matches!(self, Self::Refused(words) if is_of_key(words))
    }
}

/// Do these words refuse a key, and not the command?
pub(super) fn is_of_key(words: &str) -> bool {
    code(words) == Some("NOPERM") && words.contains(" key") && !words.contains("permissions to run")
}

/// The codes with which Redis refuses, what they mean, and what to do.
const REFUSALS: &[(&str, &str, &str)] = &[
    (
        "MISCONF",
        "refuses writes because its last snapshot failed",
        "give its disk room, or set stop-writes-on-bgsave-error to no",
    ),
    (
        "NOREPLICAS",
        "refuses writes because too few replicas are in step",
        "bring them back, or lower min-replicas-to-write",
    ),
    (
        "READONLY",
        "is a replica and refuses to delete",
        "this is a replica; let REDIS_URL lead to the primary",
    ),
    ("MASTERDOWN", "is a replica that has lost its primary", "let REDIS_URL lead to the primary"),
    ("LOADING", "is still loading its keys", "it is waited for"),
    ("BUSY", "is held up by a script", "end it with SCRIPT KILL"),
    ("OOM", "has no memory left for this", "raise maxmemory, or let it evict keys"),
    ("CLUSTERDOWN", "is a cluster that is down", "see CLUSTER INFO"),
    ("MOVED", "is one node of a cluster", "let REDIS_URL begin with redis-cluster://"),
    ("CROSSSLOT", "is a cluster", "let REDIS_URL begin with redis-cluster://"),
    ("WRONGPASS", "does not take the password", "correct user and password in REDIS_URL"),
    ("NOAUTH", "wants a password", "correct user and password in REDIS_URL"),
    ("ERR", "refuses", ""),
];

fn refusal(words: &str) -> String {
    let said = shown(words);
    if code(words) == Some("NOPERM") {
        let (what, remedy) = if is_of_key(words) {
            (
                "does not let this user touch a key",
                "`unstale check` prints the rule that lets it, with the keys of all watches",
            )
        } else {
            (
                "does not let this user run a command",
                "let the user run UNLINK, SCAN, PING, GET and SET; `unstale check` prints the rule",
            )
        };
        return format!("Redis {what}: {said} ({remedy})");
    }
    match REFUSALS.iter().find(|(code, ..)| self::code(words) == Some(*code)) {
        Some((_, meaning, "")) => format!("Redis {meaning}: {said}"),
        Some((_, meaning, remedy)) => format!("Redis {meaning}: {said} ({remedy})"),
        None => format!("Redis refuses: {said}"),
    }
}

/// The first word of a refusal, if it is one: capital letters.
pub(super) fn code(words: &str) -> Option<&str> {
    let first = words.split_whitespace().next()?;
    (first.len() >= 3 && first.bytes().all(|byte| byte.is_ascii_uppercase())).then_some(first)
}

/// Cut: others may say as much as they like. Whoever shows it makes it harmless (`visible`).
pub(super) fn shown(words: &str) -> String {
    let mut shown: String = words.chars().take(SHOWN).collect();
    if words.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_refusal_is_named_for_what_it_is() {
        for (words, expected) in [
            (
                "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist on disk.",
                "its last snapshot failed",
            ),
            ("NOREPLICAS Not enough good replicas to write.", "min-replicas-to-write"),
            (
                "READONLY You can't write against a read only replica.",
                "let REDIS_URL lead to the primary",
            ),
            (
                "LOADING Redis is loading the dataset in memory",
                "is still loading its keys: LOADING",
            ),
            ("OOM command not allowed when used memory > 'maxmemory'.", "raise maxmemory"),
            ("CLUSTERDOWN The cluster is down", "CLUSTER INFO"),
            (
                "NOPERM this user has no permissions to run the 'unlink' command",
                "let the user run UNLINK",
            ),
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments",
                "touch a key",
            ),
            ("NOPERM No permissions to access a key", "touch a key"),
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                "correct user and password",
            ),
            ("something else", "Redis refuses: something else"),
        ] {
            let sentence = Error::Refused(words.to_owned()).to_string();
            assert!(sentence.contains(expected), "{sentence}");
        }
    }

    #[test]
    fn the_words_of_a_server_are_cut() {
        assert_eq!(shown("ERR no"), "ERR no");
        let long = shown(&"x".repeat(100_000));
        assert!(long.ends_with('…') && long.chars().count() == SHOWN + 1, "{}", long.len());
    }
}
