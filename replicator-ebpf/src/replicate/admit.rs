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

/// # Errors
/// `Passed` where the frame is for another host, or why a frame for this one is not replicated.
#[inline(always)]
pub(crate) fn admit(ctx: &XdpContext, frame: &Frame<'_>, packet: &Packet) -> Result<Ingress, Outcome> {
    let settings = SETTINGS.get(0).ok_or(Outcome::NoSlot)?;
    let ingress = if ctx.ingress_ifindex() as u32 == settings.origin_ifindex {
        Ingress::Origin
    } else {
        Ingress::Network
    };
    if ingress == Ingress::Network {
        let (source, destination) = packet.endpoints(frame).ok_or(Outcome::Malformed)?;
        if !has_role(&destination, role::OWN) {
            return Err(Outcome::Passed);
        }
        if !has_role(&source, role::SOURCE) && !in_prefix(&source) {
            return Err(Outcome::SourceNotAllowed);
        }
    }
    Ok(ingress)
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
