//! One frame: header, BitString and payload, written into the place it is sent from.

use replicator_common::{
    bier::{self, BitStringLength, Fields, HEADER_BYTES, HeaderMut},
    limits::{MAX_FRAME_BYTES, MAX_VLAN_TAGS},
};

use super::DispatchError;

/// The set of destinations of a frame. Repeats are allowed: it is a set.
#[derive(Clone, Copy, Debug)]
pub enum Destinations<'a> {
    /// Logical experts, counted from 0, as a router's top-k has them. Expert e is bit e + 1.
    Experts(&'a [u32]),
    /// Bits of the BitString, counted from 1: the nodes of a node table.
    Bits(&'a [u32]),
}

impl Destinations<'_> {
    /// Sets every destination's bit in a BitString that is all zero.
    fn set(self, bits: &mut [u8]) -> Result<(), DispatchError> {
        let length = bits.len() * 8;
        let (Self::Experts(set) | Self::Bits(set)) = self;
        if set.is_empty() {
            return Err(DispatchError::Empty);
        }
        match self {
            Self::Experts(experts) => experts.iter().try_for_each(|&expert| {
                bier::set_bit(bits, (expert as usize).saturating_add(1))
                    .then_some(())
                    .ok_or(DispatchError::Expert { expert, bits: length })
            }),
            Self::Bits(set) => set.iter().try_for_each(|&bit| {
                bier::set_bit(bits, bit as usize)
                    .then_some(())
                    .ok_or(DispatchError::Bit { bit, bits: length })
            }),
        }
    }
}

/// Bytes of header and BitString.
pub(super) const fn header_bytes(length: BitStringLength) -> usize {
    HEADER_BYTES + length.bytes()
}

/// Longest network packet (IP, or BIER where there is no IP) that the replicator can clone and the device can send.
/// VLAN devices on the way add their tags to a frame that must still be cloned, so there is room for them.
pub(super) fn max_packet(mtu: usize) -> usize {
    const ETHERNET_BYTES: usize = 14;
    const TAG_BYTES: usize = 4;
    mtu.min(MAX_FRAME_BYTES - ETHERNET_BYTES - MAX_VLAN_TAGS * TAG_BYTES)
}

/// Appends `prefix`, header, BitString and `payload` to `bytes`; on an error `bytes` is as before.
pub(super) fn append(
    bytes: &mut Vec<u8>,
    prefix: &[u8],
    fields: &Fields,
    destinations: Destinations<'_>,
    payload: &[u8],
) -> Result<(), DispatchError> {
    let start = bytes.len();
    let mut header = [0; HEADER_BYTES];
    HeaderMut::new(&mut header).fill(fields);
    bytes.extend_from_slice(prefix);
    bytes.extend_from_slice(&header);
    let bits = bytes.len();
    bytes.resize(bits + fields.length.bytes(), 0);
    if let Err(error) = destinations.set(&mut bytes[bits..]) {
        bytes.truncate(start);
        return Err(error);
    }
    bytes.extend_from_slice(payload);
    Ok(())
}

#[cfg(test)]
mod tests {
    use replicator_common::bier::BiftId;

    use super::*;

    const FIELDS: Fields = Fields {
        bift_id: match BiftId::expert(1, 2) {
            Some(id) => id,
            None => panic!(),
        },
        ttl: 64,
        length: BitStringLength::B64,
        entropy: 3,
        dscp: 46,
        proto: 62,
        bfir_id: 0x1234,
    };

    #[test]
    fn a_frame_is_prefix_header_bits_and_payload() {
        let mut bytes = vec![0xee];
        append(&mut bytes, &[0xaa, 0xbb], &FIELDS, Destinations::Experts(&[0, 9, 63, 9]), b"pay").unwrap();
        #[rustfmt::skip]
        let expected = [
            0xee, 0xaa, 0xbb,
            0x80, 0x10, 0x21, 0x40, // expert table 1, generation 2: 0x80102; S 1, TTL 64
            0x50, 0x10, 0x00, 0x03, // nibble 5, BSL 1, entropy 3
            0x0b, 0xbe, 0x12, 0x34, // DSCP 46, proto 62
            0x80, 0, 0, 0, 0, 0, 0x02, 0x01, // bits 64, 10 and 1
            b'p', b'a', b'y',
        ];
        assert_eq!(bytes, expected);
    }

    #[test]
    fn bits_count_from_one_and_experts_from_zero() {
        let mut by_bit = Vec::new();
        let mut by_expert = Vec::new();
        append(&mut by_bit, &[], &FIELDS, Destinations::Bits(&[1, 64]), &[]).unwrap();
        append(&mut by_expert, &[], &FIELDS, Destinations::Experts(&[0, 63]), &[]).unwrap();
        assert_eq!(by_bit, by_expert);
    }

    #[test]
    fn a_refused_set_leaves_the_bytes_as_they_were() {
        let mut bytes = vec![1, 2];
        let mut refused = |destinations| {
            let error = append(&mut bytes, &[9; 14], &FIELDS, destinations, b"x").unwrap_err();
            assert_eq!(bytes, [1, 2]);
            error
        };
        assert!(matches!(refused(Destinations::Experts(&[])), DispatchError::Empty));
        assert!(matches!(refused(Destinations::Bits(&[])), DispatchError::Empty));
        assert!(matches!(
            refused(Destinations::Experts(&[5, 64])),
            DispatchError::Expert { expert: 64, bits: 64 }
        ));
        assert!(matches!(
            refused(Destinations::Experts(&[u32::MAX])),
            DispatchError::Expert { expert: u32::MAX, .. }
        ));
        assert!(matches!(refused(Destinations::Bits(&[0])), DispatchError::Bit { bit: 0, bits: 64 }));
        assert!(matches!(refused(Destinations::Bits(&[65])), DispatchError::Bit { bit: 65, bits: 64 }));
        assert_eq!(
            refused(Destinations::Experts(&[64])).to_string(),
            "expert 64 is beyond the BitString: 64 bits hold experts 0 to 63"
        );
    }

    #[test]
    fn a_packet_fits_the_device_and_one_page() {
        assert_eq!(max_packet(1500), 1500);
        assert_eq!(max_packet(9000), 3498); // 3,520 less Ethernet header and two tags
    }
}
