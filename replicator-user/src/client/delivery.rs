//! A frame that arrived, read in place.

use replicator_common::{
    ETHERTYPE_BIER,
    bier::{self, BiftId, BitString, Header, HeaderError},
    limits::MAX_VLAN_TAGS,
};

/// A frame that arrived.
#[derive(Clone, Copy)]
pub struct Delivery<'a> {
    /// Every field of the header, as it stands in this copy.
    pub header: Header<'a>,
    /// The destinations that this copy serves.
    pub bits: BitString<'a>,
    /// What was dispatched. Straight Ethernet has no length of its own: there a frame of less than 60 bytes may come
    /// with zeros behind the payload that a device added.
    pub payload: &'a [u8],
}

impl<'a> Delivery<'a> {
    /// Table that the frame was looked up in; [`BiftId::table`] and [`BiftId::generation`] tell of expert tables.
    pub const fn bift_id(&self) -> BiftId {
        self.header.bift_id()
    }

    /// Rank of the dispatcher.
    pub const fn source_rank(&self) -> u16 {
        self.header.bfir_id()
    }

    /// The logical experts that this copy serves, lowest first: bits less one.
    pub fn experts(&self) -> impl Iterator<Item = u32> + 'a {
        self.bits.iter().map(|bit| bit as u32 - 1)
    }
}

/// What stands before the BIER header in the bytes that a socket gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// Nothing: a UDP payload.
    Bare,
    /// Ethernet header and VLAN tags.
    Ethernet,
}

/// Why a frame is no delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Skip {
    /// No BIER behind the Ethernet header.
    Foreign,
    Header(HeaderError),
}

/// Reads a frame.
pub(super) fn read(frame: &[u8], framing: Framing) -> Result<Delivery<'_>, Skip> {
    let packet = match framing {
        Framing::Bare => frame,
        Framing::Ethernet => behind_ethernet(frame).ok_or(Skip::Foreign)?,
    };
    let (header, bits, payload) = bier::split(packet).map_err(Skip::Header)?;
    Ok(Delivery { header, bits, payload })
}

/// What follows ethertype 0xAB37, behind at most [`MAX_VLAN_TAGS`] tags.
fn behind_ethernet(frame: &[u8]) -> Option<&[u8]> {
    let mut rest = frame.get(12..)?;
    for _ in 0..=MAX_VLAN_TAGS {
        let (ethertype, behind) = rest.split_first_chunk()?;
        match u16::from_be_bytes(*ethertype) {
            ETHERTYPE_BIER => return Some(behind),
            0x8100 | 0x88a8 => rest = behind.get(2..)?,
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// BIFT-id 0x80102 (expert table 1, generation 2), TTL 9, entropy 3, DSCP 46, proto 62, rank 0x1234, bits 1 and 10.
    const PACKET: [u8; 23] = [
        0x80, 0x10, 0x21, 0x09, 0x50, 0x10, 0x00, 0x03, 0x0b, 0xbe, 0x12, 0x34, 0, 0, 0, 0, 0, 0, 0x02, 0x01,
        b'p', b'a', b'y',
    ];
    const MACS: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];

    fn framed(tags: &[&[u8]]) -> Vec<u8> {
        [&MACS[..], &tags.concat(), &[0xab, 0x37], &PACKET].concat()
    }

    #[test]
    fn a_delivery_says_what_the_frame_says() {
        let delivery = read(&PACKET, Framing::Bare).ok().unwrap();
        assert_eq!((delivery.bift_id().table(), delivery.bift_id().generation()), (Some(1), Some(2)));
        assert_eq!(
            (delivery.source_rank(), delivery.header.ttl(), delivery.header.entropy()),
            (0x1234, 9, 3)
        );
        assert_eq!((delivery.header.dscp(), delivery.header.proto()), (46, 62));
        assert!(delivery.bits.iter().eq([1, 10]));
        assert!(delivery.experts().eq([0, 9]));
        assert_eq!(delivery.payload, b"pay");
    }

    #[test]
    fn up_to_two_tags_stand_before_bier() {
        let (q, ad): (&[u8], &[u8]) = (&[0x81, 0, 0x20, 5], &[0x88, 0xa8, 0, 7]);
        for tags in [&[][..], &[q], &[ad], &[ad, q], &[q, q]] {
            let frame = framed(tags);
            assert_eq!(read(&frame, Framing::Ethernet).ok().unwrap().payload, b"pay", "{tags:?}");
        }
        assert_eq!(read(&framed(&[ad, q, q]), Framing::Ethernet).err(), Some(Skip::Foreign));
        let other = [&MACS[..], &[8, 0], &PACKET].concat();
        assert_eq!(read(&other, Framing::Ethernet).err(), Some(Skip::Foreign));
    }

    #[test]
    fn every_cut_of_a_frame_is_refused_for_its_reason() {
        let whole = framed(&[&[0x81, 0, 0, 5]]);
        for length in 0..12 + 4 + 2 {
            assert_eq!(read(&whole[..length], Framing::Ethernet).err(), Some(Skip::Foreign), "{length}");
        }
        for length in 18..18 + 20 {
            assert!(
                matches!(
                    read(&whole[..length], Framing::Ethernet).err(),
                    Some(Skip::Header(HeaderError::Truncated { .. }))
                ),
                "{length}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0..60usize) {
            for framing in [Framing::Bare, Framing::Ethernet] {
                // Random bytes hardly ever get past the first check: also spoil a good frame.
                let mut spoilt = framed(&[&[0x88, 0xa8, 0, 7], &[0x81, 0, 0, 5]]);
                spoilt.truncate(at + bytes.len());
                for (byte, other) in spoilt.iter_mut().skip(at).zip(&bytes) {
                    *byte = *other;
                }
                for frame in [&bytes, &spoilt] {
                    if let Ok(delivery) = read(frame, framing) {
                        prop_assert!(delivery.payload.len() + 20 <= frame.len());
                        prop_assert_eq!(delivery.experts().count(), delivery.bits.count());
                    }
                }
            }
        }
    }
}
