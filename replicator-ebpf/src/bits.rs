//! Bit arithmetic in a form that the kernel's verifier follows.

/// The same value, of which the compiler forgets what it knew: it would remove or move the very arithmetic by which the
/// verifier learns the bounds.
#[inline(always)]
pub fn opaque(value: u32) -> u32 {
    // SAFETY: a reference to a local variable.
    unsafe { core::ptr::read_volatile(&value) }
}

/// Index of the lowest set bit of `word`, at most 63.
#[inline(always)]
pub fn lowest_bit(word: u64) -> u32 {
    opaque(word.trailing_zeros()) & 63
}

#[cfg(test)]
mod tests {
    #[test]
    fn lowest_bit_is_trailing_zeros() {
        for bit in 0..64 {
            assert_eq!(super::lowest_bit(1 << bit), bit);
            assert_eq!(super::lowest_bit(u64::MAX << bit), bit);
        }
    }
}
