//! Which node hosts which expert, and what should arrive there: computed without the replicator's tables or programs.

use super::routing::Selection;

/// Experts on nodes in consecutive runs: expert e of E is on node e * N / E.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placement {
    /// Experts of a layer.
    pub experts: u32,
    /// Nodes.
    pub nodes: u32,
}

impl Placement {
    /// The node that hosts `expert`, counted from 0.
    pub(super) fn node(self, expert: u32) -> u32 {
        expert * self.nodes / self.experts
    }

    /// The experts that `node` hosts.
    pub(super) fn experts_on(self, node: u32) -> impl Iterator<Item = u32> {
        (0..self.experts).filter(move |&expert| self.node(expert) == node)
    }

    /// The nodes that a selection must reach, each once.
    pub(super) fn nodes_of(self, selection: &Selection) -> impl Iterator<Item = u32> {
        // Experts ascend, and with them their nodes.
        selection
            .experts
            .chunk_by(move |&a, &b| self.node(a) == self.node(b))
            .map(move |run| self.node(run[0]))
    }

    /// Copies that a selection needs.
    pub(super) fn copies(self, selection: &Selection) -> u64 {
        self.nodes_of(selection).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes_of(placement: Placement, experts: &[u32]) -> Vec<u32> {
        placement.nodes_of(&Selection { layer: 0, experts: experts.into() }).collect()
    }

    #[test]
    fn consecutive_experts_share_a_node() {
        let placement = Placement { experts: 64, nodes: 8 };
        assert!(placement.experts_on(0).eq(0..8));
        assert!(placement.experts_on(7).eq(56..64));
        assert_eq!(nodes_of(placement, &[0, 7, 8, 20, 21, 63]), [0, 1, 2, 7]);
        assert_eq!(placement.copies(&Selection { layer: 0, experts: [0, 7, 8, 20, 21, 63].into() }), 4);
    }

    #[test]
    fn every_expert_has_one_node_where_they_do_not_divide() {
        let placement = Placement { experts: 8, nodes: 3 };
        assert!(placement.experts_on(0).eq(0..3));
        assert!(placement.experts_on(1).eq(3..6));
        assert!(placement.experts_on(2).eq(6..8));
        let more_nodes = Placement { experts: 2, nodes: 5 };
        assert_eq!((more_nodes.node(0), more_nodes.node(1)), (0, 2));
        assert_eq!(more_nodes.experts_on(1).count(), 0);
    }
}
