//! Parse, configure, run; one line for an error, and its exit code.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use unstale::cli::{Cli, Command};
use unstale::config::Config;
use unstale::{command, error, logs};

// One thread: it keeps up with what PostgreSQL sends and what Redis takes, and two spend a quarter
// of their time on each other.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Err(error) = Box::pin(run(Cli::parse())).await else {
        return ExitCode::SUCCESS;
    };
    // Not eprintln: a closed stderr must not turn an exit code into a panic.
    let _ = writeln!(std::io::stderr(), "unstale: {}", error::one_line(&error));
    ExitCode::from(error::exit_code(&error))
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    // Two libraries bring rustls; with a provider chosen for the process, neither has to.
    let _ = rustls::crypto::ring::default_provider().install_default();
    // What needs no configuration must work without one.
    match &cli.command {
        Command::Completions(args) => return command::completions::run(args),
        Command::Man(args) => return command::man::run(args),
        Command::Demo(args) => return command::demo::run(args).await,
        _ => {}
    }

    let config = Config::from_process(cli.config.as_deref())?;
    let filter = logs::init(&config.log)?;
    match &cli.command {
        Command::Migrate => command::migrate::run(&config).await,
        Command::Apply(args) => command::apply::run(&config, args).await,
        Command::Check(args) => command::check::run(&config, args).await,
        Command::Sweep(args) => command::sweep::run(&config, args).await,
        Command::Status(args) => command::status::run(&config, args).await,
        Command::Audit(args) => command::audit::run(&config, args).await,
        Command::Policy(args) => command::policy::run(&config, args).await,
        Command::Wait(args) => command::wait::run(&config, args).await,
        Command::Tail(args) => command::tail::run(&config, args).await,
        Command::Uninstall(args) => command::uninstall::run(&config, args).await,
        Command::Explain(args) => command::explain::run(&config, args).await,
        _ => command::run::run(config, cli.config, filter).await,
    }
}
