//! What can become of a frame, a copy or a bit: one numbered list, used as counter index, as metric label and as the
//! text that users read. Numbers are never reused.

/// What an outcome counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Frames that came in. Each has exactly one outcome of this unit.
    Frame,
    /// Copies. Each copy that was planned has exactly one outcome of this unit, [`Outcome::Planned`] aside.
    Copy,
    /// Bits of a BitString that were left out while the others went.
    Bit,
}

/// Declares the list with the label and the sentence of every entry.
macro_rules! outcomes {
    ($($name:ident = $number:literal, $unit:ident, $label:literal, $text:literal;)*) => {
        /// What became of a frame, a copy or a bit.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Outcome {
            $(#[doc = $text] $name = $number,)*
        }

        impl Outcome {
            /// Every outcome, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// What it counts.
            pub const fn unit(self) -> Unit {
                match self { $(Self::$name => Unit::$unit,)* }
            }

            /// Its metric label.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// One sentence for users.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

outcomes! {
    Passed = 0, Frame, "passed", "Not ours: went to the stack untouched.";
    Delivered = 1, Frame, "delivered", "Every bit is local: went to this host's stack untouched.";
    Replicated = 2, Frame, "replicated", "Handed to the kernel with its copies planned.";
    Malformed = 3, Frame, "malformed", "A length in the frame disagrees with the frame.";
    UnknownVersion = 4, Frame, "unknown_version", "BIER version other than 0.";
    UnknownBift = 5, Frame, "unknown_bift", "No table has this BIFT-id.";
    BitStringLength = 6, Frame, "bitstring_length", "BSL differs from the table's BitString length.";
    EmptyBitString = 7, Frame, "empty_bitstring", "No bit is set.";
    NoNeighbor = 8, Frame, "no_neighbor", "No set bit has a neighbor.";
    TtlExpired = 9, Frame, "ttl_expired", "TTL does not allow another hop.";
    SourceNotAllowed = 10, Frame, "source_not_allowed", "The sender is not among the allowed sources.";
    FrameTooLong = 11, Frame, "frame_too_long", "A clone of the frame does not fit one page.";
    MultiBuffer = 12, Frame, "multi_buffer", "The frame lies in several buffers and cannot be cloned.";
    IpFragment = 13, Frame, "ip_fragment", "An IP fragment.";
    IpOptions = 14, Frame, "ip_options", "An IPv4 header with options.";
    ChecksumMissing = 15, Frame, "checksum_missing", "UDP over IPv6 without a checksum.";
    NoFanOut = 16, Frame, "no_fan_out", "No fan-out map has the number of copies.";
    NoSlot = 17, Frame, "no_slot", "No slot could be read: the maps are not those of this program.";
    Planned = 32, Copy, "planned", "Copies that replicated frames asked for.";
    Sent = 33, Copy, "sent", "Rewritten and handed to its device.";
    Surplus = 34, Copy, "surplus", "More clones on a device than members: the rounding of fan-out maps.";
    WrongCookie = 35, Copy, "wrong_cookie", "Not marked by this load of the programs: stale or foreign.";
    SlotOverrun = 36, Copy, "slot_overrun", "Its slot was taken by a later frame before it ran.";
    NeverRan = 37, Copy, "never_ran", "Planned but never seen: device down, over its MTU, ring full or no memory.";
    Unresolved = 38, Copy, "unresolved", "The neighbor's MAC address is not known.";
    OtherFamily = 39, Copy, "other_family", "The neighbor has another encapsulation or IP family.";
    OtherTagCount = 40, Copy, "other_tag_count", "The neighbor has another number of VLAN tags.";
    CopyMalformed = 41, Copy, "copy_malformed", "The frame changed between plan and rewrite.";
    BitWithoutRow = 64, Bit, "bit_without_row", "The table has no row for the bit.";
    BitTtlExpired = 65, Bit, "bit_ttl_expired", "TTL allows local delivery only: the bit is not local.";
}

/// Entries of the counter map: one more than the largest number.
pub const OUTCOMES: usize = Outcome::BitTtlExpired as usize + 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_ascend_and_labels_are_metric_labels() {
        assert!(Outcome::ALL.windows(2).all(|pair| (pair[0] as u32) < (pair[1] as u32)));
        for (i, outcome) in Outcome::ALL.iter().enumerate() {
            assert!((*outcome as usize) < OUTCOMES);
            assert!(outcome.label().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{outcome:?}");
            assert!(outcome.text().ends_with('.'), "{outcome:?}");
            assert!(Outcome::ALL[..i].iter().all(|other| other.label() != outcome.label()));
        }
    }
}
