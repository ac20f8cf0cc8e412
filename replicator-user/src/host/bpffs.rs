//! The BPF file system, where programs, maps and links are pinned.

use std::{
    ffi::CString,
    fs, io,
    mem::MaybeUninit,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Component, Path},
};

use super::Error;

/// Where it is mounted by custom.
pub const MOUNT_POINT: &str = "/sys/fs/bpf";

/// Makes a directory to pin in. Mounts the file system at [`MOUNT_POINT`] if the path is below and nothing is
/// there.
///
/// # Errors
///
/// The path is not absolute, has a part with a '.', or is on another file system.
pub fn ensure(directory: &Path) -> Result<(), Error> {
    check(directory)?;
    if directory.starts_with(MOUNT_POINT)
        && Path::new(MOUNT_POINT).is_dir()
        && !is_bpffs(Path::new(MOUNT_POINT))?
    {
        mount()?;
    }
    let existing = existing_ancestor(directory);
    if !is_bpffs(existing)? {
        return Err(Error::Unfit(format!(
            "{} is not on a BPF file system ({} is not one): choose a path below {MOUNT_POINT}, or mount one \
             with `mount -t bpf bpf DIR`",
            directory.display(),
            existing.display()
        )));
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|cause| Error::refused(format!("make the directory {}", directory.display()), cause))
}

/// Whether a BPF file system is at [`MOUNT_POINT`].
pub fn is_mounted() -> bool {
    is_bpffs(Path::new(MOUNT_POINT)).unwrap_or(false)
}

fn check(directory: &Path) -> Result<(), Error> {
    let plain = |component: Component<'_>| match component {
        Component::RootDir => true,
        Component::Normal(name) => !name.as_bytes().contains(&b'.'),
        _ => false,
    };
    if directory.is_absolute() && directory.components().all(plain) {
        return Ok(());
    }
    Err(Error::Unfit(format!(
        "{}: a directory for pins is an absolute path without '.' in its parts, as {MOUNT_POINT}/replicator \
         is",
        directory.display()
    )))
}

fn existing_ancestor(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

fn is_bpffs(path: &Path) -> Result<bool, Error> {
    let failed = |cause| Error::refused(format!("look at the file system of {}", path.display()), cause);
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| failed(error.into()))?;
    let mut status = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the name ends with a zero, and the buffer has the size of the struct.
    if unsafe { libc::statfs(name.as_ptr(), status.as_mut_ptr()) } < 0 {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: the call succeeded, so it filled the buffer.
    let status = unsafe { status.assume_init() };
    Ok(status.f_type == libc::BPF_FS_MAGIC)
}

fn mount() -> Result<(), Error> {
    let target =
        CString::new(MOUNT_POINT).map_err(|error| Error::refused("name the mount point", error.into()))?;
    // SAFETY: all names end with a zero; without options the last argument may be null.
    let status = unsafe {
        libc::mount(c"bpf".as_ptr(), target.as_ptr(), c"bpf".as_ptr(), 0, c"mode=0700".as_ptr().cast())
    };
    if status < 0 {
        return Err(Error::Unfit(format!(
            "no BPF file system is mounted at {MOUNT_POINT}, and mounting one failed ({}): it takes \
             CAP_SYS_ADMIN; have it mounted with `mount -t bpf bpf {MOUNT_POINT}`",
            io::Error::last_os_error()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_for_pins_is_absolute_and_without_dots() {
        assert!(check(Path::new("/sys/fs/bpf/replicator/v1")).is_ok());
        for wrong in ["replicator", "/sys/fs/bpf/../x", "/sys/fs/bpf/a.b"] {
            let refusal = check(Path::new(wrong)).unwrap_err().to_string();
            assert_eq!(
                refusal,
                format!(
                    "{wrong}: a directory for pins is an absolute path without '.' in its parts, as \
                     /sys/fs/bpf/replicator is"
                )
            );
        }
    }

    #[test]
    fn a_path_on_another_file_system_is_refused() {
        let refusal = ensure(Path::new("/proc/replicator/v1")).unwrap_err().to_string();
        assert!(
            refusal.starts_with("/proc/replicator/v1 is not on a BPF file system (/proc is not one)"),
            "{refusal}"
        );
    }
}
