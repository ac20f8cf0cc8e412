//! A frame's way in: parse, admit, resolve, fit the page, plan, finish, stash, emit.

mod admit;
mod finish;
mod page;
mod plan;
mod resolve;
mod stash;

use aya_ebpf::{bindings::BPF_F_BROADCAST, programs::XdpContext};
use replicator_common::outcome::Outcome;
use replicator_ebpf::{frame::Frame, packet::Packet};

use crate::maps::{FANOUTS, UDP_PORT};

/// Replicates a frame, or says why not.
#[inline(always)]
pub(crate) fn replicate(ctx: &XdpContext) -> Result<Outcome, Outcome> {
    // SAFETY: the kernel lends the program these bytes for as long as it runs, to no one else.
    let mut frame = unsafe { Frame::new(ctx.data(), ctx.data_end()) };
    let packet = Packet::parse(&frame, UDP_PORT.load()).ok_or(Outcome::Passed)?;
    let ingress = admit::admit(ctx, &frame, &packet)?;
    let frame_bytes = page::frame_bytes(ctx);
    let mut resolution = resolve::resolve(&frame, frame_bytes, &packet, ingress)?;
    page::fits(ctx, frame.len(), frame_bytes)?;
    // SAFETY: as above; `fits` ended what was borrowed before.
    frame = unsafe { Frame::new(ctx.data(), ctx.data_end()) };
    let fan_out = plan::fan_out(&resolution).and_then(|index| FANOUTS.get(index)).ok_or(Outcome::NoFanOut)?;
    finish::checksum(ctx, &mut frame, &packet, ingress)?;
    stash::stash(&mut frame, &packet, &mut resolution)?;
    fan_out.redirect(0, BPF_F_BROADCAST as u64).map_err(|_| Outcome::NoFanOut)?;
    Ok(Outcome::Replicated)
}
