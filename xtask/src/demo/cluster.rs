//! The demo's machines: a dispatching node and expert nodes around a switch.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use ipnet::IpNet;
use replicator_tests::lab::{End, Host, Lab, Link};

/// The dispatching node's only way out.
pub(super) const UPLINK: &str = "eth0";

/// Most expert nodes: their addresses share a prefix with the dispatching node's.
pub(super) const MAX_NODES: u32 = 128;

/// Expert nodes, and the dispatching node behind them.
pub(super) struct Cluster {
    /// The node that the replicator runs on.
    pub dispatcher: Host,
    /// The nodes that receive.
    pub nodes: Vec<Host>,
    /// Held: the links end when it goes.
    _switch: Host,
}

impl Cluster {
    /// Builds it with links of this MTU.
    ///
    /// # Errors
    /// Where the laboratory refuses a step.
    pub(super) fn build(lab: &Lab, nodes: u32, mtu: u32) -> Result<Self> {
        let switch = lab.host("switch")?;
        let attach = |name: &str, number: u32| -> Result<(Host, String)> {
            let host = lab.host(name)?;
            let port = format!("port{number}");
            let end = End::new(&host, UPLINK)
                .mac(mac(number))
                .address(IpNet::new(address(number, false), 24)?)
                .address(IpNet::new(address(number, true), 64)?);
            Link { mtu, queues: 1 }.join(&end, &End::new(&switch, &port).receives_redirects())?;
            Ok((host, port))
        };
        let (dispatcher, port) = attach("dispatcher", nodes + 1)?;
        let mut ports = vec![port];
        let mut hosts = Vec::new();
        for node in 0..nodes {
            let (host, port) = attach(&node_name(node), node + 1)?;
            ports.push(port);
            hosts.push(host);
        }
        switch.bridge("br0", mtu, &ports)?;
        // Over straight Ethernet the nodes say nothing that the switch could learn from.
        let macs = [nodes + 1].into_iter().chain(1..=nodes).map(mac);
        switch.forward(&macs.zip(ports).collect::<Vec<_>>())?;
        Ok(Self { dispatcher, nodes: hosts, _switch: switch })
    }
}

/// Name of an expert node, counted from 0.
pub(super) fn node_name(node: u32) -> String {
    format!("node{node}")
}

/// Address of an expert node, counted from 0.
pub(super) fn node_address(node: u32, ipv6: bool) -> IpAddr {
    address(node + 1, ipv6)
}

/// MAC address of an expert node, counted from 0.
pub(super) fn node_mac(node: u32) -> String {
    mac(node + 1).map(|byte| format!("{byte:02x}")).join(":")
}

fn mac(number: u32) -> [u8; 6] {
    [2, 0x81, 0, 0, 0, number as u8]
}

fn address(number: u32, ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0xfd81, 0, 0, 0, 0, 0, 0, number as u16).into()
    } else {
        Ipv4Addr::new(10, 81, 0, number as u8).into()
    }
}
