//! Frames made and read without a line of the datapath's code: headers by `etherparse`, BIER by hand.

use std::fmt;

use anyhow::{Context as _, bail, ensure};
use etherparse::{IpNumber, Ipv4Header, Ipv6Header, UdpHeader};

/// How a frame carries BIER, with the addresses it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// UDP over IPv4: source, destination, DSCP and ECN, TTL.
    Ipv4([u8; 4], [u8; 4], u8, u8),
    /// UDP over IPv6: source, destination, traffic class, hop limit.
    Ipv6([u8; 16], [u8; 16], u8, u8),
    /// Straight Ethernet.
    Ethernet,
}

/// A frame with a BIER header, taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// Destination MAC address.
    pub destination: [u8; 6],
    /// Source MAC address.
    pub source: [u8; 6],
    /// VLAN tags: protocol and control information.
    pub tags: Vec<(u16, u16)>,
    /// What stands between Ethernet and BIER.
    pub carrier: Carrier,
    /// UDP ports, source and destination; not for Ethernet.
    pub ports: (u16, u16),
    /// Whether UDP over IPv4 has a checksum; over IPv6 it always does.
    pub checksum: bool,
    /// The first 12 bytes of BIER.
    pub header: [u8; 12],
    /// Set bits, counted from 1, ascending.
    pub bits: Vec<usize>,
    /// Bits of the BitString.
    pub length: usize,
    /// What follows.
    pub payload: Vec<u8>,
}

/// The header of RFC 8296 with these fields, everything else as a sender leaves it.
pub fn header(bift_id: u32, ttl: u8, length: usize, entropy: u32) -> [u8; 12] {
    let bsl = length.ilog2() - 5;
    let words = [bift_id << 12 | 1 << 8 | u32::from(ttl), 5 << 28 | bsl << 20 | entropy, 62 << 16 | 7];
    let mut bytes = [0; 12];
    for (to, word) in bytes.chunks_mut(4).zip(words) {
        to.copy_from_slice(&word.to_be_bytes());
    }
    bytes
}

impl Frame {
    /// The BIER packet: header, BitString, payload.
    pub fn packet(&self) -> Vec<u8> {
        let mut bit_string = vec![0; self.length / 8];
        for bit in &self.bits {
            bit_string[(self.length - bit) / 8] |= 1 << ((bit - 1) % 8);
        }
        [&self.header[..], &bit_string, &self.payload].concat()
    }

    /// The frame as it is on the wire, every length and checksum right.
    pub fn to_bytes(&self) -> Vec<u8> {
        let packet = self.packet();
        let mut bytes = [self.destination, self.source].concat();
        for (protocol, control) in &self.tags {
            bytes.extend(protocol.to_be_bytes());
            bytes.extend(control.to_be_bytes());
        }
        let (from, to) = self.ports;
        match self.carrier {
            Carrier::Ethernet => bytes.extend(0xAB37_u16.to_be_bytes()),
            Carrier::Ipv4(source, destination, tos, ttl) => {
                bytes.extend(0x0800_u16.to_be_bytes());
                let length = packet.len() as u16 + 8;
                let mut ip = Ipv4Header::new(length, ttl, IpNumber::UDP, source, destination).expect("short");
                ip.dscp = (tos >> 2).try_into().expect("six bits");
                ip.ecn = (tos & 3).try_into().expect("two bits");
                ip.header_checksum = ip.calc_header_checksum();
                let mut udp = UdpHeader { source_port: from, destination_port: to, length, checksum: 0 };
                if self.checksum {
                    udp.checksum = udp.calc_checksum_ipv4(&ip, &packet).expect("short");
                }
                bytes.extend(ip.to_bytes());
                bytes.extend(udp.to_bytes());
            }
            Carrier::Ipv6(source, destination, traffic_class, hop_limit) => {
                bytes.extend(0x86dd_u16.to_be_bytes());
                let length = packet.len() as u16 + 8;
                let ip = Ipv6Header {
                    traffic_class,
                    flow_label: etherparse::Ipv6FlowLabel::ZERO,
                    payload_length: length,
                    next_header: IpNumber::UDP,
                    hop_limit,
                    source,
                    destination,
                };
                let mut udp = UdpHeader { source_port: from, destination_port: to, length, checksum: 0 };
                udp.checksum = udp.calc_checksum_ipv6(&ip, &packet).expect("short");
                bytes.extend(ip.to_bytes());
                bytes.extend(udp.to_bytes());
            }
        }
        bytes.extend(packet);
        bytes
    }

    /// Takes a frame apart.
    ///
    /// # Errors
    /// Where it is no frame with BIER in it, or a length or checksum is wrong.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        let (destination, rest) = bytes.split_first_chunk().context("no destination")?;
        let (source, mut rest) = rest.split_first_chunk().context("no source")?;
        let mut tags = Vec::new();
        let ethertype = loop {
            let (kind, behind) = rest.split_first_chunk().context("no ethertype")?;
            rest = behind;
            match u16::from_be_bytes(*kind) {
                protocol @ (0x8100 | 0x88a8) => {
                    let (control, behind) = rest.split_first_chunk().context("no tag")?;
                    tags.push((protocol, u16::from_be_bytes(*control)));
                    rest = behind;
                }
                other => break other,
            }
        };
        let mut checksum = false;
        let (carrier, ports, packet) = match ethertype {
            0xAB37 => (Carrier::Ethernet, (0, 0), rest),
            0x0800 => {
                let (ip, rest) = Ipv4Header::from_slice(rest)?;
                ensure!(ip.header_checksum == ip.calc_header_checksum(), "IPv4 checksum {ip:?}");
                ensure!(usize::from(ip.total_len) == rest.len() + 20, "IPv4 length {ip:?}");
                let (udp, packet) = UdpHeader::from_slice(rest)?;
                ensure!(usize::from(udp.length) == rest.len(), "UDP length {udp:?}");
                checksum = udp.checksum != 0;
                ensure!(
                    !checksum || udp.checksum == udp.calc_checksum_ipv4(&ip, packet)?,
                    "UDP checksum {udp:?}"
                );
                let tos = ip.dscp.value() << 2 | ip.ecn.value();
                let carrier = Carrier::Ipv4(ip.source, ip.destination, tos, ip.time_to_live);
                (carrier, (udp.source_port, udp.destination_port), packet)
            }
            0x86dd => {
                let (ip, rest) = Ipv6Header::from_slice(rest)?;
                ensure!(usize::from(ip.payload_length) == rest.len(), "IPv6 length {ip:?}");
                let (udp, packet) = UdpHeader::from_slice(rest)?;
                ensure!(usize::from(udp.length) == rest.len(), "UDP length {udp:?}");
                ensure!(udp.checksum == udp.calc_checksum_ipv6(&ip, packet)?, "UDP checksum {udp:?}");
                checksum = true;
                let carrier = Carrier::Ipv6(ip.source, ip.destination, ip.traffic_class, ip.hop_limit);
                (carrier, (udp.source_port, udp.destination_port), packet)
            }
            other => bail!("ethertype {other:#06x}"),
        };
        let (header, rest) = packet.split_first_chunk::<12>().context("no BIER header")?;
        let length = 32 << (header[5] >> 4);
        ensure!(rest.len() >= length / 8, "BitString of {length} bits in {} bytes", rest.len());
        let (bit_string, payload) = rest.split_at(length / 8);
        let set = |bit: &usize| bit_string[(length - bit) / 8] >> ((bit - 1) % 8) & 1 == 1;
        Ok(Self {
            destination: *destination,
            source: *source,
            tags,
            carrier,
            ports,
            checksum,
            header: *header,
            bits: (1..=length).filter(set).collect(),
            length,
            payload: payload.to_vec(),
        })
    }
}

/// Compares frames that came out with those that should have, in order, and says briefly what is wrong.
///
/// # Panics
/// Where they differ.
#[track_caller]
pub fn assert_frames(found: &[Frame], expected: &[Frame], note: impl fmt::Display) {
    let first = found.iter().zip(expected).position(|(found, expected)| found != expected);
    let at = first.unwrap_or(found.len().min(expected.len()));
    assert!(
        found == expected,
        "{note}: {} frames instead of {}; number {at} is\n{:?}\ninstead of\n{:?}",
        found.len(),
        expected.len(),
        found.get(at),
        expected.get(at),
    );
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("destination", &format_args!("{:02x?}", self.destination))
            .field("source", &format_args!("{:02x?}", self.source))
            .field("tags", &self.tags)
            .field("carrier", &self.carrier)
            .field("ports", &self.ports)
            .field("checksum", &self.checksum)
            .field("header", &format_args!("{:02x?}", self.header))
            .field("bits", &format_args!("{:?}", self.bits))
            .field("length", &self.length)
            // Enough to tell which it is.
            .field("payload", &format_args!("{} bytes: {:02x?}", self.payload.len(), self.payload.get(..4)))
            .finish()
    }
}
