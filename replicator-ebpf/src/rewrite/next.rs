//! The member a copy is for.

use aya_ebpf::programs::XdpContext;
use replicator_common::{
    limits::{MAX_DEVICES, MAX_VLAN_TAGS},
    neighbor::Neighbor,
    outcome::Outcome,
    slot::{self, Sequence, Slot},
    table::{LOCAL_MEMBER, Live, MEMBER_WORDS, Share, Table},
};
use replicator_ebpf::bits::lowest_bit;

use crate::maps::{MEMBERS, NEIGHBOR_IDS, NEIGHBORS, SHARES, SLOTS, TABLES};

/// A copy's destination.
pub(crate) struct Next<'a> {
    /// Neighbor's id.
    pub(crate) id: u32,
    pub(crate) neighbor: &'a Neighbor,
    /// Whether it is this host's own stack.
    pub(crate) local: bool,
    /// First chunk of the member's F-BM.
    pub(crate) fbm: u32,
    /// 64-bit words of the BitString.
    pub(crate) words: u8,
    /// VLAN tags of the frame.
    pub(crate) tag_count: u8,
    /// An encapsulation's number.
    pub(crate) encapsulation: u8,
    /// Offset of the network header.
    pub(crate) network_offset: usize,
}

/// Takes the next member off the slot.
#[inline(always)]
pub(crate) fn next(ctx: &XdpContext, sequence: Sequence) -> Result<Next<'static>, Outcome> {
    let slot = SLOTS.get_ptr_mut(slot::index(sequence)).ok_or(Outcome::SlotOverrun)?;
    // SAFETY: this CPU's own element; XDP programs do not interrupt each other on a CPU.
    let slot = unsafe { &mut *slot };
    if slot.sequence != sequence {
        return Err(Outcome::SlotOverrun);
    }
    let table = TABLES.get(slot.table).ok_or(Outcome::SlotOverrun)?;
    // SAFETY: the context is the one the kernel gave.
    let egress = unsafe { (*ctx.ctx).egress_ifindex };
    let share = share(table, egress).ok_or(Outcome::Surplus)?;
    let member = take(slot, share).ok_or(Outcome::Surplus)?;
    let local = member == LOCAL_MEMBER as u32;
    let id = if local {
        slot.encapsulation as u32
    } else {
        MEMBERS.get(table.members + member).ok_or(Outcome::Unresolved)?.neighbor
    };
    let neighbor = neighbor(id).ok_or(Outcome::Unresolved)?;
    // A neighbor's id never changes device; should the tables say otherwise, the copy must not leave here.
    if neighbor.ifindex != egress {
        return Err(Outcome::Unresolved);
    }
    if neighbor.encapsulation != slot.encapsulation {
        return Err(Outcome::OtherFamily);
    }
    if (!local && neighbor.tag_count != slot.tag_count) || slot.tag_count as usize > MAX_VLAN_TAGS {
        return Err(Outcome::OtherTagCount);
    }
    Ok(Next {
        id,
        neighbor,
        local,
        fbm: slot.fbms + (member + 1) * table.chunks(),
        words: table.words,
        tag_count: slot.tag_count,
        encapsulation: slot.encapsulation,
        network_offset: slot.network_offset as usize,
    })
}

/// The table's part on a device.
#[inline(always)]
fn share(table: &Table, ifindex: u32) -> Option<&'static Share> {
    for i in 0..MAX_DEVICES as u32 {
        if i >= table.shares_count as u32 {
            break;
        }
        let share = SHARES.get(table.shares + i)?;
        if share.ifindex == ifindex {
            return Some(share);
        }
    }
    None
}

/// The lowest member that waits on this device.
#[inline(always)]
fn take(slot: &mut Slot, share: &Share) -> Option<u32> {
    for word in 0..MEMBER_WORDS {
        let waiting = slot.pending[word] & share.members[word];
        if waiting != 0 {
            slot.pending[word] &= !(waiting & waiting.wrapping_neg());
            return Some(word as u32 * 64 + lowest_bit(waiting));
        }
    }
    None
}

/// What is known of a neighbor.
#[inline(always)]
fn neighbor(id: u32) -> Option<&'static Neighbor> {
    let word = NEIGHBOR_IDS.get_ptr(id)?;
    // SAFETY: the daemon swaps the word while programs run: one load, not repeated.
    let word = unsafe { core::ptr::read_volatile(word.cast::<u64>()) };
    NEIGHBORS.get(Live::from_word(word).place()?)
}
