//! The receiving side.

use std::{
    io,
    net::SocketAddr,
    ops::ControlFlow,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use replicator_common::bier::HeaderError;
use rustix::{event::PollFlags, net::sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    Delivery, OpenError,
    delivery::{self, Framing, Skip},
    dispatcher::{ethernet, packet_socket},
    socket::{self, Incoming},
};

/// Bytes of a place for a frame: a page, and what the replicator emits fits one.
const SLOT_BYTES: usize = 4096;

/// How often [`Receiver::for_each`] looks at its flag while nothing arrives.
const LOOK: Duration = Duration::from_millis(100);

/// Where frames come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// UDP. `[::]` takes IPv4 too.
    Udp {
        /// Address and port to receive on.
        bind: SocketAddr,
        /// Whether other sockets may receive on the same port (SO_REUSEPORT): the kernel spreads the flows over them.
        share: bool,
    },
    /// Straight Ethernet, ethertype 0xAB37, behind up to two VLAN tags. Needs CAP_NET_RAW.
    Ethernet {
        /// Device to receive on.
        interface: String,
    },
}

/// How a receiver works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiverSettings {
    /// Bytes of the kernel's receive buffer; without CAP_NET_ADMIN `net.core.rmem_max` is the most. 16 MiB by default. A
    /// frame takes a page or two of it.
    pub buffer: usize,
    /// Frames taken in one call, 1 to 1,024. 64 by default.
    pub batch: usize,
}

impl Default for ReceiverSettings {
    fn default() -> Self {
        Self { buffer: 16 << 20, batch: 64 }
    }
}

/// What a receiver saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiveCounts {
    /// Frames handed out.
    pub delivered: u64,
    /// Skipped: the bytes end before the header or the BitString does.
    pub truncated: u64,
    /// Skipped: another BIER version.
    pub version: u64,
    /// Skipped: a BSL code that stands for no length.
    pub length: u64,
    /// Skipped: no BIER behind the Ethernet header.
    pub foreign: u64,
    /// Skipped: longer than any frame the replicator emits.
    pub too_long: u64,
}

impl ReceiveCounts {
    /// Frames skipped, for whatever reason.
    pub const fn skipped(&self) -> u64 {
        self.truncated + self.version + self.length + self.foreign + self.too_long
    }

    fn skip(&mut self, skip: Skip) {
        *match skip {
            Skip::Foreign => &mut self.foreign,
            Skip::Header(HeaderError::Truncated { .. }) => &mut self.truncated,
            Skip::Header(HeaderError::Version(_)) => &mut self.version,
            Skip::Header(HeaderError::Length(_)) => &mut self.length,
        } += 1;
    }
}

/// Receives frames.
///
/// Frames come from the kernel in batches and are handed out one by one, in place. Bytes that are no frame are counted
/// and skipped.
pub struct Receiver {
    socket: Socket,
    framing: Framing,
    incoming: Incoming,
    /// Frames of the batch: the next one to hand out, and how many there are.
    next: usize,
    ready: usize,
    timeout: Option<Duration>,
    counts: ReceiveCounts,
}

impl Receiver {
    /// Opens the socket and takes all the memory that will be needed.
    ///
    /// # Errors
    /// Where the address is taken, the interface cannot be used, or the right to raw sockets is missing.
    pub fn open(source: &Source, settings: &ReceiverSettings) -> Result<Self, OpenError> {
        if !(1..=1024).contains(&settings.batch) {
            let range = "1 to 1024 frames";
            return Err(OpenError::Setting { field: "batch", value: settings.batch, range });
        }
        let (socket, framing) = match source {
            Source::Udp { bind, share } => (open_udp(*bind, *share, settings.buffer)?, Framing::Bare),
            Source::Ethernet { interface } => (open_ethernet(interface, settings.buffer)?, Framing::Ethernet),
        };
        Ok(Self {
            socket,
            framing,
            incoming: Incoming::new(settings.batch, SLOT_BYTES),
            next: 0,
            ready: 0,
            timeout: None,
            counts: ReceiveCounts::default(),
        })
    }

    /// How long [`receive`](Self::receive) and [`for_each`](Self::for_each) wait for a frame; `None`, as at first, is
    /// for ever.
    pub const fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// The next frame, or `None` where the timeout passed or a signal came first.
    ///
    /// # Errors
    /// What the system says: a raw socket's interface went down or away.
    pub fn receive(&mut self) -> io::Result<Option<Delivery<'_>>> {
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let mut looked = false;
        loop {
            if let Some(index) = self.next_delivery() {
                return Ok(self.delivery(index));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            // What is no frame may come without end: it does not stop the clock.
            if looked && left.is_some_and(|left| left.is_zero()) || !self.fill(left)? {
                return Ok(None);
            }
            looked = true;
        }
    }

    /// Hands every frame to `visit` until that breaks, `stop` is set (it takes a tenth of a second to be seen at most),
    /// or no frame came within the timeout. What was not handed out is there for the next call.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn for_each(
        &mut self,
        stop: &AtomicBool,
        mut visit: impl FnMut(Delivery<'_>) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let (mut last, mut looked) = (Instant::now(), false);
        while !stop.load(Ordering::Relaxed) {
            if let Some(delivery) = self.next_delivery().and_then(|index| self.delivery(index)) {
                if visit(delivery).is_break() {
                    break;
                }
                if self.timeout.is_some() {
                    last = Instant::now();
                }
                continue;
            }
            let left = self.timeout.map(|timeout| timeout.saturating_sub(last.elapsed()));
            if looked && left.is_some_and(|left| left.is_zero()) {
                break;
            }
            self.fill(Some(left.map_or(LOOK, |left| left.min(LOOK))))?;
            looked = true;
        }
        Ok(())
    }

    /// What it saw since it was opened.
    pub const fn counts(&self) -> ReceiveCounts {
        self.counts
    }

    /// Frames that the kernel dropped at this socket since it was opened, because its buffer was full or a checksum was
    /// wrong; modulo 2^32.
    ///
    /// # Errors
    /// What the system says.
    pub fn dropped(&self) -> io::Result<u32> {
        socket::dropped(&self.socket)
    }

    /// Bytes of the kernel's receive buffer; the kernel doubles what it is asked for.
    ///
    /// # Errors
    /// What the system says.
    pub fn buffer(&self) -> io::Result<usize> {
        self.socket.recv_buffer_size()
    }

    /// Address it receives on: with port 0 in [`Source::Udp`], the port that the kernel chose. `None` over Ethernet.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.socket.local_addr().ok()?.as_socket()
    }

    /// The next frame of the batch that can be handed out; those before it are counted as skipped.
    fn next_delivery(&mut self) -> Option<usize> {
        while self.next < self.ready {
            let index = self.next;
            self.next += 1;
            match self.incoming.frame(index).map(|frame| delivery::read(frame, self.framing)) {
                Some(Ok(_)) => {
                    self.counts.delivered += 1;
                    return Some(index);
                }
                Some(Err(skip)) => self.counts.skip(skip),
                None => self.counts.too_long += 1,
            }
        }
        None
    }

    fn delivery(&self, index: usize) -> Option<Delivery<'_>> {
        delivery::read(self.incoming.frame(index)?, self.framing).ok()
    }

    /// Gets the next batch, waiting at most `patience`. Returns whether there is one.
    fn fill(&mut self, patience: Option<Duration>) -> io::Result<bool> {
        (self.next, self.ready) = (0, 0);
        let received = self.incoming.receive(&self.socket).or_else(|error| match error.kind() {
            io::ErrorKind::WouldBlock if socket::wait(&self.socket, PollFlags::IN, patience)? => {
                self.incoming.receive(&self.socket)
            }
            _ => Err(error),
        });
        match received {
            Ok(frames) => {
                self.ready = frames;
                Ok(true)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Receiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Receiver {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

fn open_udp(bind: SocketAddr, share: bool, buffer: usize) -> Result<Socket, OpenError> {
    let step = |step| move |error| OpenError::System { target: bind.to_string(), step, error };
    let socket = Socket::new(Domain::for_address(bind), Type::DGRAM, Some(Protocol::UDP))
        .map_err(step("open a UDP socket"))?;
    if bind.is_ipv6() {
        socket.set_only_v6(false).map_err(step("take IPv4 too"))?;
    }
    socket.set_reuse_port(share).map_err(step("share the port"))?;
    set_buffer(&socket, buffer).map_err(step("set the receive buffer"))?;
    socket.bind(&bind.into()).map_err(step("bind"))?;
    Ok(socket)
}

fn open_ethernet(name: &str, buffer: usize) -> Result<Socket, OpenError> {
    let step = |step| move |error| OpenError::System { target: name.to_owned(), step, error };
    let socket = packet_socket(name)?;
    let interface = ethernet(&socket, name)?;
    set_buffer(&socket, buffer).map_err(step("set the receive buffer"))?;
    socket::keep_bier(&socket).map_err(step("attach the filter"))?;
    socket::set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)
        .map_err(step("leave out what this host sends"))?;
    // A socket for 0xAB37 alone would miss frames with two tags: the kernel takes off the outer one only and then goes
    // by the ethertype of the inner one.
    socket::bind_packet(&socket, interface.index, libc::ETH_P_ALL as u16).map_err(step("bind"))?;
    Ok(socket)
}

/// Asks for a receive buffer beyond the system's limit, then for one within it.
fn set_buffer(socket: &Socket, bytes: usize) -> io::Result<()> {
    sockopt::set_socket_recv_buffer_size_force(socket, bytes).or_else(|_| socket.set_recv_buffer_size(bytes))
}
