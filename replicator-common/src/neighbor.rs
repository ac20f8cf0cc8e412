//! Values of the maps that hold the neighbors and who may send.

use crate::limits::MAX_VLAN_TAGS;

/// How BIER is carried. The datapath keeps a frame's encapsulation, so a neighbor has the one its frames have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encapsulation {
    /// UDP over IPv4.
    Ipv4 = 0,
    /// UDP over IPv6.
    Ipv6 = 1,
    /// Straight Ethernet, ethertype 0xAB37.
    Ethernet = 2,
}

/// Ids below this are this host's own stack, one for each [`Encapsulation`]; the id is the encapsulation's number.
pub const FIRST_REMOTE_NEIGHBOR: u32 = 3;

/// A VLAN tag as it is on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct VlanTag {
    /// Tag protocol: 0x8100 (802.1Q) or 0x88a8 (802.1ad), big-endian.
    pub protocol: [u8; 2],
    /// VLAN identifier, 12 bits, big-endian. Priority and DEI of the frame are kept.
    pub id: [u8; 2],
}

/// A next hop: everything that `rewrite` writes into a copy. Addresses and ports are big-endian, as on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Neighbor {
    /// Source IP address; IPv4 takes the first four bytes.
    pub source_ip: [u8; 16],
    /// Destination IP address; IPv4 takes the first four bytes.
    pub destination_ip: [u8; 16],
    /// Destination MAC address, then source MAC address: as they follow in the frame.
    pub macs: [u8; 12],
    /// VLAN tags, outermost first; the first `tag_count` count.
    pub tags: [VlanTag; MAX_VLAN_TAGS],
    /// Destination UDP port.
    pub udp_port: [u8; 2],
    /// Outer TTL or hop limit of copies.
    pub hop_limit: u8,
    /// An [`Encapsulation`]'s number.
    pub encapsulation: u8,
    /// Device the neighbor is behind.
    pub ifindex: u32,
    /// VLAN tags.
    pub tag_count: u8,
    /// Always 0.
    pub zero: [u8; 3],
}

/// What was sent to a neighbor, by one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Traffic {
    /// Copies.
    pub copies: u64,
    /// Bytes of those copies, Ethernet header included.
    pub bytes: u64,
}

/// An address in the admission map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Endpoint {
    /// An [`Encapsulation`]'s number: which kind of address this is.
    pub kind: u32,
    /// IPv6 address, or IPv4 or MAC address in the first bytes and zeros behind it.
    pub address: [u8; 16],
}

impl Endpoint {
    /// An IPv4 address.
    #[inline(always)]
    pub const fn ipv4(address: [u8; 4]) -> Self {
        let [a, b, c, d] = address;
        Self { kind: Encapsulation::Ipv4 as u32, address: [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] }
    }

    /// An IPv6 address.
    #[inline(always)]
    pub const fn ipv6(address: [u8; 16]) -> Self {
        Self { kind: Encapsulation::Ipv6 as u32, address }
    }

    /// A MAC address.
    #[inline(always)]
    pub const fn mac(address: [u8; 6]) -> Self {
        let [a, b, c, d, e, f] = address;
        Self {
            kind: Encapsulation::Ethernet as u32,
            address: [a, b, c, d, e, f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        }
    }
}

/// What an [`Endpoint`] may do: bits of the admission map's value.
pub mod role {
    /// Frames may come from it.
    pub const SOURCE: u32 = 1;
    /// It is an address of this host.
    pub const OWN: u32 = 2;
}

/// Key of the trie of allowed sources: `kind` and the address's prefix, most significant bit first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SourcePrefix {
    /// An [`Encapsulation`]'s number, so that 0.0.0.0/0 does not take in IPv6.
    pub kind: [u8; 4],
    /// The address as in [`Endpoint`].
    pub address: [u8; 16],
}

impl SourcePrefix {
    /// Bits of a key that stand before the address: add the prefix's own length.
    pub const KIND_BITS: u32 = 32;
}

/// What the daemon sets and the datapath reads, beyond the constants of the load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// Peer of the veth that this host's programs send into; 0 where there is none. Frames from it need no admission.
    pub origin_ifindex: u32,
    /// What marks the frames of this load, so that a daemon that adopts the maps finds it; 0 in maps that have none yet.
    /// The programs have it as a constant.
    pub cookie: u32,
}

const _: () = assert!(size_of::<Neighbor>() == 64);
const _: () = assert!(size_of::<Traffic>() == 16);
const _: () = assert!(size_of::<Endpoint>() == 20);
const _: () = assert!(size_of::<SourcePrefix>() == 20);
const _: () = assert!(size_of::<Settings>() == 8);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)` integers without padding, checked by the size asserts above; every bit pattern is a value.
    unsafe impl aya::Pod for super::Neighbor {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Traffic {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Endpoint {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SourcePrefix {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Settings {}
}
