//! A copy's way out: whose it is, then everything that differs for it.

mod next;
mod write;

use aya_ebpf::programs::XdpContext;
use replicator_common::{outcome::Outcome, slot::unstash};
use replicator_ebpf::{frame::Frame, packet::MAC_BYTES};

use crate::{
    counters,
    maps::{COOKIE, SUCCESSOR},
};

/// Rewrites a copy for the next member of its slot that lives on this device, or says why it is dropped.
#[inline(always)]
pub(crate) fn rewrite(ctx: &XdpContext) -> Result<(), Outcome> {
    // SAFETY: the kernel lends the program these bytes for as long as it runs, to no one else.
    let mut frame = unsafe { Frame::new(ctx.data(), ctx.data_end()) };
    let macs = frame.at::<[u8; MAC_BYTES]>(0).ok_or(Outcome::WrongCookie)?;
    let Some(sequence) = unstash(macs, COOKIE.load()) else {
        // A device's bulk queue keeps the devmap program that it began a poll with (`bq_enqueue`, kernel/bpf/devmap.c):
        // when a new load takes the device over in the middle of one, its copies come here.
        // SAFETY: nothing here needs dropping. Where there is no successor the call returns.
        unsafe { SUCCESSOR.tail_call(ctx, 0) };
        return Err(Outcome::WrongCookie);
    };
    let next = next::next(ctx, sequence)?;
    let bytes = write::write(ctx, &mut frame, &next)?;
    counters::sent(next.id, bytes);
    Ok(())
}
