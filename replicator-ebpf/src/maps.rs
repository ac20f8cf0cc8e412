//! Every map and every constant of a load. `Array`s are mapped into the daemon's memory (`BPF_F_MMAPABLE`): it writes an
//! entry nobody reads yet, then swaps one word.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, ArrayOfMaps, DevMap, HashMap, LpmTrie, PerCpuArray, ProgramArray},
    macros::btf_map,
};
use replicator_common::{
    DEFAULT_UDP_PORT,
    limits::{
        BIFT_IDS, FANOUT_MAPS, FBM_CHUNKS, MAX_ENDPOINTS, MAX_NEIGHBORS, MAX_SOURCE_PREFIXES, MAX_WORDS,
        MEMBER_ENTRIES, NEIGHBOR_PLACES, ROW_CHUNKS, SHARE_ENTRIES, SLOTS as SLOT_COUNT, TABLE_PLACES,
    },
    neighbor::{Endpoint, Neighbor, Settings, SourcePrefix, Traffic},
    outcome::OUTCOMES,
    slot::Slot,
    table::{FbmChunk, Live, MEMBER_WORDS, Member, RowChunk, Share, Table},
};

const MAPPED: usize = BPF_F_MMAPABLE as usize;

/// Marks the frames of this load; random.
#[unsafe(no_mangle)]
pub(crate) static COOKIE: Global<u32> = Global::new(0);

/// UDP port of BIER.
#[unsafe(no_mangle)]
pub(crate) static UDP_PORT: Global<u16> = Global::new(DEFAULT_UDP_PORT);

/// BIFT-id -> place of the table.
#[btf_map]
pub(crate) static BIFTS: Array<Live, BIFT_IDS, MAPPED> = Array::new();

/// Place -> table.
#[btf_map]
pub(crate) static TABLES: Array<Table, TABLE_PLACES, MAPPED> = Array::new();

/// Pool of rows.
#[btf_map]
pub(crate) static ROWS: Array<RowChunk, ROW_CHUNKS, MAPPED> = Array::new();

/// Pool of F-BMs.
#[btf_map]
pub(crate) static FBMS: Array<FbmChunk, FBM_CHUNKS, MAPPED> = Array::new();

/// Pool of members.
#[btf_map]
pub(crate) static MEMBERS: Array<Member, MEMBER_ENTRIES, MAPPED> = Array::new();

/// Pool of shares.
#[btf_map]
pub(crate) static SHARES: Array<Share, SHARE_ENTRIES, MAPPED> = Array::new();

/// Neighbor's id -> place of what is known of it.
#[btf_map]
pub(crate) static NEIGHBOR_IDS: Array<Live, MAX_NEIGHBORS, MAPPED> = Array::new();

/// Place -> neighbor.
#[btf_map]
pub(crate) static NEIGHBORS: Array<Neighbor, NEIGHBOR_PLACES, MAPPED> = Array::new();

/// What the daemon sets while the programs run.
#[btf_map]
pub(crate) static SETTINGS: Array<Settings, 1, MAPPED> = Array::new();

/// Single addresses: allowed sources, and this host's own.
#[btf_map]
pub(crate) static ENDPOINTS: HashMap<Endpoint, u32, MAX_ENDPOINTS> = HashMap::new();

/// Prefixes of allowed sources.
#[btf_map]
pub(crate) static SOURCE_PREFIXES: LpmTrie<SourcePrefix, u32, MAX_SOURCE_PREFIXES> = LpmTrie::new();

/// Fan-out maps: how many copies leave on which device.
#[btf_map]
pub(crate) static FANOUTS: ArrayOfMaps<DevMap<1>, FANOUT_MAPS> = ArrayOfMaps::new();

/// `rewrite` of the load that takes over from this one; empty otherwise.
#[btf_map]
pub(crate) static SUCCESSOR: ProgramArray<1> = ProgramArray::new();

/// Frames whose copies are on their way, by sequence.
#[btf_map]
pub(crate) static SLOTS: PerCpuArray<Slot, SLOT_COUNT> = PerCpuArray::new();

/// What `replicate` works on: too much for the stack.
#[btf_map]
pub(crate) static WORK: PerCpuArray<Work, 1> = PerCpuArray::new();

/// Outcome -> count.
#[btf_map]
pub(crate) static OUTCOME_COUNTS: PerCpuArray<u64, OUTCOMES> = PerCpuArray::new();

/// Neighbor's id -> what was sent to it.
#[btf_map]
pub(crate) static NEIGHBOR_TRAFFIC: PerCpuArray<Traffic, MAX_NEIGHBORS> = PerCpuArray::new();

/// The state of a frame's resolution, and its CPU's count of frames.
#[repr(C)]
pub(crate) struct Work {
    /// Bits still to serve, in host order, lowest word first.
    pub(crate) remaining: [u64; MAX_WORDS],
    /// Members found.
    pub(crate) pending: [u64; MEMBER_WORDS],
    /// First chunk of the variant's rows.
    pub(crate) rows: u32,
    /// Union's chunk of the variant's F-BMs.
    pub(crate) fbms: u32,
    /// Chunks of one F-BM.
    pub(crate) chunks: u32,
    /// Words of the BitString.
    pub(crate) words: u32,
    /// First word that may have bits left.
    pub(crate) word: u32,
    /// Copies.
    pub(crate) copies: u32,
    /// Frames that had a slot of this CPU.
    pub(crate) sequence: u32,
    pub(crate) zero: u32,
    /// Addresses and a UDP datagram, whose checksum is computed.
    pub(crate) datagram: [u8; DATAGRAM_BYTES],
}

/// Room for addresses, the longest frame that may be cloned, and the padding of its end, in whole parts of what is
/// summed at once.
pub(crate) const DATAGRAM_BYTES: usize = 9 * 512;
