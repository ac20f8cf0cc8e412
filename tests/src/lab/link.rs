//! Links between hosts, and bridges.

use std::fmt::Write;

use anyhow::Result;
use ipnet::IpNet;

use super::host::{Host, tool};

/// One end of a link.
#[derive(Clone, Debug)]
pub struct End<'a> {
    host: &'a Host,
    device: &'a str,
    mac: Option<[u8; 6]>,
    ifindex: Option<u32>,
    addresses: Vec<IpNet>,
    features: Vec<(&'a str, bool)>,
}

impl<'a> End<'a> {
    /// A device of `host` to come.
    pub fn new(host: &'a Host, device: &'a str) -> Self {
        Self { host, device, mac: None, ifindex: None, addresses: Vec::new(), features: Vec::new() }
    }

    /// Gives it a MAC address; without, the kernel makes one up.
    #[must_use]
    pub fn mac(mut self, mac: [u8; 6]) -> Self {
        self.mac = Some(mac);
        self
    }

    /// Gives it an index; without, the kernel gives it the next.
    #[must_use]
    pub fn ifindex(mut self, ifindex: u32) -> Self {
        self.ifindex = Some(ifindex);
        self
    }

    /// Gives it an address with its prefix.
    #[must_use]
    pub fn address(mut self, address: IpNet) -> Self {
        self.addresses.push(address);
        self
    }

    /// Switches a feature of ethtool(8) on or off.
    #[must_use]
    pub fn feature(mut self, feature: &'a str, on: bool) -> Self {
        self.features.push((feature, on));
        self
    }

    /// Lets it receive what an XDP program redirects to the other end: a veth does so with an XDP program of its own
    /// or with GRO (`veth_xdp_xmit` in drivers/net/veth.c).
    #[must_use]
    pub fn receives_redirects(self) -> Self {
        self.feature("gro", true)
    }

    fn device_arguments(&self, script: &mut String, link: &Link) -> std::fmt::Result {
        if let Some(mac) = self.mac {
            write!(script, " address {}", colons(mac))?;
        }
        if let Some(ifindex) = self.ifindex {
            write!(script, " index {ifindex}")?;
        }
        write!(script, " mtu {} numtxqueues {queues} numrxqueues {queues}", link.mtu, queues = link.queues)
    }

    fn set_features(&self) -> Result<()> {
        if self.features.is_empty() {
            return Ok(());
        }
        let mut ethtool = tool("ethtool");
        ethtool.args(["-K", self.device]);
        for &(feature, on) in &self.features {
            ethtool.args([feature, if on { "on" } else { "off" }]);
        }
        self.host.output(ethtool).map(drop)
    }

    /// Gives it its addresses and sets it up.
    fn set_up(&self) -> Result<()> {
        let mut script = String::new();
        for address in &self.addresses {
            // Switched off or not, duplicate address detection ends in a worker: until then nobody can bind the address.
            let nodad = if address.addr().is_ipv6() { " nodad" } else { "" };
            writeln!(script, "address add {address} dev {}{nodad}", self.device)?;
        }
        writeln!(script, "link set {} up", self.device)?;
        self.host.ip(&script)
    }
}

/// A pair of veth devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Largest packet, without the Ethernet header.
    pub mtu: u32,
    /// Receive and transmit queues of both ends.
    pub queues: u32,
}

impl Default for Link {
    fn default() -> Self {
        Self { mtu: 1500, queues: 1 }
    }
}

impl Link {
    /// Joins two hosts (or one with itself): both devices are made, given their addresses and set up.
    ///
    /// # Errors
    /// Where ip(8) or ethtool(8) refuse something.
    pub fn join(&self, left: &End<'_>, right: &End<'_>) -> Result<()> {
        let mut script = format!("link add {}", left.device);
        left.device_arguments(&mut script, self)?;
        write!(script, " type veth peer name {} netns {}", right.device, right.host.network_namespace())?;
        right.device_arguments(&mut script, self)?;
        script.push('\n');
        left.host.ip(&script)?;
        // A veth learns that its peer takes redirects when it is set up itself, or when the peer's GRO is switched while
        // that is up (`veth_open` and `veth_set_features`): GRO first, on both ends, then up.
        left.set_features()?;
        right.set_features()?;
        left.set_up()?;
        right.set_up()
    }
}

impl Host {
    /// Makes a bridge of the host's devices `ports`: a switch without spanning tree and without multicast snooping.
    ///
    /// # Errors
    /// Where ip(8) refuses something.
    pub fn bridge<P: AsRef<str>>(&self, name: &str, mtu: u32, ports: &[P]) -> Result<()> {
        let mut script = format!("link add {name} mtu {mtu} type bridge stp_state 0 mcast_snooping 0\n");
        for port in ports {
            writeln!(script, "link set {} master {name}", port.as_ref())?;
        }
        writeln!(script, "link set {name} up")?;
        self.ip(&script)
    }

    /// Tells a bridge behind which of its ports MAC addresses are. It floods what goes to others, until it learns.
    ///
    /// # Errors
    /// Where bridge(8) refuses something.
    pub fn forward<P: AsRef<str>>(&self, entries: &[([u8; 6], P)]) -> Result<()> {
        let mut script = String::new();
        for (mac, port) in entries {
            writeln!(script, "fdb replace {} dev {} master static", colons(*mac), port.as_ref())?;
        }
        self.batch("bridge", &script)
    }
}

/// A MAC address as it is written.
fn colons(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
