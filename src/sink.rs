//! Redis: deleting keys, and saying whether it was done.
//!
//! Owns the only connection to Redis. One attempt is one call; who repeats it is a [`worker`]. Must hold: `Ok` means that Redis
//! has answered for all of it. Refuses to know PostgreSQL, and to log or show the URL, which holds the password.

pub mod check;
mod error;
mod fence;
mod marks;
mod redis;
mod tls;
mod url;
mod wire;
pub mod worker;

pub use error::Error;
pub use marks::Marks;
pub use redis::{Done, Sink};
