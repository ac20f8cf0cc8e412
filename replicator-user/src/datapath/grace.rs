//! Waiting until every frame that was under way has left.

use std::thread;

use super::REST;

/// `MEMBARRIER_CMD_GLOBAL` of linux/membarrier.h.
const GLOBAL: libc::c_int = 1;

/// Returns when every NAPI poll that was under way is over: membarrier(2) waits for an RCU grace period, and a poll
/// runs with softirqs off, which RCU counts as a reader. The kernel refuses it where CPUs run without ticks
/// (`nohz_full`); time does it there.
pub(super) fn wait() {
    // SAFETY: no memory is touched.
    if unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) } != 0 {
        thread::sleep(REST);
    }
}
