//! The one integration-test binary.

mod cli;
mod config;
mod schema;
mod scratch;
mod support;
mod trigger;
