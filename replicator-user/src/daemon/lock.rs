//! One daemon for a pin path: two would undo each other's work, and so would whoever takes the datapath of one down.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
};

use super::{DaemonError, status};

/// Held as long as it lives, and no longer than the process.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "the open file is what locks")] Option<File>);

impl Lock {
    /// Takes the lock of a pin path; where there is no such directory, no daemon has it.
    ///
    /// # Errors
    /// [`DaemonError::Running`] where a daemon has it.
    pub fn take(pin_path: &Path) -> Result<Self, DaemonError> {
        let error = |source| DaemonError::Lock { path: pin_path.into(), source };
        let directory = match File::open(pin_path) {
            Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(Self(None)),
            other => other.map_err(error)?,
        };
        match directory.try_lock() {
            Ok(()) => Ok(Self(Some(directory))),
            Err(TryLockError::WouldBlock) => {
                let status = status::read(&status::path(pin_path)).ok().flatten();
                Err(DaemonError::Running { pin_path: pin_path.into(), pid: status.map(|status| status.pid) })
            }
            Err(TryLockError::Error(source)) => Err(error(source)),
        }
    }
}
