//! Runs the replicator on this machine's interfaces, and takes it off.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::artifact::{self, Profile};
use crate::process::as_root;
use crate::setup::Toolchain;

/// Builds the replicator and becomes `replicator run`.
///
/// # Errors
/// The configuration cannot be read, the build failed, or there is no way to become root.
pub(crate) fn load(toolchain: &Toolchain, config: &Path, args: &[String]) -> Result<()> {
    File::open(config).with_context(|| format!("cannot read the configuration {}", config.display()))?;
    become_replicator(toolchain, "run", Some(config), args)
}

/// Builds the replicator and becomes `replicator detach`.
///
/// # Errors
/// The build failed, or there is no way to become root.
pub(crate) fn unload(toolchain: &Toolchain, config: Option<&Path>, args: &[String]) -> Result<()> {
    become_replicator(toolchain, "detach", config, args)
}

fn become_replicator(
    toolchain: &Toolchain,
    subcommand: &str,
    config: Option<&Path>,
    args: &[String],
) -> Result<()> {
    let replicator = artifact::build(toolchain, Profile::Release)?;
    let config = config.iter().flat_map(|file| [OsStr::new("--config"), file.as_os_str()]);
    let error = as_root(&replicator, &[])?.arg(subcommand).args(config).args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", replicator.display()))
}
