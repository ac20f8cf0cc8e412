//! A host: a network namespace and a mount namespace without a name.

use std::{
    env,
    ffi::CString,
    fs::{self, File},
    io::Write,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{ffi::OsStringExt, process::CommandExt},
    },
    panic,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, bail};
use rustix::{
    io::Errno,
    mount::{MountFlags, MountPropagationFlags, mount, mount_change},
    process::{Signal, chdir, chroot, fchdir, getpid, getppid, set_parent_process_death_signal},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

use super::process::{Finished, Process};

/// What a new host is set to. Duplicate address detection holds back an IPv6 address for a second or more.
const SYSCTLS: [(&str, &str); 4] = [
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    ("net.ipv6.conf.default.dad_transmits", "0"),
    ("net.ipv6.conf.default.router_solicitations", "0"),
];

/// A host on this machine. Clones are the same host; it is gone when the last clone, thread and socket in it are.
///
/// It has a /sys of its own (with the host's devices), an empty /sys/fs/bpf, an empty /run and an empty /var/lib.
#[derive(Clone, Debug)]
pub struct Host(Arc<Namespaces>);

#[derive(Debug)]
struct Namespaces {
    name: String,
    network: OwnedFd,
    mounts: OwnedFd,
    /// The root directory in `mounts`, which is not the mount namespace's own where this process is in a chroot.
    root: OwnedFd,
}

impl Namespaces {
    /// Moves the calling thread in. Only system calls, so that a child may do it between fork and exec.
    fn enter(&self, directory: &CString) -> rustix::io::Result<()> {
        // A thread that shares root and working directory with others cannot change its mount namespace (setns(2)).
        // SAFETY: CLONE_FS unshares neither memory nor file descriptors.
        unsafe { unshare_unsafe(UnshareFlags::FS) }?;
        move_into_link_name_space(self.mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
        move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))?;
        // Entering a mount namespace leads to its own root: go back to where the thread was.
        fchdir(&self.root)?;
        chroot(c".")?;
        chdir(directory.as_c_str())
    }
}

impl Host {
    pub(super) fn new(name: &str) -> Result<Self> {
        let [network, mounts, root] = in_thread(name, new_namespaces)?;
        let host = Self(Arc::new(Namespaces { name: name.to_owned(), network, mounts, root }));
        for (key, value) in SYSCTLS {
            host.sysctl(key, value)?;
        }
        host.ip("link set lo up\n")?;
        Ok(host)
    }

    /// The name it was given; nothing on the machine knows it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Moves the calling thread into the host, for good. Threads and children it starts begin there.
    ///
    /// # Errors
    /// Where the kernel refuses it.
    pub fn enter(&self) -> Result<()> {
        self.0.enter(&working_directory()?).with_context(|| format!("cannot enter the host {}", self.name()))
    }

    /// Runs `task` in a thread of the host.
    ///
    /// # Errors
    /// The task's own, and where the kernel refuses the thread its place. A panic of the task goes on in the caller.
    pub fn run<T: Send>(&self, task: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_thread(self.name(), || {
            self.enter()?;
            task()
        })
    }

    /// Starts a child in the host. It is killed when this process ends.
    ///
    /// # Errors
    /// Where it cannot be started.
    pub fn spawn(&self, mut command: Command) -> Result<Process> {
        let directory = match command.get_current_dir() {
            Some(directory) => path_string(directory.to_owned())?,
            None => working_directory()?,
        };
        let (namespaces, parent) = (Arc::clone(&self.0), getpid());
        let prepare = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            if getppid() != Some(parent) {
                return Err(Errno::SRCH.into());
            }
            Ok(namespaces.enter(&directory)?)
        };
        // SAFETY: `prepare` makes system calls on what it owns; it neither allocates nor takes a lock.
        unsafe { command.pre_exec(prepare) };
        Process::start(command).with_context(|| format!("on the host {}", self.name()))
    }

    /// Runs a command to its end and takes its standard output.
    ///
    /// # Errors
    /// Where it cannot be started or fails; with what it printed.
    pub fn output(&self, command: Command) -> Result<String> {
        let line = format!("{command:?}");
        let Finished { status, stdout, stderr } = self.spawn(command)?.finish()?;
        if !status.success() {
            bail!("on the host {}: {line}: {status}\n{stderr}{stdout}", self.name());
        }
        Ok(stdout)
    }

    /// Runs commands of ip(8), one a line.
    ///
    /// # Errors
    /// Where one fails; those before it are in force.
    pub fn ip(&self, script: &str) -> Result<()> {
        self.batch("ip", script)
    }

    /// Runs commands of a program of iproute2, one a line.
    pub(super) fn batch(&self, program: &str, script: &str) -> Result<()> {
        let (reader, mut writer) = std::io::pipe().context("cannot make a pipe")?;
        let mut command = tool(program);
        command.args(["-batch", "-"]).stdin(Stdio::from(reader));
        let process = self.spawn(command)?;
        writer.write_all(script.as_bytes()).with_context(|| format!("cannot write to {program}"))?;
        drop(writer);
        let Finished { status, stdout, stderr } = process.finish()?;
        if !status.success() {
            bail!("on the host {}: {program}: {stderr}{stdout}of the script\n{script}", self.name());
        }
        Ok(())
    }

    /// Sets a sysctl, as `net.ipv4.ip_forward`; a dot within a device's name is written as a slash.
    ///
    /// # Errors
    /// Where the kernel has none of that name or refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path: String = key
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect();
        self.run(|| {
            fs::write(format!("/proc/sys/{path}"), value)
                .with_context(|| format!("on the host {}: cannot set {key} = {value}", self.name()))
        })
    }

    /// Path by which other processes find the network namespace, as long as this process lives.
    pub fn network_namespace(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.network.as_raw_fd())
    }
}

/// A program of iproute2 or ethtool, found also where only root's `PATH` leads on Debian.
pub fn tool(name: &str) -> Command {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    let mut command = Command::new(name);
    command.env("PATH", path);
    command
}

/// Leaves the namespaces of the calling thread for new ones: network, mounts, and the root directory in them.
fn new_namespaces() -> Result<[OwnedFd; 3]> {
    // SAFETY: network and mount namespace and the working directory are unshared, neither memory nor file descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }
        .context("cannot make a network and a mount namespace: is this root?")?;
    // What is mounted here must not reach the other mount namespaces of the machine.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .context("cannot make the mounts private")?;
    // A sysfs shows the devices of the network namespace it was mounted in.
    for (kind, target) in
        [("sysfs", "/sys"), ("bpf", "/sys/fs/bpf"), ("tmpfs", "/run"), ("tmpfs", "/var/lib")]
    {
        mount(kind, target, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount a {kind} on {target}"))?;
    }
    let open = |path| File::open(path).map(OwnedFd::from).with_context(|| format!("cannot open {path}"));
    Ok([open("/proc/thread-self/ns/net")?, open("/proc/thread-self/ns/mnt")?, open("/")?])
}

fn working_directory() -> Result<CString> {
    path_string(env::current_dir().context("cannot read the working directory")?)
}

fn path_string(path: PathBuf) -> Result<CString> {
    Ok(CString::new(path.into_os_string().into_vec())?)
}

fn in_thread<T: Send>(name: &str, task: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, task)?;
        thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}
