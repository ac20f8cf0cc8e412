//! What a frame is: ours or not, and where its BIER header lies.

use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};
use replicator_common::{
    ETHERTYPE_BIER,
    bier::HEADER_BYTES,
    limits::MAX_VLAN_TAGS,
    neighbor::{Encapsulation, Endpoint},
    outcome::Outcome,
};

use crate::frame::{Frame, Wire};

/// Bytes of the two MAC addresses, which the ethertype follows.
pub const MAC_BYTES: usize = 12;
/// Bytes of a VLAN tag.
pub const VLAN_TAG_BYTES: usize = 4;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;
const PROTOCOL_UDP: u8 = 17;
const NEXT_HEADER_FRAGMENT: u8 = 44;
const FRAGMENT_HEADER_BYTES: usize = 8;
/// More-fragments flag and fragment offset of IPv4's field.
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

/// UDP over IPv4 and the BIER header in one piece, so that one comparison with the end of the frame is enough.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct OverIpv4<const WORDS: usize> {
    /// Network header.
    pub ip: Ipv4Hdr,
    /// Transport header.
    pub udp: UdpHdr,
    /// BIER header.
    pub bier: Bier<WORDS>,
}

/// UDP over IPv6 and the BIER header.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct OverIpv6<const WORDS: usize> {
    /// Network header.
    pub ip: Ipv6Hdr,
    /// Transport header.
    pub udp: UdpHdr,
    /// BIER header.
    pub bier: Bier<WORDS>,
}

/// The BIER header with a BitString of so many 64-bit words, as on the wire: the first word has the highest bits.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Bier<const WORDS: usize> {
    /// See [`replicator_common::bier::Header`].
    pub header: [u8; HEADER_BYTES],
    /// BitString.
    pub bits: [[u8; 8]; WORDS],
}

// SAFETY: headers that are `Wire` themselves, in `repr(C)` without padding, as alignment 1 cannot have any.
unsafe impl<const WORDS: usize> Wire for OverIpv4<WORDS> {}
// SAFETY: as above.
unsafe impl<const WORDS: usize> Wire for OverIpv6<WORDS> {}
// SAFETY: as above.
unsafe impl<const WORDS: usize> Wire for Bier<WORDS> {}

/// A frame that speaks BIER, by its ethertype or its UDP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// How it is carried.
    pub encapsulation: Encapsulation,
    /// VLAN tags before the network header.
    pub tag_count: u8,
    /// Offset of the network header (of the BIER header where there is none).
    pub network_offset: usize,
    /// Why it cannot be replicated although it is BIER.
    fault: Option<Outcome>,
}

impl Packet {
    /// Tells BIER from everything else. `None`: not ours.
    #[inline(always)]
    pub fn parse(frame: &Frame<'_>, udp_port: u16) -> Option<Self> {
        let mut ethertype = u16::from_be_bytes(*frame.at(MAC_BYTES)?);
        let mut network_offset = MAC_BYTES + 2;
        let mut tag_count = 0;
        for _ in 0..MAX_VLAN_TAGS {
            if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
                break;
            }
            let tag = frame.at::<[u8; VLAN_TAG_BYTES]>(network_offset)?;
            ethertype = u16::from_be_bytes([tag[2], tag[3]]);
            network_offset += VLAN_TAG_BYTES;
            tag_count += 1;
        }
        let (encapsulation, fault) = match ethertype {
            ETHERTYPE_IPV4 => (Encapsulation::Ipv4, ipv4(frame, network_offset, udp_port)?),
            ETHERTYPE_IPV6 => (Encapsulation::Ipv6, ipv6(frame, network_offset, udp_port)?),
            ETHERTYPE_BIER => (Encapsulation::Ethernet, None),
            _ => return None,
        };
        Some(Self { encapsulation, tag_count, network_offset, fault })
    }

    /// Offset of the UDP header, where there is one.
    #[inline(always)]
    pub const fn udp_offset(&self) -> usize {
        self.network_offset
            + match self.encapsulation {
                Encapsulation::Ipv4 => size_of::<Ipv4Hdr>(),
                Encapsulation::Ipv6 => size_of::<Ipv6Hdr>(),
                Encapsulation::Ethernet => 0,
            }
    }

    /// Offset of the BIER header.
    #[inline(always)]
    pub const fn bier_offset(&self) -> usize {
        match self.encapsulation {
            Encapsulation::Ethernet => self.network_offset,
            _ => self.udp_offset() + size_of::<UdpHdr>(),
        }
    }

    /// Who sent it, and to whom.
    #[inline(always)]
    pub fn endpoints(&self, frame: &Frame<'_>) -> Option<(Endpoint, Endpoint)> {
        Some(match self.encapsulation {
            Encapsulation::Ipv4 => {
                let header = frame.at::<Ipv4Hdr>(self.network_offset)?;
                (Endpoint::ipv4(header.src_addr), Endpoint::ipv4(header.dst_addr))
            }
            Encapsulation::Ipv6 => {
                let header = frame.at::<Ipv6Hdr>(self.network_offset)?;
                (Endpoint::ipv6(header.src_addr), Endpoint::ipv6(header.dst_addr))
            }
            Encapsulation::Ethernet => {
                let [destination, source] = *frame.at::<[[u8; 6]; 2]>(0)?;
                (Endpoint::mac(source), Endpoint::mac(destination))
            }
        })
    }

    /// TTL or hop limit of the IP header, where there is one.
    #[inline(always)]
    pub fn hop_limit(&self, frame: &Frame<'_>) -> Option<u8> {
        match self.encapsulation {
            Encapsulation::Ipv4 => Some(frame.at::<Ipv4Hdr>(self.network_offset)?.ttl),
            Encapsulation::Ipv6 => Some(frame.at::<Ipv6Hdr>(self.network_offset)?.hop_limit),
            Encapsulation::Ethernet => None,
        }
    }

    /// Whether every length agrees in a frame of `frame_bytes`, of which `frame` is the linear part. Returns how many
    /// bytes the BIER packet has, header included.
    ///
    /// # Errors
    /// The outcome of a frame that is not replicated for what its network and transport headers say.
    #[inline(always)]
    pub fn bier_bytes(&self, frame: &Frame<'_>, frame_bytes: usize) -> Result<usize, Outcome> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let behind_network = match self.encapsulation {
            Encapsulation::Ethernet => return Ok(frame_bytes - self.network_offset),
            Encapsulation::Ipv4 => {
                let header = frame.at::<Ipv4Hdr>(self.network_offset).ok_or(Outcome::Malformed)?;
                (header.tot_len() as usize).checked_sub(size_of::<Ipv4Hdr>()).ok_or(Outcome::Malformed)?
            }
            Encapsulation::Ipv6 => {
                frame.at::<Ipv6Hdr>(self.network_offset).ok_or(Outcome::Malformed)?.payload_len() as usize
            }
        };
        let udp = frame.at::<UdpHdr>(self.udp_offset()).ok_or(Outcome::Malformed)?;
        // A frame may be longer than its packet (Ethernet pads to 60 bytes), never shorter.
        if udp.len() as usize != behind_network || self.udp_offset() + behind_network > frame_bytes {
            return Err(Outcome::Malformed);
        }
        behind_network.checked_sub(size_of::<UdpHdr>()).ok_or(Outcome::Malformed)
    }
}

/// `None` where these are not the headers of a packet to `udp_port`; else what is wrong with them, if anything.
#[inline(always)]
fn ipv4(frame: &Frame<'_>, offset: usize, udp_port: u16) -> Option<Option<Outcome>> {
    let header = frame.at::<Ipv4Hdr>(offset)?;
    let fragment = u16::from_be_bytes(header.frags);
    // Only the first fragment has a port; the others go to the stack, which drops what never completes.
    if header.vihl >> 4 != 4 || header.proto != PROTOCOL_UDP || fragment & FRAGMENT_OFFSET != 0 {
        return None;
    }
    let header_bytes = (header.vihl & 0xf) as usize * 4;
    if header_bytes < size_of::<Ipv4Hdr>() || port(frame, offset + header_bytes)? != udp_port {
        return None;
    }
    Some(if fragment & MORE_FRAGMENTS != 0 {
        Some(Outcome::IpFragment)
    } else if header_bytes != size_of::<Ipv4Hdr>() {
        Some(Outcome::IpOptions)
    } else {
        None
    })
}

/// As [`ipv4`]. Extension headers other than a fragment's are not ours: nobody sends BIER behind them.
#[inline(always)]
fn ipv6(frame: &Frame<'_>, offset: usize, udp_port: u16) -> Option<Option<Outcome>> {
    let header = frame.at::<Ipv6Hdr>(offset)?;
    let behind = offset + size_of::<Ipv6Hdr>();
    if header.vcf[0] >> 4 != 6 {
        return None;
    }
    match header.next_hdr {
        PROTOCOL_UDP if port(frame, behind)? == udp_port => Some(None),
        NEXT_HEADER_FRAGMENT => {
            let [next, _, high, low, ..] = *frame.at::<[u8; FRAGMENT_HEADER_BYTES]>(behind)?;
            let first = u16::from_be_bytes([high, low]) >> 3 == 0;
            let ours =
                next == PROTOCOL_UDP && first && port(frame, behind + FRAGMENT_HEADER_BYTES)? == udp_port;
            ours.then_some(Some(Outcome::IpFragment))
        }
        _ => None,
    }
}

/// Destination port of the UDP header at `offset`.
#[inline(always)]
fn port(frame: &Frame<'_>, offset: usize) -> Option<u16> {
    Some(u16::from_be_bytes(frame.at::<UdpHdr>(offset)?.dst))
}

#[cfg(test)]
mod tests {
    use std::{vec, vec::Vec};

    use super::*;

    const PORT: u16 = 8138;

    fn parse(bytes: &mut [u8]) -> (Option<Packet>, Option<Result<usize, Outcome>>) {
        let (length, range) = (bytes.len(), bytes.as_mut_ptr_range());
        // SAFETY: `bytes` outlives the frame and is not touched meanwhile.
        let frame = unsafe { Frame::new(range.start as usize, range.end as usize) };
        let packet = Packet::parse(&frame, PORT);
        (packet, packet.map(|packet| packet.bier_bytes(&frame, length)))
    }

    fn ethernet(tags: &[u16], ethertype: u16, rest: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x02; 12];
        for tag in tags {
            frame.extend(tag.to_be_bytes());
            frame.extend([0, 100]);
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend(rest);
        frame
    }

    /// An IPv4 header of `words` 32-bit words with these flags and offset, and UDP with 20 bytes.
    fn ipv4(words: u8, fragment: u16, protocol: u8, port: u16) -> Vec<u8> {
        let total = u16::from(words) * 4 + 28;
        let [high, low] = total.to_be_bytes();
        let [f, g] = fragment.to_be_bytes();
        let mut packet = vec![0x40 | words, 0, high, low, 0, 1, f, g, 64, protocol, 0, 0];
        packet.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        packet.resize(usize::from(words) * 4, 1);
        udp(&mut packet, port);
        packet
    }

    fn ipv6(next: u8, between: &[u8], port: u16) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 28 + between.len() as u8, next, 64];
        packet.extend([0xfd; 32]);
        packet.extend(between);
        udp(&mut packet, port);
        packet
    }

    fn udp(packet: &mut Vec<u8>, port: u16) {
        packet.extend(40_000_u16.to_be_bytes());
        packet.extend(port.to_be_bytes());
        packet.extend([0, 28, 0, 0]);
        packet.extend([0; 20]);
    }

    #[test]
    fn tells_where_the_bier_header_lies() {
        for (tags, tag_bytes) in [(&[][..], 0), (&[0x8100], 4), (&[0x88a8, 0x8100], 8)] {
            for (ethertype, rest, network_bytes, encapsulation) in [
                (0x0800, ipv4(5, 0x4000, 17, PORT), 28, Encapsulation::Ipv4),
                (0x86dd, ipv6(17, &[], PORT), 48, Encapsulation::Ipv6),
                (0xAB37, vec![0; 20], 0, Encapsulation::Ethernet),
            ] {
                let (packet, bytes) = parse(&mut ethernet(tags, ethertype, &rest));
                let packet = packet.unwrap();
                assert_eq!(packet.encapsulation, encapsulation);
                assert_eq!(usize::from(packet.tag_count), tags.len());
                assert_eq!(packet.network_offset, 14 + tag_bytes);
                assert_eq!(packet.bier_offset(), 14 + tag_bytes + network_bytes);
                assert_eq!(bytes, Some(Ok(20)));
            }
        }
    }

    #[test]
    fn everything_else_is_not_ours() {
        let mut three_tags = ethernet(&[0x8100; 3], 0x0800, &ipv4(5, 0, 17, PORT));
        assert_eq!(parse(&mut three_tags).0, None);
        for (ethertype, rest) in [
            (0x0806, vec![0; 28]),
            (0x0800, ipv4(5, 0, 6, PORT)),
            (0x0800, ipv4(5, 0, 17, PORT + 1)),
            (0x0800, ipv4(5, 0x2001, 17, PORT)),
            (0x0800, ipv4(4, 0, 17, PORT)),
            (0x86dd, ipv6(6, &[], PORT)),
            (0x86dd, ipv6(17, &[], PORT - 1)),
            (0x86dd, ipv6(44, &[17, 0, 0, 8, 0, 0, 0, 1], PORT)),
            (0x86dd, ipv6(44, &[6, 0, 0, 1, 0, 0, 0, 1], PORT)),
            (0x86dd, ipv6(0, &[17, 0, 0, 0, 0, 0, 0, 0], PORT)),
        ] {
            assert_eq!(parse(&mut ethernet(&[], ethertype, &rest)).0, None, "{rest:02x?}");
        }
    }

    #[test]
    fn what_is_ours_and_wrong_has_its_outcome() {
        let mut short_udp = ipv4(5, 0, 17, PORT);
        short_udp[25] = 27;
        let mut long_ip = ipv4(5, 0, 17, PORT);
        long_ip[3] += 1;
        let mut long_ipv6 = ipv6(17, &[], PORT);
        long_ipv6[5] += 1;
        for (ethertype, rest, outcome) in [
            (0x0800, ipv4(5, 0x2000, 17, PORT), Outcome::IpFragment),
            (0x0800, ipv4(6, 0, 17, PORT), Outcome::IpOptions),
            (0x86dd, ipv6(44, &[17, 0, 0, 1, 0, 0, 0, 1], PORT), Outcome::IpFragment),
            (0x0800, short_udp, Outcome::Malformed),
            (0x0800, long_ip, Outcome::Malformed),
            (0x86dd, long_ipv6, Outcome::Malformed),
            (0x0800, ipv4(5, 0, 17, PORT)[..47].to_vec(), Outcome::Malformed),
        ] {
            let (_, bytes) = parse(&mut ethernet(&[], ethertype, &rest));
            assert_eq!(bytes, Some(Err(outcome)), "{rest:02x?}");
        }
    }

    #[test]
    fn padding_behind_the_packet_is_not_the_packet() {
        let mut frame = ethernet(&[], 0x0800, &ipv4(5, 0, 17, PORT));
        frame.extend([0; 18]);
        assert_eq!(parse(&mut frame).1, Some(Ok(20)));
    }

    #[test]
    fn no_truncation_reads_beyond_the_end() {
        for (ethertype, rest) in
            [(0x0800, ipv4(5, 0, 17, PORT)), (0x86dd, ipv6(17, &[], PORT)), (0xAB37, vec![0; 20])]
        {
            let frame = ethernet(&[0x88a8, 0x8100], ethertype, &rest);
            for length in 0..frame.len() {
                parse(&mut frame[..length].to_vec());
            }
        }
    }
}
