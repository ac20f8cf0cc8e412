//! What a node makes of the frames it receives.

use std::ops::AddAssign;

use replicator_common::bier::BiftId;
use serde::Serialize;

use super::{payload::Pattern, placement::Placement, routing::Selection};

/// What should arrive, for every node the same.
pub(super) struct Expectation {
    /// Where the experts are.
    pub placement: Placement,
    /// What was selected; the index is the payload's sequence number.
    pub selections: Vec<Selection>,
    /// What payloads are made from.
    pub pattern: Pattern,
    /// Layer -> BIFT-id, as senders write it.
    pub tables: Vec<BiftId>,
}

impl Expectation {
    /// Copies for each node.
    pub(super) fn copies(&self) -> Vec<u64> {
        let mut copies = vec![0; self.placement.nodes as usize];
        for node in self.selections.iter().flat_map(|selection| self.placement.nodes_of(selection)) {
            copies[node as usize] += 1;
        }
        copies
    }

    /// Copies that one frame for each expert would take.
    pub(super) fn unicast(&self) -> u64 {
        self.selections.iter().map(|selection| selection.experts.len() as u64).sum()
    }
}

/// What arrived at a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Arrivals {
    /// Frames that should have, each counted once.
    pub delivered: u64,
    /// Further copies of them.
    pub duplicated: u64,
    /// Frames for another node, with other bits than this node's experts, or of another table.
    pub misdelivered: u64,
    /// Frames with a byte of the payload changed, or that are no BIER.
    pub corrupted: u64,
}

impl AddAssign for Arrivals {
    fn add_assign(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.duplicated += other.duplicated;
        self.misdelivered += other.misdelivered;
        self.corrupted += other.corrupted;
    }
}

/// Checks every frame that one node receives.
pub(super) struct Checker<'a> {
    expectation: &'a Expectation,
    node: u32,
    seen: Vec<bool>,
    arrivals: Arrivals,
}

impl<'a> Checker<'a> {
    /// Nothing has arrived at `node` yet.
    pub(super) fn new(expectation: &'a Expectation, node: u32) -> Self {
        let seen = vec![false; expectation.selections.len()];
        Self { expectation, node, seen, arrivals: Arrivals::default() }
    }

    /// Takes one frame. `bits`, counted from 1, ascend.
    pub(super) fn take(&mut self, table: BiftId, bits: impl Iterator<Item = u32>, payload: &[u8]) {
        let Expectation { placement, selections, pattern, tables } = self.expectation;
        let Some(sequence) = pattern.read(payload).and_then(|sequence| usize::try_from(sequence).ok()) else {
            return self.arrivals.corrupted += 1;
        };
        let Some(Selection { layer, experts }) = selections.get(sequence) else {
            return self.arrivals.misdelivered += 1;
        };
        let mut own = experts.iter().filter(|&&expert| placement.node(expert) == self.node).peekable();
        if own.peek().is_none()
            || table != tables[usize::from(*layer)]
            || !bits.eq(own.map(|expert| expert + 1))
        {
            self.arrivals.misdelivered += 1;
        } else if std::mem::replace(&mut self.seen[sequence], true) {
            self.arrivals.duplicated += 1;
        } else {
            self.arrivals.delivered += 1;
        }
    }

    /// Takes `count` frames that were no BIER.
    pub(super) fn take_undecodable(&mut self, count: u64) {
        self.arrivals.corrupted += count;
    }

    /// What arrived.
    pub(super) fn arrivals(&self) -> Arrivals {
        self.arrivals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expectation() -> Expectation {
        Expectation {
            placement: Placement { experts: 8, nodes: 4 },
            selections: vec![
                Selection { layer: 0, experts: [0, 1, 2].into() },
                Selection { layer: 1, experts: [1, 4, 6].into() },
            ],
            pattern: Pattern::new(32, 9),
            tables: vec![BiftId::expert(0, 1).unwrap(), BiftId::expert(1, 1).unwrap()],
        }
    }

    /// What one frame counts as.
    fn taken(checker: &mut Checker<'_>, table: u16, bits: &[u32], sequence: u64) -> &'static str {
        let before = checker.arrivals();
        let mut payload = Vec::new();
        checker.expectation.pattern.write(sequence, &mut payload);
        checker.take(BiftId::expert(table, 1).unwrap(), bits.iter().copied(), &payload);
        difference(before, checker.arrivals())
    }

    fn difference(before: Arrivals, after: Arrivals) -> &'static str {
        let fields = |at: Arrivals| [at.delivered, at.duplicated, at.misdelivered, at.corrupted];
        let (before, after) = (fields(before), fields(after));
        assert_eq!(before.iter().sum::<u64>() + 1, after.iter().sum::<u64>());
        let names = ["delivered", "duplicated", "misdelivered", "corrupted"];
        names[(0..4).find(|&i| before[i] != after[i]).unwrap()]
    }

    #[test]
    fn the_expected_copies_are_the_distinct_nodes() {
        assert_eq!(expectation().copies(), [2, 1, 1, 1]);
        assert_eq!(expectation().unicast(), 6);
    }

    #[test]
    fn a_frame_is_right_once() {
        let expectation = expectation();
        let mut node = Checker::new(&expectation, 0);
        assert_eq!(taken(&mut node, 0, &[1, 2], 0), "delivered");
        assert_eq!(taken(&mut node, 1, &[2], 1), "delivered");
        assert_eq!(taken(&mut node, 0, &[1, 2], 0), "duplicated");
        assert_eq!(node.arrivals(), Arrivals { delivered: 2, duplicated: 1, ..Arrivals::default() });
    }

    #[test]
    fn bits_table_and_node_must_be_its_own() {
        let expectation = expectation();
        let mut node = Checker::new(&expectation, 0);
        assert_eq!(taken(&mut node, 0, &[1], 0), "misdelivered", "a bit is missing");
        assert_eq!(taken(&mut node, 0, &[1, 2, 3], 0), "misdelivered", "a bit of another node");
        assert_eq!(taken(&mut node, 0, &[], 0), "misdelivered", "no bits");
        assert_eq!(taken(&mut node, 1, &[1, 2], 0), "misdelivered", "another table");
        assert_eq!(taken(&mut node, 0, &[1, 2], 2), "misdelivered", "a sequence number that was not sent");
        let mut other = Checker::new(&expectation, 3);
        assert_eq!(taken(&mut other, 0, &[1, 2], 0), "misdelivered", "another node");
        assert_eq!(taken(&mut other, 0, &[], 0), "misdelivered", "another node, no bits");
        assert_eq!(taken(&mut node, 0, &[1, 2], 0), "delivered", "what was misdelivered is still expected");
    }

    #[test]
    fn a_changed_payload_is_corrupted() {
        let expectation = expectation();
        let mut node = Checker::new(&expectation, 0);
        let mut payload = Vec::new();
        expectation.pattern.write(0, &mut payload);
        payload[20] ^= 1;
        node.take(expectation.tables[0], [1, 2].into_iter(), &payload);
        node.take(expectation.tables[0], [1, 2].into_iter(), &[]);
        node.take_undecodable(2);
        assert_eq!(node.arrivals(), Arrivals { corrupted: 4, ..Arrivals::default() });
    }
}
