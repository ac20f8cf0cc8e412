//! Everything that differs from copy to copy: BitString, TTL, MAC addresses, VLAN, IP, UDP, checksums.

use aya_ebpf::{helpers::bpf_xdp_adjust_head, programs::XdpContext};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    udp::UdpHdr,
};
use replicator_common::{
    bier::HeaderMut,
    limits::MAX_VLAN_TAGS,
    neighbor::{Encapsulation, Neighbor},
    outcome::Outcome,
    table::CHUNK_WORDS,
};
use replicator_ebpf::{
    checksum::Delta,
    frame::Frame,
    packet::{Bier, MAC_BYTES, OverIpv4, OverIpv6, VLAN_TAG_BYTES},
};

use super::next::Next;
use crate::maps::FBMS;

/// Bits of a VLAN tag's control information that are the VLAN's id; priority and DEI stay the frame's.
const VLAN_ID: u16 = 0x0fff;

/// Writes a copy for its member. Returns its length in bytes.
#[inline(always)]
pub(crate) fn write(ctx: &XdpContext, frame: &mut Frame<'_>, next: &Next<'_>) -> Result<usize, Outcome> {
    match next.words {
        1 => packet::<1>(frame, next),
        2 => packet::<2>(frame, next),
        4 => packet::<4>(frame, next),
        8 => packet::<8>(frame, next),
        _ => packet::<16>(frame, next),
    }?;
    if next.local && next.tag_count != 0 {
        return untag(ctx, frame, next);
    }
    *frame.at_mut(0).ok_or(Outcome::CopyMalformed)? = next.neighbor.macs;
    for i in 0..MAX_VLAN_TAGS {
        if i >= next.tag_count as usize {
            break;
        }
        let tag = frame
            .at_mut::<[u8; VLAN_TAG_BYTES]>(MAC_BYTES + i * VLAN_TAG_BYTES)
            .ok_or(Outcome::CopyMalformed)?;
        let [p, q] = next.neighbor.tags[i].protocol;
        let id = u16::from_be_bytes(next.neighbor.tags[i].id);
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

/// Everything behind the VLAN tags.
#[inline(always)]
fn packet<const WORDS: usize>(frame: &mut Frame<'_>, next: &Next<'_>) -> Result<(), Outcome> {
    let (offset, neighbor) = (next.network_offset, next.neighbor);
    let mut delta = Delta::default();
    if next.encapsulation == Encapsulation::Ipv4 as u8 {
        let packet = frame.at_mut::<OverIpv4<WORDS>>(offset).ok_or(Outcome::CopyMalformed)?;
        bier(&mut packet.bier, next, &mut delta)?;
        ipv4(&mut packet.ip, neighbor, &mut delta);
        udp(&mut packet.udp, neighbor, delta);
    } else if next.encapsulation == Encapsulation::Ipv6 as u8 {
        let packet = frame.at_mut::<OverIpv6<WORDS>>(offset).ok_or(Outcome::CopyMalformed)?;
        bier(&mut packet.bier, next, &mut delta)?;
        ipv6(&mut packet.ip, neighbor, &mut delta);
        udp(&mut packet.udp, neighbor, delta);
    } else {
        let packet = frame.at_mut::<Bier<WORDS>>(offset).ok_or(Outcome::CopyMalformed)?;
        bier(packet, next, &mut delta)?;
    }
    Ok(())
}

/// BitString &= F-BM (RFC 8279, section 6.5), and one hop off the TTL unless the packet ends here.
#[inline(always)]
fn bier<const WORDS: usize>(
    bier: &mut Bier<WORDS>,
    next: &Next<'_>,
    delta: &mut Delta,
) -> Result<(), Outcome> {
    if !next.local {
        let [_, _, c, ttl, ..] = bier.header;
        // `replicate` let no other than a positive TTL through.
        HeaderMut::new(&mut bier.header).set_ttl(ttl.wrapping_sub(1));
        delta.change16(u16::from_ne_bytes([c, ttl]), u16::from_ne_bytes([c, ttl.wrapping_sub(1)]));
    }
    for chunk in 0..WORDS.div_ceil(CHUNK_WORDS) {
        let fbm = FBMS.get(next.fbm + chunk as u32).ok_or(Outcome::CopyMalformed)?;
        for i in 0..if WORDS < CHUNK_WORDS { WORDS } else { CHUNK_WORDS } {
            let on_wire = &mut bier.bits[WORDS - 1 - (chunk * CHUNK_WORDS + i)];
            let old = u64::from_ne_bytes(*on_wire);
            let new = old & fbm.0[i].to_be();
            *on_wire = new.to_ne_bytes();
            delta.change64(old, new);
        }
    }
    Ok(())
}

/// DSCP, ECN and everything else of the header stay the frame's.
#[inline(always)]
fn ipv4(header: &mut Ipv4Hdr, neighbor: &Neighbor, udp: &mut Delta) {
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
}

/// Traffic class, flow label and everything else of the header stay the frame's.
#[inline(always)]
fn ipv6(header: &mut Ipv6Hdr, neighbor: &Neighbor, udp: &mut Delta) {
    udp.change_ipv6(&header.src_addr, &neighbor.source_ip);
    udp.change_ipv6(&header.dst_addr, &neighbor.destination_ip);
    header.src_addr = neighbor.source_ip;
    header.dst_addr = neighbor.destination_ip;
    header.hop_limit = neighbor.hop_limit;
}

/// A datagram without checksum (IPv4 only) stays without.
#[inline(always)]
fn udp(header: &mut UdpHdr, neighbor: &Neighbor, mut delta: Delta) {
    delta.change16(u16::from_ne_bytes(header.dst), u16::from_ne_bytes(neighbor.udp_port));
    header.dst = neighbor.udp_port;
    if header.check != [0; 2] {
        header.check = delta.apply_udp(header.check);
    }
}
