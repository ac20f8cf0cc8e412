//! What is known of the host: a copy of the kernel's tables, kept right by its notifications.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia},
};

use super::{
    Error, MacAddr, Netlink,
    link::{self, Link},
};

/// The host's interfaces, addresses, neighbors and routes, as far as the kernel has told them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// Interfaces by ifindex.
    pub links: BTreeMap<u32, Link>,
    /// Interfaces that went away, whatever has their ifindex now; for whoever looks to clear.
    pub removed: BTreeSet<u32>,
    /// Addresses of interfaces that are ready for use.
    pub addresses: BTreeMap<(u32, IpAddr), Address>,
    /// Neighbor table.
    pub neighbors: HashMap<(u32, IpAddr), Neighbor>,
    /// Answers to route lookups. Unlike the rest they are asked for, and asked again when something above
    /// changed.
    pub routes: HashMap<Destination, Route>,
}

/// An address of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Bits of its subnet's prefix.
    pub prefix: u8,
}

/// An entry of the neighbor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbor {
    /// State.
    pub state: NeighborState,
    /// Its MAC address, where it is known.
    pub mac: Option<MacAddr>,
}

/// What the states of the neighbor table (`NUD_*`) mean to a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NeighborState {
    /// NONE, INCOMPLETE, FAILED: its address is not known.
    Unknown,
    /// STALE: known, but the kernel will not ask again before it is used.
    Stale,
    /// REACHABLE, DELAY, PROBE: known and looked after.
    Fresh,
    /// PERMANENT, NOARP: known, and not the kernel's to find out.
    Fixed,
}

/// What a route is looked up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Where to.
    pub address: IpAddr,
    /// Interface; only link-local addresses, which mean nothing without one, have it.
    pub ifindex: Option<u32>,
}

/// The kernel's answer to a route lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// By this interface.
    By {
        /// Interface.
        ifindex: u32,
        /// Next hop; none where the destination is on the link.
        gateway: Option<IpAddr>,
        /// Source address of packets that go there.
        source: Option<IpAddr>,
    },
    /// The address is this host's own.
    Local,
    /// None, for this reason.
    Missing(String),
}

/// What a notification changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Interfaces or addresses.
    pub host: bool,
    /// Neighbors.
    pub neighbors: bool,
    /// Anything that a route lookup depends on.
    pub routes: bool,
}

impl View {
    /// Reads the kernel's tables; `routes` stays empty.
    pub async fn read(netlink: &Netlink) -> Result<Self, Error> {
        let mut view = Self::default();
        for message in netlink.link_messages().await? {
            view.apply(&RouteNetlinkMessage::NewLink(message));
        }
        for message in netlink.address_messages().await? {
            view.apply(&RouteNetlinkMessage::NewAddress(message));
        }
        for message in netlink.neighbor_messages().await? {
            view.apply(&RouteNetlinkMessage::NewNeighbour(message));
        }
        Ok(view)
    }

    /// Takes in a notification.
    pub fn apply(&mut self, message: &RouteNetlinkMessage) -> Touched {
        const NOTHING: Touched = Touched { host: false, neighbors: false, routes: false };
        const HOST: Touched = Touched { host: true, neighbors: false, routes: true };
        const NEIGHBORS: Touched = Touched { host: false, neighbors: true, routes: false };
        match message {
            RouteNetlinkMessage::NewLink(message) => {
                let Some(link) = Link::from_message(message) else { return NOTHING };
                self.links.insert(link.ifindex, link);
                HOST
            }
            RouteNetlinkMessage::DelLink(message) => {
                let Some(Link { ifindex, .. }) = Link::from_message(message) else { return NOTHING };
                self.links.remove(&ifindex);
                self.removed.insert(ifindex);
                self.addresses.retain(|(on, _), _| *on != ifindex);
                self.neighbors.retain(|(on, _), _| *on != ifindex);
                HOST
            }
            RouteNetlinkMessage::NewAddress(message) => {
                let Some((key, address, ready)) = read_address(message) else { return NOTHING };
                if ready {
                    self.addresses.insert(key, address);
                } else {
                    self.addresses.remove(&key);
                }
                HOST
            }
            RouteNetlinkMessage::DelAddress(message) => {
                let Some((key, ..)) = read_address(message) else { return NOTHING };
                self.addresses.remove(&key);
                HOST
            }
            RouteNetlinkMessage::NewNeighbour(message) => {
                let Some((key, neighbor)) = read_neighbor(message) else { return NOTHING };
                self.neighbors.insert(key, neighbor);
                NEIGHBORS
            }
            RouteNetlinkMessage::DelNeighbour(message) => {
                let Some((key, _)) = read_neighbor(message) else { return NOTHING };
                self.neighbors.remove(&key);
                NEIGHBORS
            }
            RouteNetlinkMessage::NewRoute(_)
            | RouteNetlinkMessage::DelRoute(_)
            | RouteNetlinkMessage::NewRule(_)
            | RouteNetlinkMessage::DelRule(_) => Touched { routes: true, ..NOTHING },
            _ => NOTHING,
        }
    }

    /// The interface with this name.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.values().find(|link| link.name == name)
    }
}

impl std::ops::BitOrAssign for Touched {
    fn bitor_assign(&mut self, other: Self) {
        self.host |= other.host;
        self.neighbors |= other.neighbors;
        self.routes |= other.routes;
    }
}

/// An address and whether packets to it are taken: not while another host may have it too.
fn read_address(message: &AddressMessage) -> Option<((u32, IpAddr), Address, bool)> {
    let find = |local| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    // On a point-to-point link IFA_ADDRESS is the other end's.
    let address = find(true).or_else(|| find(false))?;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        if let AddressAttribute::Flags(wide) = attribute {
            flags |= *wide;
        }
    }
    let ready = !flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed)
        || flags.contains(AddressFlags::Optimistic);
    Some(((message.header.index, address), Address { prefix: message.header.prefix_len }, ready))
}

/// An entry of the IP neighbor tables; what bridges and proxies keep under the same message type is not.
fn read_neighbor(message: &NeighbourMessage) -> Option<((u32, IpAddr), Neighbor)> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(IpAddr::V4(*ip)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some(IpAddr::V6(*ip)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = link::mac(bytes),
            _ => {}
        }
    }
    let state = match message.header.state {
        NeighbourState::Stale => NeighborState::Stale,
        NeighbourState::Reachable | NeighbourState::Delay | NeighbourState::Probe => NeighborState::Fresh,
        NeighbourState::Permanent | NeighbourState::Noarp => NeighborState::Fixed,
        _ => NeighborState::Unknown,
    };
    Some(((message.header.ifindex, address?), Neighbor { state, mac }))
}

impl Route {
    /// Reads the answer to a lookup.
    pub(super) fn from_answer(answer: &Result<RouteMessage, Error>) -> Self {
        let message = match answer {
            Ok(message) => message,
            Err(Error::Refused { cause, .. }) => return Self::Missing(refusal(cause.raw_os_error())),
            Err(error) => return Self::Missing(error.to_string()),
        };
        match message.header.kind {
            RouteType::Unicast => {}
            RouteType::Local => return Self::Local,
            RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => {
                return Self::Missing("it is the address of a group of hosts".to_owned());
            }
            _ => return Self::Missing(refusal(None)),
        }
        let (mut by, mut gateway, mut source) = (None, None, None);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Oif(ifindex) => by = Some(*ifindex),
                RouteAttribute::Gateway(address) => gateway = ip(address),
                RouteAttribute::Via(RouteVia::Inet(address)) => gateway = Some(IpAddr::V4(*address)),
                RouteAttribute::Via(RouteVia::Inet6(address)) => gateway = Some(IpAddr::V6(*address)),
                RouteAttribute::PrefSource(address) => source = ip(address),
                _ => {}
            }
        }
        match by {
            Some(ifindex) => Self::By { ifindex, gateway, source },
            None => Self::Missing(refusal(None)),
        }
    }
}

const fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// The errors that `fib_lookup` answers with, as `ip route` calls what makes it.
fn refusal(errno: Option<i32>) -> String {
    match errno {
        Some(libc::EINVAL) => "a blackhole route drops it",
        Some(libc::EHOSTUNREACH) => "an unreachable route refuses it",
        Some(libc::EACCES) => "a prohibit route refuses it",
        Some(libc::ENETUNREACH) | None => "no route leads there",
        Some(errno) => return format!("the lookup failed: {}", std::io::Error::from_raw_os_error(errno)),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use std::{io, net::Ipv4Addr};

    use rtnetlink::packet_route::{
        AddressFamily,
        address::AddressHeaderFlags,
        link::{LinkAttribute, LinkMessage},
    };

    use super::*;

    const IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn link(ifindex: u32, name: &str) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        message
    }

    fn address(ip: &str, flags: AddressHeaderFlags) -> AddressMessage {
        let mut message = AddressMessage::default();
        message.header.index = 3;
        message.header.prefix_len = 64;
        message.header.flags = flags;
        message.attributes = vec![AddressAttribute::Address(ip.parse().unwrap())];
        message
    }

    fn neighbor(state: NeighbourState) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 3;
        message.header.state = state;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(IP)),
            NeighbourAttribute::LinkLayerAddress(MAC.to_vec()),
        ];
        message
    }

    #[test]
    fn a_removed_link_takes_its_addresses_and_neighbors_along() {
        let mut view = View::default();
        view.apply(&RouteNetlinkMessage::NewLink(link(3, "eth0")));
        view.apply(&RouteNetlinkMessage::NewAddress(address("fd00::1", AddressHeaderFlags::empty())));
        view.apply(&RouteNetlinkMessage::NewNeighbour(neighbor(NeighbourState::Reachable)));
        assert_eq!((view.links.len(), view.addresses.len(), view.neighbors.len()), (1, 1, 1));
        let touched = view.apply(&RouteNetlinkMessage::DelLink(link(3, "eth0")));
        assert_eq!(touched, Touched { host: true, neighbors: false, routes: true });
        assert_eq!(view, View { removed: [3].into(), ..View::default() });
    }

    #[test]
    fn a_port_that_leaves_a_bridge_stays_a_link() {
        let mut view = View::default();
        view.apply(&RouteNetlinkMessage::NewLink(link(3, "eth0")));
        let mut port = link(3, "eth0");
        port.header.interface_family = AddressFamily::Bridge;
        assert_eq!(view.apply(&RouteNetlinkMessage::DelLink(port)), Touched::default());
        assert_eq!(view.link_named("eth0").unwrap().ifindex, 3);
    }

    #[test]
    fn an_address_counts_once_nobody_else_can_have_it() {
        let mut view = View::default();
        view.apply(&RouteNetlinkMessage::NewAddress(address("fd00::1", AddressHeaderFlags::Tentative)));
        assert!(view.addresses.is_empty());
        view.apply(&RouteNetlinkMessage::NewAddress(address("fd00::1", AddressHeaderFlags::Permanent)));
        assert_eq!(view.addresses[&(3, "fd00::1".parse().unwrap())], Address { prefix: 64 });
        view.apply(&RouteNetlinkMessage::NewAddress(address("fd00::1", AddressHeaderFlags::Dadfailed)));
        assert!(view.addresses.is_empty());
    }

    #[test]
    fn neighbor_states_are_told_apart_by_what_a_sender_may_do() {
        for (state, expected) in [
            (NeighbourState::None, NeighborState::Unknown),
            (NeighbourState::Incomplete, NeighborState::Unknown),
            (NeighbourState::Failed, NeighborState::Unknown),
            (NeighbourState::Stale, NeighborState::Stale),
            (NeighbourState::Reachable, NeighborState::Fresh),
            (NeighbourState::Delay, NeighborState::Fresh),
            (NeighbourState::Probe, NeighborState::Fresh),
            (NeighbourState::Permanent, NeighborState::Fixed),
            (NeighbourState::Noarp, NeighborState::Fixed),
        ] {
            let mut view = View::default();
            view.apply(&RouteNetlinkMessage::NewNeighbour(neighbor(state)));
            let entry = view.neighbors[&(3, IpAddr::V4(IP))];
            assert_eq!(entry, Neighbor { state: expected, mac: Some(MacAddr::new(MAC).unwrap()) }, "{state}");
        }
    }

    #[test]
    fn bridge_and_proxy_entries_are_no_neighbors() {
        let mut view = View::default();
        let mut proxy = neighbor(NeighbourState::Permanent);
        proxy.header.flags = NeighbourFlags::Proxy;
        let mut bridge = neighbor(NeighbourState::Permanent);
        bridge.header.family = AddressFamily::Bridge;
        bridge.attributes.remove(0);
        for message in [proxy, bridge] {
            assert_eq!(view.apply(&RouteNetlinkMessage::NewNeighbour(message)), Touched::default());
        }
    }

    #[test]
    fn a_route_is_read_from_the_answer() {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        message.attributes = vec![
            RouteAttribute::Oif(3),
            RouteAttribute::Gateway(RouteAddress::Inet(IP)),
            RouteAttribute::PrefSource(RouteAddress::Inet(Ipv4Addr::new(10, 0, 0, 1))),
        ];
        assert_eq!(
            Route::from_answer(&Ok(message.clone())),
            Route::By {
                ifindex: 3,
                gateway: Some(IP.into()),
                source: Some(Ipv4Addr::new(10, 0, 0, 1).into())
            }
        );
        // IPv4 by way of an IPv6 router, RFC 5549.
        message.attributes[1] = RouteAttribute::Via(RouteVia::Inet6("fe80::1".parse().unwrap()));
        assert!(matches!(
            Route::from_answer(&Ok(message.clone())),
            Route::By { gateway: Some(IpAddr::V6(_)), .. }
        ));
        message.header.kind = RouteType::Local;
        assert_eq!(Route::from_answer(&Ok(message)), Route::Local);
    }

    #[test]
    fn a_refused_lookup_says_what_refuses_it() {
        let refused = |errno| {
            let error = Error::refused("look up", io::Error::from_raw_os_error(errno));
            Route::from_answer(&Err(error))
        };
        assert_eq!(refused(101), Route::Missing("no route leads there".to_owned()));
        assert_eq!(refused(113), Route::Missing("an unreachable route refuses it".to_owned()));
        assert_eq!(refused(22), Route::Missing("a blackhole route drops it".to_owned()));
    }
}
