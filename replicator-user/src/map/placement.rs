//! From a map to tables: bit e + 1 goes to the nodes that host expert e.

use std::{collections::BTreeMap, sync::Arc};

use replicator_common::bier::BitStringLength;

use super::{ExpertMap, Faults, Layer, fault::Sink};
use crate::{
    bift::{Birt, Destination},
    config::{nearest, quoted},
};

impl Layer {
    /// How many slots of each logical expert each of `places` has. `places` has one for each rank; several ranks may
    /// have the same.
    pub(super) fn hosts<P: Copy + Ord>(&self, experts: usize, places: &[P]) -> Vec<BTreeMap<P, usize>> {
        let per_rank = (self.slots().len() / places.len().max(1)).max(1);
        let mut hosts = vec![BTreeMap::new(); experts];
        for (slots, &place) in self.slots().chunks(per_rank).zip(places) {
            for expert in slots.iter().flatten() {
                *hosts[usize::from(*expert)].entry(place).or_default() += 1;
            }
        }
        hosts
    }
}

impl ExpertMap {
    /// The table of each layer. `neighbors` are the names there are, `local` among them if this host may have experts.
    /// A node with n of an expert's replicas takes n shares of its frames, and this host's own replica all of them.
    /// `variants` as in [`Birt::new`].
    ///
    /// # Errors
    /// With every rank on an unknown node, or every layer beyond the datapath's limits.
    pub fn birts(
        &self,
        neighbors: &BTreeMap<String, Destination>,
        variants: Option<usize>,
    ) -> Result<BTreeMap<u16, Birt>, Faults> {
        let sink = Sink::default();
        let destination = |(rank, node): (usize, &String)| {
            let found = neighbors.get(node).copied();
            if found.is_none() {
                let known = nearest(node, neighbors.keys().map(String::as_str), "neighbors");
                sink.push(format!("ranks[{rank}].node"), format!("unknown neighbor {}{known}", quoted(node)));
            }
            found
        };
        let places: Vec<_> = self.nodes.iter().enumerate().map(destination).collect();
        let birts = places.into_iter().collect::<Option<Vec<_>>>().and_then(|places| {
            // `experts` is within the longest.
            let length = BitStringLength::for_bits(self.experts())?;
            let birt = |(number, layer): (&u16, &Arc<Layer>)| {
                let rows = layer.hosts(self.experts(), &places).iter().map(shares).collect();
                let birt = Birt::new(length, rows, variants);
                let birt = birt.map_err(|error| sink.push(format!("layers.{number}"), error.to_string()));
                Some((*number, birt.ok()?))
            };
            Some(self.layers.iter().filter_map(birt).collect())
        });
        sink.finish(birts)
    }
}

/// Each destination as often as its share asks, in lowest terms, and far from itself: a table with fewer variants than
/// shares takes the first of them.
fn shares(hosts: &BTreeMap<Destination, usize>) -> Vec<Destination> {
    let divisor = hosts.values().copied().fold(0, gcd).max(1);
    let shares = |count: &usize| count / divisor;
    let mut places: Vec<_> = hosts
        .iter()
        .flat_map(|(&destination, count)| {
            // The middle of each of n equal parts of the whole, as a fraction of 2n.
            (0..shares(count)).map(move |i| (2 * i + 1, 2 * shares(count), destination))
        })
        .collect();
    // Stable: those at the same point stay in order.
    places.sort_by(|(a, of_a, _), (b, of_b, _)| (a * of_b).cmp(&(b * of_a)));
    places.into_iter().map(|(_, _, destination)| destination).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bift::NeighborId;

    #[test]
    fn shares_are_in_lowest_terms_and_apart() {
        let to = |index| Destination::Neighbor(NeighborId::remote(index).unwrap());
        let [a, b, c] = [to(0), to(1), to(2)];
        for (hosts, expected) in [
            (vec![(a, 1)], vec![a]),
            (vec![(a, 2)], vec![a]),
            (vec![(a, 1), (b, 1)], vec![a, b]),
            (vec![(a, 2), (b, 4)], vec![b, a, b]),
            (vec![(a, 2), (b, 1)], vec![a, b, a]),
            (vec![(a, 3), (b, 1), (c, 2)], vec![a, c, a, b, c, a]),
            (vec![], vec![]),
        ] {
            assert_eq!(shares(&hosts.into_iter().collect()), expected);
        }
    }
}
