//! Where each table lies in the pools, and which BIFT-ids name it.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    time::Duration,
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

    fn put(&mut self, entries: &[T], now: Duration) -> Result<Range<u32>, DatapathError> {
        let range = self
            .pool
            .take(entries.len(), now)
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

/// The tables in force.
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
        now: Duration,
    ) -> Result<(), DatapathError> {
        let mut parts = Parts { ids: ids.len(), ..Parts::default() };
        let place = match self.write(fan_outs, bift, places, local, now, &mut parts) {
            Ok(place) => place,
            Err(error) => {
                self.give(fan_outs, parts, now);
                return Err(error);
            }
        };
        self.parts.insert(place, parts);
        for &id in ids {
            self.bifts.publish(id.get(), Live::at(place));
            if let Some(old) = self.ids.insert(id, place) {
                self.release(fan_outs, old, now);
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
        now: Duration,
        parts: &mut Parts,
    ) -> Result<u32, DatapathError> {
        let devices: Vec<_> = places.iter().map(|place| place.ifindex).collect();
        let layout = layout(&devices, local)?;
        let fanout = fan_outs.acquire(&layout.group, now)?;
        parts.group = Some(layout.group.clone());
        parts.rows = self.rows.put(&bift.row_chunks(), now)?;
        parts.fbms = self.fbms.put(&bift.fbm_chunks(), now)?;
        let members: Vec<_> = std::iter::once(Member::default())
            .chain(places.iter().map(|place| Member { neighbor: place.neighbor, zero: 0 }))
            .collect();
        parts.members = self.members.put(&members, now)?;
        parts.shares = self.shares.put(&layout.shares, now)?;
        let places = Places {
            rows: parts.rows.start,
            fbms: parts.fbms.start,
            members: parts.members.start,
            shares: parts.shares.start,
            fanout,
        };
        Ok(self.tables.put(&[bift.table(&layout, &places)], now)?.start)
    }

    pub(super) fn remove(&mut self, fan_outs: &mut FanOuts, id: BiftId, now: Duration) {
        if let Some(place) = self.ids.remove(&id) {
            self.bifts.publish(id.get(), Live::NONE);
            self.release(fan_outs, place, now);
        }
    }

    pub(super) fn ids(&self) -> Vec<BiftId> {
        self.ids.keys().copied().collect()
    }

    /// One BIFT-id less names the table at `place`.
    fn release(&mut self, fan_outs: &mut FanOuts, place: u32, now: Duration) {
        let Some(parts) = self.parts.get_mut(&place) else { return };
        parts.ids -= 1;
        if parts.ids == 0
            && let Some(parts) = self.parts.remove(&place)
        {
            self.tables.pool.give(place..place + 1, now);
            self.give(fan_outs, parts, now);
        }
    }

    fn give(&mut self, fan_outs: &mut FanOuts, parts: Parts, now: Duration) {
        self.rows.pool.give(parts.rows, now);
        self.fbms.pool.give(parts.fbms, now);
        self.members.pool.give(parts.members, now);
        self.shares.pool.give(parts.shares, now);
        if let Some(group) = parts.group {
            fan_outs.release(&group);
        }
    }
}
