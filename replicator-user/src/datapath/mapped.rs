//! Arrays of the kernel in this process's memory (`BPF_F_MMAPABLE`, Linux 5.5): an entry is written by a store, without
//! a system call, and a word is swapped by one atomic store.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering},
};

use aya::{
    Pod,
    maps::{Map, MapData},
};
use replicator_common::table::Live;

use super::DatapathError;

/// An array map, mapped.
pub(super) struct MappedArray<T> {
    base: NonNull<T>,
    entries: usize,
    value: PhantomData<T>,
}

// SAFETY: the memory is the kernel's and stays mapped while the value lives; which thread writes is `&mut self`'s matter.
unsafe impl<T: Pod> Send for MappedArray<T> {}

impl<T: Pod> MappedArray<T> {
    /// Maps the array.
    ///
    /// # Errors
    /// Where the map is no mappable array of `T`.
    pub(super) fn new(name: &'static str, map: &Map) -> Result<Self, DatapathError> {
        const { assert!(size_of::<T>().is_multiple_of(8), "the kernel pads elements to 8 bytes") };
        let Map::Array(data) = map else {
            return Err(DatapathError::MapKind { name, expected: "array" });
        };
        let info = data.info().map_err(|source| DatapathError::Map { name, source })?;
        if info.value_size() as usize != size_of::<T>() {
            return Err(DatapathError::Layout { name });
        }
        let entries = info.max_entries() as usize;
        let base = Self::map(data, entries).map_err(|source| DatapathError::Mmap { name, source })?;
        Ok(Self { base, entries, value: PhantomData })
    }

    fn map(data: &MapData, entries: usize) -> io::Result<NonNull<T>> {
        // SAFETY: a new mapping of a valid descriptor; nothing of this process is replaced.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                entries * size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                data.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))
    }

    /// Entries.
    pub(super) const fn len(&self) -> usize {
        self.entries
    }

    fn at(&self, index: u32) -> NonNull<T> {
        assert!((index as usize) < self.entries, "{index} is beyond {} entries", self.entries);
        // SAFETY: the index is within the mapping.
        unsafe { self.base.add(index as usize) }
    }

    /// Writes an entry. Nobody may be reading it: its place is not in force.
    pub(super) fn write(&mut self, index: u32, value: T) {
        // SAFETY: within the mapping, aligned as the kernel aligns elements, plain data.
        unsafe { self.at(index).as_ptr().write_volatile(value) };
    }

    /// Reads an entry.
    pub(super) fn read(&self, index: u32) -> T {
        // SAFETY: as in `write`; every bit pattern is a value.
        unsafe { self.at(index).as_ptr().read_volatile() }
    }

    /// Reads an entry, where there is one at this index.
    pub(super) fn get(&self, index: u32) -> Option<T> {
        ((index as usize) < self.entries).then(|| self.read(index))
    }
}

impl MappedArray<Live> {
    fn word(&self, index: u32) -> &AtomicU64 {
        // SAFETY: `Live` is a transparent `u64`, aligned, within the mapping, and only ever accessed as a word.
        unsafe { AtomicU64::from_ptr(self.at(index).as_ptr().cast()) }
    }

    /// Puts a place in force: whoever sees the word sees what was written to the place before.
    pub(super) fn publish(&mut self, index: u32, live: Live) {
        self.word(index).store(live.word(), Ordering::Release);
    }

    /// What is in force.
    pub(super) fn live(&self, index: u32) -> Live {
        Live::from_word(self.word(index).load(Ordering::Acquire))
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; nothing refers to it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.entries * size_of::<T>()) };
    }
}
