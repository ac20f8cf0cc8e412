//! Checksums that follow changes (RFC 1624), in ones' complement and whatever byte order the bytes were read in.

/// What the changes add up to.
#[derive(Clone, Copy, Default)]
pub struct Delta(u64);

impl Delta {
    /// 16 bits, read in native order, went from `old` to `new`.
    #[inline(always)]
    pub const fn change16(&mut self, old: u16, new: u16) {
        self.0 += (!old) as u64 + new as u64;
    }

    /// 32 bits went from `old` to `new`.
    #[inline(always)]
    pub const fn change32(&mut self, old: u32, new: u32) {
        self.0 += (!old) as u64 + new as u64;
    }

    /// 64 bits went from `old` to `new`.
    #[inline(always)]
    pub const fn change64(&mut self, old: u64, new: u64) {
        self.change32(old as u32, new as u32);
        self.change32((old >> 32) as u32, (new >> 32) as u32);
    }

    /// An IPv6 address went from `old` to `new`.
    #[inline(always)]
    pub const fn change_ipv6(&mut self, old: &[u8; 16], new: &[u8; 16]) {
        let (old, new) = (u128::from_ne_bytes(*old), u128::from_ne_bytes(*new));
        self.change64(old as u64, new as u64);
        self.change64((old >> 64) as u64, (new >> 64) as u64);
    }

    /// The checksum, as it stands in the frame, after the changes: `HC' = ~(~HC + ~m + m')`.
    #[inline(always)]
    pub const fn apply(self, checksum: [u8; 2]) -> [u8; 2] {
        (!fold(self.0 + (!u16::from_ne_bytes(checksum)) as u64)).to_ne_bytes()
    }

    /// The same for UDP, where a zero would mean "none" (RFC 768).
    #[inline(always)]
    pub const fn apply_udp(self, checksum: [u8; 2]) -> [u8; 2] {
        match self.apply(checksum) {
            [0, 0] => [0xff, 0xff],
            other => other,
        }
    }
}

/// Ones' complement sum of 64 bits in 16.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071, by the book: sum the 16-bit words, fold, complement.
    fn full(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!(sum as u16)).to_be_bytes()
    }

    #[test]
    fn a_change_gives_what_a_new_sum_gives() {
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 16
        };
        for _ in 0..10_000 {
            let old: [u8; 32] = core::array::from_fn(|_| random() as u8);
            let mut new = old;
            let mut delta = Delta::default();
            new[0..2].copy_from_slice(&(random() as u16).to_ne_bytes());
            delta.change16(
                u16::from_ne_bytes(*old.first_chunk().unwrap()),
                u16::from_ne_bytes(*new.first_chunk().unwrap()),
            );
            new[8..16].copy_from_slice(&random().to_ne_bytes());
            let word = |b: &[u8; 32]| u64::from_ne_bytes(b[8..16].try_into().unwrap());
            delta.change64(word(&old), word(&new));
            new[16..32].copy_from_slice(&(u128::from(random()) << 70 | u128::from(random())).to_ne_bytes());
            delta.change_ipv6(&old[16..32].try_into().unwrap(), &new[16..32].try_into().unwrap());
            assert_eq!(delta.apply(full(&old)), full(&new), "{old:02x?} -> {new:02x?}");
        }
    }

    #[test]
    fn udp_never_says_none() {
        // The only word is 0xfffe and becomes 0xffff: the sum is all ones, its complement 0.
        let mut delta = Delta::default();
        delta.change16(u16::from_ne_bytes([0xff, 0xfe]), 0xffff);
        assert_eq!(delta.apply(full(&[0xff, 0xfe])), [0, 0]);
        assert_eq!(delta.apply_udp(full(&[0xff, 0xfe])), [0xff, 0xff]);
    }
}
