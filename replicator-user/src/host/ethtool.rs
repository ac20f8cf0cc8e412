//! Driver settings, by the ethtool ioctls: the smallest interface that every kernel in question has.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use serde::Serialize;

use super::Error;

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_SGRO: u32 = 0x2c;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;
const ETH_FLAG_TXVLAN: u32 = 1 << 7;
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// Words of `struct ethtool_value`: command, data.
const VALUE_WORDS: usize = 2;
/// Words of `struct ethtool_channels`: command, four limits, four settings.
const CHANNELS_WORDS: usize = 9;
/// Words of `struct ethtool_drvinfo`: command, five names of 32 bytes, 12 bytes, five counts.
const DRVINFO_WORDS: usize = 1 + 5 * 8 + 3 + 5;
const DRIVER_BYTES: usize = 32;

/// Queues of an interface. Drivers count receive and transmit queues apart or combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Channels {
    /// Most receive queues.
    pub max_rx: u32,
    /// Most transmit queues.
    pub max_tx: u32,
    /// Most queues for both.
    pub max_combined: u32,
    /// Receive queues.
    pub rx: u32,
    /// Transmit queues.
    pub tx: u32,
    /// Queues for both.
    pub combined: u32,
}

impl Channels {
    /// Queues that receive.
    pub const fn receiving(&self) -> u32 {
        self.rx + self.combined
    }
}

/// A socket for the ioctls, in the network namespace of the thread that opened it.
pub(super) struct Ethtool {
    socket: OwnedFd,
}

/// `struct ifreq` as `SIOCETHTOOL` uses it; the tail is room for the largest member of its union.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut u32,
    tail: [u8; 16],
}

impl Ethtool {
    pub(super) fn open() -> Result<Self, Error> {
        // SAFETY: no pointer is passed.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(Error::refused("open a socket for ethtool", io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was just opened and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { socket })
    }

    /// Name of the driver; `None` where there is none to ask (loopback).
    pub(super) fn driver(&self, name: &str) -> Option<String> {
        let mut info = [0; DRVINFO_WORDS];
        info[0] = ETHTOOL_GDRVINFO;
        self.command(name, &mut info).ok()?;
        let bytes: Vec<u8> = info[1..=DRIVER_BYTES / 4].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let driver = String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next()?).into_owned();
        (!driver.is_empty()).then_some(driver)
    }

    /// Whether generic receive offload is on.
    pub(super) fn gro(&self, name: &str) -> Option<bool> {
        self.value(name, ETHTOOL_GGRO).map(|on| on != 0)
    }

    pub(super) fn set_gro(&self, name: &str, on: bool) -> Result<(), Error> {
        let mut value: [u32; VALUE_WORDS] = [ETHTOOL_SGRO, on.into()];
        self.command(name, &mut value).map_err(|cause| Error::refused(format!("set GRO on {name}"), cause))
    }

    /// Switches checksums of sent frames over to the device or back.
    pub(super) fn set_tx_checksum(&self, name: &str, on: bool) -> Result<(), Error> {
        self.command(name, &mut [ETHTOOL_STXCSUM, on.into()])
            .map_err(|cause| Error::refused(format!("set the checksum offload of {name}"), cause))
    }

    /// Whether the device takes VLAN tags out of received frames.
    pub(super) fn rx_vlan_offload(&self, name: &str) -> Option<bool> {
        self.value(name, ETHTOOL_GFLAGS).map(|flags| flags & ETH_FLAG_RXVLAN != 0)
    }

    /// Whether the device is given VLAN tags of frames to send beside the frame.
    pub(super) fn tx_vlan_offload(&self, name: &str) -> Option<bool> {
        self.value(name, ETHTOOL_GFLAGS).map(|flags| flags & ETH_FLAG_TXVLAN != 0)
    }

    /// Queues; `None` where the driver has nothing to set.
    pub(super) fn channels(&self, name: &str) -> Option<Channels> {
        let mut words: [u32; CHANNELS_WORDS] = [ETHTOOL_GCHANNELS, 0, 0, 0, 0, 0, 0, 0, 0];
        self.command(name, &mut words).ok()?;
        let [_, max_rx, max_tx, _, max_combined, rx, tx, _, combined] = words;
        Some(Channels { max_rx, max_tx, max_combined, rx, tx, combined })
    }

    /// Sets the numbers of receive and transmit queues of a driver that counts them apart, as veth does.
    pub(super) fn set_channels(&self, name: &str, rx: u32, tx: u32) -> Result<(), Error> {
        let mut words: [u32; CHANNELS_WORDS] = [ETHTOOL_SCHANNELS, 0, 0, 0, 0, rx, tx, 0, 0];
        self.command(name, &mut words).map_err(|cause| {
            Error::refused(format!("give {name} {rx} receive and {tx} transmit queues"), cause)
        })
    }

    fn value(&self, name: &str, command: u32) -> Option<u32> {
        let mut value: [u32; VALUE_WORDS] = [command, 0];
        self.command(name, &mut value).ok()?;
        Some(value[1])
    }

    /// `words` starts with the command and has the length of the command's struct.
    fn command<const WORDS: usize>(&self, name: &str, words: &mut [u32; WORDS]) -> io::Result<()> {
        let mut request = Request { name: [0; libc::IFNAMSIZ], data: words.as_mut_ptr(), tail: [0; 16] };
        match request.name.get_mut(..name.len()) {
            Some(bytes) if name.len() < libc::IFNAMSIZ => bytes.copy_from_slice(name.as_bytes()),
            _ => return Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
        // SAFETY: `request` is laid out as the kernel reads it and its name ends with a zero; `data` points
        // to a live array of the command's struct's length, which is all that the kernel reads and writes.
        let status =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

const _: () = assert!(size_of::<Request>() >= size_of::<libc::ifreq>());
