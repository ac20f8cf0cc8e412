//! The expert map: for each layer of a model, which logical expert each physical expert is, and on which node.
//!
//! [`ExpertMap::parse`] reads the canonical document (docs/expert-map.md), [`import()`] the files of serving frameworks.
//! [`ExpertMap::birts`] makes tables of it, [`diff()`] compares two. Nothing here makes a system call.

mod diff;
mod document;
mod fault;
mod field;
mod import;
mod placement;
mod tree;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    sync::Arc,
};

use replicator_common::limits::MAX_BITS;

pub use diff::{Change, Diff, LayerDiff, diff};
pub use fault::{Fault, Faults};
pub use import::{Format, Import, import, ranks};
pub use tree::MAX_BYTES;

/// The version of the document that this build reads and writes.
pub const VERSION: u64 = 1;

/// Slots of a layer, and so ranks: four replicas of each of [`MAX_BITS`] experts.
pub const MAX_SLOTS: usize = 4 * MAX_BITS;

/// The largest epoch: integers up to it are exact in every reader of JSON.
pub const MAX_EPOCH: u64 = (1 << 53) - 1;

/// A map without faults: a full one, or some layers of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertMap {
    model: String,
    epoch: u64,
    experts: u16,
    nodes: Vec<String>,
    partial: bool,
    first_table: Option<u16>,
    /// Shared by the maps of later epochs, of which most change a layer or two.
    layers: BTreeMap<u16, Arc<Layer>>,
}

/// The slots of a layer, in the order of the ranks; each rank has as many as the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    slots: Vec<Option<u16>>,
    /// The slots as a document has them: maps are written far more often than a layer changes.
    json: String,
}

impl Layer {
    fn new(slots: Vec<Option<u16>>) -> Self {
        let mut json = String::with_capacity(5 * slots.len() + 2);
        for (i, slot) in slots.iter().enumerate() {
            json.push_str(if i == 0 { "[" } else { ", " });
            // Writing to a string cannot fail.
            let _ = match slot {
                Some(expert) => write!(json, "{expert}"),
                None => write!(json, "-1"),
            };
        }
        json.push(']');
        Self { slots, json }
    }

    /// The logical expert in each slot; `None` is a slot without one.
    pub fn slots(&self) -> &[Option<u16>] {
        &self.slots
    }
}

impl ExpertMap {
    /// The model's name.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The epoch: a later map has a larger one.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Logical experts of a layer.
    pub fn experts(&self) -> usize {
        self.experts.into()
    }

    /// The node of each rank.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// Whether layers that are not in it stay as they are.
    pub fn is_partial(&self) -> bool {
        self.partial
    }

    /// Number of layer 0's table, where the map says it; layer i has this one plus i.
    pub fn first_table(&self) -> Option<u16> {
        self.first_table
    }

    /// The layers, by number.
    pub fn layers(&self) -> &BTreeMap<u16, Arc<Layer>> {
        &self.layers
    }

    /// This map at another epoch, of [`MAX_EPOCH`] at most.
    pub fn at_epoch(self, epoch: u64) -> Self {
        Self { epoch: epoch.min(MAX_EPOCH), ..self }
    }

    /// Whether slots mean the same in both: the ranks and the experts are the same.
    pub fn is_like(&self, other: &Self) -> bool {
        self.nodes == other.nodes && self.experts == other.experts
    }

    /// These layers of this map, as a partial map.
    #[must_use]
    pub fn only(&self, layers: &BTreeSet<u16>) -> Self {
        let mut map = Self { partial: true, ..self.clone() };
        map.layers.retain(|number, _| layers.contains(number));
        map
    }

    /// This map with the layers of a later one in place of its own, at the later one's epoch. Model, experts and ranks
    /// are the same in both.
    #[must_use]
    pub fn with_layers_of(&self, later: &Self) -> Self {
        let mut map = Self { epoch: later.epoch, ..self.clone() };
        map.layers.extend(later.layers.iter().map(|(number, layer)| (*number, Arc::clone(layer))));
        map
    }
}
