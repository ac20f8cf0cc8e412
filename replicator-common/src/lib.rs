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

/// Version of the maps' layout: programs and maps of another version never meet, since it is part of the pin path.
pub const LAYOUT_VERSION: u32 = 1;
