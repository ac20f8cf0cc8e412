//! The expert map is rebalanced while tokens are dispatched: a thread sends the maps, the sender of tokens says when and
//! goes by each as soon as it is in force.

use std::{
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError},
    time::Duration,
};

use anyhow::Result;
use replicator_common::bier::BiftId;

use super::{
    control::{Control, InForce},
    epochs::Epochs,
    ledger::Ledger,
};

/// How long each token waits that is ahead of the map.
const TRICKLE: Duration = Duration::from_micros(200);

/// The thread's end.
pub(super) struct Rebalancer {
    orders: Receiver<()>,
    answers: Sender<InForce>,
}

/// The sender's end: what it goes by.
pub(super) struct Follower<'a> {
    epochs: &'a Epochs,
    ledger: &'a Ledger,
    orders: Sender<()>,
    answers: Receiver<InForce>,
    /// Layer -> epoch and BIFT-id.
    tables: Vec<(u16, BiftId)>,
    /// The epoch whose turn is next.
    next: usize,
    /// A map was ordered and is not in force yet.
    pending: bool,
    /// Epoch, and how long its map took to be in force.
    followed: Vec<(u16, Duration)>,
}

/// Both ends, when the first map is in force with these tables.
pub(super) fn ends<'a>(
    epochs: &'a Epochs,
    ledger: &'a Ledger,
    first: Vec<BiftId>,
) -> (Rebalancer, Follower<'a>) {
    let ((order, orders), (answer, answers)) = (mpsc::channel(), mpsc::channel());
    let follower = Follower {
        epochs,
        ledger,
        orders: order,
        answers,
        tables: first.into_iter().map(|id| (1, id)).collect(),
        next: 2,
        pending: false,
        followed: Vec::new(),
    };
    (Rebalancer { orders, answers: answer }, follower)
}

impl Rebalancer {
    /// Sends a map at each order, until there are no more maps or the sender of tokens has gone.
    ///
    /// # Errors
    /// Where a map does not come in force. No more are sent then.
    pub(super) fn run(self, control: &mut Control, epochs: &Epochs) -> Result<()> {
        for epoch in &epochs.all()[1..] {
            let request = control.request(epoch);
            if self.orders.recv().is_err() || self.answers.send(control.send(&request)?).is_err() {
                break;
            }
        }
        Ok(())
    }
}

impl Follower<'_> {
    /// Whether another map has its turn before this token.
    pub(super) fn is_due(&self, token: usize) -> bool {
        // One more turn than there are maps: it only waits for the last.
        self.next <= self.epochs.all().len() + 1 && token >= self.epochs.turn(self.next)
    }

    /// Waits for the map before, and orders the next.
    pub(super) fn order(&mut self) {
        if self.pending {
            let answer = self.answers.recv().ok();
            self.take(answer);
        }
        // Without a thread that takes orders nothing is pending.
        self.pending = self.next <= self.epochs.all().len() && self.orders.send(()).is_ok();
        self.next += 1;
    }

    /// Whether half of the tokens before the next turn have gone, and the map is still not in force. The others trickle, so
    /// that there is load until it is.
    pub(super) fn is_ahead(&self, token: usize) -> bool {
        let [this, next] = [self.next - 1, self.next].map(|epoch| self.epochs.turn(epoch));
        self.pending && token >= usize::midpoint(this, next)
    }

    /// Waits a moment for the map that is pending.
    pub(super) fn trickle(&mut self) {
        match self.answers.recv_timeout(TRICKLE) {
            Ok(in_force) => self.take(Some(in_force)),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.take(None),
        }
    }

    /// The epoch that a layer is of, and its BIFT-id. A map that came in force since the last call is gone by.
    pub(super) fn table(&mut self, layer: u16) -> (u16, BiftId) {
        if self.pending {
            match self.answers.try_recv() {
                Ok(in_force) => self.take(Some(in_force)),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => self.take(None),
            }
        }
        self.tables[usize::from(layer)]
    }

    /// The epochs that were gone by after the first, and how long each took to be in force.
    pub(super) fn followed(self) -> Vec<(u16, Duration)> {
        self.followed
    }

    /// Goes by what was pending; without an answer there will be none.
    fn take(&mut self, answer: Option<InForce>) {
        self.pending = false;
        let Some(InForce { epoch, tables, after }) = answer else { return };
        for (now, table) in self.tables.iter_mut().zip(&tables) {
            if let Some(table) = table {
                *now = (epoch, *table);
            }
        }
        self.ledger.install(epoch, tables);
        self.followed.push((epoch, after));
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::demo::model::Shape;

    const SHAPE: Shape = Shape { layers: 2, experts: 8, active: 2, groups: None };

    fn id(layer: u16, epoch: u16) -> BiftId {
        BiftId::expert(layer, epoch as u8).unwrap()
    }

    /// What the daemon would answer.
    fn answer(epochs: &Epochs, epoch: u16) -> InForce {
        let layers = 0..SHAPE.layers;
        let tables = layers.map(|layer| epochs.placement(epoch, layer).map(|_| id(layer, epoch))).collect();
        InForce { epoch, tables, after: Duration::from_millis(epoch.into()) }
    }

    #[test]
    fn a_layer_goes_by_the_newest_map_in_force_that_has_it() {
        let epochs = Epochs::draw(SHAPE, 4, 2, 40, 1);
        let ledger = Ledger::new(epochs.all().len(), 40);
        let (rebalancer, mut follower) = ends(&epochs, &ledger, vec![id(0, 1), id(1, 1)]);
        assert!(!follower.is_due(9) && follower.is_due(10));
        follower.order();
        assert!(!follower.is_due(10), "the next is due at token 20");
        assert_eq!(follower.table(0), (1, id(0, 1)), "ordered, not in force");
        rebalancer.answers.send(answer(&epochs, 2)).unwrap();
        assert_eq!((follower.table(0), follower.table(1)), ((2, id(0, 2)), (2, id(1, 2))));
        assert_eq!(ledger.table(2, 1), Some(id(1, 2)));

        assert!(follower.is_due(20));
        follower.order();
        rebalancer.answers.send(answer(&epochs, 3)).unwrap();
        // A partial map has one of the two layers.
        let changed = (0..2).find(|&layer| epochs.placement(3, layer).is_some()).unwrap();
        assert_eq!(follower.table(changed), (3, id(changed, 3)));
        assert_eq!(follower.table(1 - changed), (2, id(1 - changed, 2)));
        assert!(follower.is_due(30));
        follower.order();
        assert!(!follower.is_due(usize::MAX), "no more maps");
        assert_eq!(rebalancer.orders.try_iter().count(), 2);
        assert_eq!(follower.followed(), [(2, Duration::from_millis(2)), (3, Duration::from_millis(3))]);
    }

    #[test]
    fn tokens_trickle_while_a_map_is_late() {
        let epochs = Epochs::draw(SHAPE, 4, 2, 40, 1);
        let ledger = Ledger::new(epochs.all().len(), 40);
        let (rebalancer, mut follower) = ends(&epochs, &ledger, vec![id(0, 1), id(1, 1)]);
        assert!(!follower.is_ahead(9), "nothing is pending");
        follower.order();
        assert!(!follower.is_ahead(14) && follower.is_ahead(15), "the turns are at tokens 10 and 20");
        follower.trickle();
        assert!(follower.is_ahead(15));
        rebalancer.answers.send(answer(&epochs, 2)).unwrap();
        follower.trickle();
        assert!(!follower.is_ahead(15));
        assert_eq!(follower.table(0), (2, id(0, 2)));
    }

    #[test]
    fn a_map_waits_for_the_one_before() {
        let epochs = Epochs::draw(SHAPE, 4, 3, 5, 1);
        let ledger = Ledger::new(epochs.all().len(), 5);
        let (rebalancer, mut follower) = ends(&epochs, &ledger, vec![id(0, 1), id(1, 1)]);
        let answers = [2, 3, 4].map(|epoch| answer(&epochs, epoch));
        let daemon = move || {
            for in_force in answers {
                rebalancer.orders.recv().unwrap();
                assert!(rebalancer.orders.try_recv().is_err(), "epoch {} is not in force", in_force.epoch);
                rebalancer.answers.send(in_force).unwrap();
            }
        };
        thread::scope(|scope| {
            scope.spawn(daemon);
            while follower.is_due(4) {
                follower.order();
            }
        });
        assert!(follower.followed().iter().map(|(epoch, _)| *epoch).eq([2, 3, 4]));
    }

    #[test]
    fn tokens_go_on_when_maps_do_not() {
        let epochs = Epochs::draw(SHAPE, 4, 3, 100, 1);
        let ledger = Ledger::new(epochs.all().len(), 100);
        let (rebalancer, mut follower) = ends(&epochs, &ledger, vec![id(0, 1), id(1, 1)]);
        follower.order();
        drop(rebalancer);
        assert_eq!(follower.table(1), (1, id(1, 1)));
        while follower.is_due(99) {
            follower.order();
        }
        assert_eq!(follower.table(0), (1, id(0, 1)));
        assert_eq!(follower.followed(), []);
    }
}
