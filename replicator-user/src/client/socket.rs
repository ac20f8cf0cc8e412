//! The system calls that neither `socket2` nor `rustix` wraps. Every `unsafe` of the client is in this file.

use std::{
    ffi::c_int,
    io,
    mem::{offset_of, size_of},
    os::fd::AsRawFd,
    time::Duration,
};

use replicator_common::ETHERTYPE_BIER;
use rustix::event::{PollFd, PollFlags, Timespec};
use socket2::{Domain, Protocol, Socket, Type};

use super::batch::Message;

/// Number of an error that a call gave as its return value.
fn check(result: c_int) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Sets an option whose value is an `int`.
pub(super) fn set_option(socket: &Socket, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `value`, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<c_int>() as libc::socklen_t,
        )
    };
    check(result).map(drop)
}

/// Frames that the kernel dropped at this socket for want of buffer or a wrong checksum. The kernel counts modulo 2^32.
///
/// The same counter as SO_RXQ_OVFL, which tells it only with the next frame: what is lost last would not be seen.
pub(super) fn dropped(socket: &Socket) -> io::Result<u32> {
    /// `SK_MEMINFO_DROPS` and `SK_MEMINFO_VARS` of linux/sock_diag.h.
    const DROPS: usize = 8;
    const VARS: usize = 9;
    let mut info = [0u32; VARS];
    let mut length = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the pointers and the length are those of `info` and `length`, which outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    check(result).map(|_| info[DROPS])
}

/// `struct ifreq`: a name, and a union of 24 bytes (16 on 32-bit machines) that holds the answer.
#[repr(C, align(8))]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    answer: [u8; 24],
}

const _: () = assert!(size_of::<InterfaceRequest>() >= size_of::<libc::ifreq>());

/// What there is to know about an interface.
pub(super) struct Interface {
    pub(super) index: c_int,
    pub(super) mtu: usize,
    /// ARPHRD number.
    pub(super) hardware: u16,
    pub(super) mac: [u8; 6],
}

/// Looks an interface up in the socket's network namespace.
pub(super) fn interface(socket: &Socket, name: &str) -> io::Result<Interface> {
    let ask = |request: libc::c_ulong| {
        let mut asked = InterfaceRequest { name: [0; libc::IFNAMSIZ], answer: [0; 24] };
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains('\0') {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        }
        asked.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: the requests below read and write a `struct ifreq`, which `asked` is no smaller than.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), request as _, &raw mut asked) };
        check(result).map(|_| asked.answer)
    };
    let number = |[a, b, c, d, ..]: [u8; 24]| i32::from_ne_bytes([a, b, c, d]);
    let index = number(ask(libc::SIOCGIFINDEX as _)?);
    let mtu = usize::try_from(number(ask(libc::SIOCGIFMTU as _)?)).unwrap_or(0);
    // A `struct sockaddr`: the family is the hardware type, the data begin with the address.
    let [a, b, mac @ ..] = ask(libc::SIOCGIFHWADDR as _)?;
    let [c, d, e, f, g, h, ..] = mac;
    Ok(Interface { index, mtu, hardware: u16::from_ne_bytes([a, b]), mac: [c, d, e, f, g, h] })
}

/// A socket for whole Ethernet frames, bound to nothing and receiving nothing until [`bind_packet`].
pub(super) fn packet_socket() -> io::Result<Socket> {
    Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))
}

/// Binds to an interface. `protocol` is the ethertype to receive; 0 only sends.
pub(super) fn bind_packet(socket: &Socket, ifindex: c_int, protocol: u16) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as libc::sa_family_t,
        sll_protocol: protocol.to_be(),
        sll_ifindex: ifindex,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the pointer and the length are those of `address`, which outlives the call.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    check(result).map(drop)
}

/// Lets only frames for this host into the socket (a switch may flood others' too) in which 0xAB37 stands behind 0, 1 or 2 VLAN tags. The kernel has taken the outer tag
/// out by then (`skb_vlan_untag`), unless the frame comes from a device that does not want it taken.
pub(super) fn keep_bier(socket: &Socket) -> io::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let load = |offset| socket2::SockFilter::new(LOAD, 0, 0, offset);
    let equal = |value: u16, yes, no| socket2::SockFilter::new(EQUAL, yes, no, value.into());
    let tag = |yes, no| [equal(0x8100, yes, 0), equal(0x88a8, yes - 1, no)];
    let keep = socket2::SockFilter::new(RETURN, 0, 0, u32::MAX);
    let drop = socket2::SockFilter::new(RETURN, 0, 0, 0);
    let [first, first_or] = tag(1, 7);
    let [second, second_or] = tag(1, 3);
    let kind = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
    socket.attach_filter(&[
        socket2::SockFilter::new((libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16, 0, 0, kind),
        equal(libc::PACKET_OTHERHOST.into(), 11, 0),
        load(12),
        equal(ETHERTYPE_BIER, 8, 0),
        first,
        first_or,
        load(16),
        equal(ETHERTYPE_BIER, 4, 0),
        second,
        second_or,
        load(20),
        equal(ETHERTYPE_BIER, 0, 1),
        keep,
        drop,
    ])
}

/// Waits until `events` (or an error) can be had; `None` waits without end. Returns whether they can.
///
/// # Errors
/// `Interrupted` where a signal came first.
pub(super) fn wait(socket: &Socket, events: PollFlags, timeout: Option<Duration>) -> io::Result<bool> {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    let ready = rustix::event::poll(&mut [PollFd::new(socket, events)], timeout.as_ref())?;
    Ok(ready > 0)
}

/// Takes the reports off the socket's error queue (`ip(7)`, IP_RECVERR).
///
/// Returns how many came from the network: they tell of frames sent earlier, not of the call that failed.
pub(super) fn drain_reports(socket: &Socket) -> usize {
    /// The one control message there is: no other option that makes them is set.
    #[repr(C)]
    struct ErrorControl {
        header: libc::cmsghdr,
        error: libc::sock_extended_err,
        offender: libc::sockaddr_in6,
    }
    let mut from_network = 0;
    loop {
        let mut control = std::mem::MaybeUninit::<ErrorControl>::zeroed();
        let mut message = blank().msg_hdr;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of::<ErrorControl>() as _;
        // SAFETY: `message` has no name and no buffers; its control buffer is `control`, and both outlive the call.
        let result = unsafe {
            libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
        };
        if result < 0 {
            return from_network;
        }
        // SAFETY: integers and byte arrays alone, for which zeros and whatever the kernel writes are values.
        let origin = unsafe { control.assume_init() }.error.ee_origin;
        from_network += usize::from(matches!(origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6));
    }
}

/// A message header without name, buffers or control messages.
fn blank() -> libc::mmsghdr {
    // SAFETY: integers and pointers alone; all zeros is a value: nothing of anything. It has private fields on some
    // systems and cannot be written out.
    unsafe { std::mem::zeroed() }
}

/// The control message with which `sendmmsg` is told to segment (`udp(7)`, UDP_SEGMENT).
#[repr(C)]
struct SegmentControl {
    header: libc::cmsghdr,
    segment: u16,
}

// CMSG_SPACE and CMSG_DATA for a value of two bytes.
const _: () = assert!(size_of::<SegmentControl>().is_multiple_of(size_of::<usize>()));
const _: () = assert!(offset_of!(SegmentControl, segment) == size_of::<libc::cmsghdr>());
const _: () = assert!(size_of::<libc::cmsghdr>().is_multiple_of(size_of::<usize>()));

impl SegmentControl {
    fn new(segment: u16) -> Self {
        // SAFETY: as in `blank`.
        let mut header: libc::cmsghdr = unsafe { std::mem::zeroed() };
        header.cmsg_level = libc::SOL_UDP;
        header.cmsg_type = libc::UDP_SEGMENT;
        header.cmsg_len = (offset_of!(Self, segment) + size_of::<u16>()) as _;
        Self { header, segment }
    }
}

/// Memory for the arguments of `sendmmsg`. It holds nothing between calls.
pub(super) struct Outgoing {
    headers: Vec<libc::mmsghdr>,
    vectors: Vec<libc::iovec>,
    controls: Vec<SegmentControl>,
}

// SAFETY: the pointers in it are written and used within one call of `send`, through `&mut self`.
unsafe impl Send for Outgoing {}

impl Outgoing {
    pub(super) fn new(messages: usize) -> Self {
        Self {
            headers: Vec::with_capacity(messages),
            vectors: Vec::with_capacity(messages),
            controls: Vec::with_capacity(messages),
        }
    }

    /// Hands messages, which lie in `bytes`, to the kernel. Returns how many it took: at least one, or an error that is
    /// the first one's.
    pub(super) fn send(&mut self, socket: &Socket, bytes: &[u8], messages: &[Message]) -> io::Result<usize> {
        self.headers.clear();
        self.vectors.clear();
        self.controls.clear();
        for message in messages {
            let frames = &bytes[message.bytes.clone()];
            self.vectors
                .push(libc::iovec { iov_base: frames.as_ptr().cast_mut().cast(), iov_len: frames.len() });
            self.controls.push(SegmentControl::new(message.segment.unwrap_or(0)));
        }
        for ((message, vector), control) in messages.iter().zip(&mut self.vectors).zip(&mut self.controls) {
            let mut header = blank();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            if message.segment.is_some() {
                header.msg_hdr.msg_control = (&raw mut *control).cast();
                header.msg_hdr.msg_controllen = size_of::<SegmentControl>() as _;
            }
            self.headers.push(header);
        }
        // SAFETY: every header points to its vector and control message, which are not touched until the call returns,
        // and every vector into `bytes`, which `sendmmsg` only reads. The length is that of `headers`.
        let sent = unsafe {
            libc::sendmmsg(socket.as_raw_fd(), self.headers.as_mut_ptr(), self.headers.len() as _, 0)
        };
        check(sent)
    }
}

/// Places for frames, and memory for the arguments of `recvmmsg`.
pub(super) struct Incoming {
    storage: Box<[u8]>,
    slot_bytes: usize,
    vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

// SAFETY: the pointers in it are written and used within one call of `receive`, through `&mut self`.
unsafe impl Send for Incoming {}

impl Incoming {
    /// Places for `frames` frames of `slot_bytes`.
    pub(super) fn new(frames: usize, slot_bytes: usize) -> Self {
        Self {
            storage: vec![0; frames * slot_bytes].into_boxed_slice(),
            slot_bytes,
            vectors: Vec::with_capacity(frames),
            headers: Vec::with_capacity(frames),
        }
    }

    /// Takes what the socket has, without waiting. Returns how many frames; they replace those of the call before.
    pub(super) fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        self.vectors.clear();
        self.headers.clear();
        self.vectors.extend(
            self.storage
                .chunks_exact_mut(self.slot_bytes)
                .map(|slot| libc::iovec { iov_base: slot.as_mut_ptr().cast(), iov_len: slot.len() }),
        );
        for vector in &mut self.vectors {
            let mut header = blank();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            self.headers.push(header);
        }
        // SAFETY: every header points to its vector and every vector to its own part of `storage`; nothing else touches
        // them until the call returns. The length is that of `headers`. No timeout is given.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as _,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        check(received)
    }

    /// A frame of the last call; `None` where it was longer than its place.
    pub(super) fn frame(&self, index: usize) -> Option<&[u8]> {
        let header = self.headers.get(index)?;
        let start = index * self.slot_bytes;
        let whole = header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0;
        whole.then(|| self.storage.get(start..start + header.msg_len as usize)).flatten()
    }
}
