//! Which id each neighbor has in the maps, and where it is. A neighbor's id never changes device, for a frame in flight
//! has been counted on it: a neighbor that moves gets another id.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use replicator_common::limits::MAX_NEIGHBORS;
use replicator_common::neighbor::FIRST_REMOTE_NEIGHBOR;

use crate::datapath::MemberPlace;

/// How long an id rests after its neighbor moved away.
const REST: Duration = Duration::from_secs(1);

/// The neighbors of a configuration, by their place in it.
#[derive(Debug)]
pub(super) struct Roster {
    places: Vec<MemberPlace>,
    /// Those that no table names yet: they may be behind any device.
    unsettled: BTreeSet<usize>,
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
    /// So many neighbors, each on the device where it is looked for until it is found. Those `known` to an earlier daemon
    /// keep their ids; the other ids `in_use` are not given out. `None` where there are not enough.
    pub(super) fn new(
        devices: impl IntoIterator<Item = u32>,
        known: &BTreeMap<usize, MemberPlace>,
        in_use: &BTreeSet<u32>,
    ) -> Option<Self> {
        let own: BTreeSet<_> = known.values().map(|place| place.neighbor).collect();
        let ids = FIRST_REMOTE_NEIGHBOR..MAX_NEIGHBORS as u32;
        let mut free = ids.filter(|id| !own.contains(id) && !in_use.contains(id));
        let mut unsettled = BTreeSet::new();
        let place = |(index, ifindex)| match known.get(&index) {
            Some(place) => Some(*place),
            None => {
                unsettled.insert(index);
                Some(MemberPlace { neighbor: free.next()?, ifindex })
            }
        };
        let places = devices.into_iter().enumerate().map(place).collect::<Option<_>>()?;
        Some(Self { places, free: free.map(|id| (Duration::ZERO, id)).collect(), unsettled })
    }

    /// Where a neighbor is.
    pub(super) fn place(&self, index: usize) -> MemberPlace {
        self.places[index]
    }

    /// Tables name all of them from now on.
    pub(super) fn settle(&mut self) {
        self.unsettled.clear();
    }

    /// Neighbor `index` is behind this device. `now` ascends from call to call. The id it moves away from is taken until
    /// it is [`left`](Self::left).
    pub(super) fn found(&mut self, index: usize, ifindex: u32, now: Duration) -> Move {
        if self.unsettled.contains(&index) {
            self.places[index].ifindex = ifindex;
        }
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

    /// Neighbors that tables name, on these devices.
    fn settled(devices: impl IntoIterator<Item = u32>) -> Roster {
        let mut roster = Roster::new(devices, &BTreeMap::new(), &BTreeSet::new()).unwrap();
        roster.settle();
        roster
    }

    #[test]
    fn an_id_never_changes_device() {
        let mut roster = settled([4, 4]);
        assert_eq!((roster.place(0), roster.place(1)), (place(3, 4), place(4, 4)));
        assert_eq!(roster.found(1, 4, Duration::ZERO), Move::Stays(place(4, 4)));
        let moved = Move::Moves { from: place(4, 4), to: place(5, 9) };
        assert_eq!(roster.found(1, 9, Duration::ZERO), moved);
        assert_eq!(roster.place(1), place(5, 9));
        assert_eq!(roster.place(0), place(3, 4));
    }

    #[test]
    fn before_tables_name_them_neighbors_settle_where_they_are() {
        let remote = MAX_NEIGHBORS - FIRST_REMOTE_NEIGHBOR as usize;
        let mut roster = Roster::new(vec![1; remote], &BTreeMap::new(), &BTreeSet::new()).unwrap();
        assert_eq!(roster.found(7, 2, Duration::ZERO), Move::Stays(place(10, 2)));
        roster.settle();
        assert_eq!(roster.found(7, 2, Duration::ZERO), Move::Stays(place(10, 2)));
        assert_eq!(roster.found(7, 3, Duration::ZERO), Move::NoRoom(place(10, 2)));
        assert!(Roster::new(vec![1; remote + 1], &BTreeMap::new(), &BTreeSet::new()).is_none());
    }

    #[test]
    fn what_an_earlier_daemon_knew_keeps_its_ids() {
        let known = [(1, place(4, 6))].into();
        let mut roster = Roster::new([1, 1, 1], &known, &[3, 4, 6].into()).unwrap();
        let places = [0, 1, 2].map(|index| roster.place(index));
        assert_eq!(places, [place(5, 1), place(4, 6), place(7, 1)], "3 and 6 are of others");
        // Tables name neighbor 1 already: elsewhere it gets another id.
        assert_eq!(roster.found(1, 9, Duration::ZERO), Move::Moves { from: place(4, 6), to: place(8, 9) });
        assert_eq!(roster.found(0, 9, Duration::ZERO), Move::Stays(place(5, 9)));
        roster.left(3, Duration::ZERO);
        let in_use = (3..MAX_NEIGHBORS as u32).collect();
        assert!(Roster::new([1, 1], &known, &in_use).is_none());
    }

    #[test]
    fn an_old_id_rests_before_it_is_given_out_again() {
        let remote = MAX_NEIGHBORS - FIRST_REMOTE_NEIGHBOR as usize;
        let mut roster = settled(vec![1; remote - 1]);
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
