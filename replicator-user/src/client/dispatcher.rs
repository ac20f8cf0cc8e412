//! The sending side.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::{Duration, Instant},
};

use replicator_common::{
    ETHERTYPE_BIER,
    bier::{BiftId, BitStringLength, Fields, PROTO_EXPERT},
};
use rustix::{
    event::PollFlags,
    net::sockopt::{self, Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    Destinations, DispatchError, OpenError,
    batch::{Batch, MAX_SEGMENTS, Message},
    frame,
    socket::{self, Outgoing},
};
use crate::config::MacAddr;

/// How frames leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// UDP over IPv4 or IPv6.
    Udp {
        /// A replicator: the address of the origin veth's peer, or a host's whose replicator is to make the copies.
        to: SocketAddr,
        /// Device that frames must leave by, whatever the routes say.
        interface: Option<String>,
    },
    /// Straight Ethernet, ethertype 0xAB37. Needs CAP_NET_RAW.
    Ethernet {
        /// Device that frames leave by.
        interface: String,
        /// Destination MAC address.
        destination: MacAddr,
    },
}

/// What every frame of a dispatcher says, and how it works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DispatcherSettings {
    /// Table: [`BiftId::expert`] of a table and a generation, or a node table's id as it is.
    pub bift_id: BiftId,
    /// Length of the table's BitString.
    pub length: BitStringLength,
    /// This sender's rank; goes into BFIR-id.
    pub rank: u16,
    /// Time to live, one for each replicator on the way and one for the receiver. 64 by default.
    pub ttl: u8,
    /// DSCP (6 bits), in the BIER header and, over UDP, in the IP header. 0 by default.
    pub dscp: u8,
    /// Next protocol, 6 bits. [`PROTO_EXPERT`] by default.
    pub proto: u8,
    /// Frames that may wait for [`Dispatcher::flush`], 1 to 64 (and 65,507 bytes); the next one flushes. 32 by default:
    /// what the kernel gets at once must fit a device's queue, and with it all the copies that are made of it.
    pub batch: usize,
    /// How long to wait for a device or socket buffer that is full. 100 ms by default.
    pub patience: Duration,
}

impl DispatcherSettings {
    /// The defaults, for a table and this sender's rank.
    pub const fn new(bift_id: BiftId, length: BitStringLength, rank: u16) -> Self {
        Self {
            bift_id,
            length,
            rank,
            ttl: 64,
            dscp: 0,
            proto: PROTO_EXPERT,
            batch: 32,
            patience: Duration::from_millis(100),
        }
    }

    fn check(&self) -> Result<(), OpenError> {
        let within = |field, value: usize, low: usize, high: usize, range| {
            if (low..=high).contains(&value) {
                Ok(())
            } else {
                Err(OpenError::Setting { field, value, range })
            }
        };
        within("TTL", self.ttl.into(), 1, 255, "1 to 255: a frame with 0 has expired")?;
        within("DSCP", self.dscp.into(), 0, 63, "0 to 63")?;
        within("proto", self.proto.into(), 0, 63, "0 to 63")?;
        within("batch", self.batch, 1, MAX_SEGMENTS, "1 to 64 frames")
    }
}

/// Sends frames to sets of destinations.
///
/// Frames gather in a buffer until [`flush`](Self::flush), or until the buffer is full, and go to the kernel in one
/// call. One thread uses a dispatcher; others open their own. What still waits when it is dropped is flushed.
pub struct Dispatcher {
    socket: Socket,
    /// Ethernet header, where there is one.
    prefix: Vec<u8>,
    fields: Fields,
    patience: Duration,
    /// Longest packet behind `prefix` and what the kernel adds, bytes.
    max_packet: usize,
    /// Whether the kernel may be asked to segment.
    segmenting: bool,
    batch: Batch,
    messages: Vec<Message>,
    outgoing: Outgoing,
    queued: u64,
    reports: u64,
}

impl Dispatcher {
    /// Opens the socket and takes all the memory that will be needed.
    ///
    /// # Errors
    /// Where a setting is out of range, the interface cannot be used, the address has no route, or the right to raw
    /// sockets is missing.
    pub fn open(transport: &Transport, settings: &DispatcherSettings) -> Result<Self, OpenError> {
        settings.check()?;
        let (target, (socket, prefix, max_packet)) = match transport {
            Transport::Udp { to, interface } => {
                (to.to_string(), open_udp(*to, interface.as_deref(), settings)?)
            }
            Transport::Ethernet { interface, destination } => {
                (interface.clone(), open_ethernet(interface, *destination)?)
            }
        };
        let headers = frame::header_bytes(settings.length);
        if max_packet < headers {
            return Err(OpenError::Mtu { target, mtu: max_packet, headers });
        }
        Ok(Self {
            segmenting: prefix.is_empty(),
            batch: Batch::new(settings.batch),
            messages: Vec::with_capacity(settings.batch),
            outgoing: Outgoing::new(settings.batch),
            socket,
            prefix,
            max_packet,
            fields: Fields {
                bift_id: settings.bift_id,
                ttl: settings.ttl,
                length: settings.length,
                entropy: 0,
                dscp: settings.dscp,
                proto: settings.proto,
                bfir_id: settings.rank,
            },
            patience: settings.patience,
            queued: 0,
            reports: 0,
        })
    }

    /// Names another table (another layer, or the next generation) for the frames dispatched from now on.
    pub fn set_table(&mut self, bift_id: BiftId, length: BitStringLength) {
        self.fields.bift_id = bift_id;
        self.fields.length = length;
    }

    /// Longest payload of a frame for the present table, bytes: the replicator's limit or the MTU when it was opened.
    pub fn max_payload(&self) -> usize {
        self.max_packet.saturating_sub(frame::header_bytes(self.fields.length))
    }

    /// Queues one frame. `entropy` picks among the replicas of experts; its lowest 20 bits count.
    ///
    /// Flushes first where the buffer is full, and returns how many frames that handed to the kernel.
    ///
    /// # Errors
    /// After an error this frame is not queued. [`DispatchError::Refused`] and [`DispatchError::Dropped`] are of earlier
    /// frames: the call may be repeated.
    pub fn dispatch(
        &mut self,
        destinations: Destinations<'_>,
        entropy: u32,
        payload: &[u8],
    ) -> Result<usize, DispatchError> {
        let packet = frame::header_bytes(self.fields.length) + payload.len();
        if packet > self.max_packet {
            return Err(DispatchError::Payload { bytes: payload.len(), limit: self.max_payload() });
        }
        let handed = if self.batch.has_room(self.prefix.len() + packet) { 0 } else { self.flush()? };
        let fields = Fields { entropy, ..self.fields };
        self.batch.push(|bytes| frame::append(bytes, &self.prefix, &fields, destinations, payload))?;
        self.queued += 1;
        Ok(handed)
    }

    /// Hands every queued frame to the kernel and returns how many there were. Blocks while the kernel has no room.
    ///
    /// What the kernel took may still be dropped by a device; that is the device's to count (`ip -s link`).
    ///
    /// # Errors
    /// Names the frames that were not sent and takes them off the queue; another call goes on with those behind them.
    pub fn flush(&mut self) -> Result<usize, DispatchError> {
        let mut handed = 0;
        while self.batch.waiting() > 0 {
            self.batch.plan(self.segmenting, &mut self.messages);
            let mut next = 0;
            while next < self.messages.len() {
                match self.hand_over(next) {
                    Ok(messages) => {
                        for message in &self.messages[next..next + messages] {
                            handed += message.frames;
                            self.batch.finish(message);
                        }
                        next += messages;
                    }
                    Err(Setback::Segmenting) => {
                        self.segmenting = false;
                        break;
                    }
                    Err(Setback::Failed { error, dropped }) => {
                        let first = self.queued - self.batch.waiting() as u64;
                        let message = &self.messages[next];
                        let frames = first..first + message.frames as u64;
                        self.batch.finish(message);
                        return Err(if dropped {
                            DispatchError::Dropped { frames, handed }
                        } else {
                            DispatchError::Refused { frames, handed, error }
                        });
                    }
                }
            }
        }
        Ok(handed)
    }

    /// Frames that wait for [`flush`](Self::flush).
    pub fn waiting(&self) -> usize {
        self.batch.waiting()
    }

    /// Frames queued since it was opened: the number that the next one has in errors.
    pub const fn queued(&self) -> u64 {
        self.queued
    }

    /// Reports from the network that frames could not be delivered (ICMP errors: nobody listens, no route). They do not
    /// say which frames.
    pub const fn reports(&self) -> u64 {
        self.reports
    }

    /// Whether frames of one length go to the kernel as one message that it segments (UDP_SEGMENT). Never over
    /// Ethernet; not after the kernel refused it once.
    pub const fn segmenting(&self) -> bool {
        self.segmenting
    }

    /// Tries until the kernel takes messages, of `self.messages` from `next` on, or has a reason not to.
    fn hand_over(&mut self, next: usize) -> Result<usize, Setback> {
        let messages = &self.messages[next..];
        let segmented = messages[0].segment.is_some();
        let mut deadline = None;
        loop {
            let error = match self.outgoing.send(&self.socket, self.batch.bytes(), messages) {
                Ok(sent) => return Ok(sent),
                Err(error) => error,
            };
            let reports = socket::drain_reports(&self.socket);
            self.reports += reports as u64;
            let pause = match judge(error.raw_os_error(), segmented, reports) {
                Verdict::Again => continue,
                Verdict::Singly => return Err(Setback::Segmenting),
                Verdict::Dropped => return Err(Setback::Failed { error, dropped: true }),
                Verdict::Fail => return Err(Setback::Failed { error, dropped: false }),
                Verdict::Wait(pause) => pause,
            };
            let now = Instant::now();
            let left = deadline.get_or_insert(now + self.patience).saturating_duration_since(now);
            if left.is_zero() {
                return Err(Setback::Failed { error, dropped: false });
            }
            match pause {
                Pause::Buffer => match socket::wait(&self.socket, PollFlags::OUT, Some(left)) {
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                        return Err(Setback::Failed { error, dropped: false });
                    }
                    _ => {}
                },
                Pause::Device => std::thread::sleep(left.min(DEVICE_PAUSE)),
            }
        }
    }
}

impl AsFd for Dispatcher {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Dispatcher {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        while let Err(error) = self.flush() {
            tracing::warn!(%error, "frames were lost when their dispatcher was closed");
        }
    }
}

/// How long to leave a full device alone: a few frames' time.
const DEVICE_PAUSE: Duration = Duration::from_micros(50);

/// Why messages could not be handed over.
enum Setback {
    /// The kernel does not segment here.
    Segmenting,
    Failed {
        error: io::Error,
        /// Some of the message's frames may have gone.
        dropped: bool,
    },
}

/// What to do after a failed `sendmmsg`.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// The same again.
    Again,
    /// The same again after a pause.
    Wait(Pause),
    /// Every frame by itself, from now on.
    Singly,
    /// Give up the message: some of it may have gone.
    Dropped,
    /// Give up the message: nothing of it went.
    Fail,
}

/// What to wait for.
#[derive(Debug, PartialEq, Eq)]
enum Pause {
    /// Room in the socket's buffer, which `poll` tells.
    Buffer,
    /// Room in the device's queue, which nothing tells.
    Device,
}

/// What an error of the first message means. `reports` came from the network together with it.
fn judge(errno: Option<i32>, segmented: bool, reports: usize) -> Verdict {
    match errno {
        Some(libc::EINTR) => Verdict::Again,
        Some(libc::EAGAIN) => Verdict::Wait(Pause::Buffer),
        // A device dropped the message. Of a segmented one at most the last frame's fate is told
        // (`dev_hard_start_xmit` goes on after a drop), and a second try might double the others.
        Some(libc::ENOBUFS) if segmented => Verdict::Dropped,
        Some(libc::ENOBUFS) => Verdict::Wait(Pause::Device),
        // A report on an earlier frame fails the next call before that does anything.
        Some(libc::ECONNREFUSED) => Verdict::Again,
        _ if reports > 0 => Verdict::Again,
        // EIO: no checksum offload (before 6.11) or IPsec; EINVAL: longer than the MTU (before 6.14) or SO_NO_CHECK;
        // EOPNOTSUPP: an emulated kernel.
        Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP) if segmented => Verdict::Singly,
        _ => Verdict::Fail,
    }
}

/// Socket, prefix and the longest packet behind what the kernel adds.
type Opened = (Socket, Vec<u8>, usize);

fn open_udp(
    to: SocketAddr,
    interface: Option<&str>,
    settings: &DispatcherSettings,
) -> Result<Opened, OpenError> {
    const UDP_BYTES: usize = 8;
    let step = |step| move |error| OpenError::System { target: to.to_string(), step, error };
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))
        .map_err(step("open a UDP socket"))?;
    if let Some(name) = interface {
        socket
            .bind_device(Some(name.as_bytes()))
            .map_err(|error| OpenError::Interface { name: name.to_owned(), error })?;
    }
    let traffic_class = u32::from(settings.dscp) << 2;
    // A fragment is not replicated, so the kernel must refuse what does not fit. PROBE goes by the device's MTU alone:
    // nobody on the way can make it smaller by a forged ICMP message. RECVERR has two uses: without it a frame dropped
    // by the device counts as sent, and reports could not be told from errors of the call they come with.
    let (ip_bytes, mtu) = if to.is_ipv4() {
        sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)
            .map_err(|error| step("forbid fragments")(error.into()))?;
        socket::set_option(&socket, libc::IPPROTO_IP, libc::IP_RECVERR, 1)
            .map_err(step("ask for error reports"))?;
        socket.set_tos_v4(traffic_class).map_err(step("set the DSCP"))?;
        socket.connect(&to.into()).map_err(step("connect"))?;
        (20, sockopt::ip_mtu(&socket))
    } else {
        sockopt::set_ipv6_mtu_discover(&socket, Ipv6PathMtuDiscovery::PROBE)
            .map_err(|error| step("forbid fragments")(error.into()))?;
        socket::set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)
            .map_err(step("ask for error reports"))?;
        socket.set_tclass_v6(traffic_class).map_err(step("set the DSCP"))?;
        socket.connect(&to.into()).map_err(step("connect"))?;
        (40, sockopt::ipv6_mtu(&socket))
    };
    let mtu = mtu.map_err(|error| step("read the MTU")(error.into()))?;
    let max_packet = frame::max_packet(mtu as usize).saturating_sub(ip_bytes + UDP_BYTES);
    Ok((socket, Vec::new(), max_packet))
}

fn open_ethernet(name: &str, destination: MacAddr) -> Result<Opened, OpenError> {
    let socket = packet_socket(name)?;
    let interface = ethernet(&socket, name)?;
    socket::bind_packet(&socket, interface.index, 0).map_err(|error| OpenError::System {
        target: name.to_owned(),
        step: "bind",
        error,
    })?;
    let prefix = [&destination.octets()[..], &interface.mac, &ETHERTYPE_BIER.to_be_bytes()].concat();
    Ok((socket, prefix, frame::max_packet(interface.mtu)))
}

/// A raw socket, for use on this interface.
pub(super) fn packet_socket(name: &str) -> Result<Socket, OpenError> {
    socket::packet_socket().map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => OpenError::NotPermitted { target: name.to_owned() },
        _ => OpenError::System { target: name.to_owned(), step: "open a raw socket", error },
    })
}

/// The interface, if it carries Ethernet frames (the loopback device does, too).
pub(super) fn ethernet(socket: &Socket, name: &str) -> Result<socket::Interface, OpenError> {
    let interface = socket::interface(socket, name)
        .map_err(|error| OpenError::Interface { name: name.to_owned(), error })?;
    match interface.hardware {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Ok(interface),
        hardware => Err(OpenError::NotEthernet { name: name.to_owned(), hardware }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_verdict() {
        let judge = |errno, segmented, reports| judge(Some(errno), segmented, reports);
        for segmented in [false, true] {
            assert_eq!(judge(libc::EINTR, segmented, 0), Verdict::Again);
            assert_eq!(judge(libc::EAGAIN, segmented, 0), Verdict::Wait(Pause::Buffer));
            assert_eq!(judge(libc::ECONNREFUSED, segmented, 0), Verdict::Again);
            assert_eq!(judge(libc::EHOSTUNREACH, segmented, 1), Verdict::Again);
            assert_eq!(judge(libc::EHOSTUNREACH, segmented, 0), Verdict::Fail);
            assert_eq!(judge(libc::EMSGSIZE, segmented, 0), Verdict::Fail);
            assert_eq!(judge(libc::ENETDOWN, segmented, 0), Verdict::Fail);
        }
        assert_eq!(judge(libc::ENOBUFS, false, 0), Verdict::Wait(Pause::Device));
        assert_eq!(judge(libc::ENOBUFS, true, 0), Verdict::Dropped);
        for errno in [libc::EIO, libc::EINVAL, libc::EOPNOTSUPP] {
            assert_eq!(judge(errno, true, 0), Verdict::Singly);
            assert_eq!(judge(errno, false, 0), Verdict::Fail);
        }
    }
}
