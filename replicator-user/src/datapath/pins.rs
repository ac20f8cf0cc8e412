//! Where programs, maps and links are pinned: `PATH/v<layout>/maps/NAME` and `PATH/v<layout>/links/IFINDEX`. The layout's
//! version is part of the path because the kernel does not compare a pinned map with what a program expects of it.

use std::{
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

use super::{Counters, DatapathError};

/// A place on a BPF file system.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    /// The pins under `path`, for this layout of the maps.
    pub fn new(path: &Path) -> Self {
        Self { root: path.join(format!("v{LAYOUT_VERSION}")) }
    }

    /// Where the pins of this layout are.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Pin of the link on a device. By index: names may hold a `.`, which bpffs refuses.
    pub(super) fn link(&self, ifindex: u32) -> PathBuf {
        self.root.join("links").join(ifindex.to_string())
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name.trim_start_matches('.'))
    }

    /// Makes the directories.
    pub(super) fn prepare(&self) -> Result<(), DatapathError> {
        for directory in ["links", "maps"] {
            let path = self.root.join(directory);
            fs::create_dir_all(&path).map_err(|source| DatapathError::Pin { path, source })?;
        }
        Ok(())
    }

    /// Pins something in place of what is pinned there.
    pub(super) fn replace(
        &self,
        path: &Path,
        pin: impl FnOnce(&Path) -> Result<(), PinError>,
    ) -> Result<(), DatapathError> {
        self.remove(path)?;
        pin(path).map_err(|source| self.error(path, source))
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

    /// The devices with a pinned link.
    ///
    /// # Errors
    /// [`DatapathError::NotLoaded`] where nothing is pinned.
    pub fn devices(&self) -> Result<Vec<u32>, DatapathError> {
        let path = self.root.join("links");
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DatapathError::NotLoaded(self.root.clone()));
            }
            Err(source) => return Err(DatapathError::Pin { path, source }),
        };
        let mut devices: Vec<u32> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        devices.sort_unstable();
        Ok(devices)
    }

    /// Ids of the programs in the pinned links: ours to replace.
    pub fn programs(&self) -> Vec<u32> {
        let program = |ifindex| {
            let link = FdLink::from(PinnedLink::from_pin(self.link(ifindex)).ok()?);
            Some(link.info().ok()?.program_id())
        };
        self.devices().unwrap_or_default().into_iter().filter_map(program).collect()
    }

    /// Takes the program off a device, or off what is left of one that is gone, and removes its pin.
    ///
    /// # Errors
    /// Where bpffs refuses.
    pub fn forget(&self, ifindex: u32) -> Result<(), DatapathError> {
        let path = self.link(ifindex);
        detach_link(&path);
        self.remove(&path)
    }

    /// Counts since the load, read from the pinned maps: the daemon need not run.
    ///
    /// # Errors
    /// [`DatapathError::NotLoaded`] where nothing is pinned.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        self.devices()?;
        let open = |name: &'static str| {
            let data =
                MapData::from_pin(self.map(name)).map_err(|source| DatapathError::Map { name, source })?;
            Map::from_map_data(data).map_err(|source| DatapathError::Map { name, source })
        };
        Counters::read(open)
    }

    /// Removes every pin of this layout: links first, so that no frame meets a half. Returns the devices that had one.
    ///
    /// # Errors
    /// Where bpffs refuses; [`DatapathError::NotLoaded`] where nothing is pinned.
    pub fn remove_all(&self) -> Result<Vec<u32>, DatapathError> {
        let devices = self.devices()?;
        for ifindex in &devices {
            self.forget(*ifindex)?;
        }
        fs::remove_dir_all(&self.root)
            .map_err(|source| DatapathError::Pin { path: self.root.clone(), source })?;
        // The folder above is ours too, unless other layouts still have theirs in it.
        if let Some(parent) = self.root.parent() {
            match fs::remove_dir(parent) {
                Err(source) if source.kind() != io::ErrorKind::DirectoryNotEmpty => {
                    return Err(DatapathError::Pin { path: parent.into(), source });
                }
                _ => {}
            }
        }
        Ok(devices)
    }
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
