//! A plain client for looking into a throw-away Redis: what is cached, and since when it is gone.
//!
//! Owns: one connection over the Unix socket. It blocks, and costs some 10 microseconds a question,
//! so that a tight loop can measure when a key disappears; pipelines fill hundreds of thousands of
//! keys in a second, also in a debug build. Refuses: reconnecting, timeouts, everything that the
//! real sink is for. Never used outside scratch servers.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long a reply may take: longer than any server that is well, short enough for a test to fail
/// in time.
const PATIENCE: Duration = Duration::from_secs(30);

/// Commands that are written before their replies are read. More would not be faster, and both
/// sides' socket buffers must hold them.
const PIPELINE: usize = 500;

/// What Redis answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Status(String),
    /// `:42`
    Integer(i64),
    /// A value, or none.
    Value(Option<Vec<u8>>),
    /// Several replies in one.
    List(Vec<Reply>),
    /// `-ERR ...`
    Error(String),
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to a server's Unix socket.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// One command, one reply: `ask(&["set", "key", "value"])`.
    ///
    /// # Errors
    /// When the connection breaks or stays silent; an error of Redis is a [`Reply::Error`].
    pub fn ask(&mut self, command: &[&str]) -> io::Result<Reply> {
        self.stream.get_mut().write_all(&encoded(command))?;
        self.reply()
    }

    /// What Redis sends by itself, after `ask(&["subscribe", ...])`.
    ///
    /// # Errors
    /// When the connection breaks or stays silent.
    pub fn next_push(&mut self) -> io::Result<Reply> {
        self.reply()
    }

    /// A command whose reply is a number.
    ///
    /// # Errors
    /// Also when Redis answers anything else.
    pub fn count(&mut self, command: &[&str]) -> io::Result<u64> {
        match self.ask(command)? {
            Reply::Integer(number) => u64::try_from(number).map_err(io::Error::other),
            other => Err(io::Error::other(format!("{command:?}: {other:?}"))),
        }
    }

    /// Whether a key is there.
    ///
    /// # Errors
    /// As [`Client::count`].
    pub fn has(&mut self, key: &str) -> io::Result<bool> {
        Ok(self.count(&["exists", key])? == 1)
    }

    /// How many keys there are in all.
    ///
    /// # Errors
    /// As [`Client::count`].
    pub fn size(&mut self) -> io::Result<u64> {
        self.count(&["dbsize"])
    }

    /// Puts one key.
    ///
    /// # Errors
    /// Also when Redis does not answer OK.
    pub fn put(&mut self, key: &str, value: &str) -> io::Result<()> {
        self.put_all([key.to_owned()], value)
    }

    /// Puts many keys, all with the same value, in a pipeline.
    ///
    /// # Errors
    /// Also when Redis does not answer OK.
    pub fn put_all(
        &mut self,
        keys: impl IntoIterator<Item = String>,
        value: &str,
    ) -> io::Result<()> {
        let mut keys = keys.into_iter();
        loop {
            let some: Vec<String> = keys.by_ref().take(PIPELINE).collect();
            if some.is_empty() {
                return Ok(());
            }
            self.pipeline(some.iter().map(|key| ["set", key, value]))?;
        }
    }

    /// How many of these keys are there; asked in a pipeline.
    ///
    /// # Errors
    /// As [`Client::count`].
    pub fn count_of(&mut self, keys: impl IntoIterator<Item = String>) -> io::Result<u64> {
        let mut keys = keys.into_iter();
        let mut found = 0;
        loop {
            let some: Vec<String> = keys.by_ref().take(PIPELINE).collect();
            if some.is_empty() {
                return Ok(found);
            }
            let replies = self.pipeline(some.iter().map(|key| ["exists", key]))?;
            found += replies.iter().filter(|reply| **reply == Reply::Integer(1)).count() as u64;
        }
    }

    fn pipeline<'a, const N: usize>(
        &mut self,
        commands: impl Iterator<Item = [&'a str; N]>,
    ) -> io::Result<Vec<Reply>> {
        let (mut bytes, mut asked) = (Vec::new(), 0);
        for command in commands {
            bytes.extend(encoded(&command));
            asked += 1;
        }
        self.stream.get_mut().write_all(&bytes)?;
        let replies = (0..asked).map(|_| self.reply()).collect::<io::Result<Vec<_>>>()?;
        match replies.iter().find(|reply| matches!(reply, Reply::Error(_))) {
            Some(error) => Err(io::Error::other(format!("{error:?}"))),
            None => Ok(replies),
        }
    }

    fn reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (kind, rest) = line.trim_end().split_at_checked(1).ok_or(io::ErrorKind::InvalidData)?;
        let number = || rest.parse::<i64>().map_err(io::Error::other);
        Ok(match kind {
            "+" => Reply::Status(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Integer(number()?),
            "$" => Reply::Value(self.value(number()?)?),
            "*" => Reply::List((0..number()?).map(|_| self.reply()).collect::<io::Result<_>>()?),
            _ => return Err(io::Error::other(format!("not a reply: {line:?}"))),
        })
    }

    fn value(&mut self, length: i64) -> io::Result<Option<Vec<u8>>> {
        let Ok(length) = usize::try_from(length) else { return Ok(None) };
        let mut value = vec![0; length + 2];
        self.stream.read_exact(&mut value)?;
        value.truncate(length);
        Ok(Some(value))
    }
}

/// A command as Redis reads it: an array of strings, each with its length.
fn encoded(command: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for word in command {
        bytes.extend(format!("${}\r\n{word}\r\n", word.len()).bytes());
    }
    bytes
}
