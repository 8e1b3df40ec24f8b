//! `GET` from a process of ours on 127.0.0.1: /ready and /metrics, for the demo and the tests.
//!
//! Owns: one exchange, over a connection of its own. Refuses: TLS, redirects, keep-alive, any other
//! host.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

/// How long it may take; a probe that is slower than this has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Status and body of `http://127.0.0.1:PORT/PATH`.
///
/// # Errors
/// When nobody answers in time, or not in HTTP.
pub fn get(port: u16, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let (head, body) = reply.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}
