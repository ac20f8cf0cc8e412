//! The connections of a listener: so many, and where all are taken the one that was silent for longest goes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

/// The connections of a listener.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    open: Mutex<Open>,
    /// A connection ended or fell silent.
    room: Notify,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    connections: BTreeMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// `None` while a request is answered.
    silent_since: Option<Instant>,
    leave: Arc<Notify>,
}

/// A connection's place among the others.
#[derive(Debug)]
pub(super) struct Place {
    all: Arc<Connections>,
    number: u64,
    /// Told when the place is another's.
    pub(super) leave: Arc<Notify>,
}

impl Connections {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, open: Mutex::default(), room: Notify::new() })
    }

    /// A place for a new connection, as soon as one can be had.
    pub(super) async fn admit(self: &Arc<Self>) -> Place {
        loop {
            if let Some(place) = self.try_admit() {
                return place;
            }
            self.room.notified().await;
        }
    }

    fn try_admit(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.lock();
        if open.connections.len() >= self.most {
            let silent =
                open.connections.iter().filter_map(|(&number, entry)| Some((entry.silent_since?, number)));
            let (_, longest) = silent.min()?;
            if let Some(entry) = open.connections.remove(&longest) {
                entry.leave.notify_one();
            }
        }
        let (number, leave) = (open.next, Arc::new(Notify::new()));
        open.next += 1;
        open.connections
            .insert(number, Entry { silent_since: Some(Instant::now()), leave: Arc::clone(&leave) });
        Some(Place { all: Arc::clone(self), number, leave })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        // Nothing that can panic is done while it is held.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// A request is answered from now on.
    pub(super) fn busy(&self) {
        self.set(None);
    }

    /// It is answered.
    pub(super) fn silent(&self) {
        self.set(Some(Instant::now()));
        self.all.room.notify_one();
    }

    fn set(&self, silent_since: Option<Instant>) {
        if let Some(entry) = self.all.lock().connections.get_mut(&self.number) {
            entry.silent_since = silent_since;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.lock().connections.remove(&self.number);
        self.all.room.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn left(place: &Place) -> bool {
        place.leave.notified().now_or_never().is_some()
    }

    #[tokio::test]
    async fn the_one_that_was_silent_for_longest_goes() {
        let all = Connections::new(2);
        let (first, second) = (all.admit().await, all.admit().await);
        first.busy();
        first.silent();
        let third = all.admit().await;
        assert_eq!([left(&first), left(&second), left(&third)], [false, true, false]);
        // A place that is another's already takes nothing along.
        drop(second);
        let _fourth = all.admit().await;
        assert_eq!([left(&first), left(&third)], [true, false]);
    }

    #[tokio::test]
    async fn nobody_goes_whose_request_is_answered() {
        let all = Connections::new(2);
        let (first, second) = (all.admit().await, all.admit().await);
        first.busy();
        second.busy();
        assert!(all.admit().now_or_never().is_none());
        second.silent();
        let third = all.admit().now_or_never().unwrap();
        assert!(!left(&first) && left(&second));
        third.busy();
        assert!(all.admit().now_or_never().is_none());
        drop(first);
        assert!(all.admit().now_or_never().is_some());
    }
}
