//! What is known of each neighbor. An entry is written to a new place and then put in force by one word.

use std::time::Duration;

use aya::Ebpf;
use replicator_common::{neighbor::Neighbor, table::Live};

use super::{DatapathError, REST, map, mapped::MappedArray, pool::Pool};

pub(super) struct Neighbors {
    ids: MappedArray<Live>,
    entries: MappedArray<Neighbor>,
    pool: Pool,
}

impl Neighbors {
    pub(super) fn new(ebpf: &Ebpf) -> Result<Self, DatapathError> {
        let entries = MappedArray::new("NEIGHBORS", map(ebpf, "NEIGHBORS")?)?;
        Ok(Self {
            ids: MappedArray::new("NEIGHBOR_IDS", map(ebpf, "NEIGHBOR_IDS")?)?,
            pool: Pool::new(entries.len(), REST),
            entries,
        })
    }

    /// Finds what an earlier daemon put in force. An id that names no place, or one that another names, names none from
    /// now on: its copies are counted as unresolved rather than sent elsewhere.
    pub(super) fn adopt(&mut self) {
        for id in 0..self.ids.len() as u32 {
            if let Some(place) = self.ids.live(id).place()
                && self.pool.claim(place, 1).is_none()
            {
                self.ids.publish(id, Live::NONE);
            }
        }
    }

    /// Ids with what is known of their neighbors.
    pub(super) fn in_force(&self) -> Vec<(u32, Neighbor)> {
        let entry = |id| Some((id, self.entries.read(self.ids.live(id).place()?)));
        (0..self.ids.len() as u32).filter_map(entry).collect()
    }

    pub(super) fn set(
        &mut self,
        id: u32,
        neighbor: Option<&Neighbor>,
        now: Duration,
    ) -> Result<(), DatapathError> {
        let old = self.ids.live(id).place();
        if neighbor.copied() == old.map(|place| self.entries.read(place)) {
            return Ok(());
        }
        let new = match neighbor {
            None => Live::NONE,
            Some(neighbor) => {
                let full = DatapathError::Full { what: "neighbors that change", need: 1 };
                let place = self.pool.take(1, now).ok_or(full)?.start;
                self.entries.write(place, *neighbor);
                Live::at(place)
            }
        };
        self.ids.publish(id, new);
        if let Some(place) = old {
            self.pool.give(place..place + 1, now);
        }
        Ok(())
    }
}
