//! A server that speaks to Redis' clients and means harm.
//!
//! Owns: a port of 127.0.0.1, and what is answered there to every command.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// What it answers to a command, given its words.
type Answer = Arc<dyn Fn(&str) -> Vec<u8> + Send + Sync>;

/// A listening liar; gone when dropped.
pub(crate) struct Liar {
    port: u16,
    answer: Arc<Mutex<Answer>>,
    _acceptor: AbortOnDropHandle<()>,
}

impl Liar {
    /// One that answers this.
    pub(crate) async fn new(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("it listens").port();
        let answer: Arc<Mutex<Answer>> = Arc::new(Mutex::new(Arc::new(answer)));
        let shared = answer.clone();
        let acceptor = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Self { port, answer, _acceptor: AbortOnDropHandle::new(acceptor) }
    }

    /// From now on it answers this.
    pub(crate) fn answers(&self, answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) {
        *self.answer.lock().expect("nobody panics with it") = Arc::new(answer);
    }

    /// Its port of 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Where clients connect.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }
}

/// What an honest, empty server would answer to a user that may not mark.
pub(crate) fn honest(command: &str) -> Vec<u8> {
    let reply = match command.split(' ').next().unwrap_or_default() {
        "PING" => "+PONG\r\n",
        "UNLINK" | "DEL" => ":0\r\n",
        "SCAN" => "*2\r\n$1\r\n0\r\n*0\r\n",
        "GET" | "SET" => "-NOPERM this user has no permissions to run the 'get' command\r\n",
        _ => "-ERR unknown command\r\n",
    };
    reply.into()
}

async fn serve(mut stream: TcpStream, answer: Arc<Mutex<Answer>>) {
    let (mut known, mut chunk) = (Vec::new(), vec![0; 16 << 10]);
    while let Ok(length @ 1..) = stream.read(&mut chunk).await {
        known.extend_from_slice(&chunk[..length]);
        while let Some((command, rest)) = command(&known) {
            known = rest;
            let answer = answer.lock().expect("nobody panics with it").clone();
            if stream.write_all(&answer(&command)).await.is_err() {
                return;
            }
        }
    }
}

/// The first command, if all of it is there, its words separated by spaces; and what is behind it.
fn command(bytes: &[u8]) -> Option<(String, Vec<u8>)> {
    let mut rest = bytes;
    let mut line = || {
        let end = rest.iter().position(|&byte| byte == b'\n')?;
        let (line, behind) = rest.split_at(end + 1);
        rest = behind;
        String::from_utf8_lossy(line).trim_end().get(1..)?.parse::<usize>().ok()
    };
    let count = line()?;
    let mut words = Vec::new();
    for _ in 0..count {
        let end = rest.iter().position(|&byte| byte == b'\n')?;
        let length: usize = String::from_utf8_lossy(&rest[1..end]).trim_end().parse().ok()?;
        let word = rest.get(end + 1..end + 1 + length)?;
        words.push(String::from_utf8_lossy(word).into_owned());
        rest = rest.get(end + 3 + length..)?;
    }
    Some((words.join(" "), rest.to_vec()))
}
