//! Where each table lies in the pools, and which BIFT-ids name it.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    time::Instant,
};

use aya::Ebpf;
use replicator_common::{
    bier::BiftId,
    table::{FbmChunk, Live, Member, RowChunk, Share, Table},
};

use super::{DatapathError, REST, fanout::FanOuts, map, mapped::MappedArray, pool::Pool};
use crate::bift::{Bift, FanOutGroup, Places, layout};

/// Where a member is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberPlace {
    /// Neighbor's id in the maps.
    pub neighbor: u32,
    /// Device it is behind.
    pub ifindex: u32,
}

/// An array and which of its entries are taken.
struct Store<T> {
    what: &'static str,
    array: MappedArray<T>,
    pool: Pool,
}

impl<T: aya::Pod> Store<T> {
    fn new(ebpf: &Ebpf, name: &'static str, what: &'static str) -> Result<Self, DatapathError> {
        let array = MappedArray::new(name, map(ebpf, name)?)?;
        let pool = Pool::new(array.len(), REST);
        Ok(Self { what, array, pool })
    }

    fn put(&mut self, entries: &[T], clock: Instant) -> Result<Range<u32>, DatapathError> {
        let range = self
            .pool
            .take(entries.len(), clock.elapsed())
            .ok_or(DatapathError::Full { what: self.what, need: entries.len() })?;
        for (index, entry) in range.clone().zip(entries) {
            self.array.write(index, *entry);
        }
        Ok(range)
    }
}

/// A table's parts, and how many BIFT-ids name it.
#[derive(Default)]
struct Parts {
    ids: usize,
    rows: Range<u32>,
    fbms: Range<u32>,
    members: Range<u32>,
    shares: Range<u32>,
    group: Option<FanOutGroup>,
}

/// The tables in force. Everything takes a clock instead of a time: an installation may take seconds, and what it frees
/// rests from then on.
pub(super) struct Tables {
    bifts: MappedArray<Live>,
    tables: Store<Table>,
    rows: Store<RowChunk>,
    fbms: Store<FbmChunk>,
    members: Store<Member>,
    shares: Store<Share>,
    parts: HashMap<u32, Parts>,
    ids: BTreeMap<BiftId, u32>,
}

impl Tables {
    pub(super) fn new(ebpf: &Ebpf) -> Result<Self, DatapathError> {
        Ok(Self {
            bifts: MappedArray::new("BIFTS", map(ebpf, "BIFTS")?)?,
            tables: Store::new(ebpf, "TABLES", "tables")?,
            rows: Store::new(ebpf, "ROWS", "rows (in chunks of 64)")?,
            fbms: Store::new(ebpf, "FBMS", "F-BMs (in chunks of 256 bits)")?,
            members: Store::new(ebpf, "MEMBERS", "members")?,
            shares: Store::new(ebpf, "SHARES", "egress devices of tables")?,
            parts: HashMap::new(),
            ids: BTreeMap::new(),
        })
    }

    pub(super) fn install(
        &mut self,
        fan_outs: &mut FanOuts,
        ids: &[BiftId],
        bift: &Bift,
        places: &[MemberPlace],
        local: Option<u32>,
        clock: Instant,
    ) -> Result<(), DatapathError> {
        let mut parts = Parts { ids: ids.len(), ..Parts::default() };
        let place = match self.write(fan_outs, bift, places, local, clock, &mut parts) {
            Ok(place) => place,
            Err(error) => {
                self.give(fan_outs, parts, clock);
                return Err(error);
            }
        };
        self.parts.insert(place, parts);
        for &id in ids {
            self.bifts.publish(id.get(), Live::at(place));
            if let Some(old) = self.ids.insert(id, place) {
                self.release(fan_outs, old, clock);
            }
        }
        Ok(())
    }

    /// Writes everything of a table where nobody reads yet; what was taken stands in `parts`, also after an error.
    fn write(
        &mut self,
        fan_outs: &mut FanOuts,
        bift: &Bift,
        places: &[MemberPlace],
        local: Option<u32>,
        clock: Instant,
        parts: &mut Parts,
    ) -> Result<u32, DatapathError> {
        let devices: Vec<_> = places.iter().map(|place| place.ifindex).collect();
        let layout = layout(&devices, local)?;
        let fanout = fan_outs.acquire(&layout.group, clock.elapsed())?;
        parts.group = Some(layout.group.clone());
        parts.rows = self.rows.put(&bift.row_chunks(), clock)?;
        parts.fbms = self.fbms.put(&bift.fbm_chunks(), clock)?;
        let members: Vec<_> = std::iter::once(Member::default())
            .chain(places.iter().map(|place| Member { neighbor: place.neighbor, zero: 0 }))
            .collect();
        parts.members = self.members.put(&members, clock)?;
        parts.shares = self.shares.put(&layout.shares, clock)?;
        let places = Places {
            rows: parts.rows.start,
            fbms: parts.fbms.start,
            members: parts.members.start,
            shares: parts.shares.start,
            fanout,
        };
        Ok(self.tables.put(&[bift.table(&layout, &places)], clock)?.start)
    }

    pub(super) fn remove(&mut self, fan_outs: &mut FanOuts, id: BiftId, clock: Instant) {
        if let Some(place) = self.ids.remove(&id) {
            self.bifts.publish(id.get(), Live::NONE);
            self.release(fan_outs, place, clock);
        }
    }

    pub(super) fn ids(&self) -> Vec<BiftId> {
        self.ids.keys().copied().collect()
    }

    /// One BIFT-id less names the table at `place`.
    fn release(&mut self, fan_outs: &mut FanOuts, place: u32, clock: Instant) {
        let Some(parts) = self.parts.get_mut(&place) else { return };
        parts.ids -= 1;
        if parts.ids == 0
            && let Some(parts) = self.parts.remove(&place)
        {
            self.tables.pool.give(place..place + 1, clock.elapsed());
            self.give(fan_outs, parts, clock);
        }
    }

    fn give(&mut self, fan_outs: &mut FanOuts, parts: Parts, clock: Instant) {
        self.rows.pool.give(parts.rows, clock.elapsed());
        self.fbms.pool.give(parts.fbms, clock.elapsed());
        self.members.pool.give(parts.members, clock.elapsed());
        self.shares.pool.give(parts.shares, clock.elapsed());
        if let Some(group) = parts.group {
            fan_outs.release(&group);
        }
    }
}
