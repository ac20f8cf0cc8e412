//! Whether a clone of the frame fits one page. The kernel's own check is laxer: before mid-2026 `xdpf_clone` lets a
//! clone's `skb_shared_info` be written over its tail, and broadcasts frames in several buffers out of bounds (mended by
//! commit aa496720618f).

use aya_ebpf::{
    helpers::{bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use replicator_common::{
    limits::{MAX_FRAME_BYTES, XDP_HEADROOM},
    outcome::Outcome,
};

/// Frames up to this length fit with any headroom that is met: 1,216 bytes.
const UNPROBED_BYTES: usize = MAX_FRAME_BYTES + XDP_HEADROOM - 1216;

/// What the kernel keeps for itself at the start of the headroom (`struct xdp_frame`) and lets no program have.
const XDP_FRAME_BYTES: usize = 40;

/// Bytes of the frame, in however many buffers it lies.
#[inline(always)]
pub(crate) fn frame_bytes(ctx: &XdpContext) -> usize {
    // SAFETY: the context is the one the kernel gave.
    unsafe { bpf_xdp_get_buff_len(ctx.ctx) as usize }
}

/// Long frames are tried for more headroom than they may have; every reference into the frame ends here.
///
/// # Errors
/// [`Outcome::MultiBuffer`] or [`Outcome::FrameTooLong`].
#[inline(always)]
pub(crate) fn fits(ctx: &XdpContext, linear_bytes: usize, frame_bytes: usize) -> Result<(), Outcome> {
    if frame_bytes != linear_bytes {
        return Err(Outcome::MultiBuffer);
    }
    if linear_bytes <= UNPROBED_BYTES {
        return Ok(());
    }
    if linear_bytes > MAX_FRAME_BYTES {
        return Err(Outcome::FrameTooLong);
    }
    let allowed = MAX_FRAME_BYTES + XDP_HEADROOM - linear_bytes;
    let more = (allowed - XDP_FRAME_BYTES + 1) as i32;
    // SAFETY: the context is the one the kernel gave, and nothing refers to the frame.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -more) } == 0 {
        return Err(Outcome::FrameTooLong);
    }
    Ok(())
}
