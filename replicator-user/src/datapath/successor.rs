//! Who rewrites the copies that an earlier load's `rewrite` does not know: the `rewrite` of the load that takes over.

use std::path::Path;

use aya::{
    maps::{Map, MapData, MapError, ProgramArray},
    programs::ProgramFd,
};

/// The map's name.
pub(super) const NAME: &str = "SUCCESSOR";

/// Makes `rewrite` the successor in the map that is pinned at `path`. It stays one as long as the map has a pin or an
/// open descriptor (`prog_array_map_clear`, kernel/bpf/arraymap.c).
pub(super) fn set(path: &Path, rewrite: &ProgramFd) -> Result<(), MapError> {
    open(path)?.set(0, rewrite, 0)
}

/// Leaves the map that is pinned at `path` without a successor.
pub(super) fn clear(path: &Path) -> Result<(), MapError> {
    match open(path)?.clear_index(&0) {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn open(path: &Path) -> Result<ProgramArray<MapData>, MapError> {
    ProgramArray::try_from(Map::from_map_data(MapData::from_pin(path)?)?)
}
