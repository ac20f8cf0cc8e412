//! The project's own commands: `cargo xtask --help` lists them.

mod artifact;
mod demo;
mod load;
mod process;
mod setup;
mod test;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::artifact::Profile;
use crate::setup::Purpose;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "Set up, build, test and run the replicator")]
struct Cli {
    /// Install nothing: fail with what is missing and how to get it
    #[arg(long, global = true)]
    no_install: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building, running and testing need and this machine lacks
    Setup,
    /// Build the eBPF programs, and the command `replicator` with them inside
    Build {
        /// With optimizations
        #[arg(long)]
        release: bool,
    },
    /// Formatting, clippy, unit tests, the Python package and, as root, the integration tests
    Test {
        /// Run only the integration tests whose name contains this, and show what they print; with `demo` the demo too
        filter: Option<String>,
        /// Run them and the demo with a replicator built with optimizations
        #[arg(long)]
        release: bool,
    },
    /// Dispatch a model's tokens to expert nodes, all on this machine, while its expert map is rebalanced, and check every
    /// copy, as root
    Demo(demo::Args),
    /// Build with optimizations and run the replicator in the foreground, as root
    Load {
        /// The replicator's configuration
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// More arguments for `replicator run`
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Take the replicator's programs off the interfaces, as root
    Unload {
        /// The replicator's configuration
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// More arguments for `replicator detach`
        #[arg(last = true)]
        args: Vec<String>,
    },
}

fn main() -> ExitCode {
    run(Cli::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(cli: Cli) -> Result<ExitCode> {
    let toolchain = |purpose| setup::ensure(purpose, !cli.no_install);
    match cli.command {
        Command::Setup => {
            let toolchain = toolchain(Purpose::Test)?;
            println!("everything is in place: the eBPF programs are built by {toolchain}");
        }
        Command::Build { release } => {
            let profile = if release { Profile::Release } else { Profile::Dev };
            println!("{}", artifact::build(&toolchain(Purpose::Build)?, profile)?.display());
        }
        Command::Test { filter, release } => {
            let profile = if release { Profile::Release } else { Profile::Dev };
            test::run(&toolchain(Purpose::Test)?, filter.as_deref(), profile)?;
        }
        Command::Demo(args) => {
            return demo::start(&args, || artifact::build(&toolchain(Purpose::Run)?, Profile::Dev));
        }
        Command::Load { config, args } => load::load(&toolchain(Purpose::Run)?, &config, &args)?,
        Command::Unload { config, args } => {
            load::unload(&toolchain(Purpose::Run)?, config.as_deref(), &args)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
