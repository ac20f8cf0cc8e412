//! Files that are replaced at once: whoever reads one, and whoever finds it after the daemon was killed, has the old one or
//! the new one.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Puts a file in place of the last one. Its folder is made where there is none.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = next(path);
    let written = match (fs::write(&new, bytes), path.parent()) {
        (Err(absent), Some(folder)) if absent.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(folder).and_then(|()| fs::write(&new, bytes))
        }
        (written, _) => written,
    };
    let replaced = written.and_then(|()| fs::rename(&new, path));
    if replaced.is_err() {
        // What is left of it is of no use; the error says why.
        let _ = fs::remove_file(&new);
    }
    replaced
}

/// Where the next file is written before it takes the place of the last.
pub(super) fn next(path: &Path) -> PathBuf {
    path.with_extension("new")
}
