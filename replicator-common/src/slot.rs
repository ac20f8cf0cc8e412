//! What `replicate` leaves for `rewrite`: a slot on the same CPU, and in the frame's MAC addresses how to find it.

use crate::{limits::SLOTS, table::MEMBER_WORDS};

/// Destination MAC of a frame between the two programs: in the range that bridges never forward (802.1Q, table 8-1), so
/// a copy that nobody rewrote dies at the first one.
pub const STASH_DESTINATION: [u8; 6] = [0x01, 0x80, 0xc2, 0x00, 0x00, 0x0e];

/// Number of a frame on its CPU. The low bits choose the slot, the others tell a frame from one that had the slot
/// before: 64 laps apart or less, a late copy is seen as such.
pub type Sequence = u16;

/// The slot of a frame.
#[inline(always)]
pub const fn index(sequence: Sequence) -> u32 {
    sequence as u32 & (SLOTS as u32 - 1)
}

/// The frame's first 12 bytes while its copies are on their way: [`STASH_DESTINATION`], then sequence and cookie.
#[inline(always)]
pub const fn stash(sequence: Sequence, cookie: u32) -> [u8; 12] {
    let [a, b, c, d, e, f] = STASH_DESTINATION;
    let [s, t] = sequence.to_be_bytes();
    let [w, x, y, z] = cookie.to_be_bytes();
    [a, b, c, d, e, f, s, t, w, x, y, z]
}

/// The sequence in a frame's first 12 bytes, if they were stashed by the load with this cookie.
#[inline(always)]
pub const fn unstash(macs: &[u8; 12], cookie: u32) -> Option<Sequence> {
    let [a, b, c, d, e, f, s, t, w, x, y, z] = *macs;
    let [g, h, i, j, k, l] = STASH_DESTINATION;
    let marked = a == g && b == h && c == i && d == j && e == k && f == l;
    if marked && u32::from_be_bytes([w, x, y, z]) == cookie {
        Some(Sequence::from_be_bytes([s, t]))
    } else {
        None
    }
}

/// A frame's copies still to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Slot {
    /// Members that wait for their copy.
    pub pending: [u64; MEMBER_WORDS],
    /// Place of the table.
    pub table: u32,
    /// Union's chunk of the F-BMs of the frame's variant.
    pub fbms: u32,
    /// Frame that holds the slot.
    pub sequence: Sequence,
    /// Offset of the network header, or of the BIER header where there is none: behind the VLAN tags.
    pub network_offset: u8,
    /// VLAN tags of the frame.
    pub tag_count: u8,
    /// An [`crate::neighbor::Encapsulation`]'s number.
    pub encapsulation: u8,
    /// Always 0.
    pub zero: [u8; 3],
}

const _: () = assert!(size_of::<Slot>() == 48 && SLOTS.is_power_of_two());
const _: () = assert!(SLOTS <= Sequence::MAX as usize);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)` integers without padding, checked by the size assert above; every bit pattern is a value.
    unsafe impl aya::Pod for super::Slot {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stash_is_read_back_by_its_own_load_only() {
        let macs = stash(0xbeef, 0x1234_5678);
        assert_eq!(unstash(&macs, 0x1234_5678), Some(0xbeef));
        assert_eq!(unstash(&macs, 0x1234_5679), None);
        for at in 0..6 {
            let mut other = macs;
            other[at] ^= 1;
            assert_eq!(unstash(&other, 0x1234_5678), None, "byte {at}");
        }
    }

    #[test]
    fn a_lap_has_every_slot_once() {
        let first = index(0);
        assert_eq!(index(SLOTS as Sequence), first);
        assert!((1..SLOTS as Sequence).all(|sequence| index(sequence) != first));
    }
}
