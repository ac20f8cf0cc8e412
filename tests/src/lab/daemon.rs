//! The daemon in a host of the laboratory.

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use super::{host::Host, process::Process};

/// Where its configuration lies, in the host's own /run.
const CONFIG: &str = "/run/replicator-lab.yaml";

/// Where it says that it is ready.
const NOTIFY: &str = "/run/replicator-lab.notify";

/// Time it may take to load, attach and resolve its neighbors.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Time it may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a daemon that is not ready is looked at.
const POLL: Duration = Duration::from_millis(50);

/// The command `replicator` that the environment variable REPLICATOR_BIN names.
///
/// # Errors
/// Where it is not set or names no file.
pub fn binary() -> Result<PathBuf> {
    named("REPLICATOR_BIN")
}

/// One with another layout of the maps: REPLICATOR_OTHER_LAYOUT_BIN.
///
/// # Errors
/// As [`binary`].
pub fn other_layout_binary() -> Result<PathBuf> {
    named("REPLICATOR_OTHER_LAYOUT_BIN")
}

fn named(variable: &str) -> Result<PathBuf> {
    let path =
        env::var_os(variable).with_context(|| format!("{variable} must name a command `replicator`"))?;
    fs::canonicalize(&path).with_context(|| format!("{variable}={}", path.display()))
}

/// A running `replicator run`. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    host: Host,
    binary: PathBuf,
    process: Process,
}

impl Daemon {
    /// Starts it with this configuration and waits until it says that it is ready.
    ///
    /// # Errors
    /// Where it ends before or does not say so within 30 seconds; with what it printed.
    pub fn start(host: &Host, binary: &Path, config: &str) -> Result<Self> {
        Self::start_with(host, binary, config, [""; 0])
    }

    /// The same with more arguments.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with<S: AsRef<OsStr>>(
        host: &Host,
        binary: &Path,
        config: &str,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Self> {
        let binary = fs::canonicalize(binary).with_context(|| format!("no command {}", binary.display()))?;
        let notify = host.run(|| {
            fs::write(CONFIG, config).with_context(|| format!("cannot write {CONFIG}"))?;
            // A daemon that ran here before has left its socket.
            let _ = fs::remove_file(NOTIFY);
            UnixDatagram::bind(NOTIFY).with_context(|| format!("cannot bind {NOTIFY}"))
        })?;
        notify.set_read_timeout(Some(POLL))?;
        let mut command = Command::new(&binary);
        command.args(["run", "--config", CONFIG]).args(arguments).env("NOTIFY_SOCKET", NOTIFY);
        let mut process = host.spawn(command)?;

        let deadline = Instant::now() + READY_TIMEOUT;
        let mut message = [0; 4096];
        loop {
            if let Ok(count) = notify.recv(&mut message)
                && message[..count].split(|&byte| byte == b'\n').any(|line| line == b"READY=1")
            {
                return Ok(Self { host: host.clone(), binary, process });
            }
            let failure = match process.poll()? {
                Some(status) => format!("ended ({status}) before it was ready"),
                None if Instant::now() >= deadline => format!("is not ready after {READY_TIMEOUT:?}"),
                None => continue,
            };
            bail!(
                "`replicator run` on the host {} {failure}; it printed:\n{}with the configuration:\n{config}",
                host.name(),
                process.printed()
            );
        }
    }

    /// Runs another subcommand of `replicator` in the daemon's host and takes its standard output.
    ///
    /// # Errors
    /// Where it fails; with what it printed.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        let mut command = Command::new(&self.binary);
        command.args(arguments);
        self.host.output(command)
    }

    /// What `replicator stats --json` prints.
    ///
    /// # Errors
    /// Where it fails or prints no JSON.
    pub fn stats(&self) -> Result<Value> {
        let text = self.command(["stats", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("`replicator stats --json` printed\n{text}"))
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// What it printed so far.
    pub fn printed(&self) -> String {
        self.process.printed()
    }

    /// Ends it as an administrator does, with SIGTERM.
    ///
    /// # Errors
    /// Where it does not end within 10 seconds.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::TERM)?;
        self.process.wait(STOP_TIMEOUT)
    }
}
