//! What each token was sent by. The sender writes ahead of the frame, receivers read when it arrives: nothing is ever
//! changed, and nobody waits.

use std::sync::{
    OnceLock,
    atomic::{AtomicU16, Ordering},
};

use replicator_common::bier::BiftId;

/// BIFT-ids of the epochs, and the epoch of each token.
pub(super) struct Ledger {
    /// Epoch, from 1 on -> layer -> BIFT-id of the layers in its map.
    tables: Vec<OnceLock<Vec<Option<BiftId>>>>,
    /// Token -> epoch; 0 is none yet.
    epochs: Vec<AtomicU16>,
}

impl Ledger {
    /// Nothing was sent.
    pub(super) fn new(epochs: usize, tokens: usize) -> Self {
        let mut ledger = Self { tables: Vec::new(), epochs: Vec::new() };
        ledger.tables.resize_with(epochs, OnceLock::new);
        ledger.epochs.resize_with(tokens, AtomicU16::default);
        ledger
    }

    /// The map of this epoch is in force, with these BIFT-ids. Tells whether this was news.
    pub(super) fn install(&self, epoch: u16, tables: Vec<Option<BiftId>>) -> bool {
        let slot = usize::from(epoch).checked_sub(1).and_then(|epoch| self.tables.get(epoch));
        slot.is_some_and(|slot| slot.set(tables).is_ok())
    }

    /// BIFT-id of a layer by the map of this epoch; none where it is not in force or does not have the layer.
    pub(super) fn table(&self, epoch: u16, layer: u16) -> Option<BiftId> {
        let tables = self.tables.get(usize::from(epoch).checked_sub(1)?)?.get()?;
        *tables.get(usize::from(layer))?
    }

    /// The token is about to be sent by this epoch's table.
    pub(super) fn send(&self, token: usize, epoch: u16) {
        self.epochs[token].store(epoch, Ordering::Release);
    }

    /// The epoch by which the token was sent; none where it was not, or there is none such.
    pub(super) fn epoch(&self, token: usize) -> Option<u16> {
        Some(self.epochs.get(token)?.load(Ordering::Acquire)).filter(|&epoch| epoch != 0)
    }

    /// Tokens that were sent by this epoch's tables.
    pub(super) fn tokens(&self, epoch: u16) -> u64 {
        self.epochs.iter().filter(|of| of.load(Ordering::Acquire) == epoch).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_has_the_epoch_that_it_was_sent_by() {
        let ledger = Ledger::new(2, 3);
        assert_eq!([0, 1, 2, 3].map(|token| ledger.epoch(token)), [None; 4]);
        ledger.send(1, 2);
        ledger.send(2, 1);
        assert_eq!([0, 1, 2, 3].map(|token| ledger.epoch(token)), [None, Some(2), Some(1), None]);
        assert_eq!((ledger.tokens(1), ledger.tokens(2)), (1, 1));
    }

    #[test]
    fn an_epoch_is_put_in_force_once() {
        let (ledger, table) = (Ledger::new(2, 0), BiftId::expert(7, 3));
        assert_eq!(ledger.table(2, 1), None);
        assert!(ledger.install(2, vec![None, table]));
        assert!(!ledger.install(2, vec![]));
        assert_eq!((ledger.table(2, 1), ledger.table(2, 0), ledger.table(2, 2)), (table, None, None));
        assert!(!ledger.install(0, vec![]) && !ledger.install(3, vec![]));
        assert_eq!((ledger.table(0, 0), ledger.table(3, 0), ledger.table(1, 0)), (None, None, None));
    }
}
