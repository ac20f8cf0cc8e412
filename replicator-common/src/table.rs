//! Values of the maps that hold the BIFTs.
//!
//! A table lies in pools: its [`Table`] entry holds the base of its part of each pool. An update writes a new place and
//! then swaps one word ([`Live`]), so no frame reads half a table.

use crate::limits::{MAX_COPIES, MAX_DEVICES, MAX_MEMBERS};

/// A word that makes a place current: written by one aligned 64-bit store, read by one load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Live(u64);

impl Live {
    /// Nothing is in force.
    pub const NONE: Self = Self(0);
    const SET: u64 = 1 << 32;

    /// `place` is in force.
    #[inline(always)]
    pub const fn at(place: u32) -> Self {
        Self(Self::SET | place as u64)
    }

    /// The place in force.
    #[inline(always)]
    pub const fn place(self) -> Option<u32> {
        if self.0 & Self::SET != 0 { Some(self.0 as u32) } else { None }
    }

    /// The word as it is stored.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// The entry that a stored word is.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }
}

/// Index of this host among the members of every table.
pub const LOCAL_MEMBER: u8 = 0;

/// Value of a row without a member.
pub const NO_MEMBER: u8 = MAX_MEMBERS as u8;

/// Words of a bitmap of members.
pub const MEMBER_WORDS: usize = 4;

/// Bits in a [`FbmChunk`].
pub const CHUNK_BITS: usize = 256;

/// 64-bit words in a [`FbmChunk`].
pub const CHUNK_WORDS: usize = CHUNK_BITS / 64;

/// How a table finds its fan-out map from the number of copies on each device.
pub mod fanout_rule {
    /// One egress device: the exact count.
    pub const EXACT: u8 = 0;
    /// Two or three: counts rounded up to [`super::LEVELS`].
    pub const ROUNDED: u8 = 1;
    /// More: one map, each member once.
    pub const WHOLE: u8 = 2;
}

/// Counts that fan-out maps for two or three devices are made for. A count is rounded up to the next of them.
pub const LEVELS: [u16; 17] = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256];

/// Index in [`LEVELS`] of the smallest level that is at least `count` (at most 256).
#[inline(always)]
pub const fn level(count: u32) -> u32 {
    match count {
        0..=4 => count,
        5..=256 => {
            // From 4 on there are two levels an octave, 2^e and 3 * 2^(e-1).
            let below = count - 1;
            let octave = u32::BITS - 1 - below.leading_zeros();
            2 * octave + (below >> (octave - 1) & 1) + 1
        }
        _ => LEVELS.len() as u32 - 1,
    }
}

/// One table. Bases count entries of their pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Table {
    /// Rows: 64 a chunk; variant v and word w are at `rows + v * words + w`.
    pub rows: u32,
    /// F-BMs: for each variant first the union of all F-BMs, then one for each member, `chunks()` each.
    pub fbms: u32,
    /// Members.
    pub members: u32,
    /// Shares: the egress devices, this host's stack last.
    pub shares: u32,
    /// First fan-out map of the table's set of devices.
    pub fanout: u32,
    /// What a local copy adds to the index of the fan-out map.
    pub fanout_local: u32,
    /// Members, this host (member 0) included whether it has bits or not.
    pub member_count: u16,
    /// Shares without this host's.
    pub remote_shares: u8,
    /// One of [`fanout_rule`].
    pub fanout_rule: u8,
    /// Code in the BSL field that frames for this table carry.
    pub bsl_code: u8,
    /// 64-bit words of the BitString: 1, 2, 4, 8 or 16.
    pub words: u8,
    /// Variants - 1; variants are a power of two.
    pub variant_mask: u8,
    /// Shares with this host's.
    pub shares_count: u8,
}

impl Table {
    /// Chunks of one F-BM.
    #[inline(always)]
    pub const fn chunks(&self) -> u32 {
        (self.words as u32).div_ceil(CHUNK_WORDS as u32)
    }

    /// First F-BM chunk (the union's) of a variant.
    #[inline(always)]
    pub const fn variant_fbms(&self, variant: u32) -> u32 {
        self.fbms + variant * (self.member_count as u32 + 1) * self.chunks()
    }

    /// First chunk of rows of a variant.
    #[inline(always)]
    pub const fn variant_rows(&self, variant: u32) -> u32 {
        self.rows + variant * self.words as u32
    }
}

/// The members of 64 bits: row i belongs to bit i + 1 of the word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RowChunk(pub [u8; 64]);

/// Part of an F-BM (RFC 8279, section 6.4): the bits a member serves, in host order, lowest word first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FbmChunk(pub [u64; CHUNK_WORDS]);

/// A member of a table: which neighbor it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Member {
    /// Neighbor's id.
    pub neighbor: u32,
    /// Always 0: array elements take whole words.
    pub zero: u32,
}

/// One egress device of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Share {
    /// The table's members on the device.
    pub members: [u64; MEMBER_WORDS],
    /// The device.
    pub ifindex: u32,
    /// What a copy (or a level of copies) on it adds to the index of the fan-out map.
    pub stride: u32,
}

const _: () = assert!(size_of::<Live>() == 8);
const _: () = assert!(size_of::<Table>() == 32);
const _: () = assert!(size_of::<RowChunk>() == 64);
const _: () = assert!(size_of::<FbmChunk>() == 32);
const _: () = assert!(size_of::<Member>() == 8);
const _: () = assert!(size_of::<Share>() == 40);
const _: () = assert!(LEVELS[LEVELS.len() - 1] as usize == MAX_COPIES && MAX_MEMBERS <= MAX_COPIES);
const _: () = assert!(MAX_MEMBERS < MEMBER_WORDS * 64 && MAX_DEVICES <= u8::MAX as usize);

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)` (or transparent) integers without padding, checked by the size asserts above; every bit
    // pattern is a value.
    unsafe impl aya::Pod for super::Live {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Table {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::RowChunk {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FbmChunk {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Member {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Share {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_the_smallest_that_has_room() {
        for count in 0..=256u32 {
            let expected = LEVELS.iter().position(|&level| u32::from(level) >= count).unwrap();
            assert_eq!(level(count), expected as u32, "count {count}");
        }
    }

    #[test]
    fn place_zero_is_not_none() {
        assert_eq!(Live::NONE.place(), None);
        assert_eq!(Live::at(0).place(), Some(0));
        assert_eq!(Live::from_word(Live::at(u32::MAX).word()).place(), Some(u32::MAX));
    }

    #[test]
    fn variants_do_not_overlap() {
        for words in [1, 2, 4, 8, 16] {
            let table = Table { words, member_count: 3, rows: 100, fbms: 7, ..Table::default() };
            assert_eq!(table.chunks(), if words <= 4 { 1 } else { u32::from(words) / 4 });
            assert_eq!(table.variant_fbms(1) - table.variant_fbms(0), 4 * table.chunks());
            assert_eq!(table.variant_rows(1) - table.variant_rows(0), u32::from(words));
        }
    }
}
