//! The dispatching node's configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use replicator_common::DEFAULT_UDP_PORT;
use replicator_user::client::Transport as Via;

use super::{
    args::{Mode, Transport},
    cluster::{UPLINK, node_address, node_mac, node_name},
};

/// The stack's end of the origin veth.
const ORIGIN: &str = "replicator0";

/// The configuration: one uplink for all nodes. Expert maps come by the control API.
pub(super) fn text(mode: Mode, transport: Transport, nodes: u32) -> String {
    let mode = match mode {
        Mode::Native => "native",
        Mode::Generic => "generic",
    };
    let neighbors = (0..nodes).fold(String::new(), |text, node| {
        let hop = match transport {
            Transport::Ipv4 | Transport::Ipv6 => {
                format!("address: \"{}\"", node_address(node, transport == Transport::Ipv6))
            }
            Transport::Ethernet => format!("interface: {UPLINK}, mac: \"{}\"", node_mac(node)),
        };
        text + &format!("  {}: {{ {hop} }}\n", node_name(node))
    });
    format!(
        "mode: {mode}
origin: {{ interface: {ORIGIN}, ipv4: 169.254.81.1/30, ipv6: \"fd00:8138::1/126\" }}
interfaces: [{UPLINK}]
neighbors:
{neighbors}"
    )
}

/// Where the dispatching node's programs send to: the origin veth's other end.
///
/// # Errors
/// None that the constants below allow.
pub(super) fn way_in(transport: Transport) -> Result<Via> {
    let udp = |address: IpAddr| Via::Udp { to: SocketAddr::new(address, DEFAULT_UDP_PORT), interface: None };
    Ok(match transport {
        Transport::Ipv4 => udp(Ipv4Addr::new(169, 254, 81, 2).into()),
        Transport::Ipv6 => udp(Ipv6Addr::new(0xfd00, 0x8138, 0, 0, 0, 0, 0, 2).into()),
        // The program there takes frames for whatever MAC address.
        Transport::Ethernet => {
            Via::Ethernet { interface: ORIGIN.to_owned(), destination: "02:00:00:00:81:38".parse()? }
        }
    })
}

#[cfg(test)]
mod tests {
    use replicator_common::neighbor::Encapsulation;
    use replicator_user::config;

    use super::*;

    #[test]
    fn every_transport_gives_a_configuration_without_faults() {
        for (transport, encapsulation) in [
            (Transport::Ipv4, Encapsulation::Ipv4),
            (Transport::Ipv6, Encapsulation::Ipv6),
            (Transport::Ethernet, Encapsulation::Ethernet),
        ] {
            for nodes in [1, 8, 128] {
                let config = config::parse(&text(Mode::Native, transport, nodes), "demo").unwrap();
                assert!(config.neighbors.iter().all(|neighbor| neighbor.encapsulation() == encapsulation));
                assert_eq!((config.neighbors.len(), config.tables.len()), (nodes as usize, 0));
            }
        }
    }
}
