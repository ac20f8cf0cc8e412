//! What goes into the maps for a neighbor, for this host's own stack, and for those who may send.

use std::{collections::BTreeSet, net::IpAddr};

use replicator_common::{
    limits::MAX_VLAN_TAGS,
    neighbor::{Encapsulation, Endpoint, Neighbor, SourcePrefix, VlanTag, role},
};

use crate::{
    config::{self, Config, NextHop, Source},
    host::{MacAddr, address::OwnAddresses, origin::Origin, resolution::Resolution},
};

/// TTL or hop limit of copies that stay on this host.
const LOCAL_HOP_LIMIT: u8 = 64;

/// The entry of a neighbor that is resolved.
pub(super) fn neighbor(config: &config::Neighbor, resolution: &Resolution) -> Option<Neighbor> {
    let Resolution::Ready { ifindex, source_mac, destination_mac, source_ip } = resolution else {
        return None;
    };
    let mut entry = Neighbor {
        macs: macs(*destination_mac, *source_mac),
        encapsulation: config.encapsulation() as u8,
        ifindex: *ifindex,
        tag_count: config.tags.len() as u8,
        tags: tags(&config.tags),
        ..Neighbor::default()
    };
    if let NextHop::Udp { address, udp_port, hop_limit, .. } = config.hop {
        entry.source_ip = octets((*source_ip)?);
        entry.destination_ip = octets(address);
        entry.udp_port = udp_port.to_be_bytes();
        entry.hop_limit = hop_limit;
    }
    Some(entry)
}

/// Whether an entry is of this neighbor: of the same node, whatever else is known of it.
pub(super) fn is_of(entry: &Neighbor, config: &config::Neighbor) -> bool {
    let same_node = match config.hop {
        NextHop::Udp { address, udp_port, .. } => {
            entry.destination_ip == octets(address) && entry.udp_port == udp_port.to_be_bytes()
        }
        NextHop::Ethernet { mac, .. } => entry.macs[..6] == mac.octets(),
    };
    same_node
        && entry.encapsulation == config.encapsulation() as u8
        && usize::from(entry.tag_count) == config.tags.len()
        && entry.tags == tags(&config.tags)
}

/// The entries of this host's own stack. Copies come from the other end's address: with the host's own or a remote
/// source, common `rp_filter` and `accept_local` settings would lose them. They go to the node's address, or else to the
/// stack's end.
pub(super) fn local(config: &Config, origin: &Origin) -> Option<[(Encapsulation, Neighbor); 3]> {
    let links = config.origin.as_ref()?;
    let base = Neighbor {
        macs: macs(origin.mac, origin.peer_mac),
        udp_port: config.udp_port.to_be_bytes(),
        hop_limit: LOCAL_HOP_LIMIT,
        ifindex: origin.peer_ifindex,
        ..Neighbor::default()
    };
    let ipv4 = config.this_node.ipv4.unwrap_or(links.ipv4.stack);
    let ipv6 = config.this_node.ipv6.unwrap_or(links.ipv6.stack);
    Some([
        (Encapsulation::Ipv4, over(base, Encapsulation::Ipv4, links.ipv4.peer.into(), ipv4.into())),
        (Encapsulation::Ipv6, over(base, Encapsulation::Ipv6, links.ipv6.peer.into(), ipv6.into())),
        (Encapsulation::Ethernet, Neighbor { encapsulation: Encapsulation::Ethernet as u8, ..base }),
    ])
}

fn over(base: Neighbor, encapsulation: Encapsulation, source: IpAddr, destination: IpAddr) -> Neighbor {
    Neighbor {
        source_ip: octets(source),
        destination_ip: octets(destination),
        encapsulation: encapsulation as u8,
        ..base
    }
}

/// The single addresses that may send or are this host's. A replicator is an amplifier: without a configured source,
/// only the neighbors may send, straight Ethernet from the MAC addresses of those that speak it.
pub(super) fn endpoints(config: &Config, own: &OwnAddresses) -> BTreeSet<(u32, [u8; 16], u32)> {
    let neighbors = config.neighbors.iter().map(|neighbor| match neighbor.hop {
        NextHop::Udp { address, .. } => endpoint(address),
        NextHop::Ethernet { mac, .. } => Endpoint::mac(mac.octets()),
    });
    let configured = config.sources.iter().filter_map(|source| match source {
        Source::Mac(mac) => Some(Endpoint::mac(mac.octets())),
        Source::Prefix(_) => None,
    });
    let sources = neighbors.chain(configured).map(|endpoint| (endpoint, role::SOURCE));
    let own_ips = own.ips.iter().copied().map(endpoint);
    let own_macs = own.macs.iter().map(|mac| Endpoint::mac(mac.octets()));
    let own = own_ips.chain(own_macs).map(|endpoint| (endpoint, role::OWN));
    sources.chain(own).map(|(endpoint, role)| (endpoint.kind, endpoint.address, role)).collect()
}

/// The prefixes that may send, each with its length.
pub(super) fn prefixes(config: &Config) -> Vec<(SourcePrefix, u32)> {
    let prefix = |source: &Source| match source {
        Source::Mac(_) => None,
        Source::Prefix(net) => {
            let Endpoint { kind, address } = endpoint(net.network());
            Some((SourcePrefix { kind: kind.to_be_bytes(), address }, u32::from(net.prefix_len())))
        }
    };
    config.sources.iter().filter_map(prefix).collect()
}

fn endpoint(address: IpAddr) -> Endpoint {
    match address {
        IpAddr::V4(v4) => Endpoint::ipv4(v4.octets()),
        IpAddr::V6(v6) => Endpoint::ipv6(v6.octets()),
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    endpoint(address).address
}

fn macs(destination: MacAddr, source: MacAddr) -> [u8; 12] {
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&destination.octets());
    macs[6..].copy_from_slice(&source.octets());
    macs
}

fn tags(tags: &[VlanTag]) -> [VlanTag; MAX_VLAN_TAGS] {
    let mut entries = [VlanTag::default(); MAX_VLAN_TAGS];
    for (entry, tag) in entries.iter_mut().zip(tags) {
        *entry = *tag;
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::resolution::Reason;

    fn config() -> Config {
        let text = "
origin: {}
interfaces: [eth0]
this-node: { ipv4: 10.0.0.1 }
sources: [10.9.0.0/16, '2001:db8::/32', '02:00:00:00:00:77']
neighbors:
  node1: { address: 10.0.0.2, udp-port: 9000, hop-limit: 7 }
  node2: { mac: '02:00:00:00:00:02', interface: eth0, vlans: [{ id: 5, protocol: 802.1ad }, 6] }
node-tables:
  - { name: t, bift-id: 1, bit-string-length: 64, bits: { 1: node1, 2: node2, 3: local } }
";
        config::parse(text, "test").unwrap_or_else(|error| panic!("{error}"))
    }

    fn mac(last: u8) -> MacAddr {
        MacAddr::new([2, 0, 0, 0, 0, last]).unwrap()
    }

    #[test]
    fn a_resolved_neighbor_over_udp() {
        let resolution = Resolution::Ready {
            ifindex: 4,
            source_mac: mac(1),
            destination_mac: mac(9),
            source_ip: Some([10, 0, 0, 1].into()),
        };
        let entry = neighbor(&config().neighbors[0], &resolution).unwrap();
        assert_eq!(entry.macs, [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1]);
        assert_eq!((entry.source_ip[..5].to_vec(), entry.destination_ip[3]), (vec![10, 0, 0, 1, 0], 2));
        assert_eq!((entry.udp_port, entry.hop_limit), ([0x23, 0x28], 7));
        assert_eq!((entry.ifindex, entry.encapsulation, entry.tag_count), (4, 0, 0));
        let pending = Resolution::Pending { reason: Reason::Underspecified };
        assert_eq!(neighbor(&config().neighbors[0], &pending), None);
    }

    #[test]
    fn an_entry_is_known_by_its_node_alone() {
        let config = config();
        let ready = |ifindex, last| Resolution::Ready {
            ifindex,
            source_mac: mac(1),
            destination_mac: mac(last),
            source_ip: Some([10, 0, 0, 1].into()),
        };
        let [udp, ethernet] = [0, 1].map(|index| neighbor(&config.neighbors[index], &ready(4, 2)).unwrap());
        assert!(is_of(&udp, &config.neighbors[0]) && is_of(&ethernet, &config.neighbors[1]));
        assert!(!is_of(&udp, &config.neighbors[1]) && !is_of(&ethernet, &config.neighbors[0]));
        let elsewhere = neighbor(&config.neighbors[0], &ready(9, 7)).unwrap();
        assert!(
            is_of(&Neighbor { hop_limit: 1, ..elsewhere }, &config.neighbors[0]),
            "device, MAC, hop limit"
        );
        assert!(!is_of(&Neighbor { udp_port: [0, 9], ..udp }, &config.neighbors[0]));
        let untagged = Neighbor { tag_count: 0, tags: Default::default(), ..ethernet };
        assert!(!is_of(&untagged, &config.neighbors[1]));
    }

    #[test]
    fn a_neighbor_straight_over_ethernet_keeps_its_tags() {
        let resolution =
            Resolution::Ready { ifindex: 4, source_mac: mac(1), destination_mac: mac(2), source_ip: None };
        let entry = neighbor(&config().neighbors[1], &resolution).unwrap();
        assert_eq!((entry.encapsulation, entry.tag_count), (2, 2));
        assert_eq!((entry.tags[0].protocol, entry.tags[0].id), ([0x88, 0xa8], [0, 5]));
        assert_eq!((entry.tags[1].protocol, entry.tags[1].id), ([0x81, 0x00], [0, 6]));
        assert_eq!((entry.source_ip, entry.udp_port), ([0; 16], [0; 2]));
    }

    #[test]
    fn copies_for_this_host_come_from_the_veths_own_subnet() {
        let origin = Origin {
            name: "replicator0".into(),
            peer_name: "replicator0p".into(),
            ifindex: 7,
            peer_ifindex: 6,
            mac: mac(7),
            peer_mac: mac(6),
            queues: 1,
        };
        let [(_, ipv4), (_, ipv6), (_, ethernet)] = local(&config(), &origin).unwrap();
        assert_eq!(ipv4.macs, [2, 0, 0, 0, 0, 7, 2, 0, 0, 0, 0, 6]);
        assert_eq!(ipv4.source_ip[..4], [169, 254, 81, 2]);
        assert_eq!(ipv4.destination_ip[..4], [10, 0, 0, 1], "the node's address");
        assert_eq!(
            ipv6.destination_ip,
            octets("fd00:8138::1".parse().unwrap()),
            "the stack's end, without one"
        );
        assert!([ipv4, ipv6, ethernet].iter().all(|entry| entry.ifindex == 6));
        assert_eq!([ipv4, ipv6, ethernet].map(|entry| entry.encapsulation), [0, 1, 2]);
    }

    #[test]
    fn nobody_but_neighbors_and_configured_sources_may_send() {
        let own = OwnAddresses { ips: [[10, 0, 0, 1].into()].into(), macs: [mac(1)].into() };
        let expected = [
            (Endpoint::ipv4([10, 0, 0, 1]), role::OWN),
            (Endpoint::ipv4([10, 0, 0, 2]), role::SOURCE),
            (Endpoint::mac([2, 0, 0, 0, 0, 1]), role::OWN),
            (Endpoint::mac([2, 0, 0, 0, 0, 2]), role::SOURCE),
            (Endpoint::mac([2, 0, 0, 0, 0, 0x77]), role::SOURCE),
        ];
        let expected = expected.map(|(endpoint, role)| (endpoint.kind, endpoint.address, role));
        assert_eq!(endpoints(&config(), &own), expected.into());
        let prefixes = prefixes(&config());
        assert_eq!(prefixes.len(), 2);
        assert_eq!(
            (prefixes[0].0.kind, prefixes[0].0.address[..2].to_vec(), prefixes[0].1),
            ([0; 4], vec![10, 9], 16)
        );
        assert_eq!((prefixes[1].0.kind, prefixes[1].1), ([0, 0, 0, 1], 32));
    }
}
