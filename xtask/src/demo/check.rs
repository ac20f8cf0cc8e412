//! What a node makes of the frames it receives.

use std::ops::AddAssign;

use replicator_common::bier::BiftId;
use serde::Serialize;

use super::{epochs::Epochs, ledger::Ledger, payload::Pattern, placement::Placement, routing::Selection};

/// What should arrive, for every node the same.
pub(super) struct Expectation {
    /// Where the experts are in each epoch.
    pub epochs: Epochs,
    /// What was selected; the index is the payload's sequence number.
    pub selections: Vec<Selection>,
    /// What payloads are made from.
    pub pattern: Pattern,
    /// By which epoch's table each was sent.
    pub ledger: Ledger,
}

/// A token that was sent.
pub(super) struct Sent<'a> {
    selection: &'a Selection,
    placement: &'a Placement,
    table: BiftId,
}

impl Expectation {
    /// The token with this sequence number, by the epoch that it was sent by; none where it was not sent.
    fn sent(&self, sequence: usize) -> Option<Sent<'_>> {
        let epoch = self.ledger.epoch(sequence)?;
        let selection = self.selections.get(sequence)?;
        let placement = self.epochs.placement(epoch, selection.layer)?;
        Some(Sent { selection, placement, table: self.ledger.table(epoch, selection.layer)? })
    }

    fn all_sent(&self) -> impl Iterator<Item = Sent<'_>> {
        (0..self.selections.len()).filter_map(|sequence| self.sent(sequence))
    }

    /// Copies for each node of the tokens that were sent.
    pub(super) fn copies(&self) -> Vec<u64> {
        let mut copies = vec![0; self.epochs.nodes() as usize];
        for Sent { selection, placement, .. } in self.all_sent() {
            placement.nodes_of(selection).for_each(|node| copies[node as usize] += 1);
        }
        copies
    }

    /// Copies that one frame for each expert would take, of the tokens that were sent.
    pub(super) fn unicast(&self) -> u64 {
        self.all_sent().map(|token| token.selection.experts.len() as u64).sum()
    }
}

/// What arrived at a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Arrivals {
    /// Frames that should have, each counted once.
    pub delivered: u64,
    /// Further copies of them.
    pub duplicated: u64,
    /// Frames for another node, with other bits than this node's experts, or of another table: all by the epoch that the
    /// token was sent by.
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
        let pattern = &self.expectation.pattern;
        let Some(sequence) = pattern.read(payload).and_then(|sequence| usize::try_from(sequence).ok()) else {
            return self.arrivals.corrupted += 1;
        };
        let Some(token) = self.expectation.sent(sequence) else {
            return self.arrivals.misdelivered += 1;
        };
        let Sent { selection, placement, .. } = token;
        let mut own =
            selection.experts.iter().filter(|&&expert| placement.node(expert) == self.node).peekable();
        if own.peek().is_none() || table != token.table || !bits.eq(own.map(|expert| expert + 1)) {
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
    use crate::demo::model::Shape;

    /// Eight experts on four nodes, two on each, in every layer of epoch 1. Token 0 was sent by epoch 1, token 1 by epoch 2,
    /// token 2 was not.
    fn expectation() -> Expectation {
        let shape = Shape { layers: 2, experts: 8, active: 3, groups: None };
        let expectation = Expectation {
            epochs: Epochs::draw(shape, 4, 1, 3, 1),
            selections: vec![
                Selection { layer: 0, experts: [0, 1, 2].into() },
                Selection { layer: 1, experts: [0, 1, 2, 3, 4, 5, 6, 7].into() },
                Selection { layer: 0, experts: [4, 5, 6].into() },
            ],
            pattern: Pattern::new(32, 9),
            ledger: Ledger::new(2, 3),
        };
        for epoch in [1, 2] {
            assert!(expectation.ledger.install(epoch, vec![Some(table(0, epoch)), Some(table(1, epoch))]));
        }
        expectation.ledger.send(0, 1);
        expectation.ledger.send(1, 2);
        expectation
    }

    fn table(layer: u16, epoch: u16) -> BiftId {
        BiftId::expert(layer, epoch as u8).unwrap()
    }

    /// Bits of the experts of layer 1 that a node hosts.
    fn hosted(expectation: &Expectation, epoch: u16, node: u32) -> Vec<u32> {
        let placement = expectation.epochs.placement(epoch, 1).unwrap();
        (0..8).filter(|&expert| placement.node(expert) == node).map(|expert| expert + 1).collect()
    }

    /// What one frame counts as.
    fn taken(checker: &mut Checker<'_>, table: BiftId, bits: &[u32], sequence: u64) -> &'static str {
        let before = checker.arrivals();
        let mut payload = Vec::new();
        checker.expectation.pattern.write(sequence, &mut payload);
        checker.take(table, bits.iter().copied(), &payload);
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
    fn the_expected_copies_are_the_distinct_nodes_of_what_was_sent() {
        let expectation = expectation();
        // Token 0 goes to nodes 0 and 1, token 1 to all: its epoch exchanged experts, nodes host two each as before.
        assert_eq!(expectation.copies(), [2, 2, 1, 1]);
        assert_eq!(expectation.unicast(), 11);
        expectation.ledger.send(2, 1);
        assert_eq!(expectation.copies(), [2, 2, 2, 2]);
        assert_eq!(expectation.unicast(), 14);
    }

    #[test]
    fn a_frame_is_right_once() {
        let expectation = expectation();
        let mut node = Checker::new(&expectation, 0);
        assert_eq!(taken(&mut node, table(0, 1), &[1, 2], 0), "delivered");
        assert_eq!(taken(&mut node, table(1, 2), &hosted(&expectation, 2, 0), 1), "delivered");
        assert_eq!(taken(&mut node, table(0, 1), &[1, 2], 0), "duplicated");
        assert_eq!(node.arrivals(), Arrivals { delivered: 2, duplicated: 1, ..Arrivals::default() });
    }

    #[test]
    fn bits_table_and_node_must_be_its_own() {
        let expectation = expectation();
        let mut node = Checker::new(&expectation, 0);
        for (what, table, bits, sequence) in [
            ("a bit is missing", table(0, 1), &[1][..], 0),
            ("a bit of another node", table(0, 1), &[1, 2, 3], 0),
            ("no bits", table(0, 1), &[], 0),
            ("another layer's table", table(1, 1), &[1, 2], 0),
            ("a token that was not sent", table(0, 1), &[5, 6], 2),
            ("a token that there is not", table(0, 1), &[1, 2], 3),
        ] {
            assert_eq!(taken(&mut node, table, bits, sequence), "misdelivered", "{what}");
        }
        let mut other = Checker::new(&expectation, 3);
        assert_eq!(taken(&mut other, table(0, 1), &[1, 2], 0), "misdelivered", "another node");
        assert_eq!(taken(&mut other, table(0, 1), &[], 0), "misdelivered", "another node, no bits");
        assert_eq!(
            taken(&mut node, table(0, 1), &[1, 2], 0),
            "delivered",
            "what was misdelivered is still expected"
        );
    }

    #[test]
    fn a_copy_goes_by_the_epoch_that_its_token_was_sent_by() {
        let expectation = expectation();
        let moved = |&node: &u32| hosted(&expectation, 1, node) != hosted(&expectation, 2, node);
        let at = (0..4).find(moved).unwrap();
        let mut node = Checker::new(&expectation, at);
        let (old, new) = (hosted(&expectation, 1, at), hosted(&expectation, 2, at));
        assert_eq!(taken(&mut node, table(1, 1), &old, 1), "misdelivered", "all of the epoch before");
        assert_eq!(taken(&mut node, table(1, 1), &new, 1), "misdelivered", "the table before");
        assert_eq!(taken(&mut node, table(1, 2), &old, 1), "misdelivered", "the placement before");
        assert_eq!(taken(&mut node, table(1, 2), &new, 1), "delivered");
        let mut first = Checker::new(&expectation, 0);
        assert_eq!(taken(&mut first, table(0, 2), &[1, 2], 0), "misdelivered", "a table after");
    }

    #[test]
    fn a_changed_payload_is_corrupted() {
        let expectation = expectation();
        let mut node = Checker::new(&expectation, 0);
        let mut payload = Vec::new();
        expectation.pattern.write(0, &mut payload);
        payload[20] ^= 1;
        node.take(table(0, 1), [1, 2].into_iter(), &payload);
        node.take(table(0, 1), [1, 2].into_iter(), &[]);
        node.take_undecodable(2);
        assert_eq!(node.arrivals(), Arrivals { corrupted: 4, ..Arrivals::default() });
    }
}
