//! The BIER header of RFC 8296, section 2.1: 12 bytes, then the BitString. Read and written in place.
//!
//! ```text
//!  0                   1                   2                   3
//!  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |              BIFT-id                  | TC  |S|     TTL       |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |Nibble |  Ver  |  BSL  |              Entropy                  |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |OAM|Rsv|    DSCP   |   Proto   |            BFIR-id            |
//! +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
//! |                BitString  (first 32 bits)                     ~
//! ```

use core::fmt;

/// Bytes of the header before the BitString.
pub const HEADER_BYTES: usize = 12;

/// The version this code speaks (RFC 8296, section 2.1.2).
pub const VERSION: u8 = 0;

/// First nibble outside MPLS; it tells BIER from IP (RFC 8296, section 2.1.2) and is not checked on receipt.
pub const NIBBLE: u8 = 5;

/// Proto of expert payloads: unassigned in the IANA registry of BIER next protocols, used privately.
pub const PROTO_EXPERT: u8 = 62;

/// Largest value of a BIFT-id, 20 bits.
const MAX_BIFT_ID: u32 = (1 << 20) - 1;

/// A 20-bit BIFT-id: names the table a frame is looked up in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BiftId(u32);

impl BiftId {
    /// Top bit of the ids of expert tables. Ids made by other BIER routers from BSL, sub-domain and set have it clear.
    const EXPERT: u32 = 1 << 19;

    /// The id with this value, or `None` where it does not fit 20 bits.
    #[inline(always)]
    pub const fn new(value: u32) -> Option<Self> {
        if value <= MAX_BIFT_ID { Some(Self(value)) } else { None }
    }

    /// The id of an expert table: 11 bits table, 8 bits generation. `None` where `table` does not fit.
    #[inline(always)]
    pub const fn expert(table: u16, generation: u8) -> Option<Self> {
        if (table as usize) < crate::limits::MAX_EXPERT_TABLES {
            Some(Self(Self::EXPERT | (table as u32) << 8 | generation as u32))
        } else {
            None
        }
    }

    /// The value, at most 2^20 - 1.
    #[inline(always)]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Whether this is in the range of expert tables.
    #[inline(always)]
    pub const fn is_expert(self) -> bool {
        self.0 & Self::EXPERT != 0
    }

    /// Table (model and layer) of an expert id.
    #[inline(always)]
    pub const fn table(self) -> Option<u16> {
        if self.is_expert() { Some((self.0 >> 8) as u16 & 0x7ff) } else { None }
    }

    /// Generation of an expert id; 0 is the alias of the newest.
    #[inline(always)]
    pub const fn generation(self) -> Option<u8> {
        if self.is_expert() { Some(self.0 as u8) } else { None }
    }

    /// The same table's id for another generation; `None` for a node table's id.
    #[inline(always)]
    pub const fn with_generation(self, generation: u8) -> Option<Self> {
        if self.is_expert() { Some(Self(self.0 & !0xff | generation as u32)) } else { None }
    }
}

impl fmt::Debug for BiftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BiftId({:#07x})", self.0)
    }
}

impl fmt::Display for BiftId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#07x}", self.0)
    }
}

/// Length of a BitString.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BitStringLength {
    /// 64 bits, code 1.
    B64,
    /// 128 bits, code 2.
    B128,
    /// 256 bits, code 3.
    B256,
    /// 512 bits, code 4.
    B512,
    /// 1,024 bits, code 5.
    B1024,
}

impl BitStringLength {
    /// Every length, shortest first.
    pub const ALL: [Self; 5] = [Self::B64, Self::B128, Self::B256, Self::B512, Self::B1024];

    /// The length that a BSL code of RFC 8296, section 2.1.2 stands for: code n means 2^(n+5) bits.
    #[inline(always)]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::B64),
            2 => Some(Self::B128),
            3 => Some(Self::B256),
            4 => Some(Self::B512),
            5 => Some(Self::B1024),
            _ => None,
        }
    }

    /// The code of RFC 8296.
    #[inline(always)]
    pub const fn code(self) -> u8 {
        self as u8 + 1
    }

    /// The code that drafts before RFC 8296 (and VPP and scapy) give this length: one less.
    #[inline(always)]
    pub const fn draft_code(self) -> u8 {
        self as u8
    }

    /// The shortest length with room for `bits` bits.
    pub const fn for_bits(bits: usize) -> Option<Self> {
        match bits {
            0..=64 => Some(Self::B64),
            65..=128 => Some(Self::B128),
            129..=256 => Some(Self::B256),
            257..=512 => Some(Self::B512),
            513..=1024 => Some(Self::B1024),
            _ => None,
        }
    }

    /// Bits.
    #[inline(always)]
    pub const fn bits(self) -> usize {
        64 << self as usize
    }

    /// Bytes.
    #[inline(always)]
    pub const fn bytes(self) -> usize {
        8 << self as usize
    }

    /// 64-bit words.
    #[inline(always)]
    pub const fn words(self) -> usize {
        1 << self as usize
    }
}

/// A header read in place.
#[derive(Clone, Copy)]
pub struct Header<'a>(&'a [u8; HEADER_BYTES]);

impl<'a> Header<'a> {
    /// Reads the header in these bytes.
    #[inline(always)]
    pub const fn new(bytes: &'a [u8; HEADER_BYTES]) -> Self {
        Self(bytes)
    }

    #[inline(always)]
    const fn first(self) -> u32 {
        u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
    }

    /// Table the frame is looked up in.
    #[inline(always)]
    pub const fn bift_id(self) -> BiftId {
        BiftId(self.first() >> 12)
    }

    /// Traffic class, 3 bits.
    #[inline(always)]
    pub const fn traffic_class(self) -> u8 {
        self.0[2] >> 1 & 7
    }

    /// Bottom of the MPLS label stack; 1 and without meaning outside MPLS.
    #[inline(always)]
    pub const fn bottom_of_stack(self) -> bool {
        self.0[2] & 1 == 1
    }

    /// Time to live (section 2.1.1).
    #[inline(always)]
    pub const fn ttl(self) -> u8 {
        self.0[3]
    }

    /// First nibble; without meaning outside MPLS.
    #[inline(always)]
    pub const fn nibble(self) -> u8 {
        self.0[4] >> 4
    }

    /// Version of the header.
    #[inline(always)]
    pub const fn version(self) -> u8 {
        self.0[4] & 0xf
    }

    /// Code of the BitString's length, as it stands: see [`BitStringLength::from_code`].
    #[inline(always)]
    pub const fn bsl_code(self) -> u8 {
        self.0[5] >> 4
    }

    /// Entropy, 20 bits: picks the variant of the table.
    #[inline(always)]
    pub const fn entropy(self) -> u32 {
        u32::from_be_bytes([0, self.0[5] & 0xf, self.0[6], self.0[7]])
    }

    /// OAM, 2 bits; kept as it is.
    #[inline(always)]
    pub const fn oam(self) -> u8 {
        self.0[8] >> 6
    }

    /// DSCP, 6 bits; kept as it is.
    #[inline(always)]
    pub const fn dscp(self) -> u8 {
        (self.0[8] & 0xf) << 2 | self.0[9] >> 6
    }

    /// Next protocol, 6 bits.
    #[inline(always)]
    pub const fn proto(self) -> u8 {
        self.0[9] & 0x3f
    }

    /// Who made the packet; expert payloads carry the source rank here.
    #[inline(always)]
    pub const fn bfir_id(self) -> u16 {
        u16::from_be_bytes([self.0[10], self.0[11]])
    }
}

/// A header written in place.
pub struct HeaderMut<'a>(&'a mut [u8; HEADER_BYTES]);

impl<'a> HeaderMut<'a> {
    /// Writes to the header in these bytes.
    #[inline(always)]
    pub const fn new(bytes: &'a mut [u8; HEADER_BYTES]) -> Self {
        Self(bytes)
    }

    /// Fills every field. Values wider than their field (`entropy` 20 bits, `dscp` and `proto` 6) are cut to it.
    pub const fn fill(&mut self, fields: &Fields) {
        let first = fields.bift_id.0 << 12 | 1 << 8 | fields.ttl as u32;
        let second = (NIBBLE as u32) << 28
            | (VERSION as u32) << 24
            | (fields.length.code() as u32) << 20
            | fields.entropy & 0xf_ffff;
        let third =
            (fields.dscp as u32 & 0x3f) << 22 | (fields.proto as u32 & 0x3f) << 16 | fields.bfir_id as u32;
        let (first, second, third) = (first.to_be_bytes(), second.to_be_bytes(), third.to_be_bytes());
        *self.0 = [
            first[0], first[1], first[2], first[3], second[0], second[1], second[2], second[3], third[0],
            third[1], third[2], third[3],
        ];
    }

    /// Sets the TTL.
    #[inline(always)]
    pub const fn set_ttl(&mut self, ttl: u8) {
        self.0[3] = ttl;
    }
}

/// The fields a sender fills in; the others have one right value (`S` 1, `Nibble` 5, `Ver` 0, `OAM` and `Rsv` 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fields {
    /// Table.
    pub bift_id: BiftId,
    /// Time to live: one for each hop that forwards.
    pub ttl: u8,
    /// Length of the BitString.
    pub length: BitStringLength,
    /// Entropy, 20 bits.
    pub entropy: u32,
    /// DSCP, 6 bits.
    pub dscp: u8,
    /// Next protocol, 6 bits.
    pub proto: u8,
    /// Source.
    pub bfir_id: u16,
}

/// Why bytes are not a header with its BitString.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Fewer bytes than the header and its BitString need.
    Truncated {
        /// Bytes needed.
        need: usize,
        /// Bytes there.
        have: usize,
    },
    /// A version other than [`VERSION`].
    Version(u8),
    /// A BSL code that stands for no supported length.
    Length(u8),
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { need, have } => write!(f, "BIER header needs {need} bytes, {have} are there"),
            Self::Version(version) => write!(f, "BIER version {version}, only {VERSION} is spoken"),
            Self::Length(code) => write!(f, "BSL code {code} names no supported BitString length (1 to 5)"),
        }
    }
}

impl core::error::Error for HeaderError {}

/// Splits a packet into header, BitString and payload, in place.
///
/// # Errors
/// Where the bytes end early, or version or BSL code are unknown.
pub fn split(packet: &[u8]) -> Result<(Header<'_>, BitString<'_>, &[u8]), HeaderError> {
    let truncated = |need| HeaderError::Truncated { need, have: packet.len() };
    let (header, rest) = packet.split_first_chunk().ok_or(truncated(HEADER_BYTES))?;
    let header = Header::new(header);
    if header.version() != VERSION {
        return Err(HeaderError::Version(header.version()));
    }
    let length =
        BitStringLength::from_code(header.bsl_code()).ok_or(HeaderError::Length(header.bsl_code()))?;
    let (bits, payload) =
        rest.split_at_checked(length.bytes()).ok_or(truncated(HEADER_BYTES + length.bytes()))?;
    Ok((header, BitString(bits), payload))
}

/// A BitString read in place. Bit 1 is the rightmost bit (RFC 8296, section 2.1.2), so the last byte holds bits 1 to 8.
#[derive(Clone, Copy)]
pub struct BitString<'a>(&'a [u8]);

impl<'a> BitString<'a> {
    /// Reads these bytes; `None` where their number is no BitString's.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        BitStringLength::ALL.iter().any(|length| length.bytes() == bytes.len()).then_some(Self(bytes))
    }

    /// The bytes as they are on the wire.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Whether `bit`, counted from 1, is set. Bits beyond the length are not.
    pub fn contains(self, bit: usize) -> bool {
        match place(self.0.len(), bit) {
            Some((byte, mask)) => self.0[byte] & mask != 0,
            None => false,
        }
    }

    /// The set bits, lowest first, counted from 1.
    pub fn iter(self) -> impl Iterator<Item = usize> + 'a {
        self.0.rchunks(8).enumerate().flat_map(|(index, bytes)| {
            let mut word = bytes.iter().fold(0_u64, |word, &byte| word << 8 | u64::from(byte));
            core::iter::from_fn(move || {
                let bit = word.trailing_zeros() as usize;
                word &= word.checked_sub(1)?;
                Some(index * 64 + bit + 1)
            })
        })
    }

    /// How many bits are set.
    pub fn count(self) -> usize {
        self.0.iter().map(|byte| byte.count_ones() as usize).sum()
    }
}

/// Sets `bit`, counted from 1, in the BitString that these bytes are.
///
/// Returns whether the bit is within the length.
pub fn set_bit(bytes: &mut [u8], bit: usize) -> bool {
    match place(bytes.len(), bit) {
        Some((byte, mask)) => {
            bytes[byte] |= mask;
            true
        }
        None => false,
    }
}

/// Byte and mask of a bit counted from 1 in a BitString of `length` bytes.
fn place(length: usize, bit: usize) -> Option<(usize, u8)> {
    let index = bit.checked_sub(1)?;
    let byte = length.checked_sub(1 + index / 8)?;
    Some((byte, 1 << (index % 8)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8296's figure with a different value in every field, written out by hand.
    const EXAMPLE: [u8; HEADER_BYTES + 8] = [
        0xab, 0xcd, 0xeb, 0x40, // BIFT-id 0xabcde, TC 5, S 1, TTL 64
        0x50, 0x11, 0x23, 0x45, // Nibble 5, Ver 0, BSL 1, Entropy 0x12345
        0x8a, 0x7e, 0x01, 0x02, // OAM 2, Rsv 0, DSCP 0x29, Proto 62, BFIR-id 0x0102
        0x80, 0, 0, 0, 0, 0, 0x01, 0x03, // bits 64, 9, 2 and 1
    ];

    #[test]
    fn reads_every_field_of_the_figure() {
        let (header, bits, payload) = split(&EXAMPLE).unwrap();
        assert_eq!(header.bift_id().get(), 0xabcde);
        assert_eq!(header.traffic_class(), 5);
        assert!(header.bottom_of_stack());
        assert_eq!(header.ttl(), 64);
        assert_eq!(header.nibble(), 5);
        assert_eq!(header.version(), 0);
        assert_eq!(header.bsl_code(), 1);
        assert_eq!(header.entropy(), 0x12345);
        assert_eq!(header.oam(), 2);
        assert_eq!(header.dscp(), 0x29);
        assert_eq!(header.proto(), 62);
        assert_eq!(header.bfir_id(), 0x0102);
        assert!(bits.iter().eq([1, 2, 9, 64]));
        assert_eq!(bits.count(), 4);
        assert!(payload.is_empty());
    }

    #[test]
    fn fill_writes_what_the_figure_says() {
        let mut bytes = [0xff; HEADER_BYTES];
        HeaderMut::new(&mut bytes).fill(&Fields {
            bift_id: BiftId::new(0xabcde).unwrap(),
            ttl: 64,
            length: BitStringLength::B64,
            entropy: 0x12345,
            dscp: 0x29,
            proto: PROTO_EXPERT,
            bfir_id: 0x0102,
        });
        let mut expected: [u8; HEADER_BYTES] = *EXAMPLE.first_chunk().unwrap();
        expected[2] &= 0xf1; // senders leave TC 0
        expected[8] &= 0x3f; // and OAM 0
        assert_eq!(bytes, expected);
    }

    #[test]
    fn lengths_follow_the_rfc_and_the_draft_is_one_less() {
        for (code, bits) in [(1, 64), (2, 128), (3, 256), (4, 512), (5, 1024)] {
            let length = BitStringLength::from_code(code).unwrap();
            assert_eq!(
                (length.bits(), length.bytes(), length.words()),
                (bits, bits / 8, bits / 64),
                "code {code}"
            );
            assert_eq!((length.code(), length.draft_code()), (code, code - 1));
            assert_eq!(BitStringLength::for_bits(bits), Some(length));
            assert_ne!(BitStringLength::for_bits(bits + 1), Some(length));
        }
        for code in [0, 6, 7, 15] {
            assert_eq!(BitStringLength::from_code(code), None);
        }
    }

    #[test]
    fn bit_one_is_the_rightmost() {
        for length in BitStringLength::ALL {
            let mut bytes = [0; crate::limits::MAX_BITS / 8];
            let bytes = &mut bytes[..length.bytes()];
            assert!(set_bit(bytes, 1) && set_bit(bytes, length.bits()));
            assert_eq!((bytes[length.bytes() - 1], bytes[0]), (0x01, 0x80));
            assert!(!set_bit(bytes, 0) && !set_bit(bytes, length.bits() + 1));
            assert!(BitString::new(bytes).unwrap().iter().eq([1, length.bits()]));
        }
    }

    #[test]
    fn split_refuses_what_is_no_header() {
        for have in 0..HEADER_BYTES + 8 {
            assert!(matches!(split(&EXAMPLE[..have]), Err(HeaderError::Truncated { .. })), "{have} bytes");
        }
        let mut other = EXAMPLE;
        other[4] = 0x51;
        assert_eq!(split(&other).err(), Some(HeaderError::Version(1)));
        let mut other = EXAMPLE;
        other[5] = 0x61;
        assert_eq!(split(&other).err(), Some(HeaderError::Length(6)));
    }

    #[test]
    fn expert_ids_hold_table_and_generation() {
        let id = BiftId::expert(2047, 255).unwrap();
        assert_eq!(id.get(), 0xf_ffff);
        assert_eq!((id.table(), id.generation()), (Some(2047), Some(255)));
        assert_eq!(id.with_generation(0).unwrap().get(), 0xf_ff00);
        assert_eq!(BiftId::expert(2048, 0), None);
        assert_eq!(BiftId::new(1 << 20), None);
        let node = BiftId::new(0x7_ffff).unwrap();
        assert_eq!((node.is_expert(), node.table(), node.with_generation(1)), (false, None, None));
    }
}
