//! When the kernel is told that a neighbor is in use.
//!
//! The kernel resolves and re-checks only neighbors that its own stack sends to. Copies pass it by, so it is
//! told (`NTF_USE`): at once when an entry is unknown or stale, with growing pauses while nobody answers, and
//! now and then while all is well.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use super::view::NeighborState;

/// First pause while nobody answers; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause while nobody answers.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Pause while an entry stays stale: the kernel waits as long (`delay_first_probe_time`) before it asks.
const STALE_PAUSE: Duration = Duration::from_secs(5);
/// Pause while an entry is fresh: well within the 60 s (`gc_stale_time`) after which unused entries are
/// thrown out.
const FRESH_PAUSE: Duration = Duration::from_secs(20);

/// When each neighbor was last used.
#[derive(Debug)]
pub(super) struct Freshness<K> {
    uses: HashMap<K, Use>,
}

#[derive(Clone, Copy, Debug)]
struct Use {
    at: Instant,
    /// Pause that the next use waits while nobody answers.
    pause: Duration,
}

impl<K> Default for Freshness<K> {
    fn default() -> Self {
        Self { uses: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash> Freshness<K> {
    /// Takes in the neighbors that matter now. Returns those to use at `now` and when to ask next.
    pub(super) fn due(
        &mut self,
        now: Instant,
        neighbors: impl IntoIterator<Item = (K, NeighborState)>,
    ) -> (Vec<K>, Option<Instant>) {
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        let mut uses = HashMap::new();
        for (neighbor, state) in neighbors {
            if state == NeighborState::Fixed || uses.contains_key(&neighbor) {
                continue;
            }
            let last = self.uses.get(&neighbor).copied();
            let mut this = last.unwrap_or(Use { at: now, pause: Duration::ZERO });
            if state != NeighborState::Unknown {
                this.pause = Duration::ZERO;
            }
            let pause = |this: Use| match state {
                NeighborState::Unknown => this.pause,
                NeighborState::Stale => STALE_PAUSE,
                NeighborState::Fresh | NeighborState::Fixed => FRESH_PAUSE,
            };
            let first = last.is_none() && state != NeighborState::Fresh;
            if first || this.at + pause(this) <= now {
                due.push(neighbor);
                this.at = now;
                if state == NeighborState::Unknown {
                    this.pause = (this.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
                }
            }
            let at = this.at + pause(this);
            next = Some(next.map_or(at, |next| next.min(at)));
            uses.insert(neighbor, this);
        }
        self.uses = uses;
        (due, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds at which neighbor 1 is used when it is in `state` from `from` to `to`.
    fn uses(
        freshness: &mut Freshness<u8>,
        start: Instant,
        state: NeighborState,
        from: u64,
        to: u64,
    ) -> Vec<u64> {
        let mut used = Vec::new();
        let mut now = start + Duration::from_millis(from);
        while now < start + Duration::from_millis(to) {
            let (due, next) = freshness.due(now, [(1, state)]);
            if !due.is_empty() {
                used.push((now - start).as_millis().try_into().unwrap());
            }
            let Some(next) = next else { break };
            assert!(next > now, "would spin");
            now = next;
        }
        used
    }

    #[test]
    fn an_unknown_neighbor_is_asked_for_at_once_and_then_less_and_less() {
        let used = uses(&mut Freshness::default(), Instant::now(), NeighborState::Unknown, 0, 17_000);
        assert_eq!(used, [0, 100, 300, 700, 1_500, 3_100, 6_300, 11_300, 16_300]);
    }

    #[test]
    fn a_fresh_neighbor_is_used_now_and_then() {
        let used = uses(&mut Freshness::default(), Instant::now(), NeighborState::Fresh, 0, 61_000);
        assert_eq!(used, [20_000, 40_000, 60_000]);
    }

    #[test]
    fn a_stale_neighbor_is_used_at_once() {
        let used = uses(&mut Freshness::default(), Instant::now(), NeighborState::Stale, 0, 11_000);
        assert_eq!(used, [0, 5_000, 10_000]);
    }

    #[test]
    fn a_neighbor_that_stops_answering_starts_anew() {
        let (mut freshness, start) = (Freshness::default(), Instant::now());
        uses(&mut freshness, start, NeighborState::Unknown, 0, 10_000);
        assert_eq!(uses(&mut freshness, start, NeighborState::Fresh, 10_000, 11_000), [0; 0]);
        assert_eq!(
            uses(&mut freshness, start, NeighborState::Unknown, 11_000, 12_000),
            [11_000, 11_100, 11_300, 11_700]
        );
    }

    #[test]
    fn fixed_neighbors_are_left_alone() {
        assert_eq!(Freshness::default().due(Instant::now(), [(1, NeighborState::Fixed)]), (vec![], None));
    }

    #[test]
    fn a_neighbor_of_several_targets_is_used_once() {
        let twice = [(1, NeighborState::Unknown), (1, NeighborState::Unknown)];
        assert_eq!(Freshness::default().due(Instant::now(), twice).0, [1]);
    }
}
