//! What the daemon tells those who ask: a file that it keeps current, readable also when it has ended.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{
    DaemonError,
    replace::{next, replace},
};
use crate::{datapath::Mode, host::resolution::Resolution};

/// Folder of the status files, where the service manager names no other in RUNTIME_DIRECTORY.
const RUNTIME_DIRECTORY: &str = "/run/replicator";

/// The daemon as it was when something last changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The origin pair's end in the stack, where there is one.
    pub origin: Option<String>,
    /// Where the control API is; a daemon that was killed leaves it.
    #[serde(default)]
    pub api_socket: Option<PathBuf>,
    /// Where `replicate` is attached.
    pub interfaces: Vec<InterfaceStatus>,
    /// Remote neighbors, in the order of the configuration.
    pub neighbors: Vec<NeighborStatus>,
    /// Tables in force.
    pub tables: Vec<TableStatus>,
}

/// `replicate` on an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// How the program runs.
    pub mode: Mode,
}

/// A neighbor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NeighborStatus {
    /// Its name.
    pub name: String,
    /// Its id in the maps.
    pub id: u32,
    /// Whether copies can go to it.
    pub resolution: NeighborResolution,
}

/// Whether copies can go to a neighbor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum NeighborResolution {
    /// They go.
    Ready {
        /// Device they leave on.
        ifindex: u32,
        /// Destination MAC address.
        mac: String,
    },
    /// They are dropped and counted.
    Pending {
        /// Why.
        reason: String,
    },
}

impl From<Resolution> for NeighborResolution {
    fn from(resolution: Resolution) -> Self {
        match resolution {
            Resolution::Ready { ifindex, destination_mac, .. } => {
                Self::Ready { ifindex, mac: destination_mac.to_string() }
            }
            Resolution::Pending { reason } => Self::Pending { reason: reason.to_string() },
        }
    }
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStatus {
    /// Its name, or model and layer.
    pub name: String,
    /// The BIFT-ids that name it.
    pub bift_ids: Vec<u32>,
    /// Bits.
    pub bit_string_length: usize,
    /// Members that have bits.
    pub members: usize,
    /// Variants.
    pub variants: usize,
}

/// The status file of the replicator with this pin path. There may be several on a host.
pub fn path(pin_path: &Path) -> PathBuf {
    let folder = env::var_os("RUNTIME_DIRECTORY").map_or_else(|| RUNTIME_DIRECTORY.into(), PathBuf::from);
    folder.join(format!("{}.json", instance(pin_path)))
}

/// What files of the replicator with this pin path are called.
pub(super) fn instance(pin_path: &Path) -> String {
    pin_path.to_string_lossy().trim_matches('/').replace('-', "--").replace('/', "-")
}

/// Reads a status file; `None` where there is none.
///
/// # Errors
/// Where it cannot be read or is damaged.
pub fn read(path: &Path) -> io::Result<Option<Status>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the file at once: a reader sees the old one or the new one.
pub(super) fn write(path: &Path, status: &Status) -> Result<(), DaemonError> {
    let error = |source| DaemonError::Status { path: path.into(), source };
    let text = serde_json::to_vec(status).map_err(|source| error(source.into()))?;
    replace(path, &text).map_err(error)
}

/// Removes the file, and the folder if that was the last one.
///
/// # Errors
/// Where the file cannot be removed.
pub fn remove(path: &Path) -> Result<(), DaemonError> {
    // A daemon that was killed may have left its next one.
    for path in [path, &next(path)] {
        match fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(DaemonError::Status { path: path.into(), source });
            }
            _ => {}
        }
    }
    if path.parent() == Some(Path::new(RUNTIME_DIRECTORY)) {
        remove_folder();
    }
    Ok(())
}

/// Removes the folder if nothing is in it.
pub(super) fn remove_folder() {
    // Others' files keep it, and so does a service manager that owns it.
    let _ = fs::remove_dir(RUNTIME_DIRECTORY);
}
