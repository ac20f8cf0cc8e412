//! A copy's way out: whose it is, then everything that differs for it.

mod next;
mod write;

use aya_ebpf::programs::XdpContext;
use replicator_common::{outcome::Outcome, slot::unstash};
use replicator_ebpf::{frame::Frame, packet::MAC_BYTES};

use crate::{counters, maps::COOKIE};

/// Rewrites a copy for the next member of its slot that lives on this device, or says why it is dropped.
#[inline(always)]
pub(crate) fn rewrite(ctx: &XdpContext) -> Result<(), Outcome> {
    // SAFETY: the kernel lends the program these bytes for as long as it runs, to no one else.
    let mut frame = unsafe { Frame::new(ctx.data(), ctx.data_end()) };
    let macs = frame.at::<[u8; MAC_BYTES]>(0).ok_or(Outcome::WrongCookie)?;
    let sequence = unstash(macs, COOKIE.load()).ok_or(Outcome::WrongCookie)?;
    let next = next::next(ctx, sequence)?;
    let bytes = write::write(ctx, &mut frame, &next)?;
    counters::sent(next.id, bytes);
    Ok(())
}
