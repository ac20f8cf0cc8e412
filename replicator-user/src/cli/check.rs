//! `replicator check FILE`: is the configuration valid, and what would it do.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use replicator_common::{
    neighbor::{Encapsulation, VlanTag},
    outcome::Outcome,
};
use serde::Serialize;
use serde_json::json;

use crate::{
    bift::{Destination, Rule},
    config::{
        self, Config, ConfigError, Devices, Mode, Neighbor, NextHop, Source, Table, TableName, ThisNode,
        Usage, fanout_cost,
    },
};

/// Arguments of `replicator check`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Configuration file.
    pub file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Prints the report to `out`, or what is wrong to `err` (with `--json`, to `out`). The exit status is 1 where the
/// configuration is not valid.
///
/// # Errors
/// Where printing fails.
pub fn run(args: &Args, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<ExitCode> {
    let file = args.file.display().to_string();
    match config::load(&args.file) {
        Ok(config) if args.json => {
            writeln!(out, "{:#}", json!({ "file": file, "valid": true, "would": report(&config) }))?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(config) => {
            write!(out, "{file} is valid.\n\n{}", report(&config))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if args.json => {
            let faults = match &error {
                ConfigError::Invalid(faults) => &faults.faults[..],
                ConfigError::Read { .. } => &[],
            };
            let answer =
                json!({ "file": file, "valid": false, "error": error.to_string(), "faults": faults });
            writeln!(out, "{answer:#}")?;
            Ok(ExitCode::FAILURE)
        }
        Err(error) => {
            writeln!(err, "{error}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// What a configuration would do.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    mode: &'static str,
    udp_port: u16,
    pin_path: PathBuf,
    api: ApiReport,
    /// `None` where the environment tells.
    state_path: Option<PathBuf>,
    /// Seconds.
    epoch_grace: u64,
    trace_drops: bool,
    /// Without the origin's.
    interfaces: Vec<String>,
    origin: Option<OriginReport>,
    this_node: Vec<String>,
    /// Without the neighbors.
    sources: Vec<String>,
    neighbors: Vec<NeighborReport>,
    tables: Vec<TableReport>,
    usage: Usage,
    notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct ApiReport {
    socket: PathBuf,
    tcp: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct OriginReport {
    interface: String,
    addresses: [String; 2],
    peer: String,
    peer_addresses: [String; 2],
    queues: u16,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct NeighborReport {
    id: u32,
    name: String,
    encapsulation: &'static str,
    address: Option<String>,
    udp_port: Option<u16>,
    hop_limit: Option<u8>,
    /// `None` where the route tells.
    interface: Option<String>,
    /// `None` where the kernel's neighbor table tells.
    mac: Option<String>,
    vlans: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct TableReport {
    name: String,
    bift_ids: Vec<String>,
    bit_string_length: usize,
    bsl_code: u8,
    rows: usize,
    neighbors: usize,
    local: bool,
    variants: usize,
    /// `None` where it depends on routes whether the members' devices are too many.
    fan_out: Option<FanOutReport>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct FanOutReport {
    rule: &'static str,
    devices: Vec<DeviceReport>,
    maps: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct DeviceReport {
    /// `None` where routes tell.
    interface: Option<String>,
    neighbors: u32,
}

/// What this configuration would do, without asking the system.
pub fn report(config: &Config) -> Report {
    let devices = Devices::new(config);
    let ThisNode { name, ipv4, ipv6 } = &config.this_node;
    Report {
        mode: match config.mode {
            Mode::Native => "native",
            Mode::Generic => "generic",
        },
        udp_port: config.udp_port,
        pin_path: config.pin_path.clone(),
        trace_drops: config.trace_drops,
        interfaces: config.interfaces.iter().map(ToString::to_string).collect(),
        origin: config.origin.as_ref().map(|origin| OriginReport {
            interface: origin.interface.to_string(),
            addresses: [
                format!("{}/{}", origin.ipv4.stack, origin.ipv4.prefix_length),
                format!("{}/{}", origin.ipv6.stack, origin.ipv6.prefix_length),
            ],
            peer: origin.peer.to_string(),
            peer_addresses: [origin.ipv4.peer.to_string(), origin.ipv6.peer.to_string()],
            queues: origin.queues,
        }),
        api: ApiReport {
            socket: config.api.socket.clone(),
            tcp: config.api.tcp.as_ref().map(|tcp| tcp.listen),
        },
        state_path: config.state_path.clone(),
        epoch_grace: config.epoch_grace.as_secs(),
        this_node: name
            .iter()
            .cloned()
            .chain([ipv4.map(IpAddr::V4), ipv6.map(IpAddr::V6)].iter().flatten().map(ToString::to_string))
            .collect(),
        sources: config.sources.iter().map(ToString::to_string).collect(),
        neighbors: config
            .neighbor_ids()
            .map(|(id, neighbor)| NeighborReport::new(id.get(), neighbor))
            .collect(),
        tables: config.tables.iter().map(|table| TableReport::new(table, &devices)).collect(),
        usage: Usage::of(config),
        notes: notes(config, &devices),
    }
}

impl NeighborReport {
    fn new(id: u32, neighbor: &Neighbor) -> Self {
        let (address, udp_port, hop_limit) = match &neighbor.hop {
            NextHop::Udp { address, udp_port, hop_limit, .. } => {
                (Some(address.to_string()), Some(*udp_port), Some(*hop_limit))
            }
            NextHop::Ethernet { .. } => (None, None, None),
        };
        let vlan = |tag: &VlanTag| {
            let protocol = if tag.protocol == [0x81, 0x00] { "802.1Q" } else { "802.1ad" };
            format!("{protocol} {}", u16::from_be_bytes(tag.id))
        };
        Self {
            id,
            name: neighbor.name.clone(),
            encapsulation: match neighbor.encapsulation() {
                Encapsulation::Ipv4 => "UDP over IPv4",
                Encapsulation::Ipv6 => "UDP over IPv6",
                Encapsulation::Ethernet => "Ethernet",
            },
            address,
            udp_port,
            hop_limit,
            interface: neighbor.interface().map(ToString::to_string),
            mac: neighbor.mac().map(|mac| mac.to_string()),
            vlans: neighbor.tags.iter().map(vlan).collect(),
        }
    }
}

impl TableReport {
    fn new(table: &Table, devices: &Devices<'_>) -> Self {
        let birt = &table.birt;
        let device = |&(device, neighbors): &(u32, u32)| DeviceReport {
            interface: devices.name(device).map(ToString::to_string),
            neighbors,
        };
        Self {
            name: table.name.to_string(),
            bift_ids: table.bift_ids.iter().map(ToString::to_string).collect(),
            bit_string_length: birt.length().bits(),
            bsl_code: birt.bsl_code(),
            rows: birt.replicas().iter().filter(|destinations| !destinations.is_empty()).count(),
            neighbors: birt.neighbors().len(),
            local: birt.has_local(),
            variants: birt.variants(),
            fan_out: devices.layout(birt).ok().map(|layout| FanOutReport {
                rule: match layout.group.rule {
                    Rule::Exact => "exact",
                    Rule::Rounded => "rounded",
                    Rule::Whole => "whole",
                },
                devices: layout.group.devices.iter().map(device).collect(),
                maps: fanout_cost(&layout.group).0,
            }),
        }
    }
}

/// What is allowed and may still not be meant.
fn notes(config: &Config, devices: &Devices<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    let everyone = |source: &&Source| matches!(source, Source::Prefix(prefix) if prefix.prefix_len() == 0);
    notes.extend(config.sources.iter().filter(everyone).map(|source| {
        format!(
            "sources: {source} lets everyone multiply frames through this host; name the senders' prefixes"
        )
    }));
    if config.tables.is_empty() {
        let label = Outcome::UnknownBift.label();
        notes.push(format!("no tables: BIER frames are dropped as {label} until tables are installed"));
    }
    let used: BTreeSet<_> = config.tables.iter().flat_map(|table| table.birt.neighbors()).collect();
    let idle: Vec<_> = config
        .neighbor_ids()
        .filter(|(id, _)| !used.contains(id))
        .map(|(_, neighbor)| neighbor.name.as_str())
        .collect();
    if !idle.is_empty() {
        notes.push(format!("neighbors in no table (frames from them are taken): {}", idle.join(", ")));
    }
    if config.tables.iter().any(|table| !devices.are_named(&table.birt)) {
        notes.push(
            "neighbors without `interface`: fan-out is counted as if all their routes led to one device"
                .to_owned(),
        );
    }
    // Tables that share their rows share their notes.
    let mut alike = HashMap::<_, usize>::new();
    config.tables.iter().for_each(|table| *alike.entry(Arc::as_ptr(&table.birt)).or_default() += 1);
    for table in &config.tables {
        let Some(count) = alike.remove(&Arc::as_ptr(&table.birt)) else { continue };
        let others = if count > 1 { format!(" and {} with the same rows", count - 1) } else { String::new() };
        notes.extend(table_notes(config, table).iter().map(|note| format!("{}{others}: {note}", table.name)));
    }
    notes
}

fn table_notes(config: &Config, table: &Table) -> Vec<String> {
    let mut notes = Vec::new();
    let members = table.birt.neighbors().iter().filter_map(|&id| config.neighbor(id));
    let mut kinds = members.map(|neighbor| (neighbor.encapsulation(), neighbor.tags.len()));
    if let Some(first) = kinds.next()
        && kinds.any(|kind| kind != first)
    {
        notes.push(
            "neighbors of several encapsulations or numbers of VLAN tags; a frame reaches those like itself alone"
                .to_owned(),
        );
    }
    let replicas = table.birt.replicas();
    let (most, variants) = (replicas.iter().map(Vec::len).max().unwrap_or(0), table.birt.variants());
    if most > variants {
        notes.push(format!("of {most} replicas, {variants} variants use {variants}"));
    }
    if let TableName::Experts { experts, .. } = table.name {
        let nowhere = ranges(&replicas[..usize::from(experts)]);
        if !nowhere.is_empty() {
            let label = Outcome::BitWithoutRow.label();
            notes.push(format!("experts on no node, counted as {label}: {}", nowhere.join(", ")));
        }
    }
    notes
}

/// The numbers of empty rows, as ranges.
fn ranges(rows: &[Vec<Destination>]) -> Vec<String> {
    let mut ranges = Vec::<(usize, usize)>::new();
    for (number, _) in rows.iter().enumerate().filter(|(_, row)| row.is_empty()) {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let text = |(first, last)| if first == last { format!("{first}") } else { format!("{first}-{last}") };
    ranges.into_iter().map(text).collect()
}

/// Writes rows in aligned columns, indented.
pub(super) fn columns(f: &mut fmt::Formatter<'_>, rows: &[Vec<String>]) -> fmt::Result {
    let mut widths = Vec::<usize>::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        row.iter().zip(&mut widths).for_each(|(cell, width)| *width = cell.chars().count().max(*width));
    }
    for row in rows {
        let cells: Vec<_> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        writeln!(f, "  {}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

fn listed<'t>(items: impl IntoIterator<Item = &'t String>) -> String {
    let items: Vec<_> = items.into_iter().map(String::as_str).collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

pub(super) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.origin.as_ref().map_or("none".to_owned(), |origin| {
            let (own, peer) = (origin.addresses.join(", "), origin.peer_addresses.join(", "));
            format!(
                "veth {} ({own}) to {} ({peer}), queues: {}",
                origin.interface, origin.peer, origin.queues
            )
        });
        let peer = self.origin.as_ref().map(|origin| &origin.peer);
        let sources: String = self.sources.iter().map(|source| format!(", {source}")).collect();
        let tcp = self.api.tcp.map(|listen| format!("https://{listen}"));
        let api: Vec<_> = [self.api.socket.display().to_string()].into_iter().chain(tcp).collect();
        let state =
            self.state_path.as_ref().map_or("STATE_DIRECTORY, else /var/lib/replicator".to_owned(), |path| {
                path.display().to_string()
            });
        columns(
            f,
            &[
                row(["attach to", &listed(self.interfaces.iter().chain(peer))]),
                row(["mode", self.mode]),
                row(["UDP port", &self.udp_port.to_string()]),
                row(["pins under", &self.pin_path.display().to_string()]),
                row(["API", &listed(&api)]),
                row(["state", &state]),
                row(["epoch grace", &format!("{} s", self.epoch_grace)]),
                row(["trace drops", if self.trace_drops { "yes" } else { "no" }]),
                row(["origin", &origin]),
                row(["this node", &listed(&self.this_node)]),
                row(["sources", &format!("the neighbors{sources}")]),
            ],
        )?;

        if !self.neighbors.is_empty() {
            writeln!(f, "\nNeighbors")?;
            let head = row(["id", "name", "encapsulation", "address", "interface", "MAC", "VLANs"]);
            let rows: Vec<_> =
                [head].into_iter().chain(self.neighbors.iter().map(NeighborReport::row)).collect();
            columns(f, &rows)?;
        }
        if !self.tables.is_empty() {
            writeln!(f, "\nTables")?;
            let head = row(["name", "BIFT-ids", "BSL", "rows", "members", "variants", "fan-out maps"]);
            let rows: Vec<_> = [head].into_iter().chain(self.tables.iter().map(TableReport::row)).collect();
            columns(f, &rows)?;
        }

        writeln!(f, "\nKernel maps (tables with the same devices and counts share fan-out maps)")?;
        let limits = self.usage.limits();
        let mut rows: Vec<_> =
            limits.iter().map(|(what, used, limit)| row([what, &format!("{used} of {limit}")])).collect();
        rows.push(row(["fan-out memory", &format!("{} KiB", self.usage.fanout_bytes.div_ceil(1024))]));
        columns(f, &rows)?;

        if !self.notes.is_empty() {
            writeln!(f, "\nNotes")?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "  {note}"))
    }
}

impl NeighborReport {
    fn row(&self) -> Vec<String> {
        let port = self.udp_port.map(|port| format!(" port {port}")).unwrap_or_default();
        row([
            &self.id.to_string(),
            &self.name,
            self.encapsulation,
            &format!("{}{port}", self.address.as_deref().unwrap_or("none")),
            self.interface.as_deref().unwrap_or("by route"),
            self.mac.as_deref().unwrap_or("by ARP or ND"),
            &listed(&self.vlans),
        ])
    }
}

impl TableReport {
    fn row(&self) -> Vec<String> {
        let fan_out = self.fan_out.as_ref().map_or("depend on routes".to_owned(), |fan_out| {
            let device = |device: &DeviceReport| {
                format!("{} by {}", device.neighbors, device.interface.as_deref().unwrap_or("route"))
            };
            let devices: Vec<_> = fan_out.devices.iter().map(device).collect();
            format!("{} {}: {}", fan_out.maps, fan_out.rule, listed(&devices))
        });
        row([
            &self.name,
            &self.bift_ids.join(" "),
            &format!("{} (code {})", self.bit_string_length, self.bsl_code),
            &self.rows.to_string(),
            &format!("{}{}", self.neighbors, if self.local { " and local" } else { "" }),
            &self.variants.to_string(),
            &fan_out,
        ])
    }
}
