//! The configuration file: read, checked, explained.
//!
//! [`load`] reads a file, [`parse`] a text. What comes out needs no further check; what is wrong comes out all at once,
//! each fault with file, line, column and the keys that lead to it.

mod address;
mod api;
mod document;
mod fault;
mod reader;
mod schema;
mod tables;
#[cfg(test)]
mod tests;
mod usage;

use std::{
    fs::File,
    io::Read,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::IpNet;
use replicator_common::{
    bier::BiftId,
    neighbor::{Encapsulation, VlanTag},
};

pub use address::{AddressError, InterfaceName, Link, MacAddr, Source};
pub(crate) use api::DEFAULT_SOCKET;
pub use api::{Api, Tcp};
pub(crate) use document::check_brackets;
pub(crate) use fault::quoted;
pub use fault::{ConfigError, Fault, Faults};
pub(crate) use reader::nearest;
pub use schema::KEYS;
pub(crate) use schema::{LOCAL, is_node_name};
pub use usage::Usage;
pub(crate) use usage::{Devices, fanout_cost};

use crate::bift::{Birt, NeighborId};
pub use crate::datapath::Mode;

/// A configuration without faults.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Destination port of BIER over UDP.
    pub udp_port: u16,
    /// How the programs are attached.
    pub mode: Mode,
    /// Where programs, maps and links are pinned: an absolute path without '.' in it.
    pub pin_path: PathBuf,
    /// Where the control API listens.
    pub api: Api,
    /// Folder of the maps that came by the API, so that they outlive the daemon. Without it the service manager's
    /// STATE_DIRECTORY, or else /var/lib/replicator.
    pub state_path: Option<PathBuf>,
    /// How long a table stays in force after a newer one took its place, at most an hour.
    pub epoch_grace: Duration,
    /// Whether every dropped frame is logged.
    pub trace_drops: bool,
    /// The way into and out of this host's own stack, if there is one.
    pub origin: Option<Origin>,
    /// What this host is called, and what copies for its own bits are addressed to.
    pub this_node: ThisNode,
    /// Interfaces that `replicate` is attached to, besides the origin's.
    pub interfaces: Vec<InterfaceName>,
    /// Who may send, besides the neighbors.
    pub sources: Vec<Source>,
    /// Remote neighbors. The id of each is [`NeighborId::remote`] of its index.
    pub neighbors: Vec<Neighbor>,
    /// Node tables, then expert tables, in the order of the file.
    pub tables: Vec<Table>,
}

/// The veth that this host's programs send into and local copies come out of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The stack's end.
    pub interface: InterfaceName,
    /// The other end, where `replicate` runs.
    pub peer: InterfaceName,
    /// IPv4 addresses of the ends.
    pub ipv4: Link<Ipv4Addr>,
    /// IPv6 addresses of the ends.
    pub ipv6: Link<Ipv6Addr>,
    /// Receive and transmit queues of each end.
    pub queues: u16,
}

impl Origin {
    /// Whether packets to `address` go into the veth.
    fn leads_to(&self, address: IpAddr) -> bool {
        let within =
            |stack: IpAddr, length| IpNet::new(stack, length).is_ok_and(|net| net.contains(&address));
        within(self.ipv4.stack.into(), self.ipv4.prefix_length)
            || within(self.ipv6.stack.into(), self.ipv6.prefix_length)
    }
}

/// What this host is called, and what copies for its own bits are addressed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThisNode {
    /// What expert maps call this host, besides `local`, so that one map does for all hosts.
    pub name: Option<String>,
    /// Destination of local copies over IPv4.
    pub ipv4: Option<Ipv4Addr>,
    /// Destination of local copies over IPv6.
    pub ipv6: Option<Ipv6Addr>,
}

impl ThisNode {
    fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => self.ipv4 == Some(v4),
            IpAddr::V6(v6) => self.ipv6 == Some(v6),
        }
    }
}

/// A remote next hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// Its name, unique.
    pub name: String,
    /// How it is reached.
    pub hop: NextHop,
    /// VLAN tags of copies for it, outermost first.
    pub tags: Vec<VlanTag>,
}

/// How a neighbor is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// By UDP.
    Udp {
        /// Its address, which says the IP family too.
        address: IpAddr,
        /// Destination port.
        udp_port: u16,
        /// TTL or hop limit of copies.
        hop_limit: u8,
        /// The device it is behind; the route to it says which, where this is `None`.
        interface: Option<InterfaceName>,
        /// MAC address of it or of the router to it; the kernel's neighbor table has it, where this is `None`.
        mac: Option<MacAddr>,
    },
    /// Straight over Ethernet.
    Ethernet {
        /// Its MAC address.
        mac: MacAddr,
        /// The device it is behind.
        interface: InterfaceName,
    },
}

impl Neighbor {
    /// The encapsulation that its copies have.
    pub fn encapsulation(&self) -> Encapsulation {
        match self.hop {
            NextHop::Udp { address: IpAddr::V4(_), .. } => Encapsulation::Ipv4,
            NextHop::Udp { address: IpAddr::V6(_), .. } => Encapsulation::Ipv6,
            NextHop::Ethernet { .. } => Encapsulation::Ethernet,
        }
    }

    /// The device it is behind, where the configuration says so.
    pub fn interface(&self) -> Option<&InterfaceName> {
        match &self.hop {
            NextHop::Udp { interface, .. } => interface.as_ref(),
            NextHop::Ethernet { interface, .. } => Some(interface),
        }
    }

    /// Its MAC address, where the configuration says it.
    pub fn mac(&self) -> Option<MacAddr> {
        match &self.hop {
            NextHop::Udp { mac, .. } => *mac,
            NextHop::Ethernet { mac, .. } => Some(*mac),
        }
    }
}

/// A table and the BIFT-ids that name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// What it is, and for which model and layer.
    pub name: TableName,
    /// The ids: one of a node table; of an expert table that of its generation and the alias of the newest.
    pub bift_ids: Vec<BiftId>,
    /// The rows. Layers of a model that share them share this.
    pub birt: Arc<Birt>,
}

/// What a table is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableName {
    /// A bit is a node.
    Nodes {
        /// The table's name.
        name: String,
    },
    /// A bit is an expert: bit e + 1 is expert e.
    Experts {
        /// The model.
        model: Arc<str>,
        /// Its layer.
        layer: u16,
        /// Experts of a layer.
        experts: u16,
    },
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nodes { name } => f.write_str(name),
            Self::Experts { model, layer, .. } => write!(f, "{model} layer {layer}"),
        }
    }
}

impl Config {
    /// The remote neighbor with this id.
    pub fn neighbor(&self, id: NeighborId) -> Option<&Neighbor> {
        self.neighbors.get(id.remote_index()?)
    }

    /// The remote neighbors with their ids, in the order of the file.
    pub fn neighbor_ids(&self) -> impl Iterator<Item = (NeighborId, &Neighbor)> {
        self.neighbors.iter().enumerate().filter_map(|(i, neighbor)| Some((NeighborId::remote(i)?, neighbor)))
    }
}

/// Reads a configuration file.
///
/// # Errors
/// Where it cannot be read, or with everything that is wrong with it.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let file = path.display().to_string();
    let mut bytes = Vec::new();
    // One byte more than allowed shows that a file is too long, without reading all of it.
    let read =
        File::open(path).and_then(|file| file.take(document::MAX_BYTES as u64 + 1).read_to_end(&mut bytes));
    if let Err(source) = read {
        return Err(ConfigError::Read { file, source });
    }
    let text = document::check_size(bytes.len()).and_then(|()| document::decode(&bytes));
    match text {
        Ok(text) => parse(text, &file),
        Err(fault) => Err(Faults { file, faults: vec![fault], more: 0 }.into()),
    }
}

/// Reads a configuration from its text. `name` is what messages call the file.
///
/// # Errors
/// With everything that is wrong with it.
pub fn parse(text: &str, name: &str) -> Result<Config, ConfigError> {
    schema::read(text, name).map_err(ConfigError::from)
}
