//! Checksums that the local stack left to a NIC that the frame never meets (`CHECKSUM_PARTIAL`).

use aya_ebpf::{
    helpers::{bpf_csum_diff, bpf_xdp_load_bytes},
    programs::XdpContext,
};
use network_types::{ip::Ipv6Hdr, udp::UdpHdr};
use replicator_common::{limits::MAX_FRAME_BYTES, neighbor::Encapsulation, outcome::Outcome};
use replicator_ebpf::{bits::opaque, checksum, frame::Frame, packet::Packet};

use super::admit::Ingress;
use crate::maps::{DATAGRAM_BYTES, WORK};

/// What one call of `bpf_csum_diff` takes: kernels before 6.13 copy through a buffer of `MAX_BPF_STACK` bytes.
const PART_BYTES: usize = 512;

/// Source and destination.
const ADDRESSES_BYTES: usize = 32;

/// Gives a frame of this host's stack a UDP checksum that copies can be derived from: none over IPv4, the right one over
/// IPv6, where none is not allowed (RFC 8200, section 8.1).
///
/// # Errors
/// `ChecksumMissing` where a frame of the network has none over IPv6.
#[inline(always)]
pub(crate) fn checksum(
    ctx: &XdpContext,
    frame: &mut Frame<'_>,
    packet: &Packet,
    ingress: Ingress,
) -> Result<(), Outcome> {
    let offset = packet.udp_offset();
    match (packet.encapsulation, ingress) {
        (Encapsulation::Ethernet, _) | (Encapsulation::Ipv4, Ingress::Network) => {}
        (Encapsulation::Ipv4, Ingress::Origin) => {
            frame.at_mut::<UdpHdr>(offset).ok_or(Outcome::Malformed)?.check = [0; 2];
        }
        (Encapsulation::Ipv6, Ingress::Network) => {
            if frame.at::<UdpHdr>(offset).ok_or(Outcome::Malformed)?.check == [0; 2] {
                return Err(Outcome::ChecksumMissing);
            }
        }
        (Encapsulation::Ipv6, Ingress::Origin) => {
            frame.at_mut::<UdpHdr>(offset).ok_or(Outcome::Malformed)?.check = [0; 2];
            let sum = sum(ctx, frame, packet)?;
            let check = match (!checksum::fold(sum as u64)).to_ne_bytes() {
                [0, 0] => [0xff, 0xff],
                other => other,
            };
            frame.at_mut::<UdpHdr>(offset).ok_or(Outcome::Malformed)?.check = check;
        }
    }
    Ok(())
}

/// Ones' complement sum of pseudo-header (RFC 8200, section 8.1) and datagram. The addresses stand right before the
/// datagram; what else the pseudo-header has goes in front as the seed.
#[inline(always)]
fn sum(ctx: &XdpContext, frame: &Frame<'_>, packet: &Packet) -> Result<u32, Outcome> {
    let header = frame.at::<Ipv6Hdr>(packet.network_offset).ok_or(Outcome::Malformed)?;
    let mut sum = header.payload_len().to_be() as u32 + (header.next_hdr as u16).to_be() as u32;
    let length = opaque(header.payload_len() as u32) as usize;
    if length > MAX_FRAME_BYTES {
        return Err(Outcome::FrameTooLong);
    }
    let total = ADDRESSES_BYTES + length;
    let work = WORK.get_ptr_mut(0).ok_or(Outcome::NoSlot)?;
    // SAFETY: this CPU's own element; `resolve` is done with the part of it that is used here.
    let buffer = unsafe { (&raw mut (*work).datagram).cast::<u8>() };
    let from = packet.udp_offset() - ADDRESSES_BYTES;
    // SAFETY: the buffer is longer than the longest frame; the kernel checks the part of the frame.
    if unsafe { bpf_xdp_load_bytes(ctx.ctx, from as u32, buffer.cast(), total as u32) } != 0 {
        return Err(Outcome::Malformed);
    }
    // SAFETY: within the buffer. Sums go by four bytes.
    unsafe { buffer.add(total).cast::<[u8; 4]>().write([0; 4]) };
    let total = total.next_multiple_of(4);
    for part in 0..DATAGRAM_BYTES / PART_BYTES {
        let from = part * PART_BYTES;
        if from >= total {
            break;
        }
        let bytes = (total - from).min(PART_BYTES) as u32;
        // SAFETY: within the buffer.
        let part = unsafe { buffer.add(from) };
        // SAFETY: the helper reads so many bytes of the buffer.
        sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, part.cast(), bytes, sum) } as u32;
    }
    Ok(sum)
}
