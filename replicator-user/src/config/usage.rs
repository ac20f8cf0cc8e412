//! What the tables take of the kernel's maps, and whether they fit.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use replicator_common::limits::{
    FANOUT_MAPS, FBM_CHUNKS, MAX_TABLES, MEMBER_ENTRIES, ROW_CHUNKS, SHARE_ENTRIES,
};

use super::{Config, InterfaceName, reader::Section};
use crate::bift::{Birt, FanOutGroup, Layout, LayoutError, NeighborId, layout};

/// What the tables take, in entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// BIFT-ids.
    pub bift_ids: usize,
    /// Chunks of rows.
    pub row_chunks: usize,
    /// Chunks of F-BMs.
    pub fbm_chunks: usize,
    /// Members.
    pub members: usize,
    /// Shares.
    pub shares: usize,
    /// Fan-out maps.
    pub fanout_maps: usize,
    /// Memory that the kernel takes for those maps.
    pub fanout_bytes: usize,
}

impl Usage {
    /// Each figure with what it counts and what there is room for.
    pub fn limits(&self) -> [(&'static str, usize, usize); 6] {
        [
            ("BIFT-ids", self.bift_ids, MAX_TABLES),
            ("row chunks", self.row_chunks, ROW_CHUNKS),
            ("F-BM chunks", self.fbm_chunks, FBM_CHUNKS),
            ("members", self.members, MEMBER_ENTRIES),
            ("shares", self.shares, SHARE_ENTRIES),
            ("fan-out maps", self.fanout_maps, FANOUT_MAPS),
        ]
    }
}

/// The egress devices of a configuration, known by their names alone. The numbers stand for interface indices. All
/// neighbors whose device only their route tells are taken to be behind one.
pub(crate) struct Devices<'c> {
    config: &'c Config,
    names: Vec<&'c InterfaceName>,
}

impl<'c> Devices<'c> {
    /// Stands for the device of this host's stack.
    pub(crate) const ORIGIN: u32 = 0;
    /// Stands for the device that routes lead to.
    pub(crate) const BY_ROUTE: u32 = 1;

    pub(crate) fn new(config: &'c Config) -> Self {
        let names: BTreeSet<_> =
            config.neighbors.iter().filter_map(|neighbor| neighbor.interface()).collect();
        Self { config, names: names.into_iter().collect() }
    }

    /// The name of a device, `None` for [`Self::ORIGIN`] and [`Self::BY_ROUTE`].
    pub(crate) fn name(&self, device: u32) -> Option<&'c InterfaceName> {
        self.names.get((device as usize).checked_sub(2)?).copied()
    }

    fn of(&self, id: NeighborId) -> Option<u32> {
        let name = self.config.neighbor(id)?.interface()?;
        Some(self.names.binary_search(&name).ok()? as u32 + 2)
    }

    /// Whether the configuration names the device of every member.
    pub(crate) fn are_named(&self, birt: &Birt) -> bool {
        birt.neighbors().iter().all(|&id| self.of(id).is_some())
    }

    pub(crate) fn layout(&self, birt: &Birt) -> Result<Layout, LayoutError> {
        let devices: Vec<_> =
            birt.neighbors().iter().map(|&id| self.of(id).unwrap_or(Self::BY_ROUTE)).collect();
        layout(&devices, birt.has_local().then_some(Self::ORIGIN))
    }
}

/// Maps of a group that are made, and the memory they take: `dev_map_mem_usage` in kernel/bpf/devmap.c, and for each
/// entry a `bpf_dtab_netdev`. Measured on 6.18 (x86-64).
pub(crate) fn fanout_cost(group: &FanOutGroup) -> (usize, usize) {
    const MAP_BYTES: usize = 344;
    const ENTRY_BYTES: usize = 8 + 64;
    let bytes = |map: Vec<(u32, u32)>| {
        let entries: u32 = map.iter().map(|(_, copies)| copies).sum();
        MAP_BYTES + entries as usize * ENTRY_BYTES
    };
    group.maps().filter(|map| !map.is_empty()).fold((0, 0), |(maps, sum), map| (maps + 1, sum + bytes(map)))
}

impl Usage {
    /// What these tables take. Tables whose copies cannot be shared out count without fan-out maps.
    pub fn of(config: &Config) -> Self {
        let devices = Devices::new(config);
        let mut usage = Self::default();
        let mut groups = HashSet::new();
        // Layers that share rows share the answer.
        let mut layouts = HashMap::new();
        for table in &config.tables {
            let size = table.birt.size();
            let layout =
                layouts.entry(Arc::as_ptr(&table.birt)).or_insert_with(|| devices.layout(&table.birt));
            usage.bift_ids += table.bift_ids.len();
            usage.row_chunks += size.rows;
            usage.fbm_chunks += size.fbms;
            usage.members += size.members;
            if let Ok(layout) = layout {
                usage.shares += layout.shares.len();
                if !groups.contains(&layout.group) {
                    let (maps, bytes) = fanout_cost(&layout.group);
                    usage.fanout_maps += maps;
                    usage.fanout_bytes += bytes;
                    groups.insert(layout.group.clone());
                }
            }
        }
        usage
    }
}

/// Faults of the tables together: each has none of its own.
pub(super) fn check(section: &Section<'_>, config: &Config) {
    for (what, used, limit) in Usage::of(config).limits().into_iter().filter(|(_, used, limit)| used > limit)
    {
        section.fault(format!(
            "the tables take {used} {what} and {limit} fit; use fewer tables, variants or members"
        ));
    }
}
