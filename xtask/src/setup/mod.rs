//! Brings what building, running and testing need. What the machine has is asked of the tools themselves
//! (`facts`), what to do about the rest is decided without touching anything (`plan`) and done in `install`.

mod facts;
mod install;
mod plan;

use std::fmt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::process;
use crate::setup::facts::Facts;

/// What a command is about to do. Each needs what the ones before it need, and more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Compile the programs.
    Build,
    /// Run them on interfaces.
    Run,
    /// Test all of it.
    Test,
}

/// A Rust compiler that may use unstable features.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// Rustup's nightly.
    Nightly,
    /// The distribution's.
    System,
}

impl Compiler {
    const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

    /// One of rustup's nightly tools.
    fn nightly(tool: &str) -> Command {
        let mut command = process::command("rustup");
        // Asking whether nightly is there must not install it.
        command.args(["run", "nightly", tool]).env("RUSTUP_AUTO_INSTALL", "0").env_remove("RUSTC");
        command
    }

    fn rustc(self) -> Command {
        match self {
            Self::Nightly => Self::nightly("rustc"),
            Self::System => process::command(Self::SYSTEM_RUSTC),
        }
    }
}

/// What compiles and links the eBPF programs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    /// `bpf-linker`, as a path or as a name found in `PATH`.
    pub(crate) linker: PathBuf,
}

impl Toolchain {
    /// The cargo that drives this toolchain, in the workspace, with unstable features allowed.
    pub(crate) fn cargo(&self) -> Command {
        match self.compiler {
            Compiler::Nightly => {
                let mut cargo = Compiler::nightly("cargo");
                cargo.current_dir(process::workspace());
                cargo
            }
            Compiler::System => {
                let mut cargo = process::cargo();
                cargo.env("RUSTC", Compiler::SYSTEM_RUSTC).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
        }
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compiler = match self.compiler {
            Compiler::Nightly => "rustup's nightly",
            Compiler::System => Compiler::SYSTEM_RUSTC,
        };
        write!(f, "{compiler} and {}", self.linker.display())
    }
}

/// Makes sure that all that `purpose` needs is on the machine, installing what is missing if `may_install`.
///
/// # Errors
/// Something is missing and must not, cannot or could not be installed: one sentence says what and how to get it.
pub(crate) fn ensure(purpose: Purpose, may_install: bool) -> Result<Toolchain> {
    // A second round only where the compiler just installed wants another LLVM than expected.
    for _ in 0..2 {
        let facts = Facts::gather(purpose);
        let missing = match plan::check(&facts) {
            Ok(toolchain) => return Ok(toolchain),
            Err(missing) => missing,
        };
        if !may_install {
            bail!(
                "{missing}: run `cargo xtask setup`, which installs what it can and says how to get the rest"
            );
        }
        eprintln!("{missing}");
        let steps = plan::steps(&facts, install::means(&facts))?;
        eprintln!("installing:");
        steps.iter().for_each(|step| eprintln!("  - {step}"));
        steps.iter().try_for_each(install::perform)?;
    }
    match plan::check(&Facts::gather(purpose)) {
        Ok(toolchain) => Ok(toolchain),
        Err(missing) => bail!("{missing}, though it was installed just now: {}", plan::BY_HAND),
    }
}
