//! `unstale audit --command`: a program of the application's says what it would cache.
//!
//! It is started once by `sh -c`, gets keys on its standard input, one a line, and answers each
//! with a line: the value, or an empty line where it would cache nothing. A value with a line
//! break, or that is no text, is answered as `hex:` and its bytes. Two JSON documents are compared
//! by what they say. Must hold: what it answers is neither logged nor printed.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// Bytes of an answer, at the most: what Redis may answer.
const LONGEST: u64 = 32 << 20;

/// How long it may take for one key.
const PATIENCE: Duration = Duration::from_secs(60);

/// The running program.
pub(super) struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    pub(super) fn start(command: &str) -> anyhow::Result<Self> {
        let mut child = Command::new("sh")
            .args(["-c", command])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("--command {command}"))?;
        let (input, output) =
            child.stdin.take().zip(child.stdout.take()).context("--command: no pipes")?;
        Ok(Self { child, input, output: BufReader::new(output) })
    }

    /// What it would cache under this key, which holds no line break; `None`: nothing.
    pub(super) async fn value(&mut self, key: &str) -> anyhow::Result<Option<Vec<u8>>> {
        tokio::time::timeout(PATIENCE, self.ask(key))
            .await
            .with_context(|| format!("--command has not answered a key within {PATIENCE:?}"))?
    }

    async fn ask(&mut self, key: &str) -> anyhow::Result<Option<Vec<u8>>> {
        let asked = async {
            self.input.write_all(format!("{key}\n").as_bytes()).await?;
            self.input.flush().await
        };
        let mut line = Vec::new();
        let answered = match asked.await {
            Ok(()) => (&mut self.output).take(LONGEST).read_until(b'\n', &mut line).await,
            Err(error) => Err(error),
        };
        match answered {
            Ok(_) if line.last() == Some(&b'\n') => line.pop(),
            _ => bail!(
                "--command ended, or answered a key with more than {} MB; it ended with {:?}",
                LONGEST >> 20,
                self.child.try_wait().ok().flatten()
            ),
        };
        if line.is_empty() {
            return Ok(None);
        }
        match line.strip_prefix(b"hex:") {
            Some(digits) => Ok(Some(bytes(digits).context(
                "--command answered hex: without an even number of hexadecimal digits",
            )?)),
            None => Ok(Some(line)),
        }
    }
}

fn bytes(digits: &[u8]) -> Option<Vec<u8>> {
    let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    digits
        .len()
        .is_multiple_of(2)
        .then(|| digits.chunks(2).map(pair).collect::<Option<Vec<u8>>>())
        .flatten()
}

/// Is what is cached what would be cached? The same bytes, or the same JSON.
pub(super) fn is_same(cached: &[u8], rendered: Option<&[u8]>) -> bool {
    let json = |bytes: &[u8]| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    match rendered {
        None => matches!(cached.trim_ascii(), b"" | b"null" | b"false" | b"\"\"" | b"[]" | b"{}"),
        Some(rendered) => {
            cached == rendered || json(cached).is_some_and(|cached| Some(cached) == json(rendered))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_document_may_be_written_in_several_ways() {
        assert!(is_same(br#"{"a": 1, "b": [2]}"#, Some(br#"{"b":[2],"a":1}"#)));
        assert!(
            !is_same(br#"{"a":1}"#, Some(br#"{"a":2}"#))
                && is_same(b"\x80", Some(b"\x80"))
                && !is_same(b"x", Some(b"y"))
        );
        assert!(is_same(b"null", None) && !is_same(b"{\"a\":1}", None));
    }

    #[test]
    fn bytes_are_pairs_of_digits() {
        assert_eq!(bytes(b"00fF"), Some(vec![0, 255]));
        assert!(bytes(b"0").is_none() && bytes(b"zz").is_none());
    }
}
