//! The dispatching node's configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use replicator_common::{DEFAULT_UDP_PORT, bier::BiftId};
use replicator_user::client::Transport as Via;

use super::{
    args::{Mode, Transport},
    cluster::{UPLINK, node_address, node_mac, node_name},
    model::Shape,
    placement::Placement,
};

/// The stack's end of the origin veth.
const ORIGIN: &str = "replicator0";

/// Generation of the tables.
const GENERATION: u8 = 1;

/// The configuration: one uplink for all nodes, one expert table for each layer.
pub(super) fn text(mode: Mode, transport: Transport, shape: Shape, placement: Placement) -> String {
    let mode = match mode {
        Mode::Native => "native",
        Mode::Generic => "generic",
    };
    let neighbors = (0..placement.nodes).fold(String::new(), |text, node| {
        let hop = match transport {
            Transport::Ipv4 | Transport::Ipv6 => {
                format!("address: \"{}\"", node_address(node, transport == Transport::Ipv6))
            }
            Transport::Ethernet => format!("interface: {UPLINK}, mac: \"{}\"", node_mac(node)),
        };
        text + &format!("  {}: {{ {hop} }}\n", node_name(node))
    });
    let rows: Vec<String> = (0..placement.nodes)
        .filter_map(|node| {
            let mut experts = placement.experts_on(node);
            let first = experts.next()?;
            Some(format!("{}: {}", range(first, experts.last().unwrap_or(first)), node_name(node)))
        })
        .collect();
    format!(
        "mode: {mode}
origin: {{ interface: {ORIGIN}, ipv4: 169.254.81.1/30, ipv6: \"fd00:8138::1/126\" }}
interfaces: [{UPLINK}]
neighbors:
{neighbors}expert-tables:
  - model: demo
    experts: {experts}
    generation: {GENERATION}
    layers:
      {layers}: {{ {rows} }}
",
        experts = shape.experts,
        layers = range(0, u32::from(shape.layers) - 1),
        rows = rows.join(", ")
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

/// BIFT-id of a layer's table.
pub(super) fn table(layer: u16) -> Option<BiftId> {
    BiftId::expert(layer, GENERATION)
}

fn range(first: u32, last: u32) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}

#[cfg(test)]
mod tests {
    use replicator_common::neighbor::Encapsulation;
    use replicator_user::config::{self, TableName};

    use super::*;
    use crate::demo::model::Model;

    #[test]
    fn every_model_gives_a_configuration_without_faults() {
        for (transport, encapsulation) in [
            (Transport::Ipv4, Encapsulation::Ipv4),
            (Transport::Ipv6, Encapsulation::Ipv6),
            (Transport::Ethernet, Encapsulation::Ethernet),
        ] {
            for (model, nodes, layers) in
                [(Model::DeepseekV2Lite, 8, 26), (Model::DeepseekV3, 32, 58), (Model::Mixtral8x7b, 128, 32)]
            {
                let shape = model.shape();
                let text = text(Mode::Native, transport, shape, Placement { experts: shape.experts, nodes });
                let config = config::parse(&text, "demo").unwrap();
                assert!(config.neighbors.iter().all(|neighbor| neighbor.encapsulation() == encapsulation));
                assert_eq!((config.neighbors.len(), config.tables.len()), (nodes as usize, layers));
                for (table, layer) in config.tables.iter().zip(0..) {
                    assert!(table.bift_ids.contains(&super::table(layer).unwrap()));
                    assert!(matches!(table.name, TableName::Experts { layer: at, .. } if at == layer));
                }
            }
        }
    }
}
