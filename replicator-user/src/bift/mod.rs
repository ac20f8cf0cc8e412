//! From tables as users write them to the values of the maps.
//!
//! A [`Birt`] says which neighbors reach a bit (RFC 8279, section 6.3: the Bit Index Routing Table). [`Birt::compile`]
//! makes the [`Bift`] of it, and [`layout`] finds how its copies are shared among the egress devices. Nothing here
//! makes a system call, and everything is determined by its input.

mod birt;
mod compile;
mod fanout;

pub use birt::{Birt, BirtError, Size, default_variants};
pub use compile::{Bift, Places, Variant};
pub use fanout::{FanOutGroup, Layout, LayoutError, Rule, layout};

use replicator_common::{
    limits::MAX_NEIGHBORS,
    neighbor::{Encapsulation, FIRST_REMOTE_NEIGHBOR},
};

/// A next hop's id: its place in the neighbor maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NeighborId(u32);

impl NeighborId {
    /// Remote neighbors there is room for.
    pub const MAX_REMOTE: usize = MAX_NEIGHBORS - FIRST_REMOTE_NEIGHBOR as usize;

    /// The remote neighbor with this number, counted from 0; `None` beyond [`Self::MAX_REMOTE`].
    pub fn remote(index: usize) -> Option<Self> {
        let index = u32::try_from(index).ok().filter(|&index| (index as usize) < Self::MAX_REMOTE)?;
        Some(Self(FIRST_REMOTE_NEIGHBOR + index))
    }

    /// This host's own stack, for frames of this encapsulation.
    pub fn local(encapsulation: Encapsulation) -> Self {
        Self(encapsulation as u32)
    }

    /// The id as the maps hold it.
    pub fn get(self) -> u32 {
        self.0
    }

    /// Which remote neighbor this is, counted from 0; `None` for this host's own stack.
    pub fn remote_index(self) -> Option<usize> {
        Some(self.0.checked_sub(FIRST_REMOTE_NEIGHBOR)? as usize)
    }
}

/// Where a copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// This host's own stack.
    Local,
    /// A remote neighbor.
    Neighbor(NeighborId),
}
