//! The one integration-test binary.

mod cli;
mod config;
mod demo;
mod log;
mod scratch;
mod simulation;
mod support;
mod tidy;
