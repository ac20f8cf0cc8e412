//! The two XDP programs. `replicate` runs on a NIC, or on the peer of the veth that this host's programs send into;
//! `rewrite` runs once for each copy on its way out of a device. One match turns an outcome into an XDP action.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod counters;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod replicate;
#[cfg(target_arch = "bpf")]
mod rewrite;

#[cfg(target_arch = "bpf")]
mod programs {
    use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
    use aya_log_ebpf::info;
    use replicator_common::outcome::Outcome;

    use crate::{counters, replicate::replicate, rewrite::rewrite};

    /// Every frame that a device receives.
    #[xdp(frags)]
    fn replicator_replicate(ctx: XdpContext) -> u32 {
        let outcome = match replicate(&ctx) {
            Ok(outcome) | Err(outcome) => outcome,
        };
        counters::count(outcome, 1);
        match outcome {
            Outcome::Passed | Outcome::Delivered => xdp_action::XDP_PASS,
            Outcome::Replicated => xdp_action::XDP_REDIRECT,
            _ => {
                info!(&ctx, "frame dropped on ifindex {}: outcome {}", ctx.ingress_ifindex(), outcome as u32);
                xdp_action::XDP_DROP
            }
        }
    }

    /// Every copy that a device is about to send. A program here may pass or drop, nothing else.
    #[xdp(map = "devmap", frags)]
    fn replicator_rewrite(ctx: XdpContext) -> u32 {
        match rewrite(&ctx) {
            Ok(()) => {
                counters::count(Outcome::Sent, 1);
                xdp_action::XDP_PASS
            }
            Err(outcome) => {
                counters::count(outcome, 1);
                if !matches!(outcome, Outcome::Surplus) {
                    info!(&ctx, "copy dropped: outcome {}", outcome as u32);
                }
                xdp_action::XDP_DROP
            }
        }
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    /// The kernel asks for it: some helpers are for GPL-compatible programs only.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

/// The programs are for the kernel; this lets a workspace-wide build for the host pass.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
