//! The one integration-test binary.

mod cli;
mod config;
mod scratch;
mod simulation;
mod support;
