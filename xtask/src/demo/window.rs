//! Flow control: at most so many copies are on their way as the smallest queue between sender and receivers holds.
//!
//! Nothing between an XDP redirect and a socket holds back a sender: a full ring drops. Receivers are threads of this
//! process, so their counters are the acknowledgement.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread::{self, Thread},
    time::{Duration, Instant},
};

/// Copies on their way. A veth's ring holds 256 frames (`VETH_RING_SIZE` in drivers/net/veth.c), and a ring of that size
/// on the origin veth sees fewer frames than there are copies.
pub(super) const COPIES: u64 = 192;

/// Time without any arrival after which the copies on their way are lost.
pub(super) const SILENCE: Duration = Duration::from_millis(500);

/// How long the sender sleeps at most before it looks again.
const NAP: Duration = Duration::from_millis(10);

/// Counts arrivals, and wakes the sender when there are as many as it waits for.
pub(super) struct Acknowledgements {
    arrived: AtomicU64,
    awaited: AtomicU64,
    sender: Thread,
}

impl Acknowledgements {
    /// The calling thread is the sender.
    pub(super) fn to_this_thread() -> Self {
        Self { arrived: AtomicU64::new(0), awaited: AtomicU64::new(u64::MAX), sender: thread::current() }
    }

    /// A receiver took a frame.
    pub(super) fn add(&self) {
        // Sequentially consistent with `await_arrival`: one of the two sees the other.
        let arrived = self.arrived.fetch_add(1, Ordering::SeqCst) + 1;
        if arrived >= self.awaited.load(Ordering::SeqCst) {
            self.sender.unpark();
        }
    }

    /// Frames that receivers took.
    pub(super) fn arrived(&self) -> u64 {
        self.arrived.load(Ordering::SeqCst)
    }

    /// Sleeps until `arrived` frames were taken, or [`NAP`] is over.
    fn await_arrival(&self, arrived: u64) {
        self.awaited.store(arrived, Ordering::SeqCst);
        if self.arrived() < arrived {
            thread::park_timeout(NAP);
        }
        self.awaited.store(u64::MAX, Ordering::SeqCst);
    }
}

/// The sender's end.
pub(super) struct Window<'a> {
    acknowledgements: &'a Acknowledgements,
    /// Copies sent, lost ones taken off.
    sent: u64,
    lost: u64,
}

impl<'a> Window<'a> {
    /// Nothing is on its way.
    pub(super) fn new(acknowledgements: &'a Acknowledgements) -> Self {
        Self { acknowledgements, sent: acknowledgements.arrived(), lost: 0 }
    }

    /// Copies on their way.
    pub(super) fn outstanding(&self) -> u64 {
        self.sent.saturating_sub(self.acknowledgements.arrived())
    }

    /// Copies that were waited for in vain.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// `copies` more are on their way.
    pub(super) fn add(&mut self, copies: u64) {
        self.sent += copies;
    }

    /// Waits until at most `copies` are on their way. Those that are when nothing arrived for [`SILENCE`] count as lost,
    /// and the window opens.
    pub(super) fn wait(&mut self, copies: u64) {
        let mut arrived = self.acknowledgements.arrived();
        let mut since = Instant::now();
        while self.outstanding() > copies {
            self.acknowledgements.await_arrival(self.sent - copies);
            let now = self.acknowledgements.arrived();
            if now != arrived {
                (arrived, since) = (now, Instant::now());
            } else if since.elapsed() > SILENCE {
                self.lost += self.outstanding();
                self.sent = now;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sender_waits_for_receivers() {
        let acknowledgements = Acknowledgements::to_this_thread();
        let mut window = Window::new(&acknowledgements);
        window.add(10);
        assert_eq!(window.outstanding(), 10);
        let start = Instant::now();
        window.wait(10);
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..7 {
                    thread::sleep(Duration::from_millis(2));
                    acknowledgements.add();
                }
            });
            window.wait(3);
        });
        assert_eq!(window.outstanding(), 3);
        assert!(start.elapsed() < SILENCE);
    }

    #[test]
    fn what_is_lost_does_not_close_the_window() {
        let acknowledgements = Acknowledgements::to_this_thread();
        let mut window = Window::new(&acknowledgements);
        window.add(5);
        (0..3).for_each(|_| acknowledgements.add());
        let start = Instant::now();
        window.wait(0);
        assert!(start.elapsed() >= SILENCE);
        assert_eq!((window.outstanding(), window.lost()), (0, 2));
        window.add(4);
        acknowledgements.add();
        assert_eq!(window.outstanding(), 3);
    }

    #[test]
    fn duplicates_do_not_underflow() {
        let acknowledgements = Acknowledgements::to_this_thread();
        let window = Window::new(&acknowledgements);
        (0..2).for_each(|_| acknowledgements.add());
        assert_eq!(window.outstanding(), 0);
    }
}
