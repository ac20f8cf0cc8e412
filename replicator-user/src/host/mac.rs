//! Ethernet addresses.

use std::{fmt, str::FromStr};

use serde::Serialize;

/// The Ethernet address of one station.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

/// Text that is not a MAC address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the MAC address of a station: write it as 02:00:00:00:00:01")]
pub struct NotAMacAddr;

impl MacAddr {
    /// The address with these bytes, unless it is a group's or all zero.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        (bytes != [0; 6] && bytes[0] & 1 == 0).then_some(Self(bytes))
    }

    /// The bytes as they are on the wire.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddr {
    type Err = NotAMacAddr;

    fn from_str(text: &str) -> Result<Self, NotAMacAddr> {
        let byte = |pair: &str| {
            let hexadecimal = pair.len() == 2 && pair.bytes().all(|digit| digit.is_ascii_hexdigit());
            hexadecimal.then(|| u8::from_str_radix(pair, 16).ok()).flatten()
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(byte).collect();
        let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
        bytes.and_then(Self::new).ok_or(NotAMacAddr)
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_read_as_it_is_written() {
        let mac = MacAddr::new([0x02, 0, 0xab, 0xff, 0x10, 0x09]).unwrap();
        assert_eq!(mac.to_string(), "02:00:ab:ff:10:09");
        assert_eq!("02:00:AB:ff:10:09".parse(), Ok(mac));
        for wrong in [
            "",
            "02:00:ab:ff:10",
            "02:00:ab:ff:10:09:01",
            "02-00-ab-ff-10-09",
            "2:0:ab:ff:10:9",
            "+2:00:ab:ff:10:09",
        ] {
            assert_eq!(wrong.parse::<MacAddr>(), Err(NotAMacAddr), "{wrong}");
        }
    }

    #[test]
    fn groups_and_zeros_are_no_station() {
        assert_eq!(MacAddr::new([0; 6]), None);
        assert_eq!(MacAddr::new([1, 0, 0x5e, 0, 0, 1]), None);
        assert_eq!(MacAddr::new([0xff; 6]), None);
    }
}
