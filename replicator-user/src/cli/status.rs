//! `replicator status`.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    daemon::status::{self, NeighborResolution, Status},
    datapath::{DatapathError, Pins},
};
use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::Instance;

/// Show whether a replicator runs here, where it is attached, and which neighbors it reaches
///
/// Exit status 0 where it is attached and its daemon runs, else 1.
#[derive(Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    instance: Instance,
    /// For scripts
    #[arg(long)]
    json: bool,
}

/// What there is to say.
#[derive(Serialize)]
struct Report {
    /// Whether programs are attached.
    attached: bool,
    /// Whether the daemon that wrote `daemon` is alive.
    running: bool,
    /// What the daemon last said.
    daemon: Option<Status>,
}

impl StatusArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let path = status::path(&self.instance.pin_path);
        let daemon = status::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let attached = match Pins::new(&self.instance.pin_path).devices() {
            Ok(devices) => !devices.is_empty(),
            Err(DatapathError::NotLoaded(_)) => false,
            Err(error) => return Err(error.into()),
        };
        let running = daemon.as_ref().is_some_and(|daemon| is_daemon(daemon.pid));
        let mut out = io::stdout();
        let report = Report { attached, running, daemon };
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        } else {
            write!(out, "{}", report.text())?;
        }
        Ok(if attached && running { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Whether a process is a replicator that runs: its number may be another's by now, or nobody may have waited for its
/// end.
pub(super) fn is_daemon(pid: u32) -> bool {
    // proc_pid_stat(5): number, name in parentheses, state; Z and X are processes that have ended.
    let stat = std::fs::read_to_string(process(pid).join("stat")).unwrap_or_default();
    stat.split_once(" (replicator) ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

fn process(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// Whether a process sees other mounts than this one, and so other pins.
fn is_elsewhere(pid: u32) -> bool {
    let mounts = |process: PathBuf| std::fs::read_link(process.join("ns/mnt")).ok();
    mounts(process(pid)) != mounts(PathBuf::from("/proc/self"))
}

impl Report {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        match (self.attached, self.running) {
            (true, true) => line("attached, daemon running".into()),
            (true, false) => line(
                "attached, but the daemon is not running: frames are replicated, changes of the network are not seen; \
                 start it with `replicator run`"
                    .into(),
            ),
            (false, true) => line(match self.daemon.as_ref().map(|daemon| daemon.pid) {
                Some(pid) if is_elsewhere(pid) => format!(
                    "the daemon runs in another mount namespace (`ip netns exec` and containers make one), and its pins are \
                     not seen from here; look from there: `nsenter -t {pid} -m -n --wdns=. replicator status`"
                ),
                _ => "the daemon runs and has not attached yet".into(),
            }),
            (false, false) => line("not attached; start it with `replicator run`".into()),
        }
        let Some(daemon) = &self.daemon else { return text };
        line(format!("version {}, process {}", daemon.version, daemon.pid));
        if let Some(origin) = &daemon.origin {
            line(format!("origin: {origin}"));
        }
        for interface in &daemon.interfaces {
            line(format!("interface {}: {} mode", interface.name, interface.mode));
        }
        for neighbor in &daemon.neighbors {
            let state = match &neighbor.resolution {
                NeighborResolution::Ready { mac, .. } => format!("resolved, {mac}"),
                NeighborResolution::Pending { reason } => format!("NOT RESOLVED: {reason}"),
            };
            line(format!("neighbor {}: {state}", neighbor.name));
        }
        for table in &daemon.tables {
            let ids: Vec<_> = table.bift_ids.iter().map(|id| format!("{id:#07x}")).collect();
            line(format!(
                "table {}: BIFT-id {}, {} bits, members: {}, variants: {}",
                table.name,
                ids.join(" and "),
                table.bit_string_length,
                table.members,
                table.variants
            ));
        }
        text
    }
}
