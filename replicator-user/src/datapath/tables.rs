//! Where each table lies in the pools, and which BIFT-ids name it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    time::{Duration, Instant},
};

use aya::Ebpf;
use replicator_common::{
    bier::BiftId,
    limits::{MAX_DEVICES, MAX_MEMBERS, MAX_TABLES, MAX_VARIANTS, MAX_WORDS},
    table::{FbmChunk, LOCAL_MEMBER, Live, Member, RowChunk, Share, Table},
};

use super::{DatapathError, REST, fanout::FanOuts, map, mapped::MappedArray, pool::Pool};
use crate::bift::{Bift, FanOutGroup, Layout, LayoutError, Places, layout};

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

impl<T: aya::Pod + PartialEq> Store<T> {
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

    /// Whether these are the entries in the range.
    fn holds(&self, range: &Range<u32>, entries: &[T]) -> bool {
        range.len() == entries.len()
            && range.clone().zip(entries).all(|(index, entry)| self.array.get(index) == Some(*entry))
    }
}

/// A table's parts, and how many BIFT-ids name it.
#[derive(Debug, Default)]
struct Parts {
    ids: usize,
    rows: Range<u32>,
    fbms: Range<u32>,
    members: Range<u32>,
    shares: Range<u32>,
    group: Option<FanOutGroup>,
}

/// A table that is written and that no BIFT-id names yet. It keeps its room until it is published or discarded.
#[must_use = "its room is taken until it is published or discarded"]
#[derive(Debug)]
pub struct Prepared {
    place: u32,
    parts: Parts,
}

/// Why what an earlier daemon left cannot be gone on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the table of BIFT-id {:#07x} is damaged: {what}", .id.get())]
pub(super) struct Damage {
    id: BiftId,
    what: &'static str,
}

/// Entries that a table takes of each pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    rows: usize,
    fbms: usize,
    members: usize,
    shares: usize,
}

impl Sizes {
    /// Those of a table's entry; `None` where no table has such numbers.
    fn of(table: &Table) -> Option<Self> {
        let variants = usize::from(table.variant_mask) + 1;
        let (words, members) = (usize::from(table.words), usize::from(table.member_count));
        let known = variants.is_power_of_two()
            && variants <= MAX_VARIANTS
            && words.is_power_of_two()
            && words <= MAX_WORDS
            && (1..=MAX_MEMBERS).contains(&members)
            && usize::from(table.shares_count) <= MAX_DEVICES;
        known.then_some(Self {
            rows: variants * words,
            fbms: variants * (members + 1) * table.chunks() as usize,
            members,
            shares: table.shares_count.into(),
        })
    }
}

/// What a table's entries should be, but for their places.
struct Contents<'b> {
    bift: &'b Bift,
    layout: Layout,
    rows: Vec<RowChunk>,
    fbms: Vec<FbmChunk>,
    members: Vec<Member>,
}

impl<'b> Contents<'b> {
    fn new(bift: &'b Bift, places: &[MemberPlace], local: Option<u32>) -> Result<Self, LayoutError> {
        let devices: Vec<_> = places.iter().map(|place| place.ifindex).collect();
        let members = places.iter().map(|place| Member { neighbor: place.neighbor, ..Member::default() });
        Ok(Self {
            bift,
            layout: layout(&devices, local)?,
            rows: bift.row_chunks(),
            fbms: bift.fbm_chunks(),
            members: std::iter::once(Member::default()).chain(members).collect(),
        })
    }

    fn table(&self, parts: &Parts, fanout: u32) -> Table {
        let places = Places {
            rows: parts.rows.start,
            fbms: parts.fbms.start,
            members: parts.members.start,
            shares: parts.shares.start,
            fanout,
        };
        self.bift.table(&self.layout, &places)
    }
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

    /// Finds what an earlier daemon put in force: everything follows from the tables' entries.
    pub(super) fn adopt(&mut self, fan_outs: &mut FanOuts) -> Result<(), Damage> {
        let ids = (0..self.bifts.len() as u32).filter_map(BiftId::new);
        let named = ids.filter_map(|id| Some((id, self.bifts.live(id.get()).place()?)));
        let named: Vec<_> = named.collect();
        for (id, place) in named {
            if !self.parts.contains_key(&place) {
                let parts = self.claim(fan_outs, place).map_err(|what| Damage { id, what })?;
                self.parts.insert(place, parts);
            }
            self.parts.entry(place).and_modify(|parts| parts.ids += 1);
            self.ids.insert(id, place);
        }
        Ok(())
    }

    /// Takes the room of the table at `place`, or says what is wrong with it.
    fn claim(&mut self, fan_outs: &mut FanOuts, place: u32) -> Result<Parts, &'static str> {
        self.tables.pool.claim(place, 1).ok_or("it has no place")?;
        let table = self.tables.array.read(place);
        let sizes = Sizes::of(&table).ok_or("its numbers are no table's")?;
        let taken = "its place is beyond the pool or another's";
        let shares = self.shares.pool.claim(table.shares, sizes.shares).ok_or(taken)?;
        let entries: Vec<_> = shares.clone().map(|index| self.shares.array.read(index)).collect();
        let group = FanOutGroup::of(table.fanout_rule, &entries, table.remote_shares.into());
        let group = group.ok_or("its egress devices are no table's")?;
        if !fan_outs.claim(table.fanout, &group) {
            return Err("its fan-out maps are another's");
        }
        Ok(Parts {
            ids: 0,
            rows: self.rows.pool.claim(table.rows, sizes.rows).ok_or(taken)?,
            fbms: self.fbms.pool.claim(table.fbms, sizes.fbms).ok_or(taken)?,
            members: self.members.pool.claim(table.members, sizes.members).ok_or(taken)?,
            shares,
            group: Some(group),
        })
    }

    /// Writes a table where nobody reads yet.
    pub(super) fn prepare(
        &mut self,
        fan_outs: &mut FanOuts,
        bift: &Bift,
        places: &[MemberPlace],
        local: Option<u32>,
        clock: Instant,
    ) -> Result<Prepared, DatapathError> {
        self.write(fan_outs, &Contents::new(bift, places, local)?, clock)
    }

    fn write(
        &mut self,
        fan_outs: &mut FanOuts,
        contents: &Contents<'_>,
        clock: Instant,
    ) -> Result<Prepared, DatapathError> {
        let mut parts = Parts::default();
        match self.write_parts(fan_outs, contents, clock, &mut parts) {
            Ok(place) => Ok(Prepared { place, parts }),
            Err(error) => {
                self.take_back(fan_outs, parts);
                Err(error)
            }
        }
    }

    /// What was taken stands in `parts`, also after an error.
    fn write_parts(
        &mut self,
        fan_outs: &mut FanOuts,
        contents: &Contents<'_>,
        clock: Instant,
        parts: &mut Parts,
    ) -> Result<u32, DatapathError> {
        let fanout = fan_outs.acquire(&contents.layout.group, clock.elapsed())?;
        parts.group = Some(contents.layout.group.clone());
        parts.rows = self.rows.put(&contents.rows, clock)?;
        parts.fbms = self.fbms.put(&contents.fbms, clock)?;
        parts.members = self.members.put(&contents.members, clock)?;
        parts.shares = self.shares.put(&contents.layout.shares, clock)?;
        Ok(self.tables.put(&[contents.table(parts, fanout)], clock)?.start)
    }

    /// Has the BIFT-ids name a table, in place of those they name now.
    pub(super) fn publish(
        &mut self,
        fan_outs: &mut FanOuts,
        prepared: Prepared,
        ids: &[BiftId],
        clock: Instant,
    ) {
        if ids.is_empty() {
            return self.discard(fan_outs, prepared);
        }
        let Prepared { place, mut parts } = prepared;
        parts.ids = ids.len();
        self.parts.insert(place, parts);
        for &id in ids {
            self.bifts.publish(id.get(), Live::at(place));
            if let Some(old) = self.ids.insert(id, place) {
                self.release(fan_outs, old, clock);
            }
        }
    }

    /// Gives back the room of a table that nobody ever read.
    pub(super) fn discard(&mut self, fan_outs: &mut FanOuts, prepared: Prepared) {
        self.tables.pool.take_back(prepared.place..prepared.place + 1);
        self.take_back(fan_outs, prepared.parts);
    }

    /// Has the BIFT-ids name this table, unless they do. Returns whether anything had to be written.
    pub(super) fn install(
        &mut self,
        fan_outs: &mut FanOuts,
        ids: &[BiftId],
        bift: &Bift,
        places: &[MemberPlace],
        local: Option<u32>,
        clock: Instant,
    ) -> Result<bool, DatapathError> {
        let contents = Contents::new(bift, places, local)?;
        if self.holds(fan_outs, ids, &contents) {
            return Ok(false);
        }
        let prepared = self.write(fan_outs, &contents, clock)?;
        self.publish(fan_outs, prepared, ids, clock);
        Ok(true)
    }

    /// Whether the ids all name one table that is, entry for entry in the kernel's memory, as it should be.
    fn holds(&self, fan_outs: &FanOuts, ids: &[BiftId], contents: &Contents<'_>) -> bool {
        let mut places = ids.iter().map(|id| self.ids.get(id));
        let Some(Some(&place)) = places.next() else { return false };
        let group = &contents.layout.group;
        let (Some(parts), Some(fanout)) = (self.parts.get(&place), fan_outs.first(group)) else {
            return false;
        };
        places.all(|other| other == Some(&place))
            && ids.iter().all(|id| self.bifts.live(id.get()) == Live::at(place))
            && parts.group.as_ref() == Some(group)
            && self.tables.holds(&(place..place + 1), &[contents.table(parts, fanout)])
            && self.rows.holds(&parts.rows, &contents.rows)
            && self.fbms.holds(&parts.fbms, &contents.fbms)
            && self.members.holds(&parts.members, &contents.members)
            && self.shares.holds(&parts.shares, &contents.layout.shares)
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

    /// Ids of the neighbors that tables in force have as members.
    pub(super) fn neighbors(&self) -> BTreeSet<u32> {
        let remote = |parts: &Parts| parts.members.clone().skip(usize::from(LOCAL_MEMBER) + 1);
        self.parts.values().flat_map(remote).map(|index| self.members.array.read(index).neighbor).collect()
    }

    /// The share that is taken or at rest of what is fullest.
    pub(super) fn pressure(&self, now: Duration) -> f64 {
        let share = |pool: &Pool| f64::from(pool.occupied(now)) / f64::from(pool.len());
        let pools =
            [&self.tables.pool, &self.rows.pool, &self.fbms.pool, &self.members.pool, &self.shares.pool];
        pools.into_iter().map(share).fold(self.ids.len() as f64 / MAX_TABLES as f64, f64::max)
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

    /// Gives back parts that nobody ever read.
    fn take_back(&mut self, fan_outs: &mut FanOuts, parts: Parts) {
        self.rows.pool.take_back(parts.rows);
        self.fbms.pool.take_back(parts.fbms);
        self.members.pool.take_back(parts.members);
        self.shares.pool.take_back(parts.shares);
        if let Some(group) = parts.group {
            fan_outs.release(&group);
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

#[cfg(test)]
mod tests {
    use replicator_common::bier::BitStringLength;

    use super::*;
    use crate::bift::{Birt, Destination, NeighborId};

    /// A table whose every bit is at one of `nodes` nodes, and the first here.
    fn bift(length: BitStringLength, nodes: usize, variants: usize) -> Bift {
        let to = |bit| Destination::Neighbor(NeighborId::remote(bit % nodes).unwrap());
        let mut rows: Vec<_> = (0..length.bits()).map(|bit| vec![to(bit), to(bit + 1)]).collect();
        rows[0] = vec![Destination::Local];
        Birt::new(length, rows, Some(variants)).unwrap().compile()
    }

    #[test]
    fn a_tables_entry_tells_how_much_room_it_has() {
        for length in BitStringLength::ALL {
            for (nodes, variants) in [(2, 1), (5, 2), (63, 16)] {
                let bift = bift(length, nodes, variants);
                let places: Vec<_> = (0..nodes as u32)
                    .map(|node| MemberPlace { neighbor: node, ifindex: 7 + node % 2 })
                    .collect();
                let contents = Contents::new(&bift, &places, Some(3)).unwrap();
                let sizes = Sizes {
                    rows: contents.rows.len(),
                    fbms: contents.fbms.len(),
                    members: contents.members.len(),
                    shares: contents.layout.shares.len(),
                };
                assert_eq!(Sizes::of(&contents.table(&Parts::default(), 0)), Some(sizes));
            }
        }
    }

    #[test]
    fn numbers_of_no_table_are_seen() {
        let table = Table { words: 4, member_count: 3, variant_mask: 1, shares_count: 2, ..Table::default() };
        assert_eq!(Sizes::of(&table), Some(Sizes { rows: 8, fbms: 8, members: 3, shares: 2 }));
        let wrong = [
            Table { words: 0, ..table },
            Table { words: 3, ..table },
            Table { words: 32, ..table },
            Table { member_count: 0, ..table },
            Table { member_count: 256, ..table },
            Table { variant_mask: 2, ..table },
            Table { variant_mask: 255, ..table },
            Table { shares_count: 17, ..table },
        ];
        for table in wrong {
            assert_eq!(Sizes::of(&table), None, "{table:?}");
        }
    }
}
