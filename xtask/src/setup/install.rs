//! Does what `plan` decided.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::process::{self, Privilege, as_root, ask, command};
use crate::setup::facts::{Facts, LINKER_VERSION, linker_root};
use crate::setup::plan::{self, Means, Step};

/// What this machine can install with; brings apt's lists up to date to know what it offers.
pub(super) fn means(facts: &Facts) -> Means {
    let apt =
        ask(command("apt-get").arg("--version")).is_some() && Privilege::of_this_process() != Privilege::None;
    if apt && let Err(error) = apt_get(&["update", "-q"]) {
        eprintln!("apt's lists may be out of date: {error:#}");
    }
    // Debian's rustc-web would push out Debian's own rustc and rustup: not where those are in use.
    let mut simulation = command("apt-get");
    simulation.args(["install", "--simulate", "--no-remove"]).args(plan::toolchain_packages(facts));
    Means { apt, toolchain_packages: apt && ask(&mut simulation).is_some() }
}

/// Carries out one step, with its output on the terminal.
pub(super) fn perform(step: &Step) -> Result<()> {
    match step {
        Step::Packages(names) => {
            // Another apt may be at work, as on a machine just started: wait for it.
            let options =
                ["-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0", "-q", "-y", "--no-remove"];
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            apt_get(&[&["install", "--no-install-recommends"], &options[..], &names].concat())
        }
        Step::CompileLinker { llvm } => compile_linker(*llvm).context(plan::BY_HAND),
    }
}

fn compile_linker(llvm: u32) -> Result<()> {
    let prefix = format!("/usr/lib/llvm-{llvm}");
    run(process::cargo()
        .args(["install", "--locked", "--force", "--no-default-features"])
        .arg(format!("--features=llvm-{llvm}"))
        .arg("--root")
        .arg(linker_root())
        .arg(format!("bpf-linker@{LINKER_VERSION}"))
        .env("CARGO_ENCODED_RUSTFLAGS", format!("-Lnative={prefix}/lib"))
        .env("LLVM_PREFIX", prefix))
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let quiet = [("DEBIAN_FRONTEND", OsStr::new("noninteractive"))];
    run(as_root("apt-get", &quiet)?.args(arguments))
}

/// Set-up talks on standard error: standard output is for the results of commands.
fn run(command: &mut Command) -> Result<()> {
    process::run(command.stdin(Stdio::null()).stdout(io::stderr()))
}
