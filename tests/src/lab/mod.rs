//! The laboratory: hosts in network namespaces of this machine, links between them, a daemon in one of them.
//!
//! Nothing has a name outside this process. Namespaces are held by file descriptors, pins and files lie in mounts of the
//! host's own mount namespace, children are killed with their parent. So everything is gone when the process is,
//! however it ended.

mod daemon;
mod host;
mod link;
mod process;

pub use daemon::{Daemon, binary, other_layout_binary};
pub use host::{Host, tool};
pub use link::{End, Link};
pub use process::{Finished, Process};

use std::thread;

use anyhow::{Context, Result, bail};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// Exit status of a process that a signal of its user ended.
const INTERRUPTED: i32 = 130;

/// A place to make hosts in.
#[derive(Debug)]
pub struct Lab(());

impl Lab {
    /// Opens the laboratory.
    ///
    /// # Errors
    /// Where this process is not root.
    pub fn new() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("network namespaces and XDP programs need root: run this with sudo");
        }
        Ok(Self(()))
    }

    /// A new host with nothing but its loopback device.
    ///
    /// # Errors
    /// Where the kernel refuses the namespaces or a mount in them.
    pub fn host(&self, name: &str) -> Result<Host> {
        Host::new(name).with_context(|| format!("cannot make the host {name}"))
    }

    /// From now on SIGINT, SIGTERM and SIGHUP end this process with status 130, after every child has ended.
    ///
    /// # Errors
    /// Where the handlers cannot be installed.
    pub fn exit_on_signals(&self) -> Result<()> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot handle signals")?;
        thread::Builder::new().name("signals".to_owned()).spawn(move || {
            if signals.forever().next().is_some() {
                let _children = process::end_all();
                std::process::exit(INTERRUPTED);
            }
        })?;
        Ok(())
    }
}
