//! Interfaces.

use std::fmt;

use rtnetlink::packet_route::{
    AddressFamily,
    link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached},
};
use serde::Serialize;

use super::{Error, MacAddr, Netlink, XdpFeatures, netdev};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Link {
    /// Name.
    pub name: String,
    /// Number in its namespace.
    pub ifindex: u32,
    /// Ethernet address; `None` on loopback and where there is no Ethernet.
    pub mac: Option<MacAddr>,
    /// Largest packet, without the Ethernet header.
    pub mtu: u32,
    /// Set up by the administrator.
    pub up: bool,
    /// A cable or a peer is there.
    pub carrier: bool,
    /// Kind of a virtual interface: veth, vlan, bridge ...
    pub kind: Option<String>,
    /// Other end of a veth.
    pub peer: Option<Peer>,
    /// What holds the XDP hook.
    pub xdp: Option<Attached>,
    /// What XDP can do here; `None` where the kernel does not say (before 6.3).
    pub features: Option<XdpFeatures>,
}

/// Where the other end of a veth is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Peer {
    /// In this network namespace, with this ifindex.
    Here(u32),
    /// In another one, where it cannot be asked.
    Elsewhere,
}

/// How a program runs that is on an interface, ours or another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachedMode {
    /// In the driver.
    Native,
    /// In the network stack, on socket buffers.
    Generic,
    /// On the device.
    Offload,
}

impl Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for AttachedMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Offload => "offload",
        })
    }
}

/// An XDP program on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// How it runs.
    pub mode: AttachedMode,
    /// Its id.
    pub program_id: u32,
}

#[cfg(test)]
impl Link {
    /// An interface that is up and of which little is known.
    pub(crate) fn example(name: &str, ifindex: u32) -> Self {
        Self {
            name: name.to_owned(),
            ifindex,
            mac: None,
            mtu: 1500,
            up: true,
            carrier: true,
            kind: None,
            peer: None,
            xdp: None,
            features: None,
        }
    }
}

impl Link {
    /// Whether frames can pass: up, and with a carrier.
    pub const fn is_running(&self) -> bool {
        self.up && self.carrier
    }

    /// Whether it is one end of a veth pair.
    pub fn is_veth(&self) -> bool {
        self.kind.as_deref() == Some("veth")
    }

    /// Reads a message; `None` where it is not about an interface as such, as a bridge's messages about its
    /// ports are not.
    pub(super) fn from_message(message: &LinkMessage) -> Option<Self> {
        if message.header.interface_family != AddressFamily::Unspec {
            return None;
        }
        let flags = message.header.flags;
        let mut link = Self {
            name: String::new(),
            ifindex: message.header.index,
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            kind: None,
            peer: None,
            xdp: None,
            features: None,
        };
        let (mut lower, mut foreign) = (None, false);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => link.mac = mac(bytes),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Link(ifindex) => lower = Some(*ifindex),
                LinkAttribute::LinkNetNsId(_) => foreign = true,
                LinkAttribute::Xdp(parts) => link.xdp = attached(parts),
                LinkAttribute::LinkInfo(parts) => {
                    link.kind = parts.iter().find_map(|part| match part {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        if link.is_veth() {
            link.peer = Some(match lower {
                Some(ifindex) if !foreign => Peer::Here(ifindex),
                _ => Peer::Elsewhere,
            });
        }
        Some(link)
    }
}

/// The Ethernet address in an attribute; InfiniBand and tunnels have addresses of other lengths.
pub(super) fn mac(bytes: &[u8]) -> Option<MacAddr> {
    MacAddr::new(bytes.try_into().ok()?)
}

fn attached(parts: &[LinkXdp]) -> Option<Attached> {
    let program = |pick: fn(&LinkXdp) -> Option<u32>| parts.iter().find_map(pick).filter(|id| *id != 0);
    let driver = || program(|part| if let LinkXdp::DrvProgId(id) = part { Some(*id) } else { None });
    let any = || program(|part| if let LinkXdp::ProgId(id) = part { Some(*id) } else { None });
    let state = parts.iter().find_map(|part| match part {
        LinkXdp::Attached(state) => Some(*state),
        _ => None,
    })?;
    let (mode, program_id) = match state {
        XdpAttached::None => return None,
        XdpAttached::Driver => (AttachedMode::Native, any()),
        XdpAttached::SocketBuffer => (AttachedMode::Generic, any()),
        XdpAttached::Hardware => (AttachedMode::Offload, any()),
        // Several at once: one on the device and one in driver or stack. The driver's is the one in our way.
        _ => (AttachedMode::Native, driver()),
    };
    Some(Attached { mode, program_id: program_id.unwrap_or(0) })
}

/// All interfaces of the namespace, by ifindex.
pub async fn all(netlink: &Netlink) -> Result<Vec<Link>, Error> {
    let messages = netlink.link_messages().await?;
    let features = netdev::xdp_features().await?;
    let mut links: Vec<_> = messages.iter().filter_map(Link::from_message).collect();
    if let Some(features) = features {
        for link in &mut links {
            link.features = features.get(&link.ifindex).copied();
        }
    }
    links.sort_by_key(|link| link.ifindex);
    Ok(links)
}

/// The interface with this name.
pub async fn named(netlink: &Netlink, name: &str) -> Result<Option<Link>, Error> {
    Ok(all(netlink).await?.into_iter().find(|link| link.name == name))
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::link::InfoKind;

    use super::*;

    fn message(attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 4;
        message.header.flags = LinkFlags::Up | LinkFlags::Broadcast;
        message.attributes = attributes;
        message
    }

    fn veth(more: Vec<LinkAttribute>) -> Link {
        let mut attributes = vec![
            LinkAttribute::IfName("eth0".to_owned()),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 9]),
            LinkAttribute::Mtu(1500),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth)]),
        ];
        attributes.extend(more);
        Link::from_message(&message(attributes)).unwrap()
    }

    #[test]
    fn a_link_is_read_from_its_message() {
        let link = Link {
            name: "eth0".to_owned(),
            ifindex: 4,
            mac: Some(MacAddr::new([2, 0, 0, 0, 0, 9]).unwrap()),
            mtu: 1500,
            up: true,
            carrier: false,
            kind: Some("veth".to_owned()),
            peer: Some(Peer::Here(5)),
            xdp: None,
            features: None,
        };
        assert_eq!(veth(vec![LinkAttribute::Link(5)]), link);
        assert!(!link.is_running());
    }

    #[test]
    fn a_peer_in_another_namespace_is_not_taken_for_a_neighboring_ifindex() {
        let link = veth(vec![LinkAttribute::Link(5), LinkAttribute::LinkNetNsId(0)]);
        assert_eq!(link.peer, Some(Peer::Elsewhere));
        // The kernel leaves IFLA_LINK out where both ends have the same number.
        assert_eq!(veth(vec![]).peer, Some(Peer::Elsewhere));
    }

    #[test]
    fn a_bridge_port_message_is_no_link() {
        let mut port = message(vec![LinkAttribute::IfName("eth0".to_owned())]);
        port.header.interface_family = AddressFamily::Bridge;
        assert_eq!(Link::from_message(&port), None);
    }

    #[test]
    fn the_hook_holder_is_the_program_in_driver_or_stack() {
        let xdp = |parts| veth(vec![LinkAttribute::Xdp(parts)]).xdp;
        assert_eq!(xdp(vec![LinkXdp::Attached(XdpAttached::None)]), None);
        assert_eq!(
            xdp(vec![
                LinkXdp::Attached(XdpAttached::SocketBuffer),
                LinkXdp::ProgId(7),
                LinkXdp::SkbProgId(7)
            ]),
            Some(Attached { mode: AttachedMode::Generic, program_id: 7 })
        );
        assert_eq!(
            xdp(vec![LinkXdp::Attached(XdpAttached::Multiple), LinkXdp::DrvProgId(8), LinkXdp::HwProgId(9)]),
            Some(Attached { mode: AttachedMode::Native, program_id: 8 })
        );
    }
}
