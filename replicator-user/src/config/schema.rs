//! The keys of a configuration and what each may hold.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use replicator_common::{
    DEFAULT_UDP_PORT,
    limits::{MAX_SOURCE_PREFIXES, MAX_VLAN_TAGS},
    neighbor::VlanTag,
};

use super::{
    Config, InterfaceName, Link, MacAddr, Mode, Neighbor, NextHop, Origin, Source, ThisNode,
    address::unicast,
    api::{self, absolute_path},
    document::Document,
    fault::{Faults, Sink},
    reader::Field,
    tables, usage,
};
use crate::bift::NeighborId;

/// The name that stands for this host in tables.
pub(crate) const LOCAL: &str = "local";

/// What a node may be called.
const NODE_NAME: &str = "1 to 63 of the characters a-z, A-Z, 0-9, `.`, `_` and `-`";

/// Whether a node may be called so.
pub(crate) fn is_node_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=63).contains(&text.len()) && text.bytes().all(plain)
}

const DEFAULT_PIN_PATH: &str = "/sys/fs/bpf/replicator";
const DEFAULT_HOP_LIMIT: u8 = 64;
const DEFAULT_EPOCH_GRACE: u64 = 10;
const DEFAULT_ORIGIN: &str = "replicator0";

/// What the other end of the origin's veth is called after the stack's.
const PEER_SUFFIX: &str = "p";

/// As many queues as the CPUs of any host; more would only cost memory.
const MAX_QUEUES: u64 = 1024;

/// Longer than any sender keeps to an old epoch. Superseded tables take room as long.
const MAX_EPOCH_GRACE: u64 = 3600;

/// Interfaces to attach to. The kernel sets no limit; a host has no more.
const MAX_INTERFACES: usize = 64;

const ROOT: &[&str] = &[
    "udp-port",
    "mode",
    "pin-path",
    "api",
    "state-path",
    "epoch-grace",
    "trace-drops",
    "origin",
    "this-node",
    "interfaces",
    "sources",
    "neighbors",
    "node-tables",
    "expert-tables",
];
const ORIGIN: &[&str] = &["interface", "ipv4", "ipv6", "queues"];
const THIS_NODE: &[&str] = &["name", "ipv4", "ipv6"];
const NEIGHBOR: &[&str] = &["address", "interface", "mac", "udp-port", "hop-limit", "vlans"];
const VLAN: &[&str] = &["id", "protocol"];

/// Every key: where it stands and what it is called.
pub const KEYS: &[(&str, &[&str])] = &[
    ("", ROOT),
    ("api", api::API),
    ("api.tcp", api::TCP),
    ("origin", ORIGIN),
    ("this-node", THIS_NODE),
    ("neighbors.NAME", NEIGHBOR),
    ("neighbors.NAME.vlans[]", VLAN),
    ("node-tables[]", tables::NODE_TABLE),
    ("expert-tables[]", tables::EXPERT_TABLE),
];

/// Reads a configuration from its text.
pub(super) fn read(text: &str, file: &str) -> Result<Config, Faults> {
    let document = Document::parse(text).map_err(|fault| Faults {
        file: file.to_owned(),
        faults: vec![fault],
        more: 0,
    })?;
    let sink = Sink::default();
    let config = root(Field::root(&sink, &document.root));
    match config {
        Some(config) if sink.is_empty() => Ok(config),
        _ => Err(sink.into_faults(&document, file)),
    }
}

/// The configuration, which is worth nothing if there were faults; `None` only if there were.
fn root(field: Field<'_>) -> Option<Config> {
    let section = field.section(ROOT)?;
    let udp_port = section.get("udp-port").and_then(port).unwrap_or(DEFAULT_UDP_PORT);
    let mode = section
        .get("mode")
        .and_then(|field| field.choice(&[("native", Mode::Native), ("generic", Mode::Generic)]))
        .unwrap_or(Mode::Native);
    let pin_path = section.get("pin-path").and_then(|field| pin_path(&field));
    let origin = section.get("origin").and_then(origin);
    let interfaces =
        section.get("interfaces").map(|field| interfaces(&field, origin.as_ref())).unwrap_or_default();
    let mut config = Config {
        udp_port,
        mode,
        pin_path: pin_path.unwrap_or_else(|| DEFAULT_PIN_PATH.into()),
        api: section.get("api").and_then(|field| api::read(&field)).unwrap_or_default(),
        state_path: section
            .get("state-path")
            .and_then(|field| absolute_path(&field, "a folder's absolute path, such as /var/lib/replicator")),
        epoch_grace: section
            .get("epoch-grace")
            .and_then(|field| field.integer(0..=MAX_EPOCH_GRACE, "a number of seconds, 0 to 3600"))
            .map_or(Duration::from_secs(DEFAULT_EPOCH_GRACE), Duration::from_secs),
        trace_drops: section.get("trace-drops").and_then(|field| field.truth()).unwrap_or(false),
        this_node: section.get("this-node").and_then(this_node).unwrap_or_default(),
        sources: section.get("sources").map(|field| sources(&field)).unwrap_or_default(),
        origin,
        interfaces,
        neighbors: Vec::new(),
        tables: Vec::new(),
    };
    config.neighbors = section.get("neighbors").map(|field| neighbors(&field, &config)).unwrap_or_default();
    let named = section.get("interfaces").is_some_and(|field| !field.is_blank());
    if section.get("origin").is_none() && !named {
        section.fault(
            "nothing to attach to; name the NICs in `interfaces`, or give this host's programs an `origin: {}`",
        );
    }
    config.tables = tables::read(&section, &config);
    usage::check(&section, &config);
    Some(config)
}

fn port(field: Field<'_>) -> Option<u16> {
    field.integer(1..=65_535, "a UDP port, 1 to 65535")
}

fn pin_path(field: &Field<'_>) -> Option<PathBuf> {
    field.parse("an absolute path without `.` in it (bpffs refuses names with one)", |text| {
        let named = text.split('/').any(|name| !name.is_empty());
        (text.starts_with('/') && named && !text.contains(['.', '\0'])).then(|| text.into())
    })
}

fn interface(field: &Field<'_>) -> Option<InterfaceName> {
    field.parse(InterfaceName::WHAT, |text| text.parse().ok())
}

fn origin(field: Field<'_>) -> Option<Origin> {
    let section = field.section(ORIGIN)?;
    let names = |field: Field<'_>| {
        field.parse("an interface's name of at most 14 bytes: the other end's gets one more", |text| {
            both_ends(text)
        })
    };
    let (interface, peer) = section.get("interface").map_or_else(|| both_ends(DEFAULT_ORIGIN), names)?;
    let ipv4 = section.get("ipv4").map_or(Some(Link::<Ipv4Addr>::DEFAULT), |field| {
        field.parse(Link::<Ipv4Addr>::WHAT, |text| text.parse().ok())
    });
    let ipv6 = section.get("ipv6").map_or(Some(Link::<Ipv6Addr>::DEFAULT), |field| {
        field.parse(Link::<Ipv6Addr>::WHAT, |text| text.parse().ok())
    });
    let queues = section
        .get("queues")
        .map_or(Some(1), |field| field.integer(1..=MAX_QUEUES, "a number of queues, 1 to 1024"));
    Some(Origin { interface, peer, ipv4: ipv4?, ipv6: ipv6?, queues: queues? })
}

fn both_ends(name: &str) -> Option<(InterfaceName, InterfaceName)> {
    Some((name.parse().ok()?, format!("{name}{PEER_SUFFIX}").parse().ok()?))
}

fn this_node(field: Field<'_>) -> Option<ThisNode> {
    let section = field.section(THIS_NODE)?;
    let name = section.get("name").and_then(|field| {
        let what = format!("a name as neighbors have, {NODE_NAME}, and not `{LOCAL}`");
        field.parse(&what, |text| (text != LOCAL && is_node_name(text)).then(|| text.to_owned()))
    });
    let ipv4 = section.get("ipv4").and_then(|field| {
        let what = "this host's own IPv4 address, such as 10.0.0.1";
        field.parse(what, |text| text.parse().ok().filter(|&v4| unicast(IpAddr::V4(v4))))
    });
    let ipv6 = section.get("ipv6").and_then(|field| {
        let what = "this host's own IPv6 address, such as 2001:db8::1";
        field.parse(what, |text| text.parse().ok().filter(|&v6| unicast(IpAddr::V6(v6))))
    });
    Some(ThisNode { name, ipv4, ipv6 })
}

fn interfaces(field: &Field<'_>, origin: Option<&Origin>) -> Vec<InterfaceName> {
    let mut seen = HashSet::new();
    let mut interfaces = Vec::new();
    for field in field.items("a list of interfaces, such as [eth0, eth1]", MAX_INTERFACES).unwrap_or_default()
    {
        let Some(name) = interface(&field) else { continue };
        refuse_origin(&field, &name, origin);
        if !seen.insert(name.clone()) {
            field.fault(format!("{name} stands here twice; keep one"));
        }
        interfaces.push(name);
    }
    interfaces
}

fn refuse_origin(field: &Field<'_>, name: &InterfaceName, origin: Option<&Origin>) {
    if origin.is_some_and(|origin| *name == origin.interface || *name == origin.peer) {
        field.fault(format!(
            "{name} belongs to `origin`, which is made and attached anyway; name a NIC that leads to other hosts"
        ));
    }
}

fn sources(field: &Field<'_>) -> Vec<Source> {
    let mut seen = HashSet::new();
    let mut sources = Vec::new();
    let what = "a list of prefixes and addresses, such as [10.0.0.0/24]";
    for field in field.items(what, MAX_SOURCE_PREFIXES).unwrap_or_default() {
        let Some(source) = field.parse(Source::WHAT, |text| text.parse().ok()) else { continue };
        if !seen.insert(source) {
            field.fault(format!("{source} stands here twice; keep one"));
        }
        sources.push(source);
    }
    sources
}

fn neighbors(field: &Field<'_>, config: &Config) -> Vec<Neighbor> {
    let entries = field.entries("a map of names to neighbors, such as node1: { address: 10.0.0.2 }");
    if entries.len() > NeighborId::MAX_REMOTE {
        field.fault(format!("has {} neighbors; at most {} fit", entries.len(), NeighborId::MAX_REMOTE));
        return Vec::new();
    }
    let mut neighbors = Vec::with_capacity(entries.len());
    for (name, field) in entries {
        if name == LOCAL || !is_node_name(name) {
            field.fault(format!("a neighbor's name is {NODE_NAME}, and not `{LOCAL}`, which is this host"));
        }
        if config.this_node.name.as_deref() == Some(name) {
            field.fault("is what `this-node.name` calls this host; give one of them another name");
        }
        let neighbor = |hop, tags| Neighbor { name: name.to_owned(), hop, tags };
        neighbors.push(match hop(&field, config) {
            Some((hop, tags)) => {
                let neighbor = neighbor(hop, tags);
                // One frame would come to it twice, under two names.
                if let Some(other) = neighbors.iter().find(|other| same_node(other, &neighbor)) {
                    field.fault(format!("is the same node as `{}`; keep one of them", other.name));
                }
                neighbor
            }
            // One with a fault keeps its place, so that rows that name it are not faults too.
            None => neighbor(PLACEHOLDER, Vec::new()),
        });
    }
    neighbors
}

/// Stands for a neighbor with a fault; no neighbor without one has this address.
const PLACEHOLDER: NextHop = NextHop::Udp {
    address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    udp_port: 0,
    hop_limit: 0,
    interface: None,
    mac: None,
};

fn same_node(one: &Neighbor, other: &Neighbor) -> bool {
    let same_hop = match (&one.hop, &other.hop) {
        (
            NextHop::Udp { address, udp_port, .. },
            NextHop::Udp { address: other_address, udp_port: other_port, .. },
        ) => (address, udp_port) == (other_address, other_port),
        (one, other) => one == other,
    };
    same_hop && one.tags == other.tags
}

fn hop(field: &Field<'_>, config: &Config) -> Option<(NextHop, Vec<VlanTag>)> {
    let section = field.section(NEIGHBOR)?;
    let address = section.get("address").map(|field| {
        let address = field.parse("the neighbor's IP address, such as 10.0.0.2", |text| {
            text.parse().ok().filter(|&address| unicast(address))
        });
        if let Some(address) = address.filter(|&address| config.this_node.has(address)) {
            field.fault(format!("{address} is this host's own address; tables call this host `{LOCAL}`"));
        }
        if let Some(address) = address
            && config.origin.as_ref().is_some_and(|origin| origin.leads_to(address))
        {
            field.fault(format!("{address} is in a subnet of `origin`, which leads back to the replicator"));
        }
        address
    });
    let interface_field = section.get("interface");
    let interface = interface_field.as_ref().and_then(interface);
    if let (Some(field), Some(name)) = (&interface_field, &interface) {
        refuse_origin(field, name, config.origin.as_ref());
    }
    let mac_field = section.get("mac");
    let mac = mac_field.as_ref().and_then(|field| field.parse(MacAddr::WHAT, |text| text.parse().ok()));
    let udp_port = section.get("udp-port").map(port);
    let hop_limit =
        section.get("hop-limit").map(|field| field.integer(1..=255, "a TTL or hop limit, 1 to 255"));
    let tags = section.get("vlans").map(|field| vlans(&field)).unwrap_or_default();

    let Some(address) = address else {
        for key in ["udp-port", "hop-limit"] {
            if let Some(field) = section.get(key) {
                field.fault("means nothing without `address`: BIER goes straight over Ethernet; remove one or add the other");
            }
        }
        let why = "a neighbor without `address` gets BIER straight over Ethernet, and nothing else says where it is";
        section.require("mac", why);
        section.require("interface", why);
        return Some((NextHop::Ethernet { mac: mac?, interface: interface? }, tags));
    };
    let why_here = if !tags.is_empty() {
        Some("the kernel's neighbor table does not know what is behind VLAN tags")
    } else if matches!(address, Some(IpAddr::V6(v6)) if v6.is_unicast_link_local()) {
        Some("a link-local address says nothing about the link")
    } else {
        None
    };
    if let Some(why) = why_here {
        section.require("interface", why);
        if !tags.is_empty() {
            section.require("mac", why);
        }
    }
    let hop = NextHop::Udp {
        address: address?,
        udp_port: udp_port.unwrap_or(Some(config.udp_port))?,
        hop_limit: hop_limit.unwrap_or(Some(DEFAULT_HOP_LIMIT))?,
        interface,
        mac,
    };
    Some((hop, tags))
}

fn vlans(field: &Field<'_>) -> Vec<VlanTag> {
    let what = "a list of VLAN tags, outermost first, such as [100, { id: 200, protocol: 802.1ad }]";
    let items = field.items(what, MAX_VLAN_TAGS).unwrap_or_default();
    items.into_iter().filter_map(vlan).collect()
}

fn vlan(field: Field<'_>) -> Option<VlanTag> {
    const DOT1Q: [u8; 2] = 0x8100_u16.to_be_bytes();
    const DOT1AD: [u8; 2] = 0x88a8_u16.to_be_bytes();
    let id = |field: &Field<'_>| field.integer::<u16>(1..=4094, "a VLAN identifier, 1 to 4094");
    if !field.is_map() {
        return Some(VlanTag { protocol: DOT1Q, id: id(&field)?.to_be_bytes() });
    }
    let section = field.section(VLAN)?;
    let protocol = section
        .get("protocol")
        .map_or(Some(DOT1Q), |field| field.choice(&[("802.1Q", DOT1Q), ("802.1ad", DOT1AD)]));
    let number = section.require("id", "it is the tag's VLAN identifier").and_then(|field| id(&field));
    Some(VlanTag { protocol: protocol?, id: number?.to_be_bytes() })
}
