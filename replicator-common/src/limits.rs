//! Every limit of the datapath, with its reason.

/// Bits in the longest BitString: BSL code 5 of RFC 8296. Longer ones do not leave room for a token in a frame.
pub const MAX_BITS: usize = 1024;

/// 64-bit words in the longest BitString.
pub const MAX_WORDS: usize = MAX_BITS / 64;

/// BIFT-ids are 20 bits wide (RFC 8296, section 2.2.1), so an array of this size answers every lookup exactly.
pub const BIFT_IDS: usize = 1 << 20;

/// Live BIFT-ids of all kinds and generations.
pub const MAX_TABLES: usize = 4096;

/// Expert tables: the 11 bits that a BIFT-id has for model and layer.
pub const MAX_EXPERT_TABLES: usize = 2048;

/// Places for tables: twice [`MAX_TABLES`], so that a full set can be replaced while the old places rest.
pub const TABLE_PLACES: usize = 2 * MAX_TABLES;

/// Next hops a host may know, the three entries for its own stack included.
pub const MAX_NEIGHBORS: usize = 1024;

/// Places for neighbors: every one may be rewritten once while its old place rests.
pub const NEIGHBOR_PLACES: usize = 2 * MAX_NEIGHBORS;

/// Members of a table: a row is one byte, and [`crate::table::NO_MEMBER`] takes one of its values.
pub const MAX_MEMBERS: usize = 255;

/// Egress devices of one table, this host's stack included. `rewrite` looks through them one by one.
pub const MAX_DEVICES: usize = 16;

/// Egress devices of a table (without this host) up to which there is a fan-out map for every combination of counts.
/// With more the combinations outgrow memory, and the table gets one map with each of its members.
pub const MAX_COUNTED_DEVICES: usize = 3;

/// Members of a table on more than [`MAX_COUNTED_DEVICES`] devices: every frame is cloned for each of them.
pub const MAX_UNCOUNTED_MEMBERS: usize = 64;

/// Variants (complete bit -> member tables) of one BIFT; entropy picks one. A power of two.
pub const MAX_VARIANTS: usize = 16;

/// Chunks of 256 bits in the pool of F-BMs: 32 MiB. 58 layers of 256 experts with 4 variants on 64 nodes take 15,080.
pub const FBM_CHUNKS: usize = 1 << 20;

/// Chunks of 64 rows in the pool of rows: 8 MiB.
pub const ROW_CHUNKS: usize = 1 << 17;

/// Entries in the pool of members: 64 for each of two full sets of tables.
pub const MEMBER_ENTRIES: usize = 2 * MAX_TABLES * 64;

/// Entries in the pool of shares (the egress devices of a table): two for each place, more for those that need them.
pub const SHARE_ENTRIES: usize = 4 * MAX_TABLES;

/// Fan-out maps, whether counted or of one table.
pub const FANOUT_MAPS: usize = 1 << 15;

/// Entries of the largest fan-out map: each member of the largest table once.
pub const MAX_COPIES: usize = 256;

/// Slots per CPU. At least the frames a CPU may replicate between two flushes of its bulk queues: a NAPI budget of 64
/// (`NAPI_POLL_WEIGHT`), a batch of 256 live frames (`TEST_XDP_MAX_BATCH` in net/bpf/test_run.c), or a busy-poll
/// budget that an administrator raised. What goes beyond is a counted loss. The other layout of the tests has fewer.
pub const SLOTS: usize = if cfg!(feature = "other-layout") { 512 } else { 1024 };

/// VLAN tags (802.1Q, 802.1ad) that may stand before the network header.
pub const MAX_VLAN_TAGS: usize = 2;

/// Bytes of a frame that still fits one page after cloning: `xdpf_clone` takes a page of 4,096 bytes, keeps
/// [`XDP_HEADROOM`], and the tail must hold a `skb_shared_info` of 320 bytes. Kernels before mid-2026 do not check the
/// last part.
pub const MAX_FRAME_BYTES: usize = 4096 - XDP_HEADROOM - 320;

/// Headroom in front of a frame in the kernel's drivers (`XDP_PACKET_HEADROOM`). More headroom leaves less room.
pub const XDP_HEADROOM: usize = 256;

/// Prefixes that sources are allowed from.
pub const MAX_SOURCE_PREFIXES: usize = 1024;

/// Single addresses in the admission map: sources (each neighbor by IP and by MAC) and the host's own addresses.
pub const MAX_ENDPOINTS: usize = 8192;
