//! Which id each neighbor has in the maps, and where it is. A neighbor's id never changes device, for a frame in flight
//! has been counted on it: a neighbor that moves gets another id.

use std::{collections::VecDeque, time::Duration};

use replicator_common::limits::MAX_NEIGHBORS;
use replicator_common::neighbor::FIRST_REMOTE_NEIGHBOR;

use crate::datapath::MemberPlace;

/// How long an id rests after its neighbor moved away.
const REST: Duration = Duration::from_secs(1);

/// The neighbors of a configuration, by their place in it.
#[derive(Debug)]
pub(super) struct Roster {
    places: Vec<MemberPlace>,
    free: VecDeque<(Duration, u32)>,
}

/// What a neighbor's news mean for the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    /// Its entry changes; tables stay.
    Stays(MemberPlace),
    /// It has another id: its entry is written, the tables that have it as a member are installed again, and the old id
    /// is emptied and left.
    Moves {
        /// From where.
        from: MemberPlace,
        /// To where.
        to: MemberPlace,
    },
    /// It would need an id and all are taken or at rest. It stays where it was, unreachable.
    NoRoom(MemberPlace),
}

impl Roster {
    /// So many neighbors, each on the device where it is looked for until it is found.
    pub(super) fn new(devices: impl IntoIterator<Item = u32>) -> Self {
        let places: Vec<_> = (FIRST_REMOTE_NEIGHBOR..)
            .zip(devices)
            .map(|(neighbor, ifindex)| MemberPlace { neighbor, ifindex })
            .collect();
        let next = FIRST_REMOTE_NEIGHBOR + places.len() as u32;
        Self { free: (next..MAX_NEIGHBORS as u32).map(|id| (Duration::ZERO, id)).collect(), places }
    }

    /// Where a neighbor is.
    pub(super) fn place(&self, index: usize) -> MemberPlace {
        self.places[index]
    }

    /// Neighbor `index` is behind this device, and no table names it yet.
    pub(super) fn settle(&mut self, index: usize, ifindex: u32) {
        self.places[index].ifindex = ifindex;
    }

    /// Neighbor `index` is behind this device. `now` ascends from call to call. The id it moves away from is taken until
    /// it is [`left`](Self::left).
    pub(super) fn found(&mut self, index: usize, ifindex: u32, now: Duration) -> Move {
        let from = self.places[index];
        if from.ifindex == ifindex {
            return Move::Stays(from);
        }
        let Some((_, neighbor)) = self.free.pop_front_if(|(rested, _)| *rested <= now) else {
            return Move::NoRoom(from);
        };
        let to = MemberPlace { neighbor, ifindex };
        self.places[index] = to;
        Move::Moves { from, to }
    }

    /// No table names the id any more: it may be given out again once copies in flight are out.
    pub(super) fn left(&mut self, id: u32, now: Duration) {
        self.free.push_back((now + REST, id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(neighbor: u32, ifindex: u32) -> MemberPlace {
        MemberPlace { neighbor, ifindex }
    }

    #[test]
    fn an_id_never_changes_device() {
        let mut roster = Roster::new([4, 4]);
        assert_eq!((roster.place(0), roster.place(1)), (place(3, 4), place(4, 4)));
        assert_eq!(roster.found(1, 4, Duration::ZERO), Move::Stays(place(4, 4)));
        let moved = Move::Moves { from: place(4, 4), to: place(5, 9) };
        assert_eq!(roster.found(1, 9, Duration::ZERO), moved);
        assert_eq!(roster.place(1), place(5, 9));
        assert_eq!(roster.place(0), place(3, 4));
    }

    #[test]
    fn before_tables_name_them_neighbors_settle_where_they_are() {
        let mut roster = Roster::new(vec![1; MAX_NEIGHBORS - FIRST_REMOTE_NEIGHBOR as usize]);
        roster.settle(7, 2);
        assert_eq!(roster.place(7), place(10, 2));
        assert_eq!(roster.found(7, 2, Duration::ZERO), Move::Stays(place(10, 2)));
    }

    #[test]
    fn an_old_id_rests_before_it_is_given_out_again() {
        let remote = MAX_NEIGHBORS - FIRST_REMOTE_NEIGHBOR as usize;
        let mut roster = Roster::new(vec![1; remote - 1]);
        let last = place(MAX_NEIGHBORS as u32 - 1, 2);
        assert_eq!(roster.found(0, 2, Duration::ZERO), Move::Moves { from: place(3, 1), to: last });
        assert_eq!(
            roster.found(1, 2, Duration::from_secs(9)),
            Move::NoRoom(place(4, 1)),
            "tables name it still"
        );
        roster.left(3, Duration::ZERO);
        assert_eq!(roster.found(1, 2, Duration::from_millis(999)), Move::NoRoom(place(4, 1)));
        assert_eq!(
            roster.found(1, 2, Duration::from_secs(1)),
            Move::Moves { from: place(4, 1), to: place(3, 2) }
        );
    }
}
