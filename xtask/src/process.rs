//! Running other programs: as they are, quietly to ask them something, or as root.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};

/// The root of the workspace.
pub(crate) fn workspace() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// `program`, found also where only root's `PATH` leads: `ip` and `ethtool` live there on Debian.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    let mut command = Command::new(program);
    command.env("PATH", path);
    command
}

/// The cargo that runs this command, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut cargo = command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// Runs `command` with its output on the terminal; an exit status other than 0 is an error that names it.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    check(command, status)
}

/// What `command` prints on standard output; an exit status other than 0 is an error that names it.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let child = command.stdout(Stdio::piped()).spawn();
    let output = child
        .and_then(Child::wait_with_output)
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    check(command, output.status)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn check(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// What `command` prints, on both streams; nothing where it does not exist or fails.
pub(crate) fn ask(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// How this process gets things done that only root may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privilege {
    Root,
    Sudo,
    None,
}

impl Privilege {
    pub(crate) fn of_this_process() -> Self {
        // The owner of /proc/self is the effective user.
        if fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
            Self::Root
        } else if ask(command("sudo").arg("-V")).is_some() {
            Self::Sudo
        } else {
            Self::None
        }
    }
}

/// `program` as root, with `variables` in its environment.
///
/// # Errors
/// This process is not root's and there is no sudo.
pub(crate) fn as_root(program: impl AsRef<OsStr>, variables: &[(&str, &OsStr)]) -> Result<Command> {
    match Privilege::of_this_process() {
        Privilege::Root => {
            let mut command = command(program);
            command.envs(variables.iter().copied());
            Ok(command)
        }
        Privilege::Sudo => {
            let mut command = command("sudo");
            command.args(sudo_arguments(variables)).arg(program);
            Ok(command)
        }
        Privilege::None => {
            bail!("`{}` needs root: run this as root or install sudo", program.as_ref().display())
        }
    }
}

/// What stands between `sudo` and the program. Sudo clears the environment, so `env` sets it anew.
pub(crate) fn sudo_arguments(variables: &[(&str, &OsStr)]) -> Vec<OsString> {
    let assign = |(name, value): &(&str, &OsStr)| {
        let mut assignment = OsString::from(format!("{name}="));
        assignment.push(value);
        assignment
    };
    [OsString::from("env")].into_iter().chain(variables.iter().map(assign)).collect()
}

/// `command` as one would type it.
fn line(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let words = [program.file_name().unwrap_or(program.as_os_str())].into_iter().chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}
