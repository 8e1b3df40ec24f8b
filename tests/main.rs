//! The one integration-test binary.

mod check;
mod cli;
mod config;
mod crash;
mod daemon;
mod delivery;
mod demo;
mod gap;
mod hostile;
mod log;
mod monitoring;
mod readers_model;
mod reload;
mod schema;
mod scratch;
mod session;
mod simulation;
mod sink;
mod support;
mod sweep;
mod systemd;
mod tail;
mod tidy;
mod tls;
mod trigger;
mod uninstall;
