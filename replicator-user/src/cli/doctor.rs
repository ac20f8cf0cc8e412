//! `replicator doctor`: what this kernel and these interfaces can do.

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use serde::Serialize;

use crate::host::{
    Channels, Netlink,
    kernel::Kernel,
    needs::{self, Check, State, presence},
    preflight::{self, Facts, Mode, Problem, Role, single_buffer_mtu},
};

/// Say what this kernel and these interfaces can do
///
/// Ends with status 0 where a replicator can run, and with 1 where it cannot.
#[derive(Args)]
pub(super) struct Doctor {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let interfaces = runtime.block_on(async { preflight::examine_all(&Netlink::open()?).await })?;
        let report = Report::new(Kernel::read(), interfaces);
        let mut stdout = io::stdout().lock();
        if self.json {
            writeln!(stdout, "{}", serde_json::to_string_pretty(&report)?)?;
        } else {
            write!(stdout, "{report}")?;
        }
        Ok(if report.able { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether a replicator can run here.
    pub able: bool,
    /// The kernel.
    pub kernel: Kernel,
    /// What a replicator needs, and whether it is there.
    pub checks: Vec<Check>,
    /// Ethernet interfaces.
    pub interfaces: Vec<Interface>,
}

/// An interface, and what stands in the way of using it in native mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// What is known of it.
    #[serde(flatten)]
    pub facts: Facts,
    /// Largest MTU whose frames come in one buffer.
    pub single_buffer_mtu: u32,
    /// What stands in the way, whoever holds its hook now.
    pub problems: Vec<Problem>,
}

impl Report {
    /// Judges what was found.
    pub fn new(kernel: Kernel, interfaces: Vec<Facts>) -> Self {
        let interfaces: Vec<_> = interfaces
            .into_iter()
            .filter(|facts| facts.link.mac.is_some())
            .map(|facts| {
                let free = Facts { holder: None, ..facts.clone() };
                let problems =
                    preflight::verdict(&facts.link.name, Some(&free), Mode::Native, Role::Both, &[]);
                let single_buffer_mtu = single_buffer_mtu(facts.driver.as_deref());
                Interface { facts, single_buffer_mtu, problems }
            })
            .collect();
        let mut checks = needs::of(&kernel);
        checks.extend(interface_checks(&interfaces));
        let able = !checks.iter().any(|check| check.needed && check.state == State::Missing);
        Self { able, kernel, checks, interfaces }
    }
}

fn interface_checks(interfaces: &[Interface]) -> [Check; 2] {
    let native = |interface: &Interface| {
        let Facts { link, .. } = &interface.facts;
        link.features.map(|features| features.basic && features.redirect)
    };
    let natives: Vec<_> = interfaces.iter().filter(|interface| native(interface) == Some(true)).collect();
    let state = match interfaces.iter().any(|interface| native(interface).is_none()) {
        _ if !natives.is_empty() => State::Present,
        true => State::Unknown,
        false => State::Missing,
    };
    let detail = match state {
        State::Present => {
            let names: Vec<_> = natives.iter().map(|interface| interface.facts.link.name.as_str()).collect();
            names.join(", ")
        }
        State::Unknown => "this kernel does not tell".to_owned(),
        State::Missing => "no interface has it; `mode: generic` works, slowly".to_owned(),
    };
    let any = Check {
        name: "an Ethernet interface",
        state: presence(!interfaces.is_empty()),
        needed: true,
        detail: format!("{} in this network namespace", interfaces.len()),
    };
    [any, Check { name: "native XDP", state, needed: false, detail }]
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}", self.kernel.release)?;
        let rows = self.checks.iter().map(|check| {
            let mark = match (check.state, check.needed) {
                (State::Present, _) => "ok",
                (State::Unknown, _) => "unknown",
                (State::Missing, true) => "MISSING",
                (State::Missing, false) => "absent",
            };
            [mark.to_owned(), check.name.to_owned(), check.detail.clone()]
        });
        table(f, rows.collect())?;
        writeln!(f)?;
        let heading =
            ["INTERFACE", "DRIVER", "STATE", "MTU", "XDP MTU", "NATIVE XDP", "NDO-XMIT", "QUEUES", "HOOK"];
        let mut rows = vec![heading.map(str::to_owned)];
        rows.extend(self.interfaces.iter().map(Interface::row));
        table(f, rows)?;
        writeln!(f)?;
        let problems = || self.interfaces.iter().flat_map(|interface| &interface.problems);
        for problem in problems() {
            writeln!(f, "{problem}.")?;
        }
        if problems().next().is_some() {
            writeln!(f)?;
        }
        writeln!(f, "A replicator {} here.", if self.able { "can run" } else { "cannot run" })
    }
}

impl Interface {
    fn row(&self) -> [String; 9] {
        let Facts { link, driver, channels, holder, .. } = &self.facts;
        let known = |told: Option<bool>| match told {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        };
        let native = link.features.map(|features| features.basic && features.redirect);
        let transmit =
            match (native, link.features) {
                (Some(true), Some(features)) if !features.ndo_xmit && link.xdp.is_none() => {
                    if link.is_veth() { "with its peer" } else { "with a program" }
                }
                (_, features) => known(features.map(|features| features.ndo_xmit)),
            };
        let state = match (link.up, link.carrier) {
            (true, true) => "up",
            (true, false) => "no carrier",
            (false, _) => "down",
        };
        let hook = holder.as_ref().map_or("free".to_owned(), |holder| {
            let name = holder.name.as_deref().unwrap_or("unnamed");
            format!("{name} (id {}, {})", holder.program_id, holder.mode)
        });
        [
            link.name.clone(),
            driver.clone().unwrap_or_else(|| "-".to_owned()),
            state.to_owned(),
            link.mtu.to_string(),
            self.single_buffer_mtu.to_string(),
            known(native).to_owned(),
            transmit.to_owned(),
            channels.as_ref().map_or("-".to_owned(), |channels| Channels::receiving(channels).to_string()),
            hook,
        ]
    }
}

/// Writes rows in columns.
fn table<const COLUMNS: usize>(f: &mut fmt::Formatter<'_>, rows: Vec<[String; COLUMNS]>) -> fmt::Result {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..COLUMNS).map(width).collect();
    for row in &rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        writeln!(f, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{
        XdpFeatures,
        link::{AttachedMode, Link},
        preflight::Holder,
    };

    fn kernel() -> Kernel {
        Kernel {
            release: "6.1.0-18-amd64".to_owned(),
            version: (6, 1),
            preempt_rt: false,
            jit: Some(true),
            btf: true,
            bpffs: true,
            bpf_loop: Some(true),
            frags: Some(true),
            capabilities: 1 << 12 | 1 << 38 | 1 << 39,
        }
    }

    fn nic() -> Facts {
        Facts {
            link: Link {
                mac: Some("02:00:00:00:00:01".parse().unwrap()),
                features: Some(XdpFeatures {
                    basic: true,
                    redirect: true,
                    rx_sg: true,
                    ..XdpFeatures::default()
                }),
                ..Link::example("eth0", 2)
            },
            driver: Some("virtio_net".to_owned()),
            channels: Some(Channels { max_rx: 0, max_tx: 0, max_combined: 4, rx: 0, tx: 0, combined: 2 }),
            rx_vlan_offload: false,
            gro: true,
            peer: None,
            holder: None,
        }
    }

    fn missing(kernel: Kernel) -> Vec<&'static str> {
        let report = Report::new(kernel, vec![nic()]);
        let missing = |check: &&Check| check.needed && check.state == State::Missing;
        let names: Vec<_> = report.checks.iter().filter(missing).map(|check| check.name).collect();
        assert_eq!(report.able, names.is_empty());
        names
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(missing(kernel()), [""; 0]);
        assert_eq!(missing(Kernel { preempt_rt: true, ..kernel() }), ["no PREEMPT_RT"]);
        assert_eq!(missing(Kernel { jit: Some(false), ..kernel() }), ["JIT compiler"]);
        assert_eq!(missing(Kernel { jit: None, btf: false, ..kernel() }), [""; 0]);
        assert_eq!(missing(Kernel { bpffs: false, ..kernel() }), ["BPF file system"]);
        let none = Kernel { capabilities: 0, bpf_loop: None, frags: None, ..kernel() };
        assert_eq!(missing(none), ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"]);
        let root = Kernel { capabilities: 1 << 12 | 1 << 21, bpffs: false, ..kernel() };
        assert_eq!(missing(root), [""; 0]);
    }

    #[test]
    fn an_old_kernel_lacks_what_came_later() {
        let old = Kernel { version: (5, 15), bpf_loop: Some(false), frags: Some(false), ..kernel() };
        assert_eq!(
            missing(old),
            ["bpf_loop", "frames in several buffers", "batched updates of maps in maps"]
        );
        // No privilege to try: the version tells.
        let unprivileged = Kernel { version: (5, 17), bpf_loop: None, frags: None, ..kernel() };
        assert_eq!(missing(unprivileged), ["frames in several buffers", "batched updates of maps in maps"]);
    }

    #[test]
    fn a_version_is_not_believed_where_newer_parts_were_found() {
        let patched = Kernel { version: (5, 14), ..kernel() };
        let report = Report::new(patched, vec![nic()]);
        assert!(report.able);
        let batches = report.checks.iter().find(|check| check.name.starts_with("batched")).unwrap();
        assert_eq!(batches.state, State::Unknown);
    }

    #[test]
    fn interfaces_that_are_not_ethernet_do_not_count() {
        let mut lo = nic();
        lo.link.mac = None;
        let report = Report::new(kernel(), vec![lo]);
        assert!(!report.able && report.interfaces.is_empty());
    }

    #[test]
    fn a_held_hook_is_shown_and_is_no_problem_of_the_machine() {
        let mut facts = nic();
        facts.holder = Some(Holder {
            mode: AttachedMode::Native,
            program_id: 42,
            name: Some("replicate".to_owned()),
            link_id: Some(3),
        });
        let report = Report::new(kernel(), vec![facts]);
        assert_eq!(report.interfaces[0].problems, []);
        assert!(report.to_string().contains("replicate (id 42, native)"));
    }

    #[test]
    fn the_report_is_a_table_with_a_conclusion() {
        let text = Report::new(kernel(), vec![nic()]).to_string();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "Linux 6.1.0-18-amd64");
        assert_eq!(
            lines[1],
            "ok      programs on devmap entries       Linux 5.8: each copy is rewritten by one"
        );
        assert!(lines[7].starts_with("absent  xdp-features over netlink        Linux 6.3: "), "{text}");
        assert!(
            text.contains(
                "\nINTERFACE  DRIVER      STATE  MTU   XDP MTU  NATIVE XDP  NDO-XMIT        QUEUES  HOOK\n\
                 eth0       virtio_net  up     1500  3506     yes         with a program  2       free\n"
            ),
            "{text}"
        );
        assert_eq!(*lines.last().unwrap(), "A replicator can run here.");
    }
}
