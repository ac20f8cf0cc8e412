//! From the BitString to the members that serve it: RFC 8279, section 6.5.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use replicator_common::{
    bier::{HEADER_BYTES, Header, VERSION},
    limits::{MAX_MEMBERS, MAX_WORDS},
    outcome::Outcome,
    table::{CHUNK_WORDS, Live, MEMBER_WORDS, NO_MEMBER, Table},
};
use replicator_ebpf::{bits::lowest_bit, frame::Frame, packet::Packet};

use super::admit::Ingress;
use crate::{
    counters,
    maps::{BIFTS, FBMS, ROWS, TABLES, WORK, Work},
};

/// A frame's table and the members to serve; which they are is in `work`.
pub(crate) struct Resolution<'a> {
    pub(crate) place: u32,
    pub(crate) table: &'a Table,
    pub(crate) work: &'a mut Work,
}

/// # Errors
/// `Delivered` where every bit is local and the stack takes the frame as it is, or why nobody is served.
#[inline(always)]
pub(crate) fn resolve(
    frame: &Frame<'_>,
    frame_bytes: usize,
    packet: &Packet,
    ingress: Ingress,
) -> Result<Resolution<'static>, Outcome> {
    let bier_bytes = packet.bier_bytes(frame, frame_bytes)?;
    let bytes = frame.at::<[u8; HEADER_BYTES]>(packet.bier_offset()).ok_or(Outcome::Malformed)?;
    let header = Header::new(bytes);
    if header.version() != VERSION {
        return Err(Outcome::UnknownVersion);
    }
    let (place, table) = lookup(header.bift_id().get()).ok_or(Outcome::UnknownBift)?;
    if header.bsl_code() != table.bsl_code {
        return Err(Outcome::BitStringLength);
    }
    if bier_bytes < HEADER_BYTES + table.words as usize * 8 {
        return Err(Outcome::Malformed);
    }
    let ttl = header.ttl();
    if ttl == 0 {
        return Err(Outcome::TtlExpired);
    }
    let variant = header.entropy() & table.variant_mask as u32;

    let work = WORK.get_ptr_mut(0).ok_or(Outcome::NoSlot)?;
    // SAFETY: this CPU's own element; XDP programs do not interrupt each other on a CPU, and nothing else on this way
    // looks the element up while the reference is used.
    let work = unsafe { &mut *work };
    work.rows = table.variant_rows(variant);
    work.fbms = table.variant_fbms(variant);
    work.chunks = table.chunks();
    work.words = table.words as u32;
    work.word = 0;
    work.copies = 0;
    work.pending = [0; MEMBER_WORDS];

    let bits = packet.bier_offset() + HEADER_BYTES;
    let scope = match table.words {
        1 => load::<1>(frame, bits, ttl, work),
        2 => load::<2>(frame, bits, ttl, work),
        4 => load::<4>(frame, bits, ttl, work),
        8 => load::<8>(frame, bits, ttl, work),
        _ => load::<16>(frame, bits, ttl, work),
    }?;
    if scope == Scope::Local && ingress == Ingress::Network {
        return Err(Outcome::Delivered);
    }
    serve(work);
    Ok(Resolution { place, table, work })
}

#[inline(always)]
fn lookup(bift_id: u32) -> Option<(u32, &'static Table)> {
    let word = BIFTS.get_ptr(bift_id)?;
    // SAFETY: the daemon swaps the word while programs run: one load, not repeated.
    let place = unsafe { core::ptr::read_volatile(word.cast::<u64>()) };
    let place = Live::from_word(place).place()?;
    Some((place, TABLES.get(place)?))
}

/// Whose bits a frame has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Local,
    Remote,
}

/// Takes the bits that have a row, and may be served at this TTL, into `work`.
#[inline(always)]
fn load<const WORDS: usize>(
    frame: &Frame<'_>,
    offset: usize,
    ttl: u8,
    work: &mut Work,
) -> Result<Scope, Outcome> {
    let bits = frame.at::<[[u8; 8]; WORDS]>(offset).ok_or(Outcome::Malformed)?;
    let (mut any, mut known, mut remote) = (0, 0, 0);
    for chunk in 0..WORDS.div_ceil(CHUNK_WORDS) {
        // The union of all F-BMs, then this host's.
        let union = FBMS.get(work.fbms + chunk as u32).ok_or(Outcome::NoSlot)?;
        let local = FBMS.get(work.fbms + work.chunks + chunk as u32).ok_or(Outcome::NoSlot)?;
        for i in 0..if WORDS < CHUNK_WORDS { WORDS } else { CHUNK_WORDS } {
            let word = chunk * CHUNK_WORDS + i;
            // Bit 1 is the rightmost (RFC 8296, section 2.1.2): the last word on the wire is the first here.
            let on_wire = u64::from_be_bytes(bits[WORDS - 1 - word]);
            let with_row = on_wire & union.0[i];
            if on_wire != with_row {
                counters::count(Outcome::BitWithoutRow, (on_wire & !with_row).count_ones() as u64);
            }
            any |= on_wire;
            known |= with_row;
            remote |= with_row & !local.0[i];
            work.remaining[word] = with_row;
        }
    }
    if any == 0 {
        return Err(Outcome::EmptyBitString);
    }
    if known == 0 {
        return Err(Outcome::NoNeighbor);
    }
    if remote == 0 {
        return Ok(Scope::Local);
    }
    if ttl > 1 {
        return Ok(Scope::Remote);
    }
    keep_local::<WORDS>(work)
}

/// A TTL of 1 allows delivery here and no other hop (RFC 8296, section 2.1.1).
#[inline(always)]
fn keep_local<const WORDS: usize>(work: &mut Work) -> Result<Scope, Outcome> {
    let (mut expired, mut kept) = (0, 0);
    for chunk in 0..WORDS.div_ceil(CHUNK_WORDS) {
        let local = FBMS.get(work.fbms + work.chunks + chunk as u32).ok_or(Outcome::NoSlot)?;
        for i in 0..if WORDS < CHUNK_WORDS { WORDS } else { CHUNK_WORDS } {
            let remaining = &mut work.remaining[chunk * CHUNK_WORDS + i];
            expired += (*remaining & !local.0[i]).count_ones() as u64;
            *remaining &= local.0[i];
            kept |= *remaining;
        }
    }
    if kept == 0 {
        return Err(Outcome::TtlExpired);
    }
    counters::count(Outcome::BitTtlExpired, expired);
    // Others' bits are still set in the frame: it needs a copy with the local ones alone.
    Ok(Scope::Remote)
}

/// The loop of RFC 8279, section 6.5. The verifier would walk every turn of a plain loop; `bpf_loop` (Linux 5.17) it
/// checks once.
#[inline(always)]
fn serve(work: &mut Work) {
    let mut context = core::ptr::from_mut(work);
    // SAFETY: the callback has the signature that bpf_loop calls, and the context lives until it returns.
    unsafe {
        bpf_loop(
            (MAX_MEMBERS + MAX_WORDS) as u32,
            step as *mut c_void,
            core::ptr::from_mut(&mut context).cast(),
            0,
        )
    };
}

/// One turn: the lowest bit left, its member, and that member's F-BM cleared. Returns 1 when no bit is left.
unsafe extern "C" fn step(_turn: u64, context: *mut *mut Work) -> i64 {
    // SAFETY: `serve` passes a pointer to its exclusive reference and does not use that until the loop is over.
    let work = unsafe { &mut **context };
    let word = work.word as usize & (MAX_WORDS - 1);
    let bits = work.remaining[word];
    if bits == 0 {
        work.word += 1;
        return (work.word >= work.words) as i64;
    }
    let bit = lowest_bit(bits);
    // Whatever the tables say, each turn makes progress.
    work.remaining[word] = bits & (bits - 1);
    let Some(rows) = ROWS.get(work.rows + word as u32) else { return 1 };
    let member = rows.0[bit as usize];
    if member == NO_MEMBER {
        return 0;
    }
    let first = work.fbms + (member as u32 + 1) * work.chunks;
    for chunk in 0..(MAX_WORDS / CHUNK_WORDS) as u32 {
        if chunk >= work.chunks {
            break;
        }
        let Some(fbm) = FBMS.get(first + chunk) else { return 1 };
        for i in 0..CHUNK_WORDS {
            work.remaining[chunk as usize * CHUNK_WORDS + i] &= !fbm.0[i];
        }
    }
    let pending = &mut work.pending[member as usize / 64 & (MEMBER_WORDS - 1)];
    let mask = 1 << (member & 63);
    work.copies += (*pending & mask == 0) as u32;
    *pending |= mask;
    0
}
