//! Which entries of a pool are taken. What is given back rests for a time: a copy in flight may still read it.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    time::Duration,
};

/// A pool's free ranges, and those at rest. Time is whatever the caller counts, always ascending.
#[derive(Debug)]
pub(super) struct Pool {
    /// Start -> end of each free range; neighboring ranges are joined.
    free: BTreeMap<u32, u32>,
    entries: u32,
    /// Given back, oldest first, with the time from which they may be taken.
    resting: VecDeque<(Duration, Range<u32>)>,
    rest: Duration,
}

impl Pool {
    /// A pool of so many entries, whose entries rest for `rest` after use.
    pub(super) fn new(entries: usize, rest: Duration) -> Self {
        let entries = entries as u32;
        Self { free: BTreeMap::from([(0, entries)]), entries, resting: VecDeque::new(), rest }
    }

    /// Takes these very entries, which an earlier daemon took. `None` where they are not there, or not free.
    pub(super) fn claim(&mut self, start: u32, entries: usize) -> Option<Range<u32>> {
        let range = start..start.checked_add(u32::try_from(entries).ok()?)?;
        if range.is_empty() {
            return Some(range);
        }
        let (&free, &until) =
            self.free.range(..=start).next_back().filter(|&(_, &until)| until >= range.end)?;
        self.free.remove(&free);
        if free < range.start {
            self.free.insert(free, range.start);
        }
        if range.end < until {
            self.free.insert(range.end, until);
        }
        Some(range)
    }

    /// Entries that are taken or at rest at this time.
    pub(super) fn occupied(&self, now: Duration) -> u32 {
        let rested = self
            .resting
            .iter()
            .take_while(|(until, _)| *until <= now)
            .map(|(_, range)| range.end - range.start);
        let free = self.free.iter().map(|(start, end)| end - start);
        self.entries - free.chain(rested).sum::<u32>()
    }

    /// All entries.
    pub(super) const fn len(&self) -> u32 {
        self.entries
    }

    /// Takes `entries` neighboring entries: the first place with room. `None` where there is none at this time.
    pub(super) fn take(&mut self, entries: usize, now: Duration) -> Option<Range<u32>> {
        while let Some((_, range)) = self.resting.pop_front_if(|(until, _)| *until <= now) {
            self.join(range);
        }
        let entries = u32::try_from(entries).ok()?;
        let (&start, &end) = self.free.iter().find(|&(&start, &end)| end - start >= entries)?;
        self.free.remove(&start);
        if start + entries < end {
            self.free.insert(start + entries, end);
        }
        Some(start..start + entries)
    }

    /// Gives a range back.
    pub(super) fn give(&mut self, range: Range<u32>, now: Duration) {
        if !range.is_empty() {
            self.resting.push_back((now + self.rest, range));
        }
    }

    /// Takes back a range that nobody ever read: it needs no rest.
    pub(super) fn take_back(&mut self, range: Range<u32>) {
        if !range.is_empty() {
            self.join(range);
        }
    }

    fn join(&mut self, Range { mut start, mut end }: Range<u32>) {
        if let Some(next) = self.free.remove(&end) {
            end = next;
        }
        if let Some((&before, &until)) = self.free.range(..start).next_back()
            && until == start
        {
            start = before;
        }
        self.free.insert(start, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Duration = Duration::from_secs(1);

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn nothing_is_taken_twice_or_before_its_rest() {
        let mut pool = Pool::new(10, REST);
        assert_eq!(pool.take(4, at(0)), Some(0..4));
        assert_eq!(pool.take(6, at(0)), Some(4..10));
        assert_eq!(pool.take(1, at(0)), None);
        pool.give(0..4, at(500));
        assert_eq!(pool.take(4, at(1499)), None);
        assert_eq!(pool.take(4, at(1500)), Some(0..4));
    }

    #[test]
    fn neighbors_are_joined_in_any_order() {
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]] {
            let mut pool = Pool::new(9, REST);
            let ranges = [0..3, 3..6, 6..9];
            assert_eq!(pool.take(9, at(0)), Some(0..9));
            for i in order {
                pool.give(ranges[i].clone(), at(0));
            }
            assert_eq!(pool.take(9, at(1000)), Some(0..9), "{order:?}");
        }
    }

    #[test]
    fn what_is_claimed_is_taken() {
        let mut pool = Pool::new(10, REST);
        assert_eq!(pool.claim(4, 3), Some(4..7));
        assert_eq!(pool.claim(0, 1), Some(0..1));
        assert_eq!(pool.occupied(at(0)), 4);
        for (start, entries) in
            [(4, 1), (3, 2), (6, 2), (0, 10), (9, 2), (10, 1), (u32::MAX, 1), (u32::MAX, 2)]
        {
            assert_eq!(pool.claim(start, entries), None, "{entries} at {start}");
        }
        assert_eq!(pool.claim(u32::MAX, 0), Some(u32::MAX..u32::MAX), "nothing is nowhere");
        assert_eq!(
            (pool.take(4, at(0)), pool.take(3, at(0)), pool.take(3, at(0))),
            (None, Some(1..4), Some(7..10))
        );
        assert_eq!(pool.occupied(at(0)), pool.len());
        pool.give(4..7, at(0));
        assert_eq!((pool.occupied(at(999)), pool.occupied(at(1000))), (10, 7), "at rest for a second");
        assert_eq!((pool.take(3, at(1000)), pool.occupied(at(1000))), (Some(4..7), 10));
        pool.take_back(4..7);
        assert_eq!((pool.occupied(at(1000)), pool.take(3, at(1000))), (7, Some(4..7)), "at once");
    }

    #[test]
    fn more_than_there_is() {
        let mut pool = Pool::new(3, REST);
        assert_eq!(pool.take(4, at(0)), None);
        assert_eq!(pool.take(usize::MAX, at(0)), None);
        assert_eq!(pool.take(0, at(0)), Some(0..0));
        assert_eq!(pool.take(3, at(0)), Some(0..3));
    }
}
