//! What `rewrite` needs goes into a slot of this CPU; where the slot is goes into the frame.

use replicator_common::{outcome::Outcome, slot};
use replicator_ebpf::{
    frame::Frame,
    packet::{MAC_BYTES, Packet},
};

use super::resolve::Resolution;
use crate::{
    counters,
    maps::{COOKIE, SLOTS},
};

/// Fills the next slot and marks the frame. The source MAC carries the mark: it lies at the same place in every
/// encapsulation and is rewritten anyway, and XDP metadata does not reach a devmap program in generic mode.
#[inline(always)]
pub(crate) fn stash(
    frame: &mut Frame<'_>,
    packet: &Packet,
    resolution: &mut Resolution<'_>,
) -> Result<(), Outcome> {
    let work = &mut *resolution.work;
    work.sequence = work.sequence.wrapping_add(1);
    let sequence = work.sequence as slot::Sequence;
    let slot = SLOTS.get_ptr_mut(slot::index(sequence)).ok_or(Outcome::NoSlot)?;
    // SAFETY: this CPU's own element; XDP programs do not interrupt each other on a CPU.
    let slot = unsafe { &mut *slot };
    let mut left = 0;
    for word in slot.pending {
        left |= word;
    }
    if left != 0 {
        let never_ran = slot.pending.iter().map(|word| word.count_ones() as u64).sum();
        counters::count(Outcome::NeverRan, never_ran);
    }
    slot.pending = work.pending;
    slot.table = resolution.place;
    slot.fbms = work.fbms;
    slot.sequence = sequence;
    slot.network_offset = packet.network_offset as u8;
    slot.tag_count = packet.tag_count;
    slot.encapsulation = packet.encapsulation as u8;
    counters::count(Outcome::Planned, work.copies as u64);
    *frame.at_mut::<[u8; MAC_BYTES]>(0).ok_or(Outcome::Malformed)? = slot::stash(sequence, COOKIE.load());
    Ok(())
}
