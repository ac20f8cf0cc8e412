//! The decision where copies for a neighbor go: pure functions of a [`View`].

use std::net::IpAddr;

use super::{
    MacAddr,
    link::Link,
    view::{Destination, NeighborState, Route, View},
};

/// A neighbor as the configuration names it. Enough is an address, or a MAC address with its interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What its changes are reported under.
    pub id: u32,
    /// Its IP address; none for straight Ethernet.
    pub address: Option<IpAddr>,
    /// Interface that it must be behind.
    pub interface: Option<String>,
    /// Its MAC address, where the kernel is not to be asked for it.
    pub mac: Option<MacAddr>,
}

/// Where copies for a target go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Everything is known.
    Ready {
        /// Interface that copies leave by.
        ifindex: u32,
        /// That interface's MAC address.
        source_mac: MacAddr,
        /// The target's MAC address, or that of the router on the way to it.
        destination_mac: MacAddr,
        /// The host's address that copies come from; none for targets without an address.
        source_ip: Option<IpAddr>,
    },
    /// Something is missing.
    Pending {
        /// What.
        reason: Reason,
    },
}

/// Why a target cannot be reached now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// Not enough is known to begin with.
    #[error("give it an IP address, or a MAC address and the interface it is behind")]
    Underspecified,
    /// A link-local address without an interface.
    #[error("{0} is link-local: name the interface it is behind")]
    NeedsInterface(IpAddr),
    /// The interface named is not there.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// The interface is set down.
    #[error("interface {0} is down")]
    Down(String),
    /// The interface has no carrier.
    #[error("interface {0} has no carrier")]
    NoCarrier(String),
    /// The interface has no MAC address.
    #[error("interface {0} is not Ethernet")]
    NotEthernet(String),
    /// The target is this host.
    #[error("{0} is an address of this host itself")]
    Own(IpAddr),
    /// The kernel has no route.
    #[error("no way to {address}: {why}")]
    NoRoute {
        /// Where to.
        address: IpAddr,
        /// The kernel's reason.
        why: String,
    },
    /// The route leaves by another interface than the one named.
    #[error("the route to {address} leaves by {route}, not by {interface} as configured")]
    OtherInterface {
        /// Where to.
        address: IpAddr,
        /// Interface of the route.
        route: String,
        /// Interface in the configuration.
        interface: String,
    },
    /// There is no address to send from.
    #[error("interface {interface} has no address to reach {address} from")]
    NoSource {
        /// Where to.
        address: IpAddr,
        /// Interface.
        interface: String,
    },
    /// Address resolution (ARP, neighbor discovery) has no answer.
    #[error("{hop} does not answer for its MAC address on {interface}")]
    NoAnswer {
        /// The target or the router on the way to it.
        hop: IpAddr,
        /// Interface.
        interface: String,
    },
}

/// The way to a target up to the next hop.
struct Way<'a> {
    link: &'a Link,
    /// Whose MAC address is wanted, if any's is.
    hop: Option<IpAddr>,
    source_ip: Option<IpAddr>,
}

/// Where copies for a target go, as far as the view tells.
pub fn resolve(target: &Target, view: &View) -> Resolution {
    let resolved = || {
        let Way { link, hop, source_ip } = way(target, view)?;
        let source_mac = link.mac.ok_or_else(|| Reason::NotEthernet(link.name.clone()))?;
        let found = match hop {
            Some(hop) => neighbor_mac(view, link.ifindex, hop),
            None => target.mac,
        };
        match (found, hop) {
            (Some(destination_mac), _) => {
                Ok(Resolution::Ready { ifindex: link.ifindex, source_mac, destination_mac, source_ip })
            }
            (None, Some(hop)) => Err(Reason::NoAnswer { hop, interface: link.name.clone() }),
            (None, None) => Err(Reason::Underspecified),
        }
    };
    resolved().unwrap_or_else(|reason| Resolution::Pending { reason })
}

/// The entry of the neighbor table that a target depends on, and its state.
pub fn next_hop(target: &Target, view: &View) -> Option<((u32, IpAddr), NeighborState)> {
    let way = way(target, view).ok()?;
    let hop = (way.link.ifindex, way.hop?);
    Some((hop, view.neighbors.get(&hop).map_or(NeighborState::Unknown, |neighbor| neighbor.state)))
}

/// The route that a target depends on.
pub fn destination(target: &Target, view: &View) -> Option<Destination> {
    let address = target.address?;
    let ifindex = match (is_link_local(address), &target.interface) {
        (true, Some(name)) => Some(view.link_named(name)?.ifindex),
        _ => None,
    };
    Some(Destination { address, ifindex })
}

const fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn neighbor_mac(view: &View, ifindex: u32, hop: IpAddr) -> Option<MacAddr> {
    let neighbor = view.neighbors.get(&(ifindex, hop))?;
    neighbor.mac.filter(|_| neighbor.state != NeighborState::Unknown)
}

fn way<'a>(target: &Target, view: &'a View) -> Result<Way<'a>, Reason> {
    let named = match &target.interface {
        Some(name) => {
            let link = view.link_named(name).ok_or_else(|| Reason::NoInterface(name.clone()))?;
            // Without it there is no route either, and this is the better reason.
            Some(running(link)?)
        }
        None => None,
    };
    let Some(address) = target.address else {
        return match (named, target.mac) {
            (Some(link), Some(_)) => Ok(Way { link, hop: None, source_ip: None }),
            _ => Err(Reason::Underspecified),
        };
    };
    if is_link_local(address) && named.is_none() {
        return Err(Reason::NeedsInterface(address));
    }

    let route = destination(target, view).and_then(|destination| view.routes.get(&destination));
    let (link, gateway, source) = match (route, named) {
        (Some(Route::Local), _) => return Err(Reason::Own(address)),
        (Some(Route::By { ifindex, gateway, source }), named)
            if named.is_none_or(|named| named.ifindex == *ifindex) =>
        {
            let link = view.links.get(ifindex);
            let link = link.ok_or_else(|| Reason::NoInterface(format!("number {ifindex}")))?;
            (running(link)?, *gateway, *source)
        }
        // Where interface and MAC address are given, no route has to lead there.
        (_, Some(link)) if target.mac.is_some() => (link, None, None),
        (Some(Route::By { ifindex, .. }), Some(named)) => {
            let route = view.links.get(ifindex).map_or_else(|| ifindex.to_string(), |link| link.name.clone());
            return Err(Reason::OtherInterface { address, route, interface: named.name.clone() });
        }
        (Some(Route::Missing(why)), _) => return Err(Reason::NoRoute { address, why: why.clone() }),
        (Some(Route::By { .. }) | None, _) => {
            return Err(Reason::NoRoute { address, why: "not looked up yet".to_owned() });
        }
    };
    let source_ip = source.or_else(|| address_on(view, link, address));
    if source_ip.is_none() {
        return Err(Reason::NoSource { address, interface: link.name.clone() });
    }
    let hop = if target.mac.is_some() { None } else { Some(gateway.unwrap_or(address)) };
    Ok(Way { link, hop, source_ip })
}

fn running(link: &Link) -> Result<&Link, Reason> {
    if !link.up {
        Err(Reason::Down(link.name.clone()))
    } else if !link.carrier {
        Err(Reason::NoCarrier(link.name.clone()))
    } else {
        Ok(link)
    }
}

/// An address of the interface to reach `address` from: of its family, best in its subnet, a link-local one
/// last.
fn address_on(view: &View, link: &Link, address: IpAddr) -> Option<IpAddr> {
    view.addresses
        .range((link.ifindex, IpAddr::V4([0; 4].into()))..=(link.ifindex, IpAddr::V6([0xff; 16].into())))
        .filter(|((_, own), _)| own.is_ipv4() == address.is_ipv4())
        .min_by_key(|((_, own), subnet)| {
            let near = ipnet::IpNet::new(*own, subnet.prefix).is_ok_and(|subnet| subnet.contains(&address));
            (!near, is_link_local(*own))
        })
        .map(|((_, own), _)| *own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::view::{Address, Neighbor};

    const OWN: u8 = 1;
    const NODE: u8 = 2;
    const GIVEN: u8 = 4;
    const ROUTER: u8 = 0xfe;

    fn mac(last: u8) -> MacAddr {
        MacAddr::new([2, 0, 0, 0, 0, last]).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link(ifindex: u32, name: &str) -> Link {
        Link { mac: Some(mac(OWN)), ..Link::example(name, ifindex) }
    }

    /// eth0 with 10.0.0.1/24 and fe80::1, eth1 with 10.1.0.1/24. 10.0.0.2 is on eth0; 10.9.0.9 behind
    /// 10.0.0.254.
    fn view() -> View {
        let by = |gateway: Option<&str>, source: &str| Route::By {
            ifindex: 2,
            gateway: gateway.map(ip),
            source: Some(ip(source)),
        };
        let to = |address, ifindex| Destination { address: ip(address), ifindex };
        View {
            links: [(2, link(2, "eth0")), (3, link(3, "eth1"))].into(),
            removed: [].into(),
            addresses: [
                ((2, ip("10.0.0.1")), Address { prefix: 24 }),
                ((2, ip("fe80::1")), Address { prefix: 64 }),
                ((3, ip("10.1.0.1")), Address { prefix: 24 }),
            ]
            .into(),
            neighbors: [
                ((2, ip("10.0.0.2")), Neighbor { state: NeighborState::Fresh, mac: Some(mac(NODE)) }),
                ((2, ip("10.0.0.254")), Neighbor { state: NeighborState::Stale, mac: Some(mac(ROUTER)) }),
                ((2, ip("fe80::2")), Neighbor { state: NeighborState::Fixed, mac: Some(mac(NODE)) }),
            ]
            .into(),
            routes: [
                (to("10.0.0.2", None), by(None, "10.0.0.1")),
                (to("10.9.0.9", None), by(Some("10.0.0.254"), "10.0.0.1")),
                (to("fe80::2", Some(2)), by(None, "fe80::1")),
                (to("10.0.0.1", None), Route::Local),
                (to("192.0.2.1", None), Route::Missing("no route leads there".to_owned())),
            ]
            .into(),
        }
    }

    fn target(address: &str) -> Target {
        Target { id: 7, address: Some(ip(address)), interface: None, mac: None }
    }

    fn ready(destination: u8, source_ip: Option<&str>) -> Resolution {
        let destination_mac = mac(destination);
        Resolution::Ready { ifindex: 2, source_mac: mac(OWN), destination_mac, source_ip: source_ip.map(ip) }
    }

    fn reason(target: &Target, view: &View) -> String {
        match resolve(target, view) {
            Resolution::Pending { reason } => reason.to_string(),
            ready => panic!("{ready:?}"),
        }
    }

    #[test]
    fn on_the_link_the_targets_own_mac_is_taken() {
        assert_eq!(resolve(&target("10.0.0.2"), &view()), ready(NODE, Some("10.0.0.1")));
    }

    #[test]
    fn behind_a_router_the_routers_mac_is_taken() {
        assert_eq!(resolve(&target("10.9.0.9"), &view()), ready(ROUTER, Some("10.0.0.1")));
    }

    #[test]
    fn a_link_local_target_is_looked_up_on_its_interface() {
        let named = Target { interface: Some("eth0".to_owned()), ..target("fe80::2") };
        assert_eq!(
            destination(&named, &view()),
            Some(Destination { address: ip("fe80::2"), ifindex: Some(2) })
        );
        assert_eq!(resolve(&named, &view()), ready(NODE, Some("fe80::1")));
        assert_eq!(
            reason(&target("fe80::2"), &view()),
            "fe80::2 is link-local: name the interface it is behind"
        );
    }

    #[test]
    fn straight_ethernet_needs_interface_and_mac_only() {
        let ethernet =
            Target { id: 7, address: None, interface: Some("eth0".to_owned()), mac: Some(mac(GIVEN)) };
        assert_eq!(resolve(&ethernet, &view()), ready(GIVEN, None));
        assert_eq!(next_hop(&ethernet, &view()), None);
        let half = Target { mac: None, ..ethernet };
        assert_eq!(
            reason(&half, &view()),
            "give it an IP address, or a MAC address and the interface it is behind"
        );
    }

    #[test]
    fn a_given_mac_is_not_asked_for() {
        let given = Target { mac: Some(mac(GIVEN)), ..target("10.9.0.9") };
        assert_eq!(resolve(&given, &view()), ready(GIVEN, Some("10.0.0.1")));
        assert_eq!(next_hop(&given, &view()), None);
    }

    #[test]
    fn interface_and_mac_make_up_for_a_missing_route() {
        let given =
            Target { interface: Some("eth0".to_owned()), mac: Some(mac(GIVEN)), ..target("192.0.2.1") };
        assert_eq!(resolve(&given, &view()), ready(GIVEN, Some("10.0.0.1")));
        let global = Target { address: Some(ip("2001:db8::1")), ..given.clone() };
        assert_eq!(resolve(&global, &view()), ready(GIVEN, Some("fe80::1")));
        let nowhere =
            Target { address: Some(ip("2001:db8::1")), interface: Some("eth1".to_owned()), ..given };
        assert_eq!(reason(&nowhere, &view()), "interface eth1 has no address to reach 2001:db8::1 from");
    }

    #[test]
    fn a_route_by_another_interface_than_configured_is_no_way() {
        let named = Target { interface: Some("eth1".to_owned()), ..target("10.0.0.2") };
        assert_eq!(
            reason(&named, &view()),
            "the route to 10.0.0.2 leaves by eth0, not by eth1 as configured"
        );
    }

    #[test]
    fn each_missing_piece_has_its_reason() {
        assert_eq!(reason(&target("192.0.2.1"), &view()), "no way to 192.0.2.1: no route leads there");
        assert_eq!(reason(&target("192.0.2.2"), &view()), "no way to 192.0.2.2: not looked up yet");
        assert_eq!(reason(&target("10.0.0.1"), &view()), "10.0.0.1 is an address of this host itself");
        let named = Target { interface: Some("eth7".to_owned()), ..target("10.0.0.2") };
        assert_eq!(reason(&named, &view()), "there is no interface eth7");

        let mut down = view();
        down.links.get_mut(&2).unwrap().carrier = false;
        assert_eq!(reason(&target("10.0.0.2"), &down), "interface eth0 has no carrier");
        down.links.get_mut(&2).unwrap().up = false;
        assert_eq!(reason(&target("10.0.0.2"), &down), "interface eth0 is down");

        let mut tunnel = view();
        tunnel.links.get_mut(&2).unwrap().mac = None;
        assert_eq!(reason(&target("10.0.0.2"), &tunnel), "interface eth0 is not Ethernet");
    }

    #[test]
    fn an_unanswered_neighbor_is_pending_whatever_mac_it_had() {
        let mut view = view();
        let hop = (2, ip("10.0.0.2"));
        view.neighbors.insert(hop, Neighbor { state: NeighborState::Unknown, mac: Some(mac(NODE)) });
        let expected = "10.0.0.2 does not answer for its MAC address on eth0";
        assert_eq!(reason(&target("10.0.0.2"), &view), expected);
        view.neighbors.remove(&hop);
        assert_eq!(reason(&target("10.0.0.2"), &view), expected);
        assert_eq!(next_hop(&target("10.0.0.2"), &view), Some((hop, NeighborState::Unknown)));
        assert_eq!(next_hop(&target("10.9.0.9"), &view), Some(((2, ip("10.0.0.254")), NeighborState::Stale)));
    }
}
