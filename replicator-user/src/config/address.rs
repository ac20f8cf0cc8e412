//! Addresses and names as configurations hold them: once made, they need no further check.

use std::{fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;

/// A unicast MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

/// Why text or bytes are not a value of a type in this module; says what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be {0}")]
pub struct AddressError(&'static str);

impl MacAddr {
    pub(super) const WHAT: &str = "a unicast MAC address such as 02:00:00:00:00:01";

    /// The address with these bytes, unless it is a group's or all zero.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        (bytes != [0; 6] && bytes[0] & 1 == 0).then_some(Self(bytes))
    }

    /// The bytes as they are on the wire.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddr {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let byte = |part: &str| {
            let hex = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
            hex.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes = bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok());
        bytes.and_then(Self::new).ok_or(AddressError(Self::WHAT))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The name of a network interface, as `dev_valid_name` of the kernel allows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    pub(super) const WHAT: &str =
        "an interface's name: 1 to 15 bytes without blanks, `/` and `:`, and not `.` or `..`";

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for InterfaceName {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let strange = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        let valid = (1..=15).contains(&text.len()) && text != "." && text != ".." && !text.contains(strange);
        if valid { Ok(Self(text.to_owned())) } else { Err(AddressError(Self::WHAT)) }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who may send, besides the neighbors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Everyone with an IP address in it.
    Prefix(IpNet),
    /// One sender of BIER straight over Ethernet.
    Mac(MacAddr),
}

impl Source {
    pub(super) const WHAT: &str = "a prefix without bits behind its length (10.0.0.0/24, 2001:db8::/64), an IP address or a unicast MAC address";
}

impl FromStr for Source {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let prefix = text.parse::<IpNet>().ok().filter(|prefix| prefix.trunc() == *prefix);
        let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
        match prefix.or_else(address) {
            Some(prefix) => Ok(Self::Prefix(prefix)),
            None => text.parse().map(Self::Mac).map_err(|_| AddressError(Self::WHAT)),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) => prefix.fmt(f),
            Self::Mac(mac) => mac.fmt(f),
        }
    }
}

/// The two ends of a point-to-point link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link<A> {
    /// Address of the end that belongs to this host's stack.
    pub stack: A,
    /// Address of the other end.
    pub peer: A,
    /// Prefix length of the link's subnet.
    pub prefix_length: u8,
}

impl Link<std::net::Ipv4Addr> {
    pub(super) const WHAT: &str =
        "an address with /30 or /31, one of the two usable ones, such as 169.254.81.1/30";
    pub(super) const DEFAULT: Self = Self {
        stack: std::net::Ipv4Addr::new(169, 254, 81, 1),
        peer: std::net::Ipv4Addr::new(169, 254, 81, 2),
        prefix_length: 30,
    };
}

impl Link<std::net::Ipv6Addr> {
    pub(super) const WHAT: &str =
        "an address with /126 or /127, one of the two usable ones, such as fd00:8138::1/126";
    pub(super) const DEFAULT: Self = Self {
        stack: std::net::Ipv6Addr::new(0xfd00, 0x8138, 0, 0, 0, 0, 0, 1),
        peer: std::net::Ipv6Addr::new(0xfd00, 0x8138, 0, 0, 0, 0, 0, 2),
        prefix_length: 126,
    };
}

/// Bits by which the ends of a link differ, where the last two bits of one are `end` and its subnet has `host_bits`.
fn flip(end: u8, host_bits: u8) -> Option<u8> {
    match (host_bits, end & 3) {
        // RFC 3021 and RFC 6164: both addresses are usable.
        (1, _) => Some(1),
        // All zeros names the subnet, all ones is its broadcast address; IPv6 keeps to the same two.
        (2, 1 | 2) => Some(3),
        _ => None,
    }
}

impl FromStr for Link<std::net::Ipv4Addr> {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let read = || {
            let net: ipnet::Ipv4Net = text.parse().ok()?;
            let stack = net.addr();
            let flip = flip(stack.octets()[3], 32 - net.prefix_len())?;
            let peer = (stack.to_bits() ^ u32::from(flip)).into();
            let usable = !stack.is_multicast() && !stack.is_unspecified() && !stack.is_loopback();
            usable.then_some(Self { stack, peer, prefix_length: net.prefix_len() })
        };
        read().ok_or(AddressError(Self::WHAT))
    }
}

impl FromStr for Link<std::net::Ipv6Addr> {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let read = || {
            let net: ipnet::Ipv6Net = text.parse().ok()?;
            let stack = net.addr();
            let flip = flip(stack.octets()[15], 128 - net.prefix_len())?;
            let peer = (stack.to_bits() ^ u128::from(flip)).into();
            let usable = !stack.is_multicast() && !stack.is_unspecified() && !stack.is_loopback();
            usable.then_some(Self { stack, peer, prefix_length: net.prefix_len() })
        };
        read().ok_or(AddressError(Self::WHAT))
    }
}

/// A host's own address, not a group's or a special one.
pub(super) fn unicast(address: IpAddr) -> bool {
    let special = address.is_unspecified() || address.is_multicast() || address.is_loopback();
    let mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
    !special && !mapped && !broadcast
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn mac_addresses() {
        let mac: MacAddr = "02:aB:00:00:00:ff".parse().unwrap();
        assert_eq!(mac.octets(), [2, 0xab, 0, 0, 0, 0xff]);
        assert_eq!(mac.to_string(), "02:ab:00:00:00:ff");
        for wrong in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "02:00:00:00:00:1",
            "02:00:00:00:00:+1",
            "02-00-00-00-00-01",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "ff:ff:ff:ff:ff:ff",
            "02:00:00:00:00:é",
        ] {
            assert!(wrong.parse::<MacAddr>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn interface_names() {
        for right in ["eth0", "eth0.100", "enp65s0f0np0", "a23456789012345", "veth@x"] {
            assert_eq!(right.parse::<InterfaceName>().unwrap().as_str(), right);
        }
        for wrong in ["", ".", "..", "a/b", "a b", "a:b", "a234567890123456", "a\u{1b}"] {
            assert!(wrong.parse::<InterfaceName>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sources() {
        for (text, shown) in [
            ("10.0.0.0/24", "10.0.0.0/24"),
            ("10.0.0.7", "10.0.0.7/32"),
            ("2001:DB8::/64", "2001:db8::/64"),
            ("::1", "::1/128"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("02:00:00:00:00:01", "02:00:00:00:00:01"),
        ] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), shown);
        }
        for wrong in ["10.0.0.7/24", "10.0.0.0/33", "10.0.0", "node1", "01:00:00:00:00:01", "2001:db8::1/64"]
        {
            assert!(wrong.parse::<Source>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_other_end_of_a_link() {
        let peer = |text: &str| text.parse::<Link<Ipv4Addr>>().map(|link| link.peer.to_string());
        assert_eq!(peer("169.254.81.1/30").unwrap(), "169.254.81.2");
        assert_eq!(peer("169.254.81.6/30").unwrap(), "169.254.81.5");
        assert_eq!(peer("10.0.0.0/31").unwrap(), "10.0.0.1");
        assert_eq!(peer("10.0.0.1/31").unwrap(), "10.0.0.0");
        for wrong in ["10.0.0.0/30", "10.0.0.3/30", "10.0.0.1/29", "10.0.0.1/32", "10.0.0.1", "224.0.0.1/30"]
        {
            assert!(peer(wrong).is_err(), "{wrong}");
        }
        let peer = |text: &str| text.parse::<Link<Ipv6Addr>>().map(|link| link.peer.to_string());
        assert_eq!(peer("fd00::1/126").unwrap(), "fd00::2");
        assert_eq!(peer("fd00::ff/127").unwrap(), "fd00::fe");
        for wrong in ["fd00::/126", "fd00::3/126", "fd00::1/64", "ff02::1/126", "fd00::1"] {
            assert!(peer(wrong).is_err(), "{wrong}");
        }
        assert_eq!("169.254.81.1/30".parse(), Ok(Link::<Ipv4Addr>::DEFAULT));
        assert_eq!("fd00:8138::1/126".parse(), Ok(Link::<Ipv6Addr>::DEFAULT));
    }
}
