//! The origin: a veth pair through which this host's own programs send. They send to `NAME`; the replicator
//! takes the frames on the other end, `NAMEp`, and emits the copies on the NIC. Copies for this host's stack
//! go in at `NAMEp` and come out at `NAME`.

use std::{collections::HashMap, io, net::IpAddr, path::Path};

use ipnet::IpNet;
use replicator_common::limits::{MAX_FRAME_BYTES, MAX_VLAN_TAGS};
use rtnetlink::{
    LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{InfoData, InfoVeth, LinkAttribute, LinkMessage},
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::{RouteAddress, RouteAttribute, RouteMetric, RouteScope},
    },
};

use super::{
    Error, MacAddr, Netlink,
    ethtool::Ethtool,
    link::{self, Link, Peer},
    netlink::done,
};

/// MTU of both ends: a frame of this size and two VLAN tags still fits one page after cloning.
pub const MTU: u32 = (MAX_FRAME_BYTES - 14 - 4 * MAX_VLAN_TAGS) as u32;

/// Longest name: the other end's has one letter more.
pub const MAX_NAME_BYTES: usize = libc::IFNAMSIZ - 2;

/// First bytes of both MAC addresses, "REPL": unicast, locally administered. They are given at creation and
/// mark the pair as ours; a set address is also one that udev's `MACAddressPolicy=persistent` leaves alone.
const MAC_PREFIX: [u8; 4] = *b"REPL";

/// What the pair shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OriginConfig {
    /// Name of the stack's end.
    pub name: String,
    /// Receive and transmit queues of each end; the kernel allows as many as there are possible CPUs, more
    /// are cut to that.
    pub queues: u32,
    /// Whether checksums are computed before frames enter the pair. Generic XDP keeps the mark of an unfinished one on a
    /// frame, and the NIC would then write over the one that the programs computed; segmentation needs the offload.
    pub finish_checksums: bool,
    /// Subnets that the host's programs send into.
    pub subnets: Vec<OriginSubnet>,
}

/// A subnet of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginSubnet {
    /// Address of the stack's end, and the prefix.
    pub stack: IpNet,
    /// Address of the other end: where programs send to, and where copies for this host's stack come from.
    pub peer: IpAddr,
}

/// The pair as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Name of the stack's end.
    pub name: String,
    /// Name of the replicator's end.
    pub peer_name: String,
    /// Ifindex of the stack's end.
    pub ifindex: u32,
    /// Ifindex of the replicator's end.
    pub peer_ifindex: u32,
    /// MAC address of the stack's end.
    pub mac: MacAddr,
    /// MAC address of the replicator's end.
    pub peer_mac: MacAddr,
    /// Queues of each end.
    pub queues: u32,
}

impl OriginConfig {
    fn check(&self) -> Result<(), Error> {
        let name = &self.name;
        let bad = |what: String| Err(Error::Unfit(format!("origin interface {name:?}: {what}")));
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return bad(format!("choose a name of 1 to {MAX_NAME_BYTES} bytes"));
        }
        if name.contains(['/', ':']) || name.contains(char::is_whitespace) {
            return bad("a name has no '/', ':' or white space".to_owned());
        }
        // They mean every interface in /proc/sys/net.
        if matches!(name.as_str(), "." | ".." | "all" | "default") {
            return bad("this name is taken: choose another".to_owned());
        }
        if self.queues == 0 {
            return bad("it needs at least one queue".to_owned());
        }
        for OriginSubnet { stack, peer } in &self.subnets {
            if !stack.contains(peer) || stack.addr() == *peer {
                return bad(format!("{peer} must be another address in the subnet of {stack}"));
            }
        }
        Ok(())
    }
}

fn peer_name(name: &str) -> String {
    format!("{name}p")
}

/// The same for the same name, so that a pair made anew is the one that senders know.
fn macs(name: &str) -> [[u8; 6]; 2] {
    // FNV-1a; the last bit tells the ends apart.
    let hash =
        name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let [a, b, c, d] = MAC_PREFIX;
    let [e, f, ..] = hash.to_be_bytes();
    [[a, b, c, d, e, f & !1], [a, b, c, d, e, f | 1]]
}

/// The two ends of a pair of ours.
#[derive(Debug, PartialEq)]
struct Pair<'a> {
    stack: &'a Link,
    mac: MacAddr,
    peer: &'a Link,
    peer_mac: MacAddr,
}

/// The pair, if it is there and ours; refuses what is in its place.
fn owned<'a>(links: &'a [Link], name: &str) -> Result<Option<Pair<'a>>, Error> {
    let find = |name: &str| links.iter().find(|link| link.name == name);
    let peer_name = peer_name(name);
    let foreign = |name: &str, what: &str| {
        Err(Error::Unfit(format!(
            "interface {name} exists and {what}: choose another name for the origin, or remove it with `ip \
             link del {name}`"
        )))
    };
    match (find(name), find(&peer_name)) {
        (None, None) => Ok(None),
        (None, Some(_)) => foreign(&peer_name, "is not the other end of an origin pair of the replicator's"),
        (Some(_), None) => foreign(name, "is not an origin pair of the replicator's"),
        (Some(stack), Some(peer)) => {
            let joined = stack.is_veth() && stack.peer == Some(Peer::Here(peer.ifindex));
            match (stack.mac, peer.mac) {
                (Some(mac), Some(peer_mac)) if joined && [mac.octets(), peer_mac.octets()] == macs(name) => {
                    Ok(Some(Pair { stack, mac, peer, peer_mac }))
                }
                _ => foreign(name, "is not an origin pair of the replicator's"),
            }
        }
    }
}

/// Makes the pair, or makes an existing one of ours what it shall be.
pub async fn ensure(netlink: &Netlink, config: &OriginConfig) -> Result<Origin, Error> {
    config.check()?;
    let OriginConfig { name, .. } = config;
    let peer_name = peer_name(name);
    if owned(&link::all(netlink).await?, name)?.is_none() {
        let request = netlink.handle().link().add(creation(name));
        done(format!("create the veth pair {name} and {peer_name}"), request.execute()).await?;
    }
    let result = configure(netlink, config).await;
    result.map_err(|error| match error {
        Error::Refused { action, cause } => {
            Error::Refused { action: format!("{action} (origin pair {name})"), cause }
        }
        other => other,
    })
}

async fn configure(netlink: &Netlink, config: &OriginConfig) -> Result<Origin, Error> {
    let OriginConfig { name, queues, finish_checksums, subnets } = config;
    let links = link::all(netlink).await?;
    let Some(Pair { stack, mac, peer, peer_mac }) = owned(&links, name)? else {
        return Err(Error::Unfit(format!(
            "the origin pair {name} was removed while it was set up: try again"
        )));
    };
    let ethtool = Ethtool::open()?;
    let queues = set_queues(&ethtool, [&stack.name, &peer.name], *queues)?;
    // Copies that enter at the other end arrive here only if this end polls, and without an XDP program GRO
    // makes it poll (veth_gro_requested in drivers/net/veth.c).
    if ethtool.gro(name) != Some(true) {
        ethtool.set_gro(name, true)?;
    }
    ethtool.set_tx_checksum(name, !finish_checksums)?;
    set_ipv6(name, true, subnets.iter().any(|subnet| subnet.peer.is_ipv6()))?;
    // Nobody is addressed here, and neighbor discovery on this end would only be noise for the other.
    set_ipv6(&peer.name, false, false)?;
    for link in [stack, peer] {
        // Generic XDP sees what a sender leaves to the device to segment as one frame in several buffers; with a native
        // program a veth takes none of those in the first place (veth_xdp_set in drivers/net/veth.c).
        let settings = LinkUnspec::new_with_index(link.ifindex)
            .mtu(MTU)
            .append_extra_attribute(LinkAttribute::GsoMaxSegs(1))
            .up()
            .build();
        let request = netlink.handle().link().set(settings);
        done(format!("set up {}", link.name), request.execute()).await?;
    }
    // A veth has no queue of its own: what overran its ring of 256 frames would be lost without a word. With one, the
    // kernel holds senders back (veth since Linux 6.16); `mq` has one for each of several transmit queues.
    netlink.set_qdisc(stack.ifindex, if queues > 1 { "mq" } else { "pfifo" }).await?;
    set_addresses(netlink, stack, subnets).await?;
    set_routes(netlink, stack, subnets).await?;
    set_neighbors(netlink, stack, subnets, peer_mac).await?;
    Ok(Origin {
        name: stack.name.clone(),
        peer_name: peer.name.clone(),
        ifindex: stack.ifindex,
        peer_ifindex: peer.ifindex,
        mac,
        peer_mac,
        queues,
    })
}

/// Removes the pair; false where there was none.
pub async fn remove(netlink: &Netlink, name: &str) -> Result<bool, Error> {
    let links = link::all(netlink).await?;
    let Some(Pair { stack, .. }) = owned(&links, name)? else { return Ok(false) };
    let request = netlink.handle().link().del(stack.ifindex);
    done(format!("remove the origin pair {name}"), request.execute()).await?;
    Ok(true)
}

/// The message that makes a pair: with its MAC addresses from the start, so that it is known as ours at any
/// time.
fn creation(name: &str) -> LinkMessage {
    let [mac, peer_mac] = macs(name);
    let peer = LinkMessageBuilder::<LinkUnspec>::new()
        .name(peer_name(name))
        .address(peer_mac.to_vec())
        .mtu(MTU)
        .build();
    LinkVeth::new(name, &peer_name(name))
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .address(mac.to_vec())
        .mtu(MTU)
        .build()
}

/// The same number of queues everywhere: each end needs as many to receive as the other has to send.
fn set_queues(ethtool: &Ethtool, names: [&str; 2], wanted: u32) -> Result<u32, Error> {
    let channels = |name: &str| {
        ethtool
            .channels(name)
            .ok_or_else(|| Error::Unfit(format!("the queues of {name} cannot be read: is it a veth?")))
    };
    let [a, b] = [channels(names[0])?, channels(names[1])?];
    let queues = [a.max_rx, a.max_tx, b.max_rx, b.max_tx].into_iter().fold(wanted, u32::min).max(1);
    // Receive queues first where they grow and last where they shrink, for with a program attached they may
    // at no time be fewer than the other end's transmit queues.
    for (name, now) in names.into_iter().zip([a, b]) {
        if now.rx < queues {
            ethtool.set_channels(name, queues, now.tx)?;
        }
    }
    for name in names {
        let now = channels(name)?;
        if now.tx != queues {
            ethtool.set_channels(name, now.rx, queues)?;
        }
    }
    for name in names {
        if channels(name)?.rx != queues {
            ethtool.set_channels(name, queues, queues)?;
        }
    }
    Ok(queues)
}

/// Switches IPv6 on an interface. A kernel without IPv6 is in order where it is not `needed`.
fn set_ipv6(name: &str, on: bool, needed: bool) -> Result<(), Error> {
    let path = Path::new("/proc/sys/net/ipv6/conf").join(name).join("disable_ipv6");
    match std::fs::write(&path, if on { "0" } else { "1" }) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound && !needed => Ok(()),
        result => result.map_err(|cause| Error::refused(format!("write {}", path.display()), cause)),
    }
}

async fn set_addresses(netlink: &Netlink, stack: &Link, subnets: &[OriginSubnet]) -> Result<(), Error> {
    let wanted: HashMap<(IpAddr, u8), ()> =
        subnets.iter().map(|subnet| ((subnet.stack.addr(), subnet.stack.prefix_len()), ())).collect();
    let mut present = HashMap::new();
    for message in netlink.address_messages().await? {
        let address = message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        });
        if let Some(address) = address.filter(|_| message.header.index == stack.ifindex) {
            present.insert((address, message.header.prefix_len), message);
        }
    }
    for (key @ (address, prefix), message) in &present {
        let automatic = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        if !wanted.contains_key(key) && !automatic {
            let request = netlink.handle().address().del(message.clone());
            done(format!("remove {address}/{prefix} from {}", stack.name), request.execute()).await?;
        }
    }
    for (address, prefix) in wanted.keys().filter(|key| !present.contains_key(key)) {
        let mut request = netlink.handle().address().add(stack.ifindex, *address, *prefix);
        no_duplicate_detection(request.message_mut());
        done(format!("give {} the address {address}/{prefix}", stack.name), request.execute()).await?;
    }
    Ok(())
}

/// Nobody else can have an address on this pair, so it is ready at once; the route comes from [`set_routes`].
fn no_duplicate_detection(message: &mut AddressMessage) {
    message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute));
}

/// Routes into the subnets, by which packets of this host leave with the largest hop limit. Forwarded ones have a smaller
/// one, and so the programs tell them apart.
async fn set_routes(netlink: &Netlink, stack: &Link, subnets: &[OriginSubnet]) -> Result<(), Error> {
    for OriginSubnet { stack: subnet, .. } in subnets {
        let net = subnet.trunc();
        let mut route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(net.addr(), net.prefix_len())
            .map_err(|error| Error::Unfit(format!("origin subnet {net}: {error}")))?
            .output_interface(stack.ifindex)
            .scope(RouteScope::Link)
            .build();
        route.attributes.push(RouteAttribute::PrefSource(match subnet.addr() {
            IpAddr::V4(address) => RouteAddress::Inet(address),
            IpAddr::V6(address) => RouteAddress::Inet6(address),
        }));
        route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Hoplimit(u8::MAX.into())]));
        let request = netlink.handle().route().add(route).replace();
        done(format!("route {net} into {}", stack.name), request.execute()).await?;
    }
    Ok(())
}

/// Permanent entries for the other end's addresses: nobody answers for them there.
async fn set_neighbors(
    netlink: &Netlink,
    stack: &Link,
    subnets: &[OriginSubnet],
    peer_mac: MacAddr,
) -> Result<(), Error> {
    for message in netlink.neighbor_messages().await? {
        let outdated = message.header.ifindex == stack.ifindex
            && message.header.state == NeighbourState::Permanent
            && neighbor_address(&message).is_some_and(|ip| subnets.iter().all(|subnet| subnet.peer != ip));
        if outdated {
            let request = netlink.handle().neighbours().del(message);
            done(format!("remove an old neighbor entry of {}", stack.name), request.execute()).await?;
        }
    }
    for subnet in subnets {
        netlink.set_neighbor(stack.ifindex, subnet.peer, peer_mac).await?;
    }
    Ok(())
}

fn neighbor_address(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, stack: &str, peer: &str) -> OriginConfig {
        OriginConfig {
            name: name.to_owned(),
            finish_checksums: false,
            queues: 1,
            subnets: vec![OriginSubnet { stack: stack.parse().unwrap(), peer: peer.parse().unwrap() }],
        }
    }

    fn pair(name: &str) -> [Link; 2] {
        let [mac, peer_mac] = macs(name);
        let end = |name: String, ifindex, other, mac| Link {
            name,
            ifindex,
            mac: MacAddr::new(mac),
            mtu: MTU,
            up: true,
            carrier: true,
            kind: Some("veth".to_owned()),
            peer: Some(Peer::Here(other)),
            xdp: None,
            features: None,
        };
        [end(name.to_owned(), 5, 6, mac), end(peer_name(name), 6, 5, peer_mac)]
    }

    #[test]
    fn the_mtu_leaves_room_for_two_tags() {
        assert_eq!(MTU, 3498);
    }

    #[test]
    fn addresses_are_ours_local_and_different() {
        let [stack, peer] = macs("replicator0");
        assert_eq!(stack[..4], [0x52, 0x45, 0x50, 0x4c]);
        // Unicast, locally administered.
        assert_eq!(stack[0] & 3, 2);
        assert_eq!(stack[5] ^ peer[5], 1);
        assert_ne!(macs("replicator1"), [stack, peer]);
    }

    #[test]
    fn a_config_that_cannot_be_is_refused_with_its_reason() {
        let refusal = |config: OriginConfig| config.check().unwrap_err().to_string();
        assert!(config("replicator0", "169.254.81.1/30", "169.254.81.2").check().is_ok());
        assert_eq!(
            refusal(config("replicator0", "169.254.81.1/30", "169.254.81.4")),
            "origin interface \"replicator0\": 169.254.81.4 must be another address in the subnet of \
             169.254.81.1/30"
        );
        assert!(config("replicator0", "fd00::1/64", "fd00::1").check().is_err());
        assert!(config("replicator0", "fd00::1/64", "10.0.0.1").check().is_err());
        assert_eq!(
            refusal(config("fifteen-letters", "10.0.0.1/30", "10.0.0.2")),
            "origin interface \"fifteen-letters\": choose a name of 1 to 14 bytes"
        );
        assert!(config("fourteen-lette", "10.0.0.1/30", "10.0.0.2").check().is_ok());
        assert!(config("a/b", "10.0.0.1/30", "10.0.0.2").check().is_err());
        assert!(config("all", "10.0.0.1/30", "10.0.0.2").check().is_err());
        let none = OriginConfig { queues: 0, ..config("a", "10.0.0.1/30", "10.0.0.2") };
        assert_eq!(refusal(none), "origin interface \"a\": it needs at least one queue");
    }

    #[test]
    fn only_a_pair_of_ours_is_taken() {
        let [stack, peer] = pair("replicator0");
        assert!(owned(&[], "replicator0").unwrap().is_none());
        let links = [stack.clone(), peer.clone()];
        let pair = owned(&links, "replicator0").unwrap().unwrap();
        assert_eq!((pair.stack.ifindex, pair.peer.ifindex), (5, 6));

        let foreign = [
            vec![stack.clone()],
            vec![peer.clone()],
            vec![
                Link { mac: Some(MacAddr::new([2, 0, 0, 0, 0, 1]).unwrap()), ..stack.clone() },
                peer.clone(),
            ],
            vec![Link { kind: Some("dummy".to_owned()), ..stack.clone() }, peer.clone()],
            vec![Link { peer: Some(Peer::Elsewhere), ..stack.clone() }, peer.clone()],
        ];
        for links in foreign {
            let refusal = owned(&links, "replicator0").unwrap_err().to_string();
            assert!(
                refusal.contains("choose another name for the origin, or remove it with `ip link del"),
                "{refusal}"
            );
        }
    }
}
