//! The one integration-test binary.

mod cli;
mod config;
mod demo;
mod scratch;
mod simulation;
mod support;
mod tidy;
