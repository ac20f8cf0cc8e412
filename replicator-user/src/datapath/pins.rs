//! Where maps and links are pinned: `PATH/v<layout>/maps/NAME` and `PATH/v<layout>/links/IFINDEX`. The layout's version
//! is part of the path because the kernel does not compare a pinned map with what a program expects of it.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs, io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::ffi::OsStrExt as _,
    },
    path::{Path, PathBuf},
};

use aya::{
    maps::{Map, MapData},
    pin::PinError,
    programs::links::{FdLink, PinnedLink},
};
use aya_obj::generated::bpf_cmd;
use replicator_common::LAYOUT_VERSION;

use super::{Counters, DatapathError, successor};

/// A place on a BPF file system: the pins of one load in the folder of its layout, and beside it those of loads that it
/// took over from and that are not removed yet.
#[derive(Clone, Debug)]
pub struct Pins {
    parent: PathBuf,
    root: PathBuf,
}

impl Pins {
    /// The pins under `path`, for this layout of the maps.
    pub fn new(path: &Path) -> Self {
        Self { parent: path.into(), root: path.join(format!("v{LAYOUT_VERSION}")) }
    }

    /// Where the pins of this layout are.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Pin of the link on a device. By index: names may hold a `.`, which bpffs refuses.
    pub(super) fn link(&self, ifindex: u32) -> PathBuf {
        link_in(&self.root, ifindex)
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        map_in(&self.root, name)
    }

    /// The folders of other loads: those of other layouts, and those that were set aside.
    fn others(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.parent).into_iter().flatten().flatten();
        let mut others: Vec<_> = entries
            .filter(|entry| entry.file_name().to_str().is_some_and(is_load))
            .map(|entry| entry.path())
            .filter(|path| *path != self.root)
            .collect();
        others.sort_unstable();
        others
    }

    /// The folders of all loads, this layout's first.
    fn loads(&self) -> impl Iterator<Item = PathBuf> {
        Some(self.root.clone()).filter(|root| root.exists()).into_iter().chain(self.others())
    }

    /// The pinned links of a device, this layout's first.
    pub(super) fn links(&self, ifindex: u32) -> Vec<PathBuf> {
        self.loads().map(|load| link_in(&load, ifindex)).filter(|path| path.exists()).collect()
    }

    /// The map of this name of every other load that has one pinned.
    pub(super) fn others_map(&self, name: &str) -> Vec<PathBuf> {
        self.others().iter().map(|load| map_in(load, name)).filter(|path| path.exists()).collect()
    }

    /// Makes the directories, for maps that are not pinned yet. What is there has to make room: a load that is attached
    /// is set aside, to be taken over from like any other; one that is not is nobody's.
    pub(super) fn make_room(&self) -> Result<(), DatapathError> {
        if devices_in(&self.root).is_empty() {
            self.remove_load(&self.root)?;
        } else {
            let mut aside =
                (1..u32::MAX).map(|number| self.parent.join(format!("v{LAYOUT_VERSION}-{number}")));
            if let Some(aside) = aside.find(|path| !path.exists()) {
                self.rename(&self.root, &aside)?;
            }
        }
        for directory in ["links", "maps"] {
            let path = self.root.join(directory);
            fs::create_dir_all(&path).map_err(|source| DatapathError::Pin { path, source })?;
        }
        Ok(())
    }

    /// Removes the other loads' pins. Their devices have to be this load's, or to be forgotten, before.
    pub(super) fn remove_others(&self) -> Result<(), DatapathError> {
        self.others().iter().try_for_each(|load| self.remove_load(load))
    }

    /// Whether there are other loads.
    pub(super) fn has_others(&self) -> bool {
        !self.others().is_empty()
    }

    /// Takes back what a load made that is not attached anywhere: its pins, and its place as the successor of others.
    ///
    /// # Errors
    /// Where bpffs refuses.
    pub fn withdraw(&self) -> Result<(), DatapathError> {
        for path in self.others_map(successor::NAME) {
            successor::clear(&path).map_err(|source| DatapathError::Map { name: successor::NAME, source })?;
        }
        if !devices_in(&self.root).is_empty() {
            return Ok(());
        }
        self.remove_load(&self.root)?;
        match self.others().into_iter().rfind(|load| self.is_aside(load)) {
            Some(aside) => self.rename(&aside, &self.root),
            None => Ok(()),
        }
    }

    /// Whether a load's folder is one of this layout that was set aside.
    fn is_aside(&self, load: &Path) -> bool {
        let name = load.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(&format!("v{LAYOUT_VERSION}-")))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), DatapathError> {
        fs::rename(from, to).map_err(|source| DatapathError::Pin { path: from.into(), source })
    }

    fn remove_load(&self, path: &Path) -> Result<(), DatapathError> {
        match fs::remove_dir_all(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DatapathError::Pin { path: path.into(), source })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn remove(&self, path: &Path) -> Result<(), DatapathError> {
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DatapathError::Pin { path: path.into(), source })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn error(&self, path: &Path, source: PinError) -> DatapathError {
        let source = match source {
            PinError::SyscallError(error) => error.io_error,
            other => io::Error::other(other),
        };
        DatapathError::Pin { path: path.into(), source }
    }

    /// The devices with a pinned link, of whatever load.
    ///
    /// # Errors
    /// [`DatapathError::NotLoaded`] where nothing is pinned.
    pub fn devices(&self) -> Result<Vec<u32>, DatapathError> {
        let mut loads = self.loads().peekable();
        if loads.peek().is_none() {
            return Err(DatapathError::NotLoaded(self.root.clone()));
        }
        let devices: BTreeSet<u32> = loads.flat_map(|load| devices_in(&load)).collect();
        Ok(devices.into_iter().collect())
    }

    /// Ids of the programs in the pinned links, of whatever load: ours to replace.
    pub fn programs(&self) -> Vec<u32> {
        let program = |path: PathBuf| {
            let link = FdLink::from(PinnedLink::from_pin(path).ok()?);
            Some(link.info().ok()?.program_id())
        };
        let devices = self.devices().unwrap_or_default();
        devices.into_iter().flat_map(|ifindex| self.links(ifindex)).filter_map(program).collect()
    }

    /// Takes the program off a device, or off what is left of one that is gone, and removes its pins.
    ///
    /// # Errors
    /// Where bpffs refuses.
    pub fn forget(&self, ifindex: u32) -> Result<(), DatapathError> {
        self.links(ifindex).iter().try_for_each(|path| {
            detach_link(path);
            self.remove(path)
        })
    }

    /// Counts since the load, read from the pinned maps: the daemon need not run.
    ///
    /// # Errors
    /// [`DatapathError::NotLoaded`] where nothing is pinned, [`DatapathError::OtherLayout`] where only another build
    /// can read what is.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        self.devices()?;
        let loads: Vec<_> = self.loads().collect();
        let attached = loads.iter().find(|load| !devices_in(load).is_empty());
        let load = match attached.or(loads.first()) {
            Some(load) if *load == self.root || self.is_aside(load) => load,
            Some(load) => return Err(DatapathError::OtherLayout(load.clone())),
            None => return Err(DatapathError::NotLoaded(self.root.clone())),
        };
        let open = |name: &'static str| {
            let data = MapData::from_pin(map_in(load, name))
                .map_err(|source| DatapathError::Map { name, source })?;
            Map::from_map_data(data).map_err(|source| DatapathError::Map { name, source })
        };
        Counters::read(open)
    }

    /// Removes every pin of every load: links first, so that no frame meets a half. Returns the devices that had one.
    ///
    /// # Errors
    /// Where bpffs refuses; [`DatapathError::NotLoaded`] where nothing is pinned.
    pub fn remove_all(&self) -> Result<Vec<u32>, DatapathError> {
        let devices = self.devices()?;
        devices.iter().try_for_each(|ifindex| self.forget(*ifindex))?;
        self.loads().try_for_each(|load| self.remove_load(&load))?;
        // The folder above is ours too, unless there is something else in it.
        match fs::remove_dir(&self.parent) {
            Err(source) if source.kind() != io::ErrorKind::DirectoryNotEmpty => {
                Err(DatapathError::Pin { path: self.parent.clone(), source })
            }
            _ => Ok(devices),
        }
    }
}

/// Whether this is the name of a load's folder: `v` and its layout's version, and a number where it was set aside.
fn is_load(name: &str) -> bool {
    let number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.strip_prefix('v').is_some_and(|rest| {
        rest.split_once('-').map_or(number(rest), |(version, aside)| number(version) && number(aside))
    })
}

fn link_in(load: &Path, ifindex: u32) -> PathBuf {
    load.join("links").join(ifindex.to_string())
}

fn map_in(load: &Path, name: &str) -> PathBuf {
    load.join("maps").join(name)
}

/// The devices that a load has a pinned link on.
fn devices_in(load: &Path) -> Vec<u32> {
    let entries = fs::read_dir(load.join("links")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Takes a link's program off now. A link without pins goes too, but when the kernel gets round to it (`bpf_free_inode`
/// waits for RCU, `bpf_link_put` for a worker), and until then nobody else can have the hook.
fn detach_link(path: &Path) {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else { return };
    let mut get = [0_u64; 2];
    get[0] = path.as_ptr() as u64;
    // SAFETY: `union bpf_attr` for BPF_OBJ_GET begins with the path's address; the rest is 0. Both outlive the call.
    let fd = unsafe { bpf(bpf_cmd::BPF_OBJ_GET, get.as_ptr().cast(), size_of_val(&get)) };
    let Ok(fd) = RawFd::try_from(fd) else { return };
    if fd < 0 {
        return;
    }
    // SAFETY: the kernel has just given it to us.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    let detach = link.as_raw_fd() as u32;
    // SAFETY: `union bpf_attr` for BPF_LINK_DETACH is the link's descriptor, which is open. What fails goes with the pin.
    unsafe { bpf(bpf_cmd::BPF_LINK_DETACH, (&raw const detach).cast(), size_of_val(&detach)) };
}

/// bpf(2).
///
/// # Safety
/// The attributes are as long as `size` says and as the command wants them.
unsafe fn bpf(command: bpf_cmd, attributes: *const libc::c_void, size: usize) -> libc::c_long {
    // SAFETY: the caller's.
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size) }
}

#[cfg(test)]
mod tests {
    use super::is_load;

    #[test]
    fn folders_of_loads() {
        for name in ["v1", "v1001", "v1-1", "v20-13"] {
            assert!(is_load(name), "{name}");
        }
        for name in ["", "v", "v-1", "v1-", "v1-a", "v1-2-3", "w1", "1", "vv1", "maps"] {
            assert!(!is_load(name), "{name}");
        }
    }
}
