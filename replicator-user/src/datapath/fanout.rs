//! Fan-out maps: made before a table needs them, shared by the tables that need the same.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{DevMap, Map, MapData, MapError, xdp::XdpMapError},
    programs::ProgramFd,
};
use aya_obj::generated::bpf_cmd;

use super::{DatapathError, REST, map, pool::Pool};
use crate::bift::FanOutGroup;

const NAME: &str = "FANOUTS";

/// Maps put in place by one call. Each call costs an RCU grace period, 8 to 10 ms; each map is an open file until then.
const BATCH: usize = 256;

/// A group's first index and the tables that use it.
struct Group {
    first: u32,
    users: usize,
}

pub(super) struct FanOuts {
    /// The outer map.
    outer: MapData,
    rewrite: ProgramFd,
    pool: Pool,
    groups: HashMap<FanOutGroup, Group>,
}

impl FanOuts {
    pub(super) fn new(ebpf: &mut Ebpf, rewrite: ProgramFd) -> Result<Self, DatapathError> {
        let Map::ArrayOfMaps(data) = map(ebpf, NAME)? else {
            return Err(DatapathError::MapKind { name: NAME, expected: "array of maps" });
        };
        let error = |source| DatapathError::Map { name: NAME, source };
        let entries = data.info().map_err(error)?.max_entries() as usize;
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(DatapathError::FanOut)?;
        let outer = MapData::from_fd(fd).map_err(error)?;
        Ok(Self { outer, rewrite, pool: Pool::new(entries, REST), groups: HashMap::new() })
    }

    /// Index of the group's first map. The maps are in place when this returns.
    pub(super) fn acquire(&mut self, wanted: &FanOutGroup, now: Duration) -> Result<u32, DatapathError> {
        if let Some(group) = self.groups.get_mut(wanted) {
            group.users += 1;
            return Ok(group.first);
        }
        let indices = wanted.len() as usize;
        let range = match self.pool.take(indices, now) {
            Some(range) => range,
            None => {
                self.forget_unused(now);
                return Err(DatapathError::Full { what: "fan-out maps", need: indices });
            }
        };
        if let Err(error) = self.make([(range.start, wanted)]) {
            self.pool.give(range, now);
            return Err(error);
        }
        self.groups.insert(wanted.clone(), Group { first: range.start, users: 1 });
        Ok(range.start)
    }

    /// A table of an earlier daemon's uses the group, whose maps begin at `first`. False where that cannot be.
    pub(super) fn claim(&mut self, first: u32, wanted: &FanOutGroup) -> bool {
        if let Some(group) = self.groups.get_mut(wanted) {
            group.users += 1;
            return group.first == first;
        }
        self.groups.insert(wanted.clone(), Group { first, users: 1 });
        self.pool.claim(first, wanted.len() as usize).is_some()
    }

    /// Makes all maps again: with this load's `rewrite`, and with devices that came back while no daemon ran. What an
    /// earlier daemon left at other indices goes: it would keep that one's `rewrite` loaded.
    pub(super) fn remake(&self) -> Result<(), DatapathError> {
        let groups = || self.groups.iter().map(|(group, state)| (state.first, group));
        self.make(groups())?;
        let made: HashSet<_> = wanted(groups()).map(|(index, _)| index).collect();
        let outer = self.outer.fd().as_fd().as_raw_fd();
        let mut left = indices(outer, self.pool.len()).map_err(DatapathError::FanOut)?;
        left.retain(|index| !made.contains(index));
        let empty = create(1).map_err(|source| DatapathError::Map { name: NAME, source })?;
        let fds = vec![empty.fd().as_fd().as_raw_fd(); left.len()];
        update_batch(outer, &left, &fds).map_err(DatapathError::FanOut)
    }

    /// Index of the group's first map, where it is there.
    pub(super) fn first(&self, group: &FanOutGroup) -> Option<u32> {
        self.groups.get(group).map(|group| group.first)
    }

    /// The share of the indices that is taken or at rest. What no table uses is there for the next.
    pub(super) fn pressure(&self, now: Duration) -> f64 {
        let unused = self.groups.iter().filter(|(_, state)| state.users == 0).map(|(group, _)| group.len());
        f64::from(self.pool.occupied(now) - unused.sum::<u32>()) / f64::from(self.pool.len())
    }

    /// A device that was gone is back under its number. The kernel emptied its entries when it went
    /// (`dev_map_notification` in kernel/bpf/devmap.c): the maps with it are made again.
    pub(super) fn refill(&self, ifindex: u32) -> Result<(), DatapathError> {
        let on_it = |group: &FanOutGroup| {
            group.local == Some(ifindex) || group.devices.iter().any(|&(device, _)| device == ifindex)
        };
        self.make(
            self.groups.iter().filter(|(group, _)| on_it(group)).map(|(group, state)| (state.first, group)),
        )
    }

    /// A table less uses the group. Its maps stay for the next one.
    pub(super) fn release(&mut self, group: &FanOutGroup) {
        if let Some(group) = self.groups.get_mut(group) {
            group.users -= 1;
        }
    }

    fn forget_unused(&mut self, now: Duration) {
        let pool = &mut self.pool;
        self.groups.retain(|group, state| {
            if state.users == 0 {
                pool.give(state.first..state.first + group.len(), now);
            }
            state.users > 0
        });
    }

    /// Makes the maps of groups, each with its first index.
    fn make<'g>(
        &self,
        groups: impl IntoIterator<Item = (u32, &'g FanOutGroup)>,
    ) -> Result<(), DatapathError> {
        let wanted: Vec<_> = wanted(groups).collect();
        for batch in wanted.chunks(BATCH) {
            let maps = batch.iter().map(|(_, copies)| self.fan_out(copies)).collect::<Result<Vec<_>, _>>()?;
            let indices: Vec<u32> = batch.iter().map(|(index, _)| *index).collect();
            let fds: Vec<RawFd> = maps.iter().map(AsRawFd::as_raw_fd).collect();
            update_batch(self.outer.fd().as_fd().as_raw_fd(), &indices, &fds)
                .map_err(DatapathError::FanOut)?;
        }
        Ok(())
    }

    /// A map with as many entries as copies, since a broadcast walks all entries there are.
    fn fan_out(&self, copies: &[(u32, u32)]) -> Result<OwnedFd, DatapathError> {
        let map_error = |source| DatapathError::Map { name: NAME, source };
        let data = create(copies.iter().map(|(_, copies)| copies).sum()).map_err(map_error)?;
        let fd = data.fd().as_fd().try_clone_to_owned().map_err(DatapathError::FanOut)?;
        let mut map = DevMap::try_from(Map::DevMap(data)).map_err(map_error)?;
        let devices = copies.iter().flat_map(|&(ifindex, copies)| (0..copies).map(move |_| ifindex));
        for (index, ifindex) in (0..).zip(devices) {
            match map.set(index, ifindex, Some(&self.rewrite), 0) {
                // The device is gone. Its copies find no entry and are counted as never run; see `refill`.
                Err(XdpMapError::MapError(MapError::SyscallError(error)))
                    if error.io_error.raw_os_error() == Some(libc::EINVAL) => {}
                other => other.map_err(|error| DatapathError::FanOut(io::Error::other(error)))?,
            }
        }
        Ok(fd)
    }
}

/// Index and copies of each map of groups that is to be made.
fn wanted<'g>(
    groups: impl IntoIterator<Item = (u32, &'g FanOutGroup)>,
) -> impl Iterator<Item = (u32, Vec<(u32, u32)>)> {
    let maps = groups.into_iter().flat_map(|(first, group)| (first..).zip(group.maps()));
    maps.filter(|(_, copies)| !copies.is_empty())
}

fn create(entries: u32) -> Result<MapData, MapError> {
    let definition = aya_obj::Map::new_from_params(
        aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_DEVMAP as u32,
        size_of::<u32>() as u32,
        size_of::<aya_obj::generated::bpf_devmap_val>() as u32,
        entries,
        0,
    );
    MapData::create(definition, "fan_out", None)
}

/// `union bpf_attr` of the batch commands.
#[derive(Default)]
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Puts maps into an outer map, all for one RCU grace period.
fn update_batch(outer: RawFd, indices: &[u32], maps: &[RawFd]) -> io::Result<()> {
    debug_assert_eq!(indices.len(), maps.len());
    if indices.is_empty() {
        return Ok(());
    }
    let mut attributes = BatchAttributes {
        keys: indices.as_ptr() as u64,
        values: maps.as_ptr() as u64,
        count: indices.len() as u32,
        map_fd: outer as u32,
        ..BatchAttributes::default()
    };
    // SAFETY: keys and values are as many as `count` says, and the kernel only reads them.
    unsafe { batch(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attributes) }
}

/// The indices of an outer map of so many entries that have a map.
fn indices(outer: RawFd, entries: u32) -> io::Result<Vec<u32>> {
    let (mut indices, mut ids) = (vec![0_u32; entries as usize], vec![0_u32; entries as usize]);
    let mut last = 0_u32;
    let mut attributes = BatchAttributes {
        out_batch: (&raw mut last) as u64,
        keys: indices.as_mut_ptr() as u64,
        values: ids.as_mut_ptr() as u64,
        count: entries,
        map_fd: outer as u32,
        ..BatchAttributes::default()
    };
    // SAFETY: there is room for as many keys and values as `count` says, of four bytes each, and for one key more.
    match unsafe { batch(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attributes) } {
        // The end was reached before there were as many as there is room for.
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
        _ => indices.truncate(attributes.count as usize),
    }
    Ok(indices)
}

/// A batch command of bpf(2).
///
/// # Safety
/// The attributes' addresses lead to as much as the command reads and writes.
unsafe fn batch(command: bpf_cmd, attributes: &mut BatchAttributes) -> io::Result<()> {
    let size = size_of::<BatchAttributes>();
    // SAFETY: the attributes are as the command wants them and outlive it; the rest is the caller's.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
