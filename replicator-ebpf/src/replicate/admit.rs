//! Which frames may be replicated: a replicator is an amplifier.

use aya_ebpf::{btf_maps::lpm_trie::Key, programs::XdpContext};
use replicator_common::{
    neighbor::{Endpoint, SourcePrefix, role},
    outcome::Outcome,
};
use replicator_ebpf::{frame::Frame, packet::Packet};

use crate::maps::{ENDPOINTS, SETTINGS, SOURCE_PREFIXES};

/// Where a frame came from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ingress {
    /// This host's own programs, through the origin veth.
    Origin,
    /// The network.
    Network,
}

/// TTL or hop limit of what this host's own programs send into the origin veth: the route there says so. What the host
/// forwarded has less (RFC 5082), so nobody reaches the origin through it.
const OWN_HOP_LIMIT: u8 = 255;

/// # Errors
/// `Passed` where the frame is for another host, or why a frame for this one is not replicated.
#[inline(always)]
pub(crate) fn admit(ctx: &XdpContext, frame: &Frame<'_>, packet: &Packet) -> Result<Ingress, Outcome> {
    let settings = SETTINGS.get(0).ok_or(Outcome::NoSlot)?;
    if ctx.ingress_ifindex() as u32 == settings.origin_ifindex {
        return match packet.hop_limit(frame) {
            Some(OWN_HOP_LIMIT) | None => Ok(Ingress::Origin),
            Some(_) => Err(Outcome::SourceNotAllowed),
        };
    }
    let (source, destination) = packet.endpoints(frame).ok_or(Outcome::Malformed)?;
    let [station, _] = frame.at::<[[u8; 6]; 2]>(0).ok_or(Outcome::Malformed)?;
    // A switch may flood what is for another station, and several hosts may have one IP address.
    if !has_role(&Endpoint::mac(*station), role::OWN) || !has_role(&destination, role::OWN) {
        return Err(Outcome::Passed);
    }
    if !has_role(&source, role::SOURCE) && !in_prefix(&source) {
        return Err(Outcome::SourceNotAllowed);
    }
    Ok(Ingress::Network)
}

#[inline(always)]
fn has_role(endpoint: &Endpoint, role: u32) -> bool {
    // SAFETY: the value is one word, read at once.
    matches!(unsafe { ENDPOINTS.get(endpoint) }, Some(roles) if roles & role != 0)
}

#[inline(always)]
fn in_prefix(source: &Endpoint) -> bool {
    let data = SourcePrefix { kind: source.kind.to_be_bytes(), address: source.address };
    SOURCE_PREFIXES.get(&Key::new(8 * size_of::<SourcePrefix>() as u32, data)).is_some()
}
