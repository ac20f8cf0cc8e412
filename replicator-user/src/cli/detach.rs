//! `replicator detach`.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use crate::{
    api, config,
    daemon::{lock::Lock, status},
    datapath::{DatapathError, Pins},
    host::{Netlink, origin},
};
use anyhow::bail;
use clap::Args;

use super::{Instance, status::is_daemon};

/// Take the datapath down: programs, maps, links and the origin veth
///
/// This is the only thing that does. End the daemon first: it would put back what it looks after.
#[derive(Args)]
pub(super) struct Detach {
    #[command(flatten)]
    instance: Instance,
    /// Take `pin-path` from this configuration, and what else to look for
    #[arg(long, value_name = "FILE", conflicts_with = "pin_path")]
    config: Option<PathBuf>,
}

impl Detach {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let (pin_path, configured) = match &self.config {
            Some(file) => {
                let config = config::load(file)?;
                (config.pin_path, config.origin.map(|origin| origin.interface.as_str().to_owned()))
            }
            None => (self.instance.pin_path, None),
        };
        let _lock = Lock::take(&pin_path)?;
        let status_path = status::path(&pin_path);
        // A damaged file must not keep the datapath up.
        let status = status::read(&status_path).ok().flatten();
        if let Some(status) = status.as_ref().filter(|status| is_daemon(status.pid)) {
            // Its lock lies with its pins, which are not seen from another mount namespace (`ip netns exec` makes one).
            bail!("its daemon runs (process {}): end that first, then detach where it ran", status.pid);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let devices = match Pins::new(&pin_path).remove_all() {
                Err(DatapathError::NotLoaded(_)) => Vec::new(),
                other => other?,
            };
            let origin = status.as_ref().and_then(|status| status.origin.clone()).or(configured);
            let origin_removed = match origin {
                Some(name) => origin::remove(&Netlink::open()?, &name).await?,
                None => false,
            };
            if let Some(socket) = status.as_ref().and_then(|status| status.api_socket.as_deref()) {
                api::remove_left(socket)?;
            }
            status::remove(&status_path)?;
            let names = devices.iter().map(|device| {
                let known = status.as_ref().and_then(|status| {
                    status.interfaces.iter().find(|interface| interface.ifindex == *device)
                });
                known.map_or_else(|| format!("interface {device}"), |interface| interface.name.clone())
            });
            let names: Vec<_> = names.collect();
            let done = match (names.is_empty(), origin_removed) {
                (true, false) => "nothing was attached".into(),
                (true, true) => "removed the origin veth".into(),
                (false, _) => format!("detached from {}", names.join(", ")),
            };
            writeln!(io::stdout(), "{done}")?;
            Ok(ExitCode::SUCCESS)
        })
    }
}
