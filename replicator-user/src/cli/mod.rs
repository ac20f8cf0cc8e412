//! The command line: one file for each command.

mod api;
pub mod check;
mod detach;
pub mod doctor;
mod map;
mod receive;
mod run;
mod send;
mod signal;
mod stats;
mod status;
mod top;

use std::{
    error::Error,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

/// Where programs, maps and links are pinned unless told otherwise.
const DEFAULT_PIN_PATH: &str = "/sys/fs/bpf/replicator";

/// XDP multicast replicator for Mixture-of-Experts inference: one frame for a set of experts in, one copy for each node
/// that hosts one of them out.
#[derive(Parser)]
#[command(name = "replicator", version, max_term_width = 100)]
#[command(after_help = "Exit status: 0 done, 1 something failed, 2 the command line is wrong.\n\n\
    Start with `replicator doctor`, write a configuration (configs/ has one for each way of use), `replicator check` it, \
    and `replicator run` it.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Run(run::Run),
    /// Validate a configuration and say what it would do; needs no root
    Check(check::Args),
    Status(status::StatusArgs),
    Stats(stats::Stats),
    Top(top::Top),
    Detach(detach::Detach),
    Doctor(doctor::Doctor),
    Send(send::SendArgs),
    Receive(receive::ReceiveArgs),
    /// Make, show and compare expert maps, put them in force and follow them
    #[command(subcommand)]
    Map(map::Map),
    /// Print a completion script for a shell
    ///
    /// For example: replicator completions bash > /etc/bash_completion.d/replicator
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write a manual page for each command
    Man {
        /// The folder to write to; it is made if it is not there
        folder: PathBuf,
    },
}

/// Which replicator of this host is meant.
#[derive(Args, Clone)]
struct Instance {
    /// Where it is pinned (`pin-path` of its configuration)
    #[arg(long, value_name = "PATH", default_value = DEFAULT_PIN_PATH)]
    pin_path: PathBuf,
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(run) => run.run(),
        Command::Check(args) => check::run(&args, &mut io::stdout(), &mut io::stderr()).map_err(Into::into),
        Command::Status(status) => status.run(),
        Command::Stats(stats) => stats.run(),
        Command::Top(top) => top.run(),
        Command::Detach(detach) => detach.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Send(send) => send.run(),
        Command::Receive(receive) => receive.run(),
        Command::Map(map) => map.run(),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "replicator", &mut script);
            io::stdout().write_all(&script).map(|()| ExitCode::SUCCESS).map_err(Into::into)
        }
        Command::Man { folder } => man(&folder),
    };
    result.unwrap_or_else(|error| {
        if is_closed_pipe(&error) {
            return ExitCode::SUCCESS;
        }
        eprintln!("error: {}", describe(&error));
        ExitCode::FAILURE
    })
}

/// Whether it only says that whoever reads what is printed has seen enough.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let kind = |cause: &(dyn Error + 'static)| Some(cause.downcast_ref::<io::Error>()?.kind());
    error.chain().any(|cause| kind(cause) == Some(io::ErrorKind::BrokenPipe))
}

/// An error and its causes, each once: many messages hold their cause already.
fn describe(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.contains(&cause) {
        _ if text.is_empty() => cause,
        true => text,
        false => format!("{text}: {cause}"),
    })
}

fn man(folder: &std::path::Path) -> anyhow::Result<ExitCode> {
    use anyhow::Context as _;
    std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), folder))
        .with_context(|| format!("cannot write manual pages to {}", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_cause_is_told_once() {
        let error = anyhow::anyhow!("no such file").context("cannot read a.yaml: no such file");
        assert_eq!(describe(&error), "cannot read a.yaml: no such file");
        assert_eq!(describe(&error.context("not started")), "not started: cannot read a.yaml: no such file");
    }
}
