//! Which node hosts which expert of a layer, and what should arrive there: computed without the replicator's tables or
//! programs.

use fastrand::Rng;
use replicator_user::map::MAX_SLOTS;

use super::{cluster::MAX_NODES, routing::Selection};

/// A bit for each node.
const _: () = assert!(MAX_NODES <= u128::BITS);

/// The experts of a layer on nodes, each expert on one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placement {
    /// Expert -> node.
    nodes: Box<[u8]>,
    /// Nodes there are.
    count: u32,
}

impl Placement {
    /// Experts in consecutive runs: expert e of E is on node e * N / E.
    pub(super) fn consecutive(experts: u32, nodes: u32) -> Self {
        let nodes_of_experts = (0..experts).map(|expert| (expert * nodes / experts) as u8).collect();
        Self { nodes: nodes_of_experts, count: nodes }
    }

    /// The node that hosts `expert`, both counted from 0.
    pub(super) fn node(&self, expert: u32) -> u32 {
        self.nodes[expert as usize].into()
    }

    /// The nodes that a selection must reach, in ascending order.
    pub(super) fn nodes_of(&self, selection: &Selection) -> impl Iterator<Item = u32> {
        let nodes = self.reached(selection);
        (0..self.count).filter(move |node| nodes >> node & 1 == 1)
    }

    /// Copies that a selection needs.
    pub(super) fn copies(&self, selection: &Selection) -> u64 {
        self.reached(selection).count_ones().into()
    }

    /// Bit n: node n hosts an expert of the selection.
    fn reached(&self, selection: &Selection) -> u128 {
        selection.experts.iter().fold(0, |nodes, &expert| nodes | 1 << self.node(expert))
    }

    /// This one with `pairs` pairs of experts, or as many as there are on two nodes, on each other's nodes: nodes host as
    /// many as before.
    pub(super) fn exchanged(&self, pairs: usize, rng: &mut Rng) -> Self {
        let mut nodes = self.nodes.clone();
        let mut left: Vec<usize> = (0..nodes.len()).collect();
        rng.shuffle(&mut left);
        for _ in 0..pairs {
            let Some(one) = left.pop() else { break };
            let elsewhere = left.iter().rposition(|&other| nodes[other] != nodes[one]);
            let Some(other) = elsewhere.map(|at| left.swap_remove(at)) else { break };
            nodes.swap(one, other);
        }
        Self { nodes, count: self.count }
    }

    /// This one with `count` experts, or as many as an expert map has room for, on one node: it hosts more than before.
    pub(super) fn gathered(&self, count: usize, rng: &mut Rng) -> Self {
        let node = rng.u32(..self.count) as u8;
        let mut elsewhere: Vec<usize> =
            (0..self.nodes.len()).filter(|&expert| self.nodes[expert] != node).collect();
        rng.shuffle(&mut elsewhere);
        let room = MAX_SLOTS / self.count as usize - (self.nodes.len() - elsewhere.len());
        let mut nodes = self.nodes.clone();
        for &expert in elsewhere.iter().take(count.min(room)) {
            nodes[expert] = node;
        }
        Self { nodes, count: self.count }
    }

    /// Experts that are on another node than in `before`.
    pub(super) fn moved_since(&self, before: &Self) -> u64 {
        self.nodes.iter().zip(&before.nodes).filter(|(now, before)| now != before).count() as u64
    }

    /// As an expert map has it, with a rank for each node: the expert in each slot, as many slots on each rank as the node
    /// with the most needs, -1 in those that are empty.
    pub(super) fn slots(&self) -> Vec<i32> {
        let mut hosted = vec![Vec::new(); self.count as usize];
        for (expert, &node) in (0..).zip(&self.nodes) {
            hosted[usize::from(node)].push(expert);
        }
        let width = hosted.iter().map(Vec::len).max().unwrap_or_default();
        hosted.iter_mut().for_each(|experts| experts.resize(width, -1));
        hosted.concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(experts: &[u32]) -> Selection {
        Selection { layer: 0, experts: experts.into() }
    }

    fn hosted(placement: &Placement) -> Vec<usize> {
        let on = |node: u32| placement.nodes.iter().filter(|at| u32::from(**at) == node).count();
        (0..placement.count).map(on).collect()
    }

    #[test]
    fn consecutive_experts_share_a_node() {
        let placement = Placement::consecutive(64, 8);
        assert_eq!([0, 7, 8, 56, 63].map(|expert| placement.node(expert)), [0, 0, 1, 7, 7]);
        let selection = selection(&[0, 7, 8, 20, 21, 63]);
        assert!(placement.nodes_of(&selection).eq([0, 1, 2, 7]));
        assert_eq!(placement.copies(&selection), 4);
    }

    #[test]
    fn every_expert_has_one_node_where_they_do_not_divide() {
        assert_eq!(hosted(&Placement::consecutive(8, 3)), [3, 3, 2]);
        let more_nodes = Placement::consecutive(2, 5);
        assert_eq!((more_nodes.node(0), more_nodes.node(1)), (0, 2));
        assert_eq!(more_nodes.slots(), [0, -1, 1, -1, -1]);
        assert_eq!(Placement::consecutive(128, 128).node(127), 127);
    }

    #[test]
    fn nodes_are_counted_once_wherever_their_experts_are() {
        let placement = Placement { nodes: [2, 0, 2, 1, 0].into(), count: 3 };
        assert!(placement.nodes_of(&selection(&[0, 1, 2, 4])).eq([0, 2]));
        assert_eq!(placement.copies(&selection(&[0, 2])), 1);
        assert_eq!(placement.slots(), [1, 4, 3, -1, 0, 2]);
    }

    #[test]
    fn an_exchange_leaves_nodes_with_as_many_experts() {
        let before = Placement::consecutive(64, 8);
        let mut rng = Rng::with_seed(5);
        for _ in 0..20 {
            let after = before.exchanged(4, &mut rng);
            assert_eq!(hosted(&after), [8; 8]);
            assert_eq!(after.moved_since(&before), 8);
        }
        // One of two nodes has one expert: only that can be exchanged.
        let lopsided = Placement { nodes: [0, 0, 1, 0].into(), count: 2 };
        let after = lopsided.exchanged(2, &mut rng);
        assert!(hosted(&after) == [3, 1] && after.moved_since(&lopsided) <= 2);
        assert_eq!(Placement::consecutive(4, 1).exchanged(2, &mut rng), Placement::consecutive(4, 1));
    }

    #[test]
    fn a_gathering_gives_a_node_more_experts_as_far_as_a_map_has_room() {
        let before = Placement::consecutive(64, 8);
        let mut rng = Rng::with_seed(5);
        let after = before.gathered(6, &mut rng);
        assert_eq!(after.moved_since(&before), 6);
        assert_eq!(hosted(&after).iter().max(), Some(&14));
        assert_eq!(hosted(&after).iter().sum::<usize>(), 64);
        // 4,096 slots on 128 ranks are 32 on each, and 8 are taken.
        let mut full = Placement::consecutive(1024, 128);
        assert_eq!(full.gathered(100, &mut rng).moved_since(&full), 24);
        for _ in 0..200 {
            full = full.gathered(100, &mut rng);
        }
        assert_eq!(full.slots().len(), 4096);
        assert_eq!(Placement::consecutive(4, 1).gathered(2, &mut rng), Placement::consecutive(4, 1));
    }
}
