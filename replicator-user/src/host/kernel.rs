//! What the running kernel is and allows.

use std::{fs, path::Path};

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};
use serde::Serialize;

use super::bpffs;

/// What is known of the kernel and of what this process may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// Release, as `uname -r` says it.
    pub release: String,
    /// Major and minor version; distributions add newer parts without raising it.
    pub version: (u32, u32),
    /// Whether it is a real-time kernel.
    pub preempt_rt: bool,
    /// Whether programs are compiled; unknown outside the first network namespace, which alone has the
    /// setting.
    pub jit: Option<bool>,
    /// Whether its own types are described.
    pub btf: bool,
    /// Whether a BPF file system is mounted in its place.
    pub bpffs: bool,
    /// Whether it has the helper `bpf_loop`; unknown where no program may be loaded.
    pub bpf_loop: Option<bool>,
    /// Whether it has the helper `bpf_xdp_get_buff_len`, which came with frames in several buffers; unknown
    /// likewise.
    pub frags: Option<bool>,
    /// Effective capabilities, as in `/proc/self/status`.
    pub capabilities: u64,
}

/// A capability's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Capability {
    /// Interfaces, addresses, XDP hooks.
    NetAdmin = 12,
    /// Mounts, and what `Bpf` and `Perfmon` were part of before 5.8.
    SysAdmin = 21,
    /// Programs that read as much as ours do.
    Perfmon = 38,
    /// Programs and maps.
    Bpf = 39,
}

impl Kernel {
    /// Looks at the running kernel, from the calling thread.
    pub fn read() -> Self {
        let release = text("/proc/sys/kernel/osrelease").unwrap_or_default();
        let helper = |helper| is_helper_supported(ProgramType::Xdp, helper).ok();
        Self {
            version: version(&release).unwrap_or_default(),
            release,
            preempt_rt: text("/sys/kernel/realtime").is_some_and(|flag| flag == "1")
                || text("/proc/sys/kernel/version").is_some_and(|version| version.contains("PREEMPT_RT")),
            jit: text("/proc/sys/net/core/bpf_jit_enable").map(|setting| setting != "0"),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            bpffs: bpffs::is_mounted(),
            bpf_loop: helper(BpfHelper::BPF_FUNC_loop),
            frags: helper(BpfHelper::BPF_FUNC_xdp_get_buff_len),
            capabilities: text("/proc/thread-self/status")
                .and_then(|status| capabilities(&status))
                .unwrap_or(0),
        }
    }

    /// Whether this process has the capability, or the older one that contains it.
    pub const fn has(&self, capability: Capability) -> bool {
        let within_sys_admin = matches!(capability, Capability::Bpf | Capability::Perfmon);
        self.capabilities & 1 << capability as u8 != 0
            || within_sys_admin && self.capabilities & 1 << Capability::SysAdmin as u8 != 0
    }
}

fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Major and minor version of a release such as "6.1.0-18-amd64" or "6.10-rc1".
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn capabilities(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_releases() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("6.10-rc1"), Some((6, 10)));
        assert_eq!(version("5.15.167.4-microsoft-standard-WSL2"), Some((5, 15)));
        assert_eq!(version("next"), None);
    }

    #[test]
    fn sys_admin_contains_the_capabilities_that_were_split_off_it() {
        let mut kernel = Kernel { capabilities: 0, ..Kernel::read() };
        assert!(!kernel.has(Capability::Bpf));
        kernel.capabilities = capabilities("Name:\tx\nCapEff:\t0000000000200000\n").unwrap();
        assert!(kernel.has(Capability::Bpf) && kernel.has(Capability::Perfmon));
        assert!(!kernel.has(Capability::NetAdmin));
        kernel.capabilities = 1 << 39 | 1 << 12;
        assert!(kernel.has(Capability::Bpf) && kernel.has(Capability::NetAdmin));
        assert!(!kernel.has(Capability::Perfmon));
    }
}
