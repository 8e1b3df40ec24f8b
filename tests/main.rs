//! The one integration-test binary.

mod cli;
mod config;
mod daemon;
mod hostile;
mod scratch;
mod session;
mod simulation;
mod sink;
mod support;
