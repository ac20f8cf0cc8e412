//! Payloads that tell which frame they belong to, and whether a byte of them changed.

use fastrand::Rng;

/// Sequence number and its check.
pub(super) const MIN_BYTES: usize = 16;

/// Payloads begin at different places of the pattern: a prime, so that all are used.
const OFFSETS: usize = 65_521;

/// What the payloads of one run are made from.
pub(super) struct Pattern {
    key: u64,
    random: Vec<u8>,
    bytes: usize,
}

impl Pattern {
    /// Payloads of `bytes` bytes, at least [`MIN_BYTES`].
    pub(super) fn new(bytes: usize, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let key = rng.u64(..);
        let mut random = vec![0; OFFSETS + bytes];
        rng.fill(&mut random);
        Self { key, random, bytes }
    }

    /// Writes the payload with this sequence number.
    pub(super) fn write(&self, sequence: u64, payload: &mut Vec<u8>) {
        payload.clear();
        payload.extend_from_slice(&sequence.to_be_bytes());
        payload.extend_from_slice(&self.check(sequence).to_be_bytes());
        payload.extend_from_slice(self.body(sequence));
    }

    /// The sequence number of a payload of which every byte is as it was written.
    pub(super) fn read(&self, payload: &[u8]) -> Option<u64> {
        let (sequence, rest) = payload.split_first_chunk()?;
        let (check, body) = rest.split_first_chunk()?;
        let sequence = u64::from_be_bytes(*sequence);
        (u64::from_be_bytes(*check) == self.check(sequence) && body == self.body(sequence))
            .then_some(sequence)
    }

    /// Differs in about half its bits for numbers that differ in one (the finalizer of `SplitMix64`).
    fn check(&self, sequence: u64) -> u64 {
        let mut hash = self.key ^ sequence;
        hash = (hash ^ hash >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ hash >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ hash >> 31
    }

    fn body(&self, sequence: u64) -> &[u8] {
        let start = (sequence % OFFSETS as u64) as usize;
        &self.random[start..start + self.bytes - MIN_BYTES]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_read_back_unless_a_bit_of_it_changed() {
        let pattern = Pattern::new(64, 1);
        let mut payload = Vec::new();
        for sequence in [0, 1, 65_520, 65_521, u64::MAX] {
            pattern.write(sequence, &mut payload);
            assert_eq!(payload.len(), 64);
            assert_eq!(pattern.read(&payload), Some(sequence));
            for bit in 0..64 * 8 {
                payload[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(pattern.read(&payload), None, "bit {bit} of payload {sequence}");
                payload[bit / 8] ^= 1 << (bit % 8);
            }
            assert_eq!(pattern.read(&payload[..63]), None);
            payload.push(0);
            assert_eq!(pattern.read(&payload), None);
        }
        assert_eq!(pattern.read(&[]), None);
    }

    #[test]
    fn payloads_differ_between_sequence_numbers_and_seeds() {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        Pattern::new(2048, 1).write(7, &mut a);
        Pattern::new(2048, 1).write(8, &mut b);
        assert_ne!(a[MIN_BYTES..], b[MIN_BYTES..]);
        assert_eq!(Pattern::new(2048, 2).read(&a), None);
    }
}
