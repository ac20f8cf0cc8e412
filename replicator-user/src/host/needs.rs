//! What a replicator needs of the kernel: a pure judgment of what was found.

use serde::Serialize;

use super::kernel::{Capability, Kernel};

/// One thing that a replicator needs or likes to have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// Whether it is there.
    pub state: State,
    /// Whether there is no replicator without it.
    pub needed: bool,
    /// Where it comes from, or what to do.
    pub detail: String,
}

/// Whether something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It is.
    Present,
    /// It is not.
    Missing,
    /// It cannot be seen from here.
    Unknown,
}

/// What the programs and the loader use, with the kernel version that brought it, and why it matters.
const FEATURES: &[(&str, (u32, u32), bool, &str)] = &[
    ("programs on devmap entries", (5, 8), true, "each copy is rewritten by one"),
    ("bpf_link for XDP", (5, 9), true, "keeps the programs attached while the daemon restarts"),
    ("broadcast redirect", (5, 13), true, "makes the copies"),
    (BPF_LOOP, (5, 17), true, "finds the members of a frame"),
    (FRAGS, (5, 18), true, "lets the programs run at large MTUs"),
    ("batched updates of maps in maps", (5, 19), true, "put the fan-out maps in place"),
    ("xdp-features over netlink", (6, 3), false, "without it a driver's refusal is seen late or never"),
];
const BPF_LOOP: &str = "bpf_loop";
const FRAGS: &str = "frames in several buffers";

const CAPABILITIES: &[(&str, Capability, &str)] = &[
    ("CAP_BPF", Capability::Bpf, "programs and maps"),
    ("CAP_NET_ADMIN", Capability::NetAdmin, "XDP hooks, the origin interface, neighbor entries"),
    ("CAP_PERFMON", Capability::Perfmon, "programs that read packets through pointers of their own"),
];

/// Everything the kernel must or should have, and whether it does.
pub fn of(kernel: &Kernel) -> Vec<Check> {
    let probe = |name| match name {
        BPF_LOOP => kernel.bpf_loop,
        FRAGS => kernel.frags,
        _ => None,
    };
    // Distributions carry newer BPF to older kernels: then the version says nothing.
    let patched =
        FEATURES.iter().any(|(name, since, ..)| probe(*name) == Some(true) && kernel.version < *since);
    let mut checks: Vec<_> = FEATURES
        .iter()
        .map(|&(name, since, needed, purpose)| {
            let state = match probe(name) {
                Some(present) => presence(present),
                None if kernel.version >= since => State::Present,
                None if patched => State::Unknown,
                None => State::Missing,
            };
            Check { name, state, needed, detail: format!("Linux {}.{}: {purpose}", since.0, since.1) }
        })
        .collect();

    let mut check = |name, state, needed, good: &str, bad: &str| {
        let detail = if state == State::Present { good } else { bad };
        checks.push(Check { name, state, needed, detail: detail.to_owned() });
    };
    check(
        "no PREEMPT_RT",
        presence(!kernel.preempt_rt),
        true,
        "a frame and its copies stay on one CPU, undisturbed",
        "real-time kernels may interrupt a frame between its copies: boot another kernel",
    );
    check(
        "JIT compiler",
        kernel.jit.map_or(State::Unknown, presence),
        true,
        "bpf_loop needs it",
        match kernel.jit {
            None => "only the first network namespace shows the setting net.core.bpf_jit_enable",
            Some(_) => "bpf_loop needs it: `sysctl net.core.bpf_jit_enable=1`",
        },
    );
    check(
        "BTF of the kernel",
        presence(kernel.btf),
        false,
        "for tools that look into the programs",
        "/sys/kernel/btf/vmlinux is not there; tools that look into the programs may miss it",
    );
    let mountable = kernel.has(Capability::SysAdmin);
    check(
        "BPF file system",
        presence(kernel.bpffs || mountable),
        true,
        if kernel.bpffs { "at /sys/fs/bpf" } else { "the replicator will mount it at /sys/fs/bpf" },
        "`mount -t bpf bpf /sys/fs/bpf` as root",
    );
    for &(name, capability, purpose) in CAPABILITIES {
        let bad = format!("{purpose}: run as root or give it to the service");
        check(name, presence(kernel.has(capability)), true, purpose, &bad);
    }
    checks
}

/// Whether something that was looked for is there.
pub(crate) const fn presence(present: bool) -> State {
    if present { State::Present } else { State::Missing }
}
