//! Per-CPU counts of outcomes, and of copies to each neighbor.

use replicator_common::outcome::Outcome;

use crate::maps::{NEIGHBOR_TRAFFIC, OUTCOME_COUNTS};

/// Adds to an outcome's count.
#[inline(always)]
pub(crate) fn count(outcome: Outcome, by: u64) {
    if let Some(counter) = OUTCOME_COUNTS.get_ptr_mut(outcome as u32) {
        // SAFETY: this CPU's own element; XDP programs do not interrupt each other on a CPU.
        unsafe { *counter += by };
    }
}

/// Adds a copy of so many bytes to a neighbor's traffic.
#[inline(always)]
pub(crate) fn sent(neighbor: u32, bytes: usize) {
    if let Some(traffic) = NEIGHBOR_TRAFFIC.get_ptr_mut(neighbor) {
        // SAFETY: as in `count`; the reference ends here.
        let traffic = unsafe { &mut *traffic };
        traffic.copies += 1;
        traffic.bytes += bytes as u64;
    }
}
