//! What both sides of the kernel boundary agree on: the BIER header, the values of the maps, the list of outcomes and
//! the limits. Nothing here allocates, calls the system or depends on either side.
#![no_std]

pub mod bier;
pub mod limits;
pub mod neighbor;
pub mod outcome;
pub mod slot;
pub mod table;

/// UDP port of BIER over UDP unless the configuration says otherwise. No standard assigns one; VPP and scapy use this.
pub const DEFAULT_UDP_PORT: u16 = 8138;

/// Ethertype of BIER straight over Ethernet (RFC 8296, section 3, and the IEEE registry).
pub const ETHERTYPE_BIER: u16 = 0xAB37;

/// Version of the maps' layout: programs and maps of another version never meet, since it is part of the pin path. It
/// changes with everything by which the programs or the daemon of one build would misread the maps of another: maps,
/// their kinds and sizes, the fields of their values and what these mean, the marks in a frame between the two programs,
/// and the declared kind of `rewrite` (`frags`), which the kernel compares with what `SUCCESSOR` had before.
pub const LAYOUT_VERSION: u32 = if cfg!(feature = "other-layout") { 1_001 } else { 1 };
