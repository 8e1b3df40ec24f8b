//! Redis: deleting keys, and saying whether it was done.
//!
//! Owns the only connection to Redis. One attempt is one call; who repeats it is the driver. Must hold: `Ok` means that Redis
//! has answered for all of it. Refuses to know PostgreSQL, and to log or show the URL, which holds the password.

pub mod check;
mod redis;
mod tls;
mod url;

pub use redis::{Done, Error, Sink};
