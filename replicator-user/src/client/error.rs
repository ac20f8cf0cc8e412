//! What can go wrong, and what to do about it. Texts hold their cause, so it is not in the chain of sources again.

use std::{io, ops::Range};

/// Why a [`super::Dispatcher`] or [`super::Receiver`] could not be made.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting that the header, or the batch, has no room for.
    #[error("{field} is {value}: it must be {range}")]
    Setting {
        /// Its name.
        field: &'static str,
        /// What it was set to.
        value: usize,
        /// What it may be.
        range: &'static str,
    },
    /// The interface cannot be used.
    #[error("interface {name}: {error}")]
    Interface {
        /// Its name.
        name: String,
        /// What the system said.
        error: io::Error,
    },
    /// The interface has no MAC addresses.
    #[error("interface {name} is not Ethernet (hardware type {hardware}): use UDP there")]
    NotEthernet {
        /// Its name.
        name: String,
        /// Its ARPHRD number.
        hardware: u16,
    },
    /// An MTU with no room for the headers.
    #[error(
        "{target}: an MTU of {mtu} bytes has no room for headers of {headers}: raise it or use a shorter BitString"
    )]
    Mtu {
        /// Where frames go.
        target: String,
        /// The device's or the route's MTU, bytes.
        mtu: usize,
        /// IP, UDP and BIER headers, bytes.
        headers: usize,
    },
    /// A raw socket without the right to it.
    #[error("{target}: raw Ethernet needs CAP_NET_RAW: run as root or grant it, or use UDP")]
    NotPermitted {
        /// The interface.
        target: String,
    },
    /// The system refused a step.
    #[error("{target}: cannot {step}: {error}")]
    System {
        /// Where frames go to or come from.
        target: String,
        /// What was tried.
        step: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

/// Why a frame was not queued, or queued frames were not sent.
///
/// Frames are numbered from 0 in the order they were queued.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// A frame for nobody.
    #[error("the set of destinations is empty: nobody would receive the frame")]
    Empty,
    /// An expert without a bit.
    #[error("expert {expert} is beyond the BitString: {bits} bits hold experts 0 to {}", bits - 1)]
    Expert {
        /// Its logical id.
        expert: u32,
        /// Length of the BitString.
        bits: usize,
    },
    /// A bit that the BitString does not have.
    #[error("bit {bit} is not in the BitString: its bits are 1 to {bits}")]
    Bit {
        /// The bit.
        bit: u32,
        /// Length of the BitString.
        bits: usize,
    },
    /// More payload than a frame carries.
    #[error(
        "a payload of {bytes} bytes does not fit one frame, which carries at most {limit}: cut it into chunks"
    )]
    Payload {
        /// Bytes of the payload.
        bytes: usize,
        /// [`super::Dispatcher::max_payload`].
        limit: usize,
    },
    /// The kernel refused frames. They are taken off the queue; those behind them stay on it.
    #[error("frames {} to {} were not sent ({handed} before them were): {error}", frames.start, frames.end - 1)]
    Refused {
        /// Frames that were not sent.
        frames: Range<u64>,
        /// Frames that this call handed to the kernel.
        handed: usize,
        /// What the kernel said.
        error: io::Error,
    },
    /// A device dropped frames of a run that the kernel segments, and nobody knows how many: sending them again might
    /// double some. They are taken off the queue; those behind them stay on it.
    #[error(
        "of frames {} to {} at least one was dropped by the device ({handed} before them were sent): its queue is full, send slower or in smaller batches",
        frames.start,
        frames.end - 1
    )]
    Dropped {
        /// The run.
        frames: Range<u64>,
        /// Frames that this call handed to the kernel.
        handed: usize,
    },
}
