//! Everything that differs from copy to copy: BitString, TTL, MAC addresses, VLAN, IP, UDP, checksums.

use aya_ebpf::{helpers::bpf_xdp_adjust_head, programs::XdpContext};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};
use replicator_common::{
    bier::{HEADER_BYTES, Header, HeaderMut},
    limits::MAX_VLAN_TAGS,
    neighbor::{Encapsulation, Neighbor},
    outcome::Outcome,
    table::CHUNK_WORDS,
};
use replicator_ebpf::{
    checksum::Delta,
    frame::Frame,
    packet::{MAC_BYTES, VLAN_TAG_BYTES},
};

use super::next::Next;
use crate::maps::FBMS;

/// Bits of a VLAN tag's control information that are the VLAN's id; priority and DEI stay the frame's.
const VLAN_ID: u16 = 0x0fff;

/// Writes a copy for its member. Returns its length in bytes.
#[inline(always)]
pub(crate) fn write(ctx: &XdpContext, frame: &mut Frame<'_>, next: &Next<'_>) -> Result<usize, Outcome> {
    let neighbor = next.neighbor;
    let mut udp_delta = Delta::default();
    let network = next.network_offset;
    if next.encapsulation == Encapsulation::Ipv4 as u8 {
        bier(frame, network + size_of::<Ipv4Hdr>() + size_of::<UdpHdr>(), next, &mut udp_delta)?;
        ipv4(frame, network, neighbor, &mut udp_delta)?;
        udp(frame, network + size_of::<Ipv4Hdr>(), neighbor, udp_delta)?;
    } else if next.encapsulation == Encapsulation::Ipv6 as u8 {
        bier(frame, network + size_of::<Ipv6Hdr>() + size_of::<UdpHdr>(), next, &mut udp_delta)?;
        ipv6(frame, network, neighbor, &mut udp_delta)?;
        udp(frame, network + size_of::<Ipv6Hdr>(), neighbor, udp_delta)?;
    } else {
        bier(frame, network, next, &mut udp_delta)?;
    }
    if next.local && next.tag_count != 0 {
        return untag(ctx, frame, next);
    }
    *frame.at_mut(0).ok_or(Outcome::CopyMalformed)? = neighbor.macs;
    for i in 0..MAX_VLAN_TAGS {
        if i >= next.tag_count as usize {
            break;
        }
        let tag = frame
            .at_mut::<[u8; VLAN_TAG_BYTES]>(MAC_BYTES + i * VLAN_TAG_BYTES)
            .ok_or(Outcome::CopyMalformed)?;
        let [p, q] = neighbor.tags[i].protocol;
        let id = u16::from_be_bytes(neighbor.tags[i].id);
        let [c, d] = (u16::from_be_bytes([tag[2], tag[3]]) & !VLAN_ID | id & VLAN_ID).to_be_bytes();
        *tag = [p, q, c, d];
    }
    Ok(frame.len())
}

/// This host's stack knows the veth without tags: the MAC addresses move up to the network header's ethertype.
#[inline(always)]
fn untag(ctx: &XdpContext, frame: &mut Frame<'_>, next: &Next<'_>) -> Result<usize, Outcome> {
    let tags = next.tag_count as usize * VLAN_TAG_BYTES;
    *frame.at_mut(tags).ok_or(Outcome::CopyMalformed)? = next.neighbor.macs;
    let bytes = frame.len() - tags;
    // SAFETY: the context is the one the kernel gave, and the frame is not read again.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, tags as i32) } != 0 {
        return Err(Outcome::CopyMalformed);
    }
    Ok(bytes)
}

/// BitString &= F-BM (RFC 8279, section 6.5), and one hop off the TTL unless the packet ends here.
#[inline(always)]
fn bier(frame: &mut Frame<'_>, offset: usize, next: &Next<'_>, delta: &mut Delta) -> Result<(), Outcome> {
    let bytes = frame.at_mut::<[u8; HEADER_BYTES]>(offset).ok_or(Outcome::CopyMalformed)?;
    let ttl = Header::new(bytes).ttl();
    if !next.local {
        let [a, b, c, d, ..] = *bytes;
        HeaderMut::new(bytes).set_ttl(ttl - 1);
        delta.change32(u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([a, b, c, ttl - 1]));
    }
    let bits = offset + HEADER_BYTES;
    match next.words {
        1 => mask::<1>(frame, bits, next.fbm, delta),
        2 => mask::<2>(frame, bits, next.fbm, delta),
        4 => mask::<4>(frame, bits, next.fbm, delta),
        8 => mask::<8>(frame, bits, next.fbm, delta),
        _ => mask::<16>(frame, bits, next.fbm, delta),
    }
}

#[inline(always)]
fn mask<const WORDS: usize>(
    frame: &mut Frame<'_>,
    offset: usize,
    fbm: u32,
    delta: &mut Delta,
) -> Result<(), Outcome> {
    let bits = frame.at_mut::<[[u8; 8]; WORDS]>(offset).ok_or(Outcome::CopyMalformed)?;
    for chunk in 0..WORDS.div_ceil(CHUNK_WORDS) {
        let chunk_bits = FBMS.get(fbm + chunk as u32).ok_or(Outcome::CopyMalformed)?;
        for i in 0..if WORDS < CHUNK_WORDS { WORDS } else { CHUNK_WORDS } {
            let on_wire = &mut bits[WORDS - 1 - (chunk * CHUNK_WORDS + i)];
            let old = u64::from_ne_bytes(*on_wire);
            let new = old & chunk_bits.0[i].to_be();
            *on_wire = new.to_ne_bytes();
            delta.change64(old, new);
        }
    }
    Ok(())
}

/// DSCP, ECN and everything else of the header stay the frame's.
#[inline(always)]
fn ipv4(frame: &mut Frame<'_>, offset: usize, neighbor: &Neighbor, udp: &mut Delta) -> Result<(), Outcome> {
    let header = frame.at_mut::<Ipv4Hdr>(offset).ok_or(Outcome::CopyMalformed)?;
    let [a, b, c, d, ..] = neighbor.source_ip;
    let [e, f, g, h, ..] = neighbor.destination_ip;
    let mut own = Delta::default();
    for (old, new) in [(&mut header.src_addr, [a, b, c, d]), (&mut header.dst_addr, [e, f, g, h])] {
        own.change32(u32::from_ne_bytes(*old), u32::from_ne_bytes(new));
        udp.change32(u32::from_ne_bytes(*old), u32::from_ne_bytes(new));
        *old = new;
    }
    own.change16(
        u16::from_ne_bytes([header.ttl, header.proto]),
        u16::from_ne_bytes([neighbor.hop_limit, header.proto]),
    );
    header.ttl = neighbor.hop_limit;
    header.check = own.apply(header.check);
    Ok(())
}

/// Traffic class, flow label and everything else of the header stay the frame's.
#[inline(always)]
fn ipv6(frame: &mut Frame<'_>, offset: usize, neighbor: &Neighbor, udp: &mut Delta) -> Result<(), Outcome> {
    let header = frame.at_mut::<Ipv6Hdr>(offset).ok_or(Outcome::CopyMalformed)?;
    udp.change_ipv6(&header.src_addr, &neighbor.source_ip);
    udp.change_ipv6(&header.dst_addr, &neighbor.destination_ip);
    header.src_addr = neighbor.source_ip;
    header.dst_addr = neighbor.destination_ip;
    header.hop_limit = neighbor.hop_limit;
    Ok(())
}

/// A datagram without checksum (IPv4 only) stays without.
#[inline(always)]
fn udp(frame: &mut Frame<'_>, offset: usize, neighbor: &Neighbor, mut delta: Delta) -> Result<(), Outcome> {
    let header = frame.at_mut::<UdpHdr>(offset).ok_or(Outcome::CopyMalformed)?;
    delta.change16(u16::from_ne_bytes(header.dst), u16::from_ne_bytes(neighbor.udp_port));
    header.dst = neighbor.udp_port;
    if header.check != [0; 2] {
        header.check = delta.apply_udp(header.check);
    }
    Ok(())
}
