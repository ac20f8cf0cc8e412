//! The eBPF object, and the command `replicator` with the object inside.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::process;
use crate::setup::{Compiler, Toolchain};

/// The environment variable by which the object's path reaches the build script of replicator-user, and the tests.
pub(crate) const OBJECT_VARIABLE: &str = "REPLICATOR_EBPF_OBJECT";

/// How the command `replicator` is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// Builds the object, and the command with it inside.
///
/// # Errors
/// Cargo failed, or named no executable.
pub(crate) fn build(toolchain: &Toolchain, profile: Profile) -> Result<PathBuf> {
    replicator(&object(toolchain, Layout::Own, Warnings::Show)?, Layout::Own, profile)
}

/// Which layout of the maps the programs and the command have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// The project's.
    Own,
    /// Another, which the tests upgrade to and from: the feature `other-layout`.
    Other,
}

/// What a compiler's warning does to a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Warnings {
    Show,
    Deny,
}

/// Builds the eBPF object.
///
/// # Errors
/// Cargo failed, or warned where that is denied.
pub(crate) fn object(toolchain: &Toolchain, layout: Layout, warnings: Warnings) -> Result<PathBuf> {
    let endian = if cfg!(target_endian = "little") { "el" } else { "eb" };
    // bpf_target_arch: aya-ebpf does not compile without it. The kernel's verifier takes loads of any alignment from
    // a packet on machines that do; told so, LLVM copies a header by words, and by bytes it overruns the stack.
    let flags = [
        format!("--cfg=bpf_target_arch=\"{ARCH}\""),
        format!("-Clinker={}", toolchain.linker.display()),
        "-Clink-arg=--btf".to_owned(),
        "-Ctarget-cpu=v3".to_owned(),
        "-Clink-arg=--cpu-features=+alu32,+allows-misaligned-mem-access".to_owned(),
    ];
    let mut cargo = toolchain.cargo();
    cargo
        .args([
            "build",
            "-Zbuild-std=core",
            "--package=replicator-ebpf",
            "--bin=replicator-ebpf",
            "--profile=bpf",
        ])
        .arg(format!("--target=bpf{endian}-unknown-none"))
        // Other flags and another compiler than the host's: in one folder each build would undo the other's.
        .arg("--target-dir")
        .arg(target_directory()?.join(match layout {
            Layout::Own => "bpf",
            Layout::Other => "bpf-other-layout",
        }))
        .args((layout == Layout::Other).then_some("--features=other-layout"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    if warnings == Warnings::Deny {
        // Unlike `-Dwarnings` this leaves the flags, and so what is compiled, as in any other build.
        cargo.env("CARGO_BUILD_WARNINGS", "deny");
        if toolchain.compiler == Compiler::System {
            cargo.arg("-Zwarnings");
        }
    }
    executable(&mut cargo, "replicator-ebpf")
}

/// Builds the command `replicator` with `object` inside.
///
/// # Errors
/// Cargo failed.
pub(crate) fn replicator(object: &Path, layout: Layout, profile: Profile) -> Result<PathBuf> {
    let mut cargo = process::cargo();
    cargo
        .args(["build", "--package=replicator-user", "--bin=replicator", "--features=embedded-object"])
        .args((layout == Layout::Other).then_some("--features=other-layout"))
        .args((profile == Profile::Release).then_some("--release"))
        .env(OBJECT_VARIABLE, object);
    let built = executable(&mut cargo, "replicator")?;
    // Any plain `cargo build` or `cargo test` puts one without the object in its place, and each layout the other.
    let folder = target_directory()?.join("replicator").join(match (layout, profile) {
        (Layout::Own, Profile::Dev) => "debug",
        (Layout::Own, Profile::Release) => "release",
        (Layout::Other, _) => "other-layout",
    });
    let kept = folder.join("replicator");
    // By a new name first: the one in place may be running.
    let new = folder.join("replicator.new");
    fs::create_dir_all(&folder)
        .and_then(|()| fs::copy(&built, &new))
        .and_then(|_| fs::rename(&new, &kept))
        .with_context(|| format!("cannot put replicator into {}", folder.display()))?;
    Ok(kept)
}

/// Runs `cargo build`; the path of the executable of the binary target `name`, as cargo reports it.
fn executable(cargo: &mut Command, name: &str) -> Result<PathBuf> {
    let messages = process::output(cargo.arg("--message-format=json-render-diagnostics"))?;
    let path =
        messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).find_map(|message| {
            (message["target"]["name"] == name).then(|| message["executable"].as_str().map(PathBuf::from))?
        });
    path.with_context(|| format!("cargo built {name} and did not say where"))
}

/// Cargo's target directory for the workspace.
fn target_directory() -> Result<PathBuf> {
    let text = process::output(process::cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_str(&text).context("cannot read what `cargo metadata` says")?;
    metadata["target_directory"]
        .as_str()
        .map(PathBuf::from)
        .context("`cargo metadata` names no target directory")
}
