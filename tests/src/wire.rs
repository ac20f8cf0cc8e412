//! A network namespace of the calling thread's own, with veth pairs in it: the datapath on the near ends, the test on
//! the far ends with raw frames. Nothing has a name outside, so nothing is left when the thread ends.

use std::{
    fs, io,
    mem::MaybeUninit,
    net::UdpSocket,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    thread::{UnshareFlags, unshare_unsafe},
};

/// Has a socket cut what is sent into datagrams of so many bytes (UDP_SEGMENT).
///
/// # Errors
/// Where the kernel refuses.
pub fn cut_into(socket: &UdpSocket, segment: i32) -> io::Result<()> {
    // SAFETY: the option's value is one integer.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const segment).cast(),
            size_of_val(&segment) as u32,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One end of a veth pair.
#[derive(Clone, Debug)]
pub struct Device {
    /// Name.
    pub name: String,
    /// Interface index.
    pub ifindex: u32,
    /// MAC address.
    pub mac: [u8; 6],
}

/// The namespace.
#[derive(Debug)]
pub struct Wire(());

impl Wire {
    /// Moves the calling thread into a new network namespace.
    ///
    /// # Errors
    /// Without CAP_SYS_ADMIN.
    pub fn enter() -> anyhow::Result<Self> {
        // SAFETY: the thread leaves its namespace; no memory is touched.
        let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        ensure!(result == 0, "cannot make a network namespace ({}): run as root", io::Error::last_os_error());
        // Neighbor discovery and MLD would send frames of their own.
        fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").context("cannot switch IPv6 off")?;
        Ok(Self(()))
    }

    /// Gives the calling thread a mount namespace with an empty BPF file system at its usual place.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn mount_bpffs(&self) -> anyhow::Result<()> {
        // SAFETY: the thread leaves its mount namespace; neither memory nor file descriptors are unshared.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("cannot make a mount namespace")?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        mount("bpf", "/sys/fs/bpf", "bpf", MountFlags::empty(), None)
            .context("cannot mount a BPF file system")
    }

    /// Keeps the calling thread on the CPU it runs on. A veth polls on the CPU that sent, so all frames of this thread
    /// meet the same slots and in the order they were sent.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn stay_on_cpu(&self) -> anyhow::Result<()> {
        // SAFETY: no memory is touched.
        let cpu = unsafe { libc::sched_getcpu() };
        ensure!(cpu >= 0, "cannot tell the CPU: {}", io::Error::last_os_error());
        // SAFETY: all zeros is an empty set.
        let mut set: libc::cpu_set_t = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: the kernel's number of a CPU; the set has room for all of them.
        unsafe { libc::CPU_SET(cpu as usize, &mut set) };
        // SAFETY: the set is as long as it says.
        let result = unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) };
        ensure!(result == 0, "cannot stay on CPU {cpu}: {}", io::Error::last_os_error());
        Ok(())
    }

    /// A pair of devices `NAME` and `NAMEf`, both up. The far end takes what XDP redirects to the near one.
    ///
    /// # Errors
    /// Where `ip` or `ethtool` fail.
    pub fn pair(&self, name: &str) -> anyhow::Result<(Device, Port)> {
        let far = format!("{name}f");
        run(&["ip", "link", "add", name, "type", "veth", "peer", "name", &far])?;
        for device in [name, &far] {
            run(&["ip", "link", "set", "dev", device, "up"])?;
            run(&["ethtool", "-K", device, "rxvlan", "off", "txvlan", "off"])?;
        }
        // Without GRO (or a program) on the far end, redirected frames vanish: veth_xdp_xmit in drivers/net/veth.c.
        run(&["ethtool", "-K", &far, "gro", "on"])?;
        Ok((device(name)?, Port::open(device(&far)?)?))
    }
}

fn device(name: &str) -> anyhow::Result<Device> {
    // Not from sysfs: that shows the namespace it was mounted in.
    let output = Command::new("ip").args(["-json", "link", "show", "dev", name]).output()?;
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).context("ip -json link show")?;
    let link = &links[0];
    let mac = link["address"].as_str().context("no address")?;
    let mut bytes = [0; 6];
    for (byte, text) in bytes.iter_mut().zip(mac.split(':')) {
        *byte = u8::from_str_radix(text, 16)?;
    }
    let ifindex = link["ifindex"].as_u64().context("no index")? as u32;
    Ok(Device { name: name.into(), ifindex, mac: bytes })
}

/// Runs a command to its end.
///
/// # Errors
/// With what it printed, where it fails.
pub fn run(command: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(command[0])
        .args(&command[1..])
        .output()
        .with_context(|| format!("cannot run {}: is it installed?", command[0]))?;
    if !output.status.success() {
        bail!("{}: {}", command.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A raw socket on a device.
#[derive(Debug)]
pub struct Port {
    /// The device.
    pub device: Device,
    socket: OwnedFd,
}

/// Longer than any frame here.
const FRAME_BYTES: usize = 65_536;

impl Port {
    /// Opens one on a device: it receives what the device hands to the stack, thus behind XDP.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn open(device: Device) -> anyhow::Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no memory is touched.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                i32::from(protocol),
            )
        };
        ensure!(fd >= 0, "cannot open a raw socket: {}", io::Error::last_os_error());
        // SAFETY: just opened, owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol,
            sll_ifindex: device.ifindex as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address is as long as it says.
        let result = unsafe { libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as u32) };
        ensure!(result == 0, "cannot bind to {}: {}", device.name, io::Error::last_os_error());
        for (option, value) in [
            // What the test sends is not what the datapath sends.
            (libc::PACKET_IGNORE_OUTGOING, 1),
            // The kernel takes VLAN tags out of the frame and tells them beside it.
            (libc::PACKET_AUXDATA, 1),
        ] {
            set(fd, libc::SOL_PACKET, option, value)?;
        }
        set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)?;
        Ok(Self { device, socket })
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// Where the kernel refuses it.
    pub fn send(&self, frame: &[u8]) -> anyhow::Result<()> {
        loop {
            // SAFETY: the kernel reads the frame.
            let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
            if sent >= 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOBUFS) => std::thread::yield_now(),
                _ => bail!("cannot send on {}: {error}", self.device.name),
            }
        }
    }

    /// Waits for so many frames, then a little longer for any that should not be there.
    ///
    /// # Errors
    /// Where the socket fails.
    pub fn receive(&self, expected: usize) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut quiet_until = None;
        loop {
            if let Some(frame) = self.take()? {
                frames.push(frame);
                continue;
            }
            let now = Instant::now();
            if frames.len() >= expected && quiet_until.is_none() {
                quiet_until = Some(now + Duration::from_millis(5));
            }
            if now >= quiet_until.unwrap_or(deadline) {
                return Ok(frames);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// The next frame with its VLAN tags, if there is one.
    ///
    /// # Errors
    /// Where the socket fails.
    pub fn take(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let mut frame = Vec::<u8>::with_capacity(FRAME_BYTES);
        let mut control = [0_u64; 16];
        let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: FRAME_BYTES };
        // SAFETY: all zeros is an empty message.
        let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the message points to buffers of the lengths it says.
        let received = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        if received < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock => Ok(None),
                _ => bail!("cannot receive on {}: {error}", self.device.name),
            };
        }
        // SAFETY: so many bytes were written, and never more than there is room for.
        unsafe { frame.set_len(received as usize) };
        frame.shrink_to_fit();
        if let Some([protocol, tci]) = tag(&message) {
            let tag = [protocol.to_be_bytes(), tci.to_be_bytes()].concat();
            frame.splice(12..12, tag);
        }
        Ok(Some(frame))
    }
}

/// The VLAN tag that the kernel took out of a received frame: protocol and control information.
fn tag(message: &libc::msghdr) -> Option<[u16; 2]> {
    // SAFETY: the kernel filled in the control messages.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: null, or within the buffer that outlives the message.
    let header = unsafe { header.as_ref() }?;
    if header.cmsg_level != libc::SOL_PACKET || header.cmsg_type != libc::PACKET_AUXDATA {
        return None;
    }
    // SAFETY: a header of this type is followed by this struct.
    let data = unsafe { libc::CMSG_DATA(header) }.cast::<libc::tpacket_auxdata>();
    // SAFETY: as above.
    let data = unsafe { data.read_unaligned() };
    (data.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some([data.tp_vlan_tpid, data.tp_vlan_tci])
}

fn set(fd: i32, level: i32, option: i32, value: i32) -> anyhow::Result<()> {
    // SAFETY: the option's value is one integer.
    let result = unsafe {
        libc::setsockopt(fd, level, option, (&raw const value).cast(), size_of_val(&value) as libc::socklen_t)
    };
    ensure!(result == 0, "cannot set socket option {option}: {}", io::Error::last_os_error());
    Ok(())
}
