//! Which fan-out map has an entry for each copy.

use replicator_common::limits::MAX_COUNTED_DEVICES;
use replicator_common::table::{LOCAL_MEMBER, MEMBER_WORDS, Share, fanout_rule, level};

use super::resolve::Resolution;
use crate::maps::SHARES;

/// Index of the fan-out map for the members to serve.
#[inline(always)]
pub(crate) fn fan_out(resolution: &Resolution<'_>) -> Option<u32> {
    let (table, work) = (resolution.table, &*resolution.work);
    let local = (work.pending[0] >> LOCAL_MEMBER & 1) as u32;
    let mut index = table.fanout + local * table.fanout_local;
    match table.fanout_rule {
        fanout_rule::EXACT => {
            if work.copies > local {
                index += (work.copies - local) * SHARES.get(table.shares)?.stride;
            }
        }
        fanout_rule::ROUNDED => {
            for i in 0..MAX_COUNTED_DEVICES as u32 {
                if i >= table.remote_shares as u32 {
                    break;
                }
                let share = SHARES.get(table.shares + i)?;
                index += level(copies(&work.pending, share)) * share.stride;
            }
        }
        _ => {}
    }
    Some(index)
}

#[inline(always)]
fn copies(pending: &[u64; MEMBER_WORDS], share: &Share) -> u32 {
    let mut copies = 0;
    for i in 0..MEMBER_WORDS {
        copies += (pending[i] & share.members[i]).count_ones();
    }
    copies
}
